"""What the trainer records of each token, against the plain forward of the same weights, row by row and by hand."""

import copy
import json
import logging
import math
from itertools import pairwise

import duckdb
import pyarrow.parquet as pq
import pytest
import torch
from transformers import TrainerCallback

from fakes import StopAt, count_twos, flat, policy, trainer
from gruppo import milestones
from gruppo.monitor import files
from gruppo.monitor.readers import read_events, read_rollouts, read_tokens
from gruppo.monitor.schema import HEARTBEAT_FIELDS, TOKEN_COLUMNS
from gruppo.monitor.token_tap import TokenTap
from tiny_tokenizer import ID

TEMPERATURE = 0.7


class Weights(TrainerCallback):
    """A copy of the policy as it is at the beginning of each optimizer step."""

    def __init__(self):
        self.before = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.before.append(copy.deepcopy(model).eval())


def run(folder, fields, **arguments):
    """A trained trainer, its groups by round, and the policy before each step."""
    weights = Weights()
    chosen = {"temperature": TEMPERATURE, "learning_rate": 3e-2, "max_completion_length": 8, "max_steps": 2, **fields}
    made = trainer(folder, chosen, callbacks=[weights, *arguments.pop("callbacks", [])], **arguments)
    rounds, generate = [], made.rollout.generate
    made.rollout.generate = lambda *given: rounds.append(generate(*given)) or rounds[-1]
    made.train()
    return made, rounds, weights.before


@torch.no_grad()
def scored(model, prompt_ids, completion_ids):
    """(log-probs, entropies) of a completion's tokens."""
    logits = model(torch.tensor([prompt_ids + completion_ids])).logits[0, len(prompt_ids) - 1 : -1].float()
    log_p = torch.log_softmax(logits / TEMPERATURE, dim=-1)
    return log_p.gather(1, torch.tensor(completion_ids)[:, None])[:, 0], -(log_p.exp() * log_p).sum(dim=-1)


def close(values, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, rtol=0, atol=2e-5)


def tokens_of(folder, step):
    return {(row["group_id"], row["sample"]): row for row in read_tokens(folder, step=step).to_pylist()}


def rows_of(groups):
    return [(group, completion) for group in groups for completion in group.completions]


def test_every_value_is_that_of_a_plain_forward(tmp_path):
    _, rounds, before = run(tmp_path, {"num_iterations": 2, "beta": 0.1, "loss_type": "grpo"})
    start, later = before  # the round is sampled by `start`, and used again after one step
    rows = tokens_of(tmp_path, 1)
    rollouts = {(row["group_id"], row["sample"]): row for row in read_rollouts(tmp_path, step=1).to_pylist()}
    assert len(rows) == len(rollouts) == 8
    flags = set()
    for group, completion in rows_of(rounds[0]):
        key = (group.prompt.id, completion.sample)
        row, ids = rows[key], completion.token_ids
        old, _ = scored(start, group.prompt.token_ids, ids)
        new, entropy = scored(later, group.prompt.token_ids, ids)
        ratio, advantage = (new - old).exp(), rollouts[key]["advantage"]
        clip = ((ratio < 0.8) & (advantage < 0)) | ((ratio > 1.2) & (advantage > 0))
        assert row["completion_ids"] == ids
        assert row["mask"] == [1] * len(ids)
        assert row["num_passes"] == 2
        close(row["logp_infer"], completion.sampler_logprobs)
        close(row["delta"], old - torch.tensor(completion.sampler_logprobs))
        close(row["delta_ref"], new - old)  # the reference is the policy as it was at the start
        close(row["entropy"], entropy)
        close(row["ratio"], ratio)
        assert row["clip"] == clip.int().tolist()
        flags |= set(row["clip"])
        close(rollouts[key]["entropy_mean"], entropy.double().mean())
        d = (old - new).double()
        close(rollouts[key]["kl_mean"], (d.exp() - d - 1).mean())
        close(rollouts[key]["clipped_frac"], clip.double().mean())
        close(rollouts[key]["is_mean"], 1.0)
        close(rollouts[key]["is_max"], 1.0)
    assert flags == {0, 1}
    assert max(abs(math.log(r)) for row in rows.values() for r in row["ratio"]) > 0.1


def test_rows_that_went_through_before_memory_ran_out_are_counted_once(tmp_path, monkeypatch):
    """The same records as without, too: what the broken-off pass had left is replaced."""
    fields = {"max_tokens_per_forward": 24, "num_iterations": 2, "loss_type": "grpo", "adam_epsilon": 1e-4}
    plain, _, _ = run(tmp_path / "plain", fields)
    broken = trainer(
        tmp_path / "broken",
        {"temperature": TEMPERATURE, "learning_rate": 3e-2, "max_completion_length": 8, "max_steps": 2, **fields},
    )
    backward, calls = broken.accelerator.backward, []

    def breaking(loss):
        calls.append(loss)
        if len(calls) == 2:  # the first forward's rows are through
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1.")
        backward(loss)

    broken.accelerator.backward = breaking
    forget, forgotten = TokenTap.forget, []
    monkeypatch.setattr(TokenTap, "forget", lambda tap, rows: forgotten.extend(rows) or forget(tap, rows))
    broken.train()
    assert forgotten, "the test has tested nothing"
    torch.testing.assert_close(flat(broken.model), flat(plain.model), rtol=0, atol=1e-5)
    mine, theirs = tokens_of(tmp_path / "broken", 1), tokens_of(tmp_path / "plain", 1)
    assert {row["num_passes"] for row in mine.values()} == {2}
    assert mine.keys() == theirs.keys()
    for key, row in mine.items():
        assert row["completion_ids"] == theirs[key]["completion_ids"]
        close(row["ratio"], theirs[key]["ratio"])
        close(row["entropy"], theirs[key]["entropy"])


def test_the_gap_to_a_sampler_that_is_off(tmp_path):
    """A sampler that says 0.25 nats too much on every second token, and nothing on the third."""

    def rollout(prompts, trainer):
        ids = [[7, 8, 9, 2]] * len(prompts)
        prompt_ids = [list(trainer.processing_class(text=prompt)["input_ids"]) for prompt in prompts]
        logprobs = []
        for prompt in prompt_ids:
            known = scored(start[0], prompt, ids[0])[0].tolist()
            logprobs.append([known[0], known[1] + 0.25, math.nan, known[3]])
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": ids,
            "logprobs": logprobs,
            "env_mask": [[1, 1, 1, 0]] * len(prompts),
        }

    start = [policy().eval()]
    run(tmp_path, {"max_steps": 1}, rollout_func=rollout)
    row = tokens_of(tmp_path, 1).popitem()[1]
    close(row["delta"][:2], [0.0, -0.25])
    assert row["delta"][2:] == [None, None]
    assert row["logp_infer"][2] is None
    assert row["logp_infer"][3] is not None  # the sampler's word on a token that is not trained
    assert row["mask"] == [1, 1, 1, 0]
    for name in ("entropy", "ratio", "clip"):
        assert row[name][2] is not None
        assert row[name][3] is None
    assert row["ratio"][:3] == [1.0] * 3
    assert row["clip"][:3] == [0] * 3
    assert row["delta_ref"] is None  # no reference in this run


@pytest.mark.parametrize(
    ("fields", "has_clip"),
    [({"loss_type": "cispo", "epsilon_high": 1.01}, True), ({"loss_type": "sapo"}, False)],
)
def test_losses_clip_in_their_own_way(tmp_path, fields, has_clip):
    run(tmp_path, {"num_iterations": 2, **fields})
    clips = [row["clip"] for row in tokens_of(tmp_path, 1).values()]
    assert all((clip is not None) == has_clip for clip in clips)
    assert not has_clip or {flag for clip in clips for flag in clip} == {0, 1}


def test_at_sequence_level_a_row_has_one_ratio(tmp_path):
    _, rounds, (start, later) = run(
        tmp_path, {"num_iterations": 2, "importance_sampling_level": "sequence", "loss_type": "grpo"}
    )
    rows = tokens_of(tmp_path, 1)
    for group, completion in rows_of(rounds[0]):
        ids, row = completion.token_ids, rows[group.prompt.id, completion.sample]
        drift = scored(later, group.prompt.token_ids, ids)[0] - scored(start, group.prompt.token_ids, ids)[0]
        close(row["ratio"], drift.mean().exp().expand(len(ids)))
        assert len(set(row["clip"])) == 1


@pytest.mark.parametrize("old_logprobs", ["trainer", "sampler"])
def test_a_round_for_two_steps(tmp_path, old_logprobs):
    """The second half of the round is first used after a step: its ratio has moved at its first pass."""
    fields = {"steps_per_generation": 4, "old_logprobs": old_logprobs, "per_device_train_batch_size": 2}
    _, rounds, (start, later) = run(tmp_path, fields)
    rows, moved = tokens_of(tmp_path, 1), 0
    for group, completion in rows_of(rounds[0]):
        ids, row = completion.token_ids, rows[group.prompt.id, completion.sample]
        assert row["num_passes"] == 1
        old, new = (scored(model, group.prompt.token_ids, ids)[0] for model in (start, later))
        if any(abs(ratio - 1) > 1e-6 for ratio in row["ratio"]):
            moved += 1
            close(row["ratio"], (new - old).exp())
            if old_logprobs == "sampler":  # nobody scored these rows with the policy that sampled them
                assert row["delta"] is None
                continue
        close(row["delta"], old - torch.tensor(completion.sampler_logprobs))
    assert moved == 4


def test_offsets_cut_the_text(tmp_path):
    _, rounds, _ = run(tmp_path, {"max_steps": 1})
    rows = tokens_of(tmp_path, 1)
    words = {i: word for word, i in ID.items()}
    for group, completion in rows_of(rounds[0]):
        row = rows[group.prompt.id, completion.sample]
        starts = [*row["text_offsets"], len(completion.text)]
        pieces = [completion.text[a:b] for a, b in pairwise(starts)]
        assert "".join(pieces) == completion.text
        is_special = [words[i].startswith("<") for i in completion.token_ids]
        said = [piece.strip() for piece, special in zip(pieces, is_special, strict=True) if not special]
        assert all(said)


def test_the_budget_is_kept_and_groups_are_whole(tmp_path):
    run(tmp_path, {"monitor_tokens": 30, "max_steps": 4})
    seen = read_tokens(tmp_path).to_pylist()
    for step in (1, 2, 3, 4):
        rows = [row for row in seen if row["step"] == step]
        assert 0 < sum(len(row["completion_ids"]) for row in rows) <= 30
        groups = {row["group_id"] for row in rows}
        assert len(rows) == 4 * len(groups) or len(groups) == 1


def test_recording_changes_no_number_and_can_be_switched_off(tmp_path):
    on, _, _ = run(tmp_path / "on", {"num_iterations": 2, "max_steps": 4})
    off, _, _ = run(tmp_path / "off", {"num_iterations": 2, "max_steps": 4, "monitor_tokens": 0})
    assert torch.equal(flat(on.model), flat(off.model))
    assert (tmp_path / "on" / "tokens").is_dir()
    assert not (tmp_path / "off" / "tokens").exists()
    assert read_rollouts(tmp_path / "off")["entropy_mean"].null_count == 0


def test_a_disk_that_fails_changes_no_number(tmp_path, monkeypatch, caplog):
    well, _, _ = run(tmp_path / "well", {"max_steps": 3})

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.pq, "write_table", full)
    monkeypatch.setattr(files.os, "replace", full)
    with caplog.at_level(logging.WARNING, logger="gruppo.monitor.recorder"):
        ill, _, _ = run(tmp_path / "ill", {"max_steps": 3})
    assert ill.state.global_step == 3
    assert torch.equal(flat(ill.model), flat(well.model))
    assert not list((tmp_path / "ill").glob("*/step-*/*.parquet"))
    assert len([record for record in caplog.records if "failed, training goes on" in record.getMessage()]) == 1
    (stop,) = [event for event in read_events(tmp_path / "ill") if event["kind"] == "attempt_stop"]
    assert stop["num_failed_writes"] >= 9


def test_a_tokenizer_that_fails_costs_the_tokens_alone(tmp_path, monkeypatch):
    made = trainer(tmp_path, {"max_steps": 2})

    def fail(token_ids):
        raise RuntimeError("no such token")

    monkeypatch.setattr(milestones, "piece_decoder", lambda tokenizer: fail)
    made.train()
    assert made.state.global_step == 2
    assert read_rollouts(tmp_path).num_rows == 16
    assert read_tokens(tmp_path).num_rows == 0


def test_resuming_supersedes_tokens_as_it_does_rollouts(tmp_path):
    run(tmp_path, {"max_steps": 4}, callbacks=[StopAt(2)])
    run(tmp_path, {"max_steps": 3, "save_strategy": "no"}, callbacks=[])
    # The second run began anew: all of the first one's parts are superseded.
    assert {row["attempt"] for row in read_tokens(tmp_path).to_pylist()} == {2}
    made = trainer(tmp_path, {"max_steps": 4})
    made.train(resume_from_checkpoint=str(tmp_path / "superseded" / "a2" / "checkpoint-2"))
    attempts = {row["step"]: row["attempt"] for row in read_tokens(tmp_path).to_pylist()}
    assert attempts == {1: 2, 2: 2, 3: 3, 4: 3}
    moved = {path.parent.name for path in (tmp_path / "superseded" / "a3" / "tokens").glob("*/*.parquet")}
    assert moved == {"step-000003"}


def test_a_stop_inside_a_round_keeps_what_was_computed(tmp_path):
    run(tmp_path, {"num_iterations": 3, "max_steps": 6}, callbacks=[StopAt(2)])
    assert {row["num_passes"] for row in read_tokens(tmp_path).to_pylist()} == {2}
    made = trainer(
        tmp_path, {"num_iterations": 3, "max_steps": 6, "temperature": TEMPERATURE, "max_completion_length": 8}
    )
    made.train(resume_from_checkpoint=True)
    rows = read_tokens(tmp_path).to_pylist()
    assert sorted({(row["step"], row["attempt"], row["num_passes"]) for row in rows}) == [(1, 1, 2), (4, 2, 3)]


def test_rows_that_are_not_trained_on_say_why(tmp_path):
    run(tmp_path, {"mask_truncated_completions": True, "max_completion_length": 3, "max_steps": 2})
    rows = read_rollouts(tmp_path).to_pylist()
    expected = {"stop": (True, None), "length": (False, "truncated")}
    assert {row["finish_reason"]: (row["used"], row["drop_reason"]) for row in rows} == expected
    masks = {(row["step"], row["group_id"], row["sample"]): row["mask"] for row in read_tokens(tmp_path).to_pylist()}
    assert all(
        set(masks[row["step"], row["group_id"], row["sample"]]) == {int(row["used"])}
        for row in rows
        if (row["step"], row["group_id"], row["sample"]) in masks
    )


def test_evaluations_have_no_tokens_and_nothing_is_dropped_there(tmp_path):
    made = trainer(
        tmp_path, {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}, eval_dataset=[{"prompt": "one"}]
    )
    made.train()
    (used,) = set(read_rollouts(tmp_path, split="eval")["used"].to_pylist())
    assert used is None
    assert set(read_tokens(tmp_path)["split"].to_pylist()) == {"train"}


def test_parts_are_read_by_duckdb(tmp_path):
    run(tmp_path, {"num_iterations": 2})
    table = pq.read_table(next((tmp_path / "tokens").rglob("*.parquet")))
    assert table.column_names == list(TOKEN_COLUMNS)
    parts = f"read_parquet('{tmp_path}/tokens/*/*.parquet')"
    query = f"SELECT step, count(*), sum(len(completion_ids)), max(list_max(ratio)) FROM {parts} GROUP BY step"
    (found,) = duckdb.sql(query).fetchall()
    assert found[:2] == (1, 8)
    assert found[2] == sum(len(ids) for ids in table["completion_ids"].to_pylist())
    assert found[3] > 1.0


def test_the_run_says_its_model_and_beats(tmp_path):
    made, _, _ = run(tmp_path, {}, reward_funcs=count_twos)
    attempt = json.loads((tmp_path / "run.json").read_text())["attempts"][0]
    assert attempt["model"] == "model"  # made in memory: it has no name
    beat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert set(beat) == set(HEARTBEAT_FIELDS)
    assert (beat["attempt"], beat["step"]) == (1, made.state.global_step)
