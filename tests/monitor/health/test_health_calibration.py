"""The calibration runs through the real trainer, shortened: what fires on some of them; and how the report counts."""

from pathlib import Path

import pytest

from gruppo.monitor.health.audit import Audit, audit
from gruppo.monitor.health.finding import Finding
from gruppo.monitor.health.table import DETECTORS

ROOT = Path(__file__).parents[3]


@pytest.fixture
def runs(monkeypatch):
    """scripts/calibration_runs.py"""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import calibration_runs

    return calibration_runs


@pytest.fixture
def report(runs):
    """scripts/calibration_report.py"""
    import calibration_report

    return calibration_report


def trained(runs, name, folder, steps) -> Audit:
    import calibration_training

    calibration_training.make(runs.RUNS[name], folder, words_policy=folder / "unused", steps=steps)
    return audit(folder)


def fired(found: Audit) -> set[str]:
    return {finding.detector for finding in found.findings if finding.severity != "INFO"}


def test_a_healthy_training_is_silent(runs, tmp_path):
    found = trained(runs, "ok-grpo-g4", tmp_path, steps=30)
    assert fired(found) == set()
    assert {finding.detector for finding in found.findings} >= {"D02"}  # a loss of 0 is explained
    assert {name for name, state in found.checks.items() if state.reason == ""} >= {"D01", "D05", "D17", "D22"}


@pytest.mark.parametrize(
    ("name", "steps", "detectors"),
    [("cut-31", 6, {"D05"}), ("greedy-31", 4, {"D01", "D17"}), ("nan-31", 6, {"D22"})],
)
def test_a_broken_training_is_noticed(runs, tmp_path, name, steps, detectors):
    assert fired(trained(runs, name, tmp_path, steps)) >= detectors


def test_every_check_has_a_broken_run_or_explains(runs):
    seen = {name for run in runs.RUNS.values() for name in run.breaks}
    assert seen | {"D02"} == set(DETECTORS)


def test_every_broken_run_is_made_for_both_splits(runs):
    seeds = (*runs.TUNING_SEEDS, runs.HELD_OUT_SEED)
    names = {run.name.rpartition("-")[0] for run in runs.BROKEN}
    assert {f"{name}-{seed}" for name in names for seed in seeds} == {run.name for run in runs.BROKEN}
    assert {run.split for run in runs.BROKEN if run.seed in runs.TUNING_SEEDS} == {"tuning"}
    assert {run.split for run in runs.BROKEN if run.seed == runs.HELD_OUT_SEED} == {"held-out"}
    assert all(sum(run.split == split for run in runs.HEALTHY) >= 8 for split in ("tuning", "held-out"))
    tuned = {run.seed for run in runs.RUNS.values() if run.split == "tuning" and run.is_healthy}
    assert not tuned & {run.seed for run in runs.RUNS.values() if run.split == "held-out" and run.is_healthy}


def finding(detector, severity, step) -> Finding:
    return Finding(detector, "", severity, step, 0.0, 0.0, "")


def test_the_report_counts_false_alarms_and_misses(runs, report):
    healthy, cut, bought = (runs.RUNS[name] for name in ("ok-kl", "cut-31", "tolerant-71"))
    judged = [
        report.Judged(healthy, Audit(Path(), 50, (finding("D09", "WARN", 7), finding("D02", "INFO", 1)), {})),
        report.Judged(cut, Audit(Path(), 30, (finding("D11", "ALERT", 3),), {})),
        report.Judged(bought, Audit(Path(), 80, (finding("D19", "WARN", 30), finding("D21", "ALERT", 60)), {})),
    ]
    text = report.markdown(judged, ROOT)
    assert "| tuning | 1 | 50 | 1 | 2.00 | 0 | 0.00 |" in text
    assert "| tuning | 1 | 1 | 100% |" in text  # cut: D05 is silent
    assert "| held-out | 1 | 0 | 0% |" in text
    assert "D05: **missed** | D11 |" in text
    assert "| D19 | 30 of 80 | 38% |" in text
    assert "| [D09](D09.md) clipping | 1 of 1 | 0 of 1 | 0 of 0 |" in text
    said = report.as_json(judged, ROOT)["runs"]
    assert said[1]["fired_at"] == {"D05": None}
    assert said[2]["fired_at"] == {"D19": 30}
