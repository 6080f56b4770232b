# /// script
# requires-python = ">=3.11"
# dependencies = ["gruppo"]
# ///
"""GRPO on a task with right answers: `12+3*4=?`, and a reward that checks the last number of what was said.

    python examples/arithmetic.py        a few minutes on a CPU, nothing to download

The policy is gruppo's built-in toy (0.8 M parameters): it can work the sum out step by step, but mostly guesses. The
reward says nothing about how to get there; working it out pays, so it becomes the habit. `gruppo demo` is the same
with an exam before and after, and pictures.
"""

import argparse
import re

from datasets import Dataset

from gruppo import GRPOConfig, GRPOTrainer
from gruppo.demo.run import POLICY
from gruppo.demo.task import split_questions


def as_row(question):
    """A conversational prompt, and a column that the reward function receives by its name."""
    return {"prompt": [{"role": "user", "content": question.text}], "answer": str(question.answer)}


def right_answer(completions, answer, log_metric=None, **kwargs):
    """1 if the last number is the answer. Completions of conversational prompts are lists of messages."""
    texts = [completion[0]["content"] for completion in completions]
    last_numbers = [(re.findall(r"\d+", text) or [""])[-1] for text in texts]
    if log_metric:
        log_metric("share_with_working", sum("=" in text for text in texts) / len(texts))
    return [float(said == right) for said, right in zip(last_numbers, answer, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO on sums, with the built-in toy policy.")
    parser.add_argument("--output-dir", default="runs/arithmetic")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    training, held_out = split_questions()  # the toy was made from the training questions; keep the others apart
    trainer = GRPOTrainer(
        model=str(POLICY),
        reward_funcs=right_answer,
        args=GRPOConfig(
            output_dir=options.output_dir,
            seed=options.seed,
            max_steps=options.max_steps,
            num_generations=8,
            per_device_train_batch_size=128,  # 16 questions x 8 answers
            max_completion_length=24,
            learning_rate=1e-4,  # right for a toy, a hundred times too much for a real model
            allow_unusual=["learning_rate"],
            num_generations_eval=4,
            per_device_eval_batch_size=128,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_list([as_row(question) for question in training]),
        eval_dataset=Dataset.from_list([as_row(question) for question in held_out[:64]]),
    )
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()["eval_reward"]
    print(f"held-out questions answered right: {before:.0%} -> {after:.0%}; the run is in {options.output_dir}")


if __name__ == "__main__":
    main()
