"""A warning where prompts and completions do not fit the model's positions, and none where they do."""

import warnings
from types import SimpleNamespace

import pytest
from datasets import IterableDataset

from fakes import DATA, config, policy, scripted, trainer
from gruppo.data.prompts import prepare_dataset
from gruppo.start_checks import warn_if_beyond_context
from tiny_tokenizer import ID, tiny_tokenizer

LONG = [{"prompt": "one"}] * 7 + [{"prompt": "one two three four"}]
"""Two to five tokens, BOS included."""


def prompts(rows=LONG):
    return prepare_dataset(rows, tokenizer=tiny_tokenizer())


def model_config(**fields):
    return policy(**fields).config


def test_a_completion_that_does_not_fit_after_the_longest_prompt(tmp_path):
    chosen = config(tmp_path, max_completion_length=12)
    with pytest.warns(
        UserWarning,
        match=r"max_completion_length=12 after a prompt of 5 tokens makes 17, and the model has 16 positions .*Set "
        r"max_completion_length to 11 or less\.",
    ):
        warn_if_beyond_context(model_config(max_position_embeddings=16), chosen, prompts())


def test_a_prompt_that_leaves_no_room(tmp_path):
    with pytest.warns(UserWarning, match=r"a prompt of 5 tokens .*Set max_prompt_length\."):
        warn_if_beyond_context(model_config(max_position_embeddings=4), config(tmp_path), prompts())


def test_the_length_in_generation_kwargs_counts(tmp_path):
    chosen = config(tmp_path, generation_kwargs={"max_new_tokens": 12})
    with pytest.warns(UserWarning, match=r"generation_kwargs' max_new_tokens=12 after"):
        warn_if_beyond_context(model_config(max_position_embeddings=16), chosen, prompts())


@pytest.mark.parametrize(
    ("found", "rows"),
    [
        (17, LONG),
        (None, LONG),
        (12, IterableDataset.from_generator(LONG.__iter__)),
    ],
    ids=["fits", "no positions", "stream"],
)
def test_what_fits_or_is_not_known_gives_no_warning(tmp_path, found, rows):
    told = SimpleNamespace(max_position_embeddings=found)
    told.get_text_config = lambda: told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_beyond_context(told, config(tmp_path, max_completion_length=12), prompts(rows))


def test_the_trainer_asks_where_it_samples_itself(tmp_path):
    model = policy(max_position_embeddings=7)
    with pytest.warns(UserWarning, match="max_completion_length=5 after a prompt of 3 tokens makes 8"):
        trainer(tmp_path, model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(tmp_path, model=model, train_dataset=DATA, rollout_func=scripted(lambda prompt, sample: [ID["two"]]))
