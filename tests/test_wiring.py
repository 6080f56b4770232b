"""Mistakes are found before weights load: the model that these trainers name does not exist anywhere."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import EarlyStoppingCallback

from fakes import DATA, count_twos, flat, policy, scripted, trainer
from gruppo.errors import ConfigError, DataError, GruppoError, ModelError, PlanError, RewardError

GHOST = "nobody/no-such-model"


def no_kwargs(completions):
    return [0.0] * len(completions)


def wants_level(completions, level, **kwargs):
    return [0.0] * len(completions)


def wants_answer(completions, answer, **kwargs):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("arguments", "fields", "kind", "message"),
    [
        ({"reward_funcs": no_kwargs}, {}, RewardError, "no_kwargs"),
        ({"reward_funcs": wants_level}, {}, RewardError, "level"),
        ({"reward_funcs": None}, {}, RewardError, "reward_funcs"),
        ({"reward_funcs": [count_twos]}, {"reward_weights": [1.0, 2.0]}, RewardError, r"weights \(2\)"),
        ({"train_dataset": None}, {}, DataError, "train_dataset is missing"),
        ({"train_dataset": [{"question": "one"}]}, {}, DataError, "prompt"),
        ({"train_dataset": DATA[:1]}, {}, PlanError, "1 prompt cannot fill one generation round"),
        ({}, {"eval_strategy": "steps"}, DataError, "needs an eval_dataset"),
        ({"eval_dataset": [{"x": 1}]}, {}, DataError, "eval_dataset"),
        ({"tools": [print]}, {}, ConfigError, "tools cannot be used yet"),
        ({"environment_factory": print}, {}, ConfigError, "environment_factory cannot be used yet"),
        ({"optimizers": (None, object())}, {}, ConfigError, "a scheduler belongs to an optimizer"),
        ({}, {"generation_kwargs": {"stop_string": "x"}}, ConfigError, "Did you mean 'stop_strings'"),
        ({}, {"generation_kwargs": {"num_beams": 2}}, ConfigError, "beams are not samples"),
        ({"callbacks": [print]}, {}, ConfigError, r"no transformers\.TrainerCallback"),
        (
            {"peft_config": object()},
            {"sync_ref_model": True, "beta": 0.1},
            ConfigError,
            "cannot be used with an adapter",
        ),
    ],
)
def test_mistakes_are_found_before_the_model_is_touched(tmp_path, arguments, fields, kind, message):
    with pytest.raises(kind, match=message):
        trainer(tmp_path, fields, model=GHOST, **arguments)


def test_a_model_that_does_not_exist_is_found_last(tmp_path):
    with pytest.raises(ModelError, match=GHOST):
        trainer(tmp_path, model=GHOST)


def test_a_bad_stream_without_max_steps_is_a_plan_error(tmp_path):
    from datasets import IterableDataset

    stream = IterableDataset.from_generator(DATA.__iter__)
    with pytest.raises(PlanError, match="max_steps"):
        trainer(tmp_path, {"max_steps": -1}, model=GHOST, train_dataset=stream)


def test_nothing_is_written_before_training(tmp_path):
    trainer(tmp_path, callbacks=[EarlyStoppingCallback()], eval_dataset=DATA)
    with pytest.raises(GruppoError):
        trainer(tmp_path, model=GHOST)
    assert list(tmp_path.iterdir()) == []


def test_the_config_has_a_default_named_after_the_model(tmp_path, monkeypatch):
    from gruppo import GRPOTrainer
    from tiny_tokenizer import tiny_tokenizer

    model = policy(max_position_embeddings=1024)
    model.config._name_or_path = "org/small"
    monkeypatch.chdir(tmp_path)
    data = [{"prompt": "one"}] * 8
    made = GRPOTrainer(model, count_twos, train_dataset=data, processing_class=tiny_tokenizer())
    assert made.args.output_dir == "small-GRPO"
    assert made.args.num_generations == 8


def test_a_new_trainer_may_choose_another_precision(tmp_path):
    """accelerate keeps one state per process; a notebook makes several trainers."""
    first = trainer(tmp_path, {"bf16": False})
    assert first.accelerator.mixed_precision == "no"
    second = trainer(tmp_path, {"bf16": True})
    expected = "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
    assert second.accelerator.mixed_precision == expected


@pytest.mark.parametrize(
    "kind", [list, tuple, Dataset.from_list, lambda rows: IterableDataset.from_generator(rows.__iter__)]
)
def test_columns_are_removed_from_any_kind_of_dataset(tmp_path, kind):
    fields = {"remove_unused_columns": True}
    made = trainer(tmp_path, fields, train_dataset=kind(DATA), eval_dataset=kind(DATA[:2]))
    assert made._parts.data.train_prompts.columns == set()
    assert made._parts.data.eval_prompts[""][0].columns == {}
    assert DATA[0].keys() == {"prompt", "answer"}, "the user's rows are as they were"
    with pytest.raises(RewardError, match="answer"):
        trainer(tmp_path, fields, train_dataset=kind(DATA), reward_funcs=wants_answer, model=GHOST)


@pytest.mark.parametrize("dataset", [[{"question": "one"}], ["one"], "org/data"])
def test_what_is_no_dataset_is_named_all_the_same(tmp_path, dataset):
    with pytest.raises(DataError, match="train_dataset"):
        trainer(tmp_path, {"remove_unused_columns": True}, train_dataset=dataset, model=GHOST)


@pytest.mark.parametrize("kind", [str, Path])
def test_the_home_folder_of_a_model_may_be_short(tmp_path, monkeypatch, kind):
    from tiny_tokenizer import tiny_tokenizer

    monkeypatch.setenv("HOME", str(tmp_path))
    policy().save_pretrained(tmp_path / "policy")
    tiny_tokenizer().save_pretrained(tmp_path / "policy")
    made = trainer(tmp_path / "run", model=kind("~/policy"), processing_class=None)
    assert torch.equal(flat(made.model), flat(policy()))
    assert made._parts.policy.name == str(tmp_path / "policy")


def test_fields_that_a_rollout_func_leaves_idle_are_named(tmp_path):
    made = scripted(lambda prompt, sample: [3, 4])
    with pytest.warns(UserWarning, match="rollout_dtype and rollout_cuda_graphs: no part is played"):
        trainer(tmp_path, {"rollout_dtype": "float32", "rollout_cuda_graphs": False}, rollout_func=made)
    trainer(tmp_path, {"generation_kwargs": {"whatever": "it is the function's"}}, rollout_func=made)
