"""Schema version 1: the name and type of everything that a run writes for later readers. In one place.

Files (all below the run's `output_dir`):

    run.json                                 RUN_FIELDS, and ATTEMPT_FIELDS for each attempt
    metrics.jsonl                            LINE_FIELDS, then one number per metric; see docs/metrics.md
    events.jsonl (events-r1.jsonl, ...)      EVENT_FIELDS, then the fields of the event
    rollouts/step-000012/part-*.parquet      ROLLOUT_COLUMNS, then columns per reward function and logged extra
    tokens/step-000012/part-*.parquet        TOKEN_COLUMNS; selected completions, lists of one entry per token
    heartbeat.json                           HEARTBEAT_FIELDS; made anew every few seconds
    completions/completions_00012.parquet    TRL's file and columns; see completions_table.py
    superseded/a2/...                        parts that attempt 2 made obsolete, moved there

Nothing here reads or writes a file, apart from the JSON value rules: `plain` says what becomes of NaN.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

SCHEMA_VERSION = 1

RUN_FIELDS: dict[str, str] = {
    "schema_version": "1",
    "run_id": "random name of the run, kept over attempts",
    "created": "ISO time (UTC) of the first attempt",
    "attempts": "one entry per attempt, oldest first",
}

ATTEMPT_FIELDS: dict[str, str] = {
    "attempt": "1, 2, ...",
    "started": "ISO time (UTC)",
    "ended": "ISO time (UTC); null while it runs, or if it was killed",
    "start_step": "optimizer steps done before it: 0 for a fresh start, k when resumed from checkpoint-k, "
    "null for a session that does not train",
    "model": "the policy's name or path; null if it has none",
    "config": "the resolved GRPOConfig, secrets masked",
    "plan": "the batch plan in words, a list of lines",
    "seeds": "name -> seed",
    "device": "type, name and number of devices",
    "versions": "package -> version",
}

LINE_FIELDS: dict[str, str] = {
    "step": "optimizer steps done",
    "split": "train, eval, or eval_<set>",
    "attempt": "the attempt that wrote the line",
    "time": "seconds since 1970 (UTC)",
    "nonfinite": "only if there are any: the metrics that were infinite, as text",
}

EVENT_FIELDS: dict[str, str] = {
    "kind": "attempt_start, attempt_stop, checkpoint, reward_fault, finding, write_failure, ...",
    "attempt": "the attempt that wrote the line",
    "time": "seconds since 1970 (UTC)",
}

HEARTBEAT_FIELDS: dict[str, str] = {
    "time": "seconds since 1970 (UTC) when it was written",
    "pid": "process id of the trainer's main process",
    "host": "the machine that it runs on",
    "attempt": "the attempt that it is",
    "step": "optimizer steps done",
    "phase": "what runs: generate, score, update, evaluate, save, ...",
    "changed": "time at which step or phase was first seen as they are",
}

ROLLOUT_COLUMNS: dict[str, pa.DataType] = {
    "run_id": pa.string(),
    "attempt": pa.int32(),
    "step": pa.int32(),
    "split": pa.string(),
    "policy_version": pa.int64(),
    "group_id": pa.int64(),
    "prompt_id": pa.int64(),
    "sample": pa.int32(),
    "prompt_format": pa.string(),  # text | messages
    "prompt": pa.string(),  # the text, or the messages as JSON
    "completion": pa.string(),
    "columns": pa.string(),  # the other dataset columns, as one JSON object
    "finish_reason": pa.string(),
    "n_prompt": pa.int32(),
    "n_completion": pa.int32(),
    "n_trained": pa.int32(),
    "used": pa.bool_(),
    "drop_reason": pa.string(),
    "reward": pa.float64(),
    "advantage": pa.float64(),
    "group_mean": pa.float64(),
    "group_std": pa.float64(),
    "entropy_mean": pa.float64(),
    "kl_mean": pa.float64(),
    "is_mean": pa.float64(),
    "is_max": pa.float64(),
    "clipped_frac": pa.float64(),
    "sampler_logprob_mean": pa.float64(),
    "seconds": pa.float64(),
    "rep4_tail": pa.float64(),
    "zlib_tail": pa.float64(),
    "copy8": pa.float64(),
    "dup_of": pa.int32(),
    "script_share": pa.float64(),
    "gibberish_share": pa.float64(),
}

TOKEN_KEYS: dict[str, pa.DataType] = {
    "run_id": pa.string(),
    "attempt": pa.int32(),
    "step": pa.int32(),
    "split": pa.string(),
    "group_id": pa.int64(),
    "prompt_id": pa.int64(),
    "sample": pa.int32(),
    "num_passes": pa.int32(),
}

TOKEN_LISTS: dict[str, pa.DataType] = {
    "completion_ids": pa.int32(),
    "text_offsets": pa.int32(),
    "mask": pa.uint8(),
    "logp_infer": pa.float32(),
    "delta": pa.float32(),
    "delta_ref": pa.float32(),
    "entropy": pa.float32(),
    "ratio": pa.float32(),
    "clip": pa.uint8(),
}
"""One entry per token of the completion. A list is null where nothing of it is known, an entry where the token's is."""

TOKEN_COLUMNS: dict[str, pa.DataType] = TOKEN_KEYS | {name: pa.list_(kind) for name, kind in TOKEN_LISTS.items()}

REWARD_COLUMNS: dict[str, pa.DataType] = {"reward/{name}": pa.float64(), "reward_status/{name}": pa.string()}

EXTRA_COLUMN = "extra/{name}"
"""A column logged with `log_extra`: float64 if its values are numbers, text otherwise (JSON for lists and dicts)."""


def rollout_schema(reward_names: Sequence[str], extra_types: Mapping[str, pa.DataType]) -> pa.Schema:
    """All columns of one rollouts part, in order."""
    fields = dict(ROLLOUT_COLUMNS)
    for name in reward_names:
        fields |= {pattern.format(name=name): kind for pattern, kind in REWARD_COLUMNS.items()}
    fields |= {EXTRA_COLUMN.format(name=name): extra_types[name] for name in sorted(extra_types)}
    return pa.schema(list(fields.items()), metadata={"gruppo_schema_version": str(SCHEMA_VERSION)})


def token_schema() -> pa.Schema:
    """All columns of one tokens part, in order."""
    return pa.schema(list(TOKEN_COLUMNS.items()), metadata={"gruppo_schema_version": str(SCHEMA_VERSION)})


MAX_BITS = 4096
"""Of an integer that is written as such."""


def plain(value: Any) -> Any:
    """The value as JSON can say it: NaN, infinities and fractions beyond float64 become None, what JSON does not know
    becomes text, as do integers of thousands of digits."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Real):
        return _plain_number(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, (Tensor, np.ndarray)):
        return plain(value.tolist())
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def _plain_number(value: numbers.Real) -> int | float | str | None:
    if isinstance(value, numbers.Integral):
        number = int(value)
        # Python refuses to write integers of more than 4,300 digits.
        return number if number.bit_length() <= MAX_BITS else f"<integer of {number.bit_length()} bits>"
    with suppress(OverflowError):  # a fraction that is too large
        return float(value) if math.isfinite(float(value)) else None
    return None


def to_json(value: Any) -> str:
    """One line of strict JSON."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def to_text(value: str) -> str:
    """The text with what UTF-8 cannot say (lone surrogates) written out as an escape."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
