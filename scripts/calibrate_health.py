"""False alarms and misses of the health checks on runs whose fate is known, as a Markdown table.

    python scripts/calibrate_health.py --healthy runs/ok1 runs/ok2 --broken D05=runs/cut D13=runs/paid

A false alarm: a WARN or ALERT on a healthy run. A miss: a broken run on which its check says neither. "at" is the
first WARN or ALERT as a share of the broken run. It judges runs that exist; it makes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from gruppo.monitor.health.audit import Audit, audit
from gruppo.monitor.health.table import DETECTORS


@dataclass(frozen=True)
class Broken:
    """A run that was broken for one check."""

    detector: str
    found: Audit

    @property
    def first_step(self) -> int | None:
        steps = [f.step for f in self.found.findings if f.detector == self.detector and f.severity != "INFO"]
        return min(steps, default=None)


def table(healthy: Sequence[Audit], broken: Sequence[Broken]) -> str:
    """One line per check."""
    lines = [
        "| check | healthy runs with WARN | with ALERT | broken runs | missed | first alarm at |",
        "|" + "---|" * 6,
    ]
    for name, detector in DETECTORS.items():
        said = [{f.severity for f in found.findings if f.detector == name} for found in healthy]
        mine = [run for run in broken if run.detector == name]
        firsts = [(run.first_step, run.found.num_steps) for run in mine]
        shares = ", ".join(f"{step / total:.0%}" for step, total in firsts if step is not None)
        cells = (
            f"{name} {detector.name}",
            f"{sum('WARN' in severities for severities in said)}/{len(healthy)}",
            f"{sum('ALERT' in severities for severities in said)}/{len(healthy)}",
            str(len(mine)),
            str(sum(step is None for step, _ in firsts)),
            shares or "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    healthy: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN", help="Folders of healthy runs.")] = (),
    broken: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ID=RUN", help="Broken runs, as D05=runs/cut.")] = (),
) -> None:
    """Print the table."""
    pairs = [entry.partition("=") for entry in broken]
    print(table([audit(run) for run in healthy], [Broken(name, audit(run)) for name, _, run in pairs]))


if __name__ == "__main__":
    tyro.cli(main)
