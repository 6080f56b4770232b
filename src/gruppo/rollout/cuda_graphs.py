"""CudaGraphs: records what a function does on a CUDA device and replays it without Python.

Only the recording: what is recorded must read and write tensors that stay in place, and ask the host for nothing
(`static_decode` sees to that). Graphs that live at the same time share one memory pool, which is safe because the
outputs of a replay are used up before the next replay, whichever that is.

Where recording fails, for whatever reason, there is one warning, and no further attempt in this process: steps then
run as they would without graphs.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch

from gruppo.errors import RolloutError, boundary

if TYPE_CHECKING:
    from gruppo.rollout.static_decode import Record, StepOutput

logger = logging.getLogger(__name__)

_WARM_UPS: Final = 2
"""Runs before recording: libraries make their handles and workspaces in the first ones."""


class CudaGraphs:
    """Makes recorders. Knows whether recording has failed here before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.has_failed = False
        """Whether a recording failed; there is no further one then."""

    def recorder(self) -> Record:
        """For one rollout."""
        context: list[tuple[Any, torch.cuda.Stream]] = []
        alive: weakref.WeakSet[Callable[[], StepOutput]] = weakref.WeakSet()

        def record(step: Callable[[], StepOutput]) -> Callable[[], StepOutput] | None:
            if self.has_failed:
                return None
            try:
                with boundary(RolloutError, "recording a CUDA graph"), torch.cuda.device(self._device):
                    if not alive:
                        # torch refuses a pool that had graphs and has none any more.
                        context[:] = [(torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device))]
                    replay = _record(step, *context[0])
                    alive.add(replay)
                    return replay
            except RolloutError as error:
                self.has_failed = True
                logger.warning("%s; decoding steps run one by one, which is slower.", error)
                return None

        return record


def _record(step: Callable[[], StepOutput], pool: Any, stream: torch.cuda.Stream) -> Callable[[], StepOutput]:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A capture that cannot be ended leaves its stream the current one: the outer context puts that right. Other threads
    # (reward functions, the recorder of the run) may use the device meanwhile.
    with (
        torch.cuda.stream(torch.cuda.current_stream()),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        output = step()

    def replay() -> StepOutput:
        graph.replay()
        return output

    return replay
