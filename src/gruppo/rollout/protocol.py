"""RolloutEngine: what the trainer asks of anything that completes prompts.

It is one method that matters (`generate`) and three that keep house. It is not a base class: an engine is any
object with these methods, and `HFEngine` (rollout/hf.py) is the slow, obvious one that others are tested against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gruppo.types import Group, RolloutRequest, SamplingParams


class RolloutEngine(Protocol):
    """Completes prompts with the current policy.

    The contract of a `Completion` that comes back:

    - `token_ids` hold the EOS that ended it, and no padding;
    - `finish_reason` is `stop` after an EOS or a stop string, `length` at the token limit, else `abort`;
    - `sampler_logprobs` are of softmax(logits / temperature) before any truncation or penalty;
    - its random numbers depend on (seed, phase, step, prompt id, sample) alone (`rollout.sampler`);
    - `policy_version` is that of the last `load_weights`, `seconds` the wall time of the batch it was part of;
    - `text` is left empty: the trainer decodes.
    """

    def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> list[Group]:
        """One group per request. Groups may come back in any order; `Group.prompt` ties them to the request.

        Raises:
            RolloutError: a request that the engine cannot serve.
        """
        ...

    def load_weights(self, version: int) -> None:
        """From now on, sample with the policy of optimizer step `version`. Engines that share weights just note it."""
        ...

    def health(self) -> dict[str, Any]:
        """Flat facts for logs and the monitor: name, version, counts since the start."""
        ...

    def close(self) -> None:
        """Let go of memory and processes. Safe to call twice."""
        ...
