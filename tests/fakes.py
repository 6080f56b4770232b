"""Small stand-ins for trainer tests: a toy task, a trainer of a random tiny model, engines, callbacks.

Everything is seeded and runs in milliseconds. Not here: the models (`tiny_models`) and the tokenizer
(`tiny_tokenizer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from gruppo import GRPOConfig, GRPOTrainer
from gruppo.types import Completion, Group, RolloutRequest, SamplingParams
from tiny_models import tiny
from tiny_tokenizer import ID, tiny_tokenizer

DATA = [{"prompt": f"{a} {b}", "answer": a} for a in ("one", "two", "three") for b in ("four", "five")]
"""Six prompts of three tokens each (BOS included)."""

EOS = ID["<eos>"]


def count_twos(completions: list[str], **kwargs: Any) -> list[float]:
    """The toy task: say "two" as often as you can."""
    return [float(text.split().count("two")) for text in completions]


def policy(family: str = "qwen2", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random tiny model over the words of the tiny tokenizer, flat enough to say all of them."""
    model = tiny(family, seed=seed, vocab_size=len(ID), eos_token_id=EOS, pad_token_id=ID["<pad>"], **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.3)
    return model


def config(output_dir: Path, **fields: Any) -> GRPOConfig:
    """Four completions of up to five tokens for each of two prompts make a step; no files but what a test asks for."""
    chosen: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 5,
        "learning_rate": 1e-2,
        "allow_unusual": ["learning_rate"],
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    return GRPOConfig(**{**chosen, **fields})


def trainer(output_dir: Path, fields: dict[str, Any] | None = None, **arguments: Any) -> GRPOTrainer:
    """A GRPOTrainer of the toy task. `fields` go to the config, `arguments` to the trainer."""
    chosen: dict[str, Any] = {
        "reward_funcs": count_twos,
        "train_dataset": DATA,
        "processing_class": tiny_tokenizer(),
    }
    chosen |= arguments
    model = chosen.pop("model") if "model" in chosen else policy()
    return GRPOTrainer(model, args=config(output_dir, **(fields or {})), **chosen)


def flat(model: torch.nn.Module) -> torch.Tensor:
    """All parameters as one vector."""
    return torch.cat([parameter.detach().reshape(-1).float() for parameter in model.parameters()]).clone()


def lines(made: GRPOTrainer, prefix: str = "loss") -> list[dict[str, float]]:
    """Log lines that hold `prefix`, without what depends on the clock."""
    return [timeless(line) for line in made.state.log_history if prefix in line]


def timeless(line: dict[str, float]) -> dict[str, float]:
    clocks = ("time/", "step_time", "perf/", "_runtime", "_per_second")
    return {name: value for name, value in line.items() if not any(clock in name for clock in clocks)}


def scripted(answers: Callable[[str, int], list[int]], *, logprob: float | None = None) -> Callable[..., Any]:
    """A rollout_func: `answers(prompt, sample)` is the completion, every token with the same log-prob."""

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        seen: dict[str, int] = {}
        prompt_ids, completion_ids = [], []
        for prompt in prompts:
            sample = seen[prompt] = seen.get(prompt, -1) + 1
            prompt_ids.append(list(trainer.processing_class(text=prompt)["input_ids"]))
            completion_ids.append(answers(prompt, sample))
        logprobs = None if logprob is None else [[logprob] * len(ids) for ids in completion_ids]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}

    return rollout


class FakeEngine:
    """A RolloutEngine whose completions are `[sample, EOS]`. It remembers what it was asked for."""

    def __init__(self, *, order: Callable[[list[Group]], list[Group]] = list) -> None:
        self.requests: list[RolloutRequest] = []
        self.versions: list[int] = []
        self._order = order

    def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> list[Group]:
        self.requests = list(requests)
        groups = [
            Group(request.prompt, [Completion(sample, [sample + 3, EOS], "stop") for sample in request.samples])
            for request in requests
        ]
        return self._order(groups)

    def load_weights(self, version: int) -> None:
        self.versions.append(version)

    def health(self) -> dict[str, Any]:
        return {"engine": "fake"}

    def close(self) -> None: ...


class Recording(TrainerCallback):
    """Notes the events, in order, with the step at which they came."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def _noting(name: str) -> Callable[..., None]:
    def event(self: Recording, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append((name, state.global_step))

    return event


for _name in (name for name in dir(TrainerCallback) if name.startswith("on_")):
    setattr(Recording, _name, _noting(_name))


class StopAt(TrainerCallback):
    """Stops training after a step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True
