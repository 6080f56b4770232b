"""Which attempt speaks for a run. Not here: how it ended (events.jsonl says so)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def decisive_attempt(attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last entry of run.json's attempts that trained; the last of all if none did, empty if there is none.

    An evaluation on its own (`start_step` null) is an attempt too, but what a run is and how it ended is not its word.
    """
    trained = [entry for entry in attempts if entry.get("start_step", 0) is not None]
    return dict((trained or list(attempts) or [{}])[-1])
