"""The process that a run starts in: seed, log level, device, mixed precision, and what its launcher asked for.

Not here: what other ranks have (`distributed`), and the parts of a run (`wiring`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed

from gruppo.errors import ConfigError
from gruppo.settings import precision

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig

SHARDED: Final = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}
"""What accelerate's launcher says to each process -> what it means."""


def start(config: GRPOConfig) -> tuple[Any, list[str]]:
    """Set seed, log level, device and mixed precision.

    Returns accelerate's Accelerator, and lines for the user. Raises ConfigError for a launch that shards the model.
    """
    refuse_sharding(os.environ)
    set_seed(config.seed)
    if config.log_level != "passive":
        logging.getLogger("gruppo").setLevel(config.log_level.upper())
    if config.tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
    mixed_precision, note = precision(config)
    # accelerate keeps its state for the whole process and refuses other settings: in a notebook the next trainer
    # must be able to choose anew. The process group itself lives on.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=config.use_cpu)
    return accelerator, [line for line in (note, launcher_note(os.environ)) if line is not None]


def launcher_note(environment: Mapping[str, str]) -> str | None:
    """`accelerate launch --cpu --num_processes 2` runs one process where MPI is not set up, and does not say so."""
    is_asked_for_several = "ACCELERATE_USE_CPU" in environment and "MASTER_PORT" in environment
    if not is_asked_for_several or "WORLD_SIZE" in environment or "PMI_SIZE" in environment:
        return None
    if any(name.startswith(("OMPI_", "MV2_", "MPI_")) for name in environment):
        return None
    return (
        "processes   1, whatever --num_processes says: accelerate's --cpu needs MPI to start more. For several on the "
        "CPU, set use_cpu=True and launch with --multi_gpu instead of --cpu, or with torchrun"
    )


def refuse_sharding(environment: Mapping[str, str]) -> None:
    """Without this, FSDP would train whole copies in silence, and DeepSpeed would fail at the first step."""
    asked = [what for name, what in SHARDED.items() if environment.get(name, "").lower() in ("true", "1")]
    if asked:
        raise ConfigError(
            f"This process was launched for {' and '.join(asked)}, which is not there yet: each process holds the "
            "whole model. Choose several GPUs without it in `accelerate config`, or start with torchrun. LoRA "
            "(peft_config), optim='adamw_8bit' and gradient_checkpointing=True save memory."
        )
