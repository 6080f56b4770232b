"""What follows from the fields of GRPOConfig alone, or from the launcher's environment: transformers' names, and ours.

Not here: the fields (`config.py`), what follows from them for the batch (`plan.py`), and how a config is written out
(`config_data.py`).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from typing import TYPE_CHECKING, Any, ClassVar, Self


class DerivedValues:
    """The part of GRPOConfig that is computed at each look, from these fields of it. Nothing is kept."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
        bf16: bool | None
        data_seed: int | None
        epsilon: float
        epsilon_high: float | None
        eval_steps: float | None
        eval_strategy: str
        fp16: bool
        greater_is_better: bool | None
        log_level: str
        logging_steps: float
        metric_for_best_model: str | None
        pad_to_multiple_of: int | str | None
        per_device_eval_batch_size: int
        per_device_train_batch_size: int
        seed: int
        warmup_steps: float

    @property
    def world_size(self) -> int:
        """Processes of this run, as the launcher says."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def process_index(self) -> int:
        return int(os.environ.get("RANK", "0"))

    @property
    def local_process_index(self) -> int:
        return int(os.environ.get("LOCAL_RANK", "0"))

    @property
    def local_rank(self) -> int:
        """`local_process_index`, or -1 where no launcher has set it, as in transformers."""
        return int(os.environ.get("LOCAL_RANK", "-1"))

    @property
    def should_save(self) -> bool:
        """True on the process that writes files."""
        return self.process_index == 0

    @property
    def should_log(self) -> bool:
        return self.local_process_index == 0

    @property
    def do_eval(self) -> bool:
        return self.eval_strategy != "no"

    @property
    def train_batch_size(self) -> int:
        return self.per_device_train_batch_size

    @property
    def eval_batch_size(self) -> int:
        return self.per_device_eval_batch_size

    @property
    def n_gpu(self) -> int:
        """Devices of this process: one process drives one device."""
        return 1

    @property
    def uses_bf16(self) -> bool:
        """What `bf16=None` means: yes unless fp16 is chosen. Whether the device can is the trainer's to find out."""
        return not self.fp16 if self.bf16 is None else self.bf16

    @property
    def epsilon_upper(self) -> float:
        """`epsilon_high`, or `epsilon`."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def order_seed(self) -> int:
        """`data_seed`, or `seed`."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def pad_multiple(self) -> int | None:
        """`pad_to_multiple_of` as a number; None: no padding beyond the longest row."""
        return self.pad_to_multiple_of if isinstance(self.pad_to_multiple_of, int) else None

    @property
    def best_metric(self) -> str:
        """`metric_for_best_model` without the prefix eval_, or reward."""
        return (self.metric_for_best_model or "reward").removeprefix("eval_")

    @property
    def is_greater_better(self) -> bool:
        return not self.best_metric.endswith("loss") if self.greater_is_better is None else self.greater_is_better

    def get_process_log_level(self) -> int:
        """`log_level` as a number of `logging`; `passive` is what the program has set for gruppo."""
        if self.log_level == "passive":
            return logging.getLogger("gruppo").getEffectiveLevel()
        return logging.getLevelNamesMapping()[self.log_level.upper()]

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Warm-up in optimizer steps, of a run of `num_training_steps`."""
        share = self.warmup_steps
        return int(share) if share >= 1 else math.ceil(num_training_steps * share)

    def for_callbacks(self) -> Self:
        """A copy in which what transformers' callbacks read as plain values is filled in.

        `eval_steps`, `metric_for_best_model` and `greater_is_better` hold their derived values there.
        """
        return dataclasses.replace(
            self,
            eval_steps=self.logging_steps if self.eval_steps is None else self.eval_steps,
            metric_for_best_model=self.best_metric,
            greater_is_better=self.is_greater_better,
        )
