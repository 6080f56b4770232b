"""A report's contents as one HTML page. All text that is not ours goes through `escaped`; there are no scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gruppo.monitor.report.contents import ABSENT, Contents, Evaluations, Setting
from gruppo.monitor.report.curves import Chart, Series, extent_of
from gruppo.monitor.report.numbers import Line, shown
from gruppo.monitor.report.samples import Sample
from gruppo.monitor.report.svg import chart_svg
from gruppo.monitor.report.untrusted import escaped, flat
from gruppo.monitor.server.verdict import SEVERITY_LEVELS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Should something of the run's text ever get through, it can neither run nor ask anything of anyone."""

MAX_FINDINGS = 100
MAX_EVALUATIONS = 20


def page(contents: Contents) -> str:
    """The whole file."""
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    sections = (_header, _verdict, _numbers, _charts, _findings, _evaluations, _phases, _samples, _settings)
    body = "\n".join(section(contents) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_plain(contents.name)} · gruppo report</title>
<style>
{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _header(contents: Contents) -> str:
    made = datetime.fromtimestamp(contents.made, UTC).strftime("%Y-%m-%d %H:%M UTC")
    num_attempts = len(contents.status.run["attempts"])
    words = [contents.status.state, f"{num_attempts} attempts" if num_attempts > 1 else "", *_machine(contents)]
    told = " · ".join(_bdi(word) for word in words if word)
    return f"<header><h1>{_bdi(contents.name)}</h1><p>{told} · read {made}</p></header>"


def _machine(contents: Contents) -> list[str]:
    device, versions = contents.device, contents.versions
    named = [f"{device.get('count', 1)} × {device['name']} ({device.get('type')})"] if "name" in device else []
    return named + [f"{name} {versions[name]}" for name in ("gruppo", "torch") if name in versions]


def _verdict(contents: Contents) -> str:
    found = contents.verdict
    facts = "".join(
        f'<li class="{fact["level"]}"><span class="level">{fact["level"]}</span> {_bdi(fact["text"])}</li>'
        for fact in found["facts"]
    )
    return f"""<section class="card verdict {found["level"]}" aria-label="Verdict">
<p><span class="level">{found["level"].upper()}</span> {_bdi(found["text"])}</p><ul>{facts}</ul></section>"""


def _numbers(contents: Contents) -> str:
    rows = [[_bdi(number.name), _bdi(number.text())] for number in contents.numbers]
    return _section(
        "In numbers", f'<div class="narrow">{_table(("", ""), rows)}</div>' if rows else _empty("No step was recorded.")
    )


def _charts(contents: Contents) -> str:
    extent = extent_of(contents.charts)
    figures = "\n".join(_figure(chart, extent) for chart in contents.charts)
    return _section("Curves", f'<div class="charts">{figures}</div>')


def _figure(chart: Chart, extent: tuple[int, int]) -> str:
    drawn = _empty(chart.empty)
    if chart.series:
        legend = "".join(_legend(chart, series, position) for position, series in enumerate(chart.series))
        drawn = f'{chart_svg(chart, extent)}<ul class="legend">{legend}</ul>'
    return (
        f"<figure><figcaption><h3>{escaped(chart.title)}</h3><p>{escaped(chart.note)}</p></figcaption>{drawn}</figure>"
    )


def _legend(chart: Chart, series: Series, position: int) -> str:
    values = series.finite()
    low, high, last = (shown(value, chart.kind) for value in (min(values), max(values), series.last()))
    swatch = (
        '<svg viewBox="0 0 26 10" aria-hidden="true">'
        f'<line class="line line{position}" x1="2" x2="24" y1="5" y2="5"/></svg>'
    )
    return f"<li>{swatch}{_bdi(series.label)}: {last} at the end, {low} to {high}</li>"


def _findings(contents: Contents) -> str:
    shown_ones = list(reversed(contents.findings))[:MAX_FINDINGS]
    cards = "\n".join(_finding(finding) for finding in shown_ones)
    more = len(contents.findings) - len(shown_ones)
    rest = f'<p class="note">{more} earlier ones are not shown.</p>' if more else ""
    note = f'<p class="note">{escaped(contents.findings_source)} Hints, not proof; latest first.</p>'
    return _section("Findings", f"{note}{cards}{rest}" if cards else _empty("The health checks found nothing."))


def _finding(finding: Line) -> str:
    level = SEVERITY_LEVELS.get(str(finding.get("severity")), "info")
    word = "cleared" if finding.get("is_cleared") else str(finding.get("severity"))
    rows = finding.get("evidence")
    named = [f"g{row.get('group_id')}s{row.get('sample')}" for row in rows or () if isinstance(row, dict)]
    more = [str(finding.get("advice") or ""), f"Rows: {' '.join(named)}" if named else ""]
    more.append(str(finding.get("docs") or ""))
    lines = "".join(f'<p class="facts">{_bdi(line)}</p>' for line in more if line)
    head = f"{_bdi(finding.get('detector'))} {_bdi(finding.get('name'))} · step {_bdi(finding.get('step'))}"
    return (
        f'<article class="card finding {level}"><h3><span class="level">{_bdi(word)}</span> {head}</h3>'
        f"<p>{_bdi(finding.get('message'))}</p>{lines}</article>"
    )


def _evaluations(contents: Contents) -> str:
    tables = "\n".join(_evaluation(evaluations) for evaluations in contents.evaluations)
    return _section("Evaluations", tables or _empty("There was no evaluation."))


def _evaluation(evaluations: Evaluations) -> str:
    rows = [[f"{step:,}", *(shown(value) for value in values)] for step, values in evaluations.rows[-MAX_EVALUATIONS:]]
    names = ["step", *(_bdi(name) for name in evaluations.names)]
    more = len(evaluations.rows) - len(rows)
    rest = f'<p class="note">The last {len(rows)} of {len(evaluations.rows)}.</p>' if more else ""
    return f'<div class="card"><h3>{_bdi(evaluations.split)}</h3>{rest}{_table(names, rows)}</div>'


def _phases(contents: Contents) -> str:
    rows = [
        [_bdi(phase.name), shown(phase.seconds, "seconds"), shown(phase.share, "share")] for phase in contents.phases
    ]
    table = _table(("phase", "seconds per step", "share of the step"), rows)
    return _section(
        "Where the time goes", f'<div class="narrow">{table}</div>' if rows else _empty("No times were recorded.")
    )


def _samples(contents: Contents) -> str:
    found = contents.samples
    if found is None:
        return _section("Completions", _empty("No completions were recorded."))
    sides = "".join(
        f"<div><h3>{title}</h3>{''.join(map(_sample, samples))}</div>"
        for title, samples in (("Best reward", found.best), ("Worst reward", found.worst))
        if samples
    )
    return _section(f"Completions of step {found.step:,}", f'<div class="two">{sides}</div>')


def _sample(sample: Sample) -> str:
    facts = " · ".join(f"{_bdi(name)} <b>{_bdi(value)}</b>" for name, value in sample.facts)
    return (
        f'<article class="card"><p class="facts"><b>{_bdi(sample.name)}</b> · {facts}</p>'
        f'<pre dir="auto">{escaped(sample.completion)}</pre>'
        f'<details><summary>Prompt</summary><pre dir="auto">{escaped(sample.prompt)}</pre></details></article>'
    )


def _settings(contents: Contents) -> str:
    rows = [[_bdi(setting.name), _value(setting.value), _default(setting)] for setting in contents.settings]
    table = _table(("setting", "value", "default"), rows, num_texts=3) if rows else _empty("All are at their defaults.")
    plan = "".join(f"<li>{_bdi(line)}</li>" for line in contents.plan)
    planned = f'<div class="card"><h3>What a step is</h3><ul>{plan}</ul></div>' if plan else ""
    return _section("Settings that differ from the defaults", table + planned)


def _default(setting: Setting) -> str:
    return "" if setting.default is ABSENT else _value(setting.default)


def _value(value: Any) -> str:
    return _bdi(json.dumps(value, ensure_ascii=False, default=str))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escaped(title)}</h2>\n{content}</section>"


def _table(names: Iterable[str], rows: Sequence[Sequence[str]], num_texts: int = 1) -> str:
    """`names` and cells are HTML. The first `num_texts` columns hold text, the others numbers."""

    def cell(tag: str, position: int, content: str) -> str:
        return f'<{tag} class="{"value" if position < num_texts else "n"}">{content}</{tag}>'

    head = "".join(cell("th", position, name) for position, name in enumerate(names))
    body = "".join(f"<tr>{''.join(cell('td', i, content) for i, content in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _empty(text: str) -> str:
    return f'<p class="note">{escaped(text)}</p>'


def _bdi(text: object) -> str:
    """Text of the run within ours: its writing direction stays its own."""
    return f"<bdi>{escaped(text)}</bdi>"


def _plain(text: str) -> str:
    """Where no elements may stand."""
    return escaped(flat(text))
