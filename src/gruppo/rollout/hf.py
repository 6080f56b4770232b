"""HFEngine: rollouts by transformers' own `generate`, one left-padded row per completion.

This is the slow, obvious engine: no prompt is computed only once for its group, and a batch lasts as long as its
longest row. It exists to be right, and other engines are tested against it.

Two things differ from a plain `model.generate(do_sample=True)`:

- Tokens are drawn by `rollout.sampler` from each row's own random numbers. `generate` runs in its greedy mode, and
  the last logits processor turns the scores into a one-hot choice.
- The model's own generation_config plays no part. `generate` fills every unset field from it, which makes runs
  silently near-greedy where a model ships top_k=20, top_p=0.8 or a repetition penalty. Only `SamplingParams` and
  `generation_kwargs` count here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import logits_process
from transformers.generation.stopping_criteria import StopStringCriteria

from gruppo.errors import RolloutError
from gruppo.rollout.sampler import draw, row_uniforms
from gruppo.rollout.settings import check_sampling
from gruppo.types import Completion, FinishReason, Group, Prompt, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

_Row = tuple[Prompt, int]
"""A prompt and the index of one sample of it."""

_Warper = Callable[[Any, torch.device], LogitsProcessor]

# transformers' order of truncation (GenerationMixin._get_logits_processor): name, the value that switches it off.
_WARPERS: tuple[tuple[str, Any, _Warper], ...] = (
    ("temperature", 1.0, lambda value, _: logits_process.TemperatureLogitsWarper(value)),
    ("top_h", None, lambda value, _: logits_process.TopHLogitsWarper(value)),
    ("top_k", 0, lambda value, _: logits_process.TopKLogitsWarper(value)),
    ("top_p", 1.0, lambda value, _: logits_process.TopPLogitsWarper(value)),
    ("min_p", None, lambda value, _: logits_process.MinPLogitsWarper(value)),
    ("typical_p", 1.0, lambda value, _: logits_process.TypicalLogitsWarper(value)),
    ("epsilon_cutoff", 0.0, lambda value, _: logits_process.EpsilonLogitsWarper(value)),
    ("eta_cutoff", 0.0, lambda value, device: logits_process.EtaLogitsWarper(value, device=device)),
)


class HFEngine:
    """Samples with a transformers model in this process; weights are shared with the trainer, never copied.

    Args:
        model: a causal LM of transformers, or a PeftModel around one.
        tokenizer: needed for `stop_strings` in generation_kwargs, and for nothing else.
        autocast: makes the context that forwards run in (the trainer's mixed precision).
        max_rows: rows per `generate` call; None is all at once. Changes memory and speed, not random numbers.
        cache_implementation: handed to transformers ("static", "offloaded", ...); None is its default.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        max_rows: int | None = None,
        cache_implementation: str | None = None,
    ) -> None:
        assert max_rows is None or max_rows >= 1
        self._model: Any = model
        self._tokenizer = tokenizer
        self._autocast = autocast
        self._max_rows = max_rows
        self._cache_implementation = cache_implementation
        self._version = 0
        self._num_completions = 0
        self._num_tokens = 0

    def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> list[Group]:
        """One group per request, in the order of the requests.

        Raises:
            RolloutError: an empty prompt, a generation_kwargs entry that cannot be, or logits that are not finite.
        """
        settings = _settings(sampling, self._cache_implementation)
        rows = [(request.prompt, sample) for request in requests for sample in request.samples]
        for prompt, _ in rows:
            if not prompt.token_ids:
                raise RolloutError(f"Prompt {prompt.id} has no tokens, so there is nothing to complete.")
        size = self._max_rows or max(len(rows), 1)
        completions: list[Completion] = []
        for start in range(0, len(rows), size):
            completions += self._complete(rows[start : start + size], sampling, settings)
        self._num_completions += len(completions)
        self._num_tokens += sum(len(completion.token_ids) for completion in completions)
        in_order = iter(completions)
        return [Group(request.prompt, [next(in_order) for _ in request.samples]) for request in requests]

    def load_weights(self, version: int) -> None:
        """Weights are the trainer's own: only the version is noted."""
        self._version = version

    def health(self) -> dict[str, Any]:
        return {
            "engine": "hf",
            "policy_version": self._version,
            "num_completions": self._num_completions,
            "num_tokens": self._num_tokens,
        }

    def close(self) -> None:
        """Nothing is held."""

    def _complete(self, rows: list[_Row], sampling: SamplingParams, settings: dict[str, Any]) -> list[Completion]:
        started = time.perf_counter()
        model = _causal_lm(self._model)
        device = model.device
        ids_NT, mask_NT = _left_padded([prompt.token_ids for prompt, _ in rows], settings["pad_token_id"], device)
        finish = _Finish(settings, self._tokenizer, ids_NT)
        with _sampling_mode(model) as raw, self._autocast(), torch.no_grad():
            choose = _Choose(rows, sampling, settings, raw, ids_NT)
            output_NT = model.generate(
                input_ids=ids_NT,
                attention_mask=mask_NT,
                generation_config=GenerationConfig(**_without_sampling(settings)),
                logits_processor=LogitsProcessorList([*_warpers(settings, device), choose]),
                stopping_criteria=StoppingCriteriaList([finish]),
            )
        num_new = output_NT.shape[1] - ids_NT.shape[1]
        ids = output_NT[:, ids_NT.shape[1] :].tolist()
        logprobs = torch.stack(choose.logprobs[:num_new], dim=1).tolist()
        lengths, reasons = finish.verdict(num_new, settings["max_new_tokens"])
        seconds = time.perf_counter() - started
        return [
            Completion(
                sample=sample,
                token_ids=ids[i][: lengths[i]],
                finish_reason=reasons[i],
                sampler_logprobs=logprobs[i][: lengths[i]],
                policy_version=self._version,
                seconds=seconds,
            )
            for i, (_, sample) in enumerate(rows)
        ]


class _RawLogits:
    """Holds the logits of the latest forward, before any processor; a forward hook fills it."""

    def __init__(self) -> None:
        self.latest_NV: Tensor | None = None

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        # A copy, so that the logits of a whole prefill are not kept alive.
        self.latest_NV = output.logits[:, -1].to(dtype=torch.float32, copy=True)


class _Choose(LogitsProcessor):
    """The last processor: chooses each row's token, notes its log-prob, and leaves it the only one possible."""

    def __init__(
        self, rows: list[_Row], sampling: SamplingParams, settings: dict[str, Any], raw: _RawLogits, ids_NT: Tensor
    ) -> None:
        self._raw = raw
        # Of the distribution that the trainer trains, whatever generation_kwargs do to the sampler's.
        self._temperature = sampling.temperature
        self._prompt_length = ids_NT.shape[1]
        self._uniforms_NT: Tensor | None = None
        if settings["do_sample"]:
            streams = [row_uniforms(sampling, prompt.id, sample, settings["max_new_tokens"]) for prompt, sample in rows]
            # Apple's GPUs have no float64.
            where = "cpu" if ids_NT.device.type == "mps" else ids_NT.device
            self._uniforms_NT = torch.from_numpy(np.stack(streams)).to(where)
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert self._raw.latest_NV is not None
        if self._uniforms_NT is None:
            token_N = scores.argmax(dim=-1)
        else:
            token_N = draw(scores, self._uniforms_NT[:, input_ids.shape[1] - self._prompt_length])
        raw_NV = self._raw.latest_NV.to(scores.device)
        self.logprobs.append(torch.log_softmax(raw_NV / self._temperature, dim=-1).gather(1, token_N[:, None])[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, token_N[:, None], 0.0)


class _Finish(StoppingCriteria):
    """Notes at which token each row was finished by an EOS or a stop string."""

    def __init__(self, settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None, ids_NT: Tensor) -> None:
        self._prompt_length = ids_NT.shape[1]
        self._eos = torch.tensor(_as_ids(settings["eos_token_id"]), dtype=torch.long, device=ids_NT.device)
        self._stop: StopStringCriteria | None = None
        if settings["stop_strings"]:
            if tokenizer is None:
                raise RolloutError("stop_strings in generation_kwargs need a tokenizer: give the engine one.")
            self._stop = StopStringCriteria(tokenizer, settings["stop_strings"])
        self._length_N = torch.zeros(ids_NT.shape[0], dtype=torch.long, device=ids_NT.device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        is_done_N = torch.isin(input_ids[:, -1], self._eos)
        if self._stop is not None:
            is_done_N = is_done_N | self._stop(input_ids, scores)
        is_new_N = is_done_N & (self._length_N == 0)
        self._length_N[is_new_N] = input_ids.shape[1] - self._prompt_length
        return is_done_N

    def verdict(self, num_new: int, max_new: int) -> tuple[list[int], list[FinishReason]]:
        """Per row: how many tokens are its own, and why it ended."""
        # `max_time` in generation_kwargs ends rows before both a stop and the limit.
        unfinished: FinishReason = "length" if num_new == max_new else "abort"
        stops = self._length_N.tolist()
        return [n or num_new for n in stops], ["stop" if n else unfinished for n in stops]


def _settings(sampling: SamplingParams, cache_implementation: str | None) -> dict[str, Any]:
    """All generation settings by transformers' names; generation_kwargs have the last word.

    Raises:
        RolloutError: a name in generation_kwargs that is refused or unknown.
    """
    check_sampling(sampling)
    return {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": not sampling.is_greedy,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "eos_token_id": list(sampling.eos_token_ids) or None,
        "pad_token_id": sampling.pad_token_id,
        "stop_strings": None,
        "use_cache": True,
        "cache_implementation": cache_implementation,
        "disable_compile": True,
        **sampling.generation_kwargs,
    }


def _without_sampling(settings: dict[str, Any]) -> dict[str, Any]:
    """What `generate` itself is told: greedy, with the penalties and constraints that come before the warpers."""
    ours = {name for name, _, _ in _WARPERS} | {"do_sample", "stop_strings"}
    return {"do_sample": False, **{name: value for name, value in settings.items() if name not in ours}}


def _warpers(settings: dict[str, Any], device: torch.device) -> list[LogitsProcessor]:
    if not settings["do_sample"]:
        return []
    chosen = [(settings.get(name), off, make) for name, off, make in _WARPERS]
    return [make(value, device) for value, off, make in chosen if value is not None and value != off]


def _as_ids(ids: int | list[int] | None) -> list[int]:
    return [ids] if isinstance(ids, int) else list(ids or [])


def _left_padded(prompts: list[list[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (N, T). `generate` counts positions by the mask, so absolute positions start at the first token."""
    longest = max(len(ids) for ids in prompts)
    ids_NT = torch.full((len(prompts), longest), pad_token_id, dtype=torch.long)
    mask_NT = torch.zeros((len(prompts), longest), dtype=torch.long)
    for i, ids in enumerate(prompts):
        ids_NT[i, longest - len(ids) :] = torch.tensor(ids)
        mask_NT[i, longest - len(ids) :] = 1
    return ids_NT.to(device), mask_NT.to(device)


def _causal_lm(model: Any) -> Any:
    """The transformers model itself: a PeftModel has its adapters inside it."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


@contextmanager
def _sampling_mode(model: Any) -> Iterator[_RawLogits]:
    """Eval mode, empty generation defaults, and a hook for the raw logits; all undone at the end.

    Eval mode also switches gradient checkpointing off (transformers checkpoints in training mode only), without
    which the cache would be thrown away.
    """
    modes = [(module, module.training) for module in model.modules()]
    defaults = model.generation_config
    raw = _RawLogits()
    hook = model.register_forward_hook(raw)
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield raw
    finally:
        hook.remove()
        model.generation_config = defaults
        for module, is_training in modes:
            module.training = is_training
