"""BROKEN: one way to break the healthy run for each check, and what the check must say."""

import math
import random

import numpy as np

from monitor.health.health_fakes import GROUP_SIZE, NUM_PROMPTS, FakeStep, rescore, sentence, set_rewards

SIZE = NUM_PROMPTS * GROUP_SIZE


def flat_reward(run: list[FakeStep]) -> None:
    """A reward that wobbles and goes nowhere."""
    for fake in run:
        fake.metrics["reward"] = 0.5 + 0.02 * math.sin(2.4 * fake.step)


def after(run: list[FakeStep], step: int) -> list[FakeStep]:
    return [fake for fake in run if fake.step > step]


def all_failed(run):
    for fake in after(run, 20):
        fake.columns["reward/accuracy"] = fake.columns["reward/format"] = [0.0] * SIZE
        rescore(fake)


def loss_of_zero(run):
    for fake in run:
        fake.metrics["loss"] = 1e-9


def nothing_moves(run):
    flat_reward(run)
    for fake in run:
        fake.metrics["grad_norm"] = 0.0


def longer_for_nothing(run):
    flat_reward(run)
    for fake in after(run, 40):
        fake.metrics["completions/mean_length"] *= 3


def cut_short(run):
    for fake in after(run, 30):
        fake.metrics["completions/clipped_ratio"] = 0.625
        fake.columns["finish_reason"] = ["length"] * 20 + ["stop"] * 12


def sure_of_itself(run):
    flat_reward(run)
    for fake in run:
        fake.metrics["entropy"] = 1.2 * math.exp(-fake.step / 12)


def dissolving(run):
    for fake in after(run, 20):
        fake.metrics["entropy"] = 1.2 + 0.1 * (fake.step - 20)
        fake.metrics["reward"] = 0.4 - 0.008 * (fake.step - 20)


def far_from_home(run):
    for fake in after(run, 50):
        fake.metrics["kl"] = 2.0


def clipped(run):
    for fake in after(run, 30):
        fake.metrics["clip_ratio/region_mean"] = 0.6


def stale_weights(run):
    for fake in after(run, 30):
        fake.metrics["sampling/sampling_logp_difference/mean"] = 0.3


def looping(run):
    for fake in after(run, 30):
        for row in range(0, SIZE, 4):
            fake.columns["completion"][row] += " and so on and on again" * 20


def gibberish(run):
    for fake in after(run, 30):
        fake.columns["gibberish_share"] = [0.1] * 8 + [0.0] * (SIZE - 8)


def paid_by_length(run):
    for fake in run:
        rng = random.Random(fake.step)
        fake.columns["n_trained"] = [60 + fake.step + rng.randint(-15, 15) for _ in range(SIZE)]
        fake.columns["reward/accuracy"] = [length / 100 for length in fake.columns["n_trained"]]
        rescore(fake)


def format_drives(run):
    for fake in run:
        fake.columns["reward/accuracy"] = [0.0] * (SIZE - 1) + [1.0]
        fake.columns["reward/format"] = [10 * value for value in fake.columns["reward/format"]]
        rescore(fake)


def bought(run):
    for fake in run:
        wobble = 0.01 * math.sin(2.4 * fake.step)
        fake.metrics["rewards/accuracy/mean"] = 0.6 - 0.004 * fake.step + wobble
        fake.metrics["rewards/format/mean"] = 0.2 + 0.008 * fake.step - wobble


def form_without_content(run):
    for fake in run:
        fake.metrics["rewards/accuracy/mean"] = 0.3 + 0.02 * math.sin(2.4 * fake.step)
        fake.metrics["rewards/format/mean"] = min(1.0, 0.2 + 0.02 * fake.step)


def greedy(run):
    for fake in run:
        texts = [fake.columns["completion"][row - row % GROUP_SIZE] for row in range(SIZE)]
        fake.columns["completion"] = texts


def quoting(run):
    for fake in after(run, 30):
        for row in range(20):
            fake.columns["completion"][row] = "So: " + fake.columns["prompt"][row]


def fooled(run):
    for fake in after(run, 30):
        set_rewards(fake, [1.25] * (SIZE - 1) + [0.0])
        if fake.evals:
            fake.evals["eval_reward"] = 0.4


def trick_found(run):
    for fake in run:
        wobble = 0.02 * math.sin(2.4 * fake.step)
        fake.metrics["reward"] = (0.9 if fake.step > 45 else 0.3) + wobble


def memorised(run):
    for fake in run:
        if fake.evals:
            fake.evals["eval_reward"] = 0.6 - 0.005 * abs(fake.step - 30)


def crashing(run):
    for fake in after(run, 40):
        fake.columns["reward_status/accuracy"][5] = "error"


def not_a_number(run):
    run[40].metrics["grad_norm"] = math.nan


def switching(run):
    for fake in after(run, 30):
        for row in range(0, SIZE, 3):
            fake.columns["completion"][row] = "因此我们得到答案是十二因为两个数字相加等于十二" * 2


def exiting(run):
    for fake in after(run, 30):
        fake.columns["completion"][3] = "import sys\nsys.exit(0)\n" + sentence(random.Random(fake.step), 30)
        fake.columns["reward/accuracy"][3] = fake.columns["reward/format"][3] = 1.0
        rescore(fake)


def slow(run):
    for fake in after(run, 50):
        fake.metrics["step_time"] *= 6


BROKEN = {
    "D01": (all_failed, "ALERT"),
    "D02": (loss_of_zero, "INFO"),
    "D03": (nothing_moves, "ALERT"),
    "D04": (longer_for_nothing, "ALERT"),
    "D05": (cut_short, "ALERT"),
    "D06": (sure_of_itself, "ALERT"),
    "D07": (dissolving, "ALERT"),
    "D08": (far_from_home, "ALERT"),
    "D09": (clipped, "ALERT"),
    "D10": (stale_weights, "ALERT"),
    "D11": (looping, "ALERT"),
    "D12": (gibberish, "ALERT"),
    "D13": (paid_by_length, "ALERT"),
    "D14": (format_drives, "ALERT"),
    "D15": (bought, "WARN"),
    "D16": (form_without_content, "WARN"),
    "D17": (greedy, "ALERT"),
    "D18": (quoting, "ALERT"),
    "D19": (fooled, "ALERT"),
    "D20": (trick_found, "WARN"),
    "D21": (memorised, "ALERT"),
    "D22": (crashing, "ALERT"),
    "D23": (not_a_number, "ALERT"),
    "D24": (switching, "ALERT"),
    "D25": (exiting, "WARN"),
    "D26": (slow, "WARN"),
}
"""Check -> (how the run is broken, the loudest thing that the check must say)."""

WITH_EVIDENCE = {"D01", "D05", "D11", "D12", "D13", "D14", "D17", "D18", "D19", "D22", "D24", "D25"}
"""Checks that must name rows."""


def scaled(fake: FakeStep, factor: float) -> None:
    """The same step with rewards in another unit."""
    for name, values in fake.columns.items():
        if name in ("reward", "advantage") or name.startswith("reward/"):
            fake.columns[name] = (factor * np.array(values)).tolist()
    for metrics in (fake.metrics, fake.evals):
        for name in metrics:
            if "reward" in name:
                metrics[name] *= factor
