"""The length rule: how long each completion is, the same for every contender.

A model of random weights says EOS about once in a vocabulary, so completion lengths have to be imposed. The rule is one
table: completion s of prompt p has lengths[p][s] tokens. The token drawn at that place is replaced by EOS, and an EOS
drawn earlier by another word. Each row then ends by the contender's own handling of EOS, as in a real run: what it does
with rows that have ended (padding, retiring, refilling) is its own affair, and its time.

Every contender meets the rule where its tokens are drawn:

    generate (TRL, gruppo's HFEngine)   a logits processor: EOS alone is left at the last place, and is not there before
    transformers' continuous batching   the token on its way into the request's state
    gruppo's embedded engine            the tokens on their way into `Sequences`

All of them do their whole work (logits, softmax, draw) for the replaced token too. `step.py` checks afterwards, by the
lengths that the trainer itself logged, that the rule was kept.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any
from weakref import WeakKeyDictionary

from harness.models import EOS, UNKNOWN

OTHER = UNKNOWN
"""What stands in for an EOS drawn too early."""


@dataclass(frozen=True)
class LengthRule:
    lengths: dict[tuple[int, ...], tuple[int, ...]]
    """Prompt ids -> tokens of each of its completions, EOS included."""

    def length(self, prompt: Sequence[int], sample: int) -> int:
        """Samples are counted from 0; a second round over the same prompt begins again."""
        lengths = self.lengths[tuple(prompt)]
        return lengths[sample % len(lengths)]

    @staticmethod
    def token(drawn: int, num_before: int, length: int) -> int:
        """What becomes of a token that `num_before` tokens of its completion precede."""
        if num_before + 1 == length:
            return EOS
        return OTHER if drawn == EOS else drawn

    def all_lengths(self) -> list[int]:
        return [length for lengths in self.lengths.values() for length in lengths]


def equal_lengths(prompts: Sequence[Sequence[int]], group_size: int, length: int) -> LengthRule:
    return LengthRule({tuple(prompt): (length,) * group_size for prompt in prompts})


def lognormal_lengths(
    prompts: Sequence[Sequence[int]], group_size: int, *, median: float, sigma: float, longest: int
) -> LengthRule:
    """The evenly spaced quantiles of a log-normal, cut at `longest`, dealt out by a seeded shuffle.

    Quantiles instead of draws: with few rows, mean and longest would otherwise be the seed's choice.
    """
    num_rows = len(prompts) * group_size
    normal = NormalDist(0.0, sigma)
    quantiles = [normal.inv_cdf((row + 0.5) / num_rows) for row in range(num_rows)]
    lengths = [max(1, min(longest, round(median * math.exp(z)))) for z in quantiles]
    random.Random(0).shuffle(lengths)
    rows = {tuple(p): tuple(lengths[i * group_size : (i + 1) * group_size]) for i, p in enumerate(prompts)}
    return LengthRule(rows)


# -- where each contender meets it


def impose_on_generate(model: Any, rule: LengthRule) -> None:
    """`model.generate` gets the rule as its first logits processor."""
    from transformers import LogitsProcessorList

    generate = model.generate

    def ruled(*args: Any, input_ids: Any, attention_mask: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        processors = LogitsProcessorList(
            [_ends(_in_order(rule, prompts), input_ids.shape[1]), *(logits_processor or [])]
        )
        return generate(
            *args, input_ids=input_ids, attention_mask=attention_mask, logits_processor=processors, **kwargs
        )

    model.generate = ruled


def _in_order(rule: LengthRule, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Rows of one prompt are its samples 0, 1, ... in the order of the rows."""
    seen: Counter[tuple[int, ...]] = Counter()
    lengths = []
    for prompt in map(tuple, prompts):
        lengths.append(rule.length(prompt, seen[prompt]))
        seen[prompt] += 1
    return lengths


def _ends(lengths: Sequence[int], prompt_length: int) -> Any:
    import torch
    from transformers import LogitsProcessor

    lengths_N = torch.tensor(lengths)

    class Ends(LogitsProcessor):
        """LengthRule.token, said by scores."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores[:, EOS] = -torch.inf
            rows = torch.nonzero(lengths_N == input_ids.shape[1] - prompt_length + 1)[:, 0]
            if len(rows):
                scores[rows] = -torch.inf
                scores[rows, EOS] = 0.0
            return scores

    return Ends()


def impose_on_batching(model: Any, rule: LengthRule) -> None:
    """`model.generate_batch` (transformers' continuous batching) keeps the rule."""
    from transformers.generation.continuous_batching.requests import RequestState

    generate_batch, update = model.generate_batch, RequestState.update_and_check_completion

    def ruled(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen: Counter[tuple[int, ...]] = Counter()
        lengths: dict[str, int] = {}

        def ruled_update(state: Any, token_id: int, logprob: float | None) -> bool:
            if state.request_id not in lengths:
                prompt = tuple(state.initial_tokens)
                lengths[state.request_id] = rule.length(prompt, seen[prompt])
                seen[prompt] += 1
            token = rule.token(token_id, state.generated_len(), lengths[state.request_id])
            return update(state, token, logprob)

        RequestState.update_and_check_completion = ruled_update
        try:
            return generate_batch(inputs, *args, **kwargs)
        finally:
            RequestState.update_and_check_completion = update

    model.generate_batch = ruled


def impose_on_engine(rule: LengthRule) -> None:
    """gruppo's embedded engine keeps the rule in this process. Log-probs of replaced tokens are unknown (NaN).

    Prompts that the rule does not know are left alone: the engine tries itself out on some of its own.
    """
    import numpy as np

    from gruppo.rollout.sequence import Sequences

    append = Sequences.append
    known: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def lengths_of(sequences: Any) -> Any:
        pairs = zip(sequences.prompt_N.tolist(), sequences.sample_N.tolist(), strict=True)
        ids = [(tuple(sequences.prompts[p].token_ids), sample) for p, sample in pairs]
        return np.array([rule.length(prompt, sample) if prompt in rule.lengths else 0 for prompt, sample in ids])

    def ruled(self: Any, rows: Any, tokens: Any, logprobs: Any) -> None:
        if self not in known:
            known[self] = lengths_of(self)
        lengths_N = known[self][rows]
        kept = np.where((tokens == EOS) & (lengths_N > 0), OTHER, tokens)
        kept = np.where(self.length_N[rows] + 1 == lengths_N, EOS, kept)
        append(self, rows, kept, np.where(kept == tokens, logprobs, np.float32("nan")))

    Sequences.append = ruled  # type: ignore[method-assign]
