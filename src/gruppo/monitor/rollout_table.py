"""One generation round as a Parquet table: one row per completion, all of them, columns of schema.py.

Pure: lists and tensors in, `pyarrow.Table` out. Where it is written is the recorder's matter.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, final

import pyarrow as pa
from torch import Tensor

from gruppo.monitor.row_features import drop_columns, feature_columns
from gruppo.monitor.schema import EXTRA_COLUMN, REWARD_COLUMNS, plain, rollout_schema, to_json, to_text
from gruppo.types import Completion, Group, RewardTable

PASS_COLUMNS = ("kl_mean", "is_mean", "is_max", "clipped_frac")
"""Known only once the rows were trained on; with `entropy_mean`, see token_table.py."""


class AdvantageRows(Protocol):
    """The part of `algorithm.advantages.AdvantageTable` that is recorded: (N,) tensors, rows as in the rewards."""

    @property
    def advantages_N(self) -> Tensor: ...
    @property
    def rewards_N(self) -> Tensor: ...
    @property
    def group_mean_N(self) -> Tensor: ...
    @property
    def group_std_N(self) -> Tensor: ...


@final
class ExtraTypes:
    """The column type of each `log_extra` name, fixed when the first value is seen, so that all parts of a run agree.

    Numbers (bools count as 0 and 1) make a float64 column, anything else text, also integers beyond the range of
    float64. Text that comes later to a column of numbers turns it into text from then on: no value is lost. A name that
    had a value once is in every later part.
    Until then it is text, which can hold whatever comes, also for programs that take the first part's types for all.
    """

    def __init__(self) -> None:
        self._types: dict[str, pa.DataType] = {}

    def columns(self, extras: Mapping[str, Sequence[Any]], rows: range) -> dict[str, tuple[pa.DataType, list[Any]]]:
        """name -> (type, values of `rows` as that type wants them). `extras` are of all ranks: so are the types."""
        given = {name: [plain(value) for value in values] for name, values in extras.items()}
        for name, values in given.items():
            self._learn(name, [value for value in values if value is not None])
        kinds = dict.fromkeys(given, pa.string()) | self._types
        return {name: (kind, _converted(given.get(name), kind, rows)) for name, kind in kinds.items()}

    def _learn(self, name: str, values: list[Any]) -> None:
        if not all(isinstance(value, (int, float)) and abs(value) <= sys.float_info.max for value in values):
            self._types[name] = pa.string()
        elif values:
            self._types.setdefault(name, pa.float64())


def rollout_table(
    groups: Sequence[Group],
    rewards: RewardTable,
    advantages: AdvantageRows | None,
    *,
    constants: Mapping[str, Any],
    extras: Mapping[str, tuple[pa.DataType, list[Any]]],
    rows: range,
    group_ids: Sequence[int],
    entropy_mean_N: Tensor | None = None,
    vocab_size: int | None = None,
    is_truncated_masked: bool | None = None,
) -> pa.Table:
    """The table of `groups`, whose completions in order are the rows `rows` of `rewards` and `advantages`.

    `constants` are the columns with one value for the whole part; `extras` come from `ExtraTypes.columns`; `group_ids`
    has one entry per group, `entropy_mean_N` one per completion. `vocab_size`: of the policy, for `gibberish_share`.
    `is_truncated_masked` None: a round that is not trained on.
    """
    pairs = [(number, group, completion) for number, group in enumerate(groups) for completion in group.completions]
    columns: dict[str, list[Any]] = {name: [value] * len(pairs) for name, value in constants.items()}
    columns |= _of_completions([(group_ids[number], group, completion) for number, group, completion in pairs])
    columns |= _of_advantages(advantages, rows)
    columns["entropy_mean"] = [None] * len(pairs) if entropy_mean_N is None else _values(entropy_mean_N)
    columns |= _of_rewards(rewards, rows)
    columns |= feature_columns(columns, [completion for _, _, completion in pairs], vocab_size)
    columns |= drop_columns([completion for _, _, completion in pairs], is_truncated_masked)
    columns |= dict.fromkeys(PASS_COLUMNS, [None] * len(pairs))
    columns |= {EXTRA_COLUMN.format(name=name): values for name, (_, values) in extras.items()}
    schema = rollout_schema(rewards.names, {name: kind for name, (kind, _) in extras.items()})
    return pa.Table.from_pydict(columns, schema=schema)


def _of_completions(rows: Sequence[tuple[int, Group, Completion]]) -> dict[str, list[Any]]:
    # Once for a group, not for each of its completions.
    prompts = {id(group): group.prompt for _, group, _ in rows}
    contents = {key: _text(prompt.content) for key, prompt in prompts.items()}
    others = {key: to_text(to_json(prompt.columns)) for key, prompt in prompts.items()}
    return {
        "group_id": [group_id for group_id, _, _ in rows],
        "prompt_id": [group.prompt.id for _, group, _ in rows],
        "sample": [completion.sample for _, _, completion in rows],
        "prompt_format": ["messages" if group.prompt.is_conversational else "text" for _, group, _ in rows],
        "prompt": [contents[id(group)] for _, group, _ in rows],
        "completion": [to_text(completion.text) for _, _, completion in rows],
        "columns": [others[id(group)] for _, group, _ in rows],
        "finish_reason": [completion.finish_reason for _, _, completion in rows],
        "n_prompt": [len(group.prompt_ids(completion)) for _, group, completion in rows],
        "n_completion": [len(completion.token_ids) for _, _, completion in rows],
        "n_trained": [_num_trained(completion) for _, _, completion in rows],
        "sampler_logprob_mean": [_mean(completion.sampler_logprobs) for _, _, completion in rows],
        "seconds": [completion.seconds for _, _, completion in rows],
    }


def _of_advantages(advantages: AdvantageRows | None, rows: range) -> dict[str, list[float | None]]:
    names = ("reward", "advantage", "group_mean", "group_std")
    if advantages is None:
        return {name: [None] * len(rows) for name in names}
    tensors = (advantages.rewards_N, advantages.advantages_N, advantages.group_mean_N, advantages.group_std_N)
    return {name: _picked(_values(tensor), rows) for name, tensor in zip(names, tensors, strict=True)}


def _of_rewards(rewards: RewardTable, rows: range) -> dict[str, list[Any]]:
    value_name, status_name = REWARD_COLUMNS
    columns: dict[str, list[Any]] = {}
    for position, name in enumerate(rewards.names):
        values = _values(rewards.rewards_NF[:, position])
        columns[value_name.format(name=name)] = _picked(values, rows)
        columns[status_name.format(name=name)] = [rewards.statuses_NF[row][position] for row in rows]
    return columns


def _picked(values: Sequence[Any], rows: range) -> list[Any]:
    return [values[row] for row in rows]


def _values(tensor_N: Tensor) -> list[float | None]:
    """NaN is "no value" in a table: null."""
    return [None if math.isnan(value) else value for value in tensor_N.tolist()]


def _mean(values: Sequence[float] | None) -> float | None:
    if not values:
        return None
    total = math.fsum(values)
    if not math.isnan(total):
        return total / len(values)
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None


def _num_trained(completion: Completion) -> int:
    return len(completion.token_ids) if completion.trained is None else sum(completion.trained)


def _text(value: Any) -> str:
    return to_text(value if isinstance(value, str) else to_json(value))


def _converted(values: Sequence[Any] | None, kind: pa.DataType, rows: range) -> list[Any]:
    if values is None:
        return [None] * len(rows)
    convert = float if kind == pa.float64() else _text
    return [None if values[row] is None else convert(values[row]) for row in rows]
