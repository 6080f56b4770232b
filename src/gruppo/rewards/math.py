"""Rewards for mathematical answers, checked by math-verify (extra `math`: `pip install 'gruppo[math]'`).

math-verify guards itself with `signal.alarm`, which works on the main thread only. On any other thread (async
rewards, a reward timeout) it runs without that guard.

Not here: comparing answers as text (`builtin.exact_match_reward`).
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gruppo.errors import RewardError, boundary
from gruppo.rewards.protocol import RewardFunction
from gruppo.rewards.rows import Text, text_of

PARSE_SECONDS, VERIFY_SECONDS = 10, 5
"""Guards against expressions that never end, on the main thread. As TRL."""

LogExtra = Callable[[str, list[Any]], None]


def accuracy_reward(
    completions: Sequence[Text], solution: Sequence[str], log_extra: LogExtra | None = None, **kwargs: Any
) -> list[float | None]:
    r"""1.0 where the completion's LaTeX answer (`\boxed{...}` first) equals `solution` mathematically, else 0.0.

    None where the solution itself cannot be parsed. Logs the columns `solution`, `gold_parsed`, `answer_parsed`.
    """
    checks = [_check(text_of(completion), gold) for completion, gold in zip(completions, solution, strict=True)]
    _log(log_extra, solution, checks)
    return [check.reward for check in checks]


def reasoning_accuracy_reward(
    completions: Sequence[Text],
    solution: Sequence[str],
    reasoning_delimiters: list[str] | None = None,
    log_extra: LogExtra | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """`accuracy_reward` on what follows the reasoning, i.e. the last `</think>`.

    reasoning_delimiters: texts that end the reasoning; the first of them that occurs counts. Default ["</think>"].
    A completion without any is unfinished reasoning: 0.0, not None, also where the solution cannot be parsed.
    """
    delimiters = ["</think>"] if reasoning_delimiters is None else reasoning_delimiters
    unfinished = _Check(0.0, "[incomplete reasoning]", "[incomplete reasoning]")
    checks = []
    for completion, gold in zip(completions, solution, strict=True):
        text = text_of(completion)
        ending = next((delimiter for delimiter in delimiters if delimiter in text), None)
        checks.append(unfinished if ending is None else _check(text.rsplit(ending, 1)[-1], gold))
    _log(log_extra, solution, checks)
    return [check.reward for check in checks]


def get_cosine_scaled_reward(
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
) -> RewardFunction:
    """Correctness scaled by length along half a cosine: short and right pays most, short and wrong costs most.

    With x = min(tokens / max_len, 1), a right answer goes from `max_value_correct` (x = 0) to `min_value_correct`
    (x = 1), a wrong one from `min_value_wrong` to `max_value_wrong`. None where the solution cannot be parsed.
    From appendix C.1 of arXiv 2502.03373. Raises RewardError if `max_len` is below 1.
    """
    if max_len < 1:
        raise RewardError(f"max_len is {max_len}; give the completion length, in tokens, at which the curve ends.")
    return _CosineScaledReward(max_len, min_value_wrong, max_value_wrong, min_value_correct, max_value_correct)


@dataclass(frozen=True)
class _CosineScaledReward:
    max_len: int
    min_value_wrong: float
    max_value_wrong: float
    min_value_correct: float
    max_value_correct: float
    __name__ = "cosine_scaled_reward"

    def __call__(
        self, completions: Sequence[Text], solution: Sequence[str], completion_ids: Sequence[list[int]], **kwargs: Any
    ) -> list[float | None]:
        accuracies = accuracy_reward(completions, solution)
        pairs = zip(accuracies, completion_ids, strict=True)
        return [None if accuracy is None else self._scaled(accuracy, len(ids)) for accuracy, ids in pairs]

    def _scaled(self, accuracy: float, length: int) -> float:
        at_zero, at_end = (
            (self.max_value_correct, self.min_value_correct)
            if accuracy
            else (self.min_value_wrong, self.max_value_wrong)
        )
        # Beyond max_len the cosine would climb again and pay for overlong answers.
        progress = min(length / self.max_len, 1.0)
        return at_end + 0.5 * (at_zero - at_end) * (1.0 + math.cos(progress * math.pi))


@dataclass(frozen=True, slots=True)
class _Check:
    """One answer held against its gold answer, with what was understood of both."""

    reward: float | None
    gold_parsed: str
    answer_parsed: str


def _check(text: str, gold: str) -> _Check:
    tools = _math_verify()
    is_guarded = threading.current_thread() is threading.main_thread()
    parse_seconds, verify_seconds = (PARSE_SECONDS, VERIFY_SECONDS) if is_guarded else (None, None)
    gold_parsed = tools.parse(gold, parsing_timeout=parse_seconds)
    if not gold_parsed:
        return _Check(None, "[unparseable]", "[skipped]")
    answer_parsed = tools.parse(
        text,
        extraction_config=[tools.latex_answers],
        extraction_mode="first_match",
        parsing_timeout=parse_seconds,
    )
    is_equal = tools.verify(gold_parsed, answer_parsed, timeout_seconds=verify_seconds)
    return _Check(float(is_equal), str(gold_parsed), str(answer_parsed) if answer_parsed else "[unparseable]")


def _log(log_extra: LogExtra | None, solution: Sequence[str], checks: list[_Check]) -> None:
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("gold_parsed", [check.gold_parsed for check in checks])
        log_extra("answer_parsed", [check.answer_parsed for check in checks])


@dataclass(frozen=True, slots=True)
class _MathVerify:
    """The parts of math-verify that are used, loaded at first need."""

    parse: Callable[..., list[Any]]
    verify: Callable[..., bool]
    latex_answers: Any
    """Well-formed LaTeX only, boxed first, and only where something marks it as the answer."""


@functools.cache
def _math_verify() -> _MathVerify:
    with boundary(RewardError, "Importing math-verify (install it: `pip install 'gruppo[math]'`)"):
        from math_verify import LatexExtractionConfig, parse, verify
        from math_verify.parser import NormalizationConfig
    for module in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(module).addFilter(_is_not_about_timeouts)
    latex_answers = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
    return _MathVerify(parse, verify, latex_answers)


def _is_not_about_timeouts(record: logging.LogRecord) -> bool:
    # Off the main thread we switch the guard off on purpose; its warning has no news for the user.
    return not record.getMessage().startswith("Timeout is disabled")
