"""What may be written for a config value, turned into what is kept: JSON text, YAML's `no`, enums, paths, None.

Only spelling: whether a value makes sense is decided by the field's type and by `config_checks.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from enum import Enum
from typing import Any


def home(value: object) -> object:
    """Text and Path objects, as text with the home folder for a leading `~`; anything else as it is."""
    return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value


def resume(value: object) -> object:
    """A folder, as `home`; True is the newest checkpoint, False none, also as text."""
    words: dict[str, object] = {"true": True, "false": None}
    return words.get(str(value).lower(), home(value))


def path(value: object) -> object:
    """As `home`; None means TRL's default folder."""
    return "trainer_output" if value is None else home(value)


def choice(value: object) -> object:
    """Enum members become their value; YAML reads a bare `no` as False."""
    if value is False:
        return "no"
    return value.value if isinstance(value, Enum) else value


def scale_rewards(value: object) -> object:
    """True and False, as in 2025's scripts."""
    words = {"true": "group", "false": "none"}
    return words.get(str(value).lower(), value)


def top_k(value: object) -> object:
    """None, TRL's default of 2025, means what 0 means: no limit."""
    return 0 if value is None else value


def pad_multiple(value: object) -> object:
    """A number may come as text."""
    if not isinstance(value, str):
        if isinstance(value, int) and value < 1:
            raise ValueError("give a positive number of tokens, 'auto' or None")
        return value
    word = value.lower()
    if word in ("none", "null"):
        return None
    if word != "auto" and not (word.isdigit() and int(word) > 0):
        raise ValueError("give a positive number of tokens, 'auto' or None")
    return word if word == "auto" else int(word)


def trackers(value: object) -> object:
    """One name or several, also as text with commas; a list that only says `none` or `all` is that word."""
    if value is None:
        return "none"
    if isinstance(value, str) and "," in value:
        value = [value]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = [name.strip() for text in value for name in text.split(",") if name.strip()]
    if isinstance(value, list) and len(value) == 1 and value[0] in ("none", "all"):
        return value[0]
    return value


def whole(value: float) -> float:
    """Whole numbers of steps stay integers, so that they print and save as such."""
    return int(value) if value == int(value) else value


def json_dict(value: object) -> object:
    """Text must be a JSON object; mappings become dicts."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f'text must be a JSON object such as {{"key": 1}} ({error})') from None
    if not isinstance(parsed, dict):
        raise ValueError('text must be a JSON object such as {"key": 1}')
    return parsed


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; what JSON has no word for (a dtype, a quantisation config) becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value).removeprefix("torch.")
