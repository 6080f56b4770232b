"""The tokens part of a round, and the means that its rollouts part gets from the same pass. Pure: arrays to tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gruppo.monitor.schema import ROLLOUT_COLUMNS, TOKEN_KEYS, TOKEN_LISTS, token_schema
from gruppo.monitor.select import Candidates
from gruppo.monitor.text_offsets import TextOffsets
from gruppo.monitor.token_tap import PassValues

Floats = NDArray[np.float64]


def candidates(rollouts: pa.Table, values: PassValues) -> Candidates:
    """The rows of a rollouts part as `select_rows` sees them."""
    return Candidates(
        group_ids=rollouts["group_id"].to_pylist(),
        num_tokens=rollouts["n_completion"].to_pylist(),
        advantages=_floats(rollouts["advantage"]),
        rewards=_floats(rollouts["reward"]),
        gaps=_largest(np.abs(values.delta)),
    )


def token_table(
    rollouts: pa.Table,
    completion_ids: Sequence[Sequence[int]],
    values: PassValues,
    rows: Sequence[int],
    offsets: TextOffsets,
) -> pa.Table:
    """Per-token columns of `rows` of a rollouts part; `completion_ids` and `values` have all of its rows."""
    keys = [name for name in TOKEN_KEYS if name in rollouts.column_names]
    picked = rollouts.select([*keys, "completion"]).take(pa.array(rows, pa.int64()))
    ids = [completion_ids[row] for row in rows]
    lengths = np.array([len(of_row) for of_row in ids], dtype=np.int32)
    texts = picked["completion"].to_pylist()
    starts = [offsets.of(of_row, text) for of_row, text in zip(ids, texts, strict=True)]
    columns: dict[str, Any] = {name: picked[name] for name in keys}
    columns["num_passes"] = [values.num_passes[row] for row in rows]
    columns["completion_ids"] = _lists("completion_ids", _joined(ids, lengths), lengths)
    columns["text_offsets"] = _lists(
        "text_offsets",
        _joined([of_row or [0] * length for of_row, length in zip(starts, lengths, strict=True)], lengths),
        lengths,
        is_null=[of_row is None for of_row in starts],
    )
    is_token_NT = np.arange(values.mask.shape[1]) < lengths[:, None]
    columns["mask"] = _lists("mask", values.mask[rows][is_token_NT].view(np.uint8), lengths)
    for name in ("logp_infer", "delta", "delta_ref", "entropy", "ratio", "clip"):
        array_NT = getattr(values, name)[rows]
        is_null = (np.isnan(array_NT) | ~is_token_NT).all(axis=1)
        columns[name] = _lists(name, array_NT[is_token_NT], lengths, is_null=is_null.tolist())
    return pa.Table.from_pydict(columns, schema=token_schema())


def with_pass_means(rollouts: pa.Table, values: PassValues) -> pa.Table:
    """The rollouts part with the columns that are known once its rows were trained on."""
    d, gap = -values.delta_ref.astype(np.float64), values.delta.astype(np.float64)
    columns = {
        "entropy_mean": _mean(values.entropy),
        "kl_mean": _mean(np.exp(d) - d - 1),
        "is_mean": _mean(np.exp(gap)),
        "is_max": np.exp(_largest(gap)),
        "clipped_frac": _mean(values.clip),
    }
    for name, column in columns.items():
        if rollouts[name].null_count == len(rollouts):
            array = pa.array(column, ROLLOUT_COLUMNS[name], from_pandas=True)
            rollouts = rollouts.set_column(rollouts.column_names.index(name), rollouts.schema.field(name), array)
    return rollouts


def _joined(rows: Sequence[Sequence[int]], lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(rows), np.int32, count=int(lengths.sum()))


def _lists(
    name: str, flat: NDArray[Any], lengths: NDArray[np.int32], is_null: Sequence[bool] | None = None
) -> pa.Array:
    """One list per row from the values of all of them, null for NaN; rows that `is_null` are null themselves."""
    stops = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    items = pa.array(flat, from_pandas=True).cast(TOKEN_LISTS[name])
    mask = None if is_null is None else pa.array(is_null, pa.bool_())
    return pa.ListArray.from_arrays(pa.array(stops, pa.int32()), items, mask=mask)


def _mean(values_NT: NDArray[Any]) -> Floats:
    """Of each row's known values; NaN where there are none."""
    is_known_NT = ~np.isnan(values_NT)
    sums_N = np.where(is_known_NT, values_NT, 0.0).sum(axis=1, dtype=np.float64)
    counts_N = is_known_NT.sum(axis=1)
    return np.divide(sums_N, counts_N, out=np.full(len(sums_N), np.nan), where=counts_N > 0)


def _largest(values_NT: NDArray[Any]) -> Floats:
    """Of each row's known values; NaN where there are none."""
    return np.fmax.reduce(values_NT.astype(np.float64), axis=1, initial=np.nan)


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.to_numpy(), dtype=np.float64)
