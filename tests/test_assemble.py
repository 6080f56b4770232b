"""THE training mask: model-made, not padding, not dropped. And how rollouts are collected."""

import math
from types import SimpleNamespace

import pytest
import torch

from fakes import EOS, FakeEngine
from gruppo.assemble import assemble
from gruppo.clock import Clock
from gruppo.collect import Collector
from gruppo.distributed.world import World
from gruppo.errors import RolloutError
from gruppo.types import Completion, Group, Prompt, SamplingParams
from tiny_tokenizer import tiny_tokenizer

CPU = torch.device("cpu")


def made(groups, **fields):
    num_rows = sum(len(group.completions) for group in groups)
    chosen = {
        "advantages_N": torch.arange(float(num_rows)),
        "slice_ids": list(range(num_rows)),
        "mask_truncated": False,
        "device": CPU,
    }
    return assemble(groups, **{**chosen, **fields})


def two_groups():
    first = Group(
        Prompt(7, "a", [1, 2]),
        [
            Completion(0, [5, 6, EOS], "stop", sampler_logprobs=[-1.0, -2.0, -3.0]),
            Completion(1, [5, 6, 7, 8], "length", sampler_logprobs=[-1.0] * 4),
        ],
    )
    second = Group(
        Prompt(9, "b", [3]),
        [Completion(0, [5, 9, 9, EOS], "stop", trained=[True, False, False, True], prompt_token_ids=[3, 3])],
    )
    return [first, second]


def test_the_mask_covers_what_the_model_made():
    batch = made(two_groups())
    assert batch.trained_NT.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 1]]
    assert batch.prompt_ids == [[1, 2], [1, 2], [3, 3]]
    assert batch.completion_ids == [[5, 6, EOS], [5, 6, 7, 8], [5, 9, 9, EOS]]
    assert batch.group_ids == [0, 0, 1]
    assert batch.slice_ids == [0, 1, 2]
    assert batch.advantages_N.tolist() == [0.0, 1.0, 2.0]


def test_truncated_rows_are_dropped_if_asked():
    assert made(two_groups(), mask_truncated=True).trained_NT.sum(dim=1).tolist() == [3, 0, 2]


def test_sampler_log_probs_are_nan_where_unknown():
    logprobs = made(two_groups()).sampler_logprobs_NT
    assert logprobs[0, :3].tolist() == [-1.0, -2.0, -3.0]
    assert math.isnan(logprobs[0, 3])
    assert logprobs[2].isnan().all()


def test_without_any_sampler_log_probs_there_are_none():
    groups = [Group(Prompt(0, "a", [1]), [Completion(0, [5], "stop")])]
    assert made(groups).sampler_logprobs_NT is None


def test_empty_completions_and_empty_ranks_have_shapes():
    assert made([Group(Prompt(0, "a", [1]), [Completion(0, [], "length")])]).trained_NT.tolist() == [[False]]
    for mask_truncated in (False, True):
        nothing = made([], mask_truncated=mask_truncated)
        assert nothing.trained_NT.shape == (0, 1)
        assert nothing.trained_NT.dtype == torch.bool
        assert len(nothing) == 0


# -- collect


def collector(engine, rank=0, size=1):
    world = World(SimpleNamespace(process_index=rank, num_processes=1, device=CPU))
    world.size = size
    world.gather_outcomes = lambda work, *_: [work()]  # the other ranks are thought only
    return Collector(engine, tiny_tokenizer(), world, Clock(lambda phase: None))


PROMPTS = [Prompt(number, "one", [1]) for number in (4, 2, 9)]
PARAMS = SamplingParams(max_tokens=2)


def test_groups_come_back_in_the_order_of_the_prompts_with_text():
    engine = FakeEngine(order=lambda groups: groups[::-1])
    groups = collector(engine).generate(PROMPTS, 5, PARAMS)
    assert [group.prompt.id for group in groups] == [4, 2, 9]
    assert [completion.sample for completion in groups[0].completions] == [0, 1, 2, 3, 4]
    # Special tokens are left out of the text.
    assert [completion.text for completion in groups[0].completions] == ["", "user", "assistant", "system", "one"]


def test_each_rank_asks_for_its_rows_only():
    shares = []
    for rank in (0, 1):
        engine = FakeEngine()
        collector(engine, rank, 2).generate(PROMPTS, 2, PARAMS)
        shares.append([(request.prompt.id, list(request.samples)) for request in engine.requests])
    assert shares == [[(4, [0, 1]), (2, [0])], [(2, [1]), (9, [0, 1])]]


def test_a_rank_without_rows_has_no_groups():
    assert collector(FakeEngine(), 0, 2).generate(PROMPTS[:1], 1, PARAMS) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda groups: groups[:-1], r"asked for prompts \[4, 2, 9\] and returned \[4, 2\]"),
        (lambda groups: [*groups, groups[0]], "It must return one group for each"),
        (
            lambda groups: [Group(groups[0].prompt, groups[0].completions[1:]), *groups[1:]],
            r"samples \[0, 1\], the engine",
        ),
    ],
    ids=["missing", "doubled", "incomplete"],
)
def test_an_engine_that_breaks_its_contract_is_named(spoil, message):
    with pytest.raises(RolloutError, match=message):
        collector(FakeEngine(order=spoil)).generate(PROMPTS, 2, PARAMS)
