"""run.json: what was run, with what, on what; one entry per attempt. And what a new attempt does to the old parts.

An attempt is one call of `train()` (or one stand-alone evaluation) that writes into an `output_dir`. It starts at
step 0, or at the step of the checkpoint that it resumes from. Steps after that belong to it: what earlier attempts
recorded there is superseded, and its files move to `superseded/a<attempt>/`. Nothing is deleted.
"""

from __future__ import annotations

import json
import platform
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gruppo.distributed.world import World
from gruppo.monitor.files import write_whole
from gruppo.monitor.schema import SCHEMA_VERSION, plain
from gruppo.monitor.step_folders import step_of

PACKAGES = ("gruppo", "torch", "transformers", "accelerate", "datasets", "peft", "pyarrow", "numpy")

_COMPLETIONS = re.compile(r"completions_(?:[\w.-]+_)?(\d+)\.parquet")


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which run, and which attempt of it. The same on all ranks."""

    run_id: str
    number: int
    start_step: int | None


def open_attempt(
    output_dir: Path,
    *,
    start_step: int | None,
    model: str | None,
    config: Mapping[str, Any],
    plan: Sequence[str],
    seeds: Mapping[str, int],
    device: Mapping[str, Any],
) -> Attempt:
    """Add an attempt to run.json (main process only). See ATTEMPT_FIELDS for the meaning of the arguments."""
    run = read_run(output_dir) or {
        "schema_version": SCHEMA_VERSION,
        "run_id": uuid.uuid4().hex[:12],
        "created": _now(),
        "attempts": [],
    }
    number = 1 + max((entry["attempt"] for entry in run["attempts"]), default=0)
    run["attempts"].append(
        {
            "attempt": number,
            "started": _now(),
            "ended": None,
            "start_step": start_step,
            "model": model,
            "config": {name: _masked(name, value) for name, value in config.items()},
            "plan": list(plan),
            "seeds": dict(seeds),
            "device": dict(device),
            "versions": versions(),
        }
    )
    _write_run(output_dir, run)
    return Attempt(run["run_id"], number, start_step)


def close_attempt(output_dir: Path, attempt: Attempt) -> None:
    """Write the end time into run.json (main process only)."""
    run = read_run(output_dir)
    if run is None:
        return
    for entry in run["attempts"]:
        if entry["attempt"] == attempt.number:
            entry["ended"] = _now()
    _write_run(output_dir, run)


def read_run(output_dir: Path) -> dict[str, Any] | None:
    """run.json, or None if there is none."""
    path = output_dir / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def move_superseded(output_dir: Path, attempt: Attempt) -> int:
    """Move the parts of steps that `attempt` makes anew to superseded/a<attempt>/; returns how many there were.

    A fresh start (`start_step` 0) makes everything anew, step 0's evaluation too; a session without training
    (None) nothing.
    """
    if attempt.start_step is None:
        return 0
    first = attempt.start_step + 1 if attempt.start_step else 0
    moved = [path for path, step in _parts(output_dir) if step >= first]
    for path in moved:
        target = output_dir / "superseded" / f"a{attempt.number}" / path.relative_to(output_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return len(moved)


def describe_device(world: World) -> dict[str, Any]:
    """Type and name of this rank's device, and how many ranks there are."""
    is_cuda = world.device.type == "cuda"
    name = torch.cuda.get_device_name(world.device) if is_cuda else platform.machine()
    return {"type": world.device.type, "name": name, "count": world.size}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    installed = {package: _version(package) for package in PACKAGES}
    return {"python": platform.python_version()} | {name: text for name, text in installed.items() if text}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _parts(output_dir: Path) -> Iterator[tuple[Path, int]]:
    """Folders and files that belong to one step, with the step."""
    for folder in ("rollouts", "tokens"):
        for path in sorted((output_dir / folder).glob("*")):
            step = step_of(path.name)
            if step is not None:
                yield path, step
    for path in sorted((output_dir / "completions").glob("*")):
        match = _COMPLETIONS.fullmatch(path.name)
        if match:
            yield path, int(match[1])


def _masked(name: str, value: Any) -> Any:
    """`hub_token` and its like never reach the disk (transformers' `to_dict` masks them too)."""
    is_secret = isinstance(value, str) and name.endswith(("_token", "_api_key"))
    return f"<{name.upper()}>" if is_secret else plain(value)


def _write_run(output_dir: Path, run: Mapping[str, Any]) -> None:
    text = json.dumps(run, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(
        output_dir / "run.json",
        lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
