"""Recorder: appends what a run does to files below its `output_dir`. The files and columns are in schema.py.

It only writes; readers are in readers.py. It never breaks training: a write that fails is counted, reported once as
a warning and an event, and the run goes on. Parquet parts are made and written by a background thread; the training
thread only hands over what it has.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import rich
from torch import Tensor

from gruppo.algorithm.losses import LossOutput
from gruppo.distributed.world import World
from gruppo.monitor.attempts import Attempt, close_attempt, describe_device, move_superseded, open_attempt
from gruppo.monitor.completions_table import (
    CompletionsTable,
    completions_path,
    print_sample,
    send_to_trackers,
    to_arrow,
)
from gruppo.monitor.files import JsonLines, Make, Once, PartWriter
from gruppo.monitor.heartbeat import Heartbeat, Look
from gruppo.monitor.rollout_table import AdvantageRows, ExtraTypes, rollout_table
from gruppo.monitor.select import select_rows
from gruppo.monitor.step_folders import step_folder
from gruppo.monitor.text_offsets import Decode, TextOffsets
from gruppo.monitor.token_table import candidates, token_table, with_pass_means
from gruppo.monitor.token_tap import PassValues, TokenForward, TokenTap
from gruppo.types import Group, RewardTable, TrainBatch

logger = logging.getLogger(__name__)

LINE_SECONDS = 0.05
"""How long a step's line waits at most for the completions of its round to be on disk."""


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """What the token parts need. Without them there are none, and no gibberish_share."""

    budget: int
    """Tokens per generation round, over all ranks; 0: no token parts."""
    decode: Decode
    """Ids to the text of `Completion.text`."""
    vocab_size: int


@dataclass(frozen=True, slots=True)
class _Round:
    """The training round whose rows are being learnt from."""

    step: int
    rollouts: Once
    path: Path
    completion_ids: list[list[int]]


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
        model: the policy's name, for run.json.
        is_truncated_masked: `mask_truncated_completions`, for the column `drop_reason`.
        tokens: what token parts need; None: there are none.
        look: (optimizer steps done, phase) for the heartbeat; None: there is none. It is asked in a thread.
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
        model: str | None = None,
        is_truncated_masked: bool = False,
        tokens: TokenSettings | None = None,
        look: Look | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.num_failed_writes = 0
        self.num_dropped_parts = 0
        self._world = world
        self._completions = completions
        self._is_truncated_masked, self._tokens = is_truncated_masked, tokens
        self._extra_types, self._tap = ExtraTypes(), TokenTap()
        self._offsets = None if tokens is None else TextOffsets(tokens.decode)
        self._round: _Round | None = None
        self._written: Future[None] | None = None
        self._num_parts: Counter[Path] = Counter()
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
                    model=model or None,
                    config=config_dict,
                    plan=plan_lines,
                    seeds=seeds or {},
                    device=describe_device(world),
                )
                num_moved = move_superseded(self.output_dir, opened)
        self.attempt = world.broadcast_object(opened)
        if world.is_main:
            self.record_event("attempt_start", step=start_step, num_superseded=num_moved)
        self._heartbeat: Heartbeat | None = None
        if world.is_main and look is not None:
            path = self.output_dir / "heartbeat.json"
            self._heartbeat = Heartbeat(path, self.attempt.number, look, self._report_failure)

    def record_step(self, step: int, metrics: Mapping[str, float | None], split: str = "train") -> None:
        """One line for an optimizer step, or for an evaluation (`split` "eval" or "eval_<set>"). Main process only.

        NaN and None become null. Infinities do too, and `nonfinite` says which they were. A metric named like
        one of the line's own fields is left out.
        """
        if not self._world.is_main:
            return
        infinite = [f"{name}={value}" for name, value in metrics.items() if value is not None and math.isinf(value)]
        own = {"step": step, "split": split, "attempt": self.attempt.number, "time": time.time()}
        if infinite:
            own["nonfinite"] = " ".join(infinite)
        self._wait_for_round()
        with self._guarded("writing metrics.jsonl"):
            self._metrics.append({**own, **metrics, **own})  # own first in the file, and whatever metrics are called

    def record_event(self, kind: str, /, **fields: Any) -> None:
        """One line in this rank's events file: checkpoint, reward_fault, finding, ...

        A field named like one of the line's own (kind, attempt, time) is left out.
        """
        own = {"kind": kind, "attempt": self.attempt.number, "time": time.time()}
        with self._guarded("writing events.jsonl"):
            self._events.append({**own, **fields, **own})

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
    ) -> Make:
        """This rank's completions of one round: a Parquet part of one row each, made in the background.

        Args:
            step: the optimizer step that the round feeds first, counted as in metrics.jsonl (so the first is 1).
            groups: this rank's groups; their completions in order are the rows.
            rewards, advantages: of the same rows, or of all ranks' with `rows` saying which are this rank's.
            group_ids: one per group, the same on all ranks; by default the prompt's id.
            entropy_mean_N: mean token entropy of each local row in nats, where it is known by now.

        Returns a function that gives the part's rows (and makes them, if the background thread has not yet); it gives
        None if there are none, or if they could not be made.
        """
        num_rows = sum(len(group.completions) for group in groups)
        rows = range(num_rows) if rows is None else rows
        assert len(rows) == num_rows, f"{len(rows)} rows of rewards for {num_rows} completions"
        if num_rows == 0:
            return _no_rows
        self._record_faults(split, rewards, rows)
        table: Make = _no_rows
        with self._guarded("building a rollouts part"):
            make = partial(
                rollout_table,
                groups,
                rewards,
                advantages,
                constants=self._constants(step, split) | {"policy_version": policy_version},
                extras=self._extra_types.columns(rewards.extras, rows),
                rows=rows,
                group_ids=[group.prompt.id for group in groups] if group_ids is None else group_ids,
                entropy_mean_N=entropy_mean_N,
                vocab_size=None if self._tokens is None else self._tokens.vocab_size,
                is_truncated_masked=self._is_truncated_masked if split == "train" else None,
            )
            table = self._queue_rollouts(step, split, groups, make)
        if self._completions is not None:
            with self._guarded("keeping completions for log_completions"):
                self._completions.add(step, split, groups, rewards, advantages, rows=rows)
        return table

    def _constants(self, step: int, split: str) -> dict[str, Any]:
        return {"run_id": self.attempt.run_id, "attempt": self.attempt.number, "step": step, "split": split}

    def _queue_rollouts(self, step: int, split: str, groups: Sequence[Group], make: Make) -> Once:
        rollouts = Once(make, self._report_failure, "building a rollouts part")
        path = self._part_path("rollouts", step, split)
        is_trained = split == "train"  # then `record_pass` will submit it again, with what training computed
        self._written = self._submit(path, rollouts, is_early=is_trained)
        if is_trained:
            ids = [completion.token_ids for group in groups for completion in group.completions]
            self._round = _Round(step, rollouts, path, ids)
        return rollouts

    def keep_forward(self, rows: Sequence[int], forward: TokenForward, output: LossOutput, is_on_policy: bool) -> None:
        """What a training forward of `rows` (places in the round's batch) computed; `record_pass` writes it."""
        self._tap.keep(rows, forward, output, is_on_policy)

    def forget_forward(self, rows: Sequence[int]) -> None:
        """The latest `keep_forward` of these rows does not count: memory ran out, and they go through once more."""
        self._tap.forget(rows)

    def record_pass(self, batch: TrainBatch, *, is_old_from_sampler: bool = False) -> None:
        """The round of the latest `record_rollouts("train")` is used up: its token part, and the means of its rows.

        `batch` holds the same rows in the same order. Does nothing for a round that an earlier attempt recorded (one
        that a checkpoint was in the middle of), nor a second time. See `TokenTap.take` for `is_old_from_sampler`.
        """
        with self._guarded("keeping what training computed"):
            values = self._tap.take(batch, is_old_from_sampler=is_old_from_sampler)
            round_, self._round = self._round, None
            if values is None or round_ is None:
                return
            assert len(round_.completion_ids) == len(batch), (len(round_.completion_ids), len(batch))
            written = self._submit(round_.path, partial(_trained_rollouts, round_, values), can_wait=False)
            self._written = written or self._written
            budget = 0 if self._tokens is None else self._tokens.budget // self._world.size
            if budget and self._offsets is not None:
                make = partial(_tokens_of_round, round_, values, budget, self._offsets)
                self._submit(self._part_path("tokens", round_.step, "train"), make, can_wait=False)

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
            self._submit(completions_path(self.output_dir, step, _file_name(split)), lambda: table)
            send_to_trackers(table, self._completions.trackers, self._completions.unique_prompts)

    def drain(self) -> None:
        """Wait until the parts so far are written: before a checkpoint appears, and for whoever reads them at once."""
        self._parts.drain()

    def close(self, outcome: str = "finished") -> None:
        """Write what is queued and say how the attempt ended. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._heartbeat is not None:
            self._heartbeat.close()
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

    def _part_path(self, kind: str, step: int, split: str) -> Path:
        infix = "" if split == "train" else f"{_file_name(split)}-"
        stem = f"part-{infix}r{self._world.rank}-a{self.attempt.number}"
        path = step_folder(self.output_dir / kind, step) / stem
        number = self._num_parts[path]
        self._num_parts[path] += 1
        return path.with_name(f"{stem}-{number}.parquet" if number else f"{stem}.parquet")

    def _submit(self, path: Path, make: Make, *, can_wait: bool = True, is_early: bool = False) -> Future[None] | None:
        written = self._parts.submit(path, make, can_wait=can_wait, is_early=is_early)
        if written is not None:
            return written
        self.num_dropped_parts += 1
        if self.num_dropped_parts == 1:
            logger.warning("The disk is too slow: %s is dropped; later drops are only counted.", path)
            self.record_event("dropped_part", path=str(path.relative_to(self.output_dir)))
        return None

    def _wait_for_round(self) -> None:
        """A line says that its step is done: the completions that it learnt from are on disk by then, unless the disk
        is slow. The wait is nearly always over before it begins."""
        written, self._written = self._written, None
        if written is not None:
            self._parts.hurry()
            wait([written], timeout=LINE_SECONDS)

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


def _trained_rollouts(round_: _Round, values: PassValues) -> pa.Table | None:
    rollouts = round_.rollouts()
    return None if rollouts is None else with_pass_means(rollouts, values)


def _tokens_of_round(round_: _Round, values: PassValues, budget: int, offsets: TextOffsets) -> pa.Table | None:
    rollouts = round_.rollouts()
    if rollouts is None:
        return None
    rows = select_rows(candidates(rollouts, values), step=round_.step, budget=budget)
    return token_table(rollouts, round_.completion_ids, values, rows, offsets) if rows else None


def _no_rows() -> pa.Table | None:
    return None


def _file_name(split: str) -> str:
    return re.sub(r"[^\w.-]", "_", split)
