"""From groups and advantages to the TrainBatch: where THE training mask is built, once.

A token is trained if the model made it (not a tool result), if it is a token at all (not padding), and if its row was
not dropped (`mask_truncated_completions`). Every denominator of every loss is counted from this mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gruppo.algorithm.masks import drop_truncated
from gruppo.types import Completion, Group, TrainBatch


def assemble(
    groups: Sequence[Group],
    advantages_N: Tensor,
    *,
    slice_ids: list[int],
    mask_truncated: bool,
    device: torch.device,
) -> TrainBatch:
    """This rank's rows, in the order of `groups`; `advantages_N` and `slice_ids` have one entry for each."""
    rows = [(number, group, completion) for number, group in enumerate(groups) for completion in group.completions]
    completions = [completion for _, _, completion in rows]
    assert len(rows) == len(slice_ids) == len(advantages_N), (len(rows), len(slice_ids), len(advantages_N))
    trained_NT = _padded([_trained(completion) for completion in completions], False)
    if mask_truncated:
        trained_NT = drop_truncated(trained_NT, torch.tensor([c.is_truncated for c in completions], dtype=torch.bool))
    sampler_logprobs = [_sampler_logprobs(completion) for completion in completions]
    has_logprobs = any(completion.sampler_logprobs is not None for completion in completions)
    return TrainBatch(
        prompt_ids=[group.prompt_ids(completion) for _, group, completion in rows],
        completion_ids=[completion.token_ids for completion in completions],
        trained_NT=trained_NT.to(device),
        advantages_N=advantages_N.to(device),
        group_ids=[number for number, _, _ in rows],
        slice_ids=slice_ids,
        sampler_logprobs_NT=_padded(sampler_logprobs, math.nan).to(device) if has_logprobs else None,
    )


def _trained(completion: Completion) -> list[bool]:
    return [True] * len(completion.token_ids) if completion.trained is None else completion.trained


def _sampler_logprobs(completion: Completion) -> list[float]:
    return completion.sampler_logprobs or [math.nan] * len(completion.token_ids)


def _padded(rows: Sequence[Sequence[bool]] | Sequence[Sequence[float]], fill: bool | float) -> Tensor:
    """(N, T), right-padded; T is at least 1 so that reductions over T are defined."""
    longest = max([1, *(len(row) for row in rows)])
    dtype = torch.bool if isinstance(fill, bool) else torch.float32
    filled = [[*row, *[fill] * (longest - len(row))] for row in rows]
    return torch.tensor(filled, dtype=dtype).view(len(rows), longest)
