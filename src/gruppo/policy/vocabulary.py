"""Does a tokenizer fit the model's embeddings? Ids are looked up in a table, and one beyond it stops the run.

Tokens are often added to a tokenizer without `model.resize_token_embeddings`. A pad token beyond the table does no harm
here, since padding has no influence on anything: another id stands in for it. An EOS beyond it could never be sampled,
and a prompt with such an id cannot be completed: these are errors. Not here: loading (`load.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gruppo.errors import ModelError
from gruppo.policy.logprobs import causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NAMED = 5
"""Tokens that a message names."""


def table_size(model: Any) -> int:
    """Rows of the table that token ids are looked up in."""
    return int(causal_lm(model).get_input_embeddings().weight.shape[0])


def ids_beyond(tokenizer: PreTrainedTokenizerBase, size: int) -> frozenset[int]:
    """The tokenizer's ids that a table of `size` rows does not have."""
    return frozenset(id_ for id_ in tokenizer.get_vocab().values() if id_ >= size)


def eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a completion: the tokenizer's EOS, then all of the model's generation config.

    Those that the model cannot make are left out. Raises ModelError if it can make none of them.
    """
    generation_config = causal_lm(model).generation_config
    declared = None if generation_config is None else generation_config.eos_token_id
    declared = [declared] if isinstance(declared, int) else list(declared or [])
    own = tokenizer.eos_token_id
    if own is not None and own not in declared:
        declared = [own, *declared]
    size = table_size(model)
    known = tuple(id_ for id_ in declared if id_ < size)
    if declared and not known:
        raise ModelError(
            f"No completion could ever end: EOS is {_named(declared, tokenizer)}, beyond the {size} tokens of the "
            f"model's embeddings. {_remedy(tokenizer)}"
        )
    return known


def padding_id(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills cells that have no influence: the pad token, or another id where the model has no row for that."""
    own = tokenizer.pad_token_id
    assert isinstance(own, int), "load_tokenizer sees to it"
    return own if own < table_size(model) else next(iter(eos_token_ids(model, tokenizer)), 0)


def set_pad_token(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the tokenizer's pad id into the model's config and generation config, so that a saved model agrees.

    Not one that the model has no row for: the saved model could not be loaded again.
    """
    own = tokenizer.pad_token_id
    if own is None or own >= table_size(model):
        return
    lm = causal_lm(model)
    lm.config.get_text_config().pad_token_id = own
    if lm.generation_config is not None:
        lm.generation_config.pad_token_id = own


def misfit(ids: Iterable[int], where: str, *, tokenizer: PreTrainedTokenizerBase, size: int) -> str | None:
    """What is wrong with a prompt of these ids, and what to do; None if the table has all of them."""
    beyond = sorted({id_ for id_ in ids if id_ >= size})
    if not beyond:
        return None
    return (
        f"{where} has {_named(beyond, tokenizer)}, beyond the {size} tokens of the model's embeddings: the tokenizer "
        f"is not the model's. {_remedy(tokenizer)}"
    )


def _named(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    names = [f"token {id_} ({tokenizer.convert_ids_to_tokens(id_)!r})" for id_ in ids[:MAX_NAMED]]
    return ", ".join(names) + (f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else "")


def _remedy(tokenizer: PreTrainedTokenizerBase) -> str:
    return (
        f"If tokens were added to it (it has {len(tokenizer)}), load the model yourself and call "
        "model.resize_token_embeddings(len(tokenizer)) before passing it; else pass the tokenizer that belongs to it."
    )
