"""TRL's view of completions (`log_completions`): its Parquet file, its terminal table, its tracker tables.

    completions/completions_00012.parquet        step, prompt, completion, one column per reward, extras, advantage
    completions/completions_eval_00012.parquet   the same for an evaluation (TRL overwrites the training file)

The full record, with ids, statuses and finish reasons, is `rollouts/`; this is for notebooks written for TRL.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import pyarrow as pa
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gruppo.distributed.world import World
from gruppo.monitor.rollout_table import AdvantageRows
from gruppo.monitor.schema import to_json
from gruppo.types import Group, Message, RewardTable

TRACKERS = ("wandb", "trackio")
"""The trackers that TRL sends the table to."""


@dataclass(slots=True)
class CompletionRows:
    """Rows in columns, ready to be gathered, printed and written."""

    reward_names: list[str]
    prompts: list[str | list[Message]] = field(default_factory=list)
    completions: list[str | list[Message]] = field(default_factory=list)
    rewards: dict[str, list[float]] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)
    advantages: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    def picked(self, index: Sequence[int]) -> CompletionRows:
        return CompletionRows(
            self.reward_names,
            [self.prompts[i] for i in index],
            [self.completions[i] for i in index],
            {name: [values[i] for i in index] for name, values in self.rewards.items()},
            {name: [values[i] for i in index] for name, values in self.extras.items()},
            [self.advantages[i] for i in index],
        )


@final
class CompletionsTable:
    """Holds the latest round's rows of each split until it is time to log.

    Args:
        num_to_print: TRL's `num_completions_to_print`: None prints all rows, 0 none.
        unique_prompts: TRL's `log_unique_prompts`: trackers get one row per prompt.
        report_to: tracker names, or ["all"] for those installed; TRACKERS get the table, if they have a run open.
    """

    def __init__(
        self, num_to_print: int | None = None, unique_prompts: bool = False, report_to: Sequence[str] = ()
    ) -> None:
        self.num_to_print = num_to_print
        self.unique_prompts = unique_prompts
        wanted = [name for name in TRACKERS if find_spec(name)] if "all" in report_to else report_to
        self.trackers = [name for name in TRACKERS if name in wanted]
        self._latest: dict[str, tuple[int, CompletionRows]] = {}

    def add(
        self,
        step: int,
        split: str,
        groups: Sequence[Group],
        rewards: RewardTable,
        advantages: AdvantageRows | None,
        *,
        rows: range,
    ) -> None:
        """Keep this rank's rows; rows of an earlier step of the split are forgotten."""
        known = self._latest.get(split)
        if known is None or known[0] != step:
            known = (step, CompletionRows(rewards.names, rewards={name: [] for name in rewards.names}))
            self._latest[split] = known
        kept = known[1]
        num_before = len(kept)
        for group in groups:
            for completion in group.completions:
                kept.prompts.append(group.prompt.content)
                said: Message = {"role": "assistant", "content": completion.text}
                kept.completions.append([said] if group.prompt.is_conversational else completion.text)
        for position, name in enumerate(rewards.names):
            values = rewards.rewards_NF[:, position].tolist()
            kept.rewards[name] += [values[row] for row in rows]
        for name, values in rewards.extras.items():
            kept.extras.setdefault(name, [None] * num_before).extend(values[row] for row in rows)
        for column in kept.extras.values():  # one that only an earlier call of this step had
            column.extend([None] * (len(kept) - len(column)))
        all_advantages = [] if advantages is None else advantages.advantages_N.tolist()
        kept.advantages += [all_advantages[row] if all_advantages else float("nan") for row in rows]

    def gather(self, split: str, world: World) -> CompletionRows | None:
        """All ranks' rows of the split, in rank order; None if nothing was recorded. Collective.

        Training rows stay, because a round may feed several log lines; an evaluation is logged once.
        """
        latest = self._latest.get(split) if split == "train" else self._latest.pop(split, None)
        parts = world.gather_objects([] if latest is None else [latest[1]])
        if not parts:
            return None
        gathered = CompletionRows(parts[0].reward_names)
        extra_names = sorted({name for part in parts for name in part.extras})
        for part in parts:
            gathered.prompts += part.prompts
            gathered.completions += part.completions
            gathered.advantages += part.advantages
            for name in part.reward_names:
                gathered.rewards.setdefault(name, []).extend(part.rewards[name])
            for name in extra_names:
                gathered.extras.setdefault(name, []).extend(part.extras.get(name, [None] * len(part)))
        return gathered


def completions_path(output_dir: Path, step: int, split: str) -> Path:
    """TRL's file name for training; evaluations get their own."""
    infix = "" if split == "train" else f"{split}_"
    return output_dir / "completions" / f"completions_{infix}{step:05d}.parquet"


def to_arrow(step: int, rows: CompletionRows) -> pa.Table:
    """TRL's columns in TRL's order. NaN is written as null, as pandas does."""
    columns: dict[str, pa.Array] = {
        "step": pa.array([step] * len(rows), pa.int64()),
        "prompt": _inferred([_without_images(prompt) for prompt in rows.prompts]),
        "completion": _inferred([_without_images(completion) for completion in rows.completions]),
    }
    columns |= {name: _numbers(values) for name, values in rows.rewards.items()}
    columns |= {name: _inferred(values) for name, values in rows.extras.items()}
    columns["advantage"] = _numbers(rows.advantages)
    return pa.table(columns)


def print_sample(step: int, rows: CompletionRows, num_to_print: int | None, console: Console) -> None:
    """A table of some rows, drawn at random by the step alone (the run's own generators stay untouched)."""
    if num_to_print is not None and num_to_print <= 0:
        return
    if num_to_print is not None and num_to_print < len(rows):
        rows = rows.picked(random.Random(step).sample(range(len(rows)), num_to_print))
    table = Table(expand=True, show_lines=True)
    table.add_column("Prompt", style="bright_yellow")
    table.add_column("Completion", style="bright_green")
    for name in rows.rewards:
        table.add_column(Text(name), style="bold cyan", justify="right")
    table.add_column("Advantage", style="bold magenta", justify="right")
    for name in rows.extras:
        table.add_column(Text(name))
    for i in range(len(rows)):
        table.add_row(
            _readable(rows.prompts[i]),
            _readable(rows.completions[i]),
            *(f"{values[i]:.2f}" for values in rows.rewards.values()),
            f"{rows.advantages[i]:.2f}",
            *(_readable(values[i]) for values in rows.extras.values()),
        )
    console.print(Panel(table, title=f"Step {step}", expand=False))


def send_to_trackers(table: pa.Table, trackers: Sequence[str], unique_prompts: bool) -> None:
    """Log the table as `completions` to each tracker's open run."""
    if not trackers:
        return
    frame = table.to_pandas()
    if unique_prompts:
        frame = frame[~frame["prompt"].astype(str).duplicated()]
    for name in trackers:
        tracker = import_module(name)
        if name == "wandb" and tracker.run is None:
            continue
        tracker.log({"completions": tracker.Table(dataframe=frame)})


def _numbers(values: Sequence[float]) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)


def _inferred(values: Sequence[Any]) -> pa.Array:
    """The column as Arrow sees it; values that share no type, or that none can hold, are written as JSON text."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return pa.array([value if value is None or isinstance(value, str) else to_json(value) for value in values])


def _without_images(content: str | list[Message]) -> str | list[Message]:
    """Messages whose image blocks say that there was an image, and no more."""
    return content if isinstance(content, str) else [_message_without_images(message) for message in content]


def _message_without_images(message: Message) -> Message:
    blocks = message.get("content")
    if not isinstance(blocks, list):
        return message
    kept = [{"type": "image"} if block.get("type") == "image" else block for block in blocks]
    return {**message, "content": kept}


def _readable(value: Any) -> Text:
    """Messages as role and text; model output is never read as markup."""
    if not (isinstance(value, list) and all(isinstance(message, Mapping) for message in value)):
        return Text(str(value))
    text = Text()
    for number, message in enumerate(value):
        text.append("\n\n" if number else "").append(f"{str(message.get('role', '')).upper()}\n", style="bold red")
        content = message.get("content")
        text.append(content if isinstance(content, str) else to_json(content))
    return text
