"""The example scripts run offline, as a user runs them, and say that the reward rose."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script, *options, cwd):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(cwd / "hf")}
    command = [sys.executable, str(EXAMPLES / script), *map(str, options)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_by_hand(tmp_path):
    out = run("by_hand.py", "--steps", 30, cwd=tmp_path)
    rewards = [float(number) for number in re.findall(r"mean reward ([\d.]+)", out)]
    assert len(rewards) == 4
    assert rewards[0] < 0.1
    assert rewards[-1] > 0.2


@pytest.mark.slow
def test_tldr(tmp_path):
    out = run("tldr.py", "--max-steps", 10, cwd=tmp_path)
    before, after = map(float, re.search(r"mean reward (\S+) -> (\S+);", out).groups())
    assert after > before
    assert (tmp_path / "runs/tldr/model.safetensors").is_file()
    assert (tmp_path / "runs/tldr/metrics.jsonl").is_file()


@pytest.mark.slow
def test_arithmetic(tmp_path):
    out = run("arithmetic.py", "--max-steps", 3, cwd=tmp_path)
    assert re.search(r"held-out questions answered right: \d+% -> \d+%; the run is in runs/arithmetic", out)


@pytest.mark.parametrize("script", ["by_hand.py", "tldr.py", "arithmetic.py"])
def test_scripts_say_what_they_need(script):
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    assert text.startswith("# /// script\n# requires-python = ")
    assert '# dependencies = ["gruppo"]\n# ///\n"""' in text
