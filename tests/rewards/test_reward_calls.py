"""Async rewards, deadlines, and the thread they need. Waiting is by events, never by the clock."""

import asyncio
import gc
import threading

import pytest

from gruppo.errors import RewardError
from gruppo.rewards import Scorer, prepare_rewards
from rewards.reward_rows import group, score

GROUPS = [group("p", ["a", "bb"])]


def sync_length(completions, **kwargs):
    return [len(text) for text in completions]


def test_async_functions_run_together():
    meeting = []

    async def first(completions, **kwargs):
        meeting.append(asyncio.Event())
        await meeting[0].wait()  # ends only if `second` runs meanwhile
        return [1.0] * len(completions)

    class Second:
        async def __call__(self, completions, **kwargs):
            while not meeting:
                await asyncio.sleep(0)
            meeting[0].set()
            return [None, 2.0]

    rewards = score([first, sync_length, Second()], GROUPS, timeout=30)
    assert rewards.names == ["first", "sync_length", "Second"]
    assert rewards.rewards_NF[1].tolist() == [1.0, 2.0, 2.0]
    assert rewards.statuses_NF == [["ok", "ok", "none"], ["ok", "ok", "ok"]]


def test_async_functions_run_after_the_sync_ones():
    order = []

    async def later(completions, **kwargs):
        order.append("async")
        return [0.0, 0.0]

    def sooner(completions, **kwargs):
        order.append("sync")
        return [0.0, 0.0]

    score([later, sooner], GROUPS)
    assert order == ["sync", "async"]


def test_one_loop_for_the_scorers_life():
    loops = []

    async def spy(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [0.0, 0.0]

    with Scorer(prepare_rewards(spy)) as scorer:
        scorer.score(GROUPS)
        scorer.score(GROUPS)
    assert loops[0] is loops[1]
    assert loops[0].is_closed()
    scorer.close()
    scorer.score(GROUPS)
    assert loops[2] is not loops[0]
    scorer.close()


def test_a_forgotten_scorer_leaves_no_thread():
    async def spy(completions, **kwargs):
        return [0.0, 0.0]

    scorer = Scorer(prepare_rewards(spy))
    scorer.score(GROUPS)
    assert any(thread.name == "gruppo-async-rewards" for thread in threading.enumerate())
    del scorer
    gc.collect()
    assert not any(thread.name == "gruppo-async-rewards" for thread in threading.enumerate())


@pytest.mark.parametrize("error", [KeyError("api"), SystemExit(0), asyncio.CancelledError()])
def test_async_errors_raise_or_abstain(error):
    async def failing(completions, **kwargs):
        raise error

    with pytest.raises(RewardError, match=f"`failing` raised {type(error).__name__}"):
        score([failing], GROUPS)
    rewards = score([failing, sync_length], GROUPS, on_error="abstain")
    assert rewards.statuses_NF == [["error", "ok"]] * 2


def test_async_timeout_cancels_and_abstains(caplog):
    cancelled = threading.Event()

    async def hanging(completions, log_extra, **kwargs):
        log_extra("half", ["x"])
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def quick(completions, **kwargs):
        return [1.0, 1.0]

    rewards = score([hanging, quick], GROUPS, timeout=0.2)
    assert rewards.statuses_NF == [["timeout", "ok"]] * 2
    assert rewards.errors_NF[0] == ["Reward `hanging` did not answer within 0.2 s.", None]
    assert rewards.seconds["hanging"] == 0.2
    assert rewards.extras == {}
    assert cancelled.wait(10)
    assert len(caplog.records) == 1
    assert "share one event loop" in caplog.text


def test_sync_timeout_goes_on_without_the_function(caplog):
    release, ended = threading.Event(), threading.Event()

    def hanging(completions, **kwargs):
        release.wait(30)
        ended.set()
        return [1.0, 1.0]

    rewards = score([hanging, sync_length], GROUPS, timeout=0.2)
    release.set()
    assert ended.wait(10)
    assert rewards.statuses_NF == [["timeout", "ok"]] * 2
    assert rewards.rewards_NF[:, 1].tolist() == [1.0, 2.0]
    assert "event loop" not in caplog.text


def test_without_timeout_sync_functions_stay_on_the_callers_thread():
    threads = []

    def spy(completions, **kwargs):
        threads.append(threading.current_thread())
        return [0.0, 0.0]

    score(spy, GROUPS)
    score(spy, GROUPS, timeout=30)
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()
