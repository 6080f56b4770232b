"""RolloutSettings: SamplingParams and the generation_kwargs that the embedded engine understands, as one value.

What it does not understand is named by `foreign_kwargs`; the engine then leaves the whole call to `HFEngine`. What
neither can honour is refused by `check_sampling`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from gruppo.errors import RolloutError
from gruppo.types import SamplingParams


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """Names and meanings are those of transformers' GenerationConfig."""

    max_tokens: int
    is_greedy: bool
    temperature: float
    """Of the draw."""
    score_temperature: float
    """Of the recorded log-probs: what the trainer trains at, whatever generation_kwargs do to the draw."""
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    stop_strings: tuple[str, ...]

    @property
    def is_plain(self) -> bool:
        """Draws come from the very distribution that the log-probs are of."""
        return not self.is_truncated and self.repetition_penalty == 1.0 and self.temperature == self.score_temperature

    @property
    def is_direct(self) -> bool:
        """The policy's own distribution gives the token, by a plain draw or as its most likely one."""
        return self.is_plain or (self.is_greedy and self.repetition_penalty == 1.0)

    @property
    def is_truncated(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


_KNOWN = {
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "eos_token_id",
    "pad_token_id",
    "stop_strings",
    "use_cache",
}


# generation_kwargs that would break one row = one completion, or act after the draw.
_REFUSED = {
    "num_beams": "beams are not samples of the policy",
    "num_beam_groups": "beams are not samples of the policy",
    "num_return_sequences": "num_generations says how many completions a prompt gets",
    "max_length": "max_completion_length (or max_new_tokens here) limits the new tokens",
    "watermarking_config": "it would act after the token is drawn",
    "renormalize_logits": "scores are normalised in the draw already",
    "return_dict_in_generate": "log-probs are recorded anyway",
    "prompt_lookup_num_tokens": "speculative decoding does not go through the seeded draw",
    "assistant_early_exit": "speculative decoding does not go through the seeded draw",
    "penalty_alpha": "contrastive search does not sample",
    "dola_layers": "layer contrasting changes the distribution that the log-probs are of",
}


def check_sampling(sampling: SamplingParams) -> None:
    """Refuses generation_kwargs that no engine in this process honours. Generates nothing.

    Raises:
        RolloutError: a name that is refused or unknown.
    """
    known = set(GenerationConfig().to_dict())
    for name, value in sampling.generation_kwargs.items():
        told = f"generation_kwargs has {name!r}: {value!r}, which"
        if name in _REFUSED:
            raise RolloutError(f"{told} cannot be used here: {_REFUSED[name]}. Take it out of generation_kwargs.")
        if name not in known:
            meant = difflib.get_close_matches(name, known - set(_REFUSED), n=1)
            advice = f"Did you mean {meant[0]!r}?" if meant else "Take it out of generation_kwargs."
            raise RolloutError(f"{told} is no field of transformers' GenerationConfig. {advice}")


def foreign_kwargs(sampling: SamplingParams) -> list[str]:
    """Entries of generation_kwargs that only transformers' `generate` can honour (or refuse)."""
    return [name for name in sampling.generation_kwargs if name not in _KNOWN]


def settings_of(sampling: SamplingParams) -> RolloutSettings:
    """generation_kwargs have the last word. They must hold no `foreign_kwargs`."""
    given: dict[str, Any] = sampling.generation_kwargs
    is_greedy = not given.get("do_sample", not sampling.is_greedy)
    eos = given.get("eos_token_id", sampling.eos_token_ids)
    stop_strings = given.get("stop_strings") or ()
    return RolloutSettings(
        max_tokens=given.get("max_new_tokens", sampling.max_tokens),
        is_greedy=is_greedy,
        temperature=_or_off(given.get("temperature", sampling.temperature), 1.0),
        score_temperature=sampling.temperature,
        top_k=int(_or_off(given.get("top_k", sampling.top_k), 0)),
        top_p=_or_off(given.get("top_p", sampling.top_p), 1.0),
        min_p=_or_off(given.get("min_p", sampling.min_p), 0.0),
        repetition_penalty=_or_off(given.get("repetition_penalty", sampling.repetition_penalty), 1.0),
        eos_token_ids=(eos,) if isinstance(eos, int) else tuple(eos or ()),
        pad_token_id=given.get("pad_token_id", sampling.pad_token_id),
        stop_strings=(stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings),
    )


def _or_off(value: float | None, off: float) -> float:
    return off if value is None else value
