"""`gruppo report`: one safe, whole HTML file from a recorded run, and a picture."""

import importlib.util
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from gruppo.cli import main as cli
from gruppo.monitor.files import write_parquet
from gruppo.monitor.readers import read_rollouts
from gruppo.monitor.report.contents import changed_settings, evaluations_of, phases_of, read_contents
from gruppo.monitor.report.curves import charts_of
from gruppo.monitor.report.page import page
from gruppo.monitor.report.samples import MAX_CHARACTERS, last_extremes, pick
from gruppo.monitor.report.svg import axis_ticks, chart_svg
from gruppo.monitor.report.untrusted import escaped, flat

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_golden_run.py"

HOSTILE = "<script>pwned(1)</script>\"'&<img src=http://x.test/a>\u202eright\u2066\x1b[31m\x00$x_1$\u200b\ue000"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 26 steps that was resumed once, as the script makes it."""
    spec = importlib.util.spec_from_file_location("golden_for_report", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = tmp_path_factory.mktemp("runs") / "sums"
    module.make_run(run, module.Story("sums", num_steps=26, resumes_at=20, is_finished=True))
    return run


class Elements(HTMLParser):
    """All tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def line(step: int, split: str = "train", **metrics: float | None) -> dict[str, object]:
    return {"step": step, "split": split, "attempt": 1, "time": 1000.0 + step} | metrics


def assert_is_closed(text: str) -> None:
    """Nothing runs, nothing is asked for, nothing invisible is left."""
    elements = Elements(text)
    assert not {"script", "img", "link", "iframe", "a", "object", "form"} & {tag for tag, _ in elements.tags}
    for _, attributes in elements.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\u200b]", text)


def test_the_file_says_all_that_matters(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, png = tmp_path / "x.html", tmp_path / "x.png"
    assert cli.main(["report", str(golden), "-o", str(out), "--png", str(png)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\nwrote {png}\n"
    text = out.read_text(encoding="utf-8")
    assert_is_closed(text)
    elements = Elements(text)
    assert "Learning: reward" in elements.text or "No clear change: reward" in elements.text
    assert "2 attempts" in elements.text
    assert len([1 for tag, attributes in elements.tags if attributes.get("role") == "img"]) == 8
    for words in ("D05 truncation · step 9", "Raise max_completion_length", "docs/health/D05.md", "forward_backward",
                  "Completions of step 26", "Best reward", "Worst reward"):  # fmt: skip
        assert words in elements.text
    assert "48 completions per optimizer step" in elements.text
    assert "mask_truncated_completions" not in elements.text  # it is at its default
    assert png.read_bytes().startswith(b"\x89PNG")


def test_texts_of_the_run_cannot_break_out(golden: Path, tmp_path: Path) -> None:
    run = tmp_path / "bad <b>$x_1$"
    shutil.copytree(golden, run)
    step = max(run.glob("rollouts/step-*"))
    rows = read_rollouts(run, step=26, split="train").to_pylist()
    for row in rows:
        row |= {"completion": HOSTILE, "prompt": HOSTILE, "prompt_format": "text", "finish_reason": HOSTILE}
        row |= {f"reward/{HOSTILE[:20]}": 1.0, f"reward_status/{HOSTILE[:20]}": HOSTILE}
    shutil.rmtree(step)
    write_parquet(step / "part-r0-a2.parquet", pa.Table.from_pylist(rows))
    about = json.loads((run / "run.json").read_text())
    about["attempts"][-1] |= {"plan": [HOSTILE], "device": {"name": HOSTILE, "type": HOSTILE}}
    about["attempts"][-1]["versions"] = {"torch": HOSTILE}
    about["attempts"][-1]["config"] |= {HOSTILE: HOSTILE, "model": HOSTILE, "beta": [HOSTILE]}
    (run / "run.json").write_text(json.dumps(about))
    finding = {"kind": "finding", "severity": HOSTILE, "detector": HOSTILE, "name": HOSTILE, "step": HOSTILE,
               "message": HOSTILE, "advice": HOSTILE, "docs": HOSTILE, "evidence": [{"group_id": HOSTILE}],
               "attempt": 2, "time": 9e9}  # fmt: skip
    stop = {"kind": "attempt_stop", "attempt": 2, "outcome": HOSTILE, "time": 9e9 + 1}
    with (run / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in (finding, stop))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(27, HOSTILE, **{f"{HOSTILE}_reward": 1.0, f"{HOSTILE}_{HOSTILE}": 2.0})) + "\n")
        file.write(
            json.dumps(line(27, **{f"time/{HOSTILE}": 1.0, "reward": 0.5, "kl": "text"}) | {"attempt": 2}) + "\n"
        )
    out = tmp_path / "x.html"
    assert cli.main(["report", str(run), "-o", str(out), "--png", str(tmp_path / "x.png")]) == 0
    text = out.read_text(encoding="utf-8")
    assert_is_closed(text)
    assert Elements(text).text.count("<script>pwned(1)</script>") > 25
    assert text.count('<span class="hidden">RLO</span>') > 25


def test_it_works_on_a_run_that_just_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    out, png = tmp_path / "x.html", tmp_path / "x.png"
    assert cli.main(["report", str(tmp_path), "-o", str(out), "--png", str(png)]) == 0
    assert "No step was recorded." in out.read_text()
    assert png.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-o", "x.html"], "gruppo report: 'nowhere' holds no run"),
        (["nowhere"], "gruppo report: 'nowhere' holds no run"),
        (["{run}"], "gruppo report: There is nothing to write: give -o"),
        (
            ["{run}", "-o", "{run}/no/such/x.html"],
            "gruppo report: Writing {run}/no/such/x.html failed: FileNotFoundError",
        ),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], message: str, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", *(text.format(run=golden) for text in arguments)]) == 2
    assert capsys.readouterr().err.startswith(message.format(run=golden))


def test_without_reported_findings_the_checks_are_run(golden: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(golden, run)
    assert read_contents(run).findings_source == "As the run reported them."
    (run / "events.jsonl").unlink()
    contents = read_contents(run)
    assert contents.findings_source == "From the checks of `gruppo audit` on its files."
    assert "gruppo audit" in page(contents) or not contents.findings


def test_settings_at_their_defaults_are_left_out() -> None:
    changed = changed_settings({"beta": 0.0, "num_generations": 4, "max_steps": -1, "other": 1})
    assert [(setting.name, setting.value) for setting in changed] == [("num_generations", 4), ("other", 1)]
    assert changed[0].default == 8


def test_phases_add_up_to_the_step() -> None:
    lines = [line(1, **{"time/a": 1.0, "time/b": 2.0, "step_time": 4.0}), line(2, **{"time/b": 2.0, "step_time": 4.0})]
    assert [(phase.name, phase.seconds, phase.share) for phase in phases_of(lines)] == [
        ("b", 2.0, 0.5), ("other", 1.5, 0.375), ("a", 0.5, 0.125)]  # fmt: skip


def test_evaluations_by_split() -> None:
    lines = [line(0, "eval", eval_x=1.0, eval_reward=2.0), line(4, "eval", eval_reward=None, eval_x=3.0)]
    found = evaluations_of(lines)
    assert [(each.split, each.names, each.rows) for each in found] == [
        ("eval", ("reward", "x"), ((0, (2.0, 1.0)), (4, (None, 3.0))))]  # fmt: skip


def test_best_and_worst_do_not_overlap_and_spread_over_groups() -> None:
    rows = [{"group_id": g, "sample": s, "reward": float(s == 0)} for g in range(2) for s in range(4)]
    best, worst = pick(rows)
    assert [(row["group_id"], row["sample"]) for row in best] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [(row["group_id"], row["sample"]) for row in worst] == [(0, 2), (1, 2), (0, 3), (1, 3)]
    many = [{"group_id": 0, "sample": s, "reward": float(s)} for s in range(20)]
    assert [[row["sample"] for row in side] for side in pick(many)] == [[19, 18, 17, 16, 15], [0, 1, 2, 3, 4]]


def test_long_completions_are_cut(tmp_path: Path) -> None:
    row = {"step": 1, "split": "train", "group_id": 0, "sample": 0, "reward": 1.0, "completion": "x" * 9000}
    write_parquet(tmp_path / "rollouts" / "step-000001" / "part-r0-a1.parquet", pa.Table.from_pylist([row]))
    found = last_extremes(tmp_path)
    assert found is not None
    assert found.best[0].completion == "x" * MAX_CHARACTERS + " … (5,000 more characters)"
    assert found.worst == ()


def test_curves_keep_gaps_and_spikes() -> None:
    charts = charts_of([line(1, reward=1.0), line(2, reward=None), line(3, reward=2.0)])
    drawn = chart_svg(charts[0], (1, 3))
    assert re.search(r'class="line line0" d="M52\.0 [\d.]+h0M410\.0 [\d.]+h0"', drawn)
    assert not charts[1].series
    long = charts_of([line(step, grad_norm=99.0 if step == 500 else 1.0) for step in range(1, 1001)])
    series = long[-1].series[0]
    assert len(series.steps) == 250
    assert max(series.high) == 99.0
    assert 'class="band0"' in chart_svg(long[-1], (1, 1000))


@pytest.mark.parametrize(
    ("low", "high", "floor", "ticks"),
    [
        (0.0, 1.0, None, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (3.0, 38.0, 0.0, [0.0, 10.0, 20.0, 30.0, 40.0]),
        (0.0, 0.0, 0.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (-2.0, -2.0, None, [-3.0, -2.5, -2.0, -1.5, -1.0]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, floor: float | None, ticks: list[float]) -> None:
    assert axis_ticks(low, high, floor) == ticks


def test_invisible_characters_get_a_name() -> None:
    assert flat("a\u202eb\x1b\n\ue000\ud800") == "a⟦RLO⟧b⟦ESC⟧\n\ue000⟦U+D800⟧"
    assert escaped("<\u2066>") == '&lt;<span class="hidden">LRI</span>&gt;'
