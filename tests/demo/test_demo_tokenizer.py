"""The byte-level tokenizer and its chat template."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gruppo.demo.tokenizer import END, PAD, build_tokenizer

TOKENIZER = build_tokenizer()


@settings(deadline=None)
@given(st.text())
def test_any_text_round_trips_one_token_per_byte(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    if "<|" not in text:
        assert len(ids) == len(text.encode())


def test_vocabulary() -> None:
    assert len(TOKENIZER) == 261
    assert TOKENIZER.pad_token == PAD
    assert TOKENIZER.eos_token == END
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    assert TOKENIZER.decode(TOKENIZER("a" + END + "b" + PAD)["input_ids"], skip_special_tokens=True) == "ab"


def test_chat_template() -> None:
    messages = [
        {"role": "user", "content": "1+2*3=?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Sure?"},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert text == "<|user|>1+2*3=?<|end|><|assistant|>7<|end|><|user|>Sure?<|end|>"
    prompt = TOKENIZER.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>1+2*3=?<|end|><|assistant|>"
    assert len(TOKENIZER(prompt)["input_ids"]) == 3 + len("1+2*3=?")


def test_it_survives_saving(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|>12+3*4=?<|end|><|assistant|>é\n"
    assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert (loaded.eos_token, loaded.pad_token, loaded.padding_side) == (END, PAD, "left")
    assert loaded.chat_template == TOKENIZER.chat_template
