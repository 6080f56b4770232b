"""Health checks of a live run: findings are recorded and printed, and actions are carried out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import fakes
from gruppo.errors import ConfigError
from gruppo.monitor.health.audit import audit
from gruppo.monitor.readers import read_events

ALWAYS_CUT: dict[str, Any] = {"max_completion_length": 1, "max_steps": 8}
"""Nearly every answer is cut at one token, so truncation (D05) is found soon."""


def findings(run: Path, detector: str = "D05") -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["kind"] == "finding" and event["detector"] == detector]


def test_a_finding_is_recorded_and_the_audit_finds_the_same(tmp_path: Path) -> None:
    made = fakes.trainer(tmp_path, ALWAYS_CUT)
    made.train()
    live = findings(tmp_path)
    assert [event["severity"] for event in live][:1] == ["WARN"] or live[0]["severity"] == "ALERT"
    offline = [finding.as_dict() for finding in audit(tmp_path).findings if finding.detector == "D05"]
    told = {"detector", "severity", "step", "value", "message"}
    assert [{name: event[name] for name in told} for event in live] == [
        {name: finding[name] for name in told} for finding in offline
    ]


def test_log_lines_count_the_checks_that_stand(tmp_path: Path) -> None:
    made = fakes.trainer(tmp_path, {**ALWAYS_CUT, "logging_steps": 1})
    made.train()
    lines = [line for line in made.state.log_history if "loss" in line]
    assert (lines[0]["health/num_warn"], lines[0]["health/num_alert"]) == (0.0, 0.0)
    last = findings(tmp_path)[-1]
    assert lines[-1]["health/D05"] == {"WARN": 2.0, "ALERT": 3.0}[last["severity"]]
    assert "health/D05" not in lines[last["step"] - 2], "the line before the finding's"


def test_an_action_stops_the_run_and_saves_first(tmp_path: Path) -> None:
    made = fakes.trainer(tmp_path, {**ALWAYS_CUT, "health_actions": {"D05": "pause"}})
    made.train()
    stopped_at = findings(tmp_path)[0]["step"]
    assert made.state.global_step == stopped_at < 8
    assert (tmp_path / f"checkpoint-{stopped_at}" / "manifest.json").exists()


@pytest.mark.parametrize(
    "columns",
    [
        ([None] * 4, [1.0, 2.0, 3.0, None]),
        ([1, 2, 3, 4], [None, "many", 3, 4]),
    ],
    ids=["nothing, then numbers", "numbers, then text"],
)
def test_a_logged_column_may_change_its_type_within_a_step(
    tmp_path: Path, columns: tuple[list[Any], list[Any]]
) -> None:
    """Two generation rounds feed one optimizer step, and their rows are checked together."""
    rounds = iter(columns * 8)

    def logging_reward(completions: list[str], log_extra: Any, **kwargs: Any) -> list[float]:
        log_extra("parsed", next(rounds))
        return fakes.count_twos(completions)

    made = fakes.trainer(tmp_path, {**ALWAYS_CUT, "steps_per_generation": 1}, reward_funcs=logging_reward)
    made.train()
    assert made.state.global_step == 8
    assert findings(tmp_path), "the rows were read"


def test_rows_that_cannot_be_put_together_do_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(tables: Any) -> Any:
        raise pa.ArrowInvalid("no such table")

    monkeypatch.setattr("gruppo.watch.joined", broken)
    made = fakes.trainer(tmp_path, {**ALWAYS_CUT, "max_steps": 3})
    made.train()
    assert made.state.global_step == 3
    assert caplog.text.count("no such table") == 1


def test_a_check_can_be_switched_off(tmp_path: Path) -> None:
    fakes.trainer(tmp_path, {**ALWAYS_CUT, "health_thresholds": {"D05": "off"}}).train()
    assert findings(tmp_path) == []


def test_unknown_checks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="D99"):
        fakes.trainer(tmp_path, {"health_actions": {"D99": "stop"}})
