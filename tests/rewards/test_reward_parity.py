"""The built-in rewards that TRL has, too, give TRL's numbers on a corpus of texts, and pass its checks of names."""

import itertools
import random

import pytest

from gruppo import rewards as ours

pytestmark = pytest.mark.parity

theirs = pytest.importorskip("trl.rewards")

TEXTS = [
    r"\boxed{\frac{1}{3}}",
    r"The answer is \boxed{0.5}.",
    "The answer is $2$",
    "2",
    "$x = 2$",
    r"\boxed{1} and \boxed{2}",
    r"<think>\boxed{1}</think> so \boxed{2}",
    r"<think>\boxed{2}</think>",
    r"<think>a</think>b</think>\boxed{x+1}",
    "<think>no end",
    "<think>one</think><think>two</think>",
    "text\n<think>late</think>",
    "<think>\nmany\nlines\n</think>\nanswer",
    " <think>a</think>",
    "",
    r"\boxed{1+x}",
    r"\boxed{10\%}",
    r"\boxed{\text{no}}",
    r"\[ \frac{2}{4} \]",
    r"\boxed{2 \text{ cm}}",
]
SOLUTIONS = [r"\frac{1}{3}", "$0.5$", "2", "$x+1$", "not parseable at all", r"\boxed{10\%}"]

PAIRS = list(itertools.product(TEXTS, SOLUTIONS))
CHATS = [[{"role": "assistant", "content": text}] for text, _ in PAIRS]
GOLDS = [solution for _, solution in PAIRS]


def id_lists() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(k) for _ in range(rng.randrange(40))] for k in (1, 2, 3, 10) for _ in range(30)]


@pytest.mark.parametrize("name", ["accuracy_reward", "reasoning_accuracy_reward"])
def test_math(name):
    logs = ({}, {})
    mine = getattr(ours, name)(CHATS, GOLDS, log_extra=logs[0].__setitem__)
    assert mine == getattr(theirs, name)(CHATS, GOLDS, log_extra=logs[1].__setitem__)
    assert logs[0] == logs[1]
    assert {0.0, 1.0, None} <= set(mine)


def test_reasoning_delimiters():
    options = {"reasoning_delimiters": ["</nothing>", "so"]}
    expected = theirs.reasoning_accuracy_reward(CHATS, GOLDS, **options)
    assert ours.reasoning_accuracy_reward(CHATS, GOLDS, **options) == expected


def test_think_format():
    chats = [[{"content": text}] for text in TEXTS]
    mine = ours.think_format_reward(chats)
    assert mine == theirs.think_format_reward(chats)
    assert set(mine) == {0.0, 1.0}


@pytest.mark.parametrize(("max_len", "bounds"), [(100, ()), (7, (-2.0, -0.1, 0.2, 3.0))])
def test_cosine(max_len, bounds):
    ids = (id_lists() * 2)[: len(CHATS)]
    mine = ours.get_cosine_scaled_reward(max_len, *bounds)
    reference = theirs.get_cosine_scaled_reward(max_len, *bounds)
    values, expected = mine(CHATS, GOLDS, ids), reference(CHATS, GOLDS, ids)
    assert [value is None for value in values] == [value is None for value in expected]
    scored = [(value, other) for value, other in zip(values, expected, strict=True) if value is not None]
    assert [value for value, _ in scored] == pytest.approx([other for _, other in scored], rel=1e-12)
    assert mine.__name__ == reference.__name__


@pytest.mark.parametrize(("ngram_size", "max_penalty"), [(3, -1.0), (1, -0.5), (5, 0.0)])
def test_repetition(ngram_size, max_penalty):
    mine = ours.get_repetition_penalty_reward(ngram_size, max_penalty)
    reference = theirs.get_repetition_penalty_reward(ngram_size, max_penalty)
    assert mine(completion_ids=id_lists()) == reference(completion_ids=id_lists())
    assert mine.__name__ == reference.__name__


@pytest.mark.parametrize(("limit", "cache"), [(30, 10), (20, 0), (20, 20)])
def test_soft_overlong(limit, cache):
    mine, reference = ours.get_soft_overlong_punishment(limit, cache), theirs.get_soft_overlong_punishment(limit, cache)
    assert mine(completion_ids=id_lists()) == reference(completion_ids=id_lists())
    assert mine.__name__ == reference.__name__


def test_names_of_trl_are_all_here():
    assert set(theirs._import_structure["accuracy_rewards"]) <= set(ours.BUILTINS)
    assert set(theirs._import_structure["format_rewards"]) <= set(ours.BUILTINS)
    assert set(theirs._import_structure["other_rewards"]) <= set(ours.BUILTINS)
