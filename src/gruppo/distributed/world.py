"""World: this process among the others. Gather, reduce, broadcast; plain no-ops where there is one process.

It is a thin layer over `torch.distributed` as `accelerate` set it up: accelerate's own `gather` wants equal row
counts on every rank, and GRPO's rows are ragged. It starts no process group, and it does not touch models.

Every method here is collective: all ranks call it, in the same order, or all of them wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast, final

import torch
import torch.distributed as dist
from torch import Tensor

from gruppo.errors import ConfigError, GruppoError

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


@final
class World:
    """The ranks of one run, seen from one of them.

    Objects travel between the ranks of a run by `torch.distributed`'s object collectives; they are written to no
    file and read from none.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        """Raises ConfigError if there are several processes and no `torch.distributed` group among them."""
        self.rank: int = accelerator.process_index
        self.size: int = accelerator.num_processes
        self.device: torch.device = accelerator.device
        if self.size > 1 and not (dist.is_available() and dist.is_initialized()):
            raise ConfigError(
                f"accelerate reports {self.size} processes, but torch.distributed is not running among them. "
                "Start the script with `accelerate launch` or `torchrun`."
            )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather_rows(self, rows: Tensor) -> Tensor:
        """All ranks' rows, in rank order, on every rank. Row counts (dim 0) may differ; the other dims may not."""
        assert rows.dim() > 0, "a scalar has no rows: give it one with .reshape(1)"
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        counts[self.rank] = rows.shape[0]
        dist.all_reduce(counts)
        num_rows: list[int] = counts.tolist()
        # Collectives want one shape on all ranks; bool is not a type of every back end, bytes are.
        moved = rows.to(self.device, torch.uint8 if rows.dtype == torch.bool else rows.dtype)
        padded = moved.new_zeros(max(num_rows), *rows.shape[1:])
        padded[: rows.shape[0]] = moved
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        gathered = torch.cat([part[:count] for part, count in zip(parts, num_rows, strict=True)])
        return gathered.to(rows.device, rows.dtype)

    def gather_objects(self, items: list[Item]) -> list[Item]:
        """All ranks' lists, concatenated in rank order, on every rank."""
        if self.size == 1:
            return items
        parts: list[list[Item]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def gather_outcomes(self, work: Callable[[], Item], error_type: type[GruppoError], doing: str) -> list[Item]:
        """What `work()` gave on each rank, in rank order, on every rank. If it failed on one, all of them raise.

        For work that may fail on one rank alone: the others would wait for it in their next collective, for ever. It
        costs one exchange of objects. On one process an error of `work` passes as it is.

        Raises `error_type` on every rank, naming the ranks that failed and their causes.
        """
        if self.size == 1:
            return [work()]
        outcome: tuple[str | None, Item | None]
        cause: Exception | None = None
        try:  # the boundary between ranks: whatever it is, the others must hear of it
            outcome = (None, work())
        except Exception as error:
            cause, outcome = error, (_one_line(error), None)
        outcomes = self.gather_objects([outcome])
        failures = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(outcomes) if text is not None]
        if failures:
            raise error_type(
                f"{doing} failed on {len(failures)} of {self.size} ranks. {' | '.join(failures)}"
            ) from cause
        return cast("list[Item]", [item for _, item in outcomes])

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over ranks; returns it."""
        return self._reduce_(tensor, dist.ReduceOp.SUM) if self.size > 1 else tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its elementwise maximum over ranks; returns it."""
        return self._reduce_(tensor, dist.ReduceOp.MAX) if self.size > 1 else tensor

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Replace `tensor` by rank `source`'s; returns it."""
        if self.size > 1:
            moved = tensor.to(self.device).contiguous()
            dist.broadcast(moved, src=source)
            if moved is not tensor:
                tensor.copy_(moved)
        return tensor

    def broadcast_object(self, item: Item, source: int = 0) -> Item:
        """Rank `source`'s object, on every rank."""
        if self.size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def _reduce_(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        moved = tensor.to(self.device).contiguous()
        dist.all_reduce(moved, op=operation)
        if moved is not tensor:
            tensor.copy_(moved)
        return tensor


def _one_line(error: Exception) -> str:
    """Our own errors say it all; of others the kind belongs to the message."""
    return str(error) if isinstance(error, GruppoError) else f"{type(error).__name__}: {error}"
