"""Text that a model or a dataset wrote, made safe to show: every invisible character becomes a label, HTML is escaped.

Bidirectional overrides could make a line read differently from what it says, zero-width characters could hide words.
The set of characters is that of the monitor page (untrusted.js), but joiners within emoji are labelled too. Line
feeds and tabs stay as they are.
"""

from __future__ import annotations

import html
import re

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

NAMES = {
    0x00: "NUL", 0x07: "BEL", 0x08: "BS", 0x0D: "CR", 0x1B: "ESC", 0x7F: "DEL", 0xAD: "SHY", 0x61C: "ALM",
    0x200B: "ZWSP", 0x200C: "ZWNJ", 0x200D: "ZWJ", 0x200E: "LRM", 0x200F: "RLM", 0x2028: "LS", 0x2029: "PS",
    0x202A: "LRE", 0x202B: "RLE", 0x202C: "PDF", 0x202D: "LRO", 0x202E: "RLO", 0x2060: "WJ", 0x2066: "LRI",
    0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xFEFF: "BOM",
}  # fmt: skip
"""Code point -> its usual short name; all others are called by number."""


def flat(text: object) -> str:
    """One plain string, labels in brackets: for terminals, pictures and attributes. Not escaped for HTML."""
    return HIDDEN.sub(lambda found: f"⟦{_label(found[0])}⟧", str(text))


def escaped(text: object) -> str:
    """HTML: escaped, invisible characters as small labels. For element content; `bdi` around it is the caller's."""
    safe = html.escape(str(text))
    return HIDDEN.sub(lambda found: f'<span class="hidden">{_label(found[0])}</span>', safe)


def _label(character: str) -> str:
    code = ord(character)
    return NAMES.get(code, f"U+{code:04X}")
