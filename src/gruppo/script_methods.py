"""What scripts use of TRL's trainer besides `train`: its state, evaluation, logging, callbacks, and files at the end.

The part of GRPOTrainer that runs no step of the loop; that is in `trainer.py`. What is done here is in `milestones.py`
and in transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import trainer_pt_utils

if TYPE_CHECKING:
    from gruppo.callbacks import Callback
    from gruppo.config import GRPOConfig
    from gruppo.milestones import Milestones
    from gruppo.wiring import Parts


class ScriptMethods:
    """Properties and methods by TRL's names, over these fields of GRPOTrainer."""

    if TYPE_CHECKING:
        args: GRPOConfig
        _parts: Parts
        _milestones: Milestones

    @property
    def state(self) -> Any:
        """transformers' TrainerState: `global_step`, `epoch`, `log_history`, ..."""
        return self._milestones.callbacks.state

    @property
    def control(self) -> Any:
        """transformers' TrainerControl."""
        return self._milestones.callbacks.control

    @property
    def callback_handler(self) -> Any:
        return self._milestones.callbacks.handler

    @property
    def optimizer(self) -> Any:
        return self._parts.learner.optimizer

    @property
    def lr_scheduler(self) -> Any:
        return self._parts.learner.scheduler

    @property
    def num_generations(self) -> int:
        """The config's, as are the next two: to be read, not set."""
        return self.args.num_generations

    @property
    def beta(self) -> float:
        return self.args.beta

    @property
    def temperature(self) -> float:
        return self.args.temperature

    def evaluate(self, eval_dataset: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Sample, score and measure held-out prompts; returns metrics named `<prefix>_...` and logs them.

        Args:
            eval_dataset: a dataset, or a dict of named ones; by default the trainer's.
        """
        return self._milestones.evaluate(eval_dataset, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add a line to `state.log_history` and to every tracker. All lines come by here: override it to add values."""
        self._milestones.callbacks.on_log(logs)

    def save_model(self, output_dir: str | None = None) -> None:
        """Write model (or adapter) and tokenizer in Hugging Face's layout; by default into `output_dir`."""
        self._milestones.save_model(Path(output_dir or self.args.output_dir).expanduser())

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        *,
        model_name: str | None = None,
        dataset_name: str | Sequence[str] | None = None,
        tags: str | Sequence[str] | None = None,
    ) -> str:
        """Save the model, with a card as of `create_model_card`, and upload it; returns the repository's address."""
        self._milestones.card = self._milestones.card.with_given(model_name, dataset_name, tags)
        return self._milestones.push(commit_message)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | Sequence[str] | None = None,
        tags: str | Sequence[str] | None = None,
    ) -> None:
        """Write README.md into `output_dir`, with what the arguments add; later saves keep what they said.

        A README.md that gruppo did not write stays, with a warning.
        """
        milestones = self._milestones
        if not milestones.save_card(milestones.card.with_given(model_name, dataset_name, tags)):
            kept = Path(self.args.output_dir) / "README.md"
            text = f"{kept} was not written by gruppo, so it stays. Move it away for a model card."
            warnings.warn(text, UserWarning, stacklevel=2)

    def save_state(self) -> None:
        """Write `state` to trainer_state.json in `output_dir`."""
        if self.is_world_process_zero():
            self._milestones.callbacks.save_state(Path(self.args.output_dir) / "trainer_state.json")

    def log_metrics(self, split: str, metrics: dict[str, float]) -> None:
        """Print them, as transformers does."""
        trainer_pt_utils.log_metrics(self, split, metrics)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write <split>_results.json into `output_dir`, and add them to all_results.json there if `combined`."""
        trainer_pt_utils.save_metrics(self, split, metrics, combined)

    def add_callback(self, callback: Callback) -> None:
        self._milestones.callbacks.add_callback(callback)

    def pop_callback(self, callback: Callback) -> Any:
        return self._milestones.callbacks.pop_callback(callback)

    def remove_callback(self, callback: Callback) -> None:
        self._milestones.callbacks.remove_callback(callback)

    def is_world_process_zero(self) -> bool:
        return self._parts.world.is_main

    def is_local_process_zero(self) -> bool:
        return self.args.local_process_index == 0
