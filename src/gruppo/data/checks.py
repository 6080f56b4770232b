"""What a dataset and its prompts must look like. Every failure is a DataError that says what to change.

Pure checks on names and values. Reading datasets is not done here (`prompts.py`).
"""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, Final

from gruppo.errors import DataError

_SYNONYMS: Final = ("question", "query", "instruction", "problem", "input", "text", "messages")
"""Columns that other datasets use for what is called `prompt` here."""

_IMAGE_COLUMNS: Final = ("image", "images")

_REWARD_ARGUMENTS: Final = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")
"""Keyword arguments of every reward function; a column of that name could not reach it."""


def check_columns(columns: Collection[str], what: str) -> None:
    """`prompt` must be there; images cannot be used yet; names of reward arguments are taken."""
    if "prompt" not in columns:
        raise DataError(f"{what} has no column `prompt`; it has {_quoted(columns)}. {_rename_hint(columns)}")
    if images := [name for name in _IMAGE_COLUMNS if name in columns]:
        raise DataError(
            f"{what} has the column {_quoted(images)}: prompts with images are not yet supported. "
            f"For text-only training remove it: `dataset.remove_columns({images})`."
        )
    if taken := [name for name in _REWARD_ARGUMENTS if name in columns]:
        raise DataError(
            f"{what} has the column {_quoted(taken)}, the name of an argument that reward functions receive anyway. "
            f"Rename it: `dataset.rename_column({taken[0]!r}, 'my_{taken[0]}')`."
        )


def check_prompt(content: object, where: str) -> bool:
    """Whether the prompt is conversational; DataError if it is neither text nor messages."""
    if isinstance(content, str):
        return False
    if isinstance(content, Mapping):
        raise DataError(f"{where}: the prompt is a single message. Put it into a list: [{dict(content)!r}].")
    if not isinstance(content, list):
        raise DataError(
            f"{where}: the prompt is {_kind(content)}; it must be a string, or a list of messages such as "
            '[{"role": "user", "content": "..."}].'
        )
    if not content:
        raise DataError(f"{where}: the prompt is an empty list of messages. Remove the row: `dataset.filter(...)`.")
    for number, message in enumerate(content):
        _check_message(message, f"{where}, message {number}")
    return True


def ends_with_assistant(content: str | list[dict[str, Any]]) -> bool:
    return not isinstance(content, str) and content[-1]["role"] == "assistant"


def _check_message(message: object, where: str) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DataError(f'{where} is {message!r}; a message is a dict with "role" and "content".')
    content = message.get("content")
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list) or not all(isinstance(block, Mapping) for block in content):
        raise DataError(f"{where}: content is {_kind(content)}; it must be a string.")
    if kinds := sorted({str(block.get("type")) for block in content} - {"text"}):
        raise DataError(f"{where}: content blocks of type {_quoted(kinds)} are not yet supported; only text is.")


def _rename_hint(columns: Collection[str]) -> str:
    near = get_close_matches("prompt", columns, n=1) or [name for name in _SYNONYMS if name in columns]
    if not near:
        return "Add one: a column of strings, or of message lists."
    return f"Rename: `dataset.rename_column({near[0]!r}, 'prompt')`."


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no columns"


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
