"""`gruppo check-reward MODULE:FN --dataset FILE`: try a reward function before a run. Exit code 1 if it has a problem.

Nothing is trained and no model is loaded. The dataset's first rows are used.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.text import Text

from gruppo.errors import ConfigError

if TYPE_CHECKING:
    from gruppo.rewards.check import RewardCheck
    from gruppo.types import Prompt

OK, HAS_PROBLEM = 0, 1

STYLES = {"problem": "bold red", "note": "yellow"}


def run(argv: list[str]) -> int:
    """Check a reward. Returns the exit code."""
    return tyro.cli(check, args=argv, prog="gruppo check-reward")


def check(
    reward: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="MODULE:FN", help="The function: module:function, file.py:function, or a built-in."),
    ],
    *,
    dataset: Annotated[str, tyro.conf.arg(metavar="FILE", help="JSON Lines, JSON, CSV or Parquet file; or a hub id.")],
    split: Annotated[str, tyro.conf.arg(help="Split of the dataset.")] = "train",
    name: Annotated[str | None, tyro.conf.arg(help="Configuration of a dataset on the hub.")] = None,
    rows: Annotated[int, tyro.conf.arg(help="First rows to try it on.")] = 8,
    cpu_limit: Annotated[float, tyro.conf.arg(help="Seconds of processor time after which a call is stopped.")] = 10.0,
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object instead of text.")] = False,
) -> int:
    """Call a reward on fake, empty, right, repeated and very long answers, and say what is wrong with its numbers."""
    if rows < 1 or not cpu_limit > 0:
        raise ConfigError(f"--rows {rows} --cpu-limit {cpu_limit:g} cannot be: give numbers above 0.")
    from gruppo.rewards import resolve_reward
    from gruppo.rewards.check import check_reward

    with _quiet():
        prompts = first_prompts(dataset, split=split, name=name, num_rows=rows)
        found = check_reward(resolve_reward(reward), prompts, cpu_limit=cpu_limit)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(Console(highlight=False), found)
    return HAS_PROBLEM if found.has_problem else OK


def first_prompts(dataset: str, *, split: str, name: str | None, num_rows: int) -> list[Prompt]:
    """The first rows as prompts without tokens. Raises DataError for columns or prompts that cannot be used."""
    from gruppo.data import checks
    from gruppo.data.load import load_prompts
    from gruppo.types import Prompt

    # As a stream: a large file is not copied into a cache for its first rows.
    data: list[dict[str, Any]] = list(
        islice(iter(load_prompts(dataset, split=split, name=name, streaming=True)), num_rows)
    )
    if data:
        checks.check_columns(set(data[0]), "the dataset")
    for number, row in enumerate(data):
        checks.check_prompt(row["prompt"], f"row {number}")
    return [
        Prompt(number, row["prompt"], [], {column: value for column, value in row.items() if column != "prompt"})
        for number, row in enumerate(data)
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """What the function prints goes to stderr; the scorer's warnings are left out, since the report has them."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _print(console: Console, found: RewardCheck) -> None:
    def say(label: str, text: str, style: str = "") -> None:
        # Text: what users wrote must not be read as markup.
        console.print(Text(f"{label:<12}{text}", style=style), soft_wrap=True)

    say("reward", found.signature)
    form = "chat messages" if found.is_conversational else "plain text"
    say("prompts", f"first {found.num_prompts} rows, {form}; right answers: {found.reference_column or 'none'}")
    named = ", ".join(found.columns_named) or "none by name"
    say("columns", f"receives {', '.join(found.columns) or 'none'}; uses {named}")
    for name, kind in found.kinds.items():
        say("answers", f"{name:<17}{_values(kind.values)}  {kind.seconds * 1000:.1f} ms")
    if found.range is not None:
        say("range", f"{found.range[0] + 0:g} to {found.range[1] + 0:g}")
    if found.best_reference is not None:
        above, equal, below = found.compare("empty")
        say("right", f"above an empty answer on {above} prompts, equal on {equal}, below on {below}")
    for finding in found.findings:
        say(finding.level, finding.text, STYLES[finding.level])
    if not found.findings:
        say("result", "nothing to complain about")


def _values(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "no value"
    missing = f", {len(values) - len(known)} without" if len(known) < len(values) else ""
    return f"mean {sum(known) / len(known) + 0:g}, {min(known) + 0:g} to {max(known) + 0:g}{missing}"
