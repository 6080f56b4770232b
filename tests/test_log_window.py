"""Between two log lines: unweighted means of what was recorded, as TRL logs them."""

import json
import math

import pytest

from gruppo.log_window import LogWindow
from gruppo.metrics import Last, Max, Mean, Min, Sum


def step(window, loss, reward, *, grad_norm=1.0, learning_rate=0.1):
    window.add({"reward": Mean.of([reward])})
    window.add_loss(loss)
    return window.end_step(grad_norm=grad_norm, learning_rate=learning_rate)


def test_a_step_has_its_own_values():
    window = LogWindow()
    window.add_loss(0.25)
    assert step(window, 0.25, 3.0) == {"loss": 0.5, "grad_norm": 1.0, "learning_rate": 0.1, "reward": 3.0}
    assert step(window, 1.0, 4.0)["reward"] == 4.0


def test_a_line_is_the_mean_of_its_steps_with_the_last_norm_and_rate():
    window = LogWindow()
    step(window, 1.0, 2.0, grad_norm=5.0, learning_rate=0.3)
    step(window, 2.0, 4.0, grad_norm=6.0, learning_rate=0.2)
    assert window.line() == {"loss": 1.5, "grad_norm": 6.0, "learning_rate": 0.2, "reward": 3.0}
    assert list(window.leftovers()) == []
    step(window, 7.0, 8.0)
    assert window.line()["loss"] == 7.0
    assert window.total_loss == 10.0


def test_records_are_averaged_and_not_steps():
    """Two rounds in one step and one in the next: three records, each counts the same (TRL's rule)."""
    window = LogWindow()
    window.add({"reward": Mean.of([1.0])})
    step(window, 0.0, 2.0)
    step(window, 0.0, 6.0)
    assert window.line()["reward"] == 3.0


def test_nan_is_left_out_and_nothing_else_is_nan():
    window = LogWindow()
    window.add({"std": Mean.of([math.nan])})
    assert math.isnan(step(window, 0.0, math.nan)["reward"])
    assert step(window, 0.0, 2.0)["reward"] == 2.0
    line = window.line()
    assert line["reward"] == 2.0
    assert math.isnan(line["std"])


def test_leftovers_are_the_metrics_alone():
    window = LogWindow()
    step(window, 1.0, 2.0)
    assert window.leftovers() == {"reward": 2.0}
    assert window.num_steps == 0
    assert window.total_loss == 1.0


def test_state_survives_json():
    window = LogWindow()
    window.add({"tokens": Last(7.0), "most": Max(3.0), "least": Min(-3.0), "sum": Sum(2.0)})
    step(window, 1.5, 0.1)
    step(window, 1.0, 0.2)
    again = LogWindow.from_state(json.loads(json.dumps(window.state())))
    for one in (window, again):
        one.add({"tokens": Last(9.0), "most": Max(1.0), "least": Min(-5.0), "sum": Sum(2.0)})
        step(one, 0.5, 0.6)
    assert (
        again.line()
        == window.line()
        == pytest.approx(
            {
                "loss": 1.0,
                "grad_norm": 1.0,
                "learning_rate": 0.1,
                "tokens": 9.0,
                "most": 3.0,
                "least": -5.0,
                "sum": 4.0,
                "reward": 0.3,
            }
        )
    )
    assert again.total_loss == 3.0
