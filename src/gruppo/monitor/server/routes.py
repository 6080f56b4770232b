"""The table of data routes: pattern, parameters, and the function that answers. HTTP and the command line share it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

from gruppo.monitor.server.checks import answer_check
from gruppo.monitor.server.compare import answer_compare
from gruppo.monitor.server.completion import answer_completion, answer_text, answer_tokens
from gruppo.monitor.server.findings import Auditor, answer_health
from gruppo.monitor.server.groups import answer_group, answer_groups
from gruppo.monitor.server.prompts import answer_history
from gruppo.monitor.server.query import Query
from gruppo.monitor.server.refusal import not_found
from gruppo.monitor.server.reward_rows import answer_rewards
from gruppo.monitor.server.rollouts import answer_rollouts
from gruppo.monitor.server.store import Store
from gruppo.monitor.server.summary import answer_evals, answer_events, answer_metrics, answer_run, answer_runs

Answer = Callable[[Store, Mapping[str, str], Query], dict[str, Any]]

ARGUMENTS = {
    "run": r"[A-Za-z0-9_-]{1,100}",
    "step": r"[0-9]{1,12}",
    "group_id": r"-?[0-9]{1,19}",
    "prompt_id": r"-?[0-9]{1,19}",
    "id": r"[A-Za-z0-9_.~-]{1,300}",
    "check": r"[A-Z][0-9]{2}",
}
"""What may stand in a path. Nothing else reaches a handler, and no handler makes a path of it."""


class Route(NamedTuple):
    """`pattern` is below `api/`, with names of ARGUMENTS in braces."""

    pattern: str
    parameters: tuple[str, ...]
    answer: Answer


def make_routes(auditor: Auditor) -> tuple[Route, ...]:
    """All data routes; docs/monitor-api.md describes them in this order."""
    return (
        Route("runs", (), answer_runs),
        Route("runs/{run}", (), _with(auditor, answer_run)),
        Route("runs/{run}/metrics", ("keys", "split", "cursor", "max_points", "from", "to"), answer_metrics),
        Route("runs/{run}/evals", ("max_points",), answer_evals),
        Route("runs/{run}/steps/{step}/groups", ("split", "sort", "page", "per_page"), answer_groups),
        Route("runs/{run}/steps/{step}/groups/{group_id}", ("split",), answer_group),
        Route(
            "runs/{run}/rollouts",
            ("step", "from", "to", "split", "filter", "sort", "page", "per_page"),
            answer_rollouts,
        ),
        Route("runs/{run}/rollouts/{id}", (), answer_completion),
        Route("runs/{run}/rollouts/{id}/text", ("field", "offset", "limit"), answer_text),
        Route("runs/{run}/tokens/{id}", ("offset", "limit"), answer_tokens),
        Route("runs/{run}/prompts/{prompt_id}/history", ("split", "before", "limit"), answer_history),
        Route("runs/{run}/rewards", ("from", "to", "split", "max_rounds", "max_rows"), answer_rewards),
        Route("runs/{run}/events", ("since", "kind", "limit"), answer_events),
        Route("runs/{run}/health", (), _with(auditor, answer_health)),
        Route("runs/{run}/health/{check}", (), answer_check),
        Route("compare", ("a", "b", "keys", "max_points"), answer_compare),
    )


@final
class Api:
    """Answers requests for data. Methods may be called from several threads."""

    def __init__(self, store: Store) -> None:
        self.store, self.auditor = store, Auditor()
        self.routes = make_routes(self.auditor)
        self._patterns = [(path_pattern(route.pattern), route) for route in self.routes]

    def answer(self, path: str, parameters: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """The answer to a path below `api/`, decoded.

        Raises:
            Refusal: no such route, run, row, ...
        """
        for pattern, route in self._patterns:
            match = pattern.fullmatch(path)
            if match:
                return self._answer(route, match.groupdict(), Query(parameters, route.parameters))
        raise not_found(f"There is no route {path[:100]!r}; docs/monitor-api.md lists them.")

    def answer_whole(self, path: str, parameters: list[tuple[str, str]]) -> dict[str, Any]:
        """The answer once large files are read and audits are done: what a client gets that asks until `complete`."""
        answer, before = self.answer(path, parameters), None
        while answer.get("complete") is False and answer != before:
            self.auditor.wait()
            answer, before = self.answer(path, parameters), answer
        return answer

    def _answer(self, route: Route, args: Mapping[str, str], query: Query) -> dict[str, Any]:
        try:  # the boundary to folders that others may delete or move at any moment
            return route.answer(self.store, args, query)
        except FileNotFoundError as error:
            raise not_found(f"It vanished while it was read: {Path(error.filename or '').name}.") from error

    def close(self) -> None:
        self.auditor.close()


def path_pattern(pattern: str) -> re.Pattern[str]:
    """`runs/{run}` as a regular expression."""
    return re.compile(re.sub(r"\{(\w+)\}", lambda match: f"(?P<{match[1]}>{ARGUMENTS[match[1]]})", pattern))


def to_bytes(answer: Mapping[str, Any]) -> bytes:
    """Strict JSON in UTF-8; a lone surrogate stays the escape that it was."""
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def _with(auditor: Auditor, answer: Callable[[Store, Auditor, Mapping[str, str], Query], dict[str, Any]]) -> Answer:
    return lambda store, args, query: answer(store, auditor, args, query)
