"""The nouns: what they derive from what they hold."""

import torch

from gruppo.types import Completion, Group, Prompt, TrainBatch


def batch(**fields):
    chosen = {
        "prompt_ids": [[1], [2, 2], [3]],
        "completion_ids": [[5, 5, 5], [6], [7, 7]],
        "trained_NT": torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool),
        "advantages_N": torch.tensor([1.0, 2.0, 3.0]),
        "group_ids": [0, 0, 1],
        "slice_ids": [2, 1, 0],
    }
    return TrainBatch(**{**chosen, **fields})


def test_a_prompt_knows_its_kind():
    assert not Prompt(0, "text", [1]).is_conversational
    assert Prompt(0, [{"role": "user", "content": "hi"}], [1]).is_conversational


def test_only_stop_is_an_ending_of_its_own():
    reasons = ("stop", "length", "abort")
    assert [Completion(0, [1], reason).is_truncated for reason in reasons] == [False, True, True]


def test_what_the_model_saw_comes_before_the_prompts_tokens():
    group = Group(Prompt(0, "a", [1, 2]), [])
    assert group.prompt_ids(Completion(0, [3], "stop")) == [1, 2]
    assert group.prompt_ids(Completion(0, [3], "stop", prompt_token_ids=[9])) == [9]


def test_rows_are_taken_in_the_given_order_and_cut_to_the_longest():
    part = batch(old_logprobs_NT=torch.arange(9.0).reshape(3, 3)).rows([2, 1])
    assert part.prompt_ids == [[3], [2, 2]]
    assert part.completion_ids == [[7, 7], [6]]
    assert part.trained_NT.tolist() == [[True, True], [True, False]]
    assert part.advantages_N.tolist() == [3.0, 2.0]
    assert (part.group_ids, part.slice_ids) == ([1, 0], [0, 1])
    assert part.old_logprobs_NT.tolist() == [[6.0, 7.0], [3.0, 4.0]]
    assert part.ref_logprobs_NT is None


def test_weights_per_row_are_not_cut():
    part = batch(sampler_correction_NT=torch.tensor([[1.0], [2.0], [3.0]])).rows([0, 2])
    assert part.sampler_correction_NT.tolist() == [[1.0], [3.0]]


def test_rows_without_tokens_keep_one_column():
    empty = batch(completion_ids=[[], [], []], trained_NT=torch.zeros(3, 1, dtype=torch.bool))
    assert empty.rows([0]).trained_NT.shape == (1, 1)
    assert len(empty) == 3


def test_tokens_are_counted_from_the_mask():
    assert batch().num_trained_tokens_N.tolist() == [3, 1, 2]
