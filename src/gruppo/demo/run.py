"""The demo itself: exam, GRPO on the CPU, the same exam again. What `make demo` and `gruppo demo` run.

It is an ordinary user's script with more words: a config, a reward function, two lists of rows, a trainer. It uses
gruppo's public names only. Everything it writes is below `output_dir`.
"""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from gruppo import GRPOConfig, GRPOTrainer
from gruppo.demo.exam import MAX_ANSWER_TOKENS, Exam, hold_exam
from gruppo.demo.plot import Points, draw_curve
from gruppo.demo.task import Question, as_row, is_right, right_answer, split_questions

POLICY: Final = Path(__file__).parent / "policy"
NUM_STEPS: Final = 150
NUM_GENERATIONS: Final = 8
NUM_PROMPTS_PER_STEP: Final = 16
LEARNING_RATE: Final = 5e-5
NUM_SAMPLES_SHOWN: Final = 5
NUM_QUIZ_QUESTIONS: Final = 128
"""Held-out questions that the trainer looks at now and then, for the curve; the exam takes all of them."""
EXAM_SEED: Final = 7
"""The same for every run, so that "before" is one number."""
NUM_THREADS: Final = 1
"""The policy is so small that threads would mostly wait for each other; and one thread makes a run come out the same
however many cores there are."""
VERSIONS_OF: Final = ("gruppo", "torch", "transformers", "datasets")

INTRO: Final = (
    "A tiny language model ({parameters:.1f} M parameters) is asked things like [bold]{example}[/bold] "
    "It has two habits: to work the sum out, which it can, and to guess, which it does more often. Nobody tells it "
    "which is better. GRPO lets it answer each question {num_generations} times and rewards the answers whose last "
    "number is right; answers that did better than their siblings become likelier.\n\n"
    "  1. an exam of {num_held_out} held-out questions, which neither training has ever seen\n"
    "  2. {num_steps} steps of GRPO on the CPU: one to three minutes on one core\n"
    "  3. the same exam again\n\n"
    "Everything is written below {output_dir}"
)
TRACKING: Final = "-c \"from gruppo.demo.run import main; main(report_to='tensorboard')\""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished demo found, for the summary file and the screen."""

    before: Exam
    after: Exam
    rewards: Points
    held_out: Points
    train_seconds: float


def main(
    output_dir: str = "runs/demo", seed: int = 0, steps: int = NUM_STEPS, report_to: str | Sequence[str] = "none"
) -> dict[str, Any]:
    """Run the demo and return what `summary.json` holds.

    Args:
        output_dir: folder for everything that is written.
        seed: of data order and sampling; the exam and the split of the questions do not depend on it.
        steps: optimizer steps.
        report_to: trackers, by transformers' names (for example "tensorboard").

    Raises ConfigError if the config cannot be.
    """
    torch.set_num_threads(NUM_THREADS)
    disable_progress_bar()  # of loading this policy, which takes no time
    console = Console()
    start = time.perf_counter()
    training, held_out = split_questions()
    trainer = GRPOTrainer(
        model=str(POLICY),
        reward_funcs=right_answer,
        args=demo_config(output_dir, seed=seed, steps=steps, report_to=report_to),
        train_dataset=Dataset.from_list([as_row(question) for question in training]),
        eval_dataset=Dataset.from_list([as_row(question) for question in held_out[:NUM_QUIZ_QUESTIONS]]),
    )
    _introduce(console, trainer, held_out)
    before = _examine(console, "Before training", trainer, held_out)
    console.rule("Training")
    train_start = time.perf_counter()
    trainer.train()
    train_seconds = time.perf_counter() - train_start
    after = _examine(console, "After training", trainer, held_out)
    curves = [
        [(line["step"], line[name]) for line in trainer.state.log_history if name in line]
        for name in ("reward", "eval_reward")
    ]
    outcome = Outcome(before, after, rewards=curves[0], held_out=curves[1], train_seconds=train_seconds)
    _show_samples(console, outcome)
    summary = summarize(outcome, trainer.args, steps=trainer.state.global_step, seconds=time.perf_counter() - start)
    _write(console, trainer, outcome, summary)
    return summary


def demo_config(output_dir: str, *, seed: int, steps: int, report_to: str | Sequence[str] = "none") -> GRPOConfig:
    """The demo's settings: TRL's defaults, but for what is written here."""
    return GRPOConfig(
        output_dir=output_dir,
        seed=seed,
        use_cpu=True,
        bf16=False,
        max_steps=steps,
        num_generations=NUM_GENERATIONS,
        per_device_train_batch_size=NUM_PROMPTS_PER_STEP * NUM_GENERATIONS,
        max_completion_length=MAX_ANSWER_TOKENS,
        learning_rate=LEARNING_RATE,
        # Far too much for a real language model; this one is a thousand times smaller, and has minutes.
        allow_unusual=["learning_rate"],
        gradient_checkpointing=False,
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=25,
        eval_on_start=True,
        num_generations_eval=1,
        per_device_eval_batch_size=NUM_QUIZ_QUESTIONS,
        save_strategy="no",
        report_to=report_to if isinstance(report_to, str) else list(report_to),
    )


def summarize(outcome: Outcome, config: GRPOConfig, *, steps: int, seconds: float) -> dict[str, Any]:
    """The content of `summary.json`."""
    return {
        "sampled_accuracy": {"before": outcome.before.sampled_accuracy, "after": outcome.after.sampled_accuracy},
        "greedy_accuracy": {"before": outcome.before.greedy_accuracy, "after": outcome.after.greedy_accuracy},
        "num_held_out_questions": len(outcome.before.questions),
        "seed": config.seed,
        "steps": steps,
        "seconds": {"total": round(seconds, 1), "training": round(outcome.train_seconds, 1)},
        "threads": torch.get_num_threads(),
        "reward_curve": [[step, round(value, 4)] for step, value in outcome.rewards],
        "held_out_curve": [[step, round(value, 4)] for step, value in outcome.held_out],
        "settings": config.non_default(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS_OF}},
    }


def _introduce(console: Console, trainer: GRPOTrainer, held_out: list[Question]) -> None:
    text = INTRO.format(
        parameters=trainer.model.num_parameters() / 1e6,
        example=held_out[0].text,
        num_generations=NUM_GENERATIONS,
        num_held_out=len(held_out),
        num_steps=trainer.args.max_steps,
        output_dir=escape(trainer.args.output_dir),
    )
    console.rule("gruppo demo")
    console.print(text, highlight=False)


def _examine(console: Console, title: str, trainer: GRPOTrainer, questions: list[Question]) -> Exam:
    console.rule(title)
    exam = hold_exam(trainer.model, trainer.processing_class, questions, seed=EXAM_SEED)
    console.print(
        f"Held-out questions answered right: {exam.sampled_accuracy:.1%} when sampled (temperature 1), "
        f"{exam.greedy_accuracy:.1%} with the likeliest token each time.",
        highlight=False,
    )
    return exam


def _show_samples(console: Console, outcome: Outcome) -> None:
    table = Table("question", "right", "before", "after", title="The same held-out questions, sampled at temperature 1")
    rows = zip(outcome.before.questions, outcome.before.sampled, outcome.after.sampled, strict=True)
    for question, *answers in list(rows)[:NUM_SAMPLES_SHOWN]:
        right = str(question.answer)
        cells = [Text(text, style="green" if is_right(text, right) else "red") for text in answers]
        table.add_row(Text(question.text), right, *cells)
    console.print(table)


def _write(console: Console, trainer: GRPOTrainer, outcome: Outcome, summary: dict[str, Any]) -> None:
    folder = Path(trainer.args.output_dir)
    accuracy, seconds = summary["sampled_accuracy"], summary["seconds"]["total"]
    headline = f"held-out accuracy {accuracy['before']:.2f} -> {accuracy['after']:.2f} in {summary['steps']} steps"
    trainer.save_model(str(folder / "policy"))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.rule("Result")
    console.print(f"[bold]{headline}[/bold] and {seconds:.0f} seconds", highlight=False)
    picture = "not drawn: matplotlib is missing; pip install 'gruppo[report]'"
    if find_spec("matplotlib") is not None:
        picture = f"{folder}/reward.png"
        draw_curve(Path(picture), rewards=outcome.rewards, held_out=outcome.held_out, title=headline)
    for name, place in {
        "look inside": f"{_command('gruppo')} monitor {folder}",
        "the numbers": f"{folder}/summary.json",
        "the reward curve": picture,
        "every step": f"{folder}/metrics.jsonl",
        "every completion": f"{_command('python')} -c \"import pandas; print(pandas.read_parquet('{folder}/rollouts')"
        "[['step', 'completion', 'reward', 'advantage']])\"",
        "the trained policy": f"{folder}/policy (for from_pretrained)",
        "with TensorBoard": f"{_command('python')} {TRACKING}",
    }.items():
        console.print(Text(f"  {name:<19} {place}"), soft_wrap=True)


def _command(name: str) -> str:
    """How the user calls a program of this environment from here: by name if it is on the path, else by its place."""
    place = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found is not None and Path(found).absolute() == place:
        return name
    nearby = os.path.relpath(place)
    return str(place) if nearby.startswith(os.pardir) else nearby
