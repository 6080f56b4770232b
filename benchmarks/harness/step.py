"""One contender's whole GRPO steps in a process of its own: `python -m harness.step TASK`, TASK being JSON.

A step is measured from the end of one optimizer step to the end of the next, so rewards, logging and the optimizer
count; the first step warms up and does not. Memory is read before the first step (all is loaded, nothing has run) and
at its peak.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness import models
from harness.lengths import (
    LengthRule,
    equal_lengths,
    impose_on_batching,
    impose_on_engine,
    impose_on_generate,
    lognormal_lengths,
)
from harness.measure import Flop, forget_peak, hand_back, memory_mib, needed_flop

ROWS_PER_SLICE = 8
"""TRL's micro-batch. gruppo's forwards take as many packed tokens as that many padded rows have."""

CONTENDERS = {
    "trl": "TRL as it comes: gradient checkpointing, transformers' generate",
    "trl-tuned": "TRL without gradient checkpointing",
    "trl-cb": "trl-tuned with transformers' continuous batching, which may take a tenth of the free memory",
    "gruppo": "gruppo as it comes",
    "gruppo-oracle": "gruppo with transformers' generate and padded forwards: what its fast paths are tested against",
}


@dataclass(frozen=True)
class Cell:
    """A model's shape and one step's work: B prompts of P tokens, G completions of T tokens each."""

    shape: str
    num_prompt_tokens: int
    num_completion_tokens: int
    """Of each completion; with `median`, of the longest that may be."""
    num_prompts: int = 4
    group_size: int = 8
    median: float | None = None
    """Of a log-normal distribution of completion lengths; None: all are equal."""
    sigma: float = 0.75
    bf16: bool = False
    """Autocast to bfloat16 over float32 weights: what TRL and transformers mean by `bf16=True`."""

    @property
    def num_rows(self) -> int:
        return self.num_prompts * self.group_size

    def prompts(self) -> list[list[int]]:
        vocab_size = models.SHAPES[self.shape]["vocab_size"]
        return [models.prompt_ids(self.num_prompt_tokens, number, vocab_size) for number in range(self.num_prompts)]

    def rule(self) -> LengthRule:
        if self.median is None:
            return equal_lengths(self.prompts(), self.group_size, self.num_completion_tokens)
        return lognormal_lengths(
            self.prompts(),
            self.group_size,
            median=self.median,
            sigma=self.sigma,
            longest=self.num_completion_tokens,
        )

    def flop(self) -> Flop:
        size = models.size_of(self.shape)
        return needed_flop(size.body, size.head, self.num_prompts * self.num_prompt_tokens, self.rule().all_lengths())

    def quick(self) -> Cell:
        """The same in small, to see that everything runs. Its times mean nothing."""
        return replace(
            self,
            shape="tiny",
            num_prompt_tokens=self.num_prompt_tokens // 8,
            num_completion_tokens=self.num_completion_tokens // 8,
            median=self.median and self.median / 8,
        )


def task(contender: str, cell: Cell, num_steps: int) -> dict[str, Any]:
    """What `python -m harness.step` wants to be told."""
    return {"contender": contender, "cell": asdict(cell), "num_steps": num_steps}


def work(contender: str, cell: Cell, num_steps: int, threads: int) -> dict[str, Any]:
    """1 + num_steps steps. Per counted step: wall, CPU and rollout seconds; completion tokens; memory in MiB."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(threads)
    ends: list[tuple[float, float]] = []

    class Stopwatch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

    rule = cell.rule()
    with tempfile.TemporaryDirectory() as folder:
        trainer, rollouts = build(
            contender, cell, rule, folder=Path(folder), num_steps=1 + num_steps, stopwatch=Stopwatch()
        )
        before = memory_mib()
        forget_peak()
        trainer.train()
        peak = memory_mib()["peak"]
    check(rule, trainer.state.log_history)
    if contender == "gruppo":
        check_engine(trainer.rollout.engine.health())
    return {
        "seconds": _mean([after[0] - before[0] for before, after in pairwise(ends)]),
        "cpu_seconds": _mean([after[1] - before[1] for before, after in pairwise(ends)]),
        "rollout_seconds": _mean(rollouts[1:]),
        "tokens": sum(rule.all_lengths()),
        "peak_mib": max(before["peak"], peak),
        "loaded_mib": before["now"],
        "step_mib": peak - before["now"],
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def check(rule: LengthRule, log_history: list[dict[str, Any]]) -> None:
    """Raises SystemExit unless every step's completions had the lengths that the rule says."""
    lengths = rule.all_lengths()
    wanted = {"mean": sum(lengths) / len(lengths), "min": min(lengths), "max": max(lengths)}
    steps = [line for line in log_history if "completions/mean_length" in line]
    found = [{name: line[f"completions/{name}_length"] for name in wanted} for line in steps]
    if not found or any(abs(step[name] - wanted[name]) > 1e-3 for step in found for name in wanted):
        raise SystemExit(f"The length rule was not kept: wanted {wanted}, the steps had {found}.")


def check_engine(health: dict[str, Any]) -> None:
    """Raises SystemExit unless the fast engine did it: one that cannot falls back to `generate`, with a warning."""
    if health.get("forward") not in {"fused", "modules"}:
        raise SystemExit(f"gruppo did not sample with its embedded engine: {health}.")


def build(
    contender: str, cell: Cell, rule: LengthRule, *, folder: Path, num_steps: int, stopwatch: Any
) -> tuple[Any, list[float]]:
    """The trainer, and a list that will hold the seconds of each of its rollouts."""
    from datasets import Dataset

    model, tokenizer = models.make_model(cell.shape), models.make_tokenizer(cell.shape)
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "num_generations": cell.group_size,
        "per_device_train_batch_size": ROWS_PER_SLICE,
        "gradient_accumulation_steps": cell.num_rows // ROWS_PER_SLICE,
        "max_completion_length": cell.num_completion_tokens,
        "max_steps": num_steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": cell.bf16,
    }
    # As many prompts as a step takes: every step of every contender meets the same ones, and so the same lengths.
    texts = [models.prompt_text(ids) for ids in cell.prompts()]
    assert tokenizer(texts)["input_ids"] == cell.prompts(), "a prompt must have the tokens that the cell says"
    dataset = Dataset.from_list([{"prompt": text} for text in texts])
    given = {"train_dataset": dataset, "processing_class": tokenizer, "callbacks": [stopwatch]}
    impose_on_generate(model, rule)
    if contender.startswith("trl"):
        from trl import GRPOConfig, GRPOTrainer

        fields["gradient_checkpointing"] = contender == "trl"
        if contender == "trl-cb":
            fields["use_transformers_continuous_batching"] = True
            # By default it takes 60 % of the free memory for its cache, and fills it with zeros at every step.
            fields["transformers_continuous_batching_config"] = {"max_memory_percent": 0.1}
            impose_on_batching(model, rule)
        trainer: Any = GRPOTrainer(model, reward, args=GRPOConfig(**fields), **given)
        return trainer, timed_calls(trainer, "_generate_single_turn")
    from gruppo import GRPOConfig as OurConfig
    from gruppo import GRPOTrainer as OurTrainer

    if contender == "gruppo-oracle":
        fields |= {"rollout_engine": "hf", "policy_forward": "padded"}
    impose_on_engine(rule)
    trainer = OurTrainer(model, reward, args=OurConfig(**fields), **given)
    return trainer, timed_calls(trainer.rollout, "generate")


def reward(completions: list[str], **kwargs: Any) -> list[float]:
    """Differs within every group, and costs nothing."""
    return [float(sum(completion.encode()) % 7) for completion in completions]


def timed_calls(owner: Any, name: str) -> list[float]:
    """From now on, the seconds of each call of owner.name are added to the list that this returns."""
    method, seconds = getattr(owner, name), []

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    setattr(owner, name, timed)
    return seconds


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    hand_back(work(given["contender"], Cell(**given["cell"]), given["num_steps"], given["threads"]))
