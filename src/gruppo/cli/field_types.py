"""Types of option fields, in words and as the command line takes them. Not where values are checked."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def type_hints(cls: type[Any]) -> dict[str, Any]:
    """Field name -> its type, without constraints."""
    return get_type_hints(cls)


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def takes_none(hint: Any) -> bool:
    return type(None) in members(hint)


def takes_dict(hint: Any) -> bool:
    return any(get_origin(member) is dict for member in members(hint))


def in_words(hint: Any) -> str:
    """`int or none`, `token or sequence`, `list of text`."""
    # JSON text is another way to write a dictionary, not another kind of value.
    kinds = [member for member in members(hint) if not (takes_dict(hint) and member is str)]
    return " or ".join(dict.fromkeys(_word(kind) for kind in kinds))


_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "none"}


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {_word(get_args(kind)[0])}s".replace("texts", "text")
    return "table" if get_origin(kind) is dict else _WORDS[kind]
