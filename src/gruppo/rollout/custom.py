"""CustomRollout: the user's `rollout_func(prompts, trainer)` behind the RolloutEngine protocol, by TRL's contract.

It calls the function once per generation with the rows as TRL gives them (each prompt repeated for each of its
completions) and checks what comes back. It does not sample, retry or catch: an exception of the user's function
passes through untouched.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gruppo.errors import RolloutError
from gruppo.types import Completion, Group, Prompt, RolloutRequest, SamplingParams

RolloutFunc = Callable[[list[Any], Any], Mapping[str, Any]]
_REQUIRED = ("completion_ids", "logprobs", "prompt_ids")


class CustomRollout:
    """Completions by a user's function.

    The function returns a dict with `prompt_ids`, `completion_ids` and `logprobs`, one entry per row (`logprobs`
    may be None as a whole, for a row, or for a token). Optional: `env_mask` (0 on tokens that the model did not
    make), and any further field, which reward functions receive: a list has one value per row, anything else goes
    to every row.

    Args:
        rollout_func: the user's function.
        trainer: what it gets as its second argument.
    """

    def __init__(self, rollout_func: RolloutFunc, trainer: Any) -> None:
        self._rollout_func = rollout_func
        self._trainer = trainer
        self._version = 0
        self._num_completions = 0

    def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> list[Group]:
        """One group per request, in the order of the requests.

        Raises:
            RolloutError: a missing key, a field of the wrong length, an empty prompt.
        """
        started = time.perf_counter()
        rows = [(request.prompt, sample) for request in requests for sample in request.samples]
        if not rows:
            return [Group(request.prompt, []) for request in requests]
        output = self._rollout_func([copy.deepcopy(prompt.content) for prompt, _ in rows], self._trainer)
        fields = _checked(output, len(rows))
        ends = {*sampling.eos_token_ids, sampling.pad_token_id}
        completions = [_completion(fields, i, prompt, sample, ends) for i, (prompt, sample) in enumerate(rows)]
        seconds = time.perf_counter() - started
        for completion in completions:
            completion.seconds = seconds
            completion.policy_version = self._version
        self._num_completions += len(completions)
        in_order = iter(completions)
        return [Group(request.prompt, [next(in_order) for _ in request.samples]) for request in requests]

    def load_weights(self, version: int) -> None:
        """The function reads the trainer's weights itself: only the version is noted."""
        self._version = version

    def health(self) -> dict[str, Any]:
        return {
            "engine": "rollout_func",
            "policy_version": self._version,
            "num_completions": self._num_completions,
        }

    def close(self) -> None:
        """Nothing is held."""


def _checked(output: Any, num_rows: int) -> dict[str, Any]:
    """The output as a dict whose per-row fields all have `num_rows` entries."""
    if not isinstance(output, Mapping):
        raise RolloutError(f"rollout_func must return a dict, but returned {type(output).__name__}.")
    missing = [key for key in _REQUIRED if key not in output]
    if missing:
        raise RolloutError(f"rollout_func must return keys {missing} in its output dict; it has {sorted(output)}.")
    for name in ("prompt_ids", "completion_ids"):
        if output[name] is None:
            raise RolloutError(f"rollout_func returned None as {name!r}; it must hold one list of token ids per row.")
    for name, values in output.items():
        is_per_row = isinstance(values, list) or (name in (*_REQUIRED, "env_mask") and values is not None)
        if is_per_row and len(values) != num_rows:
            raise RolloutError(
                f"rollout_func returned {len(values)} entries in {name!r} for {num_rows} prompts. Return one per "
                "prompt: prompts arrive already repeated, once for each completion."
            )
    return dict(output)


def _completion(fields: dict[str, Any], i: int, prompt: Prompt, sample: int, ends: set[int]) -> Completion:
    prompt_ids = [int(token) for token in fields["prompt_ids"][i]]
    token_ids = [int(token) for token in fields["completion_ids"][i]]
    if not prompt_ids:
        raise RolloutError(f"rollout_func returned an empty prompt_ids[{i}]; the first token needs a prompt.")
    masks = fields.get("env_mask")
    trained = None if masks is None else [bool(value) for value in masks[i]]
    _check_length("env_mask", i, trained, token_ids)
    logprobs = fields["logprobs"]
    sampler_logprobs = None if logprobs is None or logprobs[i] is None else [_logprob(value) for value in logprobs[i]]
    _check_length("logprobs", i, sampler_logprobs, token_ids)
    extras = {
        name: values[i] if isinstance(values, list) else values
        for name, values in fields.items()
        if name not in (*_REQUIRED, "env_mask")
    }
    return Completion(
        sample=sample,
        token_ids=token_ids,
        finish_reason="stop" if token_ids and token_ids[-1] in ends else "length",
        sampler_logprobs=sampler_logprobs,
        trained=trained,
        prompt_token_ids=None if prompt_ids == prompt.token_ids else prompt_ids,
        extras=extras,
    )


def _check_length(name: str, i: int, values: list[Any] | None, token_ids: list[int]) -> None:
    if values is not None and len(values) != len(token_ids):
        raise RolloutError(
            f"rollout_func returned {len(values)} values in {name}[{i}] for {len(token_ids)} tokens in "
            f"completion_ids[{i}]. Return one per token."
        )


def _logprob(value: Any) -> float:
    """vLLM gives None for a NaN, and a list of the top-k per token, the sampled one first."""
    chosen = value[0] if isinstance(value, (list, tuple)) else value
    return math.nan if chosen is None else float(chosen)
