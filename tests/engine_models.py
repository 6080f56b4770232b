"""Models for the tests of the embedded engine: the families of tiny_models, and some more traits."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tiny_models import EOS, FAMILIES, PAD, VOCAB, tiny

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
}

_MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2-softcap": ("gemma2", {"attn_logit_softcapping": 1.5, "sliding_window": 5, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "gemma3_text",
        {
            "sliding_window": 4,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 2.0,
        },
    ),
    "mistral": ("mistral", {"sliding_window": 4}),
    "qwen2-sliding": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_key_value_heads": 1,
        },
    ),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama3-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {"sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": None},
    ),
    "phi3": ("phi3", {"sliding_window": None}),
    "opt": (
        "opt",
        {
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
            "num_key_value_heads": None,
            "head_dim": None,
            "intermediate_size": None,
        },
    ),
}

EVERY_FAMILY = [*FAMILIES, *_MORE]

FUSED = {
    "llama",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma2-softcap",
    "gemma3",
    "mistral",
    "qwen2-sliding",
    "llama-biased",
    "llama3-rope",
}
"""Families that the short decoder recognises; the others run through their own modules."""


def model_of(family: str, *, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    if family in FAMILIES:
        return tiny(family, dtype=dtype, **overrides)
    torch.manual_seed(0)
    kind, traits = _MORE[family]
    shape = {key: value for key, value in {**_SHAPE, **traits, **overrides}.items() if value is not None}
    # Sinks exist in transformers' eager attention only.
    attention = {"attn_implementation": "eager"} if family in ("gpt_oss", "gemma2-softcap") else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape), **attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.35)
            elif "bias" in name or "sinks" in name:
                parameter.normal_(std=0.2)
    return model.to(dtype).eval()


def one_letter_per_id() -> PreTrainedTokenizerFast:
    """A tokenizer: 0 is a, 1 is b, ..."""
    core = Tokenizer(models.WordLevel({chr(ord("a") + i): i for i in range(VOCAB)}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)
