"""`kill -9` of a real trainer, twenty times: what was acknowledged stays readable, and a reader alive never fails.

Half of the kills come from outside at seeded random moments, half at moments where a write is cut in two (see
kill_nine_script.py). GRUPPO_KILLS sets how many there are.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pyarrow as pa
import pytest

from gruppo.checkpoint import newest_checkpoint
from gruppo.monitor.attempts import read_run
from gruppo.monitor.health.audit import audit
from gruppo.monitor.readers import Line, read_events, read_lines, read_metrics, read_rollouts, read_tokens
from gruppo.monitor.schema import TOKEN_LISTS
from kill_nine_script import MOMENTS, NUM_STEPS, SAVE_STEPS
from monitor.server_runs import client_of

NUM_KILLS = int(os.environ.get("GRUPPO_KILLS", "20"))
ROUND_STEPS, ROUND_ROWS, EVAL_ROWS = 2, 16, 4
MAX_STEPS_PER_ATTEMPT = 5

Key = tuple[int, str, int]
"""Attempt, split, step: what names a line of metrics.jsonl."""


class Trainers:
    """The script: one process that forks a trainer whenever it is told to."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kill_nine_script.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._answer() == {"ready": True}

    def start(self, folder: Path, hold_at: int | None = None, **moment: Any) -> int:
        """Process id of a new attempt."""
        print(json.dumps({"folder": str(folder), "hold_at": hold_at, **moment}), file=self.process.stdin, flush=True)
        return int(self._answer()["pid"])

    def wait(self) -> int:
        """Exit status of the attempt."""
        return int(self._answer()["status"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Reader:
    """Reads everything of the run, over and over, in a thread. Whatever it minds ends up in `complaints`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[Key, Line] = {}
        self.parts: set[tuple[int, str, int]] = set()
        self.num_rounds = 0
        self.complaints: list[str] = []
        self._is_over = Event()
        self._thread = Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with client_of(self.folder.parent) as client:
            while not self._is_over.wait(0.01):
                if not ((self.folder / "rollouts").exists() and (self.folder / "metrics.jsonl").exists()):
                    continue
                try:
                    self._read_files()
                    self._read_page(client)
                    self.num_rounds += 1
                except Exception as error:  # a failure of this thread is a failure of the test
                    self.complaints.append(f"{type(error).__name__}: {error}")

    def _read_files(self) -> None:
        for line in read_lines(self.folder / "metrics.jsonl"):
            self.seen[key_of(line)] = line
        steps = [line["step"] for line in read_metrics(self.folder)]
        if steps != list(range(1, len(steps) + 1)):
            self.complaints.append(f"steps {steps}")
        read_events(self.folder)
        run = read_run(self.folder)
        if run is None or not run["attempts"]:
            self.complaints.append(f"run.json: {run}")
        self._check_rollouts(read_rollouts(self.folder))
        for row in read_tokens(self.folder).to_pylist():
            lengths = {len(row[name]) for name in TOKEN_LISTS if row[name] is not None}
            if len(lengths) != 1 or row["completion_ids"] is None:
                self.complaints.append(f"half a row of tokens: {row}")
        audit(self.folder)

    def _check_rollouts(self, table: pa.Table) -> None:
        num_rows: dict[tuple[int, str, int], int] = {}
        for row in table.to_pylist():
            key = key_of(row)
            num_rows[key] = num_rows.get(key, 0) + 1
            if None in (row["completion"], row["reward"], row["n_completion"], row["reward/count_twos"]):
                self.complaints.append(f"half a row: {row}")
        self.parts |= set(num_rows)
        for key, number in num_rows.items():
            if number != (ROUND_ROWS if key[1] == "train" else EVAL_ROWS):
                self.complaints.append(f"{number} rows of {key}")

    def _read_page(self, client: Any) -> None:
        found = client.get("/api/runs").json()["runs"]
        (run,) = [entry["id"] for entry in found if entry["name"] == self.folder.name]
        summary = client.get(f"/api/runs/{run}")
        step = summary.json()["rollouts"]["last"] or 1
        paths = ["metrics?keys=*", "evals", "events", "health", "rewards", "prompts/1/history"]
        paths.append("rollouts?filter=completion:has:two")
        answers = [summary, *(client.get(f"/api/runs/{run}/{path}") for path in paths)]
        # A round may have been superseded since: then it is not there, which is an answer.
        moving = [f"steps/{step}/groups", f"steps/{step}/groups/1", f"tokens/{step}.1.0.train"]
        answers += [answer for path in moving if (answer := client.get(f"/api/runs/{run}/{path}")).status_code != 404]
        for answer in answers:
            if answer.status_code != 200:
                self.complaints.append(f"{answer.url}: {answer.status_code} {answer.text}")
        if any("num_unreadable" in answer.text and answer.json().get("num_unreadable") for answer in answers):
            self.complaints.append("the page met a part that it could not read")


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    made = Trainers()
    yield made
    made.close()


def key_of(row: Line) -> Key:
    return row["attempt"], row["split"], row["step"]


def checkpoint_step(folder: Path) -> int:
    newest = newest_checkpoint(folder)
    return 0 if newest is None else int(newest.name.removeprefix("checkpoint-"))


def last_step(folder: Path, num_lines_before: int) -> int:
    """The latest step that the running attempt wrote; -1 if none."""
    lines = read_lines(folder / "metrics.jsonl")[num_lines_before:]
    return max((line["step"] for line in lines), default=-1)


def kill_once(trainers: Trainers, folder: Path, draw: random.Random, moment: str | None) -> None:
    """One attempt and its end by SIGKILL."""
    start = checkpoint_step(folder)
    hold_at = min(start + MAX_STEPS_PER_ATTEMPT, NUM_STEPS - 1)
    num_lines = len(read_lines(folder / "metrics.jsonl"))
    if moment is None:
        kill_at, delay = draw.randint(start, hold_at), draw.uniform(0.0, 0.15)
        pid = trainers.start(folder, hold_at)
    else:
        kill_at, delay = hold_at, 0.0  # from outside only if the moment does not come
        pid = trainers.start(folder, hold_at, moment=moment, number=draw.randint(1, MOMENTS[moment][1]))
    while is_alive(pid) and last_step(folder, num_lines) < kill_at and kill_at > start:
        time.sleep(0.01)
    time.sleep(delay)
    if is_alive(pid):
        os.kill(pid, signal.SIGKILL)
    status = trainers.wait()
    assert status == -signal.SIGKILL, folder.with_suffix(".log").read_text()[-3000:]


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie that the script has not waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_acknowledged(folder: Path, seen: dict[Key, Line]) -> None:
    """Every line that was seen is there, and everything up to the checkpoint is complete: nobody will make it again."""
    written = {key_of(line): line for line in read_lines(folder / "metrics.jsonl")}
    assert {key: written.get(key) for key in seen} == seen
    lines = {key_of(line) for line in read_metrics(folder, split=None)}
    for attempt, _, step in set(seen) - lines:
        assert any(later > attempt and again <= step for later, split, again in lines if split == "train")
    steps = {step: attempt for attempt, split, step in lines if split == "train"}
    saved = checkpoint_step(folder)
    assert set(range(1, saved + 1)) <= set(steps)
    table = read_rollouts(folder, split="train")
    rounds = {step: attempt for attempt, _, step in map(key_of, table.to_pylist())}
    for step in range(1, saved + 1, ROUND_STEPS):
        assert rounds[step] == steps[step]


def test_twenty_kills(trainers: Trainers, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "runs" / "killed"
    folder.parent.mkdir()
    trainers.start(whole)
    assert trainers.wait() == 0, whole.with_suffix(".log").read_text()[-3000:]

    draw = random.Random(9)
    reader = Reader(folder)
    try:
        for number in range(NUM_KILLS):
            moment = None if number % 2 else list(MOMENTS)[number // 2 % len(MOMENTS)]
            kill_once(trainers, folder, draw, moment)
            assert_acknowledged(folder, dict(reader.seen))
            assert reader.complaints == []
        trainers.start(folder)
        assert trainers.wait() == 0, folder.with_suffix(".log").read_text()[-3000:]
    finally:
        reader.close()
    assert reader.complaints == []
    assert reader.num_rounds >= NUM_KILLS // 2

    assert folder.with_suffix(".safetensors").read_bytes() == whole.with_suffix(".safetensors").read_bytes()
    assert_acknowledged(folder, reader.seen)
    assert_whole(folder, reader)


def assert_whole(folder: Path, reader: Reader) -> None:
    """The finished run: each step once, and what was made anew is kept, and marked as such."""
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    table = read_rollouts(folder)
    current = set(map(key_of, table.to_pylist()))
    assert sorted(step for _, split, step in current if split == "train") == list(range(1, NUM_STEPS + 1, ROUND_STEPS))
    assert sorted(step for _, split, step in current if split == "eval") == [*range(4, NUM_STEPS, 4), NUM_STEPS]

    run = read_run(folder)
    assert run is not None
    attempts = run["attempts"]
    assert [entry["attempt"] for entry in attempts] == list(range(1, len(attempts) + 1))
    assert [entry["attempt"] for entry in attempts if entry["ended"]] == [len(attempts)], "the others were killed"
    assert all(entry["start_step"] % SAVE_STEPS == 0 for entry in attempts)
    for key in reader.parts - current:
        attempt, split, step = key
        moved = list(folder.glob(f"superseded/a*/rollouts/step?{step:06d}/part-*r0-a{attempt}.parquet"))
        assert len(moved) == 1, key
        by = int(moved[0].relative_to(folder).parts[1].removeprefix("a"))
        assert attempt < by <= len(attempts)
        assert split == ("eval" if "eval" in moved[0].name else "train")
    assert reader.parts - current, "no kill cost a round: the test has tested nothing"
    assert not list(folder.glob(".checkpoint-*")), "half a checkpoint is left"
