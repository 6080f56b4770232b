"""Two ranks record one run: a part and an events file each, one run.json, one metrics file, one completions file."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from gruppo.monitor.readers import read_events, read_metrics, read_rollouts
from ranks import run_ranks


def test_two_ranks_write_one_run(tmp_path):
    ranks = run_ranks(Path(__file__).with_name("recorder_script.py"), tmp_path)
    run = tmp_path / "run"
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    assert ranks == [{"run_id": run_id, "failed": 0}] * 2
    assert sorted(path.name for path in (run / "rollouts/step-000001").iterdir()) == [
        "part-r0-a1.parquet",
        "part-r1-a1.parquet",
    ]
    rows = read_rollouts(run).to_pylist()
    assert [(row["run_id"], row["prompt_id"], row["sample"], row["extra/note"]) for row in rows] == [
        (run_id, 7, 0, "a"),
        (run_id, 7, 1, "b"),
        (run_id, 9, 0, "c"),
        (run_id, 9, 1, "d"),
    ]
    assert [line["rank"] for line in read_metrics(run)] == [0]
    faults = [event["rank"] for event in read_events(run) if event["kind"] == "reward_fault" and "rank" in event]
    assert sorted(faults) == [0, 1]
    table = pq.read_table(run / "completions/completions_00001.parquet").to_pydict()
    assert table["note"] == ["a", "b", "c", "d"]
    assert table["exact"][:3] == [1.0, 0.0, 0.25]
    assert table["advantage"] == [0.5, -0.5, 0.0, 0.0]
    # Text and messages share no column type: the log falls back to text for both.
    assert table["prompt"] == ["2+2="] * 2 + ['[{"role": "user", "content": "héllo"}]'] * 2
