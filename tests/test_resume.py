"""A run that stops and resumes is, to the bit, the run that never stopped."""

import json
from hashlib import sha256

import pytest
import torch
from datasets import IterableDataset
from transformers import EarlyStoppingCallback, TrainerCallback

from fakes import DATA, StopAt, flat, lines, policy, timeless, trainer
from gruppo.checkpoint import newest_checkpoint
from gruppo.errors import CheckpointError

# name -> (config fields, step to stop at, model family)
CASES = {
    "generation boundary": ({}, 3, "qwen2"),
    "dropout": ({}, 3, "gpt2"),
    "second pass over a round": ({"num_iterations": 2}, 3, "gpt2"),
    "inside a round": ({"steps_per_generation": 4}, 3, "gpt2"),
    "inside a round, third pass": ({"steps_per_generation": 4, "num_iterations": 3, "max_steps": 7}, 5, "gpt2"),
    "a step of two rounds": ({"steps_per_generation": 1, "num_iterations": 1}, 3, "gpt2"),
    "a round and a half": ({"gradient_accumulation_steps": 3, "steps_per_generation": 2}, 2, "gpt2"),
    "between two log lines": ({"logging_steps": 2}, 3, "qwen2"),
    "reference": ({"beta": 0.1, "steps_per_generation": 4}, 3, "qwen2"),
    "moving reference": ({"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2}, 3, "qwen2"),
    "adaptive entropy": ({"use_adaptive_entropy": True, "entropy_target": 5.0, "entropy_coef_delta": 0.01}, 3, "gpt2"),
    "cosine with warm-up": ({"lr_scheduler_type": "cosine", "warmup_steps": 2}, 3, "qwen2"),
    "sampler correction": ({"vllm_importance_sampling_correction": True, "steps_per_generation": 4}, 3, "gpt2"),
    "evaluation in between": ({"eval_strategy": "steps", "eval_steps": 2}, 3, "gpt2"),
}


def make(folder, fields, family="qwen2", **arguments):
    dropout = {} if family == "gpt2" else {"attention_dropout": 0.1}
    model = policy(family, **dropout)
    return trainer(folder, {"max_steps": 5, **fields}, model=model, eval_dataset=DATA[:2], **arguments)


def both(tmp_path, fields, stop, family, **arguments):
    """The run in one go, and the run that stopped at `stop` and was resumed by a fresh trainer."""
    whole = make(tmp_path / "whole", fields, family, **arguments)
    whole.train()
    first = make(tmp_path / "parts", fields, family, **arguments, callbacks=[StopAt(stop)])
    first.train()
    assert first.state.global_step == stop
    resumed = make(tmp_path / "parts", fields, family, **arguments)
    resumed.train(resume_from_checkpoint=True)
    return whole, resumed


def assert_same(whole, resumed, stop):
    assert whole.state.global_step == resumed.state.global_step > stop
    assert torch.equal(flat(whole.model), flat(resumed.model))
    mine = [timeless(line) for line in resumed.state.log_history if line["step"] > stop]
    theirs = [timeless(line) for line in whole.state.log_history if line["step"] > stop]
    assert mine == theirs
    assert whole.state.num_input_tokens_seen == resumed.state.num_input_tokens_seen
    moments = [made.optimizer.state_dict()["state"] for made in (whole, resumed)]
    for number, state in moments[0].items():
        assert all(torch.equal(value, moments[1][number][name]) for name, value in state.items())


@pytest.mark.parametrize("name", CASES)
def test_resume_is_bitwise(tmp_path, name):
    fields, stop, family = CASES[name]
    whole, resumed = both(tmp_path, fields, stop, family)
    assert_same(whole, resumed, stop)


def test_resume_is_bitwise_with_a_reference_that_moved(tmp_path):
    fields = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2}
    whole, resumed = both(tmp_path, fields, 3, "qwen2")
    assert torch.equal(flat(whole.ref_model), flat(resumed.ref_model))


@pytest.mark.parametrize(("stop", "logging"), [(2, "epoch"), (3, "steps"), (4, "epoch"), (5, "steps")])
def test_resume_is_bitwise_over_epochs(tmp_path, stop, logging):
    fields = {"max_steps": -1, "num_train_epochs": 2.5, "logging_strategy": logging}
    whole, resumed = both(tmp_path, fields, stop, "gpt2")
    assert whole.state.max_steps == 8
    assert_same(whole, resumed, stop)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("fields", [{}, {"steps_per_generation": 4}], ids=["boundary", "inside"])
def test_resume_is_bitwise_on_a_stream(tmp_path, fields, shuffle):
    stream = IterableDataset.from_generator(DATA.__iter__)
    whole, resumed = both(tmp_path, {**fields, "shuffle_dataset": shuffle}, 3, "gpt2", train_dataset=stream)
    assert_same(whole, resumed, 3)


def test_resume_at_the_end_of_an_epoch_is_bitwise(tmp_path):
    class StopAfterEpoch(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    fields = {"max_steps": 6, "save_strategy": "epoch"}
    whole = make(tmp_path / "whole", fields, "gpt2")
    whole.train()
    make(tmp_path / "parts", fields, "gpt2", callbacks=[StopAfterEpoch()]).train()
    resumed = make(tmp_path / "parts", fields, "gpt2")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert_same(whole, resumed, 3)


def test_a_run_stopped_inside_a_round_and_saved_at_epoch_end_resumes_inside_it(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 3

    fields = {"save_strategy": "epoch", "steps_per_generation": 4}
    whole = make(tmp_path / "whole", fields, "gpt2")
    whole.train()
    make(tmp_path / "parts", fields, "gpt2", callbacks=[Stop()]).train()
    resumed = make(tmp_path / "parts", fields, "gpt2")
    resumed.train(resume_from_checkpoint=True)
    assert_same(whole, resumed, 3)


def test_an_epoch_that_a_callback_cut_short_resumes_with_the_next(tmp_path):
    class CutShort(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop |= state.global_step == 1

    class StopAfterEpoch(CutShort):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 1

    fields = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "epoch", "steps_per_generation": 4}
    whole = make(tmp_path / "whole", fields, "gpt2", callbacks=[CutShort()])
    whole.train()
    make(tmp_path / "parts", fields, "gpt2", callbacks=[StopAfterEpoch()]).train()
    resumed = make(tmp_path / "parts", fields, "gpt2", callbacks=[CutShort()])
    resumed.train(resume_from_checkpoint=True)
    assert_same(whole, resumed, 1)


def test_resume_by_the_same_trainer(tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 3, "steps_per_generation": 4}
    whole = make(tmp_path, fields, "gpt2")
    whole.train()
    end = flat(whole.model)
    whole.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(flat(whole.model), end)


def test_the_configs_own_field_resumes_too(tmp_path):
    make(tmp_path, {}, callbacks=[StopAt(3)]).train()
    resumed = make(tmp_path, {"resume_from_checkpoint": str(tmp_path / "checkpoint-3")})
    resumed.train()
    assert [line["step"] for line in lines(resumed)] == [1, 2, 3, 4, 5]


def test_early_stopping_keeps_its_patience(tmp_path):
    """Rewards never change, so the metric never improves: patience 3 ends the run at the fourth evaluation."""
    fields = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "reward", "max_steps": 10}
    fields |= {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}

    def made(*more):
        return make(
            tmp_path,
            fields,
            reward_funcs=lambda completions, **kwargs: [1.0] * len(completions),
            callbacks=[EarlyStoppingCallback(early_stopping_patience=3), *more],
        )

    made(StopAt(2)).train()
    resumed = made()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4


def test_records_of_steps_made_anew_are_superseded(tmp_path):
    make(tmp_path, {"save_strategy": "steps", "save_steps": 2}).train()
    make(tmp_path, {}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    parts = [path.parent.name for path in (tmp_path / "rollouts").rglob("*.parquet")]
    assert sorted(parts) == [f"step-{step:06d}" for step in range(1, 6)]


EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}


def test_a_fresh_run_puts_an_earlier_ones_checkpoints_aside(tmp_path):
    make(tmp_path, {**EVERY_STEP, "save_steps": 4, "max_steps": 4}).train()
    make(tmp_path, {**EVERY_STEP, "save_total_limit": 1, "max_steps": 2}).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert [path.name for path in tmp_path.glob("superseded/a2/checkpoint-*")] == ["checkpoint-4"]
    assert newest_checkpoint(tmp_path / "superseded" / "a2") is not None, "it is whole"


def test_a_start_by_mistake_says_where_the_checkpoints_are(tmp_path):
    make(tmp_path, {**EVERY_STEP, "max_steps": 1}).train()
    make(tmp_path, {"max_steps": 1}).train()
    with pytest.raises(CheckpointError, match=r"put an earlier one aside: .*superseded/a2/checkpoint-1"):
        make(tmp_path, {"max_steps": 2}).train(resume_from_checkpoint=True)


def test_going_back_puts_later_checkpoints_aside(tmp_path):
    make(tmp_path, {**EVERY_STEP, "max_steps": 4}).train()
    resumed = make(tmp_path, {**EVERY_STEP, "save_total_limit": 1, "max_steps": 2})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(list(tmp_path.glob("superseded/a2/checkpoint-*"))) == 3


def test_an_evaluation_on_its_own_leaves_checkpoints_where_they_are(tmp_path):
    make(tmp_path, {**EVERY_STEP, "max_steps": 1}).train()
    make(tmp_path, {}).evaluate()
    assert (tmp_path / "checkpoint-1").is_dir()


OTHER_BATCHES = {
    "steps_per_generation": ({"steps_per_generation": 2}, "steps_per_generation was 4 and is 2"),
    "two fields": (
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "steps_per_generation": 4},
        "per_device_train_batch_size was 4 and is 8; gradient_accumulation_steps was 2 and is 1",
    ),
}


@pytest.mark.parametrize("name", OTHER_BATCHES)
def test_other_batch_fields_are_refused_before_anything_is_loaded(tmp_path, name):
    """The position counts rounds of these sizes, and a round in use would be cut another way."""
    fields, message = OTHER_BATCHES[name]
    make(tmp_path, {"steps_per_generation": 4}, callbacks=[StopAt(3)], train_dataset=DATA * 2).train()
    other = make(tmp_path, {"steps_per_generation": 4, **fields}, train_dataset=DATA * 2)
    before = flat(other.model)
    with pytest.raises(CheckpointError, match=f"checkpoint-3 was saved with other batch fields: {message}"):
        other.train(resume_from_checkpoint=True)
    assert torch.equal(flat(other.model), before)


def test_a_checkpoint_that_does_not_know_its_batch_fields_resumes(tmp_path):
    make(tmp_path, {}, callbacks=[StopAt(3)]).train()
    folder = tmp_path / "checkpoint-3"
    manifest, state = (json.loads((folder / name).read_text()) for name in ("manifest.json", "gruppo.json"))
    del state["batch"]
    (folder / "gruppo.json").write_text(json.dumps(state))
    manifest["sha256"]["gruppo.json"] = sha256((folder / "gruppo.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    resumed = make(tmp_path, {})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_float32_head_of_a_bfloat16_model_is_not_rounded_on_resume(tmp_path, is_tied):
    def made(*callbacks):
        model = policy(tie_word_embeddings=is_tied).to(torch.bfloat16)
        fields = {"cast_lm_head_to_fp32": True, "max_steps": 3}
        return trainer(tmp_path, fields, model=model, callbacks=callbacks)

    first = made(StopAt(2))
    first.train()
    head = first.model.lm_head.weight.detach().clone()
    assert head.dtype == torch.float32
    assert not torch.equal(head, head.bfloat16().float()), "rounding would show"
    resumed = made(StopAt(2))
    resumed._milestones.begin(resume_from=True)
    resumed._milestones.close("interrupted")
    assert torch.equal(resumed.model.lm_head.weight, head)
    assert torch.equal(flat(resumed.model), flat(first.model))


def test_dropout_would_show(tmp_path):
    """The cases above mean something only if a lost generator state changes the parameters."""
    fields = {"max_steps": 2}
    models = []
    for seed in (1, 2):
        made = make(tmp_path / str(seed), fields, "gpt2")
        torch.manual_seed(seed)
        made.train()
        models.append(flat(made.model))
    assert not torch.equal(*models)
