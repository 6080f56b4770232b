"""The user's rollout_func, by TRL's contract."""

import math
from typing import Any

import pytest
import torch

from gruppo.errors import RolloutError
from gruppo.rollout.custom import CustomRollout
from gruppo.types import Prompt, RolloutRequest, SamplingParams

SAMPLING = SamplingParams(max_tokens=4, eos_token_ids=(1, 2), pad_token_id=0)
PROMPTS = [Prompt(10, "ab", [5, 6]), Prompt(11, [{"role": "user", "content": "c"}], [7])]
REQUESTS = [RolloutRequest(prompt, range(2)) for prompt in PROMPTS]

OUTPUT: dict[str, Any] = {
    "prompt_ids": [[5, 6], [5, 6], [7, 8], [7, 8]],
    "completion_ids": [[9, 1], [9, 9, 9], [], [2]],
    "logprobs": [[-0.1, -0.2], [-0.3, None, [-0.4, -7.0]], [], [-0.5]],
}


def run(**changes: Any):
    output = {name: value for name, value in {**OUTPUT, **changes}.items() if value != "absent"}
    return CustomRollout(lambda prompts, trainer: output, None).generate(REQUESTS, SAMPLING)


def test_the_function_gets_each_prompt_once_per_completion_and_the_trainer() -> None:
    seen: list[Any] = []

    def rollout_func(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        seen.append(([*prompts], trainer))
        prompts[2][0]["content"] = "scribbled over"
        return OUTPUT

    engine = CustomRollout(rollout_func, "the trainer")
    engine.load_weights(5)
    groups = engine.generate(REQUESTS, SAMPLING)
    assert seen[0][0][:2] == ["ab", "ab"]
    assert seen[0][0][3] == [{"role": "user", "content": "c"}]
    assert seen[0][1] == "the trainer"
    assert PROMPTS[1].content == [{"role": "user", "content": "c"}]
    assert [[c.token_ids for c in group.completions] for group in groups] == [[[9, 1], [9, 9, 9]], [[], [2]]]
    assert [c.sample for c in groups[1].completions] == [0, 1]
    assert groups[0].completions[0].policy_version == 5
    assert engine.health() == {"engine": "rollout_func", "policy_version": 5, "num_completions": 4}
    engine.close()


def test_finish_reasons_follow_the_last_token() -> None:
    groups = run(completion_ids=[[9, 1], [9, 9, 9], [], [2]])
    assert [c.finish_reason for group in groups for c in group.completions] == ["stop", "length", "length", "stop"]
    padded = run(completion_ids=[[9, 0], [9, 9, 9], [], [2]])
    assert padded[0].completions[0].finish_reason == "stop"


def test_logprobs_none_and_nested() -> None:
    first, second = run()[0].completions
    assert first.sampler_logprobs == [-0.1, -0.2]
    assert second.sampler_logprobs is not None
    assert second.sampler_logprobs[0] == -0.3
    assert math.isnan(second.sampler_logprobs[1])
    assert second.sampler_logprobs[2] == -0.4
    assert run(logprobs=None)[0].completions[0].sampler_logprobs is None
    assert run(logprobs=[None, None, [], [-0.5]])[0].completions[0].sampler_logprobs is None


def test_prompt_ids_are_kept_where_they_differ() -> None:
    groups = run()
    assert groups[0].completions[0].prompt_token_ids is None
    assert groups[1].completions[0].prompt_token_ids == [7, 8]


def test_env_mask_marks_what_the_model_made() -> None:
    groups = run(env_mask=[[1, 0], [1, 1, 1], [], [1]])
    assert groups[0].completions[0].trained == [True, False]
    assert groups[0].completions[1].trained == [True, True, True]
    assert run()[0].completions[0].trained is None


def test_extra_fields_go_to_their_rows_or_to_all() -> None:
    groups = run(turns=[1, 2, 3, 4], world="grid")
    assert [c.extras for group in groups for c in group.completions] == [
        {"turns": i, "world": "grid"} for i in (1, 2, 3, 4)
    ]


def test_tensors_are_taken_as_lists() -> None:
    groups = run(completion_ids=[torch.tensor(ids, dtype=torch.long) for ids in OUTPUT["completion_ids"]])
    assert groups[0].completions[0].token_ids == [9, 1]


def test_an_exception_of_the_function_passes_through() -> None:
    def broken(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        CustomRollout(broken, None).generate(REQUESTS, SAMPLING)


def test_no_rows_no_call() -> None:
    def never(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        raise AssertionError("called")

    assert CustomRollout(never, None).generate([], SAMPLING) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": "absent"}, r"rollout_func must return keys \['logprobs'\]"),
        ({"prompt_ids": None}, "None as 'prompt_ids'"),
        ({"completion_ids": [[1]]}, "1 entries in 'completion_ids' for 4 prompts"),
        ({"logprobs": [[-0.1]] * 3}, "3 entries in 'logprobs' for 4 prompts"),
        ({"logprobs": [[-0.1], [-0.1] * 3, [], [-0.1]]}, r"1 values in logprobs\[0\] for 2 tokens"),
        ({"env_mask": [[1, 1], [1], [], [1]]}, r"1 values in env_mask\[1\] for 3 tokens"),
        ({"turns": [1, 2]}, "2 entries in 'turns' for 4 prompts"),
        ({"prompt_ids": [[5], [], [7], [7]]}, r"empty prompt_ids\[1\]"),
    ],
)
def test_a_broken_contract_names_field_and_counts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        run(**changes)


def test_not_a_dict() -> None:
    with pytest.raises(RolloutError, match="must return a dict, but returned list"):
        CustomRollout(lambda prompts, trainer: [], None).generate(REQUESTS, SAMPLING)
