"""Live and offline say the same about the same records; the command; the docs pages."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from gruppo.cli.audit import run as run_command
from gruppo.errors import ConfigError, DataError
from gruppo.monitor.files import write_parquet
from gruppo.monitor.health.audit import audit, read_records
from gruppo.monitor.health.live import HealthMonitor
from gruppo.monitor.health.pages import pages
from gruppo.monitor.health.table import DETECTORS
from gruppo.monitor.schema import ROLLOUT_COLUMNS
from monitor.health.broken_runs import BROKEN
from monitor.health.health_fakes import CONFIG, healthy_run, observe
from monitor.monitor_fakes import make_recorder

ROOT = Path(__file__).parents[3]


def write(run, folder, config=CONFIG) -> None:
    """As the recorder does: lines, and a part of each step's rows in two ranks' files."""
    recorder = make_recorder(folder, config_dict=config)
    for fake in run:
        size = len(fake.columns["sample"])
        order = list(range(size))
        random.Random(fake.step).shuffle(order)
        columns = fake.columns | {"step": [fake.step] * size, "split": ["train"] * size}
        names = [name for name in columns if name in ROLLOUT_COLUMNS or "/" in name or name == "gibberish_share"]
        for rank, rows in enumerate((order[: size // 3], order[size // 3 :])):
            table = pa.table({name: [columns[name][row] for row in rows] for name in names})
            write_parquet(folder / "rollouts" / f"step-{fake.step:06d}" / f"part-r{rank}-a1.parquet", table)
        recorder.record_step(fake.step, fake.metrics)
        if fake.evals:
            recorder.record_step(fake.step, fake.evals, split="eval")
    recorder.close()


@pytest.mark.parametrize("name", ["D11", "D21", "D22", "D23"])
def test_live_is_offline(name, tmp_path):
    run = healthy_run()
    BROKEN[name][0](run)
    run[30].metrics["kl"] = math.inf
    write(run, tmp_path)
    monitor, findings = observe(run)
    assert name in {finding.detector for finding in findings}
    found = audit(tmp_path)
    assert list(found.findings) == findings
    assert found.checks == monitor.state.checks
    assert found.num_steps == 70
    assert found.has_alert


def test_a_resumed_run_goes_on_where_it_was(tmp_path):
    run = healthy_run()[:55]
    BROKEN["D11"][0](run)
    write(run, tmp_path)
    whole, _ = observe(run)
    resumed = HealthMonitor(CONFIG, history=read_records(tmp_path, CONFIG, before_step=40))
    for fake in run[40:]:
        resumed.observe(fake.step, fake.metrics, fake.columns)
        if fake.evals:
            resumed.observe_eval(fake.step, "eval", fake.evals)
    assert resumed.state.checks == whole.state.checks


def test_the_config_of_the_run_holds_the_thresholds(tmp_path):
    run = healthy_run()[:10]
    for fake in run:
        fake.metrics["completions/clipped_ratio"] = 0.6
    write(run, tmp_path, CONFIG | {"health_thresholds": {"D05": {"alert": 0.8}}})
    assert not audit(tmp_path).has_alert
    assert audit(tmp_path, {}).has_alert


def test_the_command(tmp_path, capsys):
    run = healthy_run()[:10]
    for fake in run:
        fake.metrics["completions/clipped_ratio"] = 0.6
    write(run, tmp_path)
    assert run_command([str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "ALERT D05 truncation  step 3  60% of answers were cut at max_completion_length=256" in text
    assert "10 steps, 26 checks: 1 in ALERT" in text
    assert "D20 sudden jump: needs 20 steps, has 10" in text
    assert run_command([str(tmp_path), "--set", "D05.alert=0.7", "D12=off"]) == 0
    assert "10 steps, 25 checks: 1 in WARN" in capsys.readouterr().out
    assert run_command([str(tmp_path), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["has_alert"]
    assert [finding["detector"] for finding in data["findings"]] == ["D05"]
    assert data["checks"]["D05"]["level"] == "alert"
    assert data["checks"]["D20"]["reason"] == "needs 20 steps, has 10"
    with pytest.raises(ConfigError, match=r"write D05\.alert=0\.7"):
        run_command([str(tmp_path), "--set", "D05"])
    with pytest.raises(DataError, match=r"holds no run"):
        run_command([str(tmp_path / "nowhere")])


def test_a_run_without_rollouts_or_run_json_is_audited_as_far_as_it_goes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "attempt": 1, "reward": 0.5}\n{"step": 2')
    found = audit(tmp_path)
    assert found.findings == ()
    assert found.checks.keys() == DETECTORS.keys()
    assert {state.level for state in found.checks.values()} <= {"na", "insufficient"}


def test_the_command_does_not_load_torch():
    code = "import sys, gruppo.cli.audit; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_docs_pages_are_up_to_date():
    folder = ROOT / "docs" / "health"
    written = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    written.pop("calibration.md", None)  # scripts/calibrate_health.py writes it
    assert written == pages(), "run: python -m gruppo.monitor.health.pages docs/health"
