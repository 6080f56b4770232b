"""Synthetic runs for the health checks: a healthy one that looks like a real one, and ways to break it."""

import functools
import math
import random
from dataclasses import dataclass, field

import numpy as np

from gruppo.monitor.health.finding import Finding
from gruppo.monitor.health.live import HealthMonitor

NUM_STEPS, NUM_PROMPTS, GROUP_SIZE = 70, 4, 8
CONFIG = {
    "num_generations": GROUP_SIZE,
    "beta": 0.04,
    "num_iterations": 1,
    "temperature": 1.0,
    "max_completion_length": 256,
    "reward_weights": [1.0, 0.25],
}
TEXT = (
    "first we add the two numbers then carry one over to next column so that total is right because each digit must "
    "line up with its place value and check again by taking away what was given before writing down an answer which "
    "has to be whole let me see this gives more than expected therefore divide both sides multiply out brackets"
)
WORDS = TEXT.split()


@dataclass
class FakeStep:
    """What a trainer would record of one optimizer step."""

    step: int
    metrics: dict
    columns: dict
    evals: dict = field(default_factory=dict)


def healthy_run(seed: int = 0) -> list[FakeStep]:
    """A fresh copy, to be broken."""
    return [
        FakeStep(fake.step, dict(fake.metrics), {n: list(x) for n, x in fake.columns.items()}, dict(fake.evals))
        for fake in _healthy_run(seed)
    ]


@functools.cache
def _healthy_run(seed: int) -> list[FakeStep]:
    rng = random.Random(seed)
    return [_healthy_step(step, rng) for step in range(1, NUM_STEPS + 1)]


def _healthy_step(step: int, rng: random.Random) -> FakeStep:
    progress = 1 - math.exp(-step / 60)
    names = ("group_id", "sample", "prompt", "prompt_format", "completion", "finish_reason", "n_trained")
    columns = {name: [] for name in (*names, "policy_version", "sampler_logprob_mean", "gibberish_share")}
    columns |= {f"reward/{name}": [] for name in ("accuracy", "format")}
    for group in range(NUM_PROMPTS):
        rate = min(0.95, max(0.05, 0.3 + 0.4 * progress + rng.gauss(0, 0.1)))
        prompt = "Question: " + sentence(rng, 15)
        for sample in range(GROUP_SIZE):
            text = sentence(rng, rng.randint(40, 60))
            row = (group, sample, prompt, "text", text, "stop", 60 + rng.randint(-15, 15), step - 1, -1.0, 0.0)
            right, formatted = rng.random() < rate, rng.random() < 0.6 + 0.35 * progress
            for name, value in zip(columns, (*row, float(right), float(formatted)), strict=True):
                columns[name].append(value)
    size = NUM_PROMPTS * GROUP_SIZE
    columns |= {f"reward_status/{name}": ["ok"] * size for name in ("accuracy", "format")}
    fake = FakeStep(step, _healthy_metrics(step, progress, rng), columns)
    rescore(fake)
    if step % 10 == 0:
        reward = 0.35 + 0.35 * progress + rng.gauss(0, 0.01)
        fake.evals = {"eval_reward": reward, "eval_reward_std": 0.5, "eval_runtime": 10.0}
        fake.evals["eval_samples_per_second"] = 20.0
    return fake


def _healthy_metrics(step: int, progress: float, rng: random.Random) -> dict:
    return {
        "loss": 0.01 * rng.gauss(0, 1),
        "grad_norm": 0.5 * math.exp(rng.gauss(0, 0.15)),
        "learning_rate": 1e-6,
        "entropy": 1.2 - 0.4 * progress + rng.gauss(0, 0.02),
        "kl": 0.01 * progress + abs(rng.gauss(0, 1e-3)),
        "clip_ratio/region_mean": 0.01,
        "completions/clipped_ratio": max(0.0, rng.gauss(0.03, 0.01)),
        "sampling/sampling_logp_difference/mean": 0.002,
        "sampling/importance_sampling_ratio/mean": 1.0,
        "step_time": 8 * math.exp(rng.gauss(0, 0.1)),
        "time/score": 0.2,
        "time/generate": 5.0,
        "perf/tokens_per_second": 400 * math.exp(rng.gauss(0, 0.1)),
        "epoch": step / 100,
    }


def sentence(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


def rescore(fake: FakeStep) -> None:
    """Rewards, advantages and the metrics that follow from the columns of the terms."""
    columns = fake.columns
    weights = CONFIG["reward_weights"]
    terms = {name.removeprefix("reward/"): np.array(columns[name]) for name in columns if name.startswith("reward/")}
    rewards = sum(weight * values for weight, values in zip(weights, terms.values(), strict=True))
    set_rewards(fake, rewards)
    for name, values in terms.items():
        fake.metrics |= {f"rewards/{name}/mean": float(values.mean()), f"rewards/{name}/std": float(values.std())}
    lengths = np.array(columns["n_trained"])
    fake.metrics["completions/mean_length"] = float(lengths.mean())


def set_rewards(fake: FakeStep, rewards) -> None:
    """Only the sum: `reward`, `advantage` and the metrics of the sum."""
    rewards = np.asarray(rewards, dtype=float)
    groups = rewards.reshape(NUM_PROMPTS, GROUP_SIZE)
    flat = groups.std(axis=1) == 0
    middle = (rewards.min() + rewards.max()) / 2 if np.ptp(rewards) else 0.0
    is_solved = flat & (groups[:, 0] > middle)
    fake.columns["reward"] = rewards.tolist()
    fake.columns["advantage"] = (groups - groups.mean(axis=1, keepdims=True)).ravel().tolist()
    fake.metrics |= {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "groups/frac_solved": float(is_solved.mean()),
        "groups/frac_failed": float((flat & ~is_solved).mean()),
    }


def observe(run: list[FakeStep], config: dict | None = None, **settings) -> tuple[HealthMonitor, list[Finding]]:
    """Feed a run to a fresh monitor; returns it and all findings."""
    monitor = HealthMonitor(CONFIG if config is None else config, **settings)
    findings = []
    for fake in run:
        findings += monitor.observe(fake.step, fake.metrics, fake.columns)
        if fake.evals:
            findings += monitor.observe_eval(fake.step, "eval", fake.evals)
    return monitor, findings


def loud(findings) -> set:
    """(detector, severity) of what is more than an explanation."""
    return {(finding.detector, finding.severity) for finding in findings if finding.severity != "INFO"}
