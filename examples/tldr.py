# /// script
# requires-python = ">=3.11"
# dependencies = ["gruppo"]
# ///
"""The smallest script: a model, a reward function, prompts.

    python examples/tldr.py --max-steps 20                                             offline, on a CPU
    python examples/tldr.py --model Qwen/Qwen2.5-0.5B-Instruct --dataset trl-lib/tldr   the real thing

The reward wants completions of 20 characters. It says nothing about good summaries; it shows that the wheels turn.
Without options, posts and policy are our own: `data/tldr_sample.jsonl`, invented, and `data/tldr_policy`, which has
0.4 M parameters and parrots the sample's summaries. `accelerate launch` works as with TRL.
"""

import argparse
from pathlib import Path

from gruppo import GRPOConfig, GRPOTrainer, load_prompts

DATA = Path(__file__).parent / "data"
TOY_POLICY, SAMPLE = DATA / "tldr_policy", DATA / "tldr_sample.jsonl"


def reward_len(completions, **kwargs):
    """TRL's protocol: one number per completion."""
    return [-abs(20 - len(completion)) for completion in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO on TL;DR posts with a reward for length.")
    parser.add_argument("--model", default=str(TOY_POLICY), help="hub id or folder (default: the toy)")
    parser.add_argument("--dataset", default=str(SAMPLE), help="hub id or file with a `prompt` column")
    parser.add_argument("--output-dir", default="runs/tldr")
    parser.add_argument("--max-steps", type=int, default=-1, help="optimizer steps (default: one epoch)")
    parser.add_argument("--learning-rate", type=float, help="default: 1e-6, and 1e-4 for the toy")
    options = parser.parse_args()

    is_toy = options.model == str(TOY_POLICY)
    args = GRPOConfig(
        output_dir=options.output_dir,
        num_generations=8,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        max_completion_length=40 if is_toy else 128,
        learning_rate=options.learning_rate or (1e-4 if is_toy else 1e-6),
        gradient_checkpointing=not is_toy,  # saves memory, which a toy does not need
        num_train_epochs=1,
        max_steps=options.max_steps,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=options.model,
        reward_funcs=reward_len,
        args=args,
        train_dataset=load_prompts(options.dataset),
    )
    trainer.train()

    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    print(f"mean reward {rewards[0]:.1f} -> {rewards[-1]:.1f}; the run is in {options.output_dir}")
    trainer.save_model()


if __name__ == "__main__":
    main()
