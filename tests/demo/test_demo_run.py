"""The demo from end to end, cut to two steps; the full run is `make demo`."""

import json
from pathlib import Path

import pytest

from gruppo.demo import run
from gruppo.demo.task import split_questions


def test_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    training, held_out = split_questions()
    monkeypatch.setattr(run, "split_questions", lambda: (training[:64], held_out[:16]))
    monkeypatch.setattr(run, "NUM_PROMPTS_PER_STEP", 2)
    folder = tmp_path / "demo"

    summary = run.main(output_dir=str(folder), seed=1, steps=2)

    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["steps"] == 2
    assert summary["seed"] == 1
    assert summary["num_held_out_questions"] == 16
    assert {*summary["sampled_accuracy"], *summary["greedy_accuracy"]} == {"before", "after"}
    assert summary["settings"]["learning_rate"] == run.LEARNING_RATE
    assert (folder / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "policy" / "model.safetensors").exists()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 2
    screen = capsys.readouterr().out
    assert held_out[0].text in screen
    assert "held-out accuracy" in screen
    assert f"monitor {tmp_path}" in screen
    assert f"{folder}/summary.json" in screen
    assert [file.name for file in tmp_path.iterdir()] == ["demo"]


def test_without_matplotlib_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training, held_out = split_questions()
    monkeypatch.setattr(run, "split_questions", lambda: (training[:64], held_out[:4]))
    monkeypatch.setattr(run, "NUM_PROMPTS_PER_STEP", 2)
    monkeypatch.setattr(run, "find_spec", lambda name: None)

    run.main(output_dir=str(tmp_path), steps=1)

    assert "pip install 'gruppo[report]'" in capsys.readouterr().out
    assert not (tmp_path / "reward.png").exists()
    assert (tmp_path / "summary.json").exists()


def test_programs_are_named_as_they_can_be_called_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "gruppo").touch(mode=0o755)
    monkeypatch.setattr(run.sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert run._command("gruppo") == ".venv/bin/gruppo"
    monkeypatch.chdir("/")
    assert run._command("gruppo") == str(programs / "gruppo").lstrip("/")
    monkeypatch.chdir(programs.parent)
    assert run._command("gruppo") == "bin/gruppo"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run._command("gruppo") == str(programs / "gruppo")
    monkeypatch.setenv("PATH", str(programs))
    assert run._command("gruppo") == "gruppo"
