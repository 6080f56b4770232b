"""Trains the calibration runs, audits them, and reports false alarms and misses of the health checks.

    python scripts/calibrate_health.py --runs DIR             # trains what is missing in DIR, then reports
    python scripts/calibrate_health.py --runs DIR --reuse     # reports on what is there
    python scripts/calibrate_health.py --runs DIR --train ok-dapo    # one training, in this process

The runs are in calibration_runs.py. Each is trained in a process of its own. The report is docs/health/calibration.md
and calibration.json; what it counts is in calibration_report.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from calibration_policy import make_policy
from calibration_report import Judged, as_json, markdown
from calibration_runs import RUNS
from calibration_training import make

from gruppo.monitor.health.audit import audit

ROOT = Path(__file__).parents[1]
POLICY, DONE = "policy", "done"


@dataclass(frozen=True)
class Options:
    """What to train and where to report."""

    runs: Path
    """Folder of the runs and of the second policy."""
    only: tuple[str, ...] = ()
    """Names of runs, or their beginnings; without, all."""
    reuse: bool = False
    """Train nothing: report on the runs that are there."""
    train: str | None = None
    """Train this run here and report nothing."""
    launcher: str = ""
    """A command that starts each training, for instance `nice`."""
    out: Path | None = ROOT / "docs" / "health"
    """Folder of the report; None prints it."""


def main(options: Options) -> None:
    """Train, audit, report."""
    if options.train is not None:
        import torch

        torch.set_num_threads(1)
        make(RUNS[options.train], options.runs / options.train, options.runs / POLICY)
        return
    wanted = [name for name in RUNS if not options.only or name.startswith(options.only)]
    if not options.reuse:
        if not (options.runs / POLICY).exists():
            make_policy(options.runs / POLICY)
        for name in wanted:
            if not _is_done(name, options):
                _train(name, options)
    judged = [Judged(RUNS[name], audit(options.runs / name)) for name in wanted if _is_done(name, options)]
    if options.out is None:
        print(markdown(judged, ROOT))
        return
    (options.out / "calibration.md").write_text(markdown(judged, ROOT), encoding="utf-8")
    text = json.dumps(as_json(judged, ROOT), indent=1, ensure_ascii=False)
    (options.out / "calibration.json").write_text(text + "\n", encoding="utf-8")


def _is_done(name: str, options: Options) -> bool:
    return (options.runs / name / DONE).exists()


def _train(name: str, options: Options) -> None:
    folder = options.runs / name
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    command = [*options.launcher.split(), sys.executable, __file__, "--runs", str(options.runs), "--train", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    if found.returncode:
        print(found.stdout[-1500:], found.stderr[-3000:], flush=True)
        return
    (folder / DONE).touch()


if __name__ == "__main__":
    main(tyro.cli(Options))
