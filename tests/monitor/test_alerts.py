"""Alarms at the trackers: wandb's and trackio's own alerts, on fake modules; and what is never sent."""

import logging
import sys
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from gruppo.monitor.alerts import Alerts, health_values
from gruppo.monitor.health.finding import Finding, RowId
from gruppo.monitor.health.state import CheckState


class AlertLevel(Enum):
    INFO, WARN, ERROR = "info", "warn", "error"


WARNING = Finding(
    "D05", "truncation", "WARN", 9, 0.13, 0.1, "13 % cut\x1b[2J", "Raise it.", (RowId(9, 7, 3),), "docs/health/D05.md"
)
ALARM = Finding("D23", "gradient spikes", "ALERT", 12, 5.0, 2.5, "nan", docs="docs/health/D23.md")
EXPLANATION = Finding("D02", "loss of 0", "INFO", 1, 0.0, 0.0, "expected")
CLEARED = Finding("D05", "truncation", "INFO", 30, 0.0, 0.1, "back to normal", is_cleared=True)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """Fake wandb (with a run open) and trackio; what their alert functions were called with."""
    sent: dict[str, list[dict[str, Any]]] = {"wandb": [], "trackio": []}
    run = SimpleNamespace(alert=lambda **given: sent["wandb"].append(given))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(AlertLevel=AlertLevel, run=run))
    trackio = SimpleNamespace(AlertLevel=AlertLevel, alert=lambda **given: sent["trackio"].append(given))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    return sent


@pytest.mark.parametrize("report_to", [["wandb", "trackio"], "trackio", "wandb", ["tensorboard"], "none", None])
def test_alarms_go_to_the_trackers_that_report(sent: dict[str, list[Any]], report_to: Any) -> None:
    alerts = Alerts(report_to)
    for finding in (EXPLANATION, WARNING, ALARM, CLEARED):
        alerts.send(finding)
    for name, given in sent.items():
        is_on = report_to is not None and name in report_to
        assert [(call["title"], call["level"]) for call in given] == (
            [("WARN D05 truncation", AlertLevel.WARN), ("ALERT D23 gradient spikes", AlertLevel.ERROR)] if is_on else []
        )


def test_what_an_alarm_says(sent: dict[str, list[dict[str, Any]]]) -> None:
    Alerts(["wandb"]).send(WARNING)
    assert sent["wandb"][0]["text"] == "Step 9: 13 % cut⟦ESC⟧[2J\nRaise it.\nRows: g7s3\ndocs/health/D05.md"


def test_all_means_those_installed(sent: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gruppo.monitor.alerts.find_spec", lambda name: name == "trackio" or None)
    Alerts(["all"]).send(ALARM)
    assert (len(sent["wandb"]), len(sent["trackio"])) == (0, 1)


def test_wandb_without_a_run_gets_nothing(sent: dict[str, list[Any]]) -> None:
    sys.modules["wandb"].run = None  # type: ignore[attr-defined]
    Alerts(["wandb"]).send(ALARM)
    assert sent["wandb"] == []


def test_a_trackio_without_alerts_gets_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, float]] = []
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(log=logged.append))
    alerts = Alerts(["trackio"])
    alerts.send(WARNING)
    alerts.send(ALARM)
    assert logged == [{"health/D05": 2.0}, {"health/D23": 3.0}]


def test_a_tracker_that_fails_is_left_alone(sent: dict[str, list[Any]], caplog: pytest.LogCaptureFixture) -> None:
    def refuse(**given: Any) -> None:
        raise ConnectionError("gone")

    sys.modules["wandb"].run.alert = refuse  # type: ignore[attr-defined]
    alerts = Alerts(["wandb", "trackio"])
    with caplog.at_level(logging.WARNING):
        alerts.send(WARNING)
        alerts.send(ALARM)
    assert len(sent["trackio"]) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "wandb takes no alarms, training goes on without: ConnectionError('gone')"
    ]


def test_numbers_for_every_tracker() -> None:
    assert health_values({}) == {"health/num_warn": 0.0, "health/num_alert": 0.0}
    checks = {
        "D02": CheckState(level="info", worst="info"),
        "D05": CheckState(level="warn", worst="alert"),
        "D11": CheckState(level="ok", worst="warn"),
        "D12": CheckState(level="na"),
        "D23": CheckState(level="alert", worst="alert"),
    }
    assert health_values(checks) == {
        "health/num_warn": 1.0, "health/num_alert": 1.0, "health/D05": 2.0, "health/D11": 0.0, "health/D23": 3.0,
    }  # fmt: skip
