"""Small groups, rewards and advantages for the tests of this folder."""

from dataclasses import dataclass
from math import nan
from types import SimpleNamespace

import torch

from gruppo.distributed.world import World
from gruppo.monitor.recorder import Recorder
from gruppo.types import Completion, Group, Prompt, RewardTable


@dataclass
class Advantages:
    advantages_N: torch.Tensor
    rewards_N: torch.Tensor
    group_mean_N: torch.Tensor
    group_std_N: torch.Tensor


def one_process() -> World:
    return World(SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu")))


def completion(sample: int, text: str, logprobs: list[float] | None = None, reason: str = "stop") -> Completion:
    return Completion(sample, list(range(len(text))), reason, logprobs, text=text, seconds=0.5)


def two_groups() -> list[Group]:
    text = Prompt(7, "2+2=", [1, 2, 3], {"answer": "4", "weight": nan})
    chat = Prompt(9, [{"role": "user", "content": "héllo"}], [4, 5], {})
    return [
        Group(text, [completion(0, "4", [-0.5]), completion(1, "55", [-1.0, nan], "length")]),
        Group(chat, [completion(0, "hi"), completion(1, "")]),
    ]


def rewards(**extras: list[object]) -> RewardTable:
    return RewardTable(
        ["exact", "format"],
        torch.tensor([[1.0, 0.5], [0.0, nan], [0.25, 1.0], [nan, nan]]),
        [["ok", "ok"], ["ok", "none"], ["ok", "ok"], ["error", "timeout"]],
        extras=extras,
    )


def advantages() -> Advantages:
    return Advantages(
        torch.tensor([0.5, -0.5, 0.0, 0.0]),
        torch.tensor([1.5, 0.0, 1.25, nan]),
        torch.tensor([0.75, 0.75, 1.25, 1.25]),
        torch.tensor([1.0, 1.0, nan, nan]),
    )


def make_recorder(output_dir, **kwargs) -> Recorder:
    kwargs = {"config_dict": {"seed": 1}, "plan_lines": ["8 completions"], "world": one_process()} | kwargs
    return Recorder(output_dir, **kwargs)


def record_round(recorder: Recorder, step: int, split: str = "train", **extras: list[object]) -> None:
    recorder.record_rollouts(step, split, two_groups(), rewards(**extras), advantages(), policy_version=step - 1)
