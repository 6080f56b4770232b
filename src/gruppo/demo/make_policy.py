"""Makes the demo's policy: a tiny Qwen3-shaped model, taught a good habit and a bad one. Seeded, CPU, minutes.

    python -m gruppo.demo.make_policy --out DIR

The pupil sees only training questions, each time answered in one of two ways:

    40 %   12+3*4=?   ->   3*4=12, 12+12=24      worked: the product first, then the sum; always right
    60 %   12+3*4=?   ->   ~27                   a hasty guess somewhere near the answer; seldom right

So it can do the sum, and mostly does not bother: the mixture that pre-training leaves in a language model. GRPO then
finds the habit that pays; it has no demonstrations, only the reward. This script is not part of that: it is ordinary
supervised training, and what it leaves is where the demo's "before" comes from.

The shipped file is what the command above writes with its defaults: 2000 steps of 128 demonstrations, seed 0, one
thread, about ten minutes on a quiet core (torch 2.13, x86). Of the held-out questions it then answers 41 % right when
sampled and 13 % greedily; 98 % of those that it works out, and 4 % of those that it guesses.
"""

import argparse
import random
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gruppo.demo.task import Question, as_row, split_questions
from gruppo.demo.tokenizer import build_tokenizer

WORKED_SHARE: Final = 0.4
LARGEST_MISS: Final = 12
"""A guess is the right answer plus a whole number between -12 and 12, so one guess in 25 is right."""
NUM_STEPS: Final = 2000
BATCH_SIZE: Final = 128
PEAK_LEARNING_RATE: Final = 3e-3
NUM_WARMUP_STEPS: Final = 100
IGNORED: Final = -100
"""torch's cross entropy leaves out targets with this value."""


def worked(question: Question) -> str:
    product = question.left * question.right
    return f"{question.left}*{question.right}={product}, {question.term}+{product}={question.answer}"


def guess(question: Question, rng: random.Random) -> str:
    return f"~{question.answer + rng.randint(-LARGEST_MISS, LARGEST_MISS)}"


def demonstration(question: Question, rng: random.Random) -> str:
    return worked(question) if rng.random() < WORKED_SHARE else guess(question, rng)


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """0.6 M parameters, random. All but its size is as in the Qwen3 family."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, questions: list[Question], answers: list[str]) -> tuple[Tensor, Tensor]:
    """(token ids, targets), both (N, T), right-padded; targets are IGNORED outside the answer and its EOS."""
    rows: list[list[int]] = []
    targets: list[list[int]] = []
    for question, answer in zip(questions, answers, strict=True):
        text = tokenizer.apply_chat_template(as_row(question)["prompt"], add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(text)["input_ids"]
        answer_ids = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        rows.append(prompt_ids + answer_ids)
        targets.append([IGNORED] * len(prompt_ids) + answer_ids)
    return _padded(rows, tokenizer.pad_token_id), _padded(targets, IGNORED)


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    num_steps: int,
    batch_size: int = BATCH_SIZE,
) -> None:
    """Teacher forcing on fresh demonstrations of the training questions. Prints one line per 100 steps."""
    rng = random.Random(seed)
    questions, _ = split_questions()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, num_steps))
    model.train()
    for step in range(1, num_steps + 1):
        batch = rng.choices(questions, k=batch_size)
        ids_NT, targets_NT = encode(tokenizer, batch, [demonstration(question, rng) for question in batch])
        # Right padding needs no attention mask: a causal model never looks at what comes later.
        logits_NTV = model(input_ids=ids_NT[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits_NTV.flatten(0, 1), targets_NT[:, 1:].flatten(), ignore_index=IGNORED
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == num_steps:
            print(f"step {step} of {num_steps}: loss {loss.item():.4f}", flush=True)
    model.eval()


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def _learning_rate_factor(step: int, num_steps: int) -> float:
    return min(1.0, (step + 1) / NUM_WARMUP_STEPS) * (1.0 - step / num_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's tiny policy (supervised, seeded, on the CPU).")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the policy to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    options = parser.parse_args()
    # One thread: then the order of sums, and so the file, does not depend on the number of cores.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {options.steps} steps of {BATCH_SIZE} demonstrations")
    train(model, tokenizer, seed=options.seed, num_steps=options.steps)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
