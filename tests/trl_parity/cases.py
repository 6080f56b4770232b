"""The combinations that are compared: those chosen by hand, and a spread in which nearly every two choices meet.

A case is data; nothing here runs anything. Add one by writing a line.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

BASE: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "logging_steps": 1,
    "seed": 7,
    "optim": "sgd",  # Adam divides a gradient by its own size, and so shows the rounding of those that are nearly zero
    "lr_scheduler_type": "constant",
    "learning_rate": 0.1,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "max_steps": 4,
}
ADAMW: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 0.003, "weight_decay": 0.1, "adam_epsilon": 1e-3}
CORRECTION = "vllm_importance_sampling"
"""TRL's prefix of the sampler-correction fields, kept by gruppo for every engine."""


@dataclass(frozen=True)
class Case:
    """One run: `config` goes to both `GRPOConfig`s as it is; the rest says what the trainer is given."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    rewards: tuple[str, ...] = ("short", "even")
    num_prompts: int = 8
    num_eval_prompts: int = 0
    model: str = "qwen2"
    sampler: str = "none"
    """Log-probs that the rollout reports: none, exact, noisy."""
    has_env_mask: bool = False
    is_corrected: bool = False
    """Sampler/trainer importance correction: TRL does it for vLLM alone, gruppo for any engine."""
    is_conversational: bool = False
    is_in_memory: bool = False
    """The model is handed over as an object, not as a path."""
    lora: str = ""
    """given: a PeftModel with an adapter that is not zero. fresh: `peft_config`, the adapter is made by the trainer."""
    is_streamed: bool = False
    is_double: bool = False
    """The model is handed over in float64: for what divides or starts from nothing, and so shows float32's rounding."""
    ours: dict[str, Any] = field(default_factory=dict)
    """Settings that only gruppo has, and that must not change the objective."""

    @property
    def settings(self) -> dict[str, Any]:
        return BASE | self.config


def _corrected(mode: str, **bounds: float | None) -> dict[str, Any]:
    return {f"{CORRECTION}_mode": mode} | {f"{CORRECTION}_{name}": value for name, value in bounds.items()}


LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
OFF_POLICY: dict[str, Any] = {"num_iterations": 2, "gradient_accumulation_steps": 1, "steps_per_generation": 2}

# ---- chosen by hand ---------------------------------------------------------------------------------------------

BY_HAND: list[Case] = [
    *[Case(f"{loss}-off-policy", OFF_POLICY | {"loss_type": loss, "max_steps": 5}) for loss in LOSS_TYPES[:-1]],
    # Smaller steps: VESPO's weight is the exponential of a sum of log-ratios, and shows their rounding.
    Case("vespo-off-policy", OFF_POLICY | {"loss_type": "vespo", "max_steps": 5, "learning_rate": 0.02}),
    *[
        Case(
            f"{loss}-accumulated-kl",
            {"loss_type": loss, "beta": 0.05, "gradient_accumulation_steps": 2, "max_steps": 3} | ADAMW,
            has_env_mask=True,
        )
        for loss in LOSS_TYPES
    ],
    # objective
    Case("delta", OFF_POLICY | {"loss_type": "grpo", "delta": 1.5, "epsilon_high": 0.28}),
    Case("cispo-high-cap", OFF_POLICY | {"loss_type": "cispo", "epsilon_high": 1.2}),
    Case("gspo", OFF_POLICY | {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-2}),
    Case("gspo-kl", OFF_POLICY | {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1}),
    Case("luspo-sequence", OFF_POLICY | {"loss_type": "luspo", "importance_sampling_level": "sequence"}),
    Case(
        "sapo-temperatures",
        OFF_POLICY | {"loss_type": "sapo", "sapo_temperature_neg": 2.0, "sapo_temperature_pos": 0.5},
    ),
    Case(
        "vespo-shapes", OFF_POLICY | {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 0.5, "beta": 0.02}
    ),
    Case("kl-without-bias-correction", OFF_POLICY | {"beta": 0.2, "use_bias_correction_kl": False}),
    Case("three-iterations", {"num_iterations": 3, "max_steps": 6, "beta": 0.05}),
    Case("sync-ref", {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": 5}),
    Case("temperature", OFF_POLICY | {"temperature": 0.6, "beta": 0.05}),
    # masks
    Case("truncated-masked", {"mask_truncated_completions": True, "loss_type": "dr_grpo", "num_generations": 2}),
    Case("truncated-masked-env", OFF_POLICY | {"mask_truncated_completions": True}, has_env_mask=True),
    Case("off-policy-mask", OFF_POLICY | {"off_policy_mask_threshold": 0.02}),
    Case("off-policy-mask-sampler", {"off_policy_mask_threshold": 0.05, "loss_type": "bnpo"}, sampler="noisy"),
    Case("entropy-quantile", {"top_entropy_quantile": 0.3, "gradient_accumulation_steps": 2, "beta": 0.05}),
    Case("entropy-quantile-env", {"top_entropy_quantile": 0.5, "loss_type": "grpo"}, has_env_mask=True),
    # entropy
    Case("entropy-bonus", {"entropy_coef": 0.05, "gradient_accumulation_steps": 2, "loss_type": "dapo"}),
    Case("entropy-bonus-quantile", {"entropy_coef": 0.05, "top_entropy_quantile": 0.4, "loss_type": "bnpo"}),
    Case(
        "entropy-adaptive",
        {"use_adaptive_entropy": True, "entropy_target": 3.58, "entropy_coef": 0.02, "entropy_coef_delta": 0.01}
        | {"gradient_accumulation_steps": 2, "max_steps": 6, "learning_rate": 0.2},
    ),
    Case(
        "entropy-adaptive-bounds",
        {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef_max": 0.015, "entropy_coef_delta": 0.01}
        | {"max_steps": 5, "loss_type": "grpo", "logging_steps": 2},
    ),
    # sampler correction
    *[
        Case(f"correction-{mode}", OFF_POLICY | _corrected(mode, clip_max=1.3), sampler="noisy", is_corrected=True)
        for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    ],
    Case(
        "correction-both-bounds",
        {"beta": 0.05, "loss_type": "grpo"} | _corrected("token_truncate", clip_max=1.2, clip_min=0.9),
        sampler="noisy",
        is_corrected=True,
        has_env_mask=True,
    ),
    Case(
        "correction-vespo",
        OFF_POLICY | {"loss_type": "vespo"} | _corrected("token_mask", clip_max=4.0, clip_min=0.2),
        sampler="noisy",
        is_corrected=True,
    ),
    Case(
        "correction-sequence-off-policy-mask",
        {"off_policy_mask_threshold": 0.0, "importance_sampling_level": "sequence", "loss_type": "grpo"}
        | _corrected("sequence_mask", clip_max=2.0, clip_min=0.4),
        sampler="noisy",
        is_corrected=True,
    ),
    Case("sampler-exact", OFF_POLICY | {"loss_type": "grpo", "temperature": 0.8}, sampler="exact"),
    # rewards
    Case("abstaining", {"num_generations": 4}, rewards=("abstains", "short")),
    Case("unscorable-rows", {"scale_rewards": "batch", "gradient_accumulation_steps": 2}, rewards=("abstains",)),
    Case("unscorable-rows-group", {"loss_type": "grpo", "steps_per_generation": 2}, rewards=("abstains", "never")),
    Case("unscorable-all", {"beta": 0.1}, rewards=("never",)),
    Case("zero-variance", {"beta": 0.1, "scale_rewards": "none"}, rewards=("constant",)),
    Case("weights", {"reward_weights": [0.5, -2.0, 1.5]}, rewards=("short", "even", "small_words")),
    Case(
        "gdpo",
        {
            "multi_objective_aggregation": "normalize_then_sum",
            "reward_weights": [1.0, 0.3, 2.0],
            "steps_per_generation": 2,
        },
        rewards=("short", "abstains", "even"),
    ),
    Case("reward-kwargs-async", {"logging_steps": 2}, rewards=("by_row", "later")),
    # batch arithmetic
    Case("generation-batch", {"generation_batch_size": 16, "gradient_accumulation_steps": 2, "num_generations": 8}),
    Case("groups-of-three", {"generation_batch_size": 18, "per_device_train_batch_size": 6, "num_generations": 3}),
    Case("window-spans-rounds", {"gradient_accumulation_steps": 4, "steps_per_generation": 2}),
    Case("window-cuts-rounds", {"gradient_accumulation_steps": 3, "steps_per_generation": 2, "max_steps": 5}),
    Case(
        "group-spans-slices",
        {"per_device_train_batch_size": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 4},
    ),
    Case(
        "epoch-remainder",
        {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 4, "steps_per_generation": 2},
        num_prompts=7,
    ),
    Case(
        "epoch-remainder-cut-rounds",
        {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 3, "steps_per_generation": 2}
        | {"loss_type": "grpo", "num_iterations": 2},
        num_prompts=5,
    ),
    Case(
        "epoch-remainder-dr-grpo",
        {"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 2, "loss_type": "dr_grpo"}
        | {"steps_per_generation": 1, "entropy_coef": 0.01},
        num_prompts=3,
    ),
    Case("epoch-half", {"max_steps": -1, "num_train_epochs": 0.5, "lr_scheduler_type": "cosine"}, num_prompts=7),
    Case("not-shuffled", {"shuffle_dataset": False, "max_steps": 5}, num_prompts=3),
    Case(
        "padded-to-8", {"pad_to_multiple_of": 8, "loss_type": "bnpo", "beta": 0.05}, ours={"policy_forward": "padded"}
    ),
    # optimiser and schedule
    Case("adamw", {"optim": "adamw_torch", "learning_rate": 0.0002, "max_steps": 5}),
    Case("adamw-betas", ADAMW | {"adam_beta1": 0.5, "adam_beta2": 0.9, "lr_scheduler_type": "linear"}),
    Case("adafactor", {"optim": "adafactor", "learning_rate": 1e-3, "lr_scheduler_type": "polynomial"}),
    Case("rmsprop", {"optim": "rmsprop", "learning_rate": 1e-4}, is_double=True),
    Case("shares-of-all-steps", {"logging_steps": 0.5, "warmup_steps": 0.5, "lr_scheduler_type": "linear"}),
    Case("linear-warmup", {"lr_scheduler_type": "linear", "warmup_steps": 2, "max_steps": 5, "max_grad_norm": 0.5}),
    Case("cosine-with-floor", {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.05}}),
    Case("cosine-no-clip", {"lr_scheduler_type": "cosine", "max_grad_norm": 0.0, "learning_rate": 0.05}),
    Case("logged-every-second", {"logging_steps": 2, "max_steps": 5, "lr_scheduler_type": "linear"} | OFF_POLICY),
    Case("logged-first", {"logging_first_step": True, "logging_steps": 3, "max_steps": 5}),
    Case("logged-per-epoch", {"logging_strategy": "epoch", "max_steps": 5}, num_prompts=3),
    # evaluation
    Case(
        "evaluated",
        {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4, "beta": 0.05, "max_steps": 3},
        num_eval_prompts=4,
    ),
    Case(
        "evaluated-in-one-batch",
        OFF_POLICY
        | {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 16, "num_generations_eval": 8}
        | {"loss_type": "dr_grpo", "scale_rewards": "batch", "mask_truncated_completions": True},
        num_eval_prompts=2,
        has_env_mask=True,
    ),
    Case(
        "evaluated-per-epoch",
        {"eval_strategy": "epoch", "per_device_eval_batch_size": 2, "num_generations_eval": 2, "logging_steps": 2}
        | {"max_steps": -1, "num_train_epochs": 2, "loss_type": "grpo", "eval_on_start": True},
        num_prompts=3,
        num_eval_prompts=3,
    ),
    # models and inputs
    Case("llama-tied", OFF_POLICY | {"beta": 0.05}, model="llama_tied"),
    Case("gemma2-softcap", OFF_POLICY | {"beta": 0.05, "temperature": 0.7}, model="gemma2_softcap"),
    Case("granite-scaled", OFF_POLICY | {"learning_rate": 0.05}, model="granite_scaled"),
    Case("two-eos", {"mask_truncated_completions": True, "beta": 0.05}, model="two_eos"),
    Case("in-memory", {"beta": 0.05}, is_in_memory=True),
    Case("mixture-of-experts", {"gradient_accumulation_steps": 2, "router_aux_loss_coef": 0.1}, model="mixtral"),
    Case("lora", OFF_POLICY | {"beta": 0.1}, lora="given"),
    Case("lora-fresh", OFF_POLICY | {"beta": 0.1}, lora="fresh", is_double=True),
    Case("streamed", {"max_steps": 3, "gradient_accumulation_steps": 2}, is_streamed=True),
    Case("streamed-not-shuffled", {"shuffle_dataset": False, "num_iterations": 2}, is_streamed=True),
    # what must change nothing
    Case("checkpointed-activations", OFF_POLICY | {"gradient_checkpointing": True, "beta": 0.05}),
    Case("fp32-head", OFF_POLICY | {"cast_lm_head_to_fp32": True, "beta": 0.05}),
    *[
        Case(
            f"{loss}-in-small-forwards",
            {"loss_type": loss, "beta": 0.05, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
            has_env_mask=True,
            ours={"max_tokens_per_forward": 30},
        )
        for loss in LOSS_TYPES
    ],
    Case(
        "entropy-in-small-forwards",
        {"top_entropy_quantile": 0.4, "entropy_coef": 0.03, "gradient_accumulation_steps": 2, "loss_type": "bnpo"},
        ours={"max_tokens_per_forward": 30},
    ),
    Case("conversational", {"gradient_accumulation_steps": 2}, is_conversational=True, rewards=("short", "by_row")),
]

# ---- the spread -------------------------------------------------------------------------------------------------

_Choice = tuple[str, dict[str, Any]]
"""A piece of the case's name, and what it means for the case; keys of `Case` other than `config` are marked by `:`."""

FACTORS: list[list[_Choice]] = [
    [(loss, {"loss_type": loss}) for loss in LOSS_TYPES],
    [
        ("uncorrected", {}),
        ("exact", {":sampler": "exact"}),
        *[
            (mode, _corrected(mode, clip_max=1.3) | {":sampler": "noisy", ":is_corrected": True})
            for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
        ],
    ],
    [
        (f"ga{ga}s{s}mu{mu}", {"gradient_accumulation_steps": ga, "steps_per_generation": s, "num_iterations": mu})
        for ga, s, mu in ((1, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 1), (3, 2, 1), (2, 2, 2))
    ],
    [
        ("", {}),
        ("adaptive", {"use_adaptive_entropy": True, "entropy_target": 3.57, "entropy_coef": 0.02}),
        ("offmask", {"off_policy_mask_threshold": 0.01}),
        ("quantile", {"top_entropy_quantile": 0.4}),
        ("bonus", {"entropy_coef": 0.03}),
    ],
    [
        ("", {}),
        ("env", {":has_env_mask": True}),
        ("trunc", {"mask_truncated_completions": True}),
        ("env-trunc", {":has_env_mask": True, "mask_truncated_completions": True}),
    ],
    [(scale, {"scale_rewards": scale}) for scale in ("group", "batch", "none")],
    [("b0", {}), ("kl", {"beta": 0.05}), ("kl-plain", {"beta": 0.05, "use_bias_correction_kl": False})],
    [("tok", {}), ("seq", {"importance_sampling_level": "sequence"})],
    [
        ("r2", {}),
        ("r-none", {":rewards": ("abstains", "even")}),
        ("r-gdpo", {":rewards": ("small_words", "abstains"), "multi_objective_aggregation": "normalize_then_sum"}),
    ],
    [("sgd", {}), ("adamw", dict(ADAMW))],
]


def _is_possible(choice: Iterable[_Choice]) -> bool:
    """VESPO weighs whole sequences itself: TRL refuses sequence-level corrections and warns about sequence ratios."""
    names = {name for name, _ in choice}
    return "vespo" not in names or not names & {"seq", "sequence_truncate", "sequence_mask"}


def _meetings(choice: tuple[_Choice, ...]) -> set[tuple[int, str, int, str]]:
    return {(i, choice[i][0], j, choice[j][0]) for i, j in combinations(range(len(choice)), 2)}


def spread(tries: int = 60) -> list[Case]:
    """Every loss with every sampler and correction. The other factors are drawn `tries` times for each of these, and
    the draw is kept in which most pairs of choices meet for the first time.
    """
    rng, seen, cases = random.Random(0), set[tuple[int, str, int, str]](), list[Case]()
    for pair in product(*FACTORS[:2]):
        drawn = [(*pair, *(rng.choice(factor) for factor in FACTORS[2:])) for _ in range(tries)]
        possible = [choice for choice in drawn if _is_possible(choice)]
        if possible:
            best = max(possible, key=lambda choice: len(_meetings(choice) - seen))
            seen |= _meetings(best)
            cases.append(_case(best))
    return cases


def _case(choice: tuple[_Choice, ...]) -> Case:
    name = "_".join(piece for piece, _ in choice if piece)
    merged = {key: value for _, settings in choice for key, value in settings.items()}
    given = {key[1:]: value for key, value in merged.items() if key.startswith(":")}
    return Case(name, {key: value for key, value in merged.items() if not key.startswith(":")}, **given)


CASES = BY_HAND + spread()
