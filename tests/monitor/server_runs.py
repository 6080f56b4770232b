"""Folders of runs for the server's tests, written as the recorder writes them but without a trainer, and a client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from starlette.testclient import TestClient

from gruppo.monitor.schema import ROLLOUT_COLUMNS, rollout_schema
from gruppo.monitor.server.app import make_app
from gruppo.monitor.server.store import Store

TOKEN = "secret-of-this-process"
HEADERS = {"authorization": f"Bearer {TOKEN}", "host": "127.0.0.1"}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def line(step: int, attempt: int = 1, split: str = "train", **metrics: Any) -> dict[str, Any]:
    return {"step": step, "split": split, "attempt": attempt, "time": 1000.0 + step, **metrics}


def write_run_json(run: Path, attempts: list[dict[str, Any]] | None = None, **config: Any) -> None:
    entry = {
        "attempt": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "ended": None,
        "start_step": 0,
        "config": {"num_generations": 2, "max_steps": 100, "reward_weights": [1.0, 0.5]} | config,
        "plan": ["2 completions"],
        "seeds": {"seed": 1},
        "device": {"type": "cpu", "name": "x", "count": 1},
        "versions": {"torch": "2.12"},
    }
    run.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": 1, "run_id": "abc", "created": "2026-01-01T00:00:00+00:00"}
    content["attempts"] = [entry | more for more in attempts or [{}]]
    (run / "run.json").write_text(json.dumps(content))


def row(step: int, group_id: int, sample: int, **values: Any) -> dict[str, Any]:
    """One completion; `exact` and `format` are the reward functions."""
    known = {name: None for name in ROLLOUT_COLUMNS} | {
        "run_id": "abc",
        "attempt": 1,
        "step": step,
        "split": "train",
        "policy_version": step - 1,
        "group_id": group_id,
        "prompt_id": group_id,
        "sample": sample,
        "prompt_format": "text",
        "prompt": f"prompt {group_id}",
        "completion": f"answer {step} {group_id} {sample}",
        "columns": '{"answer": "4"}',
        "finish_reason": "stop",
        "n_prompt": 3,
        "n_completion": 10 + sample,
        "n_trained": 10 + sample,
        "reward": float(sample),
        "advantage": sample - 0.5,
        "group_mean": 0.5,
        "group_std": 0.7,
        "entropy_mean": 1.25,
        "sampler_logprob_mean": -0.5,
        "seconds": 0.5,
        "reward/exact": float(sample),
        "reward_status/exact": "ok",
        "reward/format": None,
        "reward_status/format": "none",
    }
    return known | values


def write_part(run: Path, rows: list[dict[str, Any]], name: str = "part-r0-a1", **extra_types: pa.DataType) -> Path:
    """A rollouts part; rows of one step."""
    path = run / "rollouts" / f"step-{rows[0]['step']:06d}" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = rollout_schema(["exact", "format"], extra_types)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def two_groups(step: int, **values: Any) -> list[dict[str, Any]]:
    """Groups 7 (mixed) and 9 (both right)."""
    mixed = [row(step, 7, sample, **values) for sample in (0, 1)]
    solved = [row(step, 9, s, reward=1.0, advantage=0.0, group_mean=1.0, group_std=0.0, **values) for s in (0, 1)]
    return mixed + solved


def small_run(run: Path, num_steps: int = 30) -> Path:
    """A run that still goes on: lines, an evaluation every ten steps, rollouts at each step."""
    write_run_json(run)
    for step in range(1, num_steps + 1):
        write_lines(run / "metrics.jsonl", [line(step, reward=step / num_steps, entropy=None, step_time=2.0)])
        if step % 10 == 0:
            write_lines(run / "metrics.jsonl", [line(step, split="eval", eval_reward=step / 100)])
        write_part(run, two_groups(step))
    return run


@contextmanager
def client_of(root: Path, store: Store | None = None, *, raises: bool = True, **options: Any) -> Iterator[TestClient]:
    app = make_app(store or Store(root), token=TOKEN, **options)
    with TestClient(app, base_url="http://127.0.0.1", headers=HEADERS, raise_server_exceptions=raises) as client:
        yield client


def get(client: TestClient, path: str, **parameters: Any) -> dict[str, Any]:
    """The answer to a request that must succeed."""
    response = client.get(f"/api/{path}", params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


def only_run(client: TestClient) -> str:
    (run,) = get(client, "runs")["runs"]
    return f"runs/{run['id']}"
