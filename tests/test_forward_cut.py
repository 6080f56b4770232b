"""How rows are cut into forwards: budgets, groups without a gradient, and steps that run out of memory."""

import logging

import pytest
import torch

from fakes import flat, lines, policy, trainer
from gruppo.forward_cut import ForwardCut, Part
from gruppo.types import TrainBatch


def batch_of(lengths, advantages=None):
    """Rows (group, prompt tokens, completion tokens)."""
    rows = len(lengths)
    trained_NT = torch.zeros(rows, max(length for _, _, length in lengths), dtype=torch.bool)
    for row, (_, _, length) in enumerate(lengths):
        trained_NT[row, :length] = True
    return TrainBatch(
        prompt_ids=[[group] * prompt for group, prompt, _ in lengths],
        completion_ids=[[5] * length for _, _, length in lengths],
        trained_NT=trained_NT,
        advantages_N=torch.tensor(advantages or [1.0] * rows),
        group_ids=[group for group, _, _ in lengths],
        slice_ids=[0] * rows,
    )


def cut(**fields):
    chosen = {"rows_per_slice": 2, "is_packed": True, "max_tokens": None, "is_by_slice": False}
    return ForwardCut(**{**chosen, "skips_zero_advantage": True, **fields})


def test_siblings_stay_together_within_the_budget_and_a_long_row_goes_alone():
    batch = batch_of([(0, 3, 4), (1, 2, 9), (0, 3, 4), (1, 2, 1)])
    assert cut(max_tokens=11).without_gradient(batch, range(4)) == [[0, 2], [1], [3]]
    assert cut(max_tokens=1).without_gradient(batch, range(4)) == [[0], [2], [1], [3]]


def test_by_default_a_forward_holds_what_trls_micro_batch_would_and_no_more_than_helps():
    short = batch_of([(group, 10, 10) for group in range(8)])
    assert [len(rows) for rows in cut(rows_per_slice=4).without_gradient(short, range(8))] == [4, 4]
    long = batch_of([(group, 100, 100) for group in range(16) for _ in range(2)])
    # 8 x 200 tokens are TRL's, but above 1,024 nothing is gained on a CPU: three groups of 300.
    parts = cut(rows_per_slice=8).without_gradient(long, range(32))
    assert [len(rows) for rows in parts] == [6, 6, 6, 6, 6, 2]
    one_group = batch_of([(0, 1000, 100)] * 8)
    assert cut(rows_per_slice=8).without_gradient(one_group, range(8)) == [list(range(8))]


def test_groups_without_advantage_are_set_apart_and_one_forward_always_has_a_gradient():
    batch = batch_of([(group, 2, 2) for group in (0, 0, 1, 1, 2, 2)], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert cut(max_tokens=6).for_training(batch, [0] * 6) == [
        Part([2, 3]),
        Part([0, 1], has_gradient=False),
        Part([4, 5], has_gradient=False),
    ]
    still = batch_of([(0, 2, 2), (0, 2, 2), (1, 2, 2), (1, 2, 2)], [0.0] * 4)
    parts = cut(max_tokens=6).for_training(still, [0] * 4)
    assert [part.has_gradient for part in parts] == [True, False]
    for asked in ({"skips_zero_advantage": False}, {"is_packed": False, "max_tokens": 6}, {"is_by_slice": True}):
        assert all(part.has_gradient for part in cut(**asked).for_training(batch, [0] * 6))


def test_halving_ends_at_single_rows():
    batch, cutter = batch_of([(0, 2, 4)] * 4), cut(max_tokens=18)
    sizes = []
    while cutter.halve(batch):
        sizes.append([len(rows) for rows in cutter.without_gradient(batch, range(4))])
    assert sizes == [[1, 1, 1, 1]]
    assert not cut(is_by_slice=True).halve(batch)


# -- in a run


def sometimes_equal(prompts, completions, **kwargs):
    """The toy task, but all completions of prompts with "four" are worth the same."""
    texts = [(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    return [1.0 if "four" in prompt else float(text.split().count("two")) for prompt, text in texts]


def gradients_of(made):
    """Whether each forward that trained had a gradient."""
    flags = []
    live = made.learner._forwards.live

    def noting(*args, **kwargs):
        flags.append(torch.is_grad_enabled())
        return live(*args, **kwargs)

    made.learner._forwards.live = noting
    return flags


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "sapo", "vespo", "cispo"])
def test_skipping_the_backward_pass_of_equal_rewards_changes_nothing(tmp_path, loss_type):
    made = []
    for skips in (False, True):
        fields = {"loss_type": loss_type, "num_iterations": 2, "max_steps": 6, "adam_epsilon": 1e-4, "seed": 3}
        fields |= {"max_tokens_per_forward": 24, "epsilon_high": 5.0 if loss_type == "cispo" else 0.2}
        run = trainer(tmp_path / str(skips), fields, reward_funcs=sometimes_equal)
        run.learner._cut._skips_zero_advantage = skips
        flags = gradients_of(run)
        run.train()
        made.append((run, flags))
    (plain, all_flags), (skipping, flags) = made
    assert all(all_flags)
    assert 0 < sum(flags) < len(flags)
    torch.testing.assert_close(flat(skipping.model), flat(plain.model), rtol=0, atol=1e-6)
    for mine, theirs in zip(lines(skipping), lines(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_a_step_of_equal_rewards_alone_moves_by_momentum_as_without_skipping(tmp_path):
    def late(completions, trainer_state, **kwargs):
        return [float(text.count("two")) if trainer_state.global_step == 0 else 1.0 for text in completions]

    made = []
    for skips in (False, True):
        run = trainer(tmp_path / str(skips), {"weight_decay": 0.1, "max_tokens_per_forward": 24}, reward_funcs=late)
        run.learner._cut._skips_zero_advantage = skips
        run.train()
        made.append(run)
    assert lines(made[1])[1]["grad_norm"] == 0.0
    assert (flat(made[1].model) - flat(policy())).abs().max() > 1e-3
    torch.testing.assert_close(flat(made[1].model), flat(made[0].model), rtol=0, atol=1e-7)


@pytest.mark.parametrize("fields", [{"beta": 0.1}, {"entropy_coef": 0.01}, {"policy_forward": "padded"}])
def test_nothing_is_skipped_where_it_would_not_be_exact(tmp_path, fields):
    run = trainer(tmp_path, fields, reward_funcs=lambda completions, **kwargs: [1.0] * len(completions))
    flags = gradients_of(run)
    run.train()
    assert all(flags)


OUT_OF_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."


@pytest.mark.parametrize("place", ["live", "frozen", "backward"])
def test_out_of_memory_halves_the_forwards_and_the_step_is_the_same(tmp_path, place, caplog):
    fields = {"max_tokens_per_forward": 46, "max_steps": 4, "adam_epsilon": 1e-4}
    fields |= {"steps_per_generation": 4} if place == "frozen" else {}
    plain = trainer(tmp_path / "plain", fields)
    plain.train()
    run = trainer(tmp_path / place, fields)
    owner = run.accelerator if place == "backward" else run.learner._forwards
    function, raised = getattr(owner, place), []

    def breaking(given, **kwargs):
        result = function(given, **kwargs)  # what a real one leaves behind stays: gradients of a part of the model
        if len(raised) < 2:
            raised.append(given)
            raise RuntimeError(OUT_OF_MEMORY)
        return result

    setattr(owner, place, breaking)
    with caplog.at_level(logging.WARNING):
        run.train()
    assert len(raised) == 2
    assert caplog.text.count("Out of memory: forwards go on with at most") == 2
    torch.testing.assert_close(flat(run.model), flat(plain.model), rtol=0, atol=1e-6)


def test_out_of_memory_that_cannot_be_mended_says_what_to_set(tmp_path):
    run = trainer(tmp_path)

    def breaking(*args, **kwargs):
        raise RuntimeError(OUT_OF_MEMORY)

    run.learner._forwards.live = breaking
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as caught:
        run.train()
    assert any("max_tokens_per_forward" in note for note in caught.value.__notes__)


def test_other_faults_pass_through_at_once(tmp_path):
    run, calls = trainer(tmp_path), []

    def breaking(*args, **kwargs):
        calls.append(1)
        raise RuntimeError("something else")

    run.learner._forwards.live = breaking
    with pytest.raises(RuntimeError, match="something else"):
        run.train()
    assert calls == [1]
