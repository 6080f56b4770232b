"""Scoring of reasoning-gym tasks by their own graders (extra `tasks`: `pip install 'gruppo[tasks]'`).

Not here: making such a dataset.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gruppo.errors import RewardError, boundary
from gruppo.rewards.rows import Text, text_of


def reasoning_gym_reward(
    completions: Sequence[Text],
    answer: Sequence[Any],
    metadata: Sequence[Mapping[str, Any] | str],
    answer_tag: str | None = "answer",
    **kwargs: Any,
) -> list[float]:
    """The score, 0.0 to 1.0, that the task's own `score_answer` gives to the text between the last `<answer>` tags.

    answer, metadata: as reasoning-gym made them. Metadata may be a mapping or its JSON text (which keeps datasets of
        mixed tasks in one column); its `source_dataset` names the task. A column `question` is handed on if present.
    answer_tag: the tag around the answer; None takes the whole completion. No tags found: the task scores None, which
        is 0.0 for nearly all of them.

    Raises RewardError for metadata without a known `source_dataset`.
    """
    questions = kwargs.get("question", [None] * len(completions))
    scores = []
    for row, (completion, gold, about) in enumerate(zip(completions, answer, metadata, strict=True)):
        details = json.loads(about) if isinstance(about, str) else about
        entry = {"question": questions[row], "answer": gold, "metadata": details}
        text = text_of(completion)
        found = last_tagged(text, answer_tag) if answer_tag else text.strip()
        scores.append(float(_grader(details.get("source_dataset"), row)(found, entry)))
    return scores


def last_tagged(text: str, tag: str) -> str | None:
    """What stands between the last `<tag>` and `</tag>`, without white space around; None if nothing does."""
    found: list[str] = re.findall(f"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, flags=re.DOTALL)
    return found[-1].strip() if found else None


def _grader(task: Any, row: int) -> Callable[[str | None, Mapping[str, Any]], float]:
    if task not in _tasks():
        raise RewardError(
            f"`reasoning_gym_reward` cannot grade row {row}: the `source_dataset` of its `metadata` is {task!r}, which "
            f"is no reasoning-gym task. Keep the `metadata` that reasoning-gym gives with each entry (as a mapping, or "
            f"as JSON text)."
        )
    return _load_grader(task)


@functools.cache
def _load_grader(task: str) -> Callable[[str | None, Mapping[str, Any]], float]:
    dataset_class, config_class = _tasks()[task]
    grader: Callable[[str | None, Mapping[str, Any]], float] = dataset_class(config=config_class()).score_answer
    return grader


@functools.cache
def _tasks() -> Mapping[str, tuple[Any, Any]]:
    """Dataset and config class of every task, by name."""
    with boundary(RewardError, "Importing reasoning-gym (install it: `pip install 'gruppo[tasks]'`)"):
        import reasoning_gym  # registers the tasks
    tasks: Mapping[str, tuple[Any, Any]] = reasoning_gym.factory.DATASETS
    return tasks
