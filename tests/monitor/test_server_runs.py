"""Which runs there are, how each is doing, its verdict, events, findings, and two side by side."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gruppo.monitor.health.audit import read_config
from gruppo.monitor.server.events import Landmarks, events_since, latest_events
from gruppo.monitor.server.findings import detectors_of, num_open, standing
from gruppo.monitor.server.folders import find_runs
from gruppo.monitor.server.status import read_facts, signature, status_of
from gruppo.monitor.server.store import Store
from gruppo.monitor.server.verdict import verdict
from monitor.monitor_fakes import make_recorder, record_round
from monitor.server_runs import client_of, get, line, only_run, small_run, write_lines, write_run_json

# -- the list


def test_runs_below_a_folder_have_lasting_ids(tmp_path: Path) -> None:
    for name in ("b", "a/deep", "a b", "ü/../ü", "b/rollouts"):
        write_run_json(tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    write_run_json(tmp_path / ".hidden" / "x")
    found = find_runs(tmp_path)
    assert [run.name for run in found] == ["a b", "a/deep", "b", "ü"], "not hidden ones, not what lies inside a run"
    assert [run.id for run in found] == [run.id for run in find_runs(tmp_path)]
    assert len({run.id for run in found}) == 4
    assert all(run.id.isascii() and set(run.id) <= set("-_abcdefghijklmnopqrstuvwxyz0123456789") for run in found)
    write_run_json(tmp_path / "0")
    assert {run.id for run in found} < {run.id for run in find_runs(tmp_path)}


def test_a_run_may_be_given_itself(tmp_path: Path) -> None:
    write_run_json(tmp_path / "alone")
    assert [run.name for run in find_runs(tmp_path / "alone")] == ["alone"]


def test_no_runs(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        assert get(client, "runs")["runs"] == []
        assert client.get("/api/runs/x-000000").json()["error"]["message"] == "There is no run 'x-000000'."


def test_a_run_that_appears_is_found_and_one_that_goes_is_gone(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        write_run_json(tmp_path / "late")
        path = only_run(client)
        assert get(client, path)["name"] == "late"
        (tmp_path / "late").rename(tmp_path / "other")
        assert client.get(f"/api/{path}").status_code == 404


def test_the_list_tells_how_far_each_run_is(tmp_path: Path) -> None:
    small_run(tmp_path / "r", 20)
    with client_of(tmp_path) as client:
        (entry,) = get(client, "runs")["runs"]
    assert {
        name: entry[name] for name in ("name", "state", "step", "max_steps", "progress", "reward", "eval_reward")
    } == {
        "name": "r",
        "state": "running",
        "step": 20,
        "max_steps": 100,
        "progress": 0.2,
        "reward": 1.0,
        "eval_reward": 0.2,
    }


# -- state

EVALUATION = {"attempt": 2, "start_step": None}
"""An evaluation on its own, after a training."""


def state_of(run: Path, now: float) -> tuple[str, str | None]:
    status = status_of(read_facts(run), signature(run), now)
    return status.state, status.outcome


@pytest.mark.parametrize(
    ("attempts", "stops", "age", "state"),
    [
        ([{}], [], 10, ("running", None)),
        ([{}], [], 1000, ("silent", None)),
        ([{"ended": "2026-01-01"}], [], 1000, ("finished", None)),
        ([{}], [(1, "finished")], 10, ("finished", "finished")),
        ([{}], [(1, "interrupted")], 10, ("failed", "interrupted")),
        ([{}, {"attempt": 2}], [(1, "finished")], 10, ("running", None)),
        ([{}, {"attempt": 2}], [(1, "failed"), (2, "finished")], 10, ("finished", "finished")),
        ([{}, EVALUATION], [(1, "finished"), (2, "evaluated")], 10, ("finished", "finished")),
        ([{}, EVALUATION], [(1, "interrupted"), (2, "evaluated")], 10, ("failed", "interrupted")),
        ([{}, EVALUATION], [(1, "finished"), (2, "interrupted")], 10, ("finished", "finished")),
        ([{"ended": "2026-01-01"}, EVALUATION], [], 10, ("finished", None)),
        ([{}, EVALUATION], [(2, "evaluated")], 10, ("dead", None)),
        ([{"start_step": None}], [(1, "evaluated")], 10, ("finished", "evaluated")),
        ([{"start_step": None}], [(1, "interrupted")], 10, ("failed", "interrupted")),
        ([{"start_step": None}, {"attempt": 2}], [(1, "evaluated")], 10, ("running", None)),
    ],
)
def test_states(
    tmp_path: Path,
    attempts: list[dict[str, Any]],
    stops: list[tuple[int, str]],
    age: int,
    state: tuple[str, str | None],
) -> None:
    write_run_json(tmp_path, attempts)
    write_lines(
        tmp_path / "events.jsonl",
        [{"kind": "attempt_stop", "attempt": number, "time": 1.0, "outcome": outcome} for number, outcome in stops],
    )
    for path in tmp_path.iterdir():
        os.utime(path, (5000, 5000))
    assert state_of(tmp_path, 5000 + age) == state


def test_while_an_evaluation_runs_the_run_does(tmp_path: Path) -> None:
    write_run_json(tmp_path, [{}, EVALUATION])
    write_lines(tmp_path / "events.jsonl", [event("attempt_stop", 1.0, outcome="finished")])
    (tmp_path / "heartbeat.json").write_text(json.dumps({"time": 1.0, "changed": 1.0, "attempt": 2}))
    os.utime(tmp_path / "heartbeat.json", (5000, 5000))
    assert state_of(tmp_path, 5010) == ("running", "finished")
    assert state_of(tmp_path, 5100) == ("finished", "finished"), "the evaluation was killed, not the training"
    write_lines(tmp_path / "events.jsonl", [event("attempt_stop", 2.0, attempt=2, outcome="evaluated")])
    assert state_of(tmp_path, 5010) == ("finished", "finished")


def test_the_settings_are_those_of_the_training(tmp_path: Path) -> None:
    write_run_json(tmp_path / "r", [{}, EVALUATION | {"config": {"max_steps": -1}, "plan": ["another"]}], max_steps=40)
    write_lines(tmp_path / "r" / "metrics.jsonl", [line(20, reward=1.0)])
    with client_of(tmp_path) as client:
        summary = get(client, only_run(client))
    assert (summary["config"]["max_steps"], summary["plan"]) == (40, ["2 completions"])
    assert summary["progress"]["share"] == 0.5
    assert read_config(tmp_path / "r")["max_steps"] == 40


def test_slow_steps_are_given_time(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [line(1, step_time=600.0)])
    os.utime(tmp_path / "metrics.jsonl", (5000, 5000))
    assert state_of(tmp_path, 5000 + 5000)[0] == "running"
    assert state_of(tmp_path, 5000 + 7000)[0] == "silent"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"attempts": 5}', '{"attempts": [1, {"attempt": "x"}]}', '{"x": 1e999}']
)
def test_a_damaged_run_json_is_no_end(tmp_path: Path, text: str) -> None:
    run = tmp_path / "r"
    write_lines(run / "metrics.jsonl", [line(1, reward=1.0)])
    (run / "run.json").write_text(text)
    with client_of(tmp_path) as client:
        assert get(client, only_run(client))["config"] == {}
        assert get(client, "runs")["runs"][0]["step"] == 1
        assert get(client, f"{only_run(client)}/health")["findings"] == []


def test_what_the_recorder_writes_is_understood(tmp_path: Path) -> None:
    """The real recorder, not this folder's imitation of it."""
    recorder = make_recorder(tmp_path / "r", config_dict={"max_steps": 4, "hub_token": "secret"})
    record_round(recorder, 1, extra=["a", "b", "c", None])
    recorder.record_step(1, {"reward": 0.5, "kl": float("inf")})
    recorder.record_event("finding", detector="D05", name="truncation", severity="WARN", step=1, evidence=[])
    recorder.close()
    with client_of(tmp_path) as client:
        path = only_run(client)
        summary = get(client, path)
        assert (summary["state"], summary["outcome"], summary["attempts"][0]["outcome"]) == ("finished",) * 3
        assert summary["latest"]["reward"] == 0.5
        assert "secret" not in json.dumps(summary)
        groups = get(client, f"{path}/steps/1/groups")["groups"]
        assert [(g["group_id"], g["kind"], g["num_faults"]) for g in groups] == [(9, "unscored", 2), (7, "mixed", 0)]
        assert get(client, f"{path}/rollouts/1.7.0.train")["extras"] == {"extra": "a"}
        assert get(client, f"{path}/health")["detectors"][0]["detector"] == "D05"


def test_what_a_check_is_with_the_thresholds_of_the_run(tmp_path: Path) -> None:
    small_run(tmp_path / "r", 3)
    write_run_json(tmp_path / "r", health_thresholds={"D11": {"warn": 0.2}, "D12": "off"})
    with client_of(tmp_path) as client:
        path = f"{only_run(client)}/health"
        loops = get(client, f"{path}/D11")
        assert (loops["name"], loops["docs"], loops["is_off"]) == ("loops", "docs/health/D11.md", False)
        assert loops["fire"] == {"bad": 3, "of": 5}
        limits = {limit["name"]: (limit["value"], limit["default"]) for limit in loops["limits"]}
        assert (limits["warn"], limits["alert"]) == ((0.2, 0.02), (0.1, 0.1))
        assert get(client, f"{path}/D12")["is_off"]
        assert client.get(f"/api/{path}/D99").status_code == 404


# -- verdict


def told(reward: list[float], flat: list[float] | None = None, evals: list[float] | None = None, **more: Any) -> Any:
    given = {"findings": [], "state": "running", "solved": []} | more
    columns = {"reward": np.array(reward), "frac_reward_zero_std": np.array(flat or [])}
    columns["groups/frac_solved"] = np.array(given.pop("solved"))
    return verdict(columns, np.array(evals or []), given.pop("findings"), given.pop("state"), **given)


NOISE = [0.01, -0.01] * 50


@pytest.mark.parametrize(
    ("reward", "level", "head"),
    [
        ([], "unknown", "Nothing was recorded yet."),
        ([0.5] * 5, "unknown", "Too early to say (5 steps)."),
        ([0.5], "unknown", "Too early to say (1 step)."),
        ([i / 100 + NOISE[i] for i in range(100)], "ok", "Learning: reward 0.095 → 0.895 over 100 steps."),
        ([1 - i / 100 + NOISE[i] for i in range(100)], "warn", "Getting worse: reward 0.905 → 0.105 over 100 steps."),
        ([0.5 + NOISE[i] for i in range(100)], "info", "No clear change: reward 0.5 → 0.5 over 100 steps."),
        ([0.5] * 100, "info", "No clear change: reward 0.5 → 0.5 over 100 steps."),
        ([0.4] + [0.0] * 59, "warn", "Collapsed at the start: reward 0.4 → 0 over 60 steps."),
        ([0.5, 0.3] + [0.0, 0.02] * 29, "warn", "Collapsed at the start: reward 0.5 → 0.01 over 60 steps."),
        (
            [0.8] + [0.5 + 20 * NOISE[i] for i in range(99)],
            "info",
            "No clear change: reward 0.525 → 0.5 over 100 steps.",
        ),
        ([0.4] + [0.0] * 59 + [0.5] * 40, "ok", "Learning: reward 0.02 → 0.5 over 100 steps."),  # it came back
        ([float("nan")] * 100, "unknown", "Too early to say (100 steps)."),
    ],
)
def test_the_verdict_on_reward(reward: list[float], level: str, head: str) -> None:
    answer = told(reward)
    assert (answer["level"], answer["text"]) == (level, head)


def test_the_verdict_names_what_is_wrong() -> None:
    rising = [i / 100 for i in range(100)]
    answer = told(rising, flat=[0.9] * 30, evals=[0.6, 0.7, 0.5])
    assert answer["level"] == "warn"
    assert answer["text"].startswith("Reward rises: "), "not called learning"
    assert answer["text"].endswith("90% of answers teach nothing. Held-out reward falls.")
    assert [fact["code"] for fact in answer["facts"]] == ["reward", "zero_std", "eval"]
    collapsed = told([0.0] * 30, evals=[0.4, 0.1, 0.1])
    assert (collapsed["level"], collapsed["text"].split("steps. ")[1]) == ("warn", "Held-out reward fell.")
    assert told([0.0] * 30, evals=[0.4, 0.41, 0.39])["level"] == "info", "no more than noise"
    findings = [{"detector": "D21", "name": "held-out", "severity": "ALERT"}]
    assert told(rising, findings=findings)["text"].endswith("1 alert: D21 held-out.")
    assert told(rising, findings=findings)["level"] == "alert"
    assert told(rising, state="silent", age=7300.0)["text"].startswith("Silent for 2 hours.")
    assert (
        told(rising, state="failed", outcome="interrupted")["facts"][0]["text"] == "The run ended early: interrupted."
    )


RISING = [i / 100 for i in range(100)]

SATURATED = [
    {"detector": "D01", "name": "zero-variance groups", "severity": "WARN"},
    {"detector": "D19", "name": "reward at the ceiling", "severity": "WARN"},
]


def test_a_run_that_ended_with_its_task_solved_is_no_warning() -> None:
    ended: dict[str, Any] = {"flat": RISING, "solved": RISING, "state": "finished"}
    answer = told(RISING, findings=SATURATED, **ended)
    assert (answer["level"], [fact["code"] for fact in answer["facts"]]) == ("info", ["reward", "solved"])
    assert answer["text"] == "Learning: reward 0.095 → 0.895 over 100 steps. Solved: 89% of groups all right."
    assert "Held-out prompts would tell it from a trick" in answer["facts"][1]["text"]
    answer = told(RISING, evals=[0.2, 0.8, 0.9], findings=SATURATED, **ended)
    assert answer["level"] == "ok"
    assert answer["text"].endswith("Solved: 89% of groups all right. Held-out reward 0.2 → 0.9.")


def test_a_run_that_has_solved_its_task_and_goes_on_is_told_so_without_a_warning() -> None:
    given: dict[str, Any] = {"flat": RISING, "solved": RISING, "state": "running"}
    answer = told(RISING, evals=[0.2, 0.9], findings=SATURATED, **given)
    assert (answer["level"], [fact["code"] for fact in answer["facts"]]) == ("info", ["reward", "solved", "eval"])
    assert "stop it, or give it harder prompts" in answer["facts"][1]["text"]
    falls = told(RISING, evals=[0.6, 0.7, 0.5], findings=SATURATED, **given)
    assert (falls["level"], falls["text"].split("right. ")[1]) == ("warn", "Held-out reward falls.")


def test_what_else_is_wrong_with_a_solved_run_stays_wrong() -> None:
    ended: dict[str, Any] = {"flat": RISING, "solved": RISING, "state": "finished"}
    other = {"detector": "D11", "name": "loops", "severity": "WARN"}
    answer = told(RISING, findings=[*SATURATED, other], **ended)
    assert (answer["level"], answer["text"].split("right. ")[1]) == ("warn", "1 warning: D11 loops.")
    fooled = {"detector": "D19", "name": "reward at the ceiling", "severity": "ALERT"}
    assert told(RISING, findings=[fooled], **ended)["level"] == "alert", "held-out prompts disagree"


@pytest.mark.parametrize(
    "given",
    [
        {"flat": [0.9] * 100, "solved": [0.9] * 100, "state": "finished"},  # there was never anything to learn
        {"flat": RISING, "solved": [0.0] * 100, "state": "finished"},  # the groups are flat because they fail
        {"flat": RISING, "solved": [], "state": "finished"},  # not recorded
    ],
)
def test_a_saturated_run_that_is_not_a_solved_one_stays_a_warning(given: dict[str, Any]) -> None:
    assert told(RISING, findings=SATURATED, **given)["level"] == "warn"


# -- events


def event(kind: str, time: float, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "attempt": 1, "time": time, **fields}


def test_events_of_all_ranks_by_time_and_from_a_cursor(tmp_path: Path) -> None:
    write_lines(tmp_path / "events.jsonl", [event("a", 1), event("b", 3)])
    write_lines(tmp_path / "events-r1.jsonl", [event("a", 2)])
    latest = latest_events(tmp_path, frozenset(), 2)
    assert [(e["kind"], e["rank"]) for e in latest["events"]] == [("a", 1), ("b", 0)]
    assert events_since(tmp_path, latest["cursor"], frozenset(), 10)["events"] == []
    write_lines(tmp_path / "events.jsonl", [event("c", 5)])
    write_lines(tmp_path / "events-r2.jsonl", [event("d", 4)])
    with (tmp_path / "events-r1.jsonl").open("a") as file:
        file.write('{"kind": "torn')
    after = events_since(tmp_path, latest["cursor"], frozenset(), 10)
    assert [e["kind"] for e in after["events"]] == ["d", "c"]
    assert not after["reset"]
    only = events_since(tmp_path, "start", {"a"}, 10)
    assert [e["time"] for e in only["events"]] == [1, 2]


def test_events_are_paged(tmp_path: Path) -> None:
    write_lines(tmp_path / "events.jsonl", [event("a", i) for i in range(25)])
    cursor, times, complete = "start", [], False
    while not complete:
        answer = events_since(tmp_path, cursor, frozenset(), 10)
        cursor, complete = answer["cursor"], answer["complete"]
        times += [e["time"] for e in answer["events"]]
    assert times == list(range(25))


def test_events_of_an_exchanged_file_start_anew(tmp_path: Path) -> None:
    write_lines(tmp_path / "events.jsonl", [event("a", i) for i in range(5)])
    cursor = latest_events(tmp_path, frozenset(), 10)["cursor"]
    (tmp_path / "events.jsonl").unlink()
    write_lines(tmp_path / "events.jsonl", [event("b", 9)])
    answer = events_since(tmp_path, cursor, frozenset(), 10)
    assert (answer["reset"], [e["kind"] for e in answer["events"]]) == (True, ["b"])


def test_landmarks_follow_the_files(tmp_path: Path) -> None:
    marks = Landmarks(tmp_path, max_bytes_per_call=200)
    assert marks.refresh()
    write_lines(tmp_path / "events.jsonl", [event("reward_fault", i) for i in range(20)])
    write_lines(
        tmp_path / "events.jsonl", [event("finding", 30, detector="D01"), event("attempt_stop", 31, outcome="x")]
    )
    num_calls = 1
    while not marks.refresh():
        num_calls += 1
    assert num_calls > 2
    assert ([f["detector"] for f in marks.findings()], marks.outcomes()) == (["D01"], {1: "x"})
    (tmp_path / "events.jsonl").unlink()
    write_lines(tmp_path / "events.jsonl", [event("finding", 50, detector="D02")])
    marks.refresh()
    assert [f["detector"] for f in marks.findings()] == ["D02"]


# -- findings


def finding(detector: str, step: int, severity: str = "WARN", **fields: Any) -> dict[str, Any]:
    base = {"detector": detector, "name": f"name {detector}", "severity": severity, "step": step, "is_cleared": False}
    return event("finding", 1000.0 + step, **base) | fields


def test_the_strip_and_what_is_open() -> None:
    found = [
        finding("D05", 10),
        finding("D11", 12, "ALERT"),
        finding("D05", 20, "ALERT"),
        finding("D05", 30, "INFO", is_cleared=True),
        finding("D05", 40),
    ]
    strip = {entry["detector"]: entry for entry in detectors_of(found)}
    assert strip["D05"]["spans"] == [
        {"from": 10, "to": 20, "severity": "WARN"},
        {"from": 20, "to": 30, "severity": "ALERT"},
        {"from": 40, "to": None, "severity": "WARN"},
    ]
    assert (strip["D05"]["is_open"], strip["D05"]["severity"]) == (True, "WARN")
    assert num_open(found) == {"INFO": 0, "WARN": 1, "ALERT": 1}
    assert num_open(found[:4]) == {"INFO": 0, "WARN": 0, "ALERT": 1}


def test_findings_of_steps_that_were_made_anew_do_not_count() -> None:
    attempts = [{"attempt": 1, "start_step": 0}, {"attempt": 2, "start_step": 10}, {"attempt": 3, "start_step": None}]
    found = [finding("D01", 10), finding("D02", 11), finding("D03", 11, attempt=2)]
    assert [f["detector"] for f in standing(found, attempts)] == ["D01", "D03"]


def test_health_of_a_run_that_reported(tmp_path: Path) -> None:
    run = small_run(tmp_path / "r", 12)
    rows = [{"step": 12, "group_id": 7, "sample": 1}, {"step": "x"}]
    write_lines(run / "events.jsonl", [finding("D11", 12, message="<b>", evidence=rows, value=0.11)])
    with client_of(tmp_path) as client:
        path = only_run(client)
        answer = get(client, f"{path}/health")
        assert (answer["source"], answer["complete"]) == ("events", True)
        (shown,) = answer["findings"]
        assert shown["evidence"][0] == {"step": 12, "group_id": 7, "sample": 1, "id": "12.7.1.train"}
        assert shown["evidence"][1]["id"] is None
        assert (shown["message"], shown["value"], shown["docs"]) == ("<b>", 0.11, None)
        get(client, f"{path}/rollouts/{shown['evidence'][0]['id']}")
        summary = get(client, path)
        assert summary["num_findings"]["WARN"] == 1
        assert summary["verdict"]["level"] == "warn"
        assert summary["verdict"]["text"].endswith("1 warning: D11 name D11.")


def test_a_run_that_nobody_checked_is_audited(tmp_path: Path) -> None:
    run = tmp_path / "r"
    write_run_json(run, [{"ended": "2026-01-01T01:00:00+00:00"}], beta=0.0, num_iterations=1)
    lines = [
        line(s, reward=0.0, grad_norm=0.0, **{"completions/clipped_ratio": 1.0, "loss": 0.0}) for s in range(1, 41)
    ]
    write_lines(run / "metrics.jsonl", lines)
    store = Store(tmp_path)
    with client_of(tmp_path, store) as client:
        path = only_run(client)
        answer = get(client, f"{path}/health")
        assert answer["source"] == "audit"
        while not answer["complete"]:
            answer = get(client, f"{path}/health")
        assert "D05" in {entry["detector"] for entry in answer["detectors"]}, "every completion was cut"
        assert get(client, path)["num_findings"]["ALERT"] >= 1


# -- two runs


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    for name, rate, steps in (("a", 1e-6, 3), ("b", 5e-6, 2)):
        write_run_json(tmp_path / name, learning_rate=rate, **({"beta": None} if name == "a" else {}))
        write_lines(tmp_path / name / "metrics.jsonl", [line(s, reward=s * rate) for s in range(1, steps + 1)])
    with client_of(tmp_path) as client:
        ids = {run["name"]: run["id"] for run in get(client, "runs")["runs"]}
        answer = get(client, "compare", a=ids["a"], b=ids["b"], keys="reward")
        assert client.get(f"/api/compare?a={ids['a']}").status_code == 422
        assert client.get(f"/api/compare?a={ids['a']}&b=../b").status_code == 404
    assert answer["config"] == [{"name": "beta", "a": None}, {"name": "learning_rate", "a": 1e-6, "b": 5e-6}]
    assert answer["versions"] == []
    assert answer["metrics"] == [{"name": "reward", "a": 3e-6, "b": 1e-5}]
    assert answer["series"]["a"]["steps"] == [1, 2, 3]
    assert answer["series"]["b"]["series"]["reward"]["mean"] == [5e-6, 1e-5]
