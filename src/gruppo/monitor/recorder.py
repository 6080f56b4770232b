"""Recorder: appends what a run does to files below its `output_dir`. The files and columns are in schema.py.

It only writes; readers are in readers.py. It never breaks training: a write that fails is counted, reported once as
a warning and an event, and the run goes on. Parquet parts are written by a background thread.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import rich
from torch import Tensor

from gruppo.distributed.world import World
from gruppo.monitor.attempts import Attempt, close_attempt, describe_device, move_superseded, open_attempt
from gruppo.monitor.completions_table import (
    CompletionsTable,
    completions_path,
    print_sample,
    send_to_trackers,
    to_arrow,
)
from gruppo.monitor.files import JsonLines, PartWriter
from gruppo.monitor.rollout_table import AdvantageRows, ExtraTypes, rollout_table
from gruppo.types import Group, RewardTable

logger = logging.getLogger(__name__)


@final
class Recorder:
    """The recorder of one attempt, on one rank. Make one per `train()`, and `close` it.

    Args:
        output_dir: the run's folder; nothing is written outside it.
        config_dict: every field of the resolved config.
        plan_lines: the batch plan in words.
        world: constructing a Recorder is collective: all ranks learn the attempt from the main process.
        seeds: name -> seed.
        start_step: optimizer steps done before this attempt: 0 for a fresh start, k when resuming from checkpoint-k.
            What earlier attempts recorded after it is superseded. None: this session does not train.
        completions: TRL's completions log; None switches it off (`log_completions=False`).
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        config_dict: Mapping[str, Any],
        plan_lines: Sequence[str] = (),
        world: World,
        seeds: Mapping[str, int] | None = None,
        start_step: int | None = 0,
        completions: CompletionsTable | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.num_failed_writes = 0
        self.num_dropped_parts = 0
        self._world = world
        self._completions = completions
        self._extra_types = ExtraTypes()
        self._num_parts: Counter[tuple[int, str]] = Counter()
        self._is_closed = False
        self._metrics = JsonLines(self.output_dir / "metrics.jsonl")
        self._events = JsonLines(self.output_dir / ("events.jsonl" if world.is_main else f"events-r{world.rank}.jsonl"))
        self._parts = PartWriter(self._report_failure)
        self.attempt = Attempt("unknown", 0, start_step)
        opened, num_moved = self.attempt, 0
        if world.is_main:
            with self._guarded("writing run.json"):
                opened = open_attempt(
                    self.output_dir,
                    start_step=start_step,
                    config=config_dict,
                    plan=plan_lines,
                    seeds=seeds or {},
                    device=describe_device(world),
                )
                num_moved = move_superseded(self.output_dir, opened)
        self.attempt = world.broadcast_object(opened)
        if world.is_main:
            self.record_event("attempt_start", step=start_step, num_superseded=num_moved)

    def record_step(self, step: int, metrics: Mapping[str, float | None], split: str = "train") -> None:
        """One line for an optimizer step, or for an evaluation (`split` "eval" or "eval_<set>"). Main process only.

        NaN and None become null. Infinities do too, and `nonfinite` says which they were.
        """
        if not self._world.is_main:
            return
        infinite = [f"{name}={value}" for name, value in metrics.items() if value is not None and math.isinf(value)]
        line = {"step": step, "split": split, "attempt": self.attempt.number, "time": time.time(), **metrics}
        if infinite:
            line["nonfinite"] = " ".join(infinite)
        with self._guarded("writing metrics.jsonl"):
            self._metrics.append(line)

    def record_event(self, kind: str, **fields: Any) -> None:
        """One line in this rank's events file: checkpoint, reward_fault, finding, ..."""
        with self._guarded("writing events.jsonl"):
            self._events.append({"kind": kind, "attempt": self.attempt.number, "time": time.time(), **fields})

    def record_rollouts(
        self,
        step: int,
        split: str,
        groups: Sequence[Group],
        rewards: RewardTable,
        advantages: AdvantageRows | None,
        *,
        policy_version: int,
        rows: range | None = None,
        group_ids: Sequence[int] | None = None,
        entropy_mean_N: Tensor | None = None,
    ) -> pa.Table | None:
        """This rank's completions of one round: a Parquet part of one row each.

        Args:
            step: the optimizer step that the round feeds first, counted as in metrics.jsonl (so the first is 1).
            groups: this rank's groups; their completions in order are the rows.
            rewards, advantages: of the same rows, or of all ranks' with `rows` saying which are this rank's.
            group_ids: one per group, the same on all ranks; by default the prompt's id.
            entropy_mean_N: mean token entropy of each local row in nats, where it is known by now.

        Returns the part's rows; None if there are none, or if they could not be built.
        """
        num_rows = sum(len(group.completions) for group in groups)
        rows = range(num_rows) if rows is None else rows
        assert len(rows) == num_rows, f"{len(rows)} rows of rewards for {num_rows} completions"
        if num_rows == 0:
            return None
        self._record_faults(split, rewards, rows)
        table = None
        with self._guarded("building a rollouts part"):
            table = rollout_table(
                groups,
                rewards,
                advantages,
                constants={
                    "run_id": self.attempt.run_id,
                    "attempt": self.attempt.number,
                    "step": step,
                    "split": split,
                    "policy_version": policy_version,
                },
                extra_types=self._extra_types,
                rows=rows,
                group_ids=[group.prompt.id for group in groups] if group_ids is None else group_ids,
                entropy_mean_N=entropy_mean_N,
            )
            self._submit(self._part_path(step, split), table)
        if self._completions is not None:
            with self._guarded("keeping completions for log_completions"):
                self._completions.add(step, split, groups, rewards, advantages, rows=rows)
        return table

    def _record_faults(self, split: str, rewards: RewardTable, rows: range) -> None:
        faults = Counter(
            (name, status)
            for row in rows
            for name, status in zip(rewards.names, rewards.statuses_NF[row], strict=True)
            if status not in ("ok", "none")
        )
        for (name, status), count in faults.items():
            self.record_event("reward_fault", split=split, reward=name, status=status, num_rows=count)

    def log_completions(self, step: int, split: str = "train") -> None:
        """Print the sample table, write TRL's completions file, and send the trackers' table. Collective.

        Does nothing where `log_completions` is off, or before the first round.
        """
        if self._completions is None:
            return
        rows = self._completions.gather(split, self._world)
        if rows is None or not self._world.is_main:
            return
        with self._guarded("printing completions"):
            print_sample(step, rows, self._completions.num_to_print, rich.get_console())
        with self._guarded("writing the completions table"):
            table = to_arrow(step, rows)
            self._submit(completions_path(self.output_dir, step, _file_name(split)), table)
            send_to_trackers(table, self._completions.trackers, self._completions.unique_prompts)

    def close(self, outcome: str = "finished") -> None:
        """Write what is queued and say how the attempt ended. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._parts.close()
        if self._world.is_main:
            self.record_event(
                "attempt_stop",
                outcome=outcome,
                num_failed_writes=self.num_failed_writes,
                num_dropped_parts=self.num_dropped_parts,
            )
            with self._guarded("writing run.json"):
                close_attempt(self.output_dir, self.attempt)
        self._metrics.close()
        self._events.close()

    def _part_path(self, step: int, split: str) -> Path:
        infix = "" if split == "train" else f"{_file_name(split)}-"
        number = self._num_parts[step, split]
        self._num_parts[step, split] += 1
        suffix = f"-{number}" if number else ""
        name = f"part-{infix}r{self._world.rank}-a{self.attempt.number}{suffix}.parquet"
        return self.output_dir / "rollouts" / f"step={step:06d}" / name

    def _submit(self, path: Path, table: Any) -> None:
        if self._parts.submit(path, table):
            return
        self.num_dropped_parts += 1
        if self.num_dropped_parts == 1:
            logger.warning("The disk is too slow: %s is dropped; later drops are only counted.", path)
            self.record_event("dropped_part", path=str(path.relative_to(self.output_dir)))

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """The boundary between recording and training: no error of a write gets through, only our own assertions."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            self._report_failure(doing, error)

    def _report_failure(self, doing: str, error: Exception) -> None:
        self.num_failed_writes += 1
        if self.num_failed_writes == 1:  # counted before the event is tried: its own failure ends here
            logger.warning("%s failed, training goes on: %s: %s", doing, type(error).__name__, error)
            self.record_event("write_failure", doing=doing, error=f"{type(error).__name__}: {error}")


def _file_name(split: str) -> str:
    return re.sub(r"[^\w.-]", "_", split)
