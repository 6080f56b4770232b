"""Memory that a run will take, estimated from the model's config alone: no weights are loaded.

Weights, gradients, optimizer and key-value cache are counted; activations are a rough guess and marked so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gruppo.config import GRPOConfig
from gruppo.plan import BatchPlan

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

OPTIMIZER_BYTES: tuple[tuple[str, float], ...] = (
    ("galore_adamw_8bit", 0.5),
    ("ademamix_8bit", 3.05),
    ("lion_8bit", 1.02),
    ("rmsprop_bnb_8bit", 1.02),
    ("8bit", 2.03),
    ("4bit", 1.03),
    ("ademamix", 12),
    ("adamw_32bit", 8),
    ("lion_32bit", 4),
    ("rmsprop_bnb", 4),
)
"""Part of an optimizer's name -> bytes of its state for each trained weight, of whatever type the weight is.

The 8-bit and 4-bit ones hold a number of 4 bytes for each block of 256 besides. Measured with bitsandbytes 0.50.2 and
torchao 0.18.0 (galore's not); tests/cli/test_cli_plan.py has the numbers."""

OPTIMIZER_STATES: tuple[tuple[str, float], ...] = (
    ("schedule_free_sgd", 1),
    ("sgd", 0),
    ("adagrad", 1),
    ("rmsprop", 1),
    ("adafactor", 0.01),
    ("galore", 0.5),
    ("apollo", 0.1),
)
"""The same for those whose state has the weights' type, in multiples of the weights. Others are Adam-like: 2."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device."""

    weights: int
    """Policy, and the reference if there is one."""
    gradients: int
    optimizer: int
    kv_cache: int
    """All rows of a generation round at full length."""
    activations: int
    """A rough guess."""
    available: int

    @property
    def total(self) -> int:
        # Completions are sampled before gradients and activations exist: the larger of the two counts.
        return self.weights + self.optimizer + max(self.kv_cache, self.gradients + self.activations)

    def describe(self) -> str:
        """One line, in GB; in MB for models of a few weights."""
        unit, scale = ("GB", 1e9) if self.total >= 1e8 else ("MB", 1e6)

        def amount(size: int) -> str:
            return f"{size / scale:,.1f}"

        parts = {"weights": self.weights, "optimizer": self.optimizer, "gradients": self.gradients}
        text = " + ".join(f"{name} {amount(size)}" for name, size in parts.items())
        return (
            f"{text} + activations ~{amount(self.activations)}, or KV cache {amount(self.kv_cache)} while sampling: "
            f"~{amount(self.total)} of {amount(self.available)} {unit}"
        )


def estimate_memory(
    model_config: Any, config: GRPOConfig, plan: BatchPlan, *, prompt_length: int, lora_rank: int | None
) -> Memory:
    """Memory for prompts of `prompt_length` tokens and completions of full length.

    model_config: transformers' config of the policy; lora_rank: None trains all weights.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    size = _BYTES.get(str((config.model_init_kwargs or {}).get("dtype", "float32")).removeprefix("torch."), 4)
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    num_trained = num_weights if lora_rank is None else _num_adapter_weights(model, lora_rank)
    has_reference = config.beta > 0 and lora_rank is None
    text = model_config.get_text_config()
    length = prompt_length + config.max_completion_length
    return Memory(
        weights=num_weights * size * (2 if has_reference else 1) + (0 if lora_rank is None else num_trained * size),
        gradients=num_trained * size,
        optimizer=int(num_trained * optimizer_bytes(str(config.optim), size)),
        kv_cache=plan.local_rows_per_generation * length * _kv_bytes_per_token(text, size),
        activations=_activation_bytes(text, config, length, size),
        available=_available_bytes(config),
    )


def _num_adapter_weights(model: Any, rank: int) -> int:
    """Of an adapter on every linear layer but the output layer, peft's `all-linear`."""
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def optimizer_bytes(name: str, size: int) -> float:
    """Bytes of state for each trained weight of `size` bytes."""
    fixed = next((num_bytes for part, num_bytes in OPTIMIZER_BYTES if part in name), None)
    return fixed or size * next((states for part, states in OPTIMIZER_STATES if part in name), 2)


def _kv_bytes_per_token(text: Any, size: int) -> int:
    heads: int = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * int(text.num_hidden_layers) * kv_heads * head_size * size


def _activation_bytes(text: Any, config: GRPOConfig, length: int, size: int) -> int:
    """Checkpointing keeps one hidden state per layer and recomputes one layer; otherwise about 16 per layer."""
    tokens = config.max_tokens_per_forward or config.per_device_train_batch_size * length
    layers = int(text.num_hidden_layers)
    kept = layers + 16 if config.gradient_checkpointing else 16 * layers
    return int(tokens * text.hidden_size * kept * size)


def _available_bytes(config: GRPOConfig) -> int:
    if torch.cuda.is_available() and not config.use_cpu:
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
