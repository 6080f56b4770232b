"""The learner: old log-probs, how rows are cut into forwards, what a step reports."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fakes import DATA, lines, policy, scripted, trainer
from gruppo.errors import ConfigError


def learner_and_batches(tmp_path, rollout_func=None, **fields):
    """A trainer's learner, with every batch that `begin_round` gave."""
    made = trainer(tmp_path, fields, rollout_func=rollout_func)
    batches = []
    begin_round = made.learner.begin_round

    def noting(batch, segments):
        batches.append(begin_round(batch, segments))
        return batches[-1]

    made.learner.begin_round = noting
    return made, batches


def count_forwards(made):
    """Numbers of calls with gradient, without, and of the reference."""
    counts = {"live": 0, "frozen": 0, "reference": 0}
    forwards = made.learner._forwards

    def counting(name):
        function = getattr(forwards, name)

        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            counts[name] += result is not None
            return result

        return call

    for name in counts:
        setattr(forwards, name, counting(name))
    return counts


@pytest.mark.parametrize(
    ("fields", "live", "frozen"),
    [
        ({}, 2, 0),
        ({"num_iterations": 2}, 4, 0),
        ({"steps_per_generation": 4, "max_steps": 2}, 4, 2),
        ({"steps_per_generation": 4, "max_steps": 2, "old_logprobs": "sampler"}, 4, 0),
        ({"num_iterations": 2, "gradient_accumulation_steps": 4, "steps_per_generation": 2}, 4, 0),
    ],
    ids=["on-policy", "two passes", "half a round", "half a round, sampler's", "both passes in one step"],
)
def test_old_log_probs_cost_no_forward_but_where_they_must(tmp_path, fields, live, frozen):
    fields = {
        "policy_forward": "padded",
        "max_steps": 2 if "num_iterations" in fields and "gradient_accumulation_steps" not in fields else 1,
        **fields,
    }
    made = trainer(tmp_path, fields)
    counts = count_forwards(made)
    made.train()
    assert counts == {"live": live, "frozen": frozen, "reference": 0}


def test_the_reference_is_asked_once_per_round(tmp_path):
    made = trainer(tmp_path, {"num_iterations": 3, "beta": 0.1, "max_steps": 3, "policy_forward": "padded"})
    counts = count_forwards(made)
    made.train()
    assert counts["reference"] == 2  # two slices, one round


def test_on_policy_ratios_are_exactly_one(tmp_path):
    made = trainer(tmp_path)
    made.train()
    assert [(line["ratio/mean"], line["ratio/max"]) for line in lines(made)] == [(1.0, 1.0)] * 3


def test_a_second_pass_compares_with_the_first(tmp_path):
    made, batches = learner_and_batches(tmp_path, num_iterations=2, max_steps=2)
    made.train()
    first, second = lines(made)
    assert first["ratio/max"] == 1.0
    assert second["ratio/max"] > 1.0
    (batch,) = batches
    assert not batch.old_logprobs_NT[batch.trained_NT].isnan().any(), "the first pass fills them in"


def test_old_log_probs_of_the_trainer_are_those_at_sampling_time(tmp_path):
    made, batches = learner_and_batches(tmp_path, steps_per_generation=4, max_steps=2)
    made.train()
    (batch,) = batches
    torch.testing.assert_close(
        batch.old_logprobs_NT[batch.trained_NT], batch.sampler_logprobs_NT[batch.trained_NT], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("mistake", ["one token", "all of a row"])
def test_what_the_sampler_did_not_say_the_trainer_says(tmp_path, mistake):
    """`old_logprobs="sampler"`: a rollout_func may give None for a token or for a row."""

    def rollout(prompts, trainer):
        output = scripted(lambda prompt, sample: [3, 4, 5, 3 + sample], logprob=-2.0)(prompts, trainer)
        for row in range(1, len(prompts), 2):
            output["logprobs"][row] = None if mistake == "all of a row" else [-2.0, None, -2.0, -2.0]
        return output

    fields = {"steps_per_generation": 4, "max_steps": 2, "old_logprobs": "sampler", "num_iterations": 1}
    made, batches = learner_and_batches(tmp_path, rollout_func=rollout, **fields)
    counts = count_forwards(made)
    expected = []
    begin_round = made.learner.begin_round
    made.learner.begin_round = lambda batch, segments: (
        expected.append(made.learner._forwards.frozen(batch).logprobs_NT),
        begin_round(batch, segments),
    )[1]
    made.train()
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines(made))
    assert counts["frozen"] > 1, "one is the test's"
    (batch,), (frozen_NT,) = batches, expected
    is_said_NT = ~batch.sampler_logprobs_NT.isnan()
    late = [row for row, number in enumerate(batch.slice_ids) if number >= 2]
    assert 0 < int((~is_said_NT[late]).sum()) < is_said_NT[late].numel()
    assert set(batch.old_logprobs_NT[late][is_said_NT[late]].tolist()) == {-2.0}
    unsaid = ~is_said_NT[late]
    torch.testing.assert_close(batch.old_logprobs_NT[late][unsaid], frozen_NT[late][unsaid], rtol=0, atol=1e-5)


def test_sampler_metrics_are_about_the_gap(tmp_path):
    made, batches = learner_and_batches(tmp_path, max_steps=1)
    made.train()
    batch = batches[0]
    shifted = replace(batch, sampler_logprobs_NT=batch.old_logprobs_NT - 0.5)
    metrics = made.learner.sampler_metrics(shifted)
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(1.6487, abs=1e-3)
    assert made.learner.sampler_metrics(replace(batch, sampler_logprobs_NT=None)) == {}


def test_a_rank_whose_sampler_says_nothing_takes_part_in_the_metrics_of_the_others(tmp_path):
    """Whether there are metrics is decided once for all ranks: they are made of collectives."""
    made, batches = learner_and_batches(tmp_path, max_steps=1)
    made.train()
    batch = batches[0]
    other = torch.full((2,), 0.5)

    class TwoRanks:
        num_gathered = 0

        def max_(self, tensor):
            return torch.ones_like(tensor)

        def gather_rows(self, rows):
            self.num_gathered += 1
            return torch.cat([rows, other])

    made.learner._world = TwoRanks()
    metrics = made.learner.sampler_metrics(replace(batch, sampler_logprobs_NT=None))
    assert made.learner._world.num_gathered == 2
    assert metrics["sampling/sampling_logp_difference/mean"] == 0.5, "this rank has none"
    assert metrics["sampling/importance_sampling_ratio/max"] == 1.0, "unknown is no mismatch"


def test_rows_that_a_run_never_uses_do_not_spoil_the_sampler_metrics(tmp_path):
    from datasets import IterableDataset

    stream = IterableDataset.from_generator(DATA.__iter__)
    fields = {"steps_per_generation": 4, "max_steps": 1}
    made = trainer(tmp_path, fields, train_dataset=stream)
    made.train()
    (line,) = lines(made)
    assert line["sampling/sampling_logp_difference/max"] < 1e-5
    assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-5)


def test_max_grad_norm_0_clips_nothing(tmp_path):
    norms = []
    for limit in (0.0, 1e-4):
        made = trainer(tmp_path / str(limit), {"max_steps": 1, "max_grad_norm": limit})
        found = []
        step = made.learner.step
        made.learner.step = lambda step=step, made=made, found=found: (found.append(grad_norm(made.model)), step())[1]
        made.train()
        norms.append((lines(made)[0]["grad_norm"], found[0]))
    (reported, unclipped), (same, clipped) = norms
    assert reported == same == pytest.approx(unclipped)
    assert clipped == pytest.approx(1e-4, rel=1e-2)


def grad_norm(model):
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]).norm().item()


def test_adaptive_entropy_moves_its_coefficient(tmp_path):
    fields = {
        "use_adaptive_entropy": True,
        "entropy_target": 99.0,
        "entropy_coef_delta": 0.01,
        "entropy_coef_max": 0.02,
    }
    made = trainer(tmp_path, {**fields, "max_steps": 4})
    made.train()
    assert [line["entropy_coef"] for line in lines(made)] == pytest.approx([0.01, 0.02, 0.02, 0.02])


def test_the_mixture_of_experts_loss_is_scaled_by_its_coefficient(tmp_path):
    gradients = []
    for coef in (0.0, 0.5):
        model = policy("mixtral", output_router_logits=True)
        fields = {"max_steps": 1, "router_aux_loss_coef": coef, "optim": "sgd"}
        made = trainer(tmp_path / str(coef), fields, model=model, reward_funcs=lambda completions, **kwargs: [1.0] * 8)
        made.train()
        gradients.append(lines(made)[0]["grad_norm"])
    assert gradients[0] == 0.0, "equal rewards teach nothing by themselves"
    assert gradients[1] > 1e-4


def test_a_plateau_schedule_is_told_and_others_are_not(tmp_path):
    made = trainer(tmp_path)
    made.learner.step_plateau_schedule({}, "eval_reward")
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), mode="max"
    )
    made.learner.scheduler = plateau
    made.learner.step_plateau_schedule({"eval_reward": 2.0}, "eval_reward")
    assert plateau.best == 2.0
    with pytest.raises(ConfigError, match="It gave: eval_loss"):
        made.learner.step_plateau_schedule({"eval_loss": 2.0}, "eval_reward")


def test_begin_run_forgets_gradients_and_schedule(tmp_path):
    made = trainer(tmp_path)
    made.train()
    parameter = next(made.model.parameters())
    parameter.grad = torch.ones_like(parameter)
    made.learner.begin_run()
    assert parameter.grad is None
    assert made.optimizer.param_groups[0]["lr"] == 1e-2
    assert made.lr_scheduler.last_epoch == 0


def test_a_skipped_optimizer_step_does_not_move_the_schedule(tmp_path):
    made = trainer(tmp_path)
    made.learner._accelerator = SimpleNamespace(optimizer_step_was_skipped=True)
    made.learner.step()
    assert made.lr_scheduler.last_epoch == 0
