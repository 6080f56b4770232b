"""One chart as inline SVG: no script, no style of its own (report.css has the colours, for light and dark)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from gruppo.monitor.report.curves import Chart, Series
from gruppo.monitor.report.numbers import shown
from gruppo.monitor.report.untrusted import escaped

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 22
NUM_TICKS = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """Steps and values -> points of the drawing."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        width = WIDTH - LEFT - RIGHT
        if self.last == self.first:
            return LEFT + width / 2
        return round(LEFT + width * (step - self.first) / (self.last - self.first), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)


def chart_svg(chart: Chart, extent: tuple[int, int]) -> str:
    """The drawing. `extent`: first and last step of the run, so that all charts of a report line up."""
    values = [value for series in chart.series for value in series.finite()]
    ticks = axis_ticks(min(values), max(values), chart.floor)
    scale = Scale(*extent, ticks[0], ticks[-1])
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_attribute(_spoken(chart))}">',
        *(_tick(scale, tick, shown(tick + 0.0, chart.kind)) for tick in ticks),
        *_steps(scale),
        *(_series(scale, series, position) for position, series in enumerate(chart.series)),
        "</svg>",
    ]
    return "".join(parts)


def axis_ticks(low: float, high: float, floor: float | None) -> list[float]:
    """Round numbers around the values, about NUM_TICKS of them, at least two."""
    if floor is not None:
        low, high = min(low, floor), max(high, floor)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        high, low = high + (abs(high) / 2 or 1.0), low - (abs(low) / 2 if floor is None else 0.0)
    rough = (high - low) / NUM_TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    unit = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    return [float(f"{unit * index:.12g}") for index in range(first, last + 1)]


def _spoken(chart: Chart) -> str:
    ends = [f"{series.label} is {shown(series.last(), chart.kind)} at the end" for series in chart.series]
    return f"{chart.title}: {'; '.join(ends)}"


def _attribute(text: str) -> str:
    return escaped(text).replace("<", "").replace(">", "")


def _tick(scale: Scale, value: float, text: str) -> str:
    y = scale.y(value)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{escaped(text)}</text>'
    )


def _steps(scale: Scale) -> list[str]:
    y = HEIGHT - 6
    marks = [(scale.first, "start"), (scale.last, "end")] if scale.last > scale.first else [(scale.first, "middle")]
    return [
        f'<text class="tick" x="{scale.x(step)}" y="{y}" text-anchor="{anchor}">step {step:,.0f}</text>'
        for step, anchor in marks
    ]


def _series(scale: Scale, series: Series, position: int) -> str:
    band = _band(scale, series, position)
    line = "".join(_path(scale, run) for run in _runs(series.steps, series.values))
    dots = ""
    if series.is_sparse:
        pairs = zip(series.steps, series.values, strict=True)
        dots = "".join(
            f'<circle class="dot{position}" cx="{scale.x(step)}" cy="{scale.y(value)}" r="3.5"/>'
            for step, value in pairs
            if value is not None
        )
    return f'{band}<path class="line line{position}" d="{line}"/>{dots}'


def _band(scale: Scale, series: Series, position: int) -> str:
    """The shade between lowest and highest of the steps behind each point."""
    if not series.low:
        return ""
    known = [
        (step, low, high)
        for step, low, high in zip(series.steps, series.low, series.high, strict=True)
        if low is not None and high is not None
    ]
    there = [f"{scale.x(step)} {scale.y(high)}" for step, _, high in known]
    back = [f"{scale.x(step)} {scale.y(low)}" for step, low, _ in reversed(known)]
    return f'<path class="band{position}" d="M{"L".join(there + back)}Z"/>'


def _runs(steps: Sequence[int], values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The stretches without a gap."""
    pairs = zip(steps, values, strict=True)
    stretches = groupby(pairs, key=lambda pair: pair[1] is None)
    return [[(s, v) for s, v in stretch if v is not None] for is_gap, stretch in stretches if not is_gap]


def _path(scale: Scale, points: Sequence[tuple[int, float]]) -> str:
    path = "L".join(f"{scale.x(step)} {scale.y(value)}" for step, value in points)
    # A line of no length is drawn as a dot, because its caps are round.
    return f"M{path}" + ("h0" if len(points) == 1 else "")
