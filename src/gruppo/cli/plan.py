"""`gruppo plan`: what a run would do, in words and numbers, and every mistake that shows before weights load.

Each part is looked at on its own, so that a dataset that cannot be read does not hide a reward that cannot be called.
Exit code 2 if there was a mistake.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from gruppo.cli.settings import Settings, read_settings
from gruppo.config import GRPOConfig
from gruppo.errors import GruppoError
from gruppo.plan import BatchPlan

T = TypeVar("T")


class Report:
    """Lines, notes and problems, in the order found."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []
        self.problems: list[str] = []

    def line(self, label: str, text: str) -> None:
        self.lines.append(f"{label:<12}{text}")

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What `work` gives, or None and a problem."""
        try:
            return work()
        except GruppoError as error:
            self.problems.append(str(error))
            return None

    def print(self) -> None:
        for line in self.lines:
            print(line)
        for label, texts in (("note", self.notes), ("problem", self.problems)):
            for text in texts:
                print(f"{label:<12}{text}")


def run(argv: list[str]) -> int:
    """Print the plan. Returns the exit code."""
    settings = read_settings(argv, "plan")
    with _quiet():
        report = make_report(settings)
    report.print()
    return 2 if report.problems else 0


def make_report(settings: Settings) -> Report:
    """Everything `gruppo plan` says about these settings."""
    from gruppo.cli import objects, plan_checkup

    report = Report()
    config = objects.training_config(settings)
    tokenizer, model_config = plan_checkup.load_model_files(settings.options.model, config, report)
    rows = report.attempt(lambda: objects.load_train_dataset(settings.options))
    data = plan_checkup.check_prompts(rows, config, tokenizer, report) if rows is not None else None
    report.attempt(lambda: objects.load_eval_dataset(settings))
    plan = report.attempt(lambda: _plan(config, data, rows))
    if plan is not None:
        # Of a dataset that could not be read, nothing is known that the lines after the second would say.
        report.lines = [*plan.describe()[: None if rows is not None else 2], *report.lines]
        if model_config is not None:
            plan_checkup.say_memory(report, model_config, config, plan=plan, options=settings.options, data=data)
    plan_checkup.say_groups(config.num_generations, report)
    rewards = report.attempt(lambda: objects.resolve_rewards(settings.options))
    report.attempt(lambda: objects.adapter(settings.options))
    if rewards:
        plan_checkup.try_rewards(rewards, config, data, report)
    return report


def _plan(config: GRPOConfig, data: Any, rows: Any) -> BatchPlan:
    if rows is None:
        config, num_prompts = dataclasses.replace(config, max_steps=max(1, config.max_steps)), None
    else:
        known = rows if data is None else data.prompts
        num_prompts = len(known) if isinstance(known, Sized) else None
    return BatchPlan.from_config(config, num_prompts=num_prompts, world_size=config.world_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading bars and log lines of other libraries would stand between the lines of the plan."""
    import datasets

    had_bars = datasets.utils.are_progress_bars_disabled() is False
    datasets.utils.disable_progress_bars()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        if had_bars:
            datasets.utils.enable_progress_bars()
