"""The reward curve as a PNG. Needs matplotlib (the extra `report`); draws to a file and never to a screen."""

from collections.abc import Sequence
from pathlib import Path

Points = Sequence[tuple[int, float]]
"""(step, value)"""


def draw_curve(path: Path, *, rewards: Points, held_out: Points, title: str) -> None:
    """Write the picture: mean reward of the sampled completions, and held-out accuracy where it was measured.

    Raises ModuleNotFoundError without matplotlib.
    """
    # The object interface: pyplot would pick a screen backend and keep figures alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=144, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*rewards, strict=True), color="tab:blue", linewidth=1, alpha=0.7, label="reward, training questions")
    axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", label="accuracy, held-out questions")
    axes.set(xlabel="optimizer step", ylabel="share of right answers", ylim=(0, 1.03), title=title)
    axes.margins(x=0.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    canvas.print_png(str(path))
