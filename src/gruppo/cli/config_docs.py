"""docs/config.md, generated from the sentences under GRPOConfig's fields and from the table of TRL's names.

`python -m gruppo.cli.config_docs > docs/config.md` writes it; a test compares. The page is not edited by hand.
"""

from __future__ import annotations

from typing import Any

from gruppo.cli.field_types import in_words, type_hints
from gruppo.config import FIELD_DOCS, FIELD_GROUPS, GRPOConfig, field_default
from gruppo.config_checks import UNUSUAL
from gruppo.trl_names import TABLE, Entry, Needless, Refused, Renamed

_HEAD = """# GRPOConfig

Generated from `src/gruppo/config.py` by `python -m gruppo.cli.config_docs > docs/config.md`. Do not edit.

Names and defaults are those of TRL 1.16 and transformers' `TrainingArguments`, where they have the field. Every
mistake in a config is reported at construction, all at once, as a `ConfigError` (a `ValueError`). Fields that are
legal but nearly always a mistake are refused unless `allow_unusual` names them: {unusual}.

How the batch fields work together is in [batch-arithmetic.md](batch-arithmetic.md).
"""


def config_page() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD.format(unusual=", ".join(f"`{name}`" for name in UNUSUAL))]
    for group in dict.fromkeys(FIELD_GROUPS.values()):
        names = [name for name in FIELD_GROUPS if FIELD_GROUPS[name] == group]
        parts.append(f"## {group}\n\n" + _table(("field", "values", "default", "meaning"), map(_field_row, names)))
    parts.append("## Other names of TRL's\n\n" + _table(("name", "becomes"), map(_name_row, TABLE.items())))
    return "\n".join(parts)


_HINTS = type_hints(GRPOConfig)


def _field_row(name: str) -> tuple[str, ...]:
    return f"`{name}`", in_words(_HINTS[name]), f"`{field_default(name)!r}`", FIELD_DOCS[name]


def _name_row(item: tuple[str, Entry]) -> tuple[str, ...]:
    name, entry = item
    match entry:
        case Renamed(to=new):
            return f"`{name}`", f"another name for `{new}`"
        case Needless(reason=reason):
            return f"`{name}`", f"accepted; changes nothing: {reason}"
        case Refused(reason=reason, instead=instead):
            return f"`{name}`", f"refused: {reason}. Instead, {instead}"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    print(config_page(), end="")
