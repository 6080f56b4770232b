"""Columns of rollouts/ that are computed from text and tokens after sampling: loops, copies, twins, gibberish, drops.

The text features are those of the health checks (health/text_features.py), so that a check reads the same numbers live,
offline, and from the recorded columns. Pure; the recorder calls it in its background thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gruppo.monitor.health.text_features import prompt_text, text_features
from gruppo.monitor.health.token_features import gibberish_share
from gruppo.types import Completion

MIN_VOCABULARY = 4096
"""Below this, ids say nothing about how rare a token is, and `gibberish_share` is null."""


def feature_columns(
    columns: Mapping[str, Sequence[Any]], completions: Sequence[Completion], vocab_size: int | None
) -> dict[str, list[Any]]:
    """rep4_tail, zlib_tail, copy8, dup_of, script_share, gibberish_share; `columns` are those of the rollouts part.

    dup_of compares a completion with the siblings in this part: a group that lies on two ranks is looked at in halves.
    """
    pairs = list(zip(columns["prompt"], columns["prompt_format"], strict=True))
    plain = {pair: prompt_text(*pair) for pair in dict.fromkeys(pairs)}
    texts = [plain[pair] for pair in pairs]
    features = text_features(texts, columns["completion"], columns["group_id"], columns["sample"])
    return features | {"gibberish_share": [_gibberish(completion, vocab_size) for completion in completions]}


def drop_columns(completions: Sequence[Completion], is_truncated_masked: bool | None) -> dict[str, list[Any]]:
    """used, drop_reason; all null in a round that is not trained on (`is_truncated_masked` None)."""
    if is_truncated_masked is None:
        return {"used": [None] * len(completions), "drop_reason": [None] * len(completions)}
    reasons = [_drop_reason(completion, is_truncated_masked) for completion in completions]
    return {"used": [reason is None for reason in reasons], "drop_reason": reasons}


def _drop_reason(completion: Completion, is_truncated_masked: bool) -> str | None:
    """Why a sampled completion is not trained on: `no_tokens` (none that the model made), `truncated` (the config
    masks those, `mask_truncated_completions`), or None: it is."""
    if not any(completion.trained or [True] * len(completion.token_ids)):
        return "no_tokens"
    return "truncated" if is_truncated_masked and completion.is_truncated else None


def _gibberish(completion: Completion, vocab_size: int | None) -> float | None:
    if vocab_size is None or vocab_size < MIN_VOCABULARY:
        return None
    return gibberish_share(completion.token_ids, completion.sampler_logprobs, vocab_size)
