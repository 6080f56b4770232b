"""Make small seeded runs for the monitor page: tests open them, screenshots show them. No model, no training.

    python scripts/make_golden_run.py runs-golden

The files are written by the real Recorder, so they have the form of a real run; the numbers come from a seeded
generator and tell a plausible story: the policy learns two-digit sums, is resumed once, cuts some answers off, and
begins to repeat itself. The second run has a higher learning rate and forgets.
"""

from __future__ import annotations

import argparse
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gruppo.algorithm.losses import LossInputs, LossSettings, policy_loss
from gruppo.distributed.world import World
from gruppo.monitor.health.finding import Finding, RowId
from gruppo.monitor.recorder import Recorder, TokenSettings
from gruppo.types import Completion, Group, Prompt, RewardTable, TrainBatch

NUM_PROMPTS, GROUP_SIZE, GROUPS_PER_STEP = 24, 8, 6
EVAL_EVERY = 8
REWARDS = ("exact", "format", "brevity")
WEIGHTS = (1.0, 0.3, 0.1)
MAX_TOKENS = 64
TOKEN_BUDGET = 700
"""Two or three groups of a step."""

PIECES: dict[int, str] = {}
"""What the tokens seen so far say; the end of a text says nothing."""


@dataclass(frozen=True)
class Story:
    """What happens in a run. Shares of steps are of `num_steps`."""

    name: str
    seed: int = 7
    num_steps: int = 48
    max_steps: int = 60
    learning_rate: float = 1e-6
    speed: float = 9.0
    """How fast the share of right answers rises."""
    forgets_at: float = 2.0
    """Share of the run from which it falls again; above 1: never."""
    resumes_at: int | None = 32
    is_finished: bool = False
    alarms: bool = True


STORIES = (
    Story("sums"),
    Story("sums-high-lr", seed=11, num_steps=40, max_steps=40, learning_rate=1e-5, speed=16.0, forgets_at=0.55,
          resumes_at=None, is_finished=True, alarms=False),
)  # fmt: skip


@dataclass(frozen=True)
class Advantages:
    """As the trainer hands them to the recorder: (N,) tensors."""

    advantages_N: torch.Tensor
    rewards_N: torch.Tensor
    group_mean_N: torch.Tensor
    group_std_N: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs go; it is created")
    folder = parser.parse_args().folder
    for story in STORIES:
        make_run(folder / story.name, story)
        print(f"{folder / story.name}: {story.num_steps} steps")


def make_run(folder: Path, story: Story) -> None:
    """A whole run; `is_finished` False leaves it as a run that is still going on."""
    writer = RunWriter(folder, story)
    for step in range(1, story.num_steps + 1):
        if step - 1 == story.resumes_at:
            writer.close("failed: KeyboardInterrupt")
            writer = RunWriter(folder, story, start_step=step - 1)
        writer.step(step)
    if story.is_finished:
        writer.close()
    else:
        writer.abandon()


class RunWriter:
    """Writes a story step by step; tests use it to append to a run while the page is open."""

    def __init__(self, folder: Path, story: Story, start_step: int = 0) -> None:
        self.story = story
        self.folder = folder
        world = World(SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu")))
        self.recorder = Recorder(
            folder,
            config_dict=_config(story),
            plan_lines=_plan(),
            world=world,
            seeds={"seed": story.seed, "data_seed": story.seed},
            start_step=start_step,
            model="Qwen/Qwen2.5-0.5B-Instruct",
            tokens=TokenSettings(budget=TOKEN_BUDGET, decode=decode, vocab_size=32_010),
        )

    def step(self, step: int) -> None:
        """Everything that an optimizer step leaves behind, and the evaluation after it."""
        random = np.random.default_rng([self.story.seed, step])
        numbers = [(step * GROUPS_PER_STEP + i) % NUM_PROMPTS for i in range(GROUPS_PER_STEP)]
        groups = [_group(self.story, step, number, random) for number in numbers]
        scores = _record_round(self, step, "train", groups, random)
        _record_pass(self, groups, random)
        self.recorder.record_step(step, _metrics(self.story, step, groups, scores, random))
        for event in _alarms(step) if self.story.alarms else ():
            self.recorder.record_event("finding", **event.as_dict())
        if step % EVAL_EVERY == 0:
            self._evaluate(step, random)
        if step % 16 == 0:
            self.recorder.record_event("checkpoint", step=step, path=f"checkpoint-{step}")
        self.recorder.drain()  # a run without training would outpace the disk, and parts be dropped

    def close(self, outcome: str = "finished") -> None:
        self.recorder.close(outcome)

    def abandon(self) -> None:
        """Leave the files as a killed process would: all that was recorded, and no word of an end."""
        for part in (self.recorder._parts, self.recorder._metrics, self.recorder._events):
            part.close()

    def _evaluate(self, step: int, random: np.random.Generator) -> None:
        groups = [_group(self.story, step, number, random, size=2) for number in range(100, 108)]
        scores = _record_round(self, step, "eval", groups, random)
        exact = scores.table.rewards_NF[:, 0]
        values = {"reward": float(scores.rows.rewards_N.mean()), "rewards/exact/mean": float(exact.mean())}
        values |= {"completions/mean_length": _mean_length(groups), "pass@2/exact": _pass_at_2(exact), "runtime": 2.1}
        self.recorder.record_step(step, {f"eval_{name}": value for name, value in values.items()}, split="eval")


@dataclass(frozen=True)
class Scores:
    table: RewardTable
    rows: Advantages


def _config(story: Story) -> dict[str, Any]:
    return {
        "output_dir": f"runs/{story.name}", "learning_rate": story.learning_rate,
        "num_generations": GROUP_SIZE, "max_steps": story.max_steps, "beta": 0.02, "epsilon": 0.2, "loss_type": "dapo",
        "scale_rewards": "group", "num_iterations": 1, "max_completion_length": MAX_TOKENS, "temperature": 1.0,
        "reward_weights": list(WEIGHTS), "per_device_train_batch_size": 8, "gradient_accumulation_steps": 6,
        "eval_strategy": "steps", "eval_steps": EVAL_EVERY, "mask_truncated_completions": False, "seed": story.seed,
    }  # fmt: skip


def _plan() -> list[str]:
    return [
        "48 completions per optimizer step = 6 prompts x 8",
        "one generation round per optimizer step",
        "each round is used once (num_iterations 1): ratios are 1, nothing is clipped",
    ]


def skill(story: Story, step: int) -> float:
    """Share of easy sums that come out right at a step."""
    share = step / story.num_steps
    learned = 1 / (1 + math.exp(-story.speed * (share - 0.4)))
    return learned * (1 - 0.8 * max(0.0, min(1.0, (share - story.forgets_at) * 3)))


def _prompt(number: int) -> Prompt:
    a, b = 11 + (number * 37) % 88, 7 + (number * 53) % 91
    messages = [
        {"role": "system", "content": "Work it out, then end with: Answer: <number>"},
        {"role": "user", "content": f"What is {a} + {b}?"},
    ]
    return Prompt(number, messages, list(range(24)), {"answer": str(a + b), "level": 1 + number % 3})


def _group(story: Story, step: int, number: int, random: np.random.Generator, size: int = GROUP_SIZE) -> Group:
    prompt = _prompt(number)
    difficulty = (number % 6) / 5
    chance = min(1.0, max(0.0, skill(story, step) * 1.25 - 0.55 * difficulty + 0.12 * (difficulty < 0.3)))
    repeats = max(0.0, step / story.num_steps - 0.6)
    return Group(prompt, [_completion(prompt, i, chance, repeats, random) for i in range(size)])


def _completion(prompt: Prompt, sample: int, chance: float, repeats: float, random: np.random.Generator) -> Completion:
    right = int(prompt.columns["answer"])
    a, b = (int(word) for word in re.findall(r"\d+", str(prompt.content[-1]["content"]))[:2])  # type: ignore[index]
    is_right = random.random() < chance
    value = right if is_right else right + int(random.choice([-10, -1, 1, 9, 10, 100]))
    tens, ones = a // 10 + b // 10, a % 10 + b % 10
    thoughts = [
        f"{a} + {b}: the ones are {a % 10} + {b % 10} = {ones}, the tens are {a // 10} + {b // 10} = {tens}.",
        f"Let me add {b} to {a}. First {a} + {b // 10 * 10} = {a + b // 10 * 10}, then + {b % 10}.",
        f"{a} and {b} make",
    ]
    text = f"{thoughts[int(random.integers(3))]} {value}."
    if random.random() < 0.35 + 0.6 * chance:
        text += f"\nAnswer: {value}"
    if random.random() < repeats:
        text += " So the answer is that." * 12
    pieces = split_tokens(text)
    reason = "stop"
    if len(pieces) > MAX_TOKENS - 1 or random.random() < 0.05:
        pieces, reason = pieces[: min(MAX_TOKENS, max(4, len(pieces) - 3))], "length"
    text = "".join(pieces)
    ids = [hash_id(piece) for piece in pieces] + ([2] if reason == "stop" else [])
    logprobs = [-float(x) for x in random.gamma(0.5, 0.9 * (1.1 - chance), len(ids))]
    return Completion(sample, ids, reason, logprobs, text=text, seconds=0.02 * len(ids))  # type: ignore[arg-type]


def split_tokens(text: str) -> list[str]:
    """Pieces as a word tokenizer would make them; joined they are the text."""
    return re.findall(r"\s?[A-Za-z]+|\s?\d|\s|[^\sA-Za-z\d]", text)


def hash_id(piece: str) -> int:
    """A stable id: Python's own hash differs from run to run."""
    token_id = 10 + zlib.crc32(piece.encode()) % 32000
    PIECES[token_id] = piece
    return token_id


def decode(token_ids: Sequence[int]) -> str:
    """The text of ids that `hash_id` made."""
    return "".join(PIECES.get(token_id, "") for token_id in token_ids)


def _record_round(
    writer: RunWriter, step: int, split: str, groups: Sequence[Group], random: np.random.Generator
) -> Scores:
    completions = [(group, completion) for group in groups for completion in group.completions]
    cells = [
        [_exact(group, completion), _format(completion), _brevity(completion)] for group, completion in completions
    ]
    statuses = [["ok"] * len(REWARDS) for _ in cells]
    if step == 21 and split == "train":
        cells[5][2], statuses[5][2] = math.nan, "error"
        writer.recorder.record_event("reward_fault", split=split, reward="brevity", status="error", num_rows=1)
    table = RewardTable(
        list(REWARDS),
        torch.tensor(cells, dtype=torch.float32),
        statuses,
        extras={"parsed": [_parsed(completion) or "" for _, completion in completions]},
    )
    rewards_PG = torch.nansum(table.rewards_NF * torch.tensor(WEIGHTS), dim=1).reshape(len(groups), -1)
    mean_P, std_P = rewards_PG.mean(dim=1, keepdim=True), rewards_PG.std(dim=1, keepdim=True)
    rows = Advantages(
        ((rewards_PG - mean_P) / (std_P + 1e-4)).flatten(),
        rewards_PG.flatten(),
        mean_P.expand_as(rewards_PG).flatten(),
        std_P.expand_as(rewards_PG).flatten(),
    )
    entropy = torch.tensor(random.normal(_entropy(writer.story, step), 0.1, len(cells)), dtype=torch.float32).clamp(
        min=0.02
    )
    writer.recorder.record_rollouts(step, split, groups, table, rows, policy_version=step - 1, entropy_mean_N=entropy)
    return Scores(table, rows)


def _parsed(completion: Completion) -> str | None:
    found = re.search(r"Answer: (-?\d+)", completion.text)
    return found[1] if found else None


def _exact(group: Group, completion: Completion) -> float:
    words = re.findall(r"-?\d+", completion.text)
    return float(bool(words) and words[-1] == group.prompt.columns["answer"])


def _format(completion: Completion) -> float:
    return float(_parsed(completion) is not None)


def _brevity(completion: Completion) -> float:
    return float(len(completion.token_ids) < MAX_TOKENS // 2 + 8)


def _entropy(story: Story, step: int) -> float:
    return (
        0.15 + 1.6 * math.exp(-2.2 * step / story.num_steps) + (0.6 if step > story.forgets_at * story.num_steps else 0)
    )


def _mean_length(groups: Sequence[Group]) -> float:
    lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
    return sum(lengths) / len(lengths)


def _pass_at_2(exact_N: torch.Tensor) -> float:
    return float((exact_N.reshape(-1, 2).sum(dim=1) > 0).float().mean())


def _metrics(
    story: Story, step: int, groups: Sequence[Group], scores: Scores, random: np.random.Generator
) -> dict[str, float | None]:
    rewards_N, std_N = scores.rows.rewards_N, scores.rows.group_std_N
    completions = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.token_ids) for completion in completions]
    is_flat_P = std_N.reshape(len(groups), -1)[:, 0] < 1e-6
    high_P = rewards_N.reshape(len(groups), -1)[:, 0] > 0.7
    times = {"generate": 2.1, "reward": 0.2, "forward_backward": 1.3, "optimizer": 0.15, "sync": 0.05}
    phases = {name: mean * float(random.uniform(0.85, 1.2)) for name, mean in times.items()}
    total = sum(phases.values())
    metrics: dict[str, float | None] = {
        "epoch": step * GROUPS_PER_STEP / NUM_PROMPTS,
        "loss": float(random.normal(0.001, 0.002)),
        "grad_norm": float(random.gamma(9, 0.05) * (5 if step == 27 else 1)),
        "learning_rate": story.learning_rate * (1 - step / story.max_steps / 2),
        "reward": float(rewards_N.mean()),
        "reward_std": float(rewards_N.std()),
        "frac_reward_zero_std": float(is_flat_P.float().mean()),
        "groups/frac_solved": float((is_flat_P & high_P).float().mean()),
        "groups/frac_failed": float((is_flat_P & ~high_P).float().mean()),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(completion.is_truncated for completion in completions) / len(completions),
        "entropy": _entropy(story, step) + float(random.normal(0, 0.04)),
        "kl": 0.0004 * step * float(random.uniform(0.8, 1.2)) * (8 if story.forgets_at < 1 else 1),
        "clip_ratio/region_mean": 0.0,
        "sampling/sampling_logp_difference/mean": float(random.gamma(4, 0.0004)),
        "step_time": total,
        "perf/tokens_per_second": sum(lengths) / total,
    }
    for position, name in enumerate(REWARDS):
        column = scores.table.rewards_NF[:, position]
        known = column[~column.isnan()]
        metrics |= {f"rewards/{name}/mean": float(known.mean()), f"rewards/{name}/std": float(known.std())}
    return metrics | {f"time/{name}": seconds for name, seconds in phases.items()}


def _alarms(step: int) -> list[Finding]:
    """What the checks would say, at the steps where the story gives them reason to."""
    rows = tuple(
        RowId(step, ((step * GROUPS_PER_STEP) + i) % NUM_PROMPTS, sample) for i, sample in ((0, 2), (1, 5), (3, 1))
    )
    table = {
        9: Finding("D05", "truncation", "WARN", 9, 0.13, 0.1, "13 % of answers hit max_completion_length=64.",
                   "Raise max_completion_length, or check that the stop token is sampled.", rows, "docs/health/D05.md"),
        17: Finding("D05", "truncation", "INFO", 17, 0.05, 0.1, "5 % of answers hit max_completion_length=64.",
                    docs="docs/health/D05.md", is_cleared=True),
        27: Finding("D23", "gradient spikes", "ALERT", 27, 5.1, 2.5, "grad_norm 2.3 is 5.1 deviations above its mean.",
                    "Look at the group with the largest advantage; lower max_grad_norm.", rows[:1],
                    "docs/health/D23.md"),
        33: Finding("D23", "gradient spikes", "INFO", 33, 0.4, 2.5, "grad_norm is back at 0.4 deviations.",
                    docs="docs/health/D23.md", is_cleared=True),
        38: Finding("D11", "loops", "WARN", 38, 0.15, 0.1,
                    "7/48 answers (15 %) repeat themselves; their mean reward 0.61 is above the step's mean 0.44.",
                    "A repetition penalty, a soft overlong penalty, or a check of the stop token.", rows,
                    "docs/health/D11.md"),
    }  # fmt: skip
    return [table[step]] if step in table else []


def _record_pass(writer: RunWriter, groups: Sequence[Group], random: np.random.Generator) -> None:
    """What a training pass would have given: on-policy, so that every ratio is 1 and nothing is clipped."""
    completions = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.token_ids) for completion in completions]
    shape = (len(completions), max(lengths))
    sampler_NT = torch.full(shape, math.nan)
    for row, completion in enumerate(completions):
        sampler_NT[row, : lengths[row]] = torch.tensor(completion.sampler_logprobs)
    logprobs_NT = sampler_NT + torch.tensor(random.normal(0, 0.004, shape), dtype=torch.float32)
    entropy_NT = (-0.8 * sampler_NT).clamp(max=2.5)
    batch = TrainBatch(
        prompt_ids=[group.prompt.token_ids for group in groups for _ in group.completions],
        completion_ids=[completion.token_ids for completion in completions],
        trained_NT=~sampler_NT.isnan(),
        advantages_N=torch.zeros(len(completions)),
        group_ids=[number for number, group in enumerate(groups) for _ in group.completions],
        slice_ids=[0] * len(completions),
        sampler_logprobs_NT=sampler_NT,
        old_logprobs_NT=logprobs_NT,
        ref_logprobs_NT=logprobs_NT - torch.tensor(random.normal(0.03, 0.12, shape), dtype=torch.float32),
    )
    inputs = LossInputs(logprobs_NT, entropy_NT, batch.advantages_N, batch.trained_NT, batch.advantages_N)
    output = policy_loss(inputs, LossSettings())
    forward = SimpleNamespace(logprobs_NT=logprobs_NT, entropy_NT=entropy_NT)
    writer.recorder.keep_forward(range(len(completions)), forward, output, is_on_policy=True)
    writer.recorder.record_pass(batch)


if __name__ == "__main__":
    main()
