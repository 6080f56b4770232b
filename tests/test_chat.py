"""Prompts to tokens and back, value by value, on a tokenizer of twelve words."""

import pytest

from gruppo.chat import as_messages, decode_completions, prompt_text, prompt_token_ids, round_trips, tokenize_prompts
from gruppo.errors import ConfigError, DataError, ModelError
from tiny_tokenizer import ids, tiny_tokenizer

TURN = [{"role": "system", "content": "one"}, {"role": "user", "content": "two three"}]


def test_standard_prompts_get_the_tokenizers_default_special_tokens():
    assert prompt_token_ids("one two", tiny_tokenizer()) == ids("<bos> one two")
    assert prompt_token_ids("one two", tiny_tokenizer(bos=False)) == ids("one two")


def test_conversational_prompts_get_the_template_and_a_generation_prompt_and_no_second_bos():
    expected = ids("system one <eos> user two three <eos> assistant")
    assert prompt_token_ids(TURN, tiny_tokenizer()) == expected


def test_a_final_assistant_message_is_not_continued():
    content = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert prompt_token_ids(content, tiny_tokenizer()) == ids("user one <eos> assistant two <eos> assistant")


def test_chat_template_kwargs_reach_the_template():
    tokens = prompt_token_ids(TURN[1:], tiny_tokenizer(), chat_template_kwargs={"shout": True})
    assert tokens == ids("user two three <eos> four assistant")


def test_keys_that_arrow_filled_with_none_are_absent_for_the_template():
    assert prompt_token_ids([{"role": "user", "content": "one", "name": None}], tiny_tokenizer()) == ids(
        "user one <eos> assistant"
    )
    assert prompt_token_ids([{"role": "user", "content": "one", "name": "x"}], tiny_tokenizer()) == ids(
        "user one <eos> five assistant"
    )


def test_many_prompts_at_once_are_ragged_and_equal_one_at_a_time():
    tokenizer = tiny_tokenizer()
    for contents in (["one", "one two three"], [TURN, TURN[1:]]):
        assert tokenize_prompts(contents, tokenizer) == [prompt_token_ids(content, tokenizer) for content in contents]
    assert tokenize_prompts([], tokenizer) == []


def test_nothing_is_truncated():
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 3
    assert prompt_token_ids("one two three four five", tokenizer) == ids("<bos> one two three four five")


def test_messages_without_a_chat_template_say_what_to_set():
    with pytest.raises(ModelError, match=r"no chat template.*processing_class"):
        prompt_token_ids(TURN, tiny_tokenizer(template=None))
    own = {"chat_template": "{{ messages[0]['content'] }}"}
    assert prompt_token_ids(TURN, tiny_tokenizer(template=None), chat_template_kwargs=own) == ids("one")


def test_a_template_that_refuses_is_a_data_error_with_its_reason():
    with pytest.raises(DataError, match=r"chat template failed: .*no such role"):
        prompt_token_ids([{"role": "wizard", "content": "one"}], tiny_tokenizer())


def test_chat_template_kwargs_cannot_change_what_a_prompt_is():
    with pytest.raises(ConfigError, match="sets add_generation_prompt"):
        prompt_token_ids(TURN, tiny_tokenizer(), chat_template_kwargs={"add_generation_prompt": False})


def test_completions_are_decoded_without_special_tokens():
    assert decode_completions(tiny_tokenizer(), [ids("two one <eos>"), [], ids("<eos>")]) == ["two one", "", ""]


def test_prompt_text_is_what_a_human_can_read():
    assert prompt_text("one <eos>", tiny_tokenizer()) == "one <eos>"
    assert prompt_text(TURN, tiny_tokenizer()) == "system one user two three assistant"


def test_as_messages():
    assert as_messages("two") == [{"role": "assistant", "content": "two"}]


def test_round_trips_tells_whether_reencoding_gives_the_same_tokens():
    tokenizer = tiny_tokenizer()
    assert round_trips(tokenizer, ids("one two <eos>"))
    tokenizer.add_tokens(["one two"])
    assert not round_trips(tokenizer, ids("one two"))


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
