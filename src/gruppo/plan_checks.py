"""Whether the batch fields divide as TRL's arithmetic wants, and which values would.

Sentences only: the counts themselves are `plan.BatchPlan`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig

BATCH_FIELDS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
    "num_generations",
    "num_generations_eval",
    "per_device_eval_batch_size",
    "eval_strategy",
)
"""The fields that `batch_problems` reads."""


def slices_per_generation(config: GRPOConfig, world_size: int) -> int:
    """S: as given, or from `generation_batch_size`, or `gradient_accumulation_steps`."""
    if config.generation_batch_size is not None:
        return config.generation_batch_size // (config.per_device_train_batch_size * world_size)
    return config.steps_per_generation or config.gradient_accumulation_steps


def batch_problems(config: GRPOConfig, world_size: int) -> list[str]:
    """One sentence for each way in which the batch fields do not divide, with values that would; [] if all is well."""
    if config.generation_batch_size is not None and config.steps_per_generation is not None:
        return [
            f"generation_batch_size={config.generation_batch_size} and steps_per_generation="
            f"{config.steps_per_generation} say the same thing twice. Set one of them only."
        ]
    return [*_train_problems(config, world_size), *_eval_problems(config, world_size)]


def _train_problems(config: GRPOConfig, world_size: int) -> list[str]:
    rows, group = config.per_device_train_batch_size * world_size, config.num_generations
    given = config.generation_batch_size
    if given is not None:
        unit = math.lcm(rows, group)
        if given % unit == 0:
            return []
        choices = sorted({max(unit, given // unit * unit), (given // unit + 1) * unit})
        return [
            f"generation_batch_size={given} must be a multiple of per_device_train_batch_size="
            f"{config.per_device_train_batch_size} × {processes(world_size)} and of num_generations={group}. "
            f"Set generation_batch_size={' or '.join(map(str, choices))}."
        ]
    slices = config.steps_per_generation or config.gradient_accumulation_steps
    if rows * slices % group == 0:
        return []
    name = "gradient_accumulation_steps" if config.steps_per_generation is None else "steps_per_generation"
    return [
        f"per_device_train_batch_size={config.per_device_train_batch_size} × {processes(world_size)} × {name}="
        f"{slices} = {count(rows * slices, 'completion')} per generation round, but num_generations={group} needs a "
        f"multiple of {group}. In GRPO the batch size counts completions, not prompts. "
        f"{_remedies(config, world_size, name, slices)}"
    ]


def _remedies(config: GRPOConfig, world_size: int, slices_name: str, slices: int) -> str:
    """'Set a=.. (same memory), b=.. or c=..': the nearest valid value of each field."""
    batch, group = config.per_device_train_batch_size, config.num_generations
    choices = [
        f"{slices_name}={_round_up(slices, unit(group, batch * world_size))} (same memory)",
        f"per_device_train_batch_size={_round_up(batch, unit(group, world_size * slices))}",
    ]
    rows = batch * world_size * slices
    divisors = [d for d in range(2, rows + 1) if rows % d == 0]
    if divisors:
        nearest = min(divisors, key=lambda divisor: (abs(divisor - group), -divisor))
        choices.append(f"num_generations={nearest}")
    return f"Set {', '.join(choices[:-1])} or {choices[-1]}."


def _eval_problems(config: GRPOConfig, world_size: int) -> list[str]:
    group = config.num_generations_eval or config.num_generations
    batch = config.per_device_eval_batch_size
    if config.eval_strategy == "no" or batch * world_size % group == 0:
        return []
    name = "num_generations" if config.num_generations_eval is None else "num_generations_eval"
    divisors = [d for d in range(1, batch * world_size + 1) if batch * world_size % d == 0]
    nearest = min(divisors, key=lambda divisor: (abs(divisor - group), -divisor))
    return [
        f"per_device_eval_batch_size={batch} × {processes(world_size)} = {count(batch * world_size, 'completion')} "
        f"must be a multiple of {name}={group}, so that prompts are evaluated whole. Set "
        f"per_device_eval_batch_size={_round_up(batch, unit(group, world_size))} or num_generations_eval={nearest}."
    ]


def unit(group: int, factor: int) -> int:
    """The smallest n with n·factor divisible by `group`; all such n are its multiples."""
    return group // math.gcd(group, factor)


def _round_up(value: int, unit: int) -> int:
    return math.ceil(value / unit) * unit


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def processes(world_size: int) -> str:
    return f"{world_size} process{'' if world_size == 1 else 'es'}"
