"""Notebooks in tests run in this interpreter, and leave nothing outside the test's folder."""

import json
import sys
from pathlib import Path

import pytest


def use_this_interpreter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `python3` the kernel of this interpreter; caches and settings go below `folder`."""
    spec = folder / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    for name, value in {
        "JUPYTER_PATH": folder / "jupyter",
        "IPYTHONDIR": folder / "ipython",
        "HF_HOME": folder / "hf",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, str(value))
