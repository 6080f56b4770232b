"""`gruppo compare`: what differs between two runs, as tables and as JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from gruppo.cli import main as cli
from gruppo.monitor.report.numbers import Number, headline


def write_run(folder: Path, rewards: list[float], **config: Any) -> Path:
    folder.mkdir()
    lines = [
        {"step": step, "split": "train", "attempt": 1, "time": 1.0, "reward": reward, "step_time": float(step),
         "completions/mean_length": 10.0 * step, "completions/clipped_ratio": 0.5}
        for step, reward in enumerate(rewards, 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    attempt = {"attempt": 1, "config": {"beta": 0.0} | config, "versions": {"torch": "2.12"}}
    (folder / "run.json").write_text(json.dumps({"attempts": [attempt]}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    a = write_run(tmp_path / "a", [0.0, 1.0, 3.0, 2.0], learning_rate=1e-6)
    b = write_run(tmp_path / "b", [0.0, 2.0], learning_rate=1e-5, extra="[bold]\x1b]0;x\x07")
    with (b / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "split": "eval", "attempt": 1, "time": 2.0, "eval_reward": 0.5}) + "\n")
    return str(a), str(b)


def test_json(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"], found["versions"]) == (*runs, [])
    assert found["config"] == [
        {"name": "extra", "b": "[bold]\x1b]0;x\x07"},
        {"name": "learning_rate", "a": 1e-6, "b": 1e-5},
    ]
    numbers = {entry["name"]: entry for entry in found["numbers"]}
    assert numbers["steps"] == {"name": "steps", "kind": "count", "a": 4.0, "b": 2.0, "difference": -2.0}
    assert numbers["reward, at the start"]["a"] == 0.5
    assert numbers["reward, at the end"] == {
        "name": "reward, at the end", "kind": "number", "a": 2.5, "b": 2.0, "difference": -0.5}  # fmt: skip
    assert (numbers["reward, best step"]["a"], numbers["reward, best step"]["a_step"]) == (3.0, 3)
    assert numbers["eval reward, last"] == {"name": "eval reward, last", "kind": "number", "b": 0.5, "b_step": 2}
    assert numbers["answer length, at the end"]["a"] == 35.0
    assert numbers["step time, median"]["difference"] == -1.0


def test_tables(runs: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["compare", *runs]) == 0
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in text.splitlines() if row.startswith("│")]
    assert ["learning_rate", "1e-06", "1e-05"] in rows
    assert ["extra", "–", '"[bold]\\u001b]0;x\\u0007"'] in rows
    assert ["reward, best step", "3 (step 3)", "2 (step 2)", "-1"] in rows
    assert ["cut-off answers, at the end", "50.0%", "50.0%", "0.0%"] in rows
    assert ["eval reward, best", "–", "0.5 (step 2)", "–"] in rows
    assert "Versions: no difference" in text
    assert "\x1b" not in text


def test_a_folder_without_a_run_is_a_mistake(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", runs[0], "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("gruppo compare: 'nowhere' holds no run")


def test_what_is_not_finite_counts_nowhere() -> None:
    lines = [
        {"step": step, "split": "train", "reward": value}
        for step, value in enumerate([None, 1.0, float("nan"), True, "x", 2.0])
    ]
    assert headline(lines) == [
        Number("steps", 5.0, "count"),
        Number("reward, at the start", 1.0),
        Number("reward, at the end", 2.0),
        Number("reward, best step", 2.0, step=5),
    ]
