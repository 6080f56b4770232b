"""Which checkpoints leave a run's folder: by `save_total_limit`, and where a run takes their steps anew.

The first are deleted: the oldest, never the best nor the one just written. The second are put aside.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from gruppo.checkpoint import clear_up


def checkpoints(run_dir: Path) -> list[Path]:
    """checkpoint-<step> folders, oldest step first."""
    found = [path for path in run_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=_step)


def to_delete(found: list[Path], limit: int | None, keep: Collection[Path]) -> list[Path]:
    """`found` oldest first. Those of `keep` stay even beyond the limit: with limit 1 two may, as in transformers."""
    if limit is None:
        return []
    kept = {path for path in found if path in keep}
    for path in reversed(found):
        if len(kept) >= limit:
            break
        kept.add(path)
    return [path for path in found if path not in kept]


def delete_old(written: Path, limit: int | None, best: Path | None) -> list[Path]:
    """Delete them, now that `written` is there; returns what is gone.

    The best is known by its name: a run's folder may have moved.
    """
    run_dir = written.parent
    keep = [written] if best is None else [written, run_dir / best.name]
    gone = to_delete(checkpoints(run_dir), limit, keep)
    for path in gone:
        shutil.rmtree(path)
    return gone


def put_aside(run_dir: Path, *, start_step: int, attempt: int) -> list[Path]:
    """Move the checkpoints of steps after `start_step` to superseded/a<attempt>/, as the recorder does with records.

    Otherwise "the newest checkpoint" would be one of a run that this one replaces. Returns what moved.
    """
    clear_up(run_dir)
    aside = run_dir / "superseded" / f"a{attempt}"
    gone = [path for path in checkpoints(run_dir) if _step(path) > start_step and not (aside / path.name).exists()]
    for path in gone:
        aside.mkdir(parents=True, exist_ok=True)
        path.rename(aside / path.name)
    return gone


def last_put_aside(folder: Path) -> Path | None:
    """Where the last checkpoint of this run's folder (or the checkpoint that had this name) is now."""
    found = [*folder.glob("superseded/a*/checkpoint-*"), *folder.parent.glob(f"superseded/a*/{folder.name}")]
    numbers = {path: (path.parent.name.removeprefix("a"), path.name.removeprefix("checkpoint-")) for path in found}
    known = {path: (int(a), int(step)) for path, (a, step) in numbers.items() if a.isdigit() and step.isdigit()}
    return max(known, key=lambda path: known[path], default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
