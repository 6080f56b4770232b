"""Per-completion numbers that are read from the text alone: loops, copies of the prompt, twins, foreign scripts.

`text_features` gives the columns rep4_tail, zlib_tail, copy8, dup_of and script_share of the recorder's schema. They
are the same live and offline, because both read the same text. None means: too short to say.
Gibberish needs token probabilities and is in token_features.py.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gruppo.monitor.health.scripts import letters_by_script

MIN_UNITS = 24
"""Words (or characters) in the tail below which nothing is said about loops."""

MIN_LETTERS = 20
"""Letters below which nothing is said about scripts."""

CHARACTERS_PER_WORD = 16
"""Longer words than this on average mean that the text has no spaces: then its units are characters."""

MAX_CHARACTERS = 100_000
"""Only this much of a completion's end, and of a prompt's, is looked at: a step's cost stays bounded."""

EIGHT = b"\1" * 8

TEXT_COLUMNS = ("rep4_tail", "zlib_tail", "copy8", "dup_of", "script_share")


def text_features(
    prompts: Sequence[str], completions: Sequence[str], group_ids: Sequence[int], samples: Sequence[int]
) -> dict[str, list[Any]]:
    """One value per completion and column. `prompts` are plain text (see `prompt_text`), one per completion.

    rep4_tail: share of the 4-grams of the last half that occurred before in it, 0..1.
    zlib_tail: bytes of the last half / bytes that zlib needs for it.
    copy8: share of the completion's 8-grams that are also in the prompt, 0..1.
    dup_of: `sample` of the first sibling with the same text (white space aside), or None.
    script_share: share of letters in scripts that the prompt does not use, 0..1.
    """
    prompts_seen = {prompt: _Prompt.of(prompt[-MAX_CHARACTERS:]) for prompt in dict.fromkeys(prompts)}
    texts = [completion[-MAX_CHARACTERS:] for completion in completions]
    words_N = [text.split() for text in texts]
    firsts: dict[Any, int] = {}
    for row in sorted(range(len(texts)), key=lambda row: (group_ids[row], samples[row])):
        firsts.setdefault((group_ids[row], tuple(words_N[row])), samples[row])
    columns: dict[str, list[Any]] = {name: [] for name in TEXT_COLUMNS}
    for row, (text, words) in enumerate(zip(texts, words_N, strict=True)):
        prompt, first = prompts_seen[prompts[row]], firsts[group_ids[row], tuple(words)]
        parts = _units(text, words)
        columns["rep4_tail"].append(repetition(parts))
        columns["zlib_tail"].append(compression(text))
        columns["copy8"].append(_copied(parts, prompt))
        columns["dup_of"].append(None if first == samples[row] else first)
        columns["script_share"].append(_foreign(text, prompt.letters))
    return columns


class _Prompt(NamedTuple):
    """What is looked up in a prompt."""

    units: frozenset[str]
    grams: frozenset[tuple[str, ...]]
    letters: NDArray[np.int64]

    @classmethod
    def of(cls, text: str) -> _Prompt:
        parts = _units(text, text.split())
        return cls(frozenset(parts), frozenset(_grams(parts, 8)), letters_by_script(text))


def prompt_text(prompt: str, prompt_format: str) -> str:
    """The words of a recorded prompt: of `messages` the text of all contents."""
    if prompt_format != "messages":
        return prompt
    try:
        messages = json.loads(prompt)
    except json.JSONDecodeError:
        return prompt
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    return "\n".join(content if isinstance(content, str) else json.dumps(content) for content in contents)


def _units(text: str, words: list[str]) -> list[str]:
    """Words; characters where the text has (nearly) no spaces."""
    return words if len(words) * CHARACTERS_PER_WORD >= len(text) else list(text)


def repetition(words: Sequence[str]) -> float | None:
    """1 - different / all 4-grams of the last half."""
    tail = words[len(words) // 2 :]
    if len(tail) < MIN_UNITS:
        return None
    num_grams = len(tail) - 3
    return 1 - len(set(_grams(tail, 4))) / num_grams


def compression(text: str) -> float | None:
    """Bytes / compressed bytes of the last half."""
    tail = text[len(text) // 2 :].encode("utf-8", "surrogatepass")
    return len(tail) / len(zlib.compress(tail, 1)) if len(tail) >= 200 else None


def _grams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _copied(words: Sequence[str], prompt: _Prompt) -> float | None:
    num_grams = len(words) - 7
    if num_grams < 1:
        return None
    # Nearly all texts are done here: eight words in a row that the prompt has, in whatever order, are rare.
    if EIGHT not in bytes(map(prompt.units.__contains__, words)):
        return 0.0
    return sum(map(prompt.grams.__contains__, _grams(words, 8))) / num_grams


def _foreign(completion: str, prompt_letters: NDArray[np.int64]) -> float | None:
    if not prompt_letters.any():  # a prompt of numbers and signs has no script
        return None
    letters = letters_by_script(completion)
    num_letters = int(letters.sum())
    return float(letters[prompt_letters == 0].sum() / num_letters) if num_letters >= MIN_LETTERS else None
