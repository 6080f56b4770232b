"""Run: a calibration training and what is known about it; `make` trains one. calibration_runs.py lists them all.

Each is real training by GRPOTrainer with a policy of 0.6 M parameters: the demo's (task "sums"; with a larger
vocabulary: "wide"), or the one of calibration_policy.py (task "words").
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import calibration_rewards as r
from calibration_policy import as_words, wide_policy
from datasets import Dataset

from gruppo import GRPOConfig, GRPOTrainer
from gruppo.demo.run import POLICY as DEMO_POLICY
from gruppo.demo.task import as_row, split_questions
from gruppo.rollout.engine import EmbeddedEngine

NUM_HELD_OUT_QUESTIONS: Final = 64

BASE: Final[dict[str, Any]] = {
    "use_cpu": True,
    "bf16": False,
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "learning_rate": 5e-5,
    "gradient_checkpointing": False,
    "logging_steps": 1000,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "eval_on_start": True,
    "num_generations_eval": 1,
    "per_device_eval_batch_size": NUM_HELD_OUT_QUESTIONS,
    "save_strategy": "no",
    "disable_tqdm": True,
}
MAX_TOKENS: Final = {"sums": 24, "wide": 24, "words": 160}

Split = Literal["tuning", "held-out"]
Twist = Callable[[GRPOTrainer], None]


@dataclass(frozen=True)
class Run:
    """One training, and what is known about it."""

    name: str
    what: str
    split: Split
    seed: int
    breaks: tuple[str, ...] = ()
    """Checks that must give WARN or ALERT (D02: INFO). Empty: healthy, and then none may."""
    is_hacked: bool = False
    """The reward is gamed: the first alarm must come before half of the steps."""
    task: Literal["sums", "words", "wide"] = "sums"
    rewards: tuple[Callable[..., list[float]], ...] = (r.right_answer,)
    steps: int = 80
    fields: dict[str, Any] = field(default_factory=dict)
    num_questions: int | None = None
    """Training questions; None takes all."""
    twist: Twist | None = None
    """Done to the trainer before it trains."""
    lora: bool = False

    @property
    def is_healthy(self) -> bool:
        return not self.breaks


def make(run: Run, folder: Path, words_policy: Path, steps: int | None = None) -> None:
    """Train it; everything that it records goes to `folder`."""
    chosen: dict[str, Any] = {
        **BASE,
        "output_dir": str(folder),
        "seed": run.seed,
        "max_steps": steps or run.steps,
        "max_completion_length": MAX_TOKENS[run.task],
        **run.fields,
    }
    training, held_out = split_questions()
    row = as_words if run.task == "words" else _as_sum
    model, tokenizer = _policy(run, words_policy)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=list(run.rewards),
        args=GRPOConfig(**chosen, allow_unusual=["learning_rate"]),
        train_dataset=Dataset.from_list([row(q, held_out=False) for q in training[: run.num_questions]]),
        eval_dataset=Dataset.from_list([row(q, held_out=True) for q in held_out[:NUM_HELD_OUT_QUESTIONS]]),
        peft_config=_lora() if run.lora else None,
    )
    if run.twist is not None:
        run.twist(trainer)
    trainer.train()


def _policy(run: Run, words_policy: Path) -> tuple[Any, Any]:
    """(model, tokenizer); a path and None where the tokenizer lies beside the model."""
    if run.task == "wide":
        return wide_policy()
    return str(words_policy if run.task == "words" else DEMO_POLICY), None


def _as_sum(question: Any, **columns: Any) -> dict[str, Any]:
    return {**as_row(question), **columns}


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")


def freeze_sampler(trainer: GRPOTrainer) -> None:
    """The engine keeps the weights of the first step, and is told that it has the latest."""
    model = copy.deepcopy(trainer.model)
    trainer.rollout.engine = EmbeddedEngine(model, tokenizer=trainer.processing_class)
