"""`gruppo audit`: all health checks on the records of a run. Exit code 1 if any of them gave an ALERT."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.text import Text

from gruppo.errors import ConfigError
from gruppo.monitor.health.audit import Audit, audit
from gruppo.monitor.health.state import CheckState
from gruppo.monitor.health.table import DETECTORS

STYLES = {"ALERT": "bold red", "WARN": "yellow", "INFO": "cyan"}

OK, HAS_ALERT = 0, 1


def run(argv: list[str]) -> int:
    """Check a run. Returns the exit code."""
    return tyro.cli(check, args=argv, prog="gruppo audit")


def check(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Folder of the run (its output_dir).")],
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object instead of text.")] = False,
    set: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="ID.NAME=X", help="Thresholds, as D05.alert=0.7; D12=off leaves a check out."),
    ] = (),
) -> int:
    """Run the 26 health checks on a run's records: finished, crashed or still going."""
    found = audit(run, _thresholds(set) if set else None)
    if as_json:
        print(json.dumps(as_data(found), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(Console(highlight=False), found)
    return HAS_ALERT if found.has_alert else OK


def as_data(found: Audit) -> dict[str, Any]:
    """The audit as plain JSON values; numbers that are not finite are null."""
    return {
        "run": str(found.run),
        "num_steps": found.num_steps,
        "has_alert": found.has_alert,
        "findings": [_finite(finding.as_dict()) for finding in found.findings],
        "checks": {name: _check_data(name, state) for name, state in sorted(found.checks.items())},
    }


def _check_data(name: str, state: CheckState) -> dict[str, Any]:
    return _finite(
        {
            "name": DETECTORS[name].name,
            "level": state.level,
            "worst": state.worst,
            "since": state.since,
            "value": state.value,
            "threshold": state.threshold,
            "reason": state.reason,
        }
    )


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


def _print(console: Console, found: Audit) -> None:
    for finding in found.findings:
        # Text: reward names and messages must not be read as markup.
        head, _, rest = finding.text().partition("\n")
        console.print(Text(head, style=STYLES[finding.severity]), soft_wrap=True)
        console.print(Text(rest), soft_wrap=True)
    counts: Counter[str] = Counter(state.level for state in found.checks.values())
    said = ", ".join(f"{counts[level]} {word}" for level, word in _WORDS.items() if counts[level])
    steps = "1 step" if found.num_steps == 1 else f"{found.num_steps} steps"
    console.print(f"{steps}, {len(found.checks)} checks: {said}", soft_wrap=True)
    for name, state in sorted(found.checks.items()):
        if state.reason:
            console.print(Text(f"  {name} {DETECTORS[name].name}: {state.reason}", style="dim"), soft_wrap=True)


_WORDS = {
    "alert": "in ALERT",
    "warn": "in WARN",
    "info": "explained",
    "ok": "ok",
    "insufficient": "with too little to go on",
    "na": "not available",
}


def _thresholds(settings: tuple[str, ...]) -> dict[str, Any]:
    """`D05.alert=0.7`, `D12=off` -> what `resolve_limits` takes."""
    thresholds: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        detector, _, key = name.partition(".")
        if text == "off" and not key:
            thresholds[detector] = "off"
            continue
        if not text or not key:
            raise ConfigError(f"--set {setting!r}: write D05.alert=0.7, or D12=off.")
        thresholds.setdefault(detector, {})[key] = _number(text)
    return thresholds


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # `resolve_limits` says what is wrong with it
