"""The forwards of a run: the policy's log-probs live, without gradient, and the reference's. All at one temperature.

Binds a model, its reference and the run's settings to `policy.logprobs`, so that learner and evaluation ask for what
they mean. Modes are set here: dropout acts in `live` alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gruppo.policy.logprobs import Forward, LogprobFunction
from gruppo.types import TrainBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from gruppo.policy.reference import Reference


class Forwards:
    """`live`, `frozen` and `reference`, for this rank's rows. `logprobs` does them, the reference its own."""

    def __init__(
        self,
        policy: torch.nn.Module,
        reference: Reference | None,
        *,
        logprobs: LogprobFunction,
        temperature: float,
        pad_token_id: int,
        has_aux_loss: bool,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._policy, self._reference, self._logprobs = policy, reference, logprobs
        self._temperature, self._pad_token_id = temperature, pad_token_id
        self._has_aux_loss, self._autocast = has_aux_loss, autocast

    @property
    def has_reference(self) -> bool:
        return self._reference is not None

    def live(self, batch: TrainBatch, *, entropy_needs_grad: bool) -> Forward:
        """With gradient, in training mode."""
        self._policy.train()
        with self._autocast():
            return self._logprobs(
                self._policy,
                batch,
                temperature=self._temperature,
                pad_token_id=self._pad_token_id,
                with_entropy=True,
                entropy_needs_grad=entropy_needs_grad,
                with_aux_loss=self._has_aux_loss,
            )

    @torch.no_grad()
    def frozen(self, batch: TrainBatch) -> Forward:
        """The live policy without gradient and without dropout; its mode is restored."""
        was_training = self._policy.training
        self._policy.eval()
        with self._autocast():
            forward = self._logprobs(
                self._policy,
                batch,
                temperature=self._temperature,
                pad_token_id=self._pad_token_id,
                with_entropy=True,
            )
        self._policy.train(was_training)
        return forward

    @torch.no_grad()
    def reference(self, batch: TrainBatch) -> Tensor:
        """The KL reference's log-probs (N, T), of a run that has one."""
        assert self._reference is not None
        with self._autocast():
            return self._reference.logprobs(batch, temperature=self._temperature, pad_token_id=self._pad_token_id)
