"""Optimizer states in files: composed tensors and nested dictionaries, by stand-ins and by the libraries' own."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from gruppo.checkpoint import CheckpointReader, CheckpointWriter, join_state, split_state
from gruppo.distributed.world import World
from gruppo.errors import CheckpointError
from gruppo.policy.optim import build_optimizer
from gruppo.policy.optim_state import flat_entries, nested_entries


def config(name: str) -> SimpleNamespace:
    return SimpleNamespace(
        optim=name,
        learning_rate=1e-2,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.99,
        adam_epsilon=1e-8,
        optim_args=None,
        optim_target_modules=None,
        gradient_accumulation_steps=1,
    )


def model() -> torch.nn.Module:
    """Two weights that are large enough to be quantised, and biases that are not."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(256, 128), torch.nn.Tanh(), torch.nn.Linear(128, 64))


def train(policy: torch.nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    inputs = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    for _ in range(num_steps):
        (policy(inputs) - 1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_plain_entries_are_as_they_were() -> None:
    entries = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3), "count": 7}
    flat = flat_entries(entries)
    assert list(flat) == ["step", "exp_avg", "count"]
    assert nested_entries(flat) == entries


def test_nested_dictionaries_come_back() -> None:
    entries = {"step": 4, "quantised": {"state1": torch.arange(3), "inner": {"absmax1": torch.ones(1)}}}
    flat = flat_entries(entries)
    assert list(flat) == ["step", "quantised/state1", "quantised/inner/absmax1"]
    assert nested_entries(flat) == entries


def test_composed_tensors_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through both halves of a checkpoint, of which one is JSON."""
    monkeypatch.setitem(_modules(), "TwoTensor", "torch.testing._internal.two_tensor")
    monkeypatch.setattr(TwoTensor, "__tensor_flatten__", lambda x: (["a", "b"], [True, torch.bfloat16, (2, 3)]))
    seen: list[Any] = []

    def made_again(tensors: dict[str, torch.Tensor], context: Any, *_: Any) -> TwoTensor:
        seen.append(context)
        return TwoTensor(tensors["a"], tensors["b"])

    monkeypatch.setattr(TwoTensor, "__tensor_unflatten__", made_again)
    state = {"state": {0: {"exp_avg": TwoTensor(torch.ones(2, 3), torch.zeros(2, 3))}}, "param_groups": []}
    tensors, numbers = split_state(state)
    assert sorted(tensors) == ["0/exp_avg/a", "0/exp_avg/b"]
    back = join_state(tensors, json.loads(json.dumps(numbers)))["state"][0]["exp_avg"]
    assert type(back) is TwoTensor
    assert torch.equal(back.a, torch.ones(2, 3))
    assert seen == [[True, torch.bfloat16, (2, 3)]]


def _modules() -> dict[str, str]:
    from gruppo.policy import optim_state

    return optim_state._MODULES


def test_unknown_compositions_are_refused_when_saving() -> None:
    with pytest.raises(CheckpointError, match=r"'exp_avg' in a .*TwoTensor, which a checkpoint cannot hold"):
        flat_entries({"exp_avg": TwoTensor(torch.ones(2), torch.ones(2))})


@pytest.mark.parametrize("name", ["os.system", "OptimStateFp8"])
def test_a_file_cannot_name_a_class_and_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_modules(), "OptimStateFp8", "gruppo.no_such_library")
    with pytest.raises(CheckpointError, match=f"{name!r}, which needs a library"):
        nested_entries({"exp_avg/codes": torch.ones(2), "exp_avg/class": {"name": name, "context": []}})


class RateByTensor(torch.optim.SGD):
    """Wants its learning rate as a tensor, as torchao's optimizers do."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.seen: list[Any] = []
        for group in self.param_groups:
            group["lr"] = torch.tensor(group["lr"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.seen += [group["lr"] for group in self.param_groups]
        super().step()


def test_rates_are_tensors_in_a_step_and_numbers_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gruppo.policy.optim.Trainer.get_optimizer_cls_and_kwargs", lambda args, _: (RateByTensor, {"lr": 0.125})
    )
    policy = model()
    optimizer: Any = build_optimizer(policy, config("adamw_torch_8bit"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for rate in (0.125, 0.0625):
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
        assert all(type(group["lr"]) is float for group in optimizer.param_groups)
        train(policy, optimizer, 1)
        schedule.step()
    assert [type(x) for x in optimizer.seen] == [torch.Tensor] * 4
    assert [float(x) for x in optimizer.seen] == [0.125, 0.125, 0.0625, 0.0625]
    json.dumps([split_state(optimizer.state_dict())[1], schedule.state_dict()])


def test_a_block_size_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Blocks(torch.optim.SGD):
        def __init__(self, params: Any, block_size: Any) -> None:
            given.append(block_size)
            super().__init__(params)

    monkeypatch.setattr(
        "gruppo.policy.optim.Trainer.get_optimizer_cls_and_kwargs", lambda *_: (Blocks, {"block_size": "128"})
    )
    build_optimizer(model(), config("adamw_torch_8bit"))
    assert given == [128]


LIBRARIES = {
    "adamw_torch_8bit": "torchao",
    "adamw_torch_4bit": "torchao",
    "adamw_8bit": "bitsandbytes",
    "adamw_bnb_8bit": "bitsandbytes",
    "lion_8bit": "bitsandbytes",
    "ademamix_8bit": "bitsandbytes",
    "rmsprop_bnb_8bit": "bitsandbytes",
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["adamw_torch", "adafactor", *LIBRARIES])
def test_a_resumed_optimizer_goes_on_bitwise(name: str, tmp_path: Path) -> None:
    library = LIBRARIES.get(name)
    if library is not None and importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    if library == "torchao" and shutil.which("g++") is None:
        pytest.skip("torchao compiles its step")
    policy, world = model(), World(SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu")))
    optimizer = build_optimizer(policy, config(name))
    train(policy, optimizer, 3)
    writer = CheckpointWriter(tmp_path / "checkpoint-3", world)
    writer.optimizer(optimizer)
    writer.commit()
    resumed = model()
    resumed.load_state_dict(policy.state_dict())
    its_optimizer = build_optimizer(resumed, config(name))
    CheckpointReader(tmp_path / "checkpoint-3", world).optimizer(its_optimizer)
    train(policy, optimizer, 2)
    train(resumed, its_optimizer, 2)
    for expected, parameter in zip(policy.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(parameter, expected)
