"""The KL reference: the policy as it was at the start, as cheaply as the kind of policy allows.

    full fine-tuning                a frozen copy of the policy in memory
    fresh adapter (peft_config)     the policy with its adapter switched off
    adapter that came trained       the policy with a frozen copy of that adapter

The copy is made from the policy itself, not loaded again by name as TRL does: so a policy that was changed in
memory (merged adapter, resized vocabulary, own initialisation) is compared with itself.

Make the reference before the first optimizer step, and before a checkpoint is loaded into the policy.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from gruppo.errors import ModelError
from gruppo.modes import eval_mode
from gruppo.policy.load import is_peft_model
from gruppo.policy.logprobs import LogprobFunction, token_logprobs
from gruppo.types import TrainBatch

REFERENCE_ADAPTER = "ref"
"""Name of the copied adapter inside the policy; leave it out when saving."""


class Reference(ABC):
    """Log-probs of a policy that does not train."""

    @abstractmethod
    def logprobs(self, batch: TrainBatch, *, temperature: float, pad_token_id: int) -> Tensor:
        """(N, T) without gradient, in eval mode; 0 where not trained. See `token_logprobs`."""

    @abstractmethod
    def sync(self, policy: nn.Module, alpha: float) -> None:
        """ref <- alpha * policy + (1 - alpha) * ref (`ref_model_mixup_alpha`).

        Raises:
            ModelError: a reference that shares its weights with the policy.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: the weights if they ever moved, else nothing."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave."""


def reference_for(
    policy: nn.Module, *, is_fresh_adapter: bool, logprobs: LogprobFunction = token_logprobs
) -> Reference:
    """The reference of this policy, as it is now.

    Args:
        policy: the loaded policy, in its final dtype.
        is_fresh_adapter: the adapter was made from `peft_config` in this run, so without it the policy is the start.
            Plays no part for models without adapter.
        logprobs: the forward to use.
    """
    if not is_peft_model(policy):
        return FrozenCopy(policy, logprobs)
    return AdapterOff(policy, logprobs) if is_fresh_adapter else AdapterCopy(policy, logprobs)


@final
class FrozenCopy(Reference):
    """A second model. `model` is public, so that it can be placed on the device of the policy."""

    def __init__(self, policy: nn.Module, logprobs: LogprobFunction) -> None:
        self.model = copy.deepcopy(policy).requires_grad_(False).eval()
        self._logprobs = logprobs
        self._has_moved = False

    @torch.no_grad()
    def logprobs(self, batch: TrainBatch, *, temperature: float, pad_token_id: int) -> Tensor:
        return self._logprobs(
            self.model, batch, temperature=temperature, pad_token_id=pad_token_id, with_entropy=False
        ).logprobs_NT

    @torch.no_grad()
    def sync(self, policy: nn.Module, alpha: float) -> None:
        for mine, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            mine.mul_(1.0 - alpha).add_(theirs.to(mine), alpha=alpha)
        self._has_moved = True

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict() if self._has_moved else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            self.model.load_state_dict(state)
            self._has_moved = True


class _InsidePolicy(Reference):
    """Shares the policy's weights, all but the adapter."""

    def __init__(self, policy: nn.Module, logprobs: LogprobFunction) -> None:
        self._policy: Any = policy
        self._logprobs = logprobs

    @abstractmethod
    def _as_reference(self) -> Any:
        """A context in which the policy is its own reference."""

    @torch.no_grad()
    def logprobs(self, batch: TrainBatch, *, temperature: float, pad_token_id: int) -> Tensor:
        with eval_mode(self._policy), self._as_reference():
            return self._logprobs(
                self._policy, batch, temperature=temperature, pad_token_id=pad_token_id, with_entropy=False
            ).logprobs_NT

    def sync(self, policy: nn.Module, alpha: float) -> None:
        raise ModelError(
            "sync_ref_model=True cannot be used with an adapter: the reference shares the policy's weights, so there "
            "is no second model to move. Set sync_ref_model=False, or train the full model."
        )

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        assert not state, "a reference inside the policy has no state of its own"


@final
class AdapterOff(_InsidePolicy):
    """The policy with its adapter switched off."""

    def _as_reference(self) -> Any:
        return self._policy.disable_adapter()

    def state_dict(self) -> dict[str, Tensor]:
        return {}


@final
class AdapterCopy(_InsidePolicy):
    """The policy with a frozen copy of the adapter it came with.

    Raises:
        ModelError: the policy has an adapter of the copy's name already.
    """

    def __init__(self, policy: nn.Module, logprobs: LogprobFunction) -> None:
        super().__init__(policy, logprobs)
        model = self._policy
        if REFERENCE_ADAPTER in model.peft_config:
            raise ModelError(
                f"The model has an adapter named {REFERENCE_ADAPTER!r}, which is the name of the KL reference. "
                "Load it under another name, or delete it: model.delete_adapter('ref')."
            )
        self._active = model.active_adapter
        with _same_trainable(model):
            model.add_adapter(REFERENCE_ADAPTER, copy.deepcopy(model.peft_config[self._active]))
            for name, parameter in list(model.named_parameters()):
                if f".{self._active}." in name:
                    twin = model.get_parameter(name.replace(f".{self._active}.", f".{REFERENCE_ADAPTER}."))
                    twin.data = parameter.data.clone()
        for name, parameter in model.named_parameters():
            if f".{REFERENCE_ADAPTER}." in name:
                parameter.requires_grad_(False)

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        # set_adapter makes what it activates trainable and freezes the rest.
        with _same_trainable(self._policy):
            self._policy.set_adapter(REFERENCE_ADAPTER)
            try:
                yield
            finally:
                self._policy.set_adapter(self._active)

    def state_dict(self) -> dict[str, Tensor]:
        return {}


@contextmanager
def _same_trainable(model: nn.Module) -> Iterator[None]:
    """Restores which parameters train."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
