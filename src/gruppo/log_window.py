"""The metrics between two log lines: what each optimizer step said, and their mean under TRL's names.

One step's values go to the recorder, a window's to `state.log_history` and the trackers. Both are unweighted means of
what was recorded, as in TRL; `num_tokens` is the latest count. Nothing is written here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gruppo.metrics import Last, Max, Mean, Metric, Min, Stats, Sum

_KINDS: dict[str, type] = {kind.__name__: kind for kind in (Mean, Sum, Max, Min, Last)}


@dataclass(slots=True)
class LogWindow:
    """Fill with `add` and `add_loss`, close a step with `end_step`, take the line with `line`."""

    num_steps: int = 0
    loss: float = 0.0
    """Sum over the window's steps."""
    total_loss: float = 0.0
    """Sum over all steps of the run, for `train_loss`."""
    grad_norm: float = math.nan
    learning_rate: float = math.nan
    stats: Stats = field(default_factory=Stats)
    step_stats: Stats = field(default_factory=Stats)
    step_loss: float = 0.0

    def add(self, metrics: Stats | Mapping[str, Metric]) -> None:
        self.step_stats.add(metrics)

    def add_loss(self, loss: float) -> None:
        """A part of the present step's loss."""
        self.step_loss += loss

    def end_step(self, *, grad_norm: float, learning_rate: float) -> dict[str, float]:
        """Close the optimizer step; returns its own values."""
        values = {"loss": self.step_loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
        values |= self.step_stats.values()
        self.stats.add(self.step_stats)
        self.num_steps += 1
        self.loss += self.step_loss
        self.total_loss += self.step_loss
        self.grad_norm, self.learning_rate = grad_norm, learning_rate
        self.step_stats, self.step_loss = Stats(), 0.0
        return values

    def line(self) -> dict[str, float]:
        """The log line of the steps since the last one; empties the window. NaN means: nothing to average."""
        logs = {
            "loss": self.loss / self.num_steps,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
        }
        return logs | self.leftovers()

    def leftovers(self) -> dict[str, float]:
        """Metrics of steps that no line has reported (the last line of a run takes them); empties the window."""
        values = self.stats.values()
        self.stats, self.loss, self.num_steps = Stats(), 0.0, 0
        return values

    def state(self) -> dict[str, object]:
        """As JSON values, for a checkpoint between two log lines."""
        metrics = {name: [type(m).__name__, *_numbers(m)] for name, m in self.stats.metrics.items()}
        return {"num_steps": self.num_steps, "loss": self.loss, "total_loss": self.total_loss, "metrics": metrics}

    @classmethod
    def from_state(cls, state: Mapping[str, object]) -> LogWindow:
        saved = state["metrics"]
        assert isinstance(saved, Mapping)
        metrics = {name: _KINDS[kind](*numbers) for name, (kind, *numbers) in saved.items()}
        return cls(
            num_steps=int(state["num_steps"]),  # type: ignore[call-overload]
            loss=float(state["loss"]),  # type: ignore[arg-type]
            total_loss=float(state["total_loss"]),  # type: ignore[arg-type]
            stats=Stats(metrics),
        )


def _numbers(metric: Metric) -> list[float]:
    slots: tuple[str, ...] = type(metric).__slots__  # type: ignore[attr-defined]
    return [float(getattr(metric, name)) for name in slots]
