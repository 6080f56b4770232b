"""Built-in rewards that need nothing but the completion: format, length, repetition, exact match.

All take completions in either format (text or messages) and pass with TRL's trainer as well. Factories return small
callable objects, not closures: they can be pickled by a user's own worker processes, they print well, and a dataset
column of the same name as a setting cannot override it.

Not here: mathematical equality (`math.py`) and reasoning-gym tasks (`tasks.py`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gruppo.errors import RewardError, boundary
from gruppo.rewards.protocol import RewardFunction, callable_name, is_async_callable
from gruppo.rewards.rows import Text, text_of
from gruppo.rewards.signature import own_signature

THINK_FORMAT = re.compile(r"^<think>(?!.*<think>)(.*?)</think>.*$", re.DOTALL | re.MULTILINE)
"""At the very start one `<think>`, never a second one, and a `</think>` somewhere after it. The pattern is TRL's."""


def text_reward(function: RewardFunction) -> RewardFunction:
    """Wrap a reward function so that each completion is a plain string, also where prompts are chat messages.

    The wrapped function keeps its name and signature, and is called with keywords, as the trainer does.

    >>> @text_reward
    ... def is_short(completions, **kwargs):
    ...     return [float(len(text) < 20) for text in completions]
    """

    def as_text(kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "completions": [text_of(completion) for completion in kwargs["completions"]]}

    def call(**kwargs: Any) -> Any:
        return function(**as_text(kwargs))

    async def call_async(**kwargs: Any) -> Any:
        result: Any = function(**as_text(kwargs))
        return await result

    wrapper: Any = functools.wraps(function)(call_async if is_async_callable(function) else call)
    wrapper.__name__ = callable_name(function)
    wrapper.__signature__ = own_signature(function)
    reward: RewardFunction = wrapper
    return reward


def think_format_reward(completions: Sequence[Text], **kwargs: Any) -> list[float]:
    """1.0 if the completion starts with one `<think> ... </think>` block and holds no second `<think>`, else 0.0."""
    return [float(THINK_FORMAT.match(text_of(completion)) is not None) for completion in completions]


def format_reward(pattern: str) -> RewardFunction:
    r"""A reward of 1.0 where the whole completion (outer white space aside) matches the regular expression, else 0.0.

    A dot matches line breaks, too. Raises RewardError if `pattern` is no regular expression.

    >>> format_reward(r"<answer>\d+</answer>")(completions=["<answer>42</answer>", "42"])
    [1.0, 0.0]
    """
    with boundary(RewardError, f"Compiling the pattern {pattern!r} of `format_reward`"):
        re.compile(pattern)
    return _FormatReward(pattern)


@dataclass(frozen=True)
class _FormatReward:
    pattern: str
    __name__ = "format_reward"

    def __call__(self, completions: Sequence[Text], **kwargs: Any) -> list[float]:
        matcher = re.compile(self.pattern, re.DOTALL)
        return [float(matcher.fullmatch(text_of(completion).strip()) is not None) for completion in completions]


def length_reward(target: int, unit: Literal["tokens", "characters"] = "tokens") -> RewardFunction:
    """A reward of 0 at `target` tokens (or characters), falling with the distance: -|length - target| / target.

    An empty completion gets -1. Tokens include the EOS. Raises RewardError if `target` is below 1.

    >>> length_reward(4, unit="characters")(completions=["four", "two", ""], completion_ids=[[1], [1], [1]])
    [0.0, -0.25, -1.0]
    """
    if target < 1:
        raise RewardError(f"`length_reward` has target {target}; give the wanted length, at least 1.")
    if unit not in ("tokens", "characters"):
        raise RewardError(f"`length_reward` has unit {unit!r}; it counts 'tokens' or 'characters'.")
    return _LengthReward(target, unit)


@dataclass(frozen=True)
class _LengthReward:
    target: int
    unit: Literal["tokens", "characters"]
    __name__ = "length_reward"

    def __call__(self, completions: Sequence[Text], completion_ids: Sequence[list[int]], **kwargs: Any) -> list[float]:
        in_tokens = self.unit == "tokens"
        lengths = [len(ids) for ids in completion_ids] if in_tokens else [len(text_of(c)) for c in completions]
        return [-abs(length - self.target) / self.target if length != self.target else 0.0 for length in lengths]


def get_repetition_penalty_reward(ngram_size: int = 3, max_penalty: float = -1.0) -> RewardFunction:
    """A penalty for repeated n-grams of tokens: (1 - distinct n-grams / all n-grams) * max_penalty.

    0.0 without repetition, and for completions shorter than `ngram_size`. From appendix C.2 of arXiv 2502.03373.
    Raises RewardError if `max_penalty` is positive or `ngram_size` below 1.

    >>> get_repetition_penalty_reward(ngram_size=2)(completion_ids=[[1, 2, 3], [5, 5, 5, 5, 5]])
    [0.0, -0.75]
    """
    if max_penalty > 0:
        raise RewardError(f"max_penalty {max_penalty} should not be positive: it would pay for repetition.")
    if ngram_size < 1:
        raise RewardError(f"ngram_size is {ngram_size}; n-grams have at least 1 token.")
    return _RepetitionPenalty(ngram_size, max_penalty)


@dataclass(frozen=True)
class _RepetitionPenalty:
    ngram_size: int
    max_penalty: float
    __name__ = "repetition_penalty_reward"

    def __call__(self, completion_ids: Sequence[list[int]], **kwargs: Any) -> list[float]:
        return [self._penalty(ids) for ids in completion_ids]

    def _penalty(self, ids: list[int]) -> float:
        ngrams = [tuple(ids[i : i + self.ngram_size]) for i in range(len(ids) - self.ngram_size + 1)]
        num_distinct = len(set(ngrams))
        return (1 - num_distinct / len(ngrams)) * self.max_penalty if num_distinct < len(ngrams) else 0.0


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> RewardFunction:
    """A penalty for completions near or over the limit, in tokens. Equation 13 of DAPO, arXiv 2503.14476.

    0.0 up to `max_completion_len - soft_punish_cache`; then falling linearly to -1.0 at `max_completion_len`; -1.0
    beyond. Raises RewardError if the cache is negative or larger than the limit.

    >>> get_soft_overlong_punishment(100, 20)(completion_ids=[[1] * 90])
    [-0.5]
    """
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise RewardError(
            f"soft_punish_cache is {soft_punish_cache} and max_completion_len {max_completion_len}; the penalty starts "
            f"`soft_punish_cache` tokens before the limit, so it must lie between 0 and the limit."
        )
    return _SoftOverlongPunishment(max_completion_len, soft_punish_cache)


@dataclass(frozen=True)
class _SoftOverlongPunishment:
    max_completion_len: int
    soft_punish_cache: int
    __name__ = "soft_overlong_punishment_reward"

    def __call__(self, completion_ids: Sequence[list[int]], **kwargs: Any) -> list[float]:
        return [self._penalty(len(ids)) for ids in completion_ids]

    def _penalty(self, length: int) -> float:
        free = self.max_completion_len - self.soft_punish_cache
        if length <= free:
            return 0.0
        return (free - length) / self.soft_punish_cache if length <= self.max_completion_len else -1.0


def exact_match_reward(
    completions: Sequence[Text],
    answer: Sequence[Any] | None = None,
    solution: Sequence[Any] | None = None,
    extract: str | Callable[[str], str | None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""1.0 where the completion equals the dataset's `answer` (or `solution`), else 0.0; white space around is ignored.

    extract: how to find the answer in the completion: a function that returns it or None, or a regular expression
        (its last match counts; its first group if it has one). No answer found: 0.0. None: the whole completion.
    Bind it with `functools.partial(exact_match_reward, extract=r"####\s*(.+)")`.

    A row without a gold answer (None) abstains. Raises RewardError if the dataset has neither column.
    """
    golds = solution if answer is None else answer
    if golds is None:
        raise RewardError("`exact_match_reward` needs a column `answer` or `solution`; the dataset has neither.")
    answers = [_extract(text_of(completion), extract) for completion in completions]
    pairs = zip(answers, golds, strict=True)
    return [
        None if gold is None else float(found is not None and found.strip() == str(gold).strip())
        for found, gold in pairs
    ]


def _extract(text: str, how: str | Callable[[str], str | None] | None) -> str | None:
    if how is None:
        return text
    if callable(how):
        return how(text)
    match = None
    for match in re.finditer(how, text):  # noqa: B007  the last match is wanted
        pass
    if match is None:
        return None
    found: str | None = match.group(1 if match.re.groups else 0)
    return found
