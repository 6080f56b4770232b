"""RUNS: the trainings that the health checks are calibrated on, each with what is known about it; and `make` for one.

Healthy runs differ in seed, loss, group size, learning rate, reward and task. A broken run is broken in one way, on
purpose, and names the checks that must see it. Each is real training by GRPOTrainer with a policy of 0.6 M
parameters: the demo's (task "sums"; with a larger vocabulary: "wide"), or the one of calibration_policy.py
(task "words").

Thresholds may be chosen by looking at runs of the split `tuning`. Runs of the split `held-out` differ in seed, and the
healthy ones in settings too; they are only counted.
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

TUNING_SEED, HELD_OUT_SEED = 31, 41
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


def _healthy(name: str, what: str, split: Split, seed: int, **settings: Any) -> Run:
    return Run(f"ok-{name}", what, split, seed, **settings)


def _both(name: str, what: str, *breaks: str, **settings: Any) -> tuple[Run, Run]:
    """A broken run at the seed for tuning and at the one that is held out."""
    splits: tuple[tuple[Split, int], ...] = (("tuning", TUNING_SEED), ("held-out", HELD_OUT_SEED))
    tuning, held_out = (Run(f"{name}-{seed}", what, split, seed, breaks, **settings) for split, seed in splits)
    return tuning, held_out


LR: Final = "learning_rate"
TERMS: Final = (r.right_answer, r.tidy_form)

HEALTHY: Final[tuple[Run, ...]] = (
    _healthy("dapo", "the demo's settings", "tuning", 11, steps=150),
    _healthy("grpo-g4", "loss grpo, groups of 4", "tuning", 12, fields={"loss_type": "grpo", "num_generations": 4}),
    _healthy(
        "gspo",
        "sequence-level ratios, 4 steps per round",
        "tuning",
        13,
        fields={"importance_sampling_level": "sequence", "steps_per_generation": 4, "loss_type": "grpo"},
    ),
    _healthy("kl", "a reference, beta 0.04", "tuning", 14, fields={"beta": 0.04, LR: 1e-4}),
    _healthy("words", "the task in words", "tuning", 15, task="words", fields={LR: 1e-4}, steps=100),
    _healthy(
        "two-terms",
        "right answer and form, weights 1 and 0.2",
        "tuning",
        16,
        rewards=TERMS,
        fields={"reward_weights": [1.0, 0.2]},
        steps=100,
    ),
    _healthy("near", "partial credit", "tuning", 17, rewards=(r.near_answer,), fields={LR: 1e-4}),
    _healthy("dapo-slow", "learning rate 1e-5", "held-out", 51, fields={LR: 1e-5}, steps=150),
    _healthy(
        "dr-grpo-g16",
        "loss dr_grpo, groups of 16, advantages not scaled",
        "held-out",
        22,
        fields={"loss_type": "dr_grpo", "scale_rewards": "none", "num_generations": 16, LR: 1e-4},
    ),
    _healthy(
        "off-policy",
        "2 passes over rounds of 4 steps",
        "held-out",
        23,
        fields={"steps_per_generation": 4, "num_iterations": 2},
        steps=80,
    ),
    _healthy(
        "kl-sync",
        "beta 0.1, reference synced every 20 steps",
        "held-out",
        54,
        fields={"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 20, LR: 1e-4},
    ),
    _healthy("words-near", "the task in words, partial credit", "held-out", 55, task="words", rewards=(r.near_answer,)),
    _healthy(
        "cispo",
        "loss cispo, temperature 0.8",
        "held-out",
        26,
        fields={"loss_type": "cispo", "epsilon_high": 5.0, "temperature": 0.8},
    ),
    _healthy("bf16", "rollouts in bfloat16", "held-out", 27, fields={"rollout_dtype": "bfloat16"}),
    _healthy("lora", "a LoRA adapter, learning rate 1e-3", "held-out", 28, fields={LR: 1e-3}, lora=True),
    _healthy(
        "watched-term",
        "partial credit trains, the right answer is watched with weight 0",
        "held-out",
        29,
        rewards=(r.near_answer, r.right_answer),
        fields={"reward_weights": [1.0, 0.0], LR: 1e-4},
    ),
    _healthy("long", "the demo's settings, 200 steps", "held-out", 30, steps=200),
)

BROKEN: Final[tuple[Run, ...]] = (
    *_both(
        "impossible",
        "the checker compares with the wrong column",
        "D01",
        "D03",
        "D22",
        rewards=(r.impossible,),
        steps=40,
    ),
    *_both("solved", "every answer is right from the start", "D01", rewards=(r.ends_with_number,), steps=30),
    *_both(
        "long-is-good",
        "a judge that likes long answers",
        "D04",
        "D13",
        is_hacked=True,
        task="words",
        rewards=(r.long_is_good,),
        fields={LR: 2e-4},
        steps=60,
    ),
    *_both("cut", "max_completion_length of 6", "D05", steps=30, fields={"max_completion_length": 6}),
    *_both("lr-high", "a learning rate of 1e-2", "D01", "D05", "D07", steps=60, fields={LR: 1e-2}),
    *_both("entropy-bonus", "entropy_coef of 0.5", "D07", fields={"entropy_coef": 0.5, LR: 2e-4}),
    *_both("kl", "beta 1e-4 and a learning rate of 5e-3", "D06", "D08", steps=60, fields={"beta": 1e-4, LR: 5e-3}),
    *_both(
        "many-passes",
        "8 passes over rounds of 4 steps, learning rate 1e-3",
        "D09",
        fields={"num_iterations": 8, "steps_per_generation": 4, LR: 1e-3},
    ),
    *_both("stale", "the sampler keeps its first weights", "D10", twist=freeze_sampler),
    *_both(
        "by-the-word", "a reward per word", "D11", task="words", rewards=(r.many_words,), fields={LR: 2e-4}, steps=60
    ),
    *_both("hot", "temperature 2, 4,357 tokens", "D12", task="wide", steps=30, fields={"temperature": 2.0}),
    *_both(
        "form-first",
        "the form counts 20 times as much as the answer",
        "D14",
        rewards=TERMS,
        fields={"reward_weights": [0.05, 1.0], LR: 1e-4},
        task="words",
        steps=40,
    ),
    *_both(
        "bought",
        "short answers are paid for with right ones",
        "D15",
        rewards=(r.right_answer, r.short_form),
        fields={"reward_weights": [0.1, 2.0], LR: 1e-4},
        steps=60,
    ),
    *_both(
        "form-only",
        "the right answer is out of reach, the form is not",
        "D16",
        rewards=(r.impossible_answer, r.tidy_form),
        fields={LR: 1e-4},
        task="words",
        steps=70,
    ),
    *_both("greedy", "top_k of 1", "D17", steps=30, fields={"top_k": 1}),
    *_both(
        "quotes",
        "a judge that likes the question's words",
        "D18",
        task="words",
        rewards=(r.repeats_question,),
        fields={LR: 2e-4},
        steps=50,
    ),
    *_both(
        "keyword",
        "a judge that looks for the word think",
        "D21",
        is_hacked=True,
        task="words",
        rewards=(r.keyword_judge,),
        fields={LR: 2e-4},
        steps=80,
    ),
    *_both(
        "tolerant",
        "a checker that accepts any number within 12",
        "D19",
        is_hacked=True,
        task="words",
        rewards=(r.tolerant,),
        fields={LR: 2e-4},
        steps=80,
    ),
    *_both(
        "exit-code",
        "a checker that takes sys.exit(0) for a pass",
        "D25",
        is_hacked=True,
        task="words",
        rewards=(r.exit_code,),
        fields={LR: 2e-4},
        steps=80,
    ),
    *_both("lenient", "the checker accepts any number from step 40 on", "D20", rewards=(r.turns_lenient,), steps=60),
    *_both(
        "labels",
        "wrong labels in training, right ones in the held-out set",
        "D21",
        rewards=(r.wrong_labels,),
        fields={LR: 2e-4},
        steps=80,
    ),
    *_both("nan", "NaN for every guess", "D22", steps=20, rewards=(r.sometimes_nan,)),
    *_both(
        "hangs",
        "a reward that times out now and then",
        "D22",
        steps=20,
        rewards=(r.sometimes_hangs,),
        fields={"reward_timeout": 0.3},
    ),
    *_both("slow-reward", "a reward that takes most of the step", "D22", steps=20, rewards=(r.slow,)),
    *_both("constant", "a second reward that never varies", "D22", steps=30, rewards=(r.right_answer, r.always_one)),
    *_both(
        "unit",
        "now and then a reward of 1000, advantages not scaled",
        "D23",
        rewards=(r.other_unit,),
        fields={"scale_rewards": "none"},
        steps=60,
    ),
    *_both(
        "russian",
        "a reward for what is not English",
        "D24",
        task="words",
        rewards=(r.not_english,),
        fields={LR: 2e-4},
        steps=50,
    ),
    *_both("stall", "a reward that slows down at step 40", "D26", steps=50, rewards=(r.stalls,)),
)

RUNS: Final[dict[str, Run]] = {run.name: run for run in (*HEALTHY, *BROKEN)}
