"""The demo's task: `12+3*4=?`, where multiplication goes first. Questions, right answers, and the reward.

All questions are known (a from 10 to 99, b and c from 2 to 9). They are split once, by a seed that is part of the
task and not of the run: the held-out questions are never seen, neither when the policy is made nor by GRPO.
`3*4` and `4*3` always fall on the same side, so a held-out question is not a turned-round training question.

Not here: how the policy answers (that is the policy's habit), and how answers are sampled (`exam.py`).
"""

import random
import re
from typing import Any, Final, NamedTuple

TERMS: Final = range(10, 100)
FACTORS: Final = range(2, 10)
HELD_OUT_SHARE: Final = 0.1
SPLIT_SEED: Final = 20250
"""Belongs to the task: the shipped policy was made with this split, and every run must respect it."""

_NUMBER = re.compile(r"\d+")


class Question(NamedTuple):
    """`term + left * right`."""

    term: int
    left: int
    right: int

    @property
    def text(self) -> str:
        return f"{self.term}+{self.left}*{self.right}=?"

    @property
    def answer(self) -> int:
        return self.term + self.left * self.right


def split_questions() -> tuple[list[Question], list[Question]]:
    """(training, held-out) questions, each in a fixed shuffled order; together they are all questions."""
    families = [(a, b, c) for a in TERMS for b in FACTORS for c in FACTORS if b <= c]
    rng = random.Random(SPLIT_SEED)
    rng.shuffle(families)
    num_held_out = round(HELD_OUT_SHARE * len(families))
    sides = families[num_held_out:], families[:num_held_out]
    training, held_out = (
        [Question(a, *pair) for a, b, c in side for pair in sorted({(b, c), (c, b)})] for side in sides
    )
    rng.shuffle(training)
    rng.shuffle(held_out)
    return training, held_out


def as_row(question: Question) -> dict[str, Any]:
    """A dataset row: a conversational `prompt`, and the `answer` column that the reward function receives."""
    return {"prompt": [{"role": "user", "content": question.text}], "answer": str(question.answer)}


def final_number(text: str) -> str | None:
    """The last number in the text, without leading zeros; None where there is none."""
    numbers = _NUMBER.findall(text)
    return str(int(numbers[-1])) if numbers else None


def is_right(text: str, answer: str) -> bool:
    return final_number(text) == answer


def right_answer(completions: list[list[dict[str, str]]], answer: list[str], **kwargs: Any) -> list[float]:
    """Reward 1 where the last number of the completion is the right answer, else 0. How it got there does not count."""
    return [
        float(is_right(completion[0]["content"], right)) for completion, right in zip(completions, answer, strict=True)
    ]
