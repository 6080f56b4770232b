"""Optimizers and schedules against transformers' Trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from gruppo.errors import ConfigError
from gruppo.policy.optim import build_optimizer, build_scheduler, warmup_steps
from tiny_models import tiny


def arguments(tmp_path: Path, **fields: Any) -> TrainingArguments:
    defaults = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "weight_decay": 0.1}
    return TrainingArguments(**{**defaults, **fields})


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mixtral", "cohere"])
def test_groups_and_settings_are_the_trainers(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    args = arguments(tmp_path, learning_rate=3e-4, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    theirs = Trainer(model=model, args=args).create_optimizer()
    mine = build_optimizer(model, args)
    assert type(mine) is type(theirs)
    assert len(mine.param_groups) == len(theirs.param_groups) == 2
    for my_group, their_group in zip(mine.param_groups, theirs.param_groups, strict=True):
        assert [id(p) for p in my_group["params"]] == [id(p) for p in their_group["params"]]
        assert {k: v for k, v in my_group.items() if k != "params"} == {
            k: v for k, v in their_group.items() if k != "params"
        }
    assert mine.param_groups[0]["weight_decay"] == 0.1
    assert mine.param_groups[1]["weight_decay"] == 0.0
    assert mine.param_groups[0]["betas"] == (0.8, 0.95)


def test_frozen_parameters_are_left_out(tmp_path: Path) -> None:
    model = tiny("llama")
    model.model.embed_tokens.requires_grad_(False)
    held = {id(p) for group in build_optimizer(model, arguments(tmp_path)).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw_torch", "AdamW"),
        ("adamw_torch_fused", "AdamW"),
        ("sgd", "SGD"),
        ("adafactor", "Adafactor"),
        ("adagrad", "Adagrad"),
        ("rmsprop", "RMSprop"),
    ],
)
def test_names_are_transformers_and_each_takes_a_step(name: str, kind: str, tmp_path: Path) -> None:
    model = tiny("llama")
    optimizer = build_optimizer(model, arguments(tmp_path, optim=name))
    assert type(optimizer).__name__ == kind
    before = model.lm_head.weight.clone()
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.lm_head.weight, before)


def test_optim_args_reach_the_optimizer(tmp_path: Path) -> None:
    optimizer = build_optimizer(tiny("llama"), arguments(tmp_path, optim="sgd", optim_args="momentum=0.9"))
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_unknown_optimizers_and_schedules(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args.optim = "adamwx"
    with pytest.raises(ConfigError, match="optim='adamwx' failed"):
        build_optimizer(tiny("llama"), args)
    args.lr_scheduler_type = "zigzag"
    optimizer = torch.optim.SGD(tiny("llama").parameters(), lr=1.0)
    with pytest.raises(ConfigError, match="lr_scheduler_type='zigzag' failed"):
        build_scheduler(optimizer, args, 10)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lr_scheduler_type": "constant"},
        {"warmup_steps": 3},
        {"warmup_steps": 0.25},
        {"lr_scheduler_type": "cosine", "warmup_steps": 2},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.05},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
    ],
)
def test_the_curve_is_the_trainers(fields: dict[str, Any], tmp_path: Path) -> None:
    model, num_steps = tiny("llama"), 12
    args = arguments(tmp_path, learning_rate=1e-3, **fields)
    trainer = Trainer(model=model, args=args)
    trainer.create_optimizer_and_scheduler(num_training_steps=num_steps)
    optimizer = build_optimizer(model, args)
    scheduler = build_scheduler(optimizer, args, num_steps)
    for _ in range(num_steps + 1):
        assert scheduler.get_last_lr() == trainer.lr_scheduler.get_last_lr()
        for stepped, its_scheduler in ((optimizer, scheduler), (trainer.optimizer, trainer.lr_scheduler)):
            stepped.step()
            its_scheduler.step()


def test_warmup_steps_or_a_share_of_all(tmp_path: Path) -> None:
    assert [warmup_steps(asked, 30) for asked in (0, 0.01, 0.1, 0.5, 1, 7, 40)] == [0, 1, 3, 15, 1, 7, 40]
    args = arguments(tmp_path)
    for asked in (0, 0.01, 0.1, 1, 7):
        assert warmup_steps(asked, 30) == replace(args, warmup_steps=asked).get_warmup_steps(30)
