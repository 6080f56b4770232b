"""From settings to what a script would pass to GRPOTrainer: datasets, rewards, adapter, model arguments.

Imports torch and transformers, so it is imported late.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gruppo.cli.run_options import RunOptions
from gruppo.cli.settings import Settings
from gruppo.config import GRPOConfig
from gruppo.data.load import is_one_set, load_prompts
from gruppo.errors import DataError, ModelError
from gruppo.rewards import resolve_reward
from gruppo.rewards.protocol import RewardSpec


def training_config(settings: Settings) -> GRPOConfig:
    """The config with the model options of the command line among its `model_init_kwargs` (which come first)."""
    options = settings.options
    chosen = {
        "revision": options.model_revision,
        "dtype": options.dtype,
        "attn_implementation": options.attn_implementation,
    }
    kwargs = {name: value for name, value in chosen.items() if value is not None}
    kwargs |= settings.config.model_init_kwargs or {}
    return dataclasses.replace(settings.config, model_init_kwargs=kwargs or None)


def load_train_dataset(options: RunOptions) -> Any:
    """The dataset to train on. Raises DataError."""
    return load_prompts(
        options.dataset,
        split=options.dataset_split,
        name=options.dataset_config,
        streaming=options.dataset_streaming,
    )


def load_eval_dataset(settings: Settings) -> Any:
    """The dataset to evaluate on, or None if the config asks for no evaluation. Raises DataError."""
    options, config = settings.options, settings.config
    if config.eval_strategy == "no" and not config.eval_on_start:
        return None
    split, is_cut = options.eval_split, "[" in options.dataset_split and "[" in options.eval_split
    if options.eval_dataset is None and is_one_set(options.dataset) and not is_cut:
        raise DataError(
            f"eval_strategy={config.eval_strategy!r} needs held-out prompts, and dataset={options.dataset!r} is a "
            "single file or Dataset: it would be evaluated on the rows it is trained on. Set eval_dataset to another "
            "one, or cut this one: dataset_split='train[:90%]' and eval_split='train[90%:]'."
        )
    if options.eval_dataset is not None and is_one_set(options.eval_dataset) and "eval_split" not in settings.origins:
        split = "train"  # a set named for evaluation is taken whole: eval_split's default is for sets with splits
    source = options.eval_dataset or options.dataset
    # A configuration belongs to the dataset that it was given for.
    name = options.dataset_config if options.eval_dataset is None else None
    return load_prompts(source, split=split, name=name, streaming=options.dataset_streaming)


def hub_dataset(options: RunOptions) -> str | None:
    """The dataset's id on the hub; None if it is a file or folder."""
    return None if Path(options.dataset).expanduser().exists() else options.dataset


def resolve_rewards(options: RunOptions) -> list[RewardSpec]:
    """Reward functions, or ids of reward models. Raises RewardError."""
    return [resolve_reward(spec) for spec in options.reward_funcs]


def adapter(options: RunOptions) -> Any:
    """The LoRA configuration, or None. Raises ModelError if peft is not installed."""
    if not options.has_adapter:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ModelError("A LoRA adapter needs peft. Install it: pip install 'gruppo[peft]'.") from error
    rank = options.adapter_rank
    return LoraConfig(
        r=rank,
        lora_alpha=options.lora_alpha or 2 * rank,
        lora_dropout=options.lora_dropout,
        target_modules=options.adapter_modules,
        task_type="CAUSAL_LM",
    )
