"""Reward models: sequence classifiers of transformers whose first logit is the reward.

The text is prompt and completion one after the other, through the reward tokenizer's own chat template where the
prompt is a conversation; it is padded on the right, and no special tokens are added.

Different from TRL on purpose: rows go through the model a few at a time, so memory does not grow with the batch (the
numbers are the same); and a model named by id is loaded without the policy's `revision` and `device_map`, which mean
something only for the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from gruppo.errors import RewardError, boundary
from gruppo.model_source import loading
from gruppo.rewards.protocol import RewardSource
from gruppo.rewards.rows import Rows, Text

SHARED_INIT_KWARGS = (
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "trust_remote_code",
    "token",
    "cache_dir",
    "local_files_only",
)
"""The `model_init_kwargs` of the policy that a reward model is loaded with, too."""

ROWS_PER_FORWARD = 8


def load_reward_model(model_id: str, model_init_kwargs: Mapping[str, Any] | None) -> nn.Module:
    """Load a sequence classifier with one output.

    Raises RewardError if that fails, or if transformers had to make up weights (the head, of a model of another kind).
    """
    from transformers import AutoModelForSequenceClassification

    kwargs = {name: value for name, value in (model_init_kwargs or {}).items() if name in SHARED_INIT_KWARGS}
    with boundary(RewardError, f"{loading('the reward model', model_id)} as a sequence classifier with one output"):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            model_id, num_labels=1, output_loading_info=True, **kwargs
        )
    if missing := sorted(found["missing_keys"]):
        raise RewardError(
            f"The reward model {model_id!r} is no trained classifier: its files do not hold {', '.join(missing)}, so "
            "transformers drew random numbers for it, and the rewards would mean nothing. Pass a sequence classifier "
            "that was trained with one output, or a function that asks this model in its own way."
        )
    return cast("nn.Module", model)


def prepare_reward_model(
    model: nn.Module,
    name: str,
    processing_class: Any,
    *,
    is_conversational: bool | None,
    model_init_kwargs: Mapping[str, Any] | None,
    chat_template_kwargs: Mapping[str, Any],
) -> RewardSource:
    """Give the model its tokenizer and a pad token, and switch dropout off. Raises RewardError.

    Sets `pad_token_id` in the model's config: a classifier scores the last token that is no padding.
    """
    if processing_class is None:
        processing_class = _load_tokenizer(model, name, model_init_kwargs)
    if processing_class.pad_token_id is None:
        processing_class.pad_token = processing_class.eos_token
    config = getattr(model, "config", None)
    if config is not None:
        config.get_text_config().pad_token_id = processing_class.pad_token_id
    if is_conversational and getattr(processing_class, "chat_template", None) is None:
        raise RewardError(
            f"Reward model `{name}` has a tokenizer without a chat template, but the prompts are conversations. Set "
            f"`chat_template` on the tokenizer and pass it in `reward_processing_classes`."
        )
    return RewardSource(name, model.eval(), "model", processing_class, dict(chat_template_kwargs))


def model_name(model: nn.Module) -> str:
    """Last component of the id or path that the model was loaded from; its class name if it was not."""
    path = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return path.rstrip("/").split("/")[-1] or type(model).__name__


def score_with_model(source: RewardSource, rows: Rows) -> list[float]:
    """The first logit for each row, without gradients, on the model's own device."""
    device = next(source.function.parameters()).device
    texts = [
        _join(source, prompt, completion) for prompt, completion in zip(rows.prompts, rows.completions, strict=True)
    ]
    scores: list[float] = []
    for start in range(0, len(texts), ROWS_PER_FORWARD):
        inputs = source.processing_class(
            text=texts[start : start + ROWS_PER_FORWARD],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            add_special_tokens=False,
        ).to(device)
        with torch.no_grad():
            scores += source.function(**inputs).logits[:, 0].float().tolist()
    return scores


def _join(source: RewardSource, prompt: Text, completion: Text) -> str:
    if isinstance(prompt, str):
        assert isinstance(completion, str)
        return prompt + completion
    messages = [*prompt, *completion]
    text: str = source.processing_class.apply_chat_template(messages, tokenize=False, **source.chat_template_kwargs)
    return text


def _load_tokenizer(model: nn.Module, name: str, model_init_kwargs: Mapping[str, Any] | None) -> Any:
    from transformers import AutoTokenizer

    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not path:
        raise RewardError(
            f"Reward model `{name}` does not say where it was loaded from, so its tokenizer is unknown. Pass the "
            f"tokenizer in `reward_processing_classes`."
        )
    shared = ("trust_remote_code", "token", "cache_dir", "local_files_only")
    kwargs = {key: value for key, value in (model_init_kwargs or {}).items() if key in shared}
    with boundary(RewardError, loading("the tokenizer of the reward model", path)):
        return AutoTokenizer.from_pretrained(path, **kwargs)
