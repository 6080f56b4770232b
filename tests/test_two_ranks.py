"""Two ranks are one process: the same advantages, loss and parameters. Started by `accelerate launch`, over gloo."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import trainer
from gruppo.errors import CheckpointError
from gruppo.monitor.readers import read_rollouts, read_tokens
from ranks import free_port
from two_ranks_script import CASES, RANKS_ONLY, evaluate, run

SCRIPT = Path(__file__).with_name("two_ranks_script.py")


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def ranks(out_dir) -> list[dict[str, Any]]:
    # --multi_gpu means torchrun here; with --cpu accelerate starts one process only, unless MPI is set up.
    command = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    finished = subprocess.run(
        [sys.executable, "-m", *command, str(SCRIPT), str(out_dir)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads((out_dir / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def close(values: Any, expected: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(torch.tensor(values), torch.tensor(expected), rtol=tolerance, atol=tolerance)


def test_accelerate_launch_made_two_ranks(ranks):
    assert [(rank["rank"], rank["size"]) for rank in ranks] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("name", [*CASES, *RANKS_ONLY])
def test_all_ranks_end_with_the_same_parameters(ranks, name):
    assert ranks[0][name]["parameters"] == ranks[1][name]["parameters"]
    assert ranks[0][name]["advantages"] == ranks[1][name]["advantages"]
    assert ranks[0][name]["lines"] == ranks[1][name]["lines"]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_process(ranks, name, tmp_path):
    alone = run(name, tmp_path, 1)
    two = ranks[0][name]
    close(two["advantages"], alone["advantages"])
    close(two["parameters"], alone["parameters"])
    # With two slices each rank shuffles its own rows into them, so means over slices may differ; sums do not.
    whole = ["loss", "grad_norm", "reward", "reward_std", "num_tokens", "num_words", "completions/mean_length"]
    for mine, theirs in zip(two["lines"], alone["lines"], strict=True):
        names = sorted(theirs) if name.startswith("spanning") else whole
        names = [metric for metric in names if metric != "num_words"]
        assert sorted(mine) == sorted(theirs)
        close([mine[metric] for metric in names], [theirs[metric] for metric in names], 1e-5)


def test_something_was_learnt(ranks):
    """Equal parameters mean something only if they moved."""
    for name in CASES:
        assert max(line["grad_norm"] for line in ranks[0][name]["lines"]) > 1e-3


@pytest.mark.parametrize("kind", ["metrics", "spanning"])
def test_evaluation_is_that_of_one_process(ranks, kind, tmp_path):
    alone = evaluate(tmp_path, 1)[kind]
    for rank in ranks:
        two = rank["evaluation"][kind]
        assert two.keys() == alone.keys()
        names = [name for name in alone if name != "eval_num_words"]
        close([two[name] for name in names], [alone[name] for name in names], 1e-5)
    assert alone["eval_ids"] == 123.0
    assert alone["eval_num_groups"] == 3.0


def test_what_fails_on_one_rank_ends_the_step_on_both(ranks):
    """Neither waits for the other, and both say which it was and why."""
    assert ranks[0]["raised"] == ranks[1]["raised"]
    raised = ranks[0]["raised"]
    assert raised["reward"].startswith("RewardError at 1: Scoring completions failed on 1 of 2 ranks. rank 1: ")
    assert "one_word_on_rank_1" in raised["reward"]
    assert "no such answer" in raised["reward"]
    assert raised["both"].startswith("RewardError at 0: Scoring completions failed on 2 of 2 ranks. rank 0: ")
    assert " | rank 1: " in raised["both"]
    assert raised["rollout"].startswith("RolloutError at 1: Sampling completions failed on 1 of 2 ranks. rank 0: ")
    assert "the server is gone" in raised["rollout"]


def test_a_rank_whose_sampler_says_no_log_probs_holds_nobody_up(ranks):
    first, second = (rank["half silent"] for rank in ranks)
    assert first == second
    assert [line["step"] for line in first] == [1, 2, 3]
    assert all(line["sampling/sampling_logp_difference/max"] > 0 for line in first[::2]), "of the rank that says them"
    assert all(math.isfinite(line["loss"]) for line in first)


def test_what_a_reward_logs_need_not_be_able_to_travel(ranks):
    for rank in ranks:
        assert all(text.startswith("<function") for text in rank["extras"])
        assert rank["extras"]


def test_two_ranks_resume_to_the_bit(ranks):
    for rank in ranks:
        whole, parts = rank["resume"]["whole"], rank["resume"]["parts"]
        assert parts["parameters"] == whole["parameters"]
        assert parts["lines"] == whole["lines"]


def test_a_checkpoint_of_two_ranks_is_not_for_one(ranks, out_dir):
    folder = out_dir / "resume" / "parts" / "several slices"
    names = {path.name for path in (folder / "checkpoint-2").iterdir()}
    assert {"random-0.safetensors", "random-1.safetensors", "rollouts-0.safetensors", "rollouts-1.safetensors"} < names
    with pytest.raises(CheckpointError, match=r"saved by 2 processes and this run has 1.*--num_processes 2"):
        trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_only_the_first_rank_writes_the_run(ranks, out_dir):
    folder = out_dir / "runs" / "spanning"
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    # ... and each its own rows.
    for kind in ("rollouts", "tokens"):
        assert sorted(path.name for path in (folder / kind / "step-000001").iterdir()) == [
            "part-r0-a1.parquet",
            "part-r1-a1.parquet",
        ]
    rollouts, tokens = read_rollouts(folder, step=1).to_pylist(), read_tokens(folder, step=1).to_pylist()
    assert [(row["group_id"], row["sample"]) for row in tokens] == [
        (row["group_id"], row["sample"]) for row in rollouts
    ]
    assert [len(row["completion_ids"]) for row in tokens] == [row["n_completion"] for row in rollouts]
    assert all(abs(delta) < 1e-4 for row in tokens for delta in row["delta"])
