"""`gruppo export`: a run's tables as files, and what cannot be asked for."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from golden_runs import resumed_run
from gruppo.cli import main as cli
from gruppo.monitor import export as export_module
from gruppo.monitor.files import write_parquet


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resumed_run(tmp_path_factory.mktemp("runs") / "sums")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(run: Path, *flags: str) -> None:
    assert cli.main(["export", str(run), *flags]) == 0


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def json_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_written_without_flags(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(run)
    assert {path.name for path in (here / "sums-export").iterdir()} == {
        "metrics.csv",
        "rollouts.parquet",
        "events.jsonl",
    }
    assert "wrote sums-export/metrics.csv  6 rows" in capsys.readouterr().out
    lines = csv_rows(here / "sums-export" / "metrics.csv")
    assert [(line["step"], line["attempt"]) for line in lines] == [
        ("1", "1"), ("2", "1"), ("3", "1"), ("4", "2"), ("5", "2"), ("6", "2"),
    ]  # fmt: skip
    assert 0 <= float(lines[0]["reward"]) <= 1.4
    table = pq.read_table(here / "sums-export" / "rollouts.parquet")
    assert table.num_rows == 6 * 48
    assert table.schema.field("step").type == pa.int32()
    assert table.schema.field("reward/exact").type == pa.float64()
    assert {"prompt", "completion", "advantage", "finish_reason", "reward_status/exact"} <= set(table.column_names)
    assert table.column("step").to_pylist() == sorted(table.column("step").to_pylist())
    kinds = [(event["kind"], event.get("step")) for event in json_rows(here / "sums-export" / "events.jsonl")]
    assert ("checkpoint", 5) not in kinds, "attempt 2 made step 5 anew"
    assert [kind for kind, _ in kinds] == ["attempt_start", "attempt_stop", "attempt_start", "attempt_stop"]


def test_superseded_rows_on_request(run: Path, tmp_path: Path) -> None:
    exported(run, "-o", str(tmp_path), "--superseded", "--format", "jsonl", "--what", "metrics,rollouts,events")
    lines = json_rows(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["attempt"]) for line in lines][3:7] == [(4, 1), (4, 2), (5, 1), (5, 2)]
    rows = json_rows(tmp_path / "rollouts.jsonl")
    assert len(rows) == 8 * 48
    assert {row["attempt"] for row in rows if row["step"] == 5} == {1, 2}
    assert ("checkpoint", 5) in [(event["kind"], event.get("step")) for event in json_rows(tmp_path / "events.jsonl")]


@pytest.mark.parametrize(("steps", "wanted"), [("2:4", {2, 3, 4}), ("5:", {5, 6}), (":1", {1}), ("3", {3})])
def test_steps(run: Path, tmp_path: Path, steps: str, wanted: set[int]) -> None:
    exported(run, "-o", str(tmp_path), "--steps", steps, "--what", "metrics,rollouts")
    assert {int(line["step"]) for line in csv_rows(tmp_path / "metrics.csv")} == wanted
    assert set(pq.read_table(tmp_path / "rollouts.parquet").column("step").to_pylist()) == wanted


def test_the_three_formats_hold_the_same_completions(run: Path, tmp_path: Path) -> None:
    for form in ("csv", "jsonl", "parquet"):
        exported(run, "-o", str(tmp_path / f"x.{form}"), "--what", "rollouts", "--steps", "6")
    table = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert json_rows(tmp_path / "x.jsonl") == table
    texts = csv_rows(tmp_path / "x.csv")
    assert [row["completion"] for row in texts] == [row["completion"] for row in table]
    assert [float(row["reward"]) for row in texts] == [row["reward"] for row in table]


def test_metrics_as_parquet_have_types(run: Path, tmp_path: Path) -> None:
    exported(run, "-o", str(tmp_path / "m.parquet"), "--what", "metrics")
    schema = pq.read_schema(tmp_path / "m.parquet")
    kinds = {name: str(schema.field(name).type) for name in ("step", "attempt", "split", "time", "reward")}
    assert kinds == {"step": "int64", "attempt": "int64", "split": "string", "time": "double", "reward": "double"}


def test_a_split(run: Path, tmp_path: Path) -> None:
    exported(run, "-o", str(tmp_path), "--split", "train", "--what", "rollouts")
    assert set(pq.read_table(tmp_path / "rollouts.parquet").column("split").to_pylist()) == {"train"}
    assert cli.main(["export", str(run), "-o", str(tmp_path / "no.csv"), "--what", "metrics", "--split", "eval"]) == 2
    assert not (tmp_path / "no.csv").exists()


@pytest.mark.parametrize("when", ["before the columns", "before the rows"])
@pytest.mark.parametrize(("flags", "attempts"), [([], [1, 2, 2]), (["--superseded"], [1, 1, 1, 2, 2])])
def test_a_resume_in_the_middle_of_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, flags: list[str], attempts: list[int]
) -> None:
    """Steps 2 and 3 move away and are made anew: no error, nothing twice, nothing of both attempts by chance."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"attempts": []}')

    def write(step: int, attempt: int, **more: Any) -> None:
        row = {"step": step, "split": "train", "group_id": 0, "sample": 0, "attempt": attempt, **more}
        place = run / "rollouts" / f"step-{step:06d}" / f"part-r0-a{attempt}.parquet"
        write_parquet(place, pa.Table.from_pylist([row]))

    def resume() -> None:
        (run / "superseded/a2/rollouts").mkdir(parents=True)
        for step in (2, 3):
            name = f"rollouts/step-{step:06d}"
            (run / name).rename(run / "superseded/a2" / name)
            write(step, 2, **{"extra/new": "words"})

    for step in (1, 2, 3):
        write(step, 1)
    owner, name = (pq, "read_schema") if when == "before the columns" else (export_module, "read_files")
    inner, calls = getattr(owner, name), []

    def resuming(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            resume()
        return inner(*args)

    monkeypatch.setattr(owner, name, resuming)
    exported(run, "-o", str(tmp_path / "out" / "x.parquet"), "--what", "rollouts", *flags)
    rows = pq.read_table(tmp_path / "out" / "x.parquet").to_pylist()
    assert sorted(row["attempt"] for row in rows) == attempts
    assert sorted(row["step"] for row in rows if row["attempt"] == 2) == [2, 3]
    assert {row["extra/new"] for row in rows} == {None, "words"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.parquet"], "no temporary file is left"


def test_a_part_written_during_an_export_is_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "attempt": 1, "time": 1.0}\n')
    place = tmp_path / "rollouts" / "step-000001"
    row = {"step": 1, "split": "train", "group_id": 0, "sample": 0}
    write_parquet(place / "part-r0-a1.parquet", pa.Table.from_pylist([row | {"extra/x": 1.0}]))
    inner = export_module.read_files

    def writing(files: list[Path]) -> pa.Table:
        write_parquet(place / "part-r1-a1.parquet", pa.Table.from_pylist([row | {"extra/x": "word"}]))
        return inner(files)

    monkeypatch.setattr(export_module, "read_files", writing)
    exported(tmp_path, "-o", str(tmp_path / "x.parquet"), "--what", "rollouts")
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == [row | {"extra/x": 1.0}]


def test_a_run_that_has_not_done_a_step_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"attempts": []}')
    row = {"step": 1, "split": "train", "group_id": 0, "sample": 0}
    write_parquet(tmp_path / "rollouts" / "step-000001" / "part-r0-a1.parquet", pa.Table.from_pylist([row]))
    exported(tmp_path, "-o", str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rollouts.parquet"]


def test_tokens_are_exported_when_asked_for(run: Path, tmp_path: Path) -> None:
    exported(run, "-o", str(tmp_path), "--what", "tokens", "--steps", "1:2")
    tokens = pq.read_table(tmp_path / "tokens.parquet")
    assert set(tokens.column("step").to_pylist()) == {1, 2}
    assert all(isinstance(ids, list) for ids in tokens.column("completion_ids").to_pylist())


def test_cells_that_spreadsheets_would_run_are_quoted(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "attempt": 1, "time": 1.0}\n')
    row = {"step": 1, "split": "train", "group_id": 0, "sample": 0, "completion": "=cmd|'/c calc'!A0", "reward": -1.0}
    write_parquet(tmp_path / "rollouts" / "step-000001" / "part-r0-a1.parquet", pa.Table.from_pylist([row]))
    exported(tmp_path, "-o", str(tmp_path / "x.csv"), "--what", "rollouts")
    exported(tmp_path, "-o", str(tmp_path / "x.jsonl"), "--what", "rollouts")
    (cells,) = csv_rows(tmp_path / "x.csv")
    assert (cells["completion"], cells["reward"]) == ("'=cmd|'/c calc'!A0", "-1.0")
    assert json_rows(tmp_path / "x.jsonl") == [row]


def test_a_column_that_came_later_is_empty_before(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "attempt": 1, "time": 1.0}\n')
    for step, more in ((1, {"extra/x": 1.0}), (2, {"extra/x": "word", "extra/y": 2.0})):
        row = {"step": step, "split": "train", "group_id": 0, "sample": 0, **more}
        write_parquet(tmp_path / "rollouts" / f"step-{step:06d}" / "part-r0-a1.parquet", pa.Table.from_pylist([row]))
    exported(tmp_path, "-o", str(tmp_path / "x.parquet"), "--what", "rollouts")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column("extra/x").to_pylist() == ["1.0", "word"]
    assert table.column("extra/y").to_pylist() == [None, 2.0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--what", "rolouts"], "there is no 'rolouts'. Did you mean 'rollouts'?"),
        (["--what", ","], "names nothing"),
        (["--what", "tokens", "--format", "csv"], "tokens cannot be written as csv, only as parquet or jsonl"),
        (["--what", "events", "-o", "x.csv"], "events cannot be written as csv, only as jsonl"),
        (["-o", "x.csv"], "is one file. Give a folder, or one kind"),
        (["--what", "metrics", "-o", "x.csv", "--format", "jsonl"], "x.csv says csv, --format says jsonl"),
        (["--steps", "a:b"], "cannot be read. Write 10:50"),
        (["--steps", ":"], "cannot be read"),
        (["--steps", "9:3"], "ends before it begins. Write the smaller step first: 3:9"),
        (["--steps", "70:"], "Nothing to export"),
    ],
)
def test_what_cannot_be_asked_for(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert cli.main(["export", str(run), *flags]) == 2
    assert message in capsys.readouterr().err
    assert [path for path in here.rglob("*") if path.is_file()] == []


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(tmp_path / "nowhere")]) == 2
    assert "holds no run: there is no metrics.jsonl" in capsys.readouterr().err
