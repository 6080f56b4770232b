"""Run by test_recorder_kill.py, which kills it: records rounds without end. Not a test by itself."""

import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from monitor import monitor_fakes as fakes

recorder = fakes.make_recorder(Path(sys.argv[1]))
for step in count(1):
    fakes.record_round(recorder, step)
    recorder.record_step(step, {"reward": step / 10})
