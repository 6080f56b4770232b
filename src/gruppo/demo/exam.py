"""The exam: what share of the held-out questions a policy answers right, sampled and greedily.

Plain `model.generate`, one answer per question, apart from the trainer and its metrics: the number that the demo is
judged by does not come from the code that it demonstrates.
"""

from dataclasses import dataclass
from typing import Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gruppo.demo.task import Question, as_row, is_right

MAX_ANSWER_TOKENS: Final = 24


@dataclass(frozen=True, slots=True)
class Exam:
    """Answers to the same questions, twice: sampled at temperature 1, and the most likely token each time."""

    questions: list[Question]
    sampled: list[str]
    greedy: list[str]

    @property
    def sampled_accuracy(self) -> float:
        return share_right(self.questions, self.sampled)

    @property
    def greedy_accuracy(self) -> float:
        return share_right(self.questions, self.greedy)


def hold_exam(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], *, seed: int
) -> Exam:
    """Both sets of answers. The same seed gives the same samples; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sampled = answer(model, tokenizer, questions, is_greedy=False)
    return Exam(questions, sampled, greedy=answer(model, tokenizer, questions, is_greedy=True))


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], *, is_greedy: bool
) -> list[str]:
    """One answer per question, decoded without special tokens; sampling is from the untruncated distribution."""
    texts = [
        tokenizer.apply_chat_template(as_row(question)["prompt"], add_generation_prompt=True, tokenize=False)
        for question in questions
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    was_training = model.training
    model.eval()
    ids_NT = model.generate(
        **batch,
        max_new_tokens=MAX_ANSWER_TOKENS,
        **({"do_sample": False} if is_greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}),
    )
    model.train(was_training)
    answers: list[str] = tokenizer.batch_decode(ids_NT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def share_right(questions: list[Question], answers: list[str]) -> float:
    right = [is_right(text, str(question.answer)) for question, text in zip(questions, answers, strict=True)]
    return sum(right) / len(right)
