"""The best and the worst completions of the last recorded step: what the curves cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gruppo.monitor.health.text_features import prompt_text
from gruppo.monitor.readers import read_rollouts
from gruppo.monitor.report.numbers import number, shown
from gruppo.monitor.step_folders import steps_among

NUM_SAMPLES = 5
MAX_CHARACTERS = 4000
"""Of a completion, and of a prompt; the report says how many more there are."""

TERM, STATUS = "reward/", "reward_status/"


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion, as texts of whoever wrote them."""

    name: str
    prompt: str
    completion: str
    facts: tuple[tuple[str, str], ...]
    """Name and value: reward, advantage, length, each reward function."""


@dataclass(frozen=True, slots=True)
class Extremes:
    """The samples of one step, best first and worst first; none of them twice."""

    step: int
    best: tuple[Sample, ...]
    worst: tuple[Sample, ...]


def last_extremes(run: Path) -> Extremes | None:
    """Those of the last step of training that has completions with a reward; None if there is none."""
    steps = steps_among(path.name for path in (run / "rollouts").glob("*"))
    for step in reversed(steps):
        rows = [row for row in read_rollouts(run, step=step, split="train").to_pylist() if _reward(row) is not None]
        if rows:
            best, worst = pick(rows)
            return Extremes(step, tuple(map(_sample, best)), tuple(map(_sample, worst)))
    return None


def pick(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """At most five best and five worst rows by reward. Among equals, rows of different groups come first."""
    spread = sorted(rows, key=lambda row: (row["sample"], row["group_id"]))
    size = min(NUM_SAMPLES, (len(rows) + 1) // 2)
    best = sorted(spread, key=lambda row: -(_reward(row) or 0.0))[:size]
    rest = [row for row in spread if not any(row is chosen for chosen in best)]
    return best, sorted(rest, key=lambda row: _reward(row) or 0.0)[:NUM_SAMPLES]


def _reward(row: Mapping[str, Any]) -> float | None:
    return number(row.get("reward"))


def _sample(row: Mapping[str, Any]) -> Sample:
    facts = [("reward", shown(_reward(row))), ("advantage", shown(number(row.get("advantage"))))]
    facts += [("tokens", str(row.get("n_completion"))), ("ended by", str(row.get("finish_reason")))]
    for column in row:
        if column.startswith(TERM):
            name = column.removeprefix(TERM)
            status = row.get(f"{STATUS}{name}") or "none"
            facts.append((name, shown(number(row[column])) if status == "ok" else status))
    prompt = prompt_text(row.get("prompt") or "", row.get("prompt_format") or "text")
    name = f"group {row['group_id']}, sample {row['sample']}"
    return Sample(name, _cut(prompt), _cut(row.get("completion") or ""), tuple(facts))


def _cut(text: str) -> str:
    more = len(text) - MAX_CHARACTERS
    return text if more <= 0 else f"{text[:MAX_CHARACTERS]} … ({more:,} more characters)"
