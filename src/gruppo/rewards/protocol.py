"""What a reward is: the forms a user may give, and the one form that the scorer runs.

A reward function is called with keywords only, all lists aligned (one value per completion):

    prompts, completions, completion_ids     the rows (token ids: EOS included, no padding)
    <every other dataset column>             and every extra field of a `rollout_func`
    trainer_state                            transformers' TrainerState, or None
    log_extra(column, values)                adds a column to the completions table
    log_metric(name, value)                  adds a number to the step's metrics

and returns one float per completion, or None where it abstains. This is TRL's protocol.

Not here: running them (`score.py`), and checking what they can receive (`signature.py`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

Rewards = Sequence[float | None]
"""What a reward function returns: one value per completion. Tensors and arrays of one dimension will do too."""

RewardFunction = Callable[..., Rewards] | Callable[..., Awaitable[Rewards]]

RewardSpec = str | nn.Module | RewardFunction
"""A function (sync or async), an object with `__call__`, a sequence classifier, or a model id or path."""

RewardKind = Literal["sync", "async", "model"]

BASE_KEYWORDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Keywords that every reward function receives, whatever the dataset."""


@dataclass(slots=True)
class RewardSource:
    """One column of the reward table: a function that is ready to be called, or a model that is loaded.

    The trainer may replace `function` by a wrapped model (accelerate's `prepare_model`); nothing else changes.
    """

    name: str
    """Unique in its run; part of the metric names `rewards/<name>/mean` and `rewards/<name>/std`."""
    function: Any
    """The callable, or the `nn.Module` of a reward model."""
    kind: RewardKind
    processing_class: Any = None
    """The tokenizer of a reward model; whatever the user gave (unused) for a function."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """For the reward model's own chat template."""


def callable_name(function: Any) -> str:
    """`__name__` of a function (of the inner one, for partials), or the class name of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def is_async_callable(function: Any) -> bool:
    """Is it an `async def`, an object with an async `__call__`, or a partial of one?"""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(function.__call__)


def unique_names(names: Iterable[str]) -> list[str]:
    """The names, with `_2`, `_3`, ... behind the second and later of equal ones, so that metrics do not collide.

    >>> unique_names(["accuracy", "length", "accuracy"])
    ['accuracy', 'length', 'accuracy_2']
    """
    given = list(names)
    taken = set(given)
    seen: set[str] = set()
    unique = []
    for name in given:
        chosen, count = name, 1
        while chosen in seen or (chosen != name and chosen in taken):
            count += 1
            chosen = f"{name}_{count}"
        seen.add(chosen)
        unique.append(chosen)
    return unique
