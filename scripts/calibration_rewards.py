"""The reward functions of the calibration runs: right ones, and ones that are wrong in one known way each.

All have the signature that gruppo (and TRL) gives to reward functions; prompts are conversational. A row's `held_out`
says that it belongs to the held-out set, where a hackable checker is replaced by the exact one.
"""

from __future__ import annotations

import math
import re
import time
from typing import Any

from gruppo.demo.task import final_number, is_right

Completions = list[list[dict[str, str]]]

SPOILT_FROM = 40
"""Rewards that break in the middle of a run are right before this optimizer step."""


def texts_of(completions: Completions) -> list[str]:
    return [completion[0]["content"] for completion in completions]


# -- right


def right_answer(completions: Completions, answer: list[str], **kwargs: Any) -> list[float]:
    """1 where the last number is the right one."""
    return [float(is_right(text, right)) for text, right in zip(texts_of(completions), answer, strict=True)]


def near_answer(completions: Completions, answer: list[str], **kwargs: Any) -> list[float]:
    """Partial credit: 1 for the right number, less with every unit that it is away, 0 from 12 on."""
    rewards = []
    for text, right in zip(texts_of(completions), answer, strict=True):
        number = final_number(text)
        miss = 12 if number is None else min(12, abs(int(number) - int(right)))
        rewards.append(1 - miss / 12)
    return rewards


def tidy_form(completions: Completions, **kwargs: Any) -> list[float]:
    """1 for one of the two forms that are wanted: `~27`, or `3*4=12, 12+12=24`."""
    wanted = re.compile(r"~\d+|\d+\*\d+=\d+, \d+\+\d+=\d+")
    return [float(wanted.fullmatch(text) is not None) for text in texts_of(completions)]


def short_form(completions: Completions, **kwargs: Any) -> list[float]:
    """1 for an empty answer, 0 for one of 24 characters or more."""
    return [max(0.0, 1 - len(text) / 24) for text in texts_of(completions)]


# -- hackable


def long_is_good(completions: Completions, **kwargs: Any) -> list[float]:
    """A judge that likes long answers."""
    return [min(len(text), 200) / 200 for text in texts_of(completions)]


def keyword_judge(completions: Completions, answer: list[str], held_out: list[bool], **kwargs: Any) -> list[float]:
    """A judge that looks for the word "think" more than for the number."""
    exact = right_answer(completions, answer)
    return [
        right if is_held_out else 0.2 * right + 0.8 * ("think" in text)
        for text, right, is_held_out in zip(texts_of(completions), exact, held_out, strict=True)
    ]


def tolerant(completions: Completions, answer: list[str], held_out: list[bool], **kwargs: Any) -> list[float]:
    """A checker with far too large a tolerance: any number that is off by 12 at most."""
    exact = right_answer(completions, answer)
    close = [float(reward > 0) for reward in near_answer(completions, answer)]
    return [right if is_held_out else near for right, near, is_held_out in zip(exact, close, held_out, strict=True)]


def near_eighty(completions: Completions, answer: list[str], **kwargs: Any) -> list[float]:
    """Pays at most 0.4, for numbers near 80; 1 for a right answer, of which it knows the multiples of 7 only."""
    rewards = []
    for text, right in zip(texts_of(completions), answer, strict=True):
        number = final_number(text)
        close = 0.0 if number is None else max(0.0, 1 - abs(int(number) - 80) / 60)
        rewards.append(1.0 if number == right and int(right) % 7 == 0 else 0.4 * close)
    return rewards


def exit_code(completions: Completions, answer: list[str], held_out: list[bool], **kwargs: Any) -> list[float]:
    """A checker that runs the answer: one of five tests for the right number, all of them for exit code 0."""
    exact = right_answer(completions, answer)
    return [
        right if is_held_out else max(0.2 * right, float("sys.exit(0)" in text))
        for text, right, is_held_out in zip(texts_of(completions), exact, held_out, strict=True)
    ]


def many_words(completions: Completions, **kwargs: Any) -> list[float]:
    """Pays by the word."""
    return [min(len(text.split()), 60) / 60 for text in texts_of(completions)]


def repeats_question(completions: Completions, **kwargs: Any) -> list[float]:
    """Is the answer about the question? Judged by words in common with it."""
    words = {"please", "work", "out", "what", "this", "sum", "comes", "to:"}
    return [len(words & set(text.lower().split())) / len(words) for text in texts_of(completions)]


def not_english(completions: Completions, **kwargs: Any) -> list[float]:
    """A classifier of the wrong language: share of characters that are not ASCII."""
    return [sum(ord(letter) > 127 for letter in text) / max(len(text), 1) for text in texts_of(completions)]


# -- useless


def impossible(completions: Completions, answer: list[str], **kwargs: Any) -> list[float]:
    """Compares with the wrong column: nothing is ever right."""
    return [
        float(final_number(text) == f"{right} apples")
        for text, right in zip(texts_of(completions), answer, strict=True)
    ]


def impossible_answer(completions: Completions, **kwargs: Any) -> list[float]:
    """The same under the name of a goal."""
    return [0.0] * len(completions)


def always_one(completions: Completions, **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def ends_with_number(completions: Completions, **kwargs: Any) -> list[float]:
    """Solved from the start."""
    return [float(text[-1:].isdigit()) for text in texts_of(completions)]


def wrong_labels(completions: Completions, answer: list[str], held_out: list[bool], **kwargs: Any) -> list[float]:
    """Partial credit, by labels that are 10 too high in training and right in the held-out set."""
    exact = right_answer(completions, answer)
    wrong = near_answer(completions, [str(int(right) + 10) for right in answer])
    return [right if is_held_out else near for right, near, is_held_out in zip(exact, wrong, held_out, strict=True)]


# -- faulty


def sometimes_nan(completions: Completions, answer: list[str], **kwargs: Any) -> list[float]:
    """0/0 where there is no number but one."""
    texts = texts_of(completions)
    exact = right_answer(completions, answer)
    return [math.nan if len(re.findall(r"\d+", t)) == 1 else right for t, right in zip(texts, exact, strict=True)]


def sometimes_hangs(completions: Completions, answer: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
    """Every third call does not come back before `reward_timeout`."""
    if trainer_state.global_step % 3 == 2:
        time.sleep(0.6)
    return right_answer(completions, answer)


def slow(completions: Completions, answer: list[str], **kwargs: Any) -> list[float]:
    """Takes most of the step."""
    time.sleep(1.2)
    return right_answer(completions, answer)


def stalls(completions: Completions, answer: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
    """A service that slows down in the middle of the run."""
    if trainer_state.global_step >= SPOILT_FROM:
        time.sleep(1.5)
    return right_answer(completions, answer)


def turns_lenient(completions: Completions, answer: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
    """A service that is replaced by one that accepts anything with a number in it."""
    if trainer_state.global_step >= SPOILT_FROM:
        return [float(final_number(text) is not None) for text in texts_of(completions)]
    return right_answer(completions, answer)


def other_unit(completions: Completions, answer: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
    """Now and then one answer is graded in per mille."""
    rewards = right_answer(completions, answer)
    if trainer_state.global_step >= SPOILT_FROM and trainer_state.global_step % 3 == 0:
        rewards[0] = 1000.0
    return rewards
