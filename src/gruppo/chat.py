"""Between text and tokens: prompts to token ids, completions to text.

    standard        "2+2="                                  the tokenizer with its default special tokens
    conversational  [{"role": "user", "content": "2+2?"}]   the chat template, with the generation prompt added

Nothing is truncated here (`data.prompts` does that), and nothing is padded. Not here either: tools and images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from transformers import PreTrainedTokenizerFast

from gruppo.errors import ConfigError, DataError, ModelError, boundary
from gruppo.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OURS: Final = frozenset({"conversation", "add_generation_prompt", "tokenize", "return_dict", "tokenizer_kwargs"})
"""Arguments of `apply_chat_template` that define what a prompt is; a config cannot set them."""


def tokenize_prompts(
    contents: Sequence[str | list[Message]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    warn_if_long: bool = True,
) -> list[list[int]]:
    """Token ids of each prompt, as TRL's GRPOTrainer makes them. All prompts are of one kind.

    `chat_template_kwargs` (TRL's field) goes to the chat template, for example {"enable_thinking": False}.
    `warn_if_long`: let transformers warn of prompts longer than the model takes; off where they are cut afterwards.

    Raises ModelError for messages without a chat template, DataError for messages that the template refuses,
    ConfigError for a `chat_template_kwargs` entry that cannot be set.
    """
    if not contents:
        return []
    if isinstance(contents[0], str):
        return [list(ids) for ids in tokenizer(text=list(contents), verbose=warn_if_long)["input_ids"]]
    settings = dict(chat_template_kwargs or {})
    _check_template(tokenizer, settings)
    conversations = [[_without_empty_keys(message) for message in content] for content in contents]  # type: ignore[arg-type]
    with boundary(DataError, "rendering a prompt with the tokenizer's chat template"):
        encoded = tokenizer.apply_chat_template(
            conversation=conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            tokenizer_kwargs={"verbose": warn_if_long},
            **settings,
        )
    return [list(ids) for ids in encoded["input_ids"]]


def decode_completions(tokenizer: PreTrainedTokenizerBase, completion_ids: Sequence[Sequence[int]]) -> list[str]:
    """Text of each completion, special tokens skipped: what reward functions read."""
    return list(tokenizer.batch_decode([list(ids) for ids in completion_ids], skip_special_tokens=True))


def piece_decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """Text of a few ids, as `decode_completions` makes it, for who asks thousands of times.

    transformers looks at each id to find out what it was given, which takes several times as long as decoding. So the
    tokenizer's own backend is asked, where transformers would add nothing to what it says.
    """
    is_plain = (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and type(tokenizer)._decode is PreTrainedTokenizerFast._decode
        and not tokenizer.clean_up_tokenization_spaces
    )
    decode = tokenizer.backend_tokenizer.decode if is_plain else tokenizer.decode
    return partial(decode, skip_special_tokens=True)


def _check_template(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> None:
    if clash := sorted(_OURS & settings.keys()):
        raise ConfigError(
            f"chat_template_kwargs sets {', '.join(clash)}, which gruppo sets itself: prompts are always rendered with "
            "add_generation_prompt=True and tokenized. Remove it from chat_template_kwargs."
        )
    if tokenizer.chat_template is None and "chat_template" not in settings:
        raise ModelError(
            f"The prompts are messages, but the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat "
            "template (base models usually have none). Use an instruction-tuned model, or set `tokenizer.chat_template`"
            " and pass the tokenizer as processing_class, or make `prompt` a column of strings."
        )


def _without_empty_keys(message: Message) -> Message:
    """Arrow gives every message of a column the same keys and fills with None; templates test for presence."""
    return {key: value for key, value in message.items() if value is not None or key in ("role", "content")}
