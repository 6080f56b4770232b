"""Optimizer and learning-rate schedule, by transformers' names and with its rules.

A run with the fields of `TrainingArguments` gets the optimizer, the parameter groups and the curve that
transformers' Trainer would have made: its own factory picks the class. Nothing is stepped here.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names
from transformers.training_args import ParallelMode

from gruppo.errors import ConfigError, boundary

# Trainer.get_decay_parameter_names of transformers 5.23: no decay for biases and norms.
_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]

_FIELDS = ("optim", "learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "optim_target_modules")


def build_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """The optimizer named by `config.optim`, over all parameters that train.

    Args:
        config: has `optim`, `learning_rate`, `weight_decay`, `adam_beta1`, `adam_beta2`, `adam_epsilon`, `optim_args`,
            `optim_target_modules` and `gradient_accumulation_steps`, with TrainingArguments' meaning.

    Raises:
        ConfigError: an unknown name, a library that is not installed, arguments that the optimizer does not take.
    """
    args = SimpleNamespace(
        **{name: getattr(config, name) for name in _FIELDS},
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        parallel_mode=ParallelMode.NOT_DISTRIBUTED,
    )
    with boundary(ConfigError, f"making the optimizer optim={str(config.optim)!r}"):
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise ConfigError(f"optim={str(config.optim)!r} is not a torch optimizer: pass it by optimizers=(...).")
        # transformers hands this entry of optim_args on as the text that it was.
        if isinstance(kwargs.get("block_size"), str):
            kwargs["block_size"] = int(kwargs["block_size"])
        # GaLore and its kin choose their own groups; layer-wise ones hand over optimizers of single parameters.
        own = [kwargs.pop(name) for name in ("params", "model", "optimizer_dict") if name in kwargs]
        optimizer = kind(own[-1] if own else parameter_groups(model, config.weight_decay), **kwargs)
    _keep_rates_as_numbers(optimizer)
    return optimizer


def _keep_rates_as_numbers(optimizer: torch.optim.Optimizer) -> None:
    """For optimizers (torchao's) that want learning rates as tensors: they get them for the time of a step.

    Else a rate that was written down earlier would change with the schedule, and no checkpoint could hold it as JSON.
    """
    if not any(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups):
        return
    rates: list[float] = []

    def hand_over(*_: Any) -> None:
        rates[:] = [float(group["lr"]) for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = torch.tensor(rate)

    def take_back(*_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    for group in optimizer.param_groups:
        group["lr"] = float(group["lr"])
    optimizer.register_step_pre_hook(hand_over)
    optimizer.register_step_post_hook(take_back)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of trained parameters: with weight decay, and (biases, norms) without."""
    decayed = set(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in trained if name not in decayed], "weight_decay": 0.0},
    ]


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: Any, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule named by `config.lr_scheduler_type` over `total_steps` optimizer steps.

    Args:
        config: has `lr_scheduler_type`, `lr_scheduler_kwargs`, `warmup_steps`, and `is_greater_better` for the metric
            that reduce_lr_on_plateau follows.

    Raises:
        ConfigError: an unknown name, or `lr_scheduler_kwargs` that it does not take.
    """
    with boundary(ConfigError, f"making the schedule lr_scheduler_type={str(config.lr_scheduler_type)!r}"):
        return get_scheduler(
            config.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=warmup_steps(config.warmup_steps, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=_plateau_mode(config) | dict(config.lr_scheduler_kwargs or {}),
        )


def _plateau_mode(config: Any) -> dict[str, str]:
    """torch waits for the metric to fall unless told otherwise; a reward should rise."""
    if config.lr_scheduler_type != "reduce_lr_on_plateau":
        return {}
    return {"mode": "max" if config.is_greater_better else "min"}


def warmup_steps(asked: float, total_steps: int) -> int:
    """TrainingArguments.warmup_steps: a number of steps from 1 on, below 1 a share of all steps, rounded up."""
    return int(asked) if asked >= 1 else math.ceil(asked * total_steps)
