"""BatchPlan: TRL's arithmetic on numbers worked out by hand, and a slow re-enactment of TRL's loop as the oracle."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gruppo.config import GRPOConfig
from gruppo.errors import ConfigError, PlanError
from gruppo.plan import BatchPlan, MicroStep, Segment


def plan_of(num_prompts: int | None = 64, world_size: int = 1, **fields: object) -> BatchPlan:
    return BatchPlan.from_config(GRPOConfig("out", **fields), num_prompts=num_prompts, world_size=world_size)


def test_default_run_is_one_prompt_per_step() -> None:
    plan = plan_of(num_prompts=10)
    assert (plan.rows_per_generation, plan.prompts_per_generation, plan.rows_per_step) == (8, 1, 8)
    assert (plan.steps_per_epoch, plan.total_steps, plan.num_rounds) == (10, 30, 30)
    assert not plan.needs_old_logprobs


def test_counts_of_a_distributed_run() -> None:
    plan = plan_of(
        num_prompts=100,
        world_size=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        num_generations=8,
        num_iterations=2,
        num_train_epochs=2,
    )
    assert plan.slices_per_generation == 4
    assert plan.local_rows_per_generation == 16
    assert plan.rows_per_generation == 32
    assert plan.prompts_per_generation == 4
    assert plan.rows_per_step == 32
    assert plan.prompts_per_step == 4.0
    assert plan.slices_per_round == 8
    assert plan.rounds_per_epoch == 25
    assert plan.slices_per_epoch == 200
    assert plan.steps_per_epoch == 50
    assert plan.total_steps == 100
    assert plan.total_epochs == 2
    assert plan.num_rounds == 50
    assert plan.needs_old_logprobs


def test_generation_batch_size_sets_the_slices() -> None:
    plan = plan_of(per_device_train_batch_size=4, generation_batch_size=32, world_size=2)
    assert (plan.slices_per_generation, plan.prompts_per_generation) == (4, 4)


@pytest.mark.parametrize(
    ("accumulation", "slices", "iterations", "is_needed"),
    [(4, 4, 1, False), (4, 2, 1, False), (4, 2, 2, False), (4, 4, 2, True), (2, 4, 1, True), (3, 2, 1, True)],
)
def test_old_logprobs_are_needed_as_in_trl(accumulation: int, slices: int, iterations: int, is_needed: bool) -> None:
    plan = plan_of(gradient_accumulation_steps=accumulation, steps_per_generation=slices, num_iterations=iterations)
    assert plan.needs_old_logprobs is is_needed


def test_max_steps_comes_before_epochs() -> None:
    plan = plan_of(num_prompts=10, max_steps=25, num_train_epochs=1)
    assert (plan.total_steps, plan.total_epochs, plan.num_rounds) == (25, 3, 25)


def test_a_fraction_of_an_epoch_rounds_up() -> None:
    assert plan_of(num_prompts=10, num_train_epochs=0.25).total_steps == 3


def test_leftover_prompts_of_an_epoch() -> None:
    plan = plan_of(num_prompts=11, gradient_accumulation_steps=4)
    assert (plan.rounds_per_epoch, plan.prompts_left_out) == (2, 3)


def test_windows_may_span_rounds_and_the_last_is_shorter() -> None:
    """GA = 4 over rounds of S·μ = 3 micro-steps: 3 rounds are 9 micro-steps, so windows of 4, 4 and 1."""
    plan = plan_of(num_prompts=9, gradient_accumulation_steps=4, steps_per_generation=3, num_train_epochs=2)
    assert plan.prompts_per_generation == 3
    windows = [plan.window(step) for step in range(plan.total_steps)]
    assert [len(window) for window in windows] == [4, 4, 1, 4, 4, 1]
    assert [window.epoch for window in windows] == [0, 0, 0, 1, 1, 1]
    assert [window.rounds for window in windows[:3]] == [(0, 1), (1, 2), (2,)]
    assert windows[1].micro_steps == (MicroStep(1, 0, 1), MicroStep(1, 0, 2), MicroStep(2, 0, 0), MicroStep(2, 0, 1))


def test_passes_walk_over_the_same_slices() -> None:
    plan = plan_of(num_prompts=4, gradient_accumulation_steps=2, num_iterations=3)
    micro_steps = [micro for step in range(3) for micro in plan.window(step).micro_steps]
    assert [(m.pass_index, m.slice_index) for m in micro_steps] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert {m.round for m in micro_steps} == {0}


def test_segments_share_a_round_out() -> None:
    plan = plan_of(num_prompts=9, gradient_accumulation_steps=4, steps_per_generation=3)
    assert plan.segments(0) == (
        Segment(0, (MicroStep(0, 0, 0), MicroStep(0, 0, 1), MicroStep(0, 0, 2)), 4, is_first=True, is_last=False),
    )
    assert plan.segments(2) == (
        Segment(1, (MicroStep(2, 0, 0), MicroStep(2, 0, 1)), 4, is_first=False, is_last=True),
        Segment(2, (MicroStep(2, 0, 2),), 1, is_first=True, is_last=True),
    )


def test_a_stream_is_one_epoch_of_max_steps() -> None:
    plan = plan_of(num_prompts=None, gradient_accumulation_steps=3, steps_per_generation=2, max_steps=5)
    assert (plan.total_steps, plan.total_epochs, plan.slices_per_epoch, plan.rounds_per_epoch) == (5, 1, 15, 8)
    assert plan.num_rounds == 8
    assert plan.segments(7) == (Segment(4, (MicroStep(7, 0, 0),), 3, is_first=False, is_last=True),)


def test_a_stream_needs_max_steps() -> None:
    with pytest.raises(PlanError, match="Set max_steps"):
        plan_of(num_prompts=None)


def test_too_few_prompts_name_what_would_do() -> None:
    with pytest.raises(PlanError, match=r"3 prompts cannot fill one generation round.*= 4 prompts") as error:
        plan_of(num_prompts=3, gradient_accumulation_steps=4)
    assert "set steps_per_generation=3 or give at least 4 prompts" in str(error.value)
    assert plan_of(num_prompts=3, gradient_accumulation_steps=4, steps_per_generation=3).num_rounds == 3


def test_too_few_prompts_for_the_smallest_round() -> None:
    with pytest.raises(PlanError, match=r"Nothing would be trained: give at least 2 prompts\.$"):
        plan_of(num_prompts=1, per_device_train_batch_size=16)


def test_the_commonest_mistake_counts_completions_and_proposes_values() -> None:
    with pytest.raises(PlanError) as error:
        GRPOConfig("out", per_device_train_batch_size=1, gradient_accumulation_steps=4, num_generations=8)
    assert str(error.value) == (
        "per_device_train_batch_size=1 × 1 process × gradient_accumulation_steps=4 = 4 completions per generation "
        "round, but num_generations=8 needs a multiple of 8. In GRPO the batch size counts completions, not prompts. "
        "Set gradient_accumulation_steps=8 (same memory), per_device_train_batch_size=2 or num_generations=4."
    )


def test_processes_count_in_the_check_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"per_device_train_batch_size": 4, "num_generations": 8}
    with pytest.raises(PlanError, match="1 process"):
        GRPOConfig("out", **fields)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert GRPOConfig("out", **fields).world_size == 2


@given(
    batch=st.integers(1, 12), world_size=st.integers(1, 5), accumulation=st.integers(1, 12), group=st.integers(2, 16)
)
@settings(deadline=None, max_examples=60)
def test_every_proposed_value_is_valid(batch: int, world_size: int, accumulation: int, group: int) -> None:
    fields = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_generations": group,
    }
    plan = BatchPlan(world_size, group, batch, accumulation, accumulation)
    if plan.rows_per_generation % group == 0:
        return
    config = _unchecked(fields)
    with pytest.raises(PlanError) as error:
        BatchPlan.from_config(config, num_prompts=10_000, world_size=world_size)
    proposals = str(error.value).split("Set ")[1].rstrip(".").replace(" (same memory)", "").replace(" or ", ", ")
    for proposal in proposals.split(", "):
        name, value = proposal.split("=")
        BatchPlan.from_config(_unchecked({**fields, name: int(value)}), num_prompts=10_000, world_size=world_size)


def _unchecked(fields: dict[str, int]) -> GRPOConfig:
    """A config whose batch fields were set after the check at construction (which is for one process)."""
    config = GRPOConfig("out")
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def test_generation_batch_size_proposes_multiples() -> None:
    with pytest.raises(PlanError, match=r"Set generation_batch_size=8 or 16\."):
        GRPOConfig("out", generation_batch_size=12)


def test_both_ways_to_say_it_are_one_too_many() -> None:
    with pytest.raises(PlanError, match="say the same thing twice"):
        GRPOConfig("out", generation_batch_size=8, steps_per_generation=1)


def test_evaluation_batches_hold_whole_groups() -> None:
    with pytest.raises(PlanError, match=r"per_device_eval_batch_size=9 or num_generations_eval=4\."):
        GRPOConfig("out", eval_strategy="steps", num_generations_eval=3)
    plan = plan_of(eval_strategy="steps", num_generations_eval=2, per_device_eval_batch_size=8, world_size=2)
    assert (plan.eval_rows_per_batch, plan.eval_prompts_per_batch) == (16, 8)
    assert plan.num_eval_batches(17) == 3


def test_evaluation_is_not_checked_where_there_is_none() -> None:
    assert GRPOConfig("out", num_generations_eval=3).num_generations_eval == 3


def test_describe_says_it_in_words() -> None:
    plan = plan_of(num_prompts=50, gradient_accumulation_steps=4, steps_per_generation=2, num_iterations=3)
    assert plan.describe() == [
        "update      8 completions × 1 process × 4 accumulation = 32 completions = 4 prompts × 8",
        "generation  2 prompts × 8 = 16 completions at a time, used 3 times, for 1.5 updates",
        "run         114 steps, 75 generation rounds from 50 prompts (3 epochs of 38 steps)",
        "off-policy  completions outlive the policy that made them: their old log-probs are kept for the ratio",
    ]


def trl_epoch(num_prompts: int, accumulation: int, slices: int, iterations: int) -> list[list]:
    """What TRL's sampler, step counter and HF's accumulation windows do in one epoch, one micro-batch at a time.

    B = G = 8, so a slice is one prompt's group.
    """
    prompts = slices
    rounds = [chunk for start in range(0, num_prompts, prompts) if (chunk := start // prompts) < num_prompts // prompts]
    loader = [chunk for chunk in rounds for _ in range(iterations * slices)]
    windows: list[list] = []
    for step, chunk in enumerate(loader):
        if step % accumulation == 0:
            windows.append([])
        windows[-1].append((chunk, step % (iterations * slices) // slices, step % slices))
    return windows


@given(
    num_prompts=st.integers(1, 30),
    accumulation=st.integers(1, 7),
    slices=st.integers(1, 5),
    iterations=st.integers(1, 3),
    epochs=st.sampled_from([0.3, 1.0, 2.5]),
    max_steps=st.sampled_from([-1, 1, 7, 40]),
)
@settings(deadline=None, max_examples=80)
def test_windows_equal_a_re_enactment_of_trl(
    *, num_prompts: int, accumulation: int, slices: int, iterations: int, epochs: float, max_steps: int
) -> None:
    if num_prompts < slices:
        return
    plan = plan_of(
        num_prompts=num_prompts,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=slices,
        num_iterations=iterations,
        num_train_epochs=epochs,
        max_steps=max_steps,
    )
    epoch = trl_epoch(num_prompts, accumulation, slices, iterations)
    total = max_steps if max_steps > 0 else math.ceil(epochs * len(epoch))
    expected = (epoch * math.ceil(total / len(epoch)))[:total]
    ours = [plan.window(step) for step in range(plan.total_steps)]
    assert [[(m.round, m.pass_index, m.slice_index) for m in w.micro_steps] for w in ours] == expected
    sampled = {(w.epoch, round_) for w in ours for round_ in w.rounds}
    assert plan.num_rounds == len(sampled)
    segments = [s for round_ in range(plan.rounds_per_epoch) for s in plan.segments(round_)]
    assert [m for s in segments for m in s.micro_steps] == [
        m for step in range(plan.steps_per_epoch) for m in plan.window(step).micro_steps
    ]
    assert sum(s.is_last for s in segments) == sum(s.is_first for s in segments) == plan.steps_per_epoch


def test_plan_errors_are_config_errors() -> None:
    assert issubclass(PlanError, ConfigError)
