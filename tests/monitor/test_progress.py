"""The plain line's format, the live panel, and that the display never reaches the training loop."""

import io
import logging
from math import nan

import pytest
from rich.console import Console

from gruppo.monitor.progress import ASCII_SPARKS, Progress, format_seconds, sparkline

METRICS = {
    "reward": 0.53,
    "completions/mean_length": 14.25,
    "entropy": 1.8311,
    "grad_norm": 0.40777,
    "perf/tokens_per_second": 812.4,
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(is_terminal=False, is_on=True, **kwargs):
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=is_terminal, width=60, color_system=None, **kwargs)
    return Progress(is_on, console=console, clock=clock), output, clock


def test_one_plain_line_per_log():
    progress, output, clock = shown()
    progress.start(200)
    progress.phase("generate")
    progress.step(11, METRICS, is_log=False)
    clock.now = 12.0
    progress.step(12, METRICS)
    progress.message("step 12: [red]half[/] of the answers are cut at 64 tokens " + "x" * 60)
    progress.step(13, {"reward": nan, "entropy": None})
    progress.close()
    assert output.getvalue().splitlines() == [
        "step 12/200  reward 0.53  len 14.25  entropy 1.83  grad 0.408  tok/s 812  eta 3m08s",
        "step 12: [red]half[/] of the answers are cut at 64 tokens " + "x" * 60,
        "step 13/200  reward -  len -  entropy -  grad -  tok/s -  eta 2m53s",
    ]


def test_eta_after_a_resume_counts_this_attempt_only():
    progress, output, clock = shown()
    progress.start(200, first_step=100)
    progress.step(100, METRICS)
    clock.now = 10.0
    progress.step(110, METRICS)
    etas = [line.split("eta ")[1] for line in output.getvalue().splitlines()]
    assert etas == ["-", "1m30s"]


def test_off_is_silent():
    for is_terminal in (False, True):
        progress, output, _ = shown(is_terminal, is_on=False)
        progress.start(3)
        progress.step(1, METRICS)
        progress.message("hello")
        progress.close()
        assert output.getvalue() == ""


def test_a_terminal_gets_a_live_panel():
    progress, output, clock = shown(is_terminal=True)
    progress.start(10)
    progress.phase("generate")
    for step in range(1, 5):
        clock.now = float(step)
        progress.step(step, METRICS | {"reward": step / 4})
    progress.message("checkpoint-4 saved")
    progress.close()
    progress.close()
    text = output.getvalue()
    last = text[text.rindex("gruppo") :]
    for part in ("step 4/10", "eta 6s", "generate", "reward 1", "len 14.25", "tok/s 812", "▁▃▆█", "checkpoint-4 saved"):
        assert part in last
    assert "\nstep 4/10  reward" not in text


def test_notebooks_get_plain_lines():
    progress, output, _ = shown(is_terminal=True, force_jupyter=False)
    progress._console.is_jupyter = True
    printed = []
    progress._console.print = lambda text, **kwargs: printed.append(str(text))
    progress.start(10)
    progress.step(1, METRICS)
    assert progress._live is None
    assert printed == ["step 1/10  reward 0.53  len 14.25  entropy 1.83  grad 0.408  tok/s 812  eta 0s"]
    assert output.getvalue() == ""


def test_an_error_switches_the_display_off(caplog):
    progress, output, _ = shown()
    progress.start(10)
    with caplog.at_level(logging.WARNING, logger="gruppo.monitor.progress"):
        progress.step(1, {"reward": "not a number"})
        progress.step(2, METRICS)
        progress.close()
    assert output.getvalue() == ""
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("values", "line"), [([], ""), ([0.0, 0.5, 1.0], ".=#"), ([2.0, 2.0], "+="[1] * 2), ([-1.0, 1.0], ".#")]
)
def test_sparkline(values, line):
    assert sparkline(values, ".=#") == line


def test_spark_ramps_have_the_same_length():
    assert len(ASCII_SPARKS) == 8


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0s"), (59.6, "1m00s"), (80, "1m20s"), (7500, "2h05m"), (3 * 86400 + 4 * 3600, "3d04h")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
