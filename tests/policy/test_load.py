"""Loading policies and tokenizers, and the mistakes that are caught."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    FalconConfig,
    FalconForCausalLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from gruppo.errors import ModelError
from gruppo.policy.head import Float32Head
from gruppo.policy.load import load_policy, load_tokenizer, router_aux_loss_coef
from gruppo.policy.vocabulary import eos_token_ids, set_pad_token
from tiny_models import EOS, PAD, VOCAB, tiny
from tiny_tokenizer import ID, tiny_tokenizer

peft = pytest.importorskip("peft")

# peft 0.21 asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def lora(**kwargs: Any) -> Any:
    return peft.LoraConfig(r=2, task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **kwargs})


def test_a_path_is_loaded_in_float32_by_its_architecture(tmp_path: Path) -> None:
    tiny("gpt2", dtype=torch.bfloat16).save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path))
    assert type(policy) is GPT2LMHeadModel
    assert policy.dtype == torch.float32
    assert load_policy(str(tmp_path), model_init_kwargs={"dtype": "bfloat16"}).dtype == torch.bfloat16
    assert load_policy(str(tmp_path), model_init_kwargs={"dtype": "auto"}).dtype == torch.bfloat16


def test_model_init_kwargs_are_not_changed(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    kwargs = {"attn_implementation": "eager"}
    policy = load_policy(str(tmp_path), model_init_kwargs=kwargs)
    assert type(policy) is LlamaForCausalLM
    assert policy.config._attn_implementation == "eager"
    assert kwargs == {"attn_implementation": "eager"}


def test_a_model_is_used_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama", dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        assert load_policy(model, model_init_kwargs={"dtype": "float32"}) is model
    assert model.dtype == torch.bfloat16
    assert "model_init_kwargs is ignored" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "no/such/model"}, "^There is no folder 'no/such/model' here, and loading the model 'no/such/model'"),
        ({"model": nn.Linear(2, 2)}, "model is a Linear, but must be"),
        ({"model": None}, "model is None: there is nothing to train. Pass a hub id"),
        ({"model": tiny_tokenizer()}, "but must be .* A tokenizer is passed as processing_class"),
        ({"model": "x", "model_init_kwargs": {"dtype": "float7"}}, "dtype='float7'"),
        (
            {"model": "x", "model_init_kwargs": {"quantization_config": 1}, "quantization_config": 2},
            "both as an argument and in model_init_kwargs",
        ),
        ({"model": tiny("llama"), "peft_config": {"r": 8}}, "peft_config is a dict"),
        (
            {"model": peft.get_peft_model, "peft_config": None},
            "model is a function",
        ),
        ({"model": tiny("llama"), "peft_config": lora(target_modules=["nowhere"])}, "adding the adapter"),
        (
            {
                "model": tiny("llama"),
                "peft_config": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            },
            "virtual tokens",
        ),
        (
            {
                "model": tiny("llama"),
                "peft_config": lora(target_modules=["lm_head"]),
                "cast_lm_head_to_fp32": True,
            },
            "cast_lm_head_to_fp32=True needs a plain linear head",
        ),
    ],
)
def test_mistakes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_policy(**arguments)


def test_an_adapter_alone_trains() -> None:
    policy = load_policy(tiny("llama"), peft_config=lora())
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_an_adapter_on_an_adapter_is_refused() -> None:
    with pytest.raises(ModelError, match="PeftModel already"):
        load_policy(load_policy(tiny("llama"), peft_config=lora()), peft_config=lora())


def test_disable_dropout() -> None:
    policy = load_policy(tiny("gpt2"), disable_dropout=True)
    assert {module.p for module in policy.modules() if isinstance(module, nn.Dropout)} == {0.0}


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny("llama", attention_dropout=0.5),
        lambda: peft.get_peft_model(tiny("llama", attention_dropout=0.5), lora(lora_dropout=0.5)),
        lambda: OPTForCausalLM(
            OPTConfig(
                **{
                    "vocab_size": VOCAB,
                    "hidden_size": 16,
                    "ffn_dim": 16,
                    "num_hidden_layers": 1,
                    "word_embed_proj_dim": 16,
                },
                **{"num_attention_heads": 2, "dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
            )
        ),
        lambda: FalconForCausalLM(
            FalconConfig(
                **{"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
                **{"attention_dropout": 0.5, "hidden_dropout": 0.5},
            )
        ),
    ],
    ids=["a number in the attention", "an adapter", "numbers in the layers", "numbers in the config"],
)
def test_disable_dropout_reaches_what_is_no_dropout_module(make: Callable[[], Any]) -> None:
    policy = load_policy(make(), disable_dropout=True).train()
    ids = torch.arange(2, 20).reshape(1, -1)
    with torch.no_grad():
        first, second = (policy(input_ids=ids).logits for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}])
def test_gradient_checkpointing_is_on_and_trains_adapters(kwargs: dict[str, Any] | None) -> None:
    policy = load_policy(
        tiny("llama"), peft_config=lora(), gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs
    ).train()
    layer = policy.get_base_model().model.layers[0]
    assert layer.gradient_checkpointing
    assert layer._gradient_checkpointing_func.keywords == (kwargs or {"use_reentrant": False})
    policy(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False).logits.sum().backward()
    assert layer.self_attn.q_proj.lora_B["default"].weight.grad.abs().max() > 0


def test_a_float32_head_on_a_bfloat16_model_tied_and_untied(tmp_path: Path) -> None:
    ids = torch.tensor([[3, 4, 5]])
    for is_tied in (True, False):
        model = tiny("qwen2", dtype=torch.bfloat16, tie_word_embeddings=is_tied)
        hidden = model.model(input_ids=ids).last_hidden_state
        expected = hidden.float() @ model.lm_head.weight.float().T
        policy = load_policy(model, cast_lm_head_to_fp32=True)
        assert isinstance(policy.lm_head, Float32Head)
        assert (policy.lm_head.weight is policy.model.embed_tokens.weight) is is_tied
        assert policy.model(input_ids=ids).last_hidden_state.dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(policy(input_ids=ids).logits, expected, rtol=0, atol=0)
        # A copy (the KL reference) has its own weights, in its head and its hook too.
        twin = copy.deepcopy(policy)
        with torch.no_grad():
            policy.lm_head.weight.zero_()
        torch.testing.assert_close(twin(input_ids=ids).logits, expected, rtol=0, atol=0)
        twin.save_pretrained(tmp_path / str(is_tied))
        assert "lm_head.linear.weight" not in twin.state_dict()


def test_tokenizer_pad_falls_back_to_eos() -> None:
    tokenizer = tiny_tokenizer()
    assert load_tokenizer(tokenizer, "unused") is tokenizer
    assert tokenizer.pad_token == "<pad>"
    tokenizer.pad_token = None
    assert load_tokenizer(tokenizer, "unused").pad_token == "<eos>"
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ModelError, match="neither a pad nor an EOS"):
        load_tokenizer(tokenizer, "unused")


def test_tokenizer_is_loaded_by_the_models_name_with_left_padding(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(None, str(tmp_path))
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")
    assert tokenizer("one two")["input_ids"] == [ID["<bos>"], ID["one"], ID["two"]]
    with pytest.raises(ModelError, match=r"^There is no folder 'no/such/model' here, and loading the tokenizer of"):
        load_tokenizer(None, "no/such/model")


def test_a_folder_that_is_there_is_not_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^Loading the model .* failed: "):
        load_policy(str(tmp_path))


def test_a_model_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny("qwen2").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"The tokenizer of '.*' has no vocabulary: it knows '.*' alone\."):
        load_tokenizer(None, str(tmp_path))
    with pytest.raises(ModelError, match="processing_class has no vocabulary"):
        load_tokenizer(AutoTokenizer.from_pretrained(tmp_path), "unused")


def test_tokenizers_of_the_wrong_kind() -> None:
    with pytest.raises(ModelError, match="is a list, but must be a transformers tokenizer"):
        load_tokenizer([1], "unused")


def test_pad_and_eos_ids() -> None:
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    assert model.config.pad_token_id == PAD
    tokenizer.pad_token = "<unk>"
    set_pad_token(model, tokenizer)
    assert model.config.pad_token_id == ID["<unk>"]
    assert model.generation_config.pad_token_id == ID["<unk>"]
    own = ID["<eos>"]
    assert eos_token_ids(model, tokenizer) == (own, EOS)
    model.generation_config.eos_token_id = [7, own, 9]
    assert eos_token_ids(model, tokenizer) == (7, own, 9)
    model.generation_config.eos_token_id = None
    assert eos_token_ids(load_policy(model, peft_config=lora()), tokenizer) == (own,)
    assert VOCAB > 9


def test_router_aux_loss_coef() -> None:
    assert router_aux_loss_coef(tiny("llama"), None) == 0.0
    assert router_aux_loss_coef(tiny("llama"), 0.0) == 0.0
    with pytest.raises(ModelError, match=r"router_aux_loss_coef=0.1, but LlamaForCausalLM"):
        router_aux_loss_coef(tiny("llama"), 0.1)
    mixture = tiny("mixtral", router_aux_loss_coef=0.02)
    assert router_aux_loss_coef(mixture, None) == 0.02
    assert router_aux_loss_coef(mixture, 0.5) == 0.5
    assert router_aux_loss_coef(mixture, 0.0) == 0.0


def test_checkpointing_a_model_that_cannot() -> None:
    model = tiny("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match="cannot checkpoint activations"):
        load_policy(model, gradient_checkpointing=True)


def test_any_pretrained_model_class_is_taken() -> None:
    """Whether it is a causal LM shows at the first forward; the type check is only about being a model."""
    model = BertModel(BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
    assert load_policy(model) is model
