"""RUNS: the trainings that the health checks are calibrated on, each with what is known about it.

Healthy runs differ in seed, loss, group size, learning rate, reward and task. A broken run is broken in one way, on
purpose, and names the checks that must see it. How one is trained is in calibration_training.py.

Statistics and thresholds may be chosen by looking at runs of the split `tuning`. Runs of the split `held-out` differ
in seed, and the healthy ones in settings too; they are only counted. Who looks at one and then changes a check must
give it to `tuning` and make a new one: all seeds but the latest were held out once.
"""

from __future__ import annotations

from typing import Any, Final

import calibration_rewards as r
from calibration_training import Run, Split, freeze_sampler

TUNING_SEEDS, HELD_OUT_SEED = (31, 41, 51), 71


def _healthy(name: str, what: str, split: Split, seed: int, **settings: Any) -> Run:
    return Run(f"ok-{name}", what, split, seed, **settings)


def _broken(name: str, what: str, *breaks: str, **settings: Any) -> tuple[Run, ...]:
    """A broken run at the seeds for tuning and at the one that is held out."""
    splits: tuple[tuple[Split, int], ...] = (*(("tuning", seed) for seed in TUNING_SEEDS), ("held-out", HELD_OUT_SEED))
    return tuple(Run(f"{name}-{seed}", what, split, seed, breaks, **settings) for split, seed in splits)


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
    _healthy("dapo-slow", "learning rate 1e-5", "tuning", 51, fields={LR: 1e-5}, steps=150),
    _healthy(
        "dr-grpo-g16",
        "loss dr_grpo, groups of 16, advantages not scaled",
        "tuning",
        22,
        fields={"loss_type": "dr_grpo", "scale_rewards": "none", "num_generations": 16, LR: 1e-4},
    ),
    _healthy(
        "off-policy",
        "2 passes over rounds of 4 steps",
        "tuning",
        23,
        fields={"steps_per_generation": 4, "num_iterations": 2},
        steps=80,
    ),
    _healthy(
        "kl-sync",
        "beta 0.1, reference synced every 20 steps",
        "tuning",
        54,
        fields={"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 20, LR: 1e-4},
    ),
    _healthy("words-near", "the task in words, partial credit", "tuning", 55, task="words", rewards=(r.near_answer,)),
    _healthy(
        "cispo",
        "loss cispo, temperature 0.8",
        "tuning",
        26,
        fields={"loss_type": "cispo", "epsilon_high": 5.0, "temperature": 0.8},
    ),
    _healthy("bf16", "rollouts in bfloat16", "tuning", 27, fields={"rollout_dtype": "bfloat16"}),
    _healthy("lora", "a LoRA adapter, learning rate 1e-3", "tuning", 28, fields={LR: 1e-3}, lora=True),
    _healthy(
        "watched-term",
        "partial credit trains, the right answer is watched with weight 0",
        "tuning",
        29,
        rewards=(r.near_answer, r.right_answer),
        fields={"reward_weights": [1.0, 0.0], LR: 1e-4},
    ),
    _healthy("long", "the demo's settings, 200 steps", "tuning", 30, steps=200),
    _healthy(
        "bnpo-g4-near",
        "loss bnpo, groups of 4, partial credit",
        "tuning",
        61,
        rewards=(r.near_answer,),
        fields={"loss_type": "bnpo", "num_generations": 4, LR: 1e-4},
    ),
    _healthy(
        "dr-grpo-batch",
        "loss dr_grpo, advantages scaled by the batch",
        "tuning",
        62,
        fields={"loss_type": "dr_grpo", "scale_rewards": "batch", LR: 1e-4},
    ),
    _healthy(
        "cispo-off-policy",
        "loss cispo, 2 passes over rounds of 2 steps",
        "tuning",
        63,
        fields={"loss_type": "cispo", "epsilon_high": 5.0, "steps_per_generation": 2, "num_iterations": 2},
    ),
    _healthy(
        "words-lora",
        "the task in words, a LoRA adapter, partial credit",
        "tuning",
        64,
        task="words",
        rewards=(r.near_answer,),
        fields={LR: 1e-3},
        lora=True,
        steps=60,
    ),
    _healthy(
        "gspo-bf16",
        "sequence-level ratios, rollouts in bfloat16, 2 steps per round",
        "tuning",
        65,
        fields={"importance_sampling_level": "sequence", "steps_per_generation": 2, "rollout_dtype": "bfloat16"},
    ),
    _healthy(
        "words-two-terms",
        "the task in words, right answer and form, weights 1 and 0.3",
        "tuning",
        66,
        task="words",
        rewards=TERMS,
        fields={"reward_weights": [1.0, 0.3], LR: 1e-4},
    ),
    _healthy("kl-g16", "beta 0.02, groups of 16", "tuning", 67, fields={"beta": 0.02, "num_generations": 16, LR: 1e-4}),
    _healthy("fast", "learning rate 1e-4, on after it is solved", "tuning", 68, fields={LR: 1e-4}, steps=150),
    _healthy(
        "sapo-few",
        "loss sapo, 40 questions",
        "tuning",
        69,
        fields={"loss_type": "sapo"},
        num_questions=40,
    ),
    _healthy(
        "lora-g16",
        "a LoRA adapter, groups of 16, temperature 0.9",
        "tuning",
        70,
        fields={LR: 5e-4, "num_generations": 16, "temperature": 0.9},
        lora=True,
    ),
    _healthy(
        "grpo-warm",
        "loss grpo, temperature 1.1",
        "held-out",
        81,
        fields={"loss_type": "grpo", "temperature": 1.1},
    ),
    _healthy(
        "words-dr-grpo",
        "the task in words, loss dr_grpo, learning rate 2e-4",
        "held-out",
        82,
        task="words",
        fields={"loss_type": "dr_grpo", LR: 2e-4},
    ),
    _healthy(
        "words-gspo-near",
        "the task in words, sequence-level ratios, groups of 4, partial credit",
        "held-out",
        83,
        task="words",
        rewards=(r.near_answer,),
        fields={"importance_sampling_level": "sequence", "num_generations": 4, "steps_per_generation": 2, LR: 1e-4},
    ),
    _healthy(
        "lora-bf16",
        "a LoRA adapter, rollouts in bfloat16, right answer and form, weights 1 and 0.2",
        "held-out",
        84,
        rewards=TERMS,
        fields={"reward_weights": [1.0, 0.2], "rollout_dtype": "bfloat16", LR: 1e-3},
        lora=True,
    ),
    _healthy(
        "kl-near",
        "beta 0.05, partial credit",
        "held-out",
        85,
        rewards=(r.near_answer,),
        fields={"beta": 0.05, LR: 1e-4},
    ),
    _healthy(
        "words-cispo-g16",
        "the task in words, loss cispo, groups of 16",
        "held-out",
        86,
        task="words",
        fields={"loss_type": "cispo", "epsilon_high": 5.0, "num_generations": 16, LR: 1e-4},
    ),
    _healthy(
        "three-passes",
        "3 passes over rounds of 2 steps",
        "held-out",
        87,
        fields={"steps_per_generation": 2, "num_iterations": 3},
    ),
    _healthy(
        "few-near-batch",
        "60 questions, partial credit, advantages scaled by the batch",
        "held-out",
        88,
        rewards=(r.near_answer,),
        fields={"scale_rewards": "batch"},
        num_questions=60,
    ),
    _healthy(
        "sapo-cool",
        "loss sapo, temperature 0.9, learning rate 8e-5, 120 steps",
        "held-out",
        89,
        fields={"loss_type": "sapo", "temperature": 0.9, LR: 8e-5},
        steps=120,
    ),
    _healthy(
        "words-bnpo-form",
        "the task in words, loss bnpo, groups of 16, right answer and form, weights 1 and 0.5",
        "held-out",
        90,
        task="words",
        rewards=TERMS,
        fields={"loss_type": "bnpo", "num_generations": 16, "reward_weights": [1.0, 0.5], LR: 2e-4},
    ),
)

BROKEN: Final[tuple[Run, ...]] = (
    *_broken(
        "impossible",
        "the checker compares with the wrong column",
        "D01",
        "D03",
        "D22",
        rewards=(r.impossible,),
        steps=40,
    ),
    *_broken("solved", "every answer is right from the start", "D01", rewards=(r.ends_with_number,), steps=30),
    *_broken(
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
    *_broken("cut", "max_completion_length of 6", "D05", steps=30, fields={"max_completion_length": 6}),
    *_broken("lr-high", "a learning rate of 1e-2", "D01", "D05", "D07", steps=60, fields={LR: 1e-2}),
    *_broken("entropy-high", "entropy_coef of 2", "D07", fields={"entropy_coef": 2.0, LR: 2e-4}, steps=80),
    *_broken(
        "eighty",
        "a judge that likes numbers near 80 and knows one right answer in seven",
        "D06",
        rewards=(r.near_eighty,),
        fields={LR: 5e-4},
        steps=120,
    ),
    *_broken("kl", "beta 1e-4 and a learning rate of 5e-3", "D08", steps=60, fields={"beta": 1e-4, LR: 5e-3}),
    *_broken(
        "many-passes",
        "8 passes over rounds of 4 steps, learning rate 1e-3",
        "D09",
        fields={"num_iterations": 8, "steps_per_generation": 4, LR: 1e-3},
    ),
    *_broken("stale", "the sampler keeps its first weights", "D10", twist=freeze_sampler),
    *_broken(
        "by-the-word", "a reward per word", "D11", task="words", rewards=(r.many_words,), fields={LR: 2e-4}, steps=60
    ),
    *_broken("hot", "temperature 2, 4,357 tokens", "D12", task="wide", steps=30, fields={"temperature": 2.0}),
    *_broken(
        "form-first",
        "the form counts 20 times as much as the answer",
        "D14",
        rewards=TERMS,
        fields={"reward_weights": [0.05, 1.0], LR: 1e-4},
        task="words",
        steps=40,
    ),
    *_broken(
        "bought",
        "short answers are paid for with right ones",
        "D15",
        rewards=(r.right_answer, r.short_form),
        fields={"reward_weights": [0.1, 2.0], LR: 1e-4},
        steps=60,
    ),
    *_broken(
        "form-only",
        "the right answer is out of reach, the form is not",
        "D16",
        rewards=(r.impossible_answer, r.tidy_form),
        fields={LR: 1e-4},
        task="words",
        steps=70,
    ),
    *_broken("greedy", "top_k of 1", "D17", steps=30, fields={"top_k": 1}),
    *_broken(
        "quotes",
        "a judge that likes the question's words",
        "D18",
        task="words",
        rewards=(r.repeats_question,),
        fields={LR: 2e-4},
        steps=50,
    ),
    *_broken(
        "keyword",
        "a judge that looks for the word think",
        "D21",
        "D25",
        is_hacked=True,
        task="words",
        rewards=(r.keyword_judge,),
        fields={LR: 2e-4},
        steps=80,
    ),
    *_broken(
        "tolerant",
        "a checker that accepts any number within 12",
        "D19",
        is_hacked=True,
        task="words",
        rewards=(r.tolerant,),
        fields={LR: 2e-4},
        steps=80,
    ),
    *_broken(
        "exit-code",
        "a checker that takes sys.exit(0) for a pass",
        "D25",
        is_hacked=True,
        task="words",
        rewards=(r.exit_code,),
        fields={LR: 2e-4},
        steps=80,
    ),
    *_broken("lenient", "the checker accepts any number from step 40 on", "D20", rewards=(r.turns_lenient,), steps=60),
    *_broken(
        "labels",
        "wrong labels in training, right ones in the held-out set",
        "D21",
        rewards=(r.wrong_labels,),
        fields={LR: 2e-4},
        steps=80,
    ),
    *_broken("nan", "NaN for every guess", "D22", steps=20, rewards=(r.sometimes_nan,)),
    *_broken(
        "hangs",
        "a reward that times out now and then",
        "D22",
        steps=20,
        rewards=(r.sometimes_hangs,),
        fields={"reward_timeout": 0.3},
    ),
    *_broken("slow-reward", "a reward that takes most of the step", "D22", steps=20, rewards=(r.slow,)),
    *_broken("constant", "a second reward that never varies", "D22", steps=30, rewards=(r.right_answer, r.always_one)),
    *_broken(
        "unit",
        "now and then a reward of 1000, advantages not scaled",
        "D23",
        rewards=(r.other_unit,),
        fields={"scale_rewards": "none"},
        steps=60,
    ),
    *_broken(
        "russian",
        "a reward for what is not English",
        "D24",
        task="words",
        rewards=(r.not_english,),
        fields={LR: 2e-4},
        steps=50,
    ),
    *_broken("stall", "a reward that slows down at step 40", "D26", steps=50, rewards=(r.stalls,)),
)

RUNS: Final[dict[str, Run]] = {run.name: run for run in (*HEALTHY, *BROKEN)}
