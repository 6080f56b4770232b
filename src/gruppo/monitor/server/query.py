"""Query: the parameters of a request, checked as they are read. What is wrong is a Refusal that names the parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

from gruppo.monitor.server.refusal import bad_parameter

MAX_VALUE_CHARS = 2000
MAX_VALUES = 100
"""Repeats of one parameter."""

LARGEST = 10**12


@final
class Query:
    """(name, value) pairs in the order given."""

    def __init__(self, pairs: Iterable[tuple[str, str]], known: Iterable[str]) -> None:
        self._values: dict[str, list[str]] = {}
        names = sorted(known)
        for name, value in pairs:
            if name not in names:
                raise bad_parameter(name[:100], value[:100], f"known parameters are {', '.join(names) or 'none'}")
            if len(value) > MAX_VALUE_CHARS:
                raise bad_parameter(name, value[:100] + "...", f"at most {MAX_VALUE_CHARS} characters")
            self._values.setdefault(name, []).append(value)
            if len(self._values[name]) > MAX_VALUES:
                raise bad_parameter(name, value[:100], f"at most {MAX_VALUES} of them")

    def many(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def text(self, name: str) -> str | None:
        """The last value, or None."""
        values = self._values.get(name)
        return values[-1] if values else None

    def number(self, name: str, default: int, low: int = 0, high: int = LARGEST) -> int:
        """A whole number within `low`..`high`, or the default."""
        value = self.maybe_number(name, low, high)
        return default if value is None else value

    def maybe_number(self, name: str, low: int = 0, high: int = LARGEST) -> int | None:
        given = self.text(name)
        if given is None:
            return None
        if not (given.isascii() and given.isdigit() and len(given) <= 13 and low <= int(given) <= high):
            raise bad_parameter(name, given[:100], f"give a whole number from {low} to {high}")
        return int(given)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of `choices`; the first is the default."""
        given = self.text(name)
        if given is None:
            return choices[0]
        if given not in choices:
            raise bad_parameter(name, given[:100], f"give one of {', '.join(choices)}")
        return given
