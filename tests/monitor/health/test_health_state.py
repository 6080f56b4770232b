"""The fold: hysteresis, one alarm per onset, urgency, explanations, thresholds; and the monitor around it."""

import logging

import pytest

from gruppo.errors import ConfigError
from gruppo.monitor.health import live, state
from gruppo.monitor.health.detector import Detector, Limit
from gruppo.monitor.health.finding import Missing, Reading
from gruppo.monitor.health.live import HealthMonitor
from gruppo.monitor.health.record import eval_record, step_record
from gruppo.monitor.health.rows import Rows
from gruppo.monitor.health.state import HealthState, advance
from gruppo.monitor.health.table import DETECTORS, resolve_limits
from monitor.health.health_fakes import CONFIG, healthy_run, loud, observe

LEVELS = {"o": "ok", "i": "info", "w": "warn", "a": "alert"}


def told(monkeypatch, readings: str, fire=(3, 5)) -> str:
    """The findings of a check that reads `readings`: step and severity, c for cleared; U is an urgent alert, _ is a
    step that it cannot read."""

    def check(window, limits):
        letter = readings[window.now.step - 1]
        if letter == "_":
            return Missing("nothing")
        return Reading(LEVELS[letter.lower().replace("u", "a")], 1.0, limits["limit"], letter, is_urgent=letter == "U")

    row = Detector("D01", "fake", check, ("metrics",), {"limit": Limit(0.5, "")}, "", "", "", "", fire)
    monkeypatch.setattr(state, "DETECTORS", {"D01": row})
    now = HealthState(limits={"D01": {"limit": 0.5}})
    findings = []
    for step in range(1, len(readings) + 1):
        now, news = advance(now, step_record(step, {}))
        findings += news
    return " ".join(f"{f.step}{'c' if f.is_cleared else f.severity[0]}" for f in findings)


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ("ooooo", ""),
        ("owowo", ""),  # two of five
        ("owowow", "6W"),  # three of the last five
        ("wwwwwwww", "3W"),  # said once
        ("wwwaaaaa", "3W 6A"),  # worse: said again
        ("aaaaawwwwwwaaaa", "3A"),  # less bad and bad again is no second onset
        ("waw", "3W"),  # one alert among warnings is a warning
        ("wwwoooow", "3W"),  # four better ones are too few
        ("wwwooooo", "3W 8c"),
        ("wwwoooooww", "3W 8c"),
        ("wwwooooowww", "3W 8c 11W"),  # a second onset
        ("oUooooo", "2A 7c"),  # urgent: at once
        ("w_w_w", "5W"),  # steps that it cannot read count for nothing
        ("iii", "3I"),
        ("iiioooooiii", "3I"),  # an explanation is not cleared and not repeated
        ("iiiooooowww", "3I 11W"),
    ],
)
def test_hysteresis(monkeypatch, readings, expected):
    assert told(monkeypatch, readings) == expected


def test_a_check_may_fire_at_its_first_reading(monkeypatch):
    assert told(monkeypatch, "oaoooooa", fire=(1, 1)) == "2A 7c 8A"


def test_advance_is_pure_and_forgets_all_but_a_bounded_history():
    start = HealthState()
    once, again = (advance(start, step_record(1, {"reward": 1.0}))[0] for _ in range(2))
    assert once == again
    assert start == HealthState()
    now = start
    for step in range(1, 300):
        now, _ = advance(now, step_record(step, {"reward": 1.0}, Rows({"reward": [1.0]}, step)))
    assert [record.step for record in now.baseline] == list(range(1, 21))
    assert [record.step for record in now.recent] == list(range(180, 300))
    assert [record.step for record in now.recent if record.rows] == [299]


def test_a_step_that_is_done_again_replaces_what_came_later():
    now = HealthState()
    for step in (1, 2, 3):
        now, _ = advance(now, step_record(step, {"reward": float(step)}))
    now, _ = advance(now, eval_record(3, "eval", {"eval_reward": 1.0}))
    now, _ = advance(now, step_record(2, {"reward": 20.0}))
    assert [(record.step, record.metrics["reward"]) for record in now.recent] == [(1, 1.0), (2, 20.0)]
    assert now.evals == ()


def test_thresholds_are_merged_and_mistakes_are_reported_all_at_once():
    limits = resolve_limits({"D05": {"alert": 0.7}, "D12": "off"})
    assert limits["D05"] == {"warn": 0.1, "alert": 0.7}
    assert "D12" not in limits
    assert len(limits) == 25
    with pytest.raises(ConfigError) as caught:
        resolve_limits({"d05": {}, "D05": {"allert": 1, "warn": "high"}, "D06": 3})
    text = str(caught.value)
    assert "no check 'd05'. Did you mean 'D05'?" in text
    assert "no threshold of D05 'allert'. Did you mean 'alert'?" in text
    assert "health_thresholds['D05']['warn'] is 'high'; it must be a finite number." in text
    assert "health_thresholds['D06'] is 3; give {threshold: number}, or 'off'." in text


def test_thresholds_decide():
    run = healthy_run()
    for fake in run:
        fake.metrics["completions/clipped_ratio"] = 0.6
    assert ("D05", "ALERT") in loud(observe(run)[1])
    assert loud(observe(run, thresholds={"D05": {"alert": 0.7}})[1]) == {("D05", "WARN")}
    assert loud(observe(run, thresholds={"D05": "off"})[1]) == set()


def test_actions_are_data_for_the_trainer():
    run = healthy_run()
    for fake in run:
        fake.metrics |= {"completions/clipped_ratio": 0.6, "clip_ratio/region_mean": 0.3}
    _, findings = observe(run, actions={"ALERT": "stop", "WARN": "checkpoint", "D09": "pause"})
    assert {f.detector: f.action for f in findings if f.severity != "INFO"} == {"D05": "stop", "D09": "pause"}
    assert {f.action for f in observe(run)[1]} == {"log"}
    with pytest.raises(ConfigError, match=r"'WARNING'; it must be WARN, ALERT or a check's id[\s\S]*'halt'"):
        HealthMonitor(CONFIG, actions={"WARNING": "log", "ALERT": "halt"})


def test_a_check_that_fails_is_switched_off_and_the_others_go_on(monkeypatch, caplog):
    def failing(window, limits):
        raise ZeroDivisionError("oh")

    row = Detector("D06", "fake", failing, ("metrics",), {}, "", "", "", "")
    monkeypatch.setattr(state, "DETECTORS", dict(DETECTORS) | {"D06": row})
    run = healthy_run()
    for fake in run:
        fake.metrics["completions/clipped_ratio"] = 0.6
    with caplog.at_level(logging.WARNING):
        monitor, findings = observe(run)
    assert loud(findings) == {("D05", "ALERT")}
    assert "D06" not in monitor.state.limits
    assert [record.message for record in caplog.records] == [
        "health check D06 failed and is switched off: ZeroDivisionError('oh')"
    ]


def test_rows_that_cannot_be_read_do_not_break_training(monkeypatch, caplog):
    def failing(*args):
        raise UnicodeError("oh")

    monkeypatch.setattr(live, "recorded", failing)
    run = healthy_run()
    for fake in run:
        fake.metrics["completions/clipped_ratio"] = 0.6
    with caplog.at_level(logging.WARNING):
        _, findings = observe(run)
    assert ("D05", "ALERT") in loud(findings)
    assert len(caplog.records) == 1


def test_a_finding_is_plain_json():
    run = healthy_run()
    for fake in run:
        fake.metrics["completions/clipped_ratio"] = 0.625
        fake.columns["finish_reason"][3] = "length"
    finding = next(f for f in observe(run)[1] if f.detector == "D05")
    assert finding.as_dict() == {
        "detector": "D05",
        "name": "truncation",
        "severity": "ALERT",
        "step": 3,
        "value": 0.625,
        "threshold": 0.5,
        "message": finding.message,
        "advice": "Raise it, or check that the model's end token is a stop token.",
        "evidence": [{"step": 3, "group_id": 0, "sample": 3}],
        "docs": "docs/health/D05.md",
        "is_cleared": False,
        "action": "log",
    }
