"""One training of the demo's policy, in a process of its own: its step times, and what it learned.

python -m harness.demo TASK
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
from typing import Any

from harness.measure import hand_back

PHASES = ("step_time", "time/generate", "time/update")
"""Of the log, in seconds."""


def work(fields: dict[str, Any], seed: int, steps: int) -> dict[str, Any]:
    """Median seconds of `PHASES` and `held_out` (step, accuracy). `fields` are set on top of the demo's config."""
    import torch
    from datasets import Dataset

    from gruppo import GRPOTrainer
    from gruppo.demo.run import NUM_QUIZ_QUESTIONS, POLICY, demo_config
    from gruppo.demo.task import as_row, right_answer, split_questions

    torch.set_num_threads(1)
    training, held_out = split_questions()
    with tempfile.TemporaryDirectory() as folder:
        config = demo_config(folder, seed=seed, steps=steps)
        trainer = GRPOTrainer(
            model=str(POLICY),
            reward_funcs=right_answer,
            args=dataclasses.replace(config, logging_steps=1, disable_tqdm=True, **fields),
            train_dataset=Dataset.from_list([as_row(question) for question in training]),
            eval_dataset=Dataset.from_list([as_row(question) for question in held_out[:NUM_QUIZ_QUESTIONS]]),
        )
        trainer.train()
    lines = trainer.state.log_history
    timed = [line for line in lines if "step_time" in line][1:]
    quizzes = [(line["step"], line["eval_reward"]) for line in lines if "eval_reward" in line]
    return {phase: statistics.median(line[phase] for line in timed) for phase in PHASES} | {"held_out": quizzes}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    hand_back(work(given["fields"], given["seed"], given["steps"]))
