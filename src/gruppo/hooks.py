"""Hooks of TRL's and transformers' trainers that nothing here calls, and what does their work instead.

A subclass of GRPOTrainer that defines one would be ignored without a word, so making the class is an error. What
GRPOTrainer has itself is not here: it is called where its name says so, and may be overridden.
"""

from __future__ import annotations

from typing import NamedTuple

from gruppo.errors import ConfigError


class Idle(NamedTuple):
    """Hooks that are idle for the same reason."""

    names: tuple[str, ...]
    reason: str
    instead: str


_STEPS = "GRPOTrainer's own steps may be overridden: train_round, advantage, assemble, update"

_LOOP = Idle(
    (
        "compute_loss_context_manager",
        "autocast_smart_context_manager",
        "get_batch_samples",
        "set_initial_training_values",
        "create_accelerator_and_postprocess",
        "call_model_init",
        "floating_point_ops",
        "store_flos",
    ),
    "the training loop is gruppo's own",
    f"use a callback (on_step_begin, on_step_end, on_evaluate, on_save, on_train_end, ...); {_STEPS}",
)

IDLE_HOOKS: tuple[Idle, ...] = (
    Idle(
        (
            "compute_loss",
            "_compute_loss",
            "training_step",
            "_get_per_token_logps",
            "_get_per_token_logps_and_entropies",
            "get_high_entropy_mask",
            "get_off_policy_mask",
            "get_gamma_weights",
        ),
        "the loss is computed of packed rows, by the fields of GRPOConfig",
        f"set loss_type, beta, importance_sampling_level, ...; {_STEPS}",
    ),
    Idle(
        (
            "_generate",
            "_generate_single_turn",
            "_generate_and_score_completions",
            "_tokenize_prompts",
            "_tool_call_loop",
            "_get_tool_suffix_ids",
            "_prepare_input",
            "_prepare_inputs",
        ),
        "completions come from the rollout engine, or from yours",
        f"pass rollout_func for completions and reward_funcs for scores; {_STEPS}",
    ),
    Idle(
        ("_calculate_rewards", "_log_completion_extra", "_log_metric"),
        "rewards come from reward_funcs",
        "write a reward function; its log_extra and log_metric record further values",
    ),
    Idle(
        (
            "create_optimizer",
            "create_optimizer_and_scheduler",
            "create_scheduler",
            "get_decay_parameter_names",
            "get_optimizer_cls_and_kwargs",
        ),
        "the optimizer is made by the fields of GRPOConfig, or by you",
        "pass optimizers=(optimizer, scheduler)",
    ),
    Idle(
        (
            "get_eval_dataloader",
            "get_test_dataloader",
            "get_train_dataloader",
            "_get_dataloader",
            "_get_eval_sampler",
            "_get_train_sampler",
            "_set_signature_columns_if_needed",
        ),
        "prompts are read row by row, there is no dataloader",
        "put the rows into the order that you want, and set shuffle_dataset=False",
    ),
    Idle(
        ("evaluation_loop", "prediction_step"),
        "evaluation samples and scores like training",
        "pass compute_metrics, or use a callback's on_evaluate",
    ),
    _LOOP,
)
"""Without the private methods of transformers' Trainer, which all belong to its loop."""


def refuse_idle_hooks(made: type, trainer: type) -> None:
    """Raises ConfigError if `made`, or a class that it mixes in, defines hooks that `trainer` does not have."""
    bases = [cls for cls in made.__mro__ if not issubclass(trainer, cls)]
    defined = {name for cls in bases for name in vars(cls)} - set(dir(trainer))
    unlisted = defined.difference(*(row.names for row in IDLE_HOOKS))
    of_loop = _private_methods_of_transformers(unlisted)
    problems = []
    for row in IDLE_HOOKS:
        names = sorted(defined.intersection(row.names) | (of_loop if row is _LOOP else set()))
        if names:
            problems.append(
                f"{made.__name__} overrides {', '.join(names)}, which gruppo never calls: {row.reason}. Instead, "
                f"{row.instead}."
            )
    if problems:
        raise ConfigError(problems)


def _private_methods_of_transformers(names: set[str]) -> set[str]:
    private = {name for name in names if name.startswith("_") and not name.startswith("__")}
    if not private:
        return private
    from transformers import Trainer  # late: it is large, and only looked at

    return private.intersection(dir(Trainer))
