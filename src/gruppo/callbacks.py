"""The bridge to transformers' callbacks, and through them to every tracker that transformers supports.

`CallbackBridge` holds a real `TrainerState`, `TrainerControl` and `CallbackHandler`, so a callback written for
`transformers.Trainer` cannot tell the difference: the same events, in the same order, with the same keyword
arguments. When to log, evaluate and save is decided by transformers' own `DefaultFlowCallback`.

Not here: what is done at those moments (`trainer`), what is shown on the terminal (`monitor.progress`; transformers'
ProgressCallback and PrinterCallback are not added), and the records of the run (`monitor.recorder`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    ExportableState,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from gruppo.errors import CheckpointError, ConfigError, boundary
from gruppo.monitor.files import write_whole

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig
    from gruppo.distributed.world import World

Callback: TypeAlias = TrainerCallback | type[TrainerCallback]


@final
class CallbackBridge:
    """The callbacks of one trainer.

    Args:
        config: the user's; callbacks receive `config.for_callbacks()` as `args`.
        callbacks: instances or classes of `TrainerCallback`, called after the default and reporting ones.
        model, processing_class, optimizer, lr_scheduler: what callbacks receive by these names; see `attach`.

    Raises ConfigError for a callback of another type, or a tracker that transformers does not know.
    """

    def __init__(
        self,
        config: GRPOConfig,
        callbacks: Sequence[Callback] | None,
        *,
        model: Any,
        processing_class: Any,
        world: World,
        optimizer: Any = None,
        lr_scheduler: Any = None,
    ) -> None:
        self.config = config
        self.args = config.for_callbacks()
        self.control = TrainerControl()
        own = [DefaultFlowCallback, *reporting_callbacks(config), *(callbacks or [])]
        self.handler = CallbackHandler(
            [_checked(callback) for callback in own], model, processing_class, optimizer, lr_scheduler
        )
        self._is_world_zero = world.is_main
        self.state = self._new_state()

    # -- transformers.Trainer's methods

    def add_callback(self, callback: Callback) -> None:
        self.handler.add_callback(_checked(callback))

    def pop_callback(self, callback: Callback) -> TrainerCallback | None:
        """Remove and return the first match; None if there is none."""
        return self.handler.pop_callback(callback)

    def remove_callback(self, callback: Callback) -> None:
        self.handler.remove_callback(callback)

    # -- state

    def attach(self, **objects: Any) -> None:
        """Replace what callbacks receive: model, optimizer, lr_scheduler, train_dataloader, eval_dataloader."""
        for name, value in objects.items():
            assert name in vars(self.handler), f"callbacks receive no {name}"
            setattr(self.handler, name, value)

    def start(
        self,
        max_steps: int,
        num_train_epochs: int,
        *,
        resume_from: Path | None = None,
        restore_callbacks: bool = False,
    ) -> None:
        """A new state for a training of `max_steps`, or the one in the file `resume_from` (trainer_state.json).

        Intervals follow the present config, shares of all steps (values below 1) are turned into steps.
        `restore_callbacks` gives callbacks that export a state (early stopping, ...) the one they had.
        """
        self.state = self._new_state() if resume_from is None else self._loaded_state(resume_from)
        if restore_callbacks:
            self._restore_callbacks()
        self.state.compute_steps(self.args, max_steps)
        self.state.max_steps = max_steps
        self.state.num_train_epochs = num_train_epochs
        self.state.train_batch_size = self.config.per_device_train_batch_size

    def save_state(self, path: Path) -> None:
        """Write trainer_state.json, the callbacks' states included, as transformers does."""
        self.state.stateful_callbacks = self._callback_states()
        write_whole(path, lambda temporary: self.state.save_to_json(str(temporary)))

    def update_best(self, metrics: Mapping[str, float]) -> bool:
        """Remember the best value of `metric_for_best_model`; True if this evaluation set it.

        Call it after `on_evaluate`: early stopping compares with the best before. Raises ConfigError if the metric
        was asked for and is not among `metrics`.
        """
        name = f"eval_{self.config.best_metric}"
        if name not in metrics:
            if self._is_best_wanted():
                raise ConfigError(
                    f"metric_for_best_model={self.config.metric_for_best_model!r} means {name}, which the evaluation "
                    f"did not give. It gave: {', '.join(sorted(metrics))}. Set metric_for_best_model to one of these."
                )
            return False
        is_better = operator.gt if self.config.is_greater_better else operator.lt
        value, best = metrics[name], self.state.best_metric
        if math.isnan(value) or (best is not None and not is_better(value, best)):
            return False
        self.state.best_metric = value
        if self.config.save_strategy != "no":
            self.state.best_global_step = self.state.global_step
        return True

    # -- events, in transformers' order

    def on_init_end(self) -> None:
        self.control = self.handler.on_init_end(self.args, self.state, self.control)

    def on_train_begin(self) -> None:
        self.control = self.handler.on_train_begin(self.args, self.state, self.control)

    def on_epoch_begin(self) -> None:
        self.control = self.handler.on_epoch_begin(self.args, self.state, self.control)

    def on_step_begin(self) -> None:
        self.control = self.handler.on_step_begin(self.args, self.state, self.control)

    def on_substep_end(self) -> None:
        self.control = self.handler.on_substep_end(self.args, self.state, self.control)

    def on_pre_optimizer_step(self) -> None:
        self.control = self.handler.on_pre_optimizer_step(self.args, self.state, self.control)

    def on_optimizer_step(self) -> None:
        self.control = self.handler.on_optimizer_step(self.args, self.state, self.control)

    def on_step_end(self) -> None:
        """Call it with `state.global_step` and `state.epoch` already counted up."""
        self.control = self.handler.on_step_end(self.args, self.state, self.control)

    def on_epoch_end(self) -> None:
        self.control = self.handler.on_epoch_end(self.args, self.state, self.control)

    def on_log(self, logs: Mapping[str, Any]) -> None:
        """Add the epoch, keep the line in `state.log_history`, tell the callbacks. NaN becomes None, as in TRL."""
        values = {name: _nan_to_none(value) for name, value in logs.items()} | {"epoch": self.state.epoch}
        self.state.log_history.append({**values, "step": self.state.global_step})
        self.control = self.handler.on_log(self.args, self.state, self.control, values)

    def on_prediction_step(self) -> None:
        self.control = self.handler.on_prediction_step(self.args, self.state, self.control)

    def on_evaluate(self, metrics: Mapping[str, float]) -> None:
        self.control = self.handler.on_evaluate(self.args, self.state, self.control, dict(metrics))

    def on_save(self) -> None:
        self.control = self.handler.on_save(self.args, self.state, self.control)

    def on_push_begin(self) -> None:
        self.control = self.handler.on_push_begin(self.args, self.state, self.control)

    def on_train_end(self) -> None:
        self.control = self.handler.on_train_end(self.args, self.state, self.control)

    # -- inside

    def _new_state(self) -> TrainerState:
        return TrainerState(
            is_local_process_zero=self.config.local_process_index == 0,
            is_world_process_zero=self._is_world_zero,
            stateful_callbacks=self._stateful(),
        )

    def _loaded_state(self, path: Path) -> TrainerState:
        with boundary(CheckpointError, f"reading {path}"):
            state = TrainerState.load_from_json(str(path))
        state.is_local_process_zero = self.config.local_process_index == 0
        state.is_world_process_zero = self._is_world_zero
        return state

    def _stateful(self) -> list[ExportableState]:
        return [one for one in [*self.handler.callbacks, self.control] if isinstance(one, ExportableState)]

    def _callback_states(self) -> dict[str, Any]:
        """Class name -> state, or a list of states where a class is there more than once (transformers' layout)."""
        states: dict[str, list[Any]] = {}
        for callback in self._stateful():
            states.setdefault(type(callback).__name__, []).append(callback.state())
        return {name: found if len(found) > 1 else found[0] for name, found in states.items()}

    def _restore_callbacks(self) -> None:
        """Replace callbacks by copies with their saved state; the control too. Order is kept."""
        waiting = {
            name: list(saved) if isinstance(saved, list) else [saved]
            for name, saved in self.state.stateful_callbacks.items()
        }
        for place, callback in enumerate(self.handler.callbacks):
            saved = waiting.get(type(callback).__name__)
            if saved and isinstance(callback, ExportableState):
                self.handler.callbacks[place] = type(callback).from_state(saved.pop(0))
        if waiting.get("TrainerControl"):
            self.control = TrainerControl.from_state(waiting["TrainerControl"][0])

    def _is_best_wanted(self) -> bool:
        config = self.config
        return (
            config.metric_for_best_model is not None or config.load_best_model_at_end or config.save_strategy == "best"
        )


def reporting_callbacks(config: GRPOConfig) -> list[TrainerCallback]:
    """transformers' callbacks for `report_to`; TensorBoard's writes to `logging_dir` where that is set."""
    with boundary(ConfigError, f"report_to={config.report_to!r}"):  # some look for their tracker when they are made
        made = [kind() for kind in get_reporting_integration_callbacks(_tracker_names(config.report_to))]
    for callback in made:
        if config.logging_dir is not None and isinstance(callback, TensorBoardCallback):
            callback.logging_dir = config.logging_dir
    return made


def _tracker_names(report_to: str | Sequence[str] | None) -> str | list[str] | None:
    """transformers reads ["all"] and ["none"] as the words they hold."""
    if report_to is None or isinstance(report_to, str):
        return report_to
    return report_to[0] if list(report_to) in (["all"], ["none"]) else list(report_to)


def _checked(callback: Any) -> Any:
    """An instance; raises ConfigError for what is no callback."""
    instance = callback() if isinstance(callback, type) else callback
    if not isinstance(instance, TrainerCallback):
        raise ConfigError(
            f"callbacks contains {callback!r}, which is no transformers.TrainerCallback. "
            "Derive its class from TrainerCallback; functions that score completions go to reward_funcs."
        )
    return instance


def _nan_to_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
