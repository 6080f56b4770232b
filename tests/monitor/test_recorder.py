"""What the recorder leaves on disk: exact files, lines and columns; and that it never breaks training."""

import json
import logging
import threading
from fractions import Fraction
from math import inf, nan
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gruppo.algorithm.losses import LossInputs, LossSettings, policy_loss
from gruppo.monitor import files
from gruppo.monitor import recorder as recorder_module
from gruppo.monitor.readers import read_events, read_lines, read_metrics, read_rollouts
from gruppo.monitor.recorder import TokenSettings
from gruppo.monitor.schema import (
    ATTEMPT_FIELDS,
    HEARTBEAT_FIELDS,
    LINE_FIELDS,
    ROLLOUT_COLUMNS,
    RUN_FIELDS,
    TOKEN_COLUMNS,
    to_json,
)
from gruppo.types import TrainBatch
from monitor import monitor_fakes as fakes

PART = "rollouts/step-000012/part-r0-a1.parquet"


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_of_a_short_run(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    fakes.record_round(recorder, 12)
    fakes.record_round(recorder, 12, "eval")
    fakes.record_round(recorder, 12, "eval")
    recorder.record_step(12, {"reward": 0.5})
    recorder.close()
    recorder.close()
    assert written(tmp_path) == [
        "events.jsonl",
        "metrics.jsonl",
        "rollouts/step-000012/part-eval-r0-a1-1.parquet",
        "rollouts/step-000012/part-eval-r0-a1.parquet",
        PART,
        "run.json",
    ]
    assert (recorder.num_failed_writes, recorder.num_dropped_parts) == (0, 0)


def test_run_json_has_the_fields_of_the_schema(tmp_path):
    config = {"output_dir": "x", "hub_token": "secret", "push_to_hub_token": None, "epsilon": 0.2, "f": inf}
    recorder = fakes.make_recorder(tmp_path, config_dict=config, seeds={"seed": 3}, model="org/tiny")
    recorder.close()
    text = (tmp_path / "run.json").read_text()
    run = json.loads(text)
    (attempt,) = run["attempts"]
    assert set(run) == set(RUN_FIELDS)
    assert set(attempt) == set(ATTEMPT_FIELDS)
    assert run["schema_version"] == 1
    assert attempt["attempt"] == 1
    assert attempt["start_step"] == 0
    assert attempt["model"] == "org/tiny"
    assert attempt["plan"] == ["8 completions"]
    assert attempt["seeds"] == {"seed": 3}
    assert attempt["device"]["type"] == "cpu"
    assert attempt["device"]["count"] == 1
    assert {"python", "gruppo", "torch", "transformers"} <= set(attempt["versions"])
    assert attempt["started"] <= attempt["ended"]
    assert "secret" not in text
    assert attempt["config"] == {**config, "hub_token": "<HUB_TOKEN>", "f": None}


def test_metrics_lines_are_flat_and_strict_json(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    recorder.record_step(1, {"reward": 0.5, "kl": nan, "grad_norm": inf, "lr": None, "epoch": 0.1})
    (line,) = read_lines(tmp_path / "metrics.jsonl")  # readable before close: line by line
    assert set(line) - {"reward", "kl", "grad_norm", "lr", "epoch"} == set(LINE_FIELDS)
    assert (line["step"], line["split"], line["attempt"]) == (1, "train", 1)
    assert (line["reward"], line["kl"], line["grad_norm"], line["lr"], line["epoch"]) == (0.5, None, None, None, 0.1)
    assert line["nonfinite"] == "grad_norm=inf"
    recorder.record_step(2, {"reward": 0.6})
    recorder.close()
    assert "nonfinite" not in read_metrics(tmp_path)[1]


def test_a_metric_does_not_overwrite_the_fields_of_its_line(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    recorder.record_step(3, {"step": 99.0, "time": 0.0, "attempt": 7.0, "split": -1.0, "nonfinite": 5.0, "kl": inf})
    recorder.close()
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert (line["step"], line["split"], line["attempt"], line["nonfinite"]) == (3, "train", 1, "kl=inf")
    assert line["time"] > 0.0


def test_an_event_keeps_the_fields_of_its_line_too(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    recorder.record_event("checkpoint", step=3, kind="other", attempt=7, time=0.0, path="checkpoint-3")
    recorder.close()
    _, line, _ = read_lines(tmp_path / "events.jsonl")
    assert (line["kind"], line["attempt"], line["step"], line["path"]) == ("checkpoint", 1, 3, "checkpoint-3")
    assert line["time"] > 0.0


def test_rollout_columns_and_values(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    fakes.record_round(recorder, 12, length=[1, 2.5, None, True], note=["a", {"b": [1]}, None, 3])
    recorder.close()
    table = pq.read_table(tmp_path / PART)
    per_reward = [f"{kind}/{name}" for name in ("exact", "format") for kind in ("reward", "reward_status")]
    assert table.column_names == [*ROLLOUT_COLUMNS, *per_reward, "extra/length", "extra/note"]
    rows = table.to_pylist()
    assert rows[1] | {"run_id": "-"} == {
        "run_id": "-",
        "attempt": 1,
        "step": 12,
        "split": "train",
        "policy_version": 11,
        "group_id": 7,
        "prompt_id": 7,
        "sample": 1,
        "prompt_format": "text",
        "prompt": "2+2=",
        "completion": "55",
        "columns": '{"answer": "4", "weight": null}',
        "finish_reason": "length",
        "n_prompt": 3,
        "n_completion": 2,
        "n_trained": 2,
        "used": True,
        "drop_reason": None,
        "reward": 0.0,
        "advantage": -0.5,
        "group_mean": 0.75,
        "group_std": 1.0,
        "entropy_mean": None,
        "kl_mean": None,
        "is_mean": None,
        "is_max": None,
        "clipped_frac": None,
        "sampler_logprob_mean": -1.0,
        "seconds": 0.5,
        "rep4_tail": None,
        "zlib_tail": None,
        "copy8": None,
        "dup_of": None,
        "script_share": None,
        "gibberish_share": None,
        "reward/exact": 0.0,
        "reward_status/exact": "ok",
        "reward/format": None,
        "reward_status/format": "none",
        "extra/length": 2.5,
        "extra/note": '{"b": [1]}',
    }
    assert rows[2]["prompt_format"] == "messages"
    assert json.loads(rows[2]["prompt"]) == [{"role": "user", "content": "héllo"}]
    assert rows[2]["sampler_logprob_mean"] is None
    assert rows[3]["reward"] is None
    assert rows[3]["group_std"] is None
    assert rows[3]["reward_status/format"] == "timeout"
    assert [row["extra/length"] for row in rows] == [1.0, 2.5, None, 1.0]
    assert [row["extra/note"] for row in rows] == ["a", '{"b": [1]}', None, "3"]
    assert rows[0]["run_id"] == json.loads((tmp_path / "run.json").read_text())["run_id"]


def test_rows_of_this_rank_are_picked_from_global_tables(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    entropy_N = torch.tensor([0.5, 0.25])
    recorder.record_rollouts(
        3,
        "train",
        fakes.two_groups()[1:],
        fakes.rewards(mark=["a", "b", "c", "d"]),
        fakes.advantages(),
        policy_version=2,
        rows=range(2, 4),
        group_ids=[41],
        entropy_mean_N=entropy_N,
    )
    recorder.close()
    rows = read_rollouts(tmp_path).to_pylist()
    assert [row["reward"] for row in rows] == [1.25, None]
    assert [row["reward_status/exact"] for row in rows] == ["ok", "error"]
    assert [row["extra/mark"] for row in rows] == ["c", "d"]
    assert [row["group_id"] for row in rows] == [41, 41]
    assert [row["entropy_mean"] for row in rows] == [0.5, 0.25]


def test_a_wrong_number_of_rows_is_our_bug_and_is_not_hidden(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    with pytest.raises(AssertionError, match="2 rows of rewards for 4 completions"):
        recorder.record_rollouts(1, "train", fakes.two_groups(), fakes.rewards(), None, policy_version=0, rows=range(2))
    recorder.close()


def test_parts_are_read_by_pandas_and_datasets(tmp_path):
    recorder = fakes.make_recorder(tmp_path / "run")
    fakes.record_round(recorder, 1, score=[None] * 4)
    fakes.record_round(recorder, 2, score=[1, 2, 3, 4])
    fakes.record_round(recorder, 2, "eval")
    recorder.close()
    folder = tmp_path / "run" / "rollouts"
    assert pq.read_table(folder).num_rows == 12
    frame = pd.read_parquet(folder)
    assert frame.groupby("step")["reward/exact"].mean().round(4).to_dict() == {1: 0.4167, 2: 0.4167}
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(folder / "step-*" / "part-*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert rows["step"][:] == [1] * 4 + [2] * 8
    assert rows["reward/exact"][:3] == [1.0, 0.0, 0.25]
    assert datasets.Dataset(read_rollouts(tmp_path / "run"))["sample"][:4] == [0, 1, 0, 1]


def test_an_extra_that_turns_into_text_loses_nothing(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    fakes.record_round(recorder, 1)
    fakes.record_round(recorder, 2, score=[1, 2, 3, 4])
    fakes.record_round(recorder, 3, score=["many", 2, 3, 4])
    fakes.record_round(recorder, 4, score=[5, 6, 7, 8])
    recorder.close()
    table = read_rollouts(tmp_path, columns=["step", "sample", "group_id"])
    assert table.column("step").to_pylist() == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    scores = {step: read_rollouts(tmp_path, step=step, columns=["extra/score"]) for step in (2, 3, 4)}
    assert [t.column(0).to_pylist()[0] for t in scores.values()] == [1.0, "many", "5"]


def test_a_number_beyond_floats_makes_its_column_text(tmp_path):
    huge = 10**400
    recorder = fakes.make_recorder(tmp_path)
    fakes.record_round(recorder, 1, score=[1, 2, 3, 4])
    fakes.record_round(recorder, 2, score=[-huge, 2.5, None, True])
    recorder.close()
    assert recorder.num_failed_writes == 0
    rows = read_rollouts(tmp_path, step=2)
    assert rows["extra/score"].to_pylist() == [f"-{huge}", "2.5", None, "true"]


def test_the_type_of_an_extra_is_that_of_all_ranks(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    table = fakes.rewards(score=[None, None, 1, 2], mark=[1, 2, "a", "b"])
    recorder.record_rollouts(
        1, "train", fakes.two_groups()[:1], table, fakes.advantages(), policy_version=0, rows=range(2)
    )
    recorder.close()
    rows = read_rollouts(tmp_path)
    assert rows.schema.field("extra/score").type == pa.float64()
    assert rows["extra/score"].to_pylist() == [None, None]
    assert rows["extra/mark"].to_pylist() == ["1", "2"]


def test_resuming_moves_what_it_makes_anew(tmp_path):
    first = fakes.make_recorder(tmp_path, completions=fakes_completions())
    for step in (1, 2, 3):
        fakes.record_round(first, step)
        first.record_step(step, {"reward": step / 10})
        first.log_completions(step)
    first.record_step(2, {"eval_reward": 0.2}, split="eval")
    first.close("killed")
    second = fakes.make_recorder(tmp_path, start_step=1)
    fakes.record_round(second, 2)
    second.record_step(2, {"reward": 0.9})
    second.close()
    assert second.attempt.number == 2
    assert second.attempt.run_id == first.attempt.run_id
    assert [path for path in written(tmp_path) if path.endswith(".parquet")] == [
        "completions/completions_00001.parquet",
        "rollouts/step-000001/part-r0-a1.parquet",
        "rollouts/step-000002/part-r0-a2.parquet",
        "superseded/a2/completions/completions_00002.parquet",
        "superseded/a2/completions/completions_00003.parquet",
        "superseded/a2/rollouts/step-000002/part-r0-a1.parquet",
        "superseded/a2/rollouts/step-000003/part-r0-a1.parquet",
    ]
    # Step 3 of the first attempt is gone too, though nobody wrote it again; so is the evaluation at step 2.
    assert [(line["step"], line["reward"]) for line in read_metrics(tmp_path)] == [(1, 0.1), (2, 0.9)]
    assert read_metrics(tmp_path, split="eval") == []
    events = [event for event in read_events(tmp_path) if event["kind"] != "reward_fault"]
    kinds = [(event["kind"], event["attempt"]) for event in events]
    assert kinds == [("attempt_start", 1), ("attempt_stop", 1), ("attempt_start", 2), ("attempt_stop", 2)]
    assert events[1]["outcome"] == "killed"
    # Every round of the fakes has cells that failed: one event for each function and status.
    faults = [event for event in read_events(tmp_path) if event["kind"] == "reward_fault"]
    assert faults
    assert all(event["num_rows"] >= 1 and event["status"] not in ("ok", "none") for event in faults)


def fakes_completions():
    from gruppo.monitor.completions_table import CompletionsTable

    return CompletionsTable(num_to_print=0)


@pytest.mark.parametrize(("start_step", "kept"), [(0, []), (None, [0, 1])])
def test_a_fresh_start_supersedes_all_and_a_mere_evaluation_nothing(tmp_path, start_step, kept):
    first = fakes.make_recorder(tmp_path)
    fakes.record_round(first, 0, "eval")
    fakes.record_round(first, 1)
    first.close()
    fakes.make_recorder(tmp_path, start_step=start_step).close()
    steps = sorted(set(read_rollouts(tmp_path).to_pydict().get("step", [])))
    assert steps == kept


def test_a_failing_write_is_counted_reported_once_and_harmless(tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    recorder = fakes.make_recorder(tmp_path)
    monkeypatch.setattr(files.pq, "write_table", full)
    with caplog.at_level(logging.WARNING, logger="gruppo.monitor.recorder"):
        fakes.record_round(recorder, 1)
        fakes.record_round(recorder, 2)
        recorder.close()
    assert recorder.num_failed_writes == 2
    assert [record.getMessage() for record in caplog.records] == [
        "writing part-r0-a1.parquet failed, training goes on: OSError: no space left on device"
    ]
    faults = [event for event in read_events(tmp_path) if event["kind"] == "write_failure"]
    assert [fault["error"] for fault in faults] == ["OSError: no space left on device"]
    assert [path for path in written(tmp_path) if path.endswith("parquet")] == []


def test_nothing_can_be_written_at_all(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    recorder = fakes.make_recorder(blocked)
    recorder.record_step(1, {"reward": 1.0})
    fakes.record_round(recorder, 1)
    recorder.close()
    assert recorder.num_failed_writes >= 4
    assert len(caplog.records) == 1
    assert blocked.read_text() == "not a folder"


def test_values_that_no_format_knows_are_written_as_text(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    recorder.record_event(
        "checkpoint", step=1, path=tmp_path, numbers=torch.tensor([1.0, nan]), raw=b"abc", bad="\ud800"
    )
    recorder.close()
    event = read_events(tmp_path)[1]
    assert event["path"] == str(tmp_path)
    assert event["numbers"] == [1.0, None]
    assert event["raw"] == "<3 bytes>"
    assert event["bad"] == "\ud800"
    assert recorder.num_failed_writes == 0


def batch_of_two_groups():
    groups = fakes.two_groups()
    ids = [completion.token_ids for group in groups for completion in group.completions]  # 1, 2, 2 and 0 tokens
    trained_NT = torch.tensor([[True, False], [True, True], [True, True], [False, False]])
    return TrainBatch(
        prompt_ids=[[1]] * 4,
        completion_ids=ids,
        trained_NT=trained_NT,
        advantages_N=torch.zeros(4),
        group_ids=[0, 0, 1, 1],
        slice_ids=[0] * 4,
        sampler_logprobs_NT=torch.tensor([[-0.5, nan], [-1.0, nan], [nan, nan], [nan, nan]]),
        old_logprobs_NT=torch.tensor([[-0.25, 0.0], [-2.0, -3.0], [-1.0, -1.0], [0.0, 0.0]]),
    )


class TwoForwards:
    logprobs_NT = torch.tensor([[-0.25, 0.0], [-2.0, -3.0]])
    entropy_NT = torch.tensor([[0.5, 0.0], [0.75, 1.25]])


def record_trained_round(recorder, step):
    """Both rows of the first group go through a forward, those of the second are left out."""
    batch = batch_of_two_groups()
    fakes.record_round(recorder, step)
    part = batch.rows([0, 1])
    inputs = LossInputs(
        TwoForwards.logprobs_NT, TwoForwards.entropy_NT, part.advantages_N, part.trained_NT, torch.ones(2)
    )
    recorder.keep_forward([0, 1], TwoForwards(), policy_loss(inputs, LossSettings()), True)
    recorder.record_pass(batch)


def token_settings(budget=100):
    return TokenSettings(budget=budget, decode=lambda ids: "45"[len(ids) - 1 :] * len(ids), vocab_size=10)


def test_tokens_hold_what_the_pass_gave_and_null_where_it_gave_nothing(tmp_path):
    recorder = fakes.make_recorder(tmp_path, tokens=token_settings())
    record_trained_round(recorder, 12)
    recorder.record_pass(batch_of_two_groups())  # the round is recorded already
    recorder.close()
    table = pq.read_table(tmp_path / "tokens/step-000012/part-r0-a1.parquet")
    assert table.column_names == list(TOKEN_COLUMNS)
    rows = table.to_pylist()
    assert [(row["group_id"], row["sample"], row["num_passes"]) for row in rows] == [(7, 0, 1), (7, 1, 1), (9, 0, 0)]
    second = rows[1]
    assert second["mask"] == [1, 1]
    assert second["logp_infer"] == [-1.0, None]
    assert second["delta"] == [-1.0, None]
    assert second["delta_ref"] is None
    assert second["entropy"] == [0.75, 1.25]
    assert second["ratio"] == [1.0, 1.0]
    assert second["clip"] == [0, 0]
    third = rows[2]
    assert third["completion_ids"] == [0, 1]
    assert all(third[name] is None for name in ("logp_infer", "delta", "entropy", "ratio", "clip"))
    rollouts = read_rollouts(tmp_path)
    assert rollouts["entropy_mean"].to_pylist() == [0.5, 1.0, None, None]
    assert rollouts["is_max"].to_pylist()[0] == pytest.approx(1.2840254)
    assert rollouts["kl_mean"].to_pylist() == [None] * 4
    assert recorder.num_failed_writes == 0


@pytest.mark.parametrize("is_used_up", [True, False])
def test_a_line_comes_after_the_completions_of_its_round(tmp_path, monkeypatch, is_used_up):
    """Whoever is killed then has lost nothing that a line speaks of; in a round that feeds more steps, too."""
    monkeypatch.setattr(recorder_module, "LINE_SECONDS", 30.0)
    monkeypatch.setattr(files, "EARLY_SECONDS", 30.0)
    recorder = fakes.make_recorder(tmp_path)
    if is_used_up:
        record_trained_round(recorder, 1)
    else:
        fakes.record_round(recorder, 1)
    recorder.record_step(1, {"reward": 0.5})
    assert read_rollouts(tmp_path)["entropy_mean"].null_count == (2 if is_used_up else 4)
    recorder.close()


def test_a_short_round_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "LINE_SECONDS", 30.0)
    monkeypatch.setattr(files, "EARLY_SECONDS", 30.0)
    written, write = [], files.write_parquet
    monkeypatch.setattr(files, "write_parquet", lambda path, table: written.append(path) or write(path, table))
    recorder = fakes.make_recorder(tmp_path)
    for step in (1, 2):
        record_trained_round(recorder, step)
        recorder.record_step(step, {"reward": 0.5})
    recorder.close()
    assert [path.parent.name for path in written] == ["step-000001", "step-000002"]


def test_a_slow_disk_holds_a_line_up_for_a_moment_only(tmp_path, monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr(recorder_module, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(files, "write_parquet", lambda path, table: stuck.wait(30))
    recorder = fakes.make_recorder(tmp_path)
    record_trained_round(recorder, 1)
    recorder.record_step(1, {"reward": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    stuck.set()
    recorder.close()


def test_a_full_queue_costs_tokens_first_and_at_once(tmp_path, monkeypatch):
    recorder = fakes.make_recorder(tmp_path, tokens=token_settings())
    submit, waited = recorder._parts.submit, []

    def full(path, make, *, can_wait=True, **kwargs):
        waited.append(can_wait)
        return submit(path, make, **kwargs) if can_wait else None

    monkeypatch.setattr(recorder._parts, "submit", full)
    record_trained_round(recorder, 1)
    recorder.close()
    assert waited == [True, False, False]
    assert recorder.num_dropped_parts == 2
    assert read_rollouts(tmp_path).num_rows == 4
    (drop,) = [event for event in read_events(tmp_path) if event["kind"] == "dropped_part"]
    assert drop["path"] == "rollouts/step-000001/part-r0-a1.parquet"  # its second writing, with the means
    assert not (tmp_path / "tokens").exists()


def test_tokens_off_or_over_budget(tmp_path):
    for budget in (0, 1):
        recorder = fakes.make_recorder(tmp_path / str(budget), tokens=token_settings(budget))
        record_trained_round(recorder, 1)
        recorder.close()
        assert read_rollouts(tmp_path / str(budget))["entropy_mean"].to_pylist()[:2] == [0.5, 1.0]
    assert not (tmp_path / "0" / "tokens").exists()
    rows = pq.read_table(tmp_path / "1/tokens/step-000001/part-r0-a1.parquet").to_pylist()
    assert [(row["group_id"], row["sample"]) for row in rows] == [(7, 0)]


@pytest.mark.parametrize(
    "names", [ROLLOUT_COLUMNS, TOKEN_COLUMNS, HEARTBEAT_FIELDS], ids=["rollouts", "tokens", "beat"]
)
def test_every_column_is_documented(names):
    text = (Path(__file__).parents[2] / "docs" / "monitor.md").read_text()
    assert [name for name in names if f"`{name}`" not in text] == []


def test_numbers_of_any_size_can_be_written():
    found = json.loads(to_json([2**70, 10**5000, Fraction(1, 4), Fraction(10**400), float("inf"), np.float32(0.5)]))
    assert found == [2**70, "<integer of 16610 bits>", 0.25, None, None, 0.5]
