"""What a person sees while a run goes on: a live panel in a terminal, one plain line per log elsewhere.

    step 12/200  reward 0.53  len 14.2  entropy 1.83  grad 0.41  tok/s 812  eta 1m20s

The plain line always has these fields in this order, `-` where a value is unknown: it is meant for grep and awk too.
Notebooks get plain lines, which survive in the saved file. This records nothing (`recorder`), and an error in here
never reaches the training loop: the display is switched off instead.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import rich
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

logger = logging.getLogger(__name__)

FIELDS: tuple[tuple[str, str, str], ...] = (
    ("reward", "reward", ".4g"),
    ("len", "completions/mean_length", ".4g"),
    ("entropy", "entropy", ".3g"),
    ("grad", "grad_norm", ".3g"),
    ("tok/s", "perf/tokens_per_second", ".0f"),
)
"""(label, metric, format) of what is shown of each step."""

SPARKS = "▁▂▃▄▅▆▇█"
ASCII_SPARKS = "._-=+*%#"
SPARK_WIDTH = 40
REFRESHES_PER_SECOND = 4


@final
class Progress:
    """The display of one training, on the main process; on others, and with `disable_tqdm`, it stays silent.

    Args:
        is_on: False makes every method do nothing.
        console: where to show it; by default rich's own, on standard output.
        clock: seconds, monotonic.
    """

    def __init__(
        self, is_on: bool = True, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_on = is_on
        self._console = console or rich.get_console()
        self._clock = clock
        self._live: Live | None = None
        self._total = self._first = self._step = 0
        self._started = 0.0
        self._phase = ""
        self._message = ""
        self._metrics: Mapping[str, float | None] = {}
        self._rewards: deque[float] = deque(maxlen=SPARK_WIDTH)

    def start(self, total_steps: int, first_step: int = 0) -> None:
        """Begin at `first_step` steps done (more than 0 when resuming) of `total_steps`."""
        with self._guarded():
            self._total, self._first, self._step = total_steps, first_step, first_step
            self._started = self._clock()
            self._rewards.clear()
            if self._is_on and self._console.is_terminal and not self._console.is_jupyter:
                self._live = Live(
                    get_renderable=self._panel, console=self._console, refresh_per_second=REFRESHES_PER_SECOND
                )
                self._live.start()

    def now(self) -> tuple[int, str]:
        """Optimizer steps done, and the phase that runs."""
        return self._step, self._phase

    def phase(self, name: str) -> None:
        """What runs now: generate, score, update, evaluate, save."""
        self._phase = name

    def step(self, step: int, metrics: Mapping[str, float | None], is_log: bool = True) -> None:
        """`step` optimizer steps are done. The live panel takes every step, plain lines come where `is_log`."""
        with self._guarded():
            self._step, self._metrics = step, metrics
            reward = metrics.get("reward")
            if reward is not None and math.isfinite(reward):
                self._rewards.append(reward)
            if self._is_on and self._live is None and is_log:
                self._print(self._line())

    def message(self, text: str) -> None:
        """A warning or an event: printed at once, and kept in the live panel until the next one."""
        with self._guarded():
            self._message = text
            if self._is_on:
                self._print(text)

    def close(self) -> None:
        """End the live display; what it showed last stays. A second call does nothing."""
        with self._guarded():
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    def _print(self, text: str) -> None:
        # Text: model output and metric names must not be read as markup; soft_wrap: one record is one line.
        self._console.print(Text(text), soft_wrap=True, highlight=False)

    def _line(self) -> str:
        fields = [f"{label} {value}" for label, value in self._values()]
        return "  ".join([f"step {self._step}/{self._total}", *fields, f"eta {format_seconds(self._eta())}"])

    def _values(self) -> list[tuple[str, str]]:
        return [(label, _formatted(self._metrics.get(metric), spec)) for label, metric, spec in FIELDS]

    def _eta(self) -> float | None:
        """Seconds to go at the mean pace since the start of this attempt."""
        num_done = self._step - self._first
        if num_done <= 0:
            return None
        return (self._clock() - self._started) / num_done * (self._total - self._step)

    def _panel(self) -> RenderableType:
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(self._total, 1), completed=self._step, width=SPARK_WIDTH)
        eta = f"eta {format_seconds(self._eta())}"
        head.add_row(bar, f"step {self._step}/{self._total}", eta, Text(self._phase, style="cyan"))
        values = Table.grid(padding=(0, 2))
        values.add_row(*(Text.assemble((label, "dim"), " ", (value, "bold")) for label, value in self._values()))
        is_unicode = "utf" in self._console.encoding.lower()
        sparks = sparkline(self._rewards, SPARKS if is_unicode else ASCII_SPARKS)
        rows: list[RenderableType] = [head, values, Text.assemble(("reward ", "dim"), (sparks, "green"))]
        if self._message:
            rows.append(Text(self._message, style="yellow"))
        return Panel(Group(*rows), expand=False, title="gruppo", title_align="left")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """The boundary between display and training: an error switches the display off, once and for all."""
        try:
            yield
        except Exception as error:
            self._is_on, self._live = False, None
            logger.warning("The progress display failed and is off now: %s: %s", type(error).__name__, error)


def sparkline(values: Sequence[float] | deque[float], sparks: str = SPARKS) -> str:
    """One character per value, from lowest to highest of those shown; a flat line is drawn in the middle."""
    if not values:
        return ""
    low, high = min(values), max(values)
    if low == high:
        return sparks[len(sparks) // 2] * len(values)
    top = len(sparks) - 1
    return "".join(sparks[round((value - low) / (high - low) * top)] for value in values)


def format_seconds(seconds: float | None) -> str:
    """`-`, 45s, 1m20s, 2h05m, 3d04h."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _formatted(value: float | None, spec: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, spec)
