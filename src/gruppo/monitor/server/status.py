"""How a run is doing, as far as its folder tells: run.json, the ends of its lines files, and when it last wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from gruppo.monitor.decisive import decisive_attempt
from gruppo.monitor.server.folders import RunFolder
from gruppo.monitor.server.lines import Line, open_plain, parse, read_last

State = Literal["running", "stalled", "dead", "silent", "finished", "failed"]

TAIL_BYTES = 128 * 2**10
MAX_RUN_JSON_BYTES = 16 * 2**20

PATIENCE_SECONDS = 120.0
PATIENCE_STEPS = 10
"""A run that has not ended and wrote nothing for this long (whichever is longer) is called silent; where a heartbeat
says that its process lives, stalled, if step and phase have not changed for so long."""

BEAT_PATIENCE_SECONDS = 30.0
"""A run whose heartbeat is older than this is called dead: its process beats every five seconds."""

STALL_SECONDS = 600.0
"""A phase may take this long (or PATIENCE_STEPS) before its run is called stalled."""

MAX_HEARTBEAT_BYTES = 4096

ENDED_WELL = ("finished", "evaluated")
"""Outcomes of an attempt that was not broken off: it trained, or it was an evaluation on its own."""

SIGNS_OF_LIFE = ("metrics.jsonl", "events.jsonl", "heartbeat.json", "rollouts", "run.json")


class Facts(NamedTuple):
    """What the files say, whatever the hour. `run` is run.json, `latest` the last training line, `last_eval` the last
    other one; `outcome` is of the attempt that speaks for the run, and `is_superseded` says that evaluations on their
    own came after it (`is_evaluating`: the last of them has not ended); `beat` is the heartbeat of the last attempt;
    `num_bytes` is about what this takes in memory."""

    run: dict[str, Any]
    outcome: str | None
    is_superseded: bool
    is_evaluating: bool
    latest: Line
    last_eval: Line
    step_seconds: float | None
    beat: Line
    num_bytes: int


class Status(NamedTuple):
    """Facts, and what the hour makes of them."""

    state: State
    updated: float | None
    facts: Facts

    @property
    def run(self) -> dict[str, Any]:
        return self.facts.run

    @property
    def outcome(self) -> str | None:
        return self.facts.outcome

    @property
    def latest(self) -> Line:
        return self.facts.latest


Signature = tuple[tuple[int, int] | None, ...]


def signature(path: Path) -> Signature:
    """Time stamp and size of the files that show life: facts stay as they are while it does."""
    return tuple(_stamp(path / name) for name in SIGNS_OF_LIFE)


def read_facts(path: Path) -> Facts:
    """Reads at most a few hundred kB beyond run.json, however long the run."""
    run = read_run_json(path)
    lines = read_last(path / "metrics.jsonl", TAIL_BYTES)
    training = [line for line in lines if line.get("split") == "train"]
    evals = [line for line in lines if line.get("split") != "train"]
    last = last_attempt(run)
    is_superseded = last.get("attempt") != latest_attempt(run).get("attempt")
    outcomes = last_outcomes(path)
    return Facts(
        run,
        _outcome(outcomes, run),
        is_superseded,
        is_superseded and not last.get("ended") and last.get("attempt") not in outcomes,
        training[-1] if training else {},
        evals[-1] if evals else {},
        _median_step_time(training),
        read_beat(path, run),
        20_000 + 8 * len(repr(run)),
    )


def status_of(facts: Facts, when: Signature, now: float) -> Status:
    """`when` is the signature that belongs to the facts; `now` in seconds since 1970."""
    updated = max((stamp[0] / 1e9 for stamp in when if stamp is not None), default=None)
    age = None if updated is None else now - updated
    beat = when[SIGNS_OF_LIFE.index("heartbeat.json")]
    beat_age = None if beat is None else now - beat[0] / 1e9
    return Status(_state(facts, age, beat_age), updated, facts)


def read_run_json(path: Path) -> dict[str, Any]:
    """run.json; an empty dict if there is none, or none that can be read. `attempts` is always a list of dicts."""
    try:
        with open_plain(path / "run.json") as file:
            run = parse(file.read(MAX_RUN_JSON_BYTES)) or {}
    except FileNotFoundError:
        run = {}
    attempts = run.get("attempts")
    entries = attempts if isinstance(attempts, list) else []
    known = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("attempt"), int)]
    return run | {"attempts": known}


def read_beat(path: Path, run: Mapping[str, Any]) -> Line:
    """heartbeat.json, if it is of the last attempt; else an empty dict."""
    try:
        with open_plain(path / "heartbeat.json") as file:
            beat = parse(file.read(MAX_HEARTBEAT_BYTES)) or {}
    except FileNotFoundError:
        return {}
    return beat if beat.get("attempt") == last_attempt(run).get("attempt") else {}


def last_attempt(run: Mapping[str, Any]) -> dict[str, Any]:
    """The last entry of run.json's attempts, an evaluation on its own included."""
    attempts = run.get("attempts") or [{}]
    return dict(attempts[-1])


def latest_attempt(run: Mapping[str, Any]) -> dict[str, Any]:
    """The attempt that speaks for the run: see `decisive_attempt`."""
    return decisive_attempt(run.get("attempts") or [])


def config_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the attempt that speaks for the run."""
    return dict_in(latest_attempt(run), "config")


def dict_in(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The dict under `name`; empty if there is none."""
    value = entry.get(name)
    return value if isinstance(value, dict) else {}


def last_outcomes(path: Path) -> dict[int, str]:
    """Attempt -> how it said it ended, of those whose end is among the last events; the latest last."""
    events = read_last(path / "events.jsonl", TAIL_BYTES)
    stops = [event for event in events if event.get("kind") == "attempt_stop"]
    return {event["attempt"]: str(event.get("outcome")) for event in stops if isinstance(event.get("attempt"), int)}


def brief(folder: RunFolder, status: Status) -> dict[str, Any]:
    """The run's entry in the list of runs."""
    config = config_of(status.run)
    progress = progress_of(status, config)
    return {
        "id": folder.id,
        "name": folder.name,
        "run_id": status.run.get("run_id"),
        "state": status.state,
        "outcome": status.outcome,
        "created": status.run.get("created"),
        "updated": status.updated,
        "num_attempts": len(status.run["attempts"]),
        "step": progress["step"],
        "max_steps": progress["max_steps"],
        "progress": progress["share"],
        "reward": status.latest.get("reward"),
        "eval_reward": status.facts.last_eval.get(f"{status.facts.last_eval.get('split')}_reward"),
        "model": _model(latest_attempt(status.run), config),
    }


def progress_of(status: Status, config: Mapping[str, Any]) -> dict[str, Any]:
    """How far it is, and how long the rest will take at the recent pace."""
    step, epoch = _number(status.latest.get("step")), _number(status.latest.get("epoch"))
    max_steps, num_epochs = _number(config.get("max_steps")), _number(config.get("num_train_epochs"))
    share = None
    if step is not None and max_steps is not None and max_steps > 0:
        share = min(1.0, step / max_steps)
    else:
        max_steps = None
        if epoch is not None and num_epochs:
            share = min(1.0, epoch / num_epochs)
    seconds = status.facts.step_seconds
    eta = None
    if share and step and seconds is not None and status.state == "running":
        eta = step * (1 - share) / share * seconds
    return {
        "step": step,
        "max_steps": max_steps,
        "epoch": epoch,
        "num_epochs": num_epochs,
        "share": share,
        "seconds_per_step": seconds,
        "eta_seconds": eta,
    }


def _outcome(outcomes: Mapping[int, str], run: Mapping[str, Any]) -> str | None:
    """How the attempt that speaks for the run ended; None if it did not say."""
    number = latest_attempt(run).get("attempt")
    if number is None:  # no run.json, or none that can be read
        return [None, *outcomes.values()][-1]
    return outcomes.get(number)


def _model(attempt: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    named = (attempt.get("model"), config.get("model"), config.get("model_name_or_path"))
    return next((name for name in named if isinstance(name, str) and name), None)


def _state(facts: Facts, age: float | None, beat_age: float | None) -> State:
    patience = PATIENCE_STEPS * (facts.step_seconds or 0.0)
    by_beat: State | None = None
    if facts.beat and beat_age is not None:
        by_beat = _state_by_beat(facts.beat, beat_age, max(STALL_SECONDS, patience))
    if facts.is_evaluating and by_beat is not None and by_beat != "dead":
        return by_beat
    if facts.outcome is not None:
        return "finished" if facts.outcome in ENDED_WELL else "failed"
    if latest_attempt(facts.run).get("ended"):
        return "finished"
    if facts.is_superseded:  # what came after it knows nothing of it: it did not say how it ended, and will not
        return "dead"
    if by_beat is not None:
        return by_beat
    return "running" if age is not None and age <= max(PATIENCE_SECONDS, patience) else "silent"


def _state_by_beat(beat: Line, beat_age: float, patience: float) -> State:
    """The clock of the file says whether it beats, its own numbers (of one clock) how long nothing has changed."""
    if beat_age > BEAT_PATIENCE_SECONDS:
        return "dead"
    times = _number(beat.get("time")), _number(beat.get("changed"))
    is_stalled = times[0] is not None and times[1] is not None and times[0] - times[1] > patience
    return "stalled" if is_stalled else "running"


def _median_step_time(training: list[Line]) -> float | None:
    times = [time for time in (_number(line.get("step_time")) for line in training[-50:]) if time is not None]
    return median(times) if times else None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:  # not there (yet)
        return None
    return found.st_mtime_ns, found.st_size


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
