"""Tape: a stand-in for a CUDA graph. It records the operations of a function, and plays them again on the same tensors.

As with a graph, Python does not run again: every number and shape is as it was when recorded, and only what lies in
the tensors counts. It fails where a graph would: when an operation's shape or value for the host depends on data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gruppo.rollout.choose import Choice
from gruppo.rollout.static_decode import StepOutput

_ASKS_FOR_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not _ASKS_FOR_DATA & set(func.tags), f"{func} asks for data"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.inference_mode()
    def play(self) -> dict[int, torch.Tensor]:
        """The tensors of this run, by the id of those of the recording."""
        now: dict[int, torch.Tensor] = {}

        def current(tensor: torch.Tensor) -> torch.Tensor:
            return now.get(id(tensor), tensor)

        for func, args, kwargs, result in self.calls:
            fresh = func(*tree_map_only(torch.Tensor, current, args), **tree_map_only(torch.Tensor, current, kwargs))
            pairs = zip(result, fresh, strict=True) if isinstance(result, tuple | list) else [(result, fresh)]
            now |= {id(old): new for old, new in pairs if isinstance(old, torch.Tensor)}
        return now


class Tapes:
    """In the place of `CudaGraphs`."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_played = 0

    def recorder(self) -> Callable[[Callable[[], StepOutput]], Callable[[], StepOutput]]:
        return self._record

    def _record(self, step: Callable[[], StepOutput]) -> Callable[[], StepOutput]:
        self.num_recorded += 1
        step()
        tape = Tape()
        with tape:
            output = step()

        def replay() -> StepOutput:
            self.num_played += 1
            now = tape.play()
            choice = output.choice
            if choice is not None:
                tokens, logprobs = now[id(choice.tokens_N)], now[id(choice.logprobs_N)]
                choice = Choice(tokens, logprobs, logprobs, None)
            return StepOutput(now[id(output.logits_NV)], choice)

        return replay
