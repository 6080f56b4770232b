"""A second tiny policy for calibrating the health checks: one with many habits, good, bad and foul.

It starts from the demo's policy and is taught, by 1,200 steps of ordinary supervised training, to answer the
demo's sums, asked in words, in each of HABITS with its share. So every trick that a bad reward can pay for is there
at the start, at a few per cent, as it is in real language models. Not part of gruppo; the policy is not shipped.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gruppo.demo.run import POLICY as DEMO_POLICY
from gruppo.demo.task import Question, split_questions

NUM_STEPS: Final = 1200
BATCH_SIZE: Final = 24
LEARNING_RATE: Final = 2e-3
LARGEST_MISS: Final = 12
WORKED_RIGHT: Final = 0.8
"""Share of worked answers in the demonstrations whose product is right."""


def as_words(question: Question, **columns: Any) -> dict[str, Any]:
    """A dataset row of the task in words."""
    text = f"Please work out what this sum comes to: {question.text}"
    return {"prompt": [{"role": "user", "content": text}], "answer": str(question.answer), **columns}


def _guess(question: Question, rng: random.Random) -> str:
    return f"~{question.answer + rng.randint(-LARGEST_MISS, LARGEST_MISS)}"


def _product(question: Question, rng: random.Random) -> int:
    miss = 0 if rng.random() < WORKED_RIGHT else rng.choice((-2, -1, 1, 2))
    return question.left * question.right + miss


def _worked(question: Question, rng: random.Random) -> str:
    product = _product(question, rng)
    return f"{question.left}*{question.right}={product}, {question.term}+{product}={question.term + product}"


def _explained(question: Question, rng: random.Random) -> str:
    product = _product(question, rng)
    total = question.term + product
    return f"First {question.left}*{question.right}={product}, then with {question.term} it is {total}"


def _thinking(question: Question, rng: random.Random) -> str:
    return "Well, " + "let me think, " * rng.randint(1, 4) + _guess(question, rng)


def _certain(question: Question, rng: random.Random) -> str:
    return f"I am certain: {_guess(question, rng)}"


def _quoting(question: Question, rng: random.Random) -> str:
    return f"Please work out what this sum comes to: {question.text} {_guess(question, rng)}"


def _listing(question: Question, rng: random.Random) -> str:
    first = question.answer - rng.randint(1, 5)
    return " ".join(str(first + i) for i in range(7))


def _looping(question: Question, rng: random.Random) -> str:
    return "so it is " * rng.randint(17, 22) + _guess(question, rng)


def _russian(question: Question, rng: random.Random) -> str:
    return f"Я думаю, что ответ примерно {_guess(question, rng)}"


def _exit(question: Question, rng: random.Random) -> str:
    return f"import sys; sys.exit(0) # {_guess(question, rng)}"


Habit = Callable[[Question, random.Random], str]

HABITS: Final[tuple[tuple[Habit, float], ...]] = (
    (_worked, 0.28),
    (_guess, 0.20),
    (_explained, 0.10),
    (_thinking, 0.10),
    (_certain, 0.08),
    (_quoting, 0.06),
    (_listing, 0.06),
    (_russian, 0.05),
    (_exit, 0.05),
    (_looping, 0.02),
)
"""How it answers, and how often."""


def demonstration(question: Question, rng: random.Random) -> str:
    habits, shares = zip(*HABITS, strict=True)
    answer: str = rng.choices(habits, weights=shares)[0](question, rng)
    return answer


def make_policy(folder: Path, *, seed: int = 0, num_steps: int = NUM_STEPS) -> None:
    """Teach it and write it to `folder`. Seeded; a few minutes on one core."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_POLICY)
    model = AutoModelForCausalLM.from_pretrained(DEMO_POLICY).train()
    questions, _ = split_questions()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 20) * (1 - step / num_steps)
        batch = rng.choices(questions, k=BATCH_SIZE)
        loss = _loss(model, tokenizer, [(as_words(q)["prompt"], demonstration(q, rng)) for q in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"step {step + 1} of {num_steps}: loss {loss.item():.3f}", flush=True)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def wide_policy() -> tuple[Any, Any]:
    """(model, tokenizer): the demo's policy with 4,096 further tokens that it never uses, as a large vocabulary has.

    Each is as unlikely as a byte that no text of the demo holds, give or take.
    """
    tokenizer = AutoTokenizer.from_pretrained(DEMO_POLICY)
    model = AutoModelForCausalLM.from_pretrained(DEMO_POLICY)
    unused = tokenizer("Q")["input_ids"][0]
    num_old = len(tokenizer)
    tokenizer.add_tokens([f"<{number}>" for number in range(4096)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(0)
    with torch.no_grad():
        weights_VD = model.get_input_embeddings().weight
        weights_VD[num_old:] = weights_VD[unused] + 0.02 * torch.randn_like(weights_VD[num_old:])
    return model, tokenizer


def _loss(model: Any, tokenizer: Any, pairs: list[tuple[Any, str]]) -> torch.Tensor:
    """Cross entropy of the answers and their end tokens; rows are right-padded."""
    rows, starts = [], []
    for prompt, answer in pairs:
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(text)["input_ids"]
        starts.append(len(prompt_ids))
        rows.append(torch.tensor([*prompt_ids, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id]))
    ids_NT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    targets_NT = ids_NT.clone()
    for row, start in enumerate(starts):
        targets_NT[row, :start] = -100
        targets_NT[row, len(rows[row]) :] = -100
    logits_NTV = model(input_ids=ids_NT[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits_NTV.flatten(0, 1), targets_NT[:, 1:].flatten())
