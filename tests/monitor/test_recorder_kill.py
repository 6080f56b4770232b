"""SIGKILL in the middle of recording: what was finished is whole, and the next attempt goes on."""

import subprocess
import sys
import time
from pathlib import Path

from gruppo.monitor.readers import read_metrics, read_rollouts
from monitor import monitor_fakes as fakes


def test_kill_9_leaves_a_readable_run(tmp_path):
    script = Path(__file__).with_name("endless_script.py")
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    try:
        while not (tmp_path / "rollouts/step-000020/part-r0-a1.parquet").exists():
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    rollouts, lines = read_rollouts(tmp_path), read_metrics(tmp_path)
    num_steps = len(set(rollouts["step"].to_pylist()))
    assert num_steps >= 20
    assert rollouts["step"].to_pylist() == [step for step in range(1, num_steps + 1) for _ in range(4)]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= num_steps - 1, "a round is recorded before its step: the kill may have come between the two"

    second = fakes.make_recorder(tmp_path, start_step=10)
    second.record_step(11, {"reward": 0.0})
    second.close()
    assert read_metrics(tmp_path)[-1]["attempt"] == 2
    assert len(read_metrics(tmp_path)) == 11
    assert max(read_rollouts(tmp_path)["step"].to_pylist()) == 10
