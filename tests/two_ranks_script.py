"""Run by test_two_ranks with `accelerate launch` on two gloo ranks, and by the test itself in one process.

Trains each case and writes what this rank saw to OUT_DIR/rank<R>.json. Not a test by itself.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from fakes import DATA, StopAt, flat, policy, timeless, trainer
from gruppo.errors import GruppoError
from gruppo.monitor.readers import read_rollouts

# Rows of all processes in a slice: divided by the number of processes below.
ROWS = {"spanning": 12, "spanning quantile": 12, "spanning off-policy": 12}

CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo", "beta": 0.1},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "batch"},
    "vespo": {"loss_type": "vespo", "mask_truncated_completions": True},
    # Three prompts of four completions on two ranks: the second group has two rows on each.
    "spanning": {"loss_type": "dapo", "gradient_accumulation_steps": 1},
    "spanning quantile": {"loss_type": "grpo", "gradient_accumulation_steps": 1, "top_entropy_quantile": 0.5},
    "spanning off-policy": {"loss_type": "grpo", "gradient_accumulation_steps": 1, "num_iterations": 3, "beta": 0.1},
}

RANKS_ONLY: dict[str, dict[str, Any]] = {
    "bnpo": {"loss_type": "bnpo", "entropy_coef": 0.01},
    "several slices": {"steps_per_generation": 4, "num_iterations": 2, "max_tokens_per_forward": 30},
    "dropout": {"max_steps": 2},
}
"""What is defined by the split over ranks, or draws different numbers on each: ranks must still agree."""


def uneven_rewards(completions: list[str], log_metric: Any, **kwargs: Any) -> list[float]:
    log_metric("num_words", float(sum(len(text.split()) for text in completions)) / max(len(completions), 1))
    return [float(len(text)) / 8 + text.split().count("two") for text in completions]


def run(name: str, folder: Path, world_size: int, **arguments: Any) -> dict[str, Any]:
    fields = {**CASES, **RANKS_ONLY}[name]
    rows = ROWS.get(name, 4)
    # Adam would blow the rounding of a gradient of 1e-9 up to the size of its step.
    common = {"learning_rate": 1e-3, "adam_epsilon": 1e-5, "max_steps": 3}
    fields = {**common, "per_device_train_batch_size": rows // world_size, **fields}
    model = policy("gpt2") if name == "dropout" else policy()
    made = trainer(folder / name, fields, model=model, reward_funcs=uneven_rewards, **arguments)
    tables = []
    advantage = made.advantage

    def noting(*args: Any, **kwargs: Any) -> Any:
        tables.append(advantage(*args, **kwargs))
        return tables[-1]

    made.advantage = noting
    made.train(resume_from_checkpoint=(folder / name / "checkpoint-2").is_dir())
    return {
        "advantages": [table.advantages_N.tolist() for table in tables],
        "parameters": flat(made.model).tolist(),
        "lines": [timeless(line) for line in made.state.log_history if "loss" in line],
    }


def evaluate(folder: Path, world_size: int) -> dict[str, Any]:
    """Three prompts in batches of two, one completion each: the last batch has a row on one rank only."""

    def compute(groups: list[Any]) -> dict[str, float]:
        return {"ids": float("".join(str(group.prompt.id + 1) for group in groups)), "num_groups": float(len(groups))}

    fields = {"num_generations_eval": 1, "per_device_eval_batch_size": 2 // world_size, "beta": 0.1}
    made = trainer(
        folder / "eval", fields, reward_funcs=uneven_rewards, eval_dataset=DATA[1:4], compute_metrics=compute
    )
    metrics = timeless(made.evaluate())
    spanning = trainer(
        folder / "eval-spanning",
        {"num_generations_eval": 4, "per_device_eval_batch_size": 12 // world_size, "loss_type": "grpo"},
        reward_funcs=uneven_rewards,
        eval_dataset=DATA[1:4],
        compute_metrics=compute,
    )
    return {"metrics": metrics, "spanning": timeless(spanning.evaluate())}


def resume(folder: Path, world_size: int) -> dict[str, Any]:
    """Stop after two steps, inside a round, and go on: the same as in one go."""
    name = "several slices"
    run(name, folder / "parts", world_size, callbacks=[StopAt(2)])
    return {"whole": run(name, folder / "whole", world_size), "parts": run(name, folder / "parts", world_size)}


def fail(folder: Path, rank: int) -> dict[str, str]:
    """What every rank raises where one of them fails in the second step."""

    def one_word_on_rank_1(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
        if rank == 1 and trainer_state.global_step == 1:
            raise KeyError("no such answer")
        return [1.0] * len(completions)

    def wrong_length_on_both(completions: list[str], **kwargs: Any) -> list[float]:
        return [1.0] * (7 + rank)

    def no_answer_on_rank_0(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        if rank == 0 and trainer.state.global_step == 1:
            raise ConnectionError("the server is gone")
        ids = [[3, 4]] * len(prompts)
        return {"prompt_ids": ids, "completion_ids": ids, "logprobs": [[-1.0, -1.0]] * len(prompts)}

    cases: dict[str, dict[str, Any]] = {
        "reward": {"reward_funcs": one_word_on_rank_1},
        "both": {"reward_funcs": wrong_length_on_both},
        "rollout": {"reward_funcs": uneven_rewards, "rollout_func": no_answer_on_rank_0},
    }
    raised = {}
    for name, arguments in cases.items():
        made = trainer(folder / name, {"per_device_train_batch_size": 2, "max_steps": 3}, **arguments)
        try:
            made.train()
        except GruppoError as error:
            raised[name] = f"{type(error).__name__} at {made.state.global_step}: {error}"
    return raised


def speak_on_one_rank(folder: Path, rank: int) -> list[dict[str, Any]]:
    """Lines of a run whose rollout_func knows its log-probs on one rank only. Not all ranks may wait for the others."""

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        ids = [[3, 4, 5]] * len(prompts)
        logprobs = None if rank == 1 else [[-1.0, None, -3.0]] * len(prompts)
        return {"prompt_ids": ids, "completion_ids": ids, "logprobs": logprobs}

    fields = {"per_device_train_batch_size": 2, "max_steps": 3, "steps_per_generation": 4, "old_logprobs": "sampler"}
    made = trainer(folder, fields, reward_funcs=uneven_rewards, rollout_func=rollout)
    made.train()
    return [timeless(line) for line in made.state.log_history if "loss" in line]


def log_what_cannot_travel(folder: Path) -> list[Any]:
    """The extras of all ranks; a function has no form in which another process could have it."""

    def logging(completions: list[str], log_extra: Any, **kwargs: Any) -> list[float]:
        log_extra("checker", [lambda: None] * len(completions))
        return [float(len(text)) for text in completions]

    made = trainer(folder, {"per_device_train_batch_size": 2, "max_steps": 1}, reward_funcs=logging)
    made.train()
    return read_rollouts(folder, split="train")["extra/checker"].to_pylist()


def main(out_dir: Path) -> None:
    from accelerate import PartialState

    state = PartialState(cpu=True)
    rank, size = state.process_index, state.num_processes
    results: dict[str, Any] = {"rank": rank, "size": size}
    for name in (*CASES, *RANKS_ONLY):
        results[name] = run(name, out_dir / "runs", size)
    results["evaluation"] = evaluate(out_dir / "runs", size)
    results["raised"] = fail(out_dir / "fail", rank)
    results["half silent"] = speak_on_one_rank(out_dir / "half-silent", rank)
    results["extras"] = log_what_cannot_travel(out_dir / "extras")
    results["resume"] = resume(out_dir / "resume", size)
    (out_dir / f"rank{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
