"""The code of docs/reading.md, run as it stands there on a recorded run: pandas, DuckDB, datasets, and our readers."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from golden_runs import golden, resumed_run
from gruppo.monitor.readers import read_metrics

PAGE = Path(__file__).parents[1] / "docs" / "reading.md"

BLOCKS = {
    title: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run at runs/tldr, as the page has it: 16 steps of 48 completions, two evaluations, an alarm.

    It was begun anew in the folder of an attempt of 18 steps.
    """
    folder = tmp_path_factory.mktemp("project")
    script = golden()
    before = script.RunWriter(folder / "runs" / "tldr", script.Story("tldr", seed=11, alarms=False))
    for step in range(1, 19):
        before.step(step)
    before.close()
    script.make_run(folder / "runs" / "tldr", script.Story("tldr", num_steps=16, max_steps=16, resumes_at=None))
    return folder


@pytest.fixture
def values(folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the block of the section (the test's parameter) leaves behind."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    datasets.disable_progress_bars()
    (block,) = BLOCKS[request.param]
    names: dict[str, Any] = {}
    exec(compile(block, f"{PAGE.name}: {request.param}", "exec"), names)
    return names


def test_every_section_with_code_is_tested() -> None:
    assert {title for title, blocks in BLOCKS.items() if blocks} == {
        "With gruppo", "With pandas", "With DuckDB", "With datasets",
    }  # fmt: skip


@pytest.mark.parametrize("values", ["With gruppo"], indirect=True)
def test_our_readers(values: dict[str, Any]) -> None:
    assert [line["step"] for line in values["lines"]] == list(range(1, 17))
    assert values["table"].num_rows == 16 * 48
    assert values["worst"].column_names == ["prompt", "completion", "reward"]
    assert values["worst"].num_rows == 48
    assert all(len(ids) > 0 for ids in values["tokens"].column("completion_ids").to_pylist())
    assert 0 < values["tokens"].num_rows <= 48
    assert [(event["detector"], event["step"]) for event in values["alarms"]] == [("D05", 9)]


@pytest.mark.parametrize("values", ["With pandas"], indirect=True)
def test_pandas(values: dict[str, Any]) -> None:
    metrics = values["metrics"]
    assert set(metrics["attempt"]) == {2}
    assert list(metrics[metrics["split"] == "eval"]["step"]) == [8, 16]
    assert list(values["reward"].index) == list(range(1, 17))
    assert values["by_prompt"].shape == (16 * 6, 3)
    means = values["by_prompt"]["mean"].groupby("step").mean()
    assert means.to_numpy() == pytest.approx(values["reward"].to_numpy(), abs=1e-6)
    assert str(values["rollouts"]["step"].dtype) == "int32"
    assert len(values["cut_off"]) > 0
    assert (values["events"]["kind"] == "finding").sum() == 1


@pytest.mark.parametrize("values", ["With DuckDB"], indirect=True)
def test_duckdb(values: dict[str, Any]) -> None:
    rewards = values["rewards"]
    assert list(rewards["step"]) == list(range(1, 17))
    assert set(rewards["num_completions"]) == {48}
    assert values["solved"]["first_solved"].between(1, 16).all()
    assert values["alarms"].to_dict("records")[0]["detector"] == "D05"


@pytest.mark.parametrize("values", ["With datasets"], indirect=True)
def test_datasets(values: dict[str, Any]) -> None:
    assert len(values["completions"]) == len(values["merged"]) > 16 * 48, "evaluations are there too"
    assert 0 < len(values["best"]) < 16 * 48
    assert set(values["merged"].column_names) == set(values["completions"].column_names)


def test_pandas_and_our_reader_agree_on_a_run_that_was_resumed_and_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = resumed_run(tmp_path / "runs" / "tldr")
    with (run / "metrics.jsonl").open("a") as file:
        for attempt, step, split in ((3, 6, "eval"), (4, 6, "eval"), (5, 6, "train"), (5, 7, "train")):
            line = {"step": step, "split": split, "attempt": attempt, "time": 1.0, "reward": float(attempt)}
            file.write(json.dumps(line) + "\n")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(BLOCKS["With pandas"][0], names)
    theirs = {(line["step"], line["split"], line["attempt"]) for line in read_metrics(run, split=None)}
    ours = set(names["metrics"][["step", "split", "attempt"]].itertuples(index=False, name=None))
    assert ours == theirs
    assert len(names["metrics"]) == len(theirs)
