"""`check_reward` stops a call that hangs, whatever the reward catches."""

import signal
from contextlib import suppress

import pytest

from gruppo.rewards.check import check_reward
from gruppo.types import Prompt

PROMPTS = [Prompt(0, "What is 0?", [], {})]


def hang() -> None:
    while True:
        pass


@pytest.mark.parametrize("caught", [Exception, BaseException])
def test_a_reward_that_catches_the_stop_is_reported(caught: type[BaseException]) -> None:
    def catches(completions: list[str], **kwargs: object) -> list[float]:
        if len(completions[0]) > 1000:
            with suppress(caught):
                hang()
        return [0.0] * len(completions)

    check = check_reward(catches, PROMPTS, cpu_limit=0.05)
    failures = [finding.text for finding in check.findings if finding.code == "failure"]
    assert len(failures) == 1
    assert "stopped after 0.05 s of processor time" in failures[0]
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_a_second_hang_is_stopped_as_well() -> None:
    def stubborn(completions: list[str], **kwargs: object) -> list[float]:
        if completions[0].startswith("<think>"):
            with suppress(BaseException):
                hang()
            hang()
        return [0.0] * len(completions)

    check = check_reward(stubborn, PROMPTS, cpu_limit=0.05)
    assert check.kinds["long"].error is not None
    assert check.kinds["long_nested"].error is None
