"""Which Unicode scripts a text is written in, by blocks: coarse, fast, and enough to notice a change of language.

Greek is left out: formulas are full of it. Kana and Han are one script here (Japanese mixes them). It does not tell
languages of one script apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCKS: tuple[tuple[int, str], ...] = (
    (0x0000, ""),
    (0x0041, "latin"),
    (0x005B, ""),
    (0x0061, "latin"),
    (0x007B, ""),
    (0x00C0, "latin"),
    (0x0250, ""),
    (0x0400, "cyrillic"),
    (0x0530, "armenian"),
    (0x0590, "hebrew"),
    (0x0600, "arabic"),
    (0x0700, ""),
    (0x0750, "arabic"),
    (0x0780, ""),
    (0x08A0, "arabic"),
    (0x0900, "devanagari"),
    (0x0980, "bengali"),
    (0x0A00, "indic"),
    (0x0E00, "thai"),
    (0x0E80, "southeast asian"),
    (0x10A0, "georgian"),
    (0x1100, "hangul"),
    (0x1200, "ethiopic"),
    (0x1380, ""),
    (0x1780, "southeast asian"),
    (0x1800, ""),
    (0x1E00, "latin"),
    (0x1F00, ""),
    (0x3040, "han and kana"),
    (0x3100, ""),
    (0x3130, "hangul"),
    (0x3190, ""),
    (0x31F0, "han and kana"),
    (0x3200, ""),
    (0x3400, "han and kana"),
    (0x4DC0, ""),
    (0x4E00, "han and kana"),
    (0xA000, ""),
    (0xAC00, "hangul"),
    (0xD7B0, ""),
    (0xF900, "han and kana"),
    (0xFB00, ""),
    (0xFB1D, "hebrew"),
    (0xFB50, "arabic"),
    (0xFE00, ""),
    (0x20000, "han and kana"),
    (0x32000, ""),
)
"""(first code point, script); no script for digits, signs and emoji."""

NAMES: tuple[str, ...] = ("", *sorted({script for _, script in _BLOCKS if script}))

_STARTS = np.array([start for start, _ in _BLOCKS], dtype=np.uint32)
_SCRIPTS = np.array([NAMES.index(script) for _, script in _BLOCKS])
_ASCII_LETTERS = bytes(range(0x41, 0x5B)) + bytes(range(0x61, 0x7B))


def letters_by_script(text: str) -> NDArray[np.int64]:
    """How many letters the text has of each of NAMES (the first entry, no script, is 0)."""
    counts = np.zeros(len(NAMES), dtype=np.int64)
    if text.isascii():
        raw = text.encode()
        counts[NAMES.index("latin")] = len(raw) - len(raw.translate(None, _ASCII_LETTERS))
        return counts
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    scripts = _SCRIPTS[np.searchsorted(_STARTS, points, side="right") - 1]
    counts += np.bincount(scripts, minlength=len(NAMES))
    counts[0] = 0
    return counts
