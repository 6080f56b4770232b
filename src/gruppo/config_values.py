"""Single values that pydantic refuses, in sentences: field, value, reason, remedy.

Which values a field takes stands at the field, in `config.py`; rules across fields are in `config_checks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

T = TypeVar("T")


def construct(make: Callable[..., T], values: Mapping[str, Any]) -> tuple[T, dict[str, str]]:
    """What a pydantic dataclass makes of the sound values, and a sentence for each other one, by name."""
    try:
        return make(**values), {}
    except ValidationError as error:
        sentences: dict[str, str] = {}
        for detail in error.errors():
            name = str(detail["loc"][0])
            sentences.setdefault(name, _sentence(name, values[name], detail))
    return make(**{name: value for name, value in values.items() if name not in sentences}), sentences


REASONS: dict[str, str] = {
    "beta": "A negative weight would drive the policy away from the reference. Set 0 for no KL term.",
    "epsilon": "The ratio is kept above 1 - epsilon, so at most 1 makes sense. Usual is 0.2.",
    "max_completion_length": "It is the token budget of an answer. Usual are 256 to 4096.",
    "num_generations": "A group's answers are compared with each other. Usual are 8 to 16.",
    "reward_weights": "Give one number for each reward function, as in [1.0, 0.5].",
    "temperature": "At 0 all answers of a group are equal and nothing is learnt. Usual is 1.0; for greedy evaluation "
    "set eval_temperature=0.",
    "top_p": "It is a probability. Set 1.0 to sample from all tokens.",
}

_RANGE_WORDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a dictionary",
}


def _sentence(name: str, value: Any, detail: ErrorDetails) -> str:
    """Field, value, reason, remedy."""
    kind, context = detail["type"], detail.get("ctx", {})
    shown = "<HUB_TOKEN>" if name == "hub_token" else repr(value)
    item = detail["loc"][1] if len(detail["loc"]) > 1 else None
    place = f" (entry {item + 1})" if isinstance(item, int) else ""
    if kind == "literal_error":
        text = _choice_sentence(shown, value, str(context["expected"]))
    elif kind in _RANGE_WORDS:
        key, words = _RANGE_WORDS[kind]
        text = f"{shown}{place} must be {words} {context[key]}."
    elif kind in _KINDS:
        text = f"{shown}{place} must be {_KINDS[kind]}."
    else:
        text = f"{shown}{place} cannot be used: {detail['msg'].removeprefix('Value error, ')}."
    reason = REASONS.get(name, "")
    return f"{name}={text}" + (f" {reason}" if reason else "")


def _choice_sentence(shown: str, value: Any, expected: str) -> str:
    words = [word.strip(" '") for word in expected.replace(" or ", ",").split(",") if word.strip(" '")]
    near = _nearest(str(value).lower(), words)
    hint = "" if near is None else f" Did you mean {near!r}?"
    return f"{shown} must be one of {', '.join(words)}.{hint}"


def _nearest(word: str, words: list[str]) -> str | None:
    """The first of those that begin most like `word`, four letters at least; else the most similar; else None."""
    near = get_close_matches(word, words, n=len(words), cutoff=0.4)
    if not near:
        return None
    alike = {name: _num_alike(word, name) for name in words if name in near}
    first = max(alike, key=lambda name: alike[name])
    return first if alike[first] >= 4 else near[0]


def _num_alike(a: str, b: str) -> int:
    """Letters that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
