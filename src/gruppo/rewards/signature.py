"""Can this function be called with what the trainer will pass? Found out with `inspect`, before anything is loaded.

Two mistakes are common: a function without `**kwargs` that cannot receive all columns, and a function that needs a
column which the dataset lacks. Both are errors that name the remedy.

Not here: what the function returns (`values.py`).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from inspect import Parameter
from typing import Any

from gruppo.errors import RewardError
from gruppo.rewards.protocol import BASE_KEYWORDS, callable_name

NOT_PASSED = frozenset({"prompt", "completion", "completion_ids"})
"""Dataset columns that are not handed on: the rows' own `prompts`, `completions`, `completion_ids` stand for them."""

FORBIDDEN_COLUMNS = ("prompts", "completions")
"""Column names that would be passed twice."""

THE_DATASET = "the dataset"
"""How messages call the rows where nothing else is known of them."""

SAME_MEANING = (
    (
        "answer",
        "solution",
        "ground_truth",
        "gold",
        "target",
        "label",
        "labels",
        "reference",
        "final_answer",
        "response",
    ),
    ("question", "problem", "query", "instruction"),
)
"""Names that datasets use for the same thing; for hints, where spelling is no guide."""


def passed_columns(columns: Collection[str]) -> list[str]:
    """The dataset columns that reward functions receive, sorted."""
    return sorted(set(columns) - NOT_PASSED)


def check_columns(columns: Collection[str]) -> None:
    """Raise RewardError for a column that would collide with the keywords of the protocol."""
    for name in FORBIDDEN_COLUMNS:
        if name in columns:
            raise RewardError(
                f"The dataset has a column `{name}`, but reward functions receive this round's {name} under that name. "
                f"Rename it: `dataset = dataset.rename_column({name!r}, 'dataset_{name}')`."
            )


def own_signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """What the function itself receives, not what a function that it wraps would (`functools.wraps`); None where it
    carries no signature, as some callables made in C."""
    try:
        return inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None


def check_signature(
    function: Callable[..., Any],
    name: str,
    columns: Collection[str] | None,
    *,
    extra_columns_allowed: bool,
    what: str = THE_DATASET,
) -> None:
    """Raise RewardError if `function` cannot be called with the protocol's keywords and `columns`.

    columns: names in the dataset, or None where they are not known yet (then only the fixed keywords are checked).
    extra_columns_allowed: a `rollout_func` may supply columns that the dataset lacks.
    what: how messages call the dataset; an argument's name is also its name in the code that they propose.
    """
    signature = own_signature(function)
    if signature is None:
        return  # the call itself will tell
    parameters = signature.parameters
    given = [*BASE_KEYWORDS, *(column for column in passed_columns(columns or ()) if column not in BASE_KEYWORDS)]
    _check_receives_all(parameters, name, function, given, what)
    if columns is not None and not extra_columns_allowed:
        _check_gets_all(parameters, name, columns, given, what)


def _check_receives_all(parameters: Any, name: str, function: Any, given: list[str], what: str) -> None:
    shown = f"`{callable_name(function)}({', '.join(str(p) for p in parameters.values())})`"
    unnamed = [p.name for p in parameters.values() if p.kind is Parameter.POSITIONAL_ONLY and p.default is p.empty]
    if unnamed:
        raise RewardError(
            f"Reward {shown} takes `{unnamed[0]}` by position only, but reward functions are called with keywords. "
            f"Remove the `/` from its signature."
        )
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    named = {p.name for p in parameters.values() if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
    missing = [keyword for keyword in given if keyword not in named]
    if missing:
        listed = ", ".join(f"`{keyword}`" for keyword in missing)
        raise RewardError(
            f"Reward {shown} cannot receive {listed}: every reward function is called with the completions, the "
            f"columns of {what} and a few helpers, all as keywords. Add `**kwargs` to `{name}`."
        )


def _check_gets_all(parameters: Any, name: str, columns: Collection[str], given: list[str], what: str) -> None:
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    needed = [p.name for p in parameters.values() if p.kind in kinds and p.default is p.empty]
    missing = [parameter for parameter in needed if parameter not in given]
    if missing:
        raise RewardError(_missing_column(name, missing, columns, set(needed), what))


def _missing_column(name: str, missing: list[str], columns: Collection[str], needed: set[str], what: str) -> str:
    wants = ", ".join(f"`{parameter}`" for parameter in missing)
    # `columns` may be those beside the prompt.
    has = ", ".join(f"`{column}`" for column in sorted({"prompt", *columns}))
    if missing[0] in NOT_PASSED:
        plural = {"prompt": "prompts", "completion": "completions"}.get(missing[0], missing[0])
        return f"Reward `{name}` needs {wants}, which is passed as `{plural}` (a list). Rename the parameter."
    nearest = nearest_column(missing[0], [column for column in passed_columns(columns) if column not in needed])
    variable = what.removeprefix("the ")
    remedy = (
        f"Rename: `{variable} = {variable}.rename_column({nearest!r}, {missing[0]!r})`."
        if nearest
        else f"Add the column to {what}, or give the parameter `{missing[0]}` a default."
    )
    plural_s = "s" if len(missing) > 1 else ""
    return f"Reward `{name}` needs column{plural_s} {wants}; {what} has {has}. {remedy}"


def nearest_column(wanted: str, columns: Collection[str]) -> str | None:
    """The column that was probably meant: of similar spelling, or known to mean the same."""
    close = difflib.get_close_matches(wanted, list(columns), n=1, cutoff=0.6)
    if close:
        return close[0]
    for names in SAME_MEANING:
        if wanted in names:
            return next((name for name in names if name in columns), None)
    return None
