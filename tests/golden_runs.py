"""Short runs written by scripts/make_golden_run.py, for tests that read a run: the real recorder, no training."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_golden_run.py"


def golden() -> ModuleType:
    """The script as a module."""
    name = "make_golden_run"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def resumed_run(folder: Path) -> Path:
    """Steps 1 to 5, then a second attempt that makes 4 and 5 anew and goes on to 6. 48 completions in each step."""
    script = golden()
    story = script.Story(folder.name, num_steps=6, max_steps=6)
    first = script.RunWriter(folder, story)
    for step in range(1, 6):
        first.step(step)
    first.recorder.record_event("checkpoint", step=5, path="checkpoint-5")
    first.close("failed: KeyboardInterrupt")
    second = script.RunWriter(folder, story, start_step=3)
    for step in range(4, 7):
        second.step(step)
    second.close()
    return folder
