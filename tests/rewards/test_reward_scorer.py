"""The scorer: what functions receive, what becomes of what they return, and who is blamed."""

import functools
import logging
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gruppo.errors import RewardError
from gruppo.rewards import Scorer, prepare_rewards, text_reward
from rewards.reward_rows import chat, group, score


def length(completions, **kwargs):
    return [float(len(text)) for text in completions]


def nothing(completions, **kwargs):
    return [None] * len(completions)


def test_functions_receive_trls_keywords():
    received = {}

    def spy(**kwargs):
        received.update(kwargs)
        return [0.0] * 3

    state = object()
    groups = [group("2+2=", ["4", "five"], answer="4"), group("3+3=", ["6"], id=1, answer="6", completion="x")]
    score(spy, groups, trainer_state=state)
    assert callable(received.pop("log_extra"))
    assert callable(received.pop("log_metric"))
    assert received.pop("trainer_state") is state
    assert received == {
        "prompts": ["2+2=", "2+2=", "3+3="],
        "completions": ["4", "five", "6"],
        "completion_ids": [[52, 0], [*b"five", 0], [54, 0]],
        "answer": ["4", "4", "6"],
    }


def test_chat_prompts_give_message_lists():
    def spy(prompts, completions, **kwargs):
        assert prompts == [chat("hi")]
        assert completions == [[{"role": "assistant", "content": "hello"}]]
        return [1.0]

    assert score(spy, [group(chat("hi"), ["hello"])]).rewards_NF.tolist() == [[1.0]]


def test_extra_fields_of_the_rollout_are_columns():
    def spy(completions, turns, source, **kwargs):
        assert source == ["rollout", "dataset"]
        return turns

    groups = [group("p", ["a", "b"], extras=[{"turns": 3, "source": "rollout"}], source="dataset")]
    rewards = score(spy, groups)
    assert rewards.rewards_NF[0].tolist() == [3.0]
    assert rewards.statuses_NF == [["ok"], ["none"]]


def test_the_table():
    half = functools.partial(lambda completions, factor, **kwargs: [factor] * len(completions), factor=0.5)
    rewards = score([length, nothing, half], [group("p", ["a", "bbb"])], weights=[1, 2, 3])
    assert rewards.names == ["length", "nothing", "<lambda>"]
    assert rewards.rewards_NF.dtype == torch.float32
    torch.testing.assert_close(
        rewards.rewards_NF, torch.tensor([[1.0, math.nan, 0.5], [3.0, math.nan, 0.5]]), equal_nan=True, rtol=0, atol=0
    )
    assert rewards.statuses_NF == [["ok", "none", "ok"]] * 2
    assert rewards.errors_NF == [[None] * 3] * 2
    assert set(rewards.seconds) == {"length", "nothing", "<lambda>"}
    assert all(seconds >= 0 for seconds in rewards.seconds.values())


def test_no_rows():
    rewards = score([length, nothing], [])
    assert rewards.rewards_NF.shape == (0, 2)
    assert rewards.statuses_NF == []


def test_functions_see_fresh_lists():
    def vandal(prompts, completions, completion_ids, answer, **kwargs):
        prompts[0][0]["content"] = completions[0][0]["content"] = "changed"
        completion_ids[0].clear()
        answer.clear()
        return [0.0]

    def witness(prompts, completions, completion_ids, answer, **kwargs):
        assert prompts[0][0]["content"] == "hi"
        assert completions[0][0]["content"] == "yo"
        assert completion_ids == [[*b"yo", 0]]
        assert answer == ["x"]
        return [1.0]

    groups = [group(chat("hi"), ["yo"], answer="x")]
    assert score([vandal, witness], groups).rewards_NF.tolist() == [[0.0, 1.0]]
    assert groups[0].prompt.content == chat("hi")
    assert groups[0].completions[0].token_ids == [*b"yo", 0]


def test_log_extra_and_log_metric():
    def whole(completions, log_extra, log_metric, **kwargs):
        log_extra("gold", ["x", "y"])
        log_metric("hits", 1)
        log_metric("hits", torch.tensor(0.5))
        return [0.0, 0.0]

    def one_by_one(completions, log_extra, log_metric, **kwargs):
        for completion in completions:
            log_extra("size", [len(completion)])
        log_extra("gold", ["x", "y"])
        log_metric("hits", 0.0)
        return [0.0, 0.0]

    def differently(completions, log_extra, **kwargs):
        log_extra("gold", ["x", "z"])
        return [0.0, 0.0]

    rewards = score([whole, one_by_one, differently], [group("p", ["a", "bb"])])
    assert rewards.extras == {"gold": ["x", "y"], "size": [1, 2], "differently/gold": ["x", "z"]}
    hits = rewards.metrics["hits"]
    assert (hits.total, hits.count) == (1.5, 3)


@pytest.mark.parametrize(
    "name", ["step", "time", "attempt", "split", "nonfinite", "reward", "loss", "num_tokens", "kl"]
)
def test_log_metric_refuses_the_runs_own_names(name):
    def mine(completions, log_metric, **kwargs):
        log_metric(name, 1.0)
        return [0.0, 0.0]

    with pytest.raises(
        RewardError, match=rf"Reward `mine` called `log_metric\('{name}', ...\)`.*such as 'mine/{name}'"
    ):
        score(mine, [group("p", ["a", "bb"])], on_error="abstain")


def test_log_extra_of_wrong_length_is_named():
    def short(completions, log_extra, **kwargs):
        log_extra("gold", ["x"])
        return [0.0, 0.0]

    with pytest.raises(RewardError, match=r"`short` logged 1 values with `log_extra\('gold', ...\)` for 2 completions"):
        score(short, [group("p", ["a", "b"])])


def test_nan_abstains_with_one_warning(caplog):
    def broken(completions, **kwargs):
        return [1.0, math.nan]

    with Scorer(prepare_rewards([broken, length])) as scorer:
        for _ in range(2):
            rewards = scorer.score([group("p", ["a", "b"], id=7)])
    assert rewards.statuses_NF == [["ok", "ok"], ["nan", "ok"]]
    assert rewards.errors_NF[1][0] == "Reward `broken` returned NaN for row 1 (prompt 7)."
    assert [record.getMessage().split(" It is")[0] for record in caplog.records] == [rewards.errors_NF[1][0]]


def test_infinity_raises_or_abstains():
    def overflowing(completions, **kwargs):
        return [1.0, -1e39]

    groups = [group("p", ["a", "b"], id=7)]
    with pytest.raises(RewardError, match=r"`overflowing` returned infinity .* for row 1 \(prompt 7\)"):
        score(overflowing, groups)
    rewards = score(overflowing, groups, on_error="abstain")
    assert rewards.statuses_NF == [["ok"], ["inf"]]
    assert math.isnan(rewards.rewards_NF[1, 0])


@pytest.mark.parametrize("error", [ValueError("no such key"), SystemExit(0)])
def test_exceptions_raise_or_abstain(error, caplog):
    def failing(completions, log_extra, **kwargs):
        log_extra("half", ["a"])
        raise error

    groups = [group("p", ["a", "b"])]
    with pytest.raises(RewardError, match=f"Reward `failing` raised {type(error).__name__}: ") as raised:
        score([length, failing], groups)
    assert raised.value.__cause__ is error
    rewards = score([failing, length], groups, on_error="abstain")
    assert rewards.statuses_NF == [["error", "ok"]] * 2
    assert rewards.errors_NF[0][0] == f"Reward `failing` raised {type(error).__name__}: {error}."
    assert rewards.rewards_NF[:, 1].tolist() == [1.0, 1.0]
    assert rewards.extras == {}
    assert len(caplog.records) == 1


def test_wrong_returns_raise_whatever_the_policy():
    def short(completions, **kwargs):
        return [1.0]

    with pytest.raises(RewardError, match="'short' returned 1 rewards, but 2 were expected"):
        score(short, [group("p", ["a", "b"])], on_error="abstain")


def test_keyboard_interrupt_passes():
    def interrupted(completions, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(interrupted, [group("p", ["a"])], on_error="abstain")


@pytest.mark.parametrize(
    "use",
    [
        lambda text: re.search("x", text),
        lambda text: text.strip(),
        lambda text: text + "x",
        lambda text: {text: 1},
    ],
)
def test_text_functions_on_chat_completions_are_explained(use):
    def for_text(completions, **kwargs):
        return [float(bool(use(text))) for text in completions]

    with pytest.raises(RewardError) as raised:
        score(for_text, [group(chat("hi"), ["hello"])])
    message = str(raised.value)
    assert 'its text is `completion[0]["content"]`' in message
    assert "`@text_reward`" in message
    assert "{'role': 'assistant', 'content': 'hello'}" in message
    assert score(text_reward(for_text), [group("hi", ["hello"])]).statuses_NF == [["ok"]]


def test_chat_functions_on_text_completions_are_explained():
    def for_chat(completions, **kwargs):
        return [len(completion[0]["content"]) for completion in completions]

    with pytest.raises(RewardError, match="plain text, so each completion is a string"):
        score(for_chat, [group("hi", ["hello"])])


def test_other_errors_get_no_hint():
    def unlucky(completions, **kwargs):
        raise TypeError("unsupported operand type(s) for +: 'int' and 'NoneType'")

    with pytest.raises(RewardError, match=r"'NoneType'\.$"):
        score(unlucky, [group(chat("hi"), ["hello"])])


def test_text_reward_makes_strings():
    @text_reward
    def is_short(completions, answer, **kwargs):
        assert answer == ["x", "x"]
        return [float(len(text) < 5) for text in completions]

    @text_reward
    async def is_loud(completions, **kwargs):
        return [float(text.isupper()) for text in completions]

    rewards = score([is_short, is_loud], [group(chat("hi"), ["HI", "hello"], answer="x")])
    assert rewards.names == ["is_short", "is_loud"]
    assert rewards.rewards_NF.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_unscorable_rows_warn_once_like_trl(caplog):
    def second_only(completions, **kwargs):
        return [None, 1.0]

    with Scorer(prepare_rewards([nothing, second_only])) as scorer:
        for _ in range(2):
            scorer.score([group("why", ["a", "b"], answer="x")])
    assert len(caplog.records) == 1
    record = caplog.records[0]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        "All reward functions returned None for the following kwargs:\n"
        "{'answer': 'x', 'prompt': 'why', 'completion': 'a'}"
    )


def test_streams_are_checked_when_their_columns_arrive():
    def needs_solution(completions, solution, **kwargs):
        return [0.0]

    with pytest.raises(RewardError, match=r"rename_column\('answer', 'solution'\)"):
        score(needs_solution, [group("p", ["a"], answer="x")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, r"Number of reward weights \(1\) must match number of reward functions \(2\)"),
        ({"timeout": 0}, "timeout of rewards is 0"),
    ],
)
def test_scorer_options_are_checked(options, message):
    with pytest.raises(RewardError, match=message):
        Scorer(prepare_rewards([length, nothing]), **options)


def test_weights_default_to_one():
    assert Scorer(prepare_rewards([length, nothing])).weights == [1.0, 1.0]
    assert Scorer(prepare_rewards([length, nothing]), weights=[2, 0.5]).weights == [2.0, 0.5]


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), shift=st.integers(-3, 3))
def test_rows_stay_aligned(sizes, shift):
    """Whatever the group sizes: value, status, columns and extras of a row all belong to the same completion."""
    groups = [
        group(f"prompt {g}", [f"{g}.{i}" for i in range(size)], id=g, number=g * 10) for g, size in enumerate(sizes)
    ]
    expected = [g * 10 + i + shift for g, size in enumerate(sizes) for i in range(size)]

    def own(completions, number, log_extra, **kwargs):
        log_extra("me", list(completions))
        return [n + int(text.split(".")[1]) + shift for n, text in zip(number, completions, strict=True)]

    def odd_only(prompts, completion_ids, **kwargs):
        return [len(ids) if int(p.split()[1]) % 2 else None for p, ids in zip(prompts, completion_ids, strict=True)]

    async def later(number, **kwargs):
        return number

    rewards = score([later, own, odd_only], groups)
    assert rewards.rewards_NF.shape == (len(expected), 3)
    assert rewards.rewards_NF[:, 1].tolist() == expected
    assert rewards.extras.get("me", []) == [f"{g}.{i}" for g, size in enumerate(sizes) for i in range(size)]
    odd = [bool(g % 2) for g, size in enumerate(sizes) for _ in range(size)]
    assert [row[2] == "ok" for row in rewards.statuses_NF] == odd
    assert rewards.rewards_NF[:, 0].tolist() == [g * 10 for g, size in enumerate(sizes) for _ in range(size)]
