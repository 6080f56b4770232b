"""The report's overview as a PNG: verdict and eight curves. matplotlib (extra `report`), and no display."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gruppo.monitor.report.contents import Contents
from gruppo.monitor.report.curves import Chart, extent_of
from gruppo.monitor.report.numbers import shown
from gruppo.monitor.report.untrusted import flat

COLOURS, STYLES = ("#2563b8", "#b4540a", "#2f7d4f"), ("-", "--", ":")
SOFT = "#5a5d63"
TITLE_WIDTH = 150
"""Characters of a line above the charts."""


def draw(contents: Contents, path: Path) -> None:
    """Write the picture, 1600 x 900."""
    figure = Figure(figsize=(16, 9), dpi=100, layout="constrained")
    for axes, chart in zip(figure.subplots(2, 4).flat, contents.charts, strict=True):
        _draw_chart(axes, chart, extent_of(contents.charts))
    verdict = f"{contents.verdict['level'].upper()}: {flat(contents.verdict['text'])}"
    head = [flat(contents.name), *textwrap.wrap(verdict, TITLE_WIDTH, max_lines=3)]
    # Names of runs and outcomes are not ours: no formulas in them.
    figure.suptitle("\n".join(head), x=0.01, ha="left", fontsize=13, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks is drawn as boxes
        figure.savefig(path, format="png")


def _draw_chart(axes: Axes, chart: Chart, extent: tuple[int, int]) -> None:
    axes.set_title(chart.title, loc="left", fontsize=11, parse_math=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=SOFT, labelsize=9)
    if not chart.series:
        axes.text(
            0.5, 0.5, textwrap.fill(chart.empty, 34), ha="center", va="center", transform=axes.transAxes, color=SOFT
        )
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for series, colour, style in zip(
        chart.series, COLOURS * len(chart.series), STYLES * len(chart.series), strict=False
    ):
        values = [float("nan") if value is None else value for value in series.values]
        marker = "o" if series.is_sparse or len(values) == 1 else None
        axes.plot(series.steps, values, style, color=colour, marker=marker, markersize=4, label=flat(series.label))
        if series.low:
            bounds = [
                [float("nan") if value is None else value for value in side] for side in (series.low, series.high)
            ]
            axes.fill_between(series.steps, bounds[0], bounds[1], color=colour, alpha=0.15, linewidth=0)
    if chart.floor is not None:
        axes.set_ylim(bottom=min(chart.floor, axes.get_ylim()[0] if _has_negative(chart) else chart.floor))
    axes.set_xlim(extent[0] - 0.02 * (width := max(1, extent[1] - extent[0])), extent[1] + 0.02 * width)
    axes.grid(axis="y", color="#e8e8ea")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, chart.kind)))
    if len(chart.series) > 1:
        for text in axes.legend(fontsize=9, frameon=False).get_texts():
            text.set_parse_math(False)


def _has_negative(chart: Chart) -> bool:
    return any(value < 0 for series in chart.series for value in series.finite())
