"""A tokenizer with more tokens than the model has embeddings: what does no harm, and what stops the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from gruppo.errors import ModelError
from gruppo.policy.load import load_policy
from gruppo.policy.vocabulary import eos_token_ids, ids_beyond, misfit, padding_id, set_pad_token, table_size
from tiny_models import EOS, PAD, tiny
from tiny_tokenizer import ID, tiny_tokenizer

SIZE = len(ID)


def larger(**special: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(special)
    assert len(tokenizer) == SIZE + len(special)
    return tokenizer


def small(family: str = "llama", **overrides: Any) -> Any:
    return tiny(family, vocab_size=SIZE, **overrides)


def test_a_pad_token_beyond_the_table_is_stood_in_for() -> None:
    model, tokenizer = small(), larger(pad_token="[PAD]")
    assert (tokenizer.pad_token_id, table_size(model)) == (SIZE, SIZE)
    assert padding_id(model, tokenizer) == ID["<eos>"]
    assert padding_id(model, tiny_tokenizer()) == ID["<pad>"]
    tokenizer.eos_token = model.generation_config.eos_token_id = None
    assert padding_id(model, tokenizer) == 0


def test_the_saved_model_can_be_loaded_again(tmp_path: Path) -> None:
    model, tokenizer = small(), larger(pad_token="[PAD]")
    set_pad_token(model, tokenizer)
    assert (model.config.pad_token_id, model.generation_config.pad_token_id) == (PAD, PAD)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_after_resizing_the_pad_token_is_the_tokenizers() -> None:
    model, tokenizer = small(), larger(pad_token="[PAD]")
    model.resize_token_embeddings(len(tokenizer))
    set_pad_token(model, tokenizer)
    assert padding_id(model, tokenizer) == model.config.pad_token_id == SIZE


def test_an_eos_that_cannot_be_made_is_left_out_or_refused() -> None:
    model, tokenizer = small(), larger(eos_token="<stop>")
    assert eos_token_ids(model, tokenizer) == (EOS,), "the model's own can be made"
    model.generation_config.eos_token_id = None
    with pytest.raises(ModelError) as raised:
        eos_token_ids(model, tokenizer)
    assert str(raised.value) == (
        "No completion could ever end: EOS is token 12 ('<stop>'), beyond the 12 tokens of the model's embeddings. If "
        "tokens were added to it (it has 13), load the model yourself and call "
        "model.resize_token_embeddings(len(tokenizer)) before passing it; else pass the tokenizer that belongs to it."
    )


def test_prompts_of_unknown_tokens_are_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"n{i}" for i in range(7)])
    assert ids_beyond(tokenizer, SIZE) == set(range(SIZE, SIZE + 7))
    assert ids_beyond(tokenizer, len(tokenizer)) == set()
    assert misfit([0, SIZE - 1], "train_dataset row 3", tokenizer=tokenizer, size=SIZE) is None
    problem = misfit([0, 13, 12, 12], "train_dataset row 3", tokenizer=tokenizer, size=SIZE)
    assert problem is not None
    assert problem.startswith(
        "train_dataset row 3 has token 12 ('n0'), token 13 ('n1'), beyond the 12 tokens of the model's embeddings: "
    )
    assert "model.resize_token_embeddings(len(tokenizer))" in problem
    many = misfit(range(12, 19), "x", tokenizer=tokenizer, size=SIZE)
    assert many is not None
    assert "token 16 ('n4') and 2 more, beyond" in many


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks by that name
def test_the_table_of_an_adapted_model() -> None:
    peft = pytest.importorskip("peft")
    chosen = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    assert table_size(load_policy(small(), peft_config=chosen)) == SIZE
    on_it = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["embed_tokens", "q_proj"])
    assert table_size(load_policy(small(), peft_config=on_it)) == SIZE
