"""Which checkpoints of a run are deleted: the oldest beyond `save_total_limit`, never the best nor the newest."""

from __future__ import annotations

import shutil
from pathlib import Path


def checkpoints(run_dir: Path) -> list[Path]:
    """checkpoint-<step> folders, oldest step first."""
    found = [path for path in run_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def to_delete(found: list[Path], limit: int | None, best: Path | None) -> list[Path]:
    """`found` oldest first. The best is kept even beyond the limit: with limit 1 two may remain, as in transformers."""
    if limit is None:
        return []
    kept = {path for path in found if path in (best, found[-1])}
    for path in reversed(found):
        if len(kept) >= limit:
            break
        kept.add(path)
    return [path for path in found if path not in kept]


def delete_old(run_dir: Path, limit: int | None, best: Path | None) -> list[Path]:
    """Delete them; returns what is gone. The best is known by its name: a run's folder may have moved."""
    gone = to_delete(checkpoints(run_dir), limit, None if best is None else run_dir / best.name)
    for path in gone:
        shutil.rmtree(path)
    return gone
