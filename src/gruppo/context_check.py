"""Whether prompts and completions fit the positions that the model has. A warning: some models do run beyond them.

How long prompts may be is `data`'s to enforce (`max_prompt_length`), and completions the rollout engine's.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from gruppo.data.prompts import PromptDataset, PromptStream

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig

MAX_PROMPTS = 64
"""Prompts whose length is looked at, evenly spread over the dataset; of a stream none."""


def warn_if_beyond_context(model_config: Any, config: GRPOConfig, prompts: PromptDataset | PromptStream) -> None:
    """Gives a UserWarning if the longest prompt that is looked at and the longest completion do not fit together."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    kwargs = config.generation_kwargs or {}
    name = "generation_kwargs' max_new_tokens" if "max_new_tokens" in kwargs else "max_completion_length"
    num_new = kwargs.get("max_new_tokens", config.max_completion_length)
    num_prompt = _longest(prompts)
    if num_prompt + num_new <= limit:
        return
    room = limit - num_prompt
    remedy = f"Set {name} to {room} or less" if room > 0 else "Set max_prompt_length"
    warnings.warn(
        f"{name}={num_new} after a prompt of {num_prompt} tokens makes {num_prompt + num_new}, and the model has "
        f"{limit} positions (max_position_embeddings). Beyond them answers get worse, and some models fail. {remedy}.",
        UserWarning,
        stacklevel=3,
    )


def _longest(prompts: PromptDataset | PromptStream) -> int:
    if isinstance(prompts, PromptStream):
        return 0
    stride = -(-len(prompts) // MAX_PROMPTS)
    return max(len(prompts[index].token_ids) for index in range(0, len(prompts), stride))
