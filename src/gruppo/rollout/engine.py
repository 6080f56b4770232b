"""EmbeddedEngine: fast rollouts with the trainer's model in this process.

Each prompt is computed once for its whole group, its keys and values are shared and never copied; a row that ends
leaves at once; random numbers, and so tokens, are those of `HFEngine`. Logits come from the first of these that fits:

    fused     a short decoder over packed copies of the weights, for the families of `decoder_layout`
    modules   the model's own forward with our attention: any model that honours transformers' AttentionInterface
    hf        `HFEngine`: everything else (recurrent and hybrid models, sharded weights, ...)

Which one fits is decided at the first rollout, by comparing logits with the model's own; `health()` says which, and
one warning says why, if it is the last. generation_kwargs that only transformers' `generate` can honour go to
`HFEngine` too.

A difference to `HFEngine` that is meant: with a repetition penalty, padding of neighbours is not counted as seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel

from gruppo.errors import RolloutError
from gruppo.modes import eval_mode
from gruppo.rollout.cuda_graphs import CudaGraphs
from gruppo.rollout.decoder_layout import is_recognised, residual_dtype
from gruppo.rollout.fused_forward import FusedForward
from gruppo.rollout.generation import Forward, Generation
from gruppo.rollout.hf import HFEngine
from gruppo.rollout.modules_forward import ModulesForward
from gruppo.rollout.sequence import Sequences
from gruppo.rollout.settings import RolloutSettings, foreign_kwargs, settings_of
from gruppo.rollout.static_decode import StaticDecode, StaticSteps
from gruppo.rollout.support import PROBE_POSITIONS, probe, unsupported_reason
from gruppo.types import Group, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_MEMORY_SHARE: Final = 0.4
"""Of the free memory, for keys and values, where no budget is given."""

MakeForward = Callable[[int], Forward]
"""From the longest position to come."""


class EmbeddedEngine:
    """Samples with a transformers model in this process.

    Args:
        model: a causal LM of transformers, or a PeftModel around one.
        tokenizer: needed for `stop_strings` in generation_kwargs, and for nothing else.
        autocast: makes the context that the model's own forward runs in (the trainer's mixed precision).
        rollout_dtype: type of the matrix products; None is what `autocast` says, or else that of the weights.
            bfloat16 is about twice as fast where the CPU has it, and moves the sampler's log-probs by about 1e-2.
        max_live_tokens: keys and values held at once, in tokens (a live row counts in full length, a live prompt as
            the longest one); None is what `_MEMORY_SHARE` of the free memory holds. Rows above it wait. Changes memory
            and speed, not tokens.
        cache_implementation: for `HFEngine`, where that is what runs.
        cuda_graphs: on a CUDA device, record decoding steps of the fused forward and replay them. Changes speed and
            memory, and tokens only where rounding decides.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        rollout_dtype: torch.dtype | None = None,
        max_live_tokens: int | None = None,
        cache_implementation: str | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        assert max_live_tokens is None or max_live_tokens >= 1
        self._lm: Any = model if isinstance(model, PreTrainedModel) else model.get_base_model()  # type: ignore[operator]
        self._tokenizer = tokenizer
        self._autocast = autocast
        self._rollout_dtype = rollout_dtype
        self._max_live_tokens = max_live_tokens
        self._hf = HFEngine(model, tokenizer=tokenizer, autocast=autocast, cache_implementation=cache_implementation)
        self._graphs = CudaGraphs(self._lm.device) if cuda_graphs and self._lm.device.type == "cuda" else None
        self._make_forward: MakeForward | None = None
        self._kind = "undecided"
        self._bytes_per_token = 0
        self._version = 0
        self._num_completions = 0
        self._num_tokens = 0
        self._refused_kwargs: set[str] = set()

    def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> list[Group]:
        """One group per request, in the order of the requests.

        Raises:
            RolloutError: an empty prompt, a generation_kwargs entry that cannot be, or logits that are not finite.
        """
        started = time.perf_counter()
        for request in requests:
            if len(request.samples) and not request.prompt.token_ids:
                raise RolloutError(f"Prompt {request.prompt.id} has no tokens, so there is nothing to complete.")
        if not any(len(request.samples) for request in requests):
            return [Group(request.prompt, []) for request in requests]
        if self._must_leave(sampling) or not self._decide():
            groups = self._hf.generate(requests, sampling)
        else:
            sequences = self._complete(requests, sampling, settings_of(sampling))
            seconds = time.perf_counter() - started
            rows = iter(range(len(sequences)))
            groups = [
                Group(
                    request.prompt,
                    [
                        sequences.completion(next(rows), policy_version=self._version, seconds=seconds)
                        for _ in request.samples
                    ],
                )
                for request in requests
            ]
        completions = [completion for group in groups for completion in group.completions]
        self._num_completions += len(completions)
        self._num_tokens += sum(len(completion.token_ids) for completion in completions)
        return groups

    def load_weights(self, version: int) -> None:
        """Weights are the trainer's own, or copied anew for each rollout: only the version is noted."""
        self._version = version
        self._hf.load_weights(version)

    def health(self) -> dict[str, Any]:
        return {
            "engine": "embedded",
            "forward": self._kind,
            "policy_version": self._version,
            "num_completions": self._num_completions,
            "num_tokens": self._num_tokens,
        }

    def close(self) -> None:
        """Nothing is held between rollouts."""

    def _must_leave(self, sampling: SamplingParams) -> bool:
        """Whether generation_kwargs ask for what only `generate` of transformers can do. Warns once for each name."""
        names = foreign_kwargs(sampling)
        new = set(names) - self._refused_kwargs
        if new:
            self._refused_kwargs |= new
            logger.warning(
                "generation_kwargs %s: the embedded engine cannot honour this, so completions are sampled by "
                "transformers' generate, which is slower.",
                sorted(new),
            )
        return bool(names)

    def _decide(self) -> bool:
        """Finds the forward that fits, once. False: none, `HFEngine` has to do it."""
        if self._kind != "undecided":
            return self._make_forward is not None
        faults = []
        reason = unsupported_reason(self._lm)
        candidates = {} if reason else self._candidates()
        with eval_mode(self._lm):
            for kind, make in candidates.items():
                finding = probe(self._lm, partial(make, PROBE_POSITIONS), self._product_dtype())
                if finding.fault is None:
                    self._kind, self._make_forward, self._bytes_per_token = kind, make, finding.bytes_per_token
                    return True
                faults.append(f"{kind}: {finding.fault}")
                logger.info("%s does not suit the %s forward: %s", type(self._lm).__name__, kind, finding.fault)
        self._kind = "hf"
        logger.warning(
            "%s cannot use the embedded engine (%s), so completions are sampled by transformers' generate, which is "
            "slower.",
            type(self._lm).__name__,
            reason or "; ".join(faults),
        )
        return False

    def _candidates(self) -> dict[str, MakeForward]:
        autocast, dtype = self._autocast, self._product_dtype()
        if self._rollout_dtype is not None:
            autocast = partial(torch.autocast, self._lm.device.type, dtype=dtype)
        candidates: dict[str, MakeForward] = {}
        if is_recognised(self._lm):
            candidates["fused"] = lambda num: FusedForward(self._lm, dtype=dtype, num_positions=num)
        candidates["modules"] = lambda _: ModulesForward(self._lm, autocast)
        return candidates

    def _product_dtype(self) -> torch.dtype:
        if self._rollout_dtype is not None:
            return self._rollout_dtype
        kind = self._lm.device.type
        with self._autocast():
            if torch.is_autocast_enabled(kind):
                return torch.get_autocast_dtype(kind)
        return residual_dtype(self._lm)

    def _complete(
        self, requests: Sequence[RolloutRequest], sampling: SamplingParams, settings: RolloutSettings
    ) -> Sequences:
        """Runs the rollout; out of memory halves the budget and starts again (the same tokens come out)."""
        assert self._make_forward is not None
        device = self._lm.device
        lengths = [len(request.prompt.token_ids) for request in requests if len(request.samples)]
        longest = max(lengths)
        # Autocast drops its copies of the weights with the outermost context. This one makes the context of a forward
        # an inner one, so that weights are cast once and not for every token.
        with eval_mode(self._lm), torch.autocast(device.type, enabled=False):
            forward = self._make_forward(longest + settings.max_tokens)
            # The copies of the weights have their memory now.
            budget = self._budget(device)
            while True:
                sequences = Sequences(
                    requests, sampling, max_tokens=settings.max_tokens, needs_uniforms=not settings.is_greedy
                )
                generation = Generation(
                    forward,
                    sequences,
                    settings,
                    budget=budget,
                    tokenizer=self._tokenizer,
                    device=device,
                    static=self._static_steps(forward, sequences, settings),
                )
                try:
                    generation.run()
                except RuntimeError as error:
                    if not should_reduce_batch_size(error):
                        raise
                    held = longest * len(lengths) + settings.max_tokens * len(sequences)
                    budget = min(budget or held, held) // 2
                    if budget < longest + settings.max_tokens:
                        raise
                    self._max_live_tokens = budget
                    logger.warning("Out of memory: rollouts go on with at most %d live tokens.", budget)
                else:
                    return sequences

    def _static_steps(self, forward: Forward, sequences: Sequences, settings: RolloutSettings) -> StaticSteps | None:
        if self._graphs is None or self._kind != "fused":
            return None
        width = int(np.bincount(sequences.prompt_N).max())
        return StaticSteps(StaticDecode(forward, settings), self._graphs.recorder(), width=width)

    def _budget(self, device: torch.device) -> int | None:
        if self._max_live_tokens is not None:
            return self._max_live_tokens
        free = free_bytes(device)
        return None if free is None else max(1, int(_MEMORY_SHARE * free) // max(self._bytes_per_token, 1))


def free_bytes(device: torch.device) -> int | None:
    """Memory that a new tensor may take; None where it cannot be known."""
    if device.type == "cuda":
        # What torch has reserved and left free counts as taken on the device: nearly all, after a training step.
        left: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + left
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
