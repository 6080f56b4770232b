"""The scorer: runs all rewards on this rank's rows and returns one table of values, statuses and causes.

Order is TRL's: synchronous functions and models one after the other, then all async functions together.

Not here: gathering over ranks, weighting and summing (the trainer and `algorithm.advantages` do that).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from gruppo.errors import GruppoError, RewardError
from gruppo.metrics import Mean
from gruppo.rewards.calls import AsyncCaller, Call, Outcome, run_sync
from gruppo.rewards.hints import explain
from gruppo.rewards.model import score_with_model
from gruppo.rewards.protocol import RewardSource
from gruppo.rewards.rows import Rows, rows_of
from gruppo.rewards.signature import check_columns, check_signature
from gruppo.rewards.values import Status, read_values
from gruppo.types import Group

logger = logging.getLogger(__name__)

SHARED_LOOP = (
    "Async rewards share one event loop: one that blocks (`time.sleep`, `requests`) where it should `await` holds up "
    "all of them."
)

RECORD_KEYS = ("step", "split", "attempt", "time", "nonfinite")
"""What a line of `metrics.jsonl` holds besides metrics."""

STEP_CURVES = ("loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "step_time", "entropy", "kl")
REWARD_CURVES = ("reward", "reward_std", "frac_reward_zero_std")

RESERVED_METRICS = frozenset({*RECORD_KEYS, *STEP_CURVES, *REWARD_CURVES})
"""Names that `log_metric` refuses: they would stand in for the run's own."""


@dataclass(slots=True)
class LocalRewards:
    """The rewards of this rank's N rows, by F functions."""

    names: list[str]
    rewards_NF: Tensor
    """float32; NaN where a function abstained or failed."""
    statuses_NF: list[list[Status]]
    """ok | none | nan | inf | error | timeout"""
    errors_NF: list[list[str | None]]
    """Why a cell is `nan`, `inf`, `error` or `timeout`; None elsewhere."""
    extras: dict[str, list[Any]] = field(default_factory=dict)
    """Columns from `log_extra`, one value per row. A second function's differing column is `<function>/<column>`."""
    metrics: dict[str, Mean] = field(default_factory=dict)
    """Values from `log_metric`: sum and count over calls, so that ranks can be merged."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each function."""


@dataclass(slots=True)
class _Log:
    """What one call handed to `log_extra` and `log_metric`."""

    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def extra(self, column: str, values: Any) -> None:
        self.extras.setdefault(column, []).extend(values)

    def metric(self, name: str, value: Any) -> None:
        self.metrics.setdefault(name, []).append(float(value))


@dataclass(slots=True)
class _Column:
    """One function's share of the table."""

    values: list[float]
    statuses: list[Status]
    errors: list[str | None]
    seconds: float
    log: _Log


class Scorer:
    """Scores groups with prepared rewards. Use it as a context manager, or call `close` at the end.

    weights: one per reward (TRL's `reward_weights`); 1.0 each by default. Kept for the trainer, not applied here.
    timeout: seconds that one call may take; see `calls.py` for what that means. Late calls abstain as `timeout`.
    on_error: `raise` stops the run when a function raises or returns infinity; `abstain` records the cause, and the
        function counts as abstaining for the rows concerned. A return value of wrong length or type always raises.
    """

    def __init__(
        self,
        sources: list[RewardSource],
        *,
        weights: list[float] | None = None,
        timeout: float | None = None,
        on_error: Literal["raise", "abstain"] = "raise",
    ) -> None:
        if weights is not None and len(weights) != len(sources):
            raise RewardError(
                f"Number of reward weights ({len(weights)}) must match number of reward functions ({len(sources)})."
            )
        if timeout is not None and not timeout > 0:
            raise RewardError(f"The timeout of rewards is {timeout}; give a number of seconds above 0, or None.")
        self.sources = list(sources)
        self.names = [source.name for source in sources]
        self.weights = [1.0] * len(sources) if weights is None else [float(weight) for weight in weights]
        self.timeout = timeout
        self.on_error = on_error
        self._async_caller: AsyncCaller | None = None
        self._checked_columns: set[frozenset[str]] = set()
        self._warned: set[str] = set()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread of async rewards. The scorer can be used again; it then starts a new one."""
        if self._async_caller is not None:
            self._async_caller.close()
            self._async_caller = None

    def score(self, groups: list[Group], *, trainer_state: Any = None) -> LocalRewards:
        """Score this rank's completions: one row each, in group order. Raises RewardError; see the class."""
        rows = rows_of(groups)
        columns = (
            self._run_all(rows, trainer_state) if len(rows) else [_Column([], [], [], 0.0, _Log())] * len(self.names)
        )
        rewards = LocalRewards(
            names=list(self.names),
            rewards_NF=torch.tensor([c.values for c in columns], dtype=torch.float32)
            .reshape(len(columns), len(rows))
            .T,
            statuses_NF=[list(cells) for cells in zip(*(column.statuses for column in columns), strict=True)],
            errors_NF=[list(cells) for cells in zip(*(column.errors for column in columns), strict=True)],
            seconds={name: column.seconds for name, column in zip(self.names, columns, strict=True)},
        )
        for name, column in zip(self.names, columns, strict=True):
            _merge_log(rewards, name, column.log, len(rows))
        self._warn_of_unscorable_rows(rewards.statuses_NF, rows)
        return rewards

    def _run_all(self, rows: Rows, trainer_state: Any) -> list[_Column]:
        self._check_against_columns(rows.columns)
        columns: dict[str, _Column] = {}
        for source in self.sources:
            if source.kind == "async":
                continue
            log = _Log()
            if source.kind == "model":
                outcome = run_sync(Call(score_with_model, {"source": source, "rows": rows}), None)
            else:
                outcome = run_sync(_call(source, rows, trainer_state, log), self.timeout)
            columns[source.name] = self._read(source, outcome, log, rows)
        waiting = [(source, _Log()) for source in self.sources if source.kind == "async"]
        if waiting:
            self._async_caller = self._async_caller or AsyncCaller()
            calls = [_call(source, rows, trainer_state, log) for source, log in waiting]
            outcomes = self._async_caller.run(calls, self.timeout)
            for (source, log), outcome in zip(waiting, outcomes, strict=True):
                columns[source.name] = self._read(source, outcome, log, rows)
        return [columns[name] for name in self.names]

    def _read(self, source: RewardSource, outcome: Outcome, log: _Log, rows: Rows) -> _Column:
        """An outcome as a column of the table: this is where the policy on failures is applied."""
        name = source.name
        if outcome.has_timed_out:
            cause = f"Reward `{name}` did not answer within {self.timeout} s."
            hint = f" {SHARED_LOOP}" if source.kind == "async" else ""
            self._warn_once(f"{name} timeout", f"{cause} It abstains for these rows.{hint}")
            return _failed("timeout", cause, len(rows), outcome.seconds)
        if outcome.error is not None:
            cause = explain(name, outcome.error, rows)
            if self.on_error == "raise":
                if isinstance(outcome.error, GruppoError):
                    raise outcome.error
                raise RewardError(cause) from outcome.error
            self._warn_once(f"{name} error", f"{cause} It abstains for these rows.")
            return _failed("error", cause, len(rows), outcome.seconds)
        values, statuses = read_values(name, outcome.value, len(rows))
        errors: list[str | None] = [self._cause(name, status, row, rows) for row, status in enumerate(statuses)]
        values = [value if status == "ok" else math.nan for value, status in zip(values, statuses, strict=True)]
        return _Column(values, statuses, errors, outcome.seconds, log)

    def _cause(self, name: str, status: Status, row: int, rows: Rows) -> str | None:
        where = f"for row {row} (prompt {rows.prompt_numbers[row]})"
        if status == "nan":
            cause = f"Reward `{name}` returned NaN {where}."
            self._warn_once(
                f"{name} nan", f"{cause} It is taken as abstaining; return None to say so without a warning."
            )
            return cause
        if status == "inf":
            cause = f"Reward `{name}` returned infinity (in float32) {where}; no group can be normalised with it."
            if self.on_error == "raise":
                raise RewardError(f"{cause} Clip the reward to finite numbers.")
            self._warn_once(f"{name} inf", f"{cause} It is taken as abstaining.")
            return cause
        return None

    def _check_against_columns(self, columns: Collection[str]) -> None:
        """The check of `prepare_rewards`, with the columns that really arrive: streams and rollouts tell only now."""
        names = frozenset(columns)
        if names in self._checked_columns:
            return
        functions = [source for source in self.sources if source.kind != "model"]
        if functions:
            check_columns(names)
        for source in functions:
            check_signature(source.function, source.name, names, extra_columns_allowed=False)
        self._checked_columns.add(names)

    def _warn_of_unscorable_rows(self, statuses_NF: list[list[Status]], rows: Rows) -> None:
        for row, statuses in enumerate(statuses_NF):
            if set(statuses) <= {"none", "nan"}:
                self._warn_once(
                    "unscorable",
                    f"All reward functions returned None for the following kwargs:\n{rows.row(row)}\nSuch rows have no "
                    f"part in the baseline and teach nothing. At least one reward function should return a value.",
                )
                return

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(text)


def _call(source: RewardSource, rows: Rows, trainer_state: Any, log: _Log) -> Call:
    helpers = {"trainer_state": trainer_state, "log_extra": log.extra, "log_metric": log.metric}
    return Call(source.function, {**rows.keywords(), **helpers})


def _failed(status: Status, cause: str, num_rows: int, seconds: float) -> _Column:
    # What a failed call had logged is dropped: it may be half a column.
    return _Column([math.nan] * num_rows, [status] * num_rows, [cause] * num_rows, seconds, _Log())


def _merge_log(rewards: LocalRewards, name: str, log: _Log, num_rows: int) -> None:
    for column, values in log.extras.items():
        if len(values) != num_rows:
            raise RewardError(
                f"Reward `{name}` logged {len(values)} values with `log_extra({column!r}, ...)` for {num_rows} "
                f"completions; log one value per completion."
            )
        # Two functions often log the same thing (the gold answer): once is enough.
        is_taken = column in rewards.extras and not _are_same(rewards.extras[column], values)
        rewards.extras[f"{name}/{column}" if is_taken else column] = values
    for metric, numbers in log.metrics.items():
        if metric in RESERVED_METRICS:
            raise RewardError(
                f"Reward `{name}` called `log_metric({metric!r}, ...)`, but the run itself records {metric!r}. Choose "
                f"another name, such as {f'{name}/{metric}'!r}."
            )
        mean = Mean.of(numbers)
        rewards.metrics[metric] = rewards.metrics[metric].merge(mean) if metric in rewards.metrics else mean


def _are_same(mine: list[Any], theirs: list[Any]) -> bool:
    """Equal plain values. Anything else counts as different: `==` of tensors is no truth value."""
    plain = (str, int, float, bool, type(None))
    return all(isinstance(a, plain) and isinstance(b, plain) and a == b for a, b in zip(mine, theirs, strict=True))
