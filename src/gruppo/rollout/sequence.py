"""Sequences: what every row of one rollout has produced so far, as columns (numpy, on the host).

A row is one completion in the making: a prompt and the index of one sample of it. Rows are numbered 0..N-1 in the
order of the requests and keep their number until the end, wherever their keys and values lie. Nothing here decides
what runs next (`scheduler`), what ends a row (`stop`) or what comes next (`sampler`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gruppo.rollout.sampler import row_uniforms
from gruppo.types import Completion, FinishReason, Prompt, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Sequences:
    """The rows of `requests`. Equal prompt ids of different requests are different prompts here.

    Args:
        max_tokens: new tokens per row, the stop included.
        needs_uniforms: False for greedy decoding.
    """

    def __init__(
        self, requests: Sequence[RolloutRequest], sampling: SamplingParams, *, max_tokens: int, needs_uniforms: bool
    ) -> None:
        self.prompts: list[Prompt] = [request.prompt for request in requests]
        rows = [(p, sample) for p, request in enumerate(requests) for sample in request.samples]
        self.prompt_N = np.array([p for p, _ in rows], dtype=np.int64)
        self.sample_N = np.array([sample for _, sample in rows], dtype=np.int64)
        self.prompt_lengths_P = np.array([len(prompt.token_ids) for prompt in self.prompts], dtype=np.int64)
        self.length_N = np.zeros(len(rows), dtype=np.int64)
        """New tokens so far."""
        self.tokens_NT = np.zeros((len(rows), max_tokens), dtype=np.int64)
        self.logprobs_NT = np.zeros((len(rows), max_tokens), dtype=np.float32)
        self.reasons: list[FinishReason] = ["length"] * len(rows)
        self._uniforms_NT: NDArray[np.float64] | None = None
        if needs_uniforms and rows:
            ids = [self.prompts[p].id for p, _ in rows]
            streams = [
                row_uniforms(sampling, id_, sample, max_tokens) for id_, (_, sample) in zip(ids, rows, strict=True)
            ]
            self._uniforms_NT = np.stack(streams)

    def __len__(self) -> int:
        return len(self.prompt_N)

    def uniforms(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """The random number of the next token of each row."""
        return None if self._uniforms_NT is None else self._uniforms_NT[rows, self.length_N[rows]]

    def append(self, rows: NDArray[np.int64], tokens: NDArray[np.int64], logprobs: NDArray[np.float32]) -> None:
        at = self.length_N[rows]
        self.tokens_NT[rows, at] = tokens
        self.logprobs_NT[rows, at] = logprobs
        self.length_N[rows] += 1

    def last_tokens(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.tokens_NT[rows, self.length_N[rows] - 1]

    def history(self, row: int) -> list[int]:
        """Prompt and new tokens of one row."""
        return self.prompts[self.prompt_N[row]].token_ids + self.tokens_NT[row, : self.length_N[row]].tolist()

    def completion(self, row: int, *, policy_version: int, seconds: float) -> Completion:
        length = self.length_N[row]
        return Completion(
            sample=int(self.sample_N[row]),
            token_ids=self.tokens_NT[row, :length].tolist(),
            finish_reason=self.reasons[row],
            sampler_logprobs=self.logprobs_NT[row, :length].tolist(),
            policy_version=policy_version,
            seconds=seconds,
        )
