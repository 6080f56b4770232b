"""Refusal: an answer that says no. Raised where the reason is known, turned into JSON at the edge (app.py, the CLI)."""

from __future__ import annotations

from typing import Any, final

from gruppo.errors import GruppoError


@final
class Refusal(GruppoError):  # noqa: N818 - most are no errors of anybody
    """A request that gets no data. `status` is HTTP's, `code` a word for programs, the message is for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)

    def as_dict(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": str(self)}}


def not_found(message: str, code: str = "not_found") -> Refusal:
    return Refusal(404, code, message)


def bad_parameter(name: str, given: object, wanted: str) -> Refusal:
    return Refusal(422, "parameter", f"{name}={given!r} cannot be: {wanted}.")
