"""Models of random weights in real families' shapes, a tokenizer of one word per token, and prompts of exact length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EOS, PAD, UNKNOWN = 1, 0, 2
"""Token ids of the benchmark tokenizer; all others are words."""

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "kind": "qwen3",
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
    "small": {
        "kind": "qwen3",
        "vocab_size": 32768,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "demo": {
        "kind": "qwen3",
        "vocab_size": 32,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "qwen2.5-0.5b": {
        "kind": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}


@dataclass(frozen=True)
class Size:
    """Parameters that a token is multiplied with. Embedding look-ups and norms cost no matrix product: not counted."""

    body: int
    """The layers' matrices."""
    head: int
    """Vocabulary times hidden size, also where it is tied to the embedding."""


def make_model(shape: str) -> Any:
    """The same float32 weights in every process."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    fields = {name: value for name, value in SHAPES[shape].items() if name != "kind"}
    fields |= {"tie_word_embeddings": True, "eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": None}
    if SHAPES[shape]["kind"] == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**fields))
    return Qwen2ForCausalLM(Qwen2Config(**fields))


def make_tokenizer(shape: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Special tokens are cut out of words that contain them, so their names must begin no word.
    words = {f"w{token}": token for token in range(UNKNOWN, SHAPES[shape]["vocab_size"])}
    core = Tokenizer(models.WordLevel({"<pad>": PAD, "<eos>": EOS, **words}, unk_token=f"w{UNKNOWN}"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def prompt_ids(num_tokens: int, number: int, vocab_size: int) -> list[int]:
    """Prompt `number`: words only, spread over the vocabulary, different for every number."""
    first = UNKNOWN + 1
    return [first + (number * 7919 + place * 104729) % (vocab_size - first) for place in range(num_tokens)]


def prompt_text(ids: list[int]) -> str:
    return " ".join(f"w{token}" for token in ids)


def size_of(shape: str) -> Size:
    """From the shape alone, so that nobody has to build a model to know it."""
    fields = SHAPES[shape]
    hidden = fields["hidden_size"]
    head_dim = fields.get("head_dim", hidden // fields["num_attention_heads"])
    queries, keys = fields["num_attention_heads"] * head_dim, fields["num_key_value_heads"] * head_dim
    attention = hidden * (queries + 2 * keys) + queries * hidden
    layer = attention + 3 * hidden * fields["intermediate_size"]
    return Size(body=fields["num_hidden_layers"] * layer, head=fields["vocab_size"] * hidden)
