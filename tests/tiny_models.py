"""Random causal LMs of a few thousand parameters, one per trait that the log-prob code must get right.

Not trained, not realistic. Their weights are large enough that log-probs differ visibly between tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 23
PAD, EOS = 0, 1

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
}

_FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
    # A softcap low enough to bend these small logits.
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {"final_logit_softcapping": 2.0, "sliding_window": 4, "query_pre_attn_scalar": 8},
    ),
    # Layers with a window and one without.
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 4,
            "query_pre_attn_scalar": 8,
        },
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 4, "num_key_value_heads": 2}),
    "cohere": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
    "granite": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 3.0}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 4, "num_experts_per_tok": 2}),
}

FAMILIES = [*_FAMILIES, "gpt2"]


def tiny(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """A model of the family in eval mode, the same for the same arguments."""
    torch.manual_seed(seed)
    if family == "gpt2":
        shape = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
        ends = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**{**shape, **ends, **overrides}))
    else:
        config_class, model_class, traits = _FAMILIES[family]
        model = model_class(config_class(**{**_SHAPE, **traits, **overrides}))
    if family == "mixtral":
        # The grouped matmul of the other implementations has no float64.
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.35)
            elif "bias" in name:
                parameter.normal_(std=0.2)
    return model.to(dtype).eval()
