"""A run on one small panel: state, reward curve, a few numbers, last alarms, where to see more. As HTML and as text.

Static: no scripts, nothing is loaded, so a saved notebook and what nbconvert makes of it show it as it was. Where and
when it is shown is decided in run_monitor.py; the whole page is monitor/page, a file to mail is monitor/report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gruppo.monitor.progress import format_seconds, sparkline
from gruppo.monitor.readers import Line, read_events, read_metrics
from gruppo.monitor.report.curves import Chart, charts_of, extent_of
from gruppo.monitor.report.numbers import Kind, number, shown
from gruppo.monitor.report.svg import chart_svg
from gruppo.monitor.report.untrusted import escaped, flat
from gruppo.monitor.server.findings import standing
from gruppo.monitor.server.status import config_of, progress_of, read_facts, signature, status_of
from gruppo.monitor.server.verdict import SEVERITY_LEVELS

NUM_CURVES = 2
"""Of the report's charts: reward, and held-out reward where there is one."""

NUM_ALARMS = 3
SPARK_WIDTH = 40

NUMBERS: tuple[tuple[str, str, Kind], ...] = (
    ("reward", "reward", "number"),
    ("answer length", "completions/mean_length", "number"),
    ("cut off", "completions/clipped_ratio", "share"),
    ("no signal", "frac_reward_zero_std", "share"),
    ("entropy", "entropy", "number"),
    ("gradient norm", "grad_norm", "number"),
    ("tokens per second", "perf/tokens_per_second", "count"),
)
"""(label, metric, unit) of what is shown of the last step."""

STYLE = """
.gruppo-panel { max-width: 900px; font: 14px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
.gruppo-panel p { margin: 4px 0; }
.gruppo-panel .curves, .gruppo-panel .numbers { display: flex; flex-wrap: wrap; gap: 4px 18px; }
.gruppo-panel figure { margin: 6px 0; flex: 1 1 320px; max-width: 440px; }
.gruppo-panel svg { width: 100%; height: auto; }
.gruppo-panel .grid { stroke: currentColor; opacity: 0.15; }
.gruppo-panel .tick { fill: currentColor; font-size: 11px; opacity: 0.7; }
.gruppo-panel .line { fill: none; stroke: #2f7fd6; stroke-width: 2; stroke-linecap: round; }
.gruppo-panel .line1 { stroke: #d9731a; stroke-dasharray: 7 4; }
.gruppo-panel .band0 { fill: #2f7fd6; opacity: 0.18; }
.gruppo-panel .dot0 { fill: #2f7fd6; } .gruppo-panel .dot1 { fill: #d9731a; }
.gruppo-panel .hidden { border: 1px solid currentColor; border-radius: 3px; font-size: 0.8em; padding: 0 2px; }
"""
"""Every rule is kept to the panel, and takes the notebook's own colours for text."""


@dataclass(frozen=True, slots=True)
class Panel:
    """What is shown. `url` is the page's, if one is served."""

    name: str
    run: Path
    state: str
    progress: str
    numbers: Sequence[tuple[str, str]]
    curves: Sequence[Chart]
    extent: tuple[int, int]
    rewards: Sequence[float]
    alarms: Sequence[Line]
    url: str | None


def read_panel(run: Path, url: str | None = None) -> Panel:
    """Read it from the run's files; a run that has written nothing yet has an empty one."""
    lines = read_metrics(run, split=None)
    status = status_of(read_facts(run), signature(run), time.time())
    training = [line for line in lines if line["split"] == "train"]
    progress = progress_of(status, config_of(status.run))
    events = [event for event in read_events(run) if event.get("kind") == "finding"]
    charts = charts_of(lines)
    curves = [chart for chart in charts[:NUM_CURVES] if chart.series]
    return Panel(
        name=run.resolve().name,
        run=run,
        state=status.state if training or status.run["attempts"] else "not started",
        progress=_progress_text(progress["step"], progress["max_steps"], progress["share"], progress["eta_seconds"]),
        numbers=_numbers(lines, training),
        curves=curves,
        extent=extent_of(charts),
        rewards=[value for value in (number(line.get("reward")) for line in training) if value is not None],
        alarms=list(reversed(standing(events, status.run["attempts"])))[:NUM_ALARMS],
        url=url,
    )


def as_text(panel: Panel) -> str:
    """For terminals, logs, and notebooks that show no HTML."""
    lines = [f"{flat(panel.name)}: {panel.state}, {panel.progress}"]
    if panel.rewards:
        lines.append(f"reward  {sparkline(panel.rewards[-SPARK_WIDTH:])}")
    if panel.numbers:
        lines.append("  ".join(f"{flat(name)} {value}" for name, value in panel.numbers))
    lines += [f"{severity:<5} {flat(text)}" for severity, text in map(_alarm, panel.alarms)]
    if not panel.alarms:
        lines.append("no alarm so far")
    lines.append(f"page    {panel.url or _command(panel)}")
    return "\n".join(lines)


def as_html(panel: Panel) -> str:
    """One element that needs nothing else."""
    curves = "".join(
        f"<figure><figcaption>{escaped(chart.title)}</figcaption>{chart_svg(chart, panel.extent)}</figure>"
        for chart in panel.curves
    )
    numbers = "".join(f"<span>{escaped(name)} <b>{escaped(value)}</b></span>" for name, value in panel.numbers)
    alarms = "".join(
        f"<p><b>{escaped(severity)}</b> <bdi>{escaped(text)}</bdi></p>" for severity, text in map(_alarm, panel.alarms)
    )
    link = f'<a href="{escaped(panel.url)}" target="_blank" rel="noreferrer">the page of this run</a>'
    more = link if panel.url else f"more: <code>{escaped(_command(panel))}</code>"
    return f"""<div class="gruppo-panel"><style>{STYLE}</style>
<p><b><bdi>{escaped(panel.name)}</bdi></b> · {escaped(panel.state)} · {escaped(panel.progress)}</p>
<div class="curves">{curves}</div><div class="numbers">{numbers}</div>
{alarms or "<p>No alarm so far.</p>"}<p>{more}</p></div>"""


def _numbers(lines: Sequence[Line], training: Sequence[Line]) -> list[tuple[str, str]]:
    latest = training[-1] if training else {}
    known = [(label, number(latest.get(metric)), kind) for label, metric, kind in NUMBERS]
    found = [(label, shown(value, kind)) for label, value, kind in known if value is not None]
    for split in sorted({str(line["split"]) for line in lines} - {"train"}):
        rewards = [number(line.get(f"{split}_reward")) for line in lines if line["split"] == split]
        if rewards and rewards[-1] is not None:
            found.append((f"{split} reward", shown(rewards[-1])))
    return found


def _progress_text(step: float | None, max_steps: float | None, share: float | None, eta: float | None) -> str:
    if step is None:
        return "no step yet"
    words = f"step {step:,.0f}" + (f" of {max_steps:,.0f}" if max_steps is not None else "")
    words += f" ({share:.0%})" if share is not None else ""
    return words + (f", about {format_seconds(eta)} left" if eta is not None else "")


def _alarm(finding: Line) -> tuple[str, str]:
    severity = str(finding.get("severity"))
    word = "ok" if finding.get("is_cleared") else severity if severity in SEVERITY_LEVELS else "?"
    head = f"{finding.get('detector')} {finding.get('name')}, step {finding.get('step')}"
    return word, f"{head}: {finding.get('message')}"


def _command(panel: Panel) -> str:
    return f"gruppo monitor {panel.run}"
