"""The policy that is shipped, and the script that makes it."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gruppo.demo import make_policy
from gruppo.demo.exam import Exam, hold_exam
from gruppo.demo.run import POLICY
from gruppo.demo.task import Question, is_right, split_questions
from gruppo.demo.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(POLICY)


@pytest.fixture(scope="module")
def exam(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Exam:
    return hold_exam(model, tokenizer, split_questions()[1][:256], seed=7)


def test_it_is_small(model: PreTrainedModel) -> None:
    assert model.config.model_type == "qwen3"
    assert model.num_parameters() <= 3_000_000
    assert sum(file.stat().st_size for file in POLICY.iterdir()) < 4_000_000
    assert {file.suffix for file in POLICY.iterdir()} == {".json", ".jinja", ".safetensors"}


def test_its_tokenizer_is_the_one_in_tokenizer_py(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "<|user|>12+3*4=?<|end|><|assistant|>3*4=12é"
    assert tokenizer(text)["input_ids"] == build_tokenizer()(text)["input_ids"]
    assert tokenizer.chat_template == build_tokenizer().chat_template


def test_before_grpo_most_sampled_answers_are_wrong(exam: Exam) -> None:
    assert 0.2 < exam.sampled_accuracy <= 0.5


def test_what_it_works_out_is_right(exam: Exam) -> None:
    """The skill is there: what GRPO has to change is the habit."""
    worked = [
        is_right(text, str(question.answer))
        for question, text in zip(exam.questions, exam.sampled, strict=True)
        if "*" in text
    ]
    assert 64 < len(worked) < 160
    assert sum(worked) / len(worked) > 0.95


def test_the_exam_is_repeatable_and_leaves_the_generator_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    questions = split_questions()[1][:8]
    state = torch.random.get_rng_state()
    model.train()
    first, second = (hold_exam(model, tokenizer, questions, seed=3) for _ in range(2))
    assert first == second
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert hold_exam(model, tokenizer, questions, seed=4).sampled != first.sampled


def test_demonstrations() -> None:
    question = Question(12, 3, 4)
    assert make_policy.worked(question) == "3*4=12, 12+12=24"
    rng = random.Random(0)
    texts = [make_policy.demonstration(question, rng) for _ in range(2000)]
    guesses = [text for text in texts if text != make_policy.worked(question)]
    assert 0.56 < len(guesses) / len(texts) < 0.64
    assert {int(text.removeprefix("~")) - 24 for text in guesses} == set(range(-12, 13))


def test_encode_trains_the_answer_and_its_end_only() -> None:
    tokenizer = build_tokenizer()
    questions = [Question(12, 3, 4), Question(5, 2, 2)]
    ids_NT, targets_NT = make_policy.encode(tokenizer, questions, ["~24", "2*2=4, 5+4=9"])
    assert tokenizer.decode(ids_NT[0][targets_NT[0] != make_policy.IGNORED]) == "~24<|end|>"
    assert tokenizer.decode(ids_NT[1][targets_NT[1] != make_policy.IGNORED]) == "2*2=4, 5+4=9<|end|>"
    assert tokenizer.decode(ids_NT[0]).startswith("<|user|>12+3*4=?<|end|><|assistant|>~24<|end|><|pad|>")
    assert torch.equal(ids_NT[targets_NT != make_policy.IGNORED], targets_NT[targets_NT != make_policy.IGNORED])


def test_training_is_seeded_and_learns() -> None:
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        tokenizer = build_tokenizer()
        policy = make_policy.build_model(tokenizer)
        before = policy.model.embed_tokens.weight.clone()
        make_policy.train(policy, tokenizer, seed=1, num_steps=2, batch_size=4)
        assert not torch.equal(policy.model.embed_tokens.weight, before)
        losses.append(policy.model.embed_tokens.weight.clone())
    assert torch.equal(*losses)
