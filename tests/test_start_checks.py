"""Parts that do not fit each other are found when the trainer is made, with the name of what to change."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, TrainingArguments

from fakes import DATA, config, count_twos, flat, lines, policy, scripted, trainer
from gruppo import GRPOTrainer
from gruppo.errors import ConfigError, DataError, ModelError, RewardError
from gruppo.output_folder import make_output_folder
from gruppo.start_checks import check_output_folder
from tiny_tokenizer import ID, tiny_tokenizer


def wants_answer(completions, answer, **kwargs):
    return [float(len(text)) for text in completions]


def without_answer(rows):
    return [{"prompt": row["prompt"]} for row in rows]


# -- kinds


def test_another_librarys_config_is_named(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ConfigError) as raised:
        GRPOTrainer(policy(), count_twos, args=args, train_dataset=DATA)
    assert str(raised.value).startswith(
        "args is the TrainingArguments of transformers, but must be gruppo's GRPOConfig"
    )
    assert "`from gruppo import GRPOConfig`" in str(raised.value)
    with pytest.raises(ConfigError, match=r"Pass GRPOConfig\(\*\*args\)"):
        GRPOTrainer(policy(), count_twos, args={"max_steps": 1}, train_dataset=DATA)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "model is None: there is nothing to train"),
        (tiny_tokenizer(), "A tokenizer is passed as processing_class"),
        (torch.nn.Linear(2, 2), "model is a Linear"),
    ],
)
def test_what_is_no_model(tmp_path, model, message):
    with pytest.raises(ModelError, match=message):
        trainer(tmp_path, model=model)
    with pytest.raises(ModelError, match=message):
        GRPOTrainer(model, count_twos, train_dataset=DATA)


# -- the output folder


def test_an_output_dir_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"output_dir='.*file' is a file\. Set it to a folder"):
        trainer(tmp_path / "file", model="nobody/no-such-model")
    with pytest.raises(ConfigError, match=r"output_dir='.*below' cannot be used\. Set it to a folder that you may"):
        trainer(tmp_path / "file" / "below", model="nobody/no-such-model")
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_without_permission(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied", str(kwargs["dir"]))

    monkeypatch.setattr("gruppo.output_folder.TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"cannot be used.*PermissionError: .*Permission denied"):
        make_output_folder(tmp_path)


def test_the_folder_is_made_and_what_it_holds_is_left_alone(tmp_path):
    made = trainer(tmp_path / "a" / "b", {"save_strategy": "steps", "save_steps": 1, "max_steps": 1})
    assert list((tmp_path / "a" / "b").iterdir()) == []
    made.train()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    trainer(tmp_path / "a" / "b")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before, "put aside by train(), not before"


def test_only_the_main_process_touches_the_disk(tmp_path):
    def world(is_main):
        return SimpleNamespace(is_main=is_main, gather_outcomes=lambda work, error_type, doing: [work()])

    check_output_folder(config(tmp_path / "new"), world(False))
    assert not (tmp_path / "new").exists()
    check_output_folder(config(tmp_path / "new"), world(True))
    assert (tmp_path / "new").is_dir()


# -- columns of held-out sets


@pytest.mark.parametrize("kind", [list, Dataset.from_list, lambda rows: IterableDataset.from_generator(rows.__iter__)])
def test_a_column_that_only_the_held_out_set_lacks(tmp_path, kind):
    held_out = kind(without_answer(DATA[:2]))
    with pytest.raises(RewardError) as raised:
        trainer(tmp_path, reward_funcs=wants_answer, eval_dataset=held_out, model="nobody/no-such-model")
    assert str(raised.value) == (
        "Reward `wants_answer` needs column `answer`; eval_dataset has `prompt`. Add the column to eval_dataset, or "
        "give the parameter `answer` a default."
    )


def test_every_named_set_is_looked_at(tmp_path):
    renamed = [{"prompt": row["prompt"], "solution": row["answer"]} for row in DATA[:2]]
    with pytest.raises(RewardError) as raised:
        trainer(tmp_path, reward_funcs=wants_answer, eval_dataset={"easy": DATA[:2], "hard": renamed})
    assert str(raised.value) == (
        "Reward `wants_answer` needs column `answer`; eval_dataset['hard'] has `prompt`, `solution`. Rename: "
        "`eval_dataset['hard'] = eval_dataset['hard'].rename_column('solution', 'answer')`."
    )


def test_a_column_that_only_the_held_out_set_has(tmp_path):
    def named(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric):  # noqa: PLR0917
        return [0.0] * len(completions)

    more = [{**row, "level": 1} for row in DATA[:2]]
    with pytest.raises(RewardError, match=r"cannot receive `level`: .* the columns of eval_dataset and"):
        trainer(tmp_path, reward_funcs=named, eval_dataset=more)


def test_a_rollout_func_may_bring_the_column(tmp_path):
    made = trainer(
        tmp_path,
        reward_funcs=wants_answer,
        eval_dataset=without_answer(DATA[:2]),
        rollout_func=scripted(lambda prompt, sample: [7, 8]),
    )
    assert made.reward_func_names == ["wants_answer"]


# -- a tokenizer that is larger than the model's table


def padded_beyond():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == len(ID)
    return tokenizer


@pytest.mark.parametrize(
    "fields",
    [{}, {"policy_forward": "padded"}, {"rollout_engine": "hf"}, {"beta": 0.1, "eval_strategy": "epoch"}],
)
def test_an_added_pad_token_needs_no_resizing(tmp_path, fields):
    runs = []
    for tokenizer in (tiny_tokenizer(), padded_beyond()):
        held_out = [{"prompt": "one", "answer": "one"}, {"prompt": "one two three", "answer": "one"}]
        made = trainer(tmp_path, fields, processing_class=tokenizer, train_dataset=[*held_out, *DATA[:4]],
                       eval_dataset=held_out)  # fmt: skip
        made.train()
        runs.append((flat(made.model), lines(made)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    made.save_model(str(tmp_path / "saved"))
    assert torch.equal(flat(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), flat(made.model))


def test_an_eos_that_cannot_be_made(tmp_path):
    tokenizer, model = tiny_tokenizer(), policy()
    tokenizer.add_special_tokens({"eos_token": "<stop>"})
    model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match=r"No completion could ever end: EOS is token 12 \('<stop>'\)"):
        trainer(tmp_path, processing_class=tokenizer, model=model)


def with_new_word():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["six"])
    return tokenizer


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"train_dataset": [*DATA, {"prompt": "six one", "answer": "x"}]}, "train_dataset row 6"),
        (
            {"eval_dataset": {"hard": [*DATA[:1], {"prompt": "one six", "answer": "x"}]}},
            r"eval_dataset\['hard'\] row 1",
        ),
    ],
)
def test_a_prompt_of_unknown_tokens(tmp_path, arguments, where):
    with pytest.raises(ModelError, match=rf"{where} has token 12 \('six'\), beyond the 12 tokens"):
        trainer(tmp_path, processing_class=with_new_word(), **arguments)
    trainer(tmp_path, processing_class=with_new_word()).train()  # it is in no prompt


def test_a_prompt_of_unknown_tokens_in_a_stream(tmp_path):
    rows = [*DATA[:4], {"prompt": "six one", "answer": "x"}, {"prompt": "one", "answer": "x"}]
    stream = IterableDataset.from_generator(rows.__iter__)
    made = trainer(tmp_path, {"shuffle_dataset": False}, processing_class=with_new_word(), train_dataset=stream)
    with pytest.raises(DataError, match=r"The prompt with id 4 has token 12 \('six'\), beyond the 12 tokens"):
        made.train()
    assert made.state.global_step == 2


def test_a_misspelt_folder_is_said_to_be_missing(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^There is no folder './nope' here, and loading the tokenizer of './nope'"):
        trainer(tmp_path, model="./nope", processing_class=None)
    with pytest.raises(ModelError, match=r"^There is no folder './nope' here, and loading the model './nope' from"):
        trainer(tmp_path, model="./nope")
