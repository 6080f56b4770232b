"""Prompts to tokens and back, value by value, on a tokenizer of twelve words."""

import logging

import pytest

from gruppo.chat import decode_completions, piece_decoder, tokenize_prompts
from gruppo.errors import ConfigError, DataError, ModelError
from tiny_tokenizer import ids, tiny_tokenizer

TURN = [{"role": "system", "content": "one"}, {"role": "user", "content": "two three"}]


def tokens(content, tokenizer, **settings):
    return tokenize_prompts([content], tokenizer, **settings)[0]


def test_standard_prompts_get_the_tokenizers_default_special_tokens():
    assert tokens("one two", tiny_tokenizer()) == ids("<bos> one two")
    assert tokens("one two", tiny_tokenizer(bos=False)) == ids("one two")


def test_conversational_prompts_get_the_template_and_a_generation_prompt_and_no_second_bos():
    expected = ids("system one <eos> user two three <eos> assistant")
    assert tokens(TURN, tiny_tokenizer()) == expected


def test_a_final_assistant_message_is_not_continued():
    content = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert tokens(content, tiny_tokenizer()) == ids("user one <eos> assistant two <eos> assistant")


def test_chat_template_kwargs_reach_the_template():
    assert tokens(TURN[1:], tiny_tokenizer(), chat_template_kwargs={"shout": True}) == ids(
        "user two three <eos> four assistant"
    )


def test_keys_that_arrow_filled_with_none_are_absent_for_the_template():
    assert tokens([{"role": "user", "content": "one", "name": None}], tiny_tokenizer()) == ids(
        "user one <eos> assistant"
    )
    assert tokens([{"role": "user", "content": "one", "name": "x"}], tiny_tokenizer()) == ids(
        "user one <eos> five assistant"
    )


def test_many_prompts_at_once_are_ragged_and_equal_one_at_a_time():
    tokenizer = tiny_tokenizer()
    for contents in (["one", "one two three"], [TURN, TURN[1:]]):
        assert tokenize_prompts(contents, tokenizer) == [tokens(content, tokenizer) for content in contents]
    assert tokenize_prompts([], tokenizer) == []


def test_nothing_is_truncated():
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 3
    assert tokens("one two three four five", tokenizer) == ids("<bos> one two three four five")


@pytest.mark.parametrize("content", ["one two three four", TURN])
def test_warnings_of_long_prompts_can_be_switched_off(content, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)  # transformers does not propagate its messages
    for warn in (False, True):
        tokenizer = tiny_tokenizer()
        tokenizer.model_max_length = 3
        tokens(content, tokenizer, warn_if_long=warn)
        assert ("longer than the specified maximum" in caplog.text) is warn
    logging.getLogger("transformers").removeHandler(caplog.handler)


def test_messages_without_a_chat_template_say_what_to_set():
    with pytest.raises(ModelError, match=r"no chat template.*processing_class"):
        tokens(TURN, tiny_tokenizer(template=None))
    own = {"chat_template": "{{ messages[0]['content'] }}"}
    assert tokens(TURN, tiny_tokenizer(template=None), chat_template_kwargs=own) == ids("one")


def test_a_template_that_refuses_is_a_data_error_with_its_reason():
    with pytest.raises(DataError, match=r"chat template failed: .*no such role"):
        tokens([{"role": "wizard", "content": "one"}], tiny_tokenizer())


def test_chat_template_kwargs_cannot_change_what_a_prompt_is():
    with pytest.raises(ConfigError, match="sets add_generation_prompt"):
        tokens(TURN, tiny_tokenizer(), chat_template_kwargs={"add_generation_prompt": False})


def test_completions_are_decoded_without_special_tokens():
    assert decode_completions(tiny_tokenizer(), [ids("two one <eos>"), [], ids("<eos>")]) == ["two one", "", ""]


@pytest.mark.parity
@pytest.mark.parametrize("contents", [["one two", "three"], [TURN, TURN[1:]]])
def test_same_tokens_as_trl(contents):
    """TRL's own method, run on a bare object that has just the attributes it reads."""
    from types import SimpleNamespace

    trainer_class = pytest.importorskip("trl").GRPOTrainer
    tokenizer = tiny_tokenizer()
    bare = SimpleNamespace(
        _is_vlm=False, environment_factories=None, tools=None, chat_template=None, processing_class=tokenizer,
        chat_template_kwargs={"shout": True},
    )  # fmt: skip
    theirs, _, _ = trainer_class._tokenize_prompts(bare, contents)
    assert tokenize_prompts(contents, tokenizer, chat_template_kwargs={"shout": True}) == theirs


@pytest.mark.parametrize("cleans_up", [False, True])
def test_pieces_are_decoded_as_completions_are(cleans_up):
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = cleans_up
    decode = piece_decoder(tokenizer)
    for run in (ids("one"), ids("one two three"), [*ids("one"), tokenizer.eos_token_id], []):
        assert decode(run) == decode_completions(tokenizer, [run])[0]


def test_a_tokenizer_with_a_decoder_of_its_own_is_asked_itself():
    tokenizer = tiny_tokenizer()

    class Shouting(type(tokenizer)):
        def _decode(self, *args, **kwargs):
            return super()._decode(*args, **kwargs).upper()

    tokenizer.__class__ = Shouting
    assert piece_decoder(tokenizer)(ids("one two")) == decode_completions(tokenizer, [ids("one two")])[0]
