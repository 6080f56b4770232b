"""TRL's and TrainingArguments' names that are not fields of GRPOConfig: translated, needless, or refused, and why.

Together with the fields themselves (all honoured) the table covers every field of TRL 1.16's GRPOConfig, and the
names that scripts of 2025 still use. A refused name passes in silence with the value that asks for nothing: TRL's
default. This is not where values of gruppo's own fields are checked; that is `config_checks.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True, slots=True)
class Renamed:
    """The same thing under another name."""

    to: str


@dataclass(frozen=True, slots=True)
class Needless:
    """Accepted with any value, because what it asks for is always so, or plays no part here. A warning says why."""

    reason: str
    silent_values: tuple[Any, ...] = (None, False)
    """With these there is nothing to say."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Not honoured: only a value that asks for nothing passes."""

    reason: str
    instead: str
    silent_values: tuple[Any, ...] = (None, False)
    """TRL's default, and others that ask for nothing."""


Entry = Renamed | Needless | Refused

_VLLM = "sampling with vLLM is not there yet"
_NO_VLLM = "leave it out; completions are sampled in this process (rollout_engine)"
_BATCHING = "continuous batching through transformers is not there yet"
_TOOLS = "tools and multi-turn rollouts are not there yet"
_LAUNCH = "configure it with `accelerate config` and start with `accelerate launch`"
_WHOLE = "leave it out: each process holds the whole model (docs/memory.md says what saves memory)"
_OWN_LOOP = "gruppo has its own training loop, which has no such step"
_LEAVE = "leave it out"
_PROMPTS_ONLY = "prompts are short rows of token ids; there is nothing that worker processes could speed up"


def _vllm(*defaults: Any) -> Refused:
    return Refused(_VLLM, _NO_VLLM, defaults or (None, False))


MEANT: dict[str, str] = {
    "batch_size": "per_device_train_batch_size",
    "cliprange": "epsilon",
    "epochs": "num_train_epochs",
    "group_size": "num_generations",
    "init_kl_coef": "beta",
    "kl_coef": "beta",
    "lr": "learning_rate",
    "max_length": "max_completion_length",
    "max_new_tokens": "max_completion_length",
}
"""Names of `generate` and of other trainers -> the field to propose."""

TABLE: dict[str, Entry] = {
    # -- other names for our fields
    "activation_checkpointing": Renamed("gradient_checkpointing"),
    "activation_checkpointing_kwargs": Renamed("gradient_checkpointing_kwargs"),
    "evaluation_strategy": Renamed("eval_strategy"),
    "no_cuda": Renamed("use_cpu"),
    "per_gpu_eval_batch_size": Renamed("per_device_eval_batch_size"),
    "per_gpu_train_batch_size": Renamed("per_device_train_batch_size"),
    "push_to_hub_model_id": Renamed("hub_model_id"),
    "push_to_hub_token": Renamed("hub_token"),
    "vllm_importance_sampling_cap": Renamed("vllm_importance_sampling_clip_max"),
    "wandb_log_unique_prompts": Renamed("log_unique_prompts"),
    "warmup_ratio": Renamed("warmup_steps"),
    # -- always so, or of no consequence
    "average_tokens_across_devices": Needless("tokens are always counted over all devices", (None, True)),
    "dataloader_drop_last": Needless("a generation round is always full; evaluation uses every prompt"),
    "dataloader_in_order": Needless("the data order is a function of the seed", (None, True)),
    "dataloader_multiprocessing_context": Needless(_PROMPTS_ONLY),
    "dataloader_num_workers": Needless(_PROMPTS_ONLY, (None, 0)),
    "dataloader_persistent_workers": Needless(_PROMPTS_ONLY),
    "dataloader_pin_memory": Needless(_PROMPTS_ONLY, (None, True, False)),
    "dataloader_prefetch_factor": Needless(_PROMPTS_ONLY),
    "do_eval": Needless("evaluation follows eval_strategy", (None, False, True)),
    "do_predict": Needless("it is a switch for scripts; no trainer reads it", (None, False, True)),
    "do_train": Needless("it is a switch for scripts; no trainer reads it", (None, False, True)),
    "ds3_gather_for_generation": Needless("it belongs to DeepSpeed ZeRO-3, which is not in use", (None, True, False)),
    "include_num_input_tokens_seen": Needless("num_tokens is logged in every run", (None, False, "no")),
    "include_tokens_per_second": Needless("tokens per second are logged in every run"),
    "local_rank": Needless("the launcher's environment says it", (None, -1, *range(64))),
    "log_multimodal": Needless("completions are text", (None, True, False)),
    "log_on_each_node": Needless(
        "one process of the whole run shows and records it, the first of the first node", (None, True, False)
    ),
    "logging_nan_inf_filter": Needless("NaN and infinite losses are always shown", (None, True, False)),
    "overwrite_output_dir": Needless("a run continues only when resume_from_checkpoint says so", (None, False, True)),
    "restore_callback_states_from_checkpoint": Needless(
        "callbacks that export a state get it back in every resume", (None, False, True)
    ),
    "save_safetensors": Needless("weights are always saved as safetensors", (None, True)),
    "skip_memory_metrics": Needless("memory is measured without slowing the run", (None, True)),
    "use_liger_loss": Needless("log-probabilities are always computed in chunks of the vocabulary"),
    "vllm_device": Needless("there is no vLLM process to place", (None, "auto")),
    # -- another sampler
    "use_transformers_continuous_batching": Refused(_BATCHING, _LEAVE),
    "use_transformers_paged": Refused(_BATCHING, _LEAVE),
    "transformers_continuous_batching_config": Refused(_BATCHING, _LEAVE),
    "use_vllm": _vllm(),
    "vllm_dtype": _vllm(None, "auto"),
    "vllm_enable_prefix_caching": _vllm(None, False, True),
    "vllm_enable_sleep_mode": _vllm(),
    "vllm_gpu_memory_utilization": _vllm(None, 0.3),
    "vllm_group_port": _vllm(None, 51216),
    "vllm_guided_decoding_regex": _vllm(),
    "vllm_max_model_len": _vllm(),
    "vllm_max_model_length": _vllm(),
    "vllm_mode": _vllm(None, "colocate", "server"),
    "vllm_model_impl": _vllm(None, "vllm"),
    "vllm_server_base_url": _vllm(),
    "vllm_server_host": _vllm(None, "0.0.0.0"),
    "vllm_server_port": _vllm(None, 8000),
    "vllm_server_timeout": _vllm(None, 240.0, 120.0),
    "vllm_structured_outputs_regex": _vllm(),
    "vllm_tensor_parallel_size": _vllm(None, 1),
    "max_tool_calling_iterations": Refused(_TOOLS, _LEAVE),
    # -- distribution
    "accelerator_config": Refused("gruppo sets accelerate up itself", _LAUNCH),
    "ddp_backend": Refused("the launcher chooses the backend", _LAUNCH),
    "ddp_broadcast_buffers": Refused("accelerate wraps the model", _LAUNCH),
    "ddp_bucket_cap_mb": Refused("accelerate wraps the model", _LAUNCH, (None, 25)),
    "ddp_find_unused_parameters": Refused("accelerate wraps the model", _LAUNCH),
    "ddp_static_graph": Refused("accelerate wraps the model", _LAUNCH),
    "ddp_timeout": Refused("the launcher sets the process group up", _LAUNCH, (None, 1800)),
    "deepspeed": Refused("DeepSpeed is not there yet", _WHOLE),
    "fsdp": Refused("FSDP is not there yet", _WHOLE, (None, False, "", [])),
    "fsdp_config": Refused("FSDP is not there yet", _WHOLE, (None, {})),
    "log_level_replica": Refused("log_level holds on every process", _LEAVE, (None, "warning")),
    "parallelism_config": Refused("sequence and context parallelism are not there yet", _LEAVE),
    "save_on_each_node": Refused("only the first process writes", "put output_dir on a shared disk"),
    # -- precision and speed
    "auto_find_batch_size": Refused(
        "shrinking the batch would break prompt groups", "set max_tokens_per_forward, which never changes the loss"
    ),
    "bf16_full_eval": Refused("evaluation runs in the precision of training", "set bf16"),
    "fp16_full_eval": Refused("evaluation runs in the precision of training", "set fp16"),
    "liger_kernel_config": Refused("Liger kernels are not there yet", _LEAVE),
    "torch_compile": Refused("compiling the model is not there yet", _LEAVE),
    "torch_compile_backend": Refused("compiling the model is not there yet", _LEAVE),
    "torch_compile_mode": Refused("compiling the model is not there yet", _LEAVE),
    "torch_empty_cache_steps": Refused(_OWN_LOOP, "call torch.cuda.empty_cache() in a callback's on_step_end"),
    "use_cache": Refused("generation always uses the cache, training never does", _LEAVE),
    "use_liger_kernel": Refused("Liger kernels are not there yet", "set model_init_kwargs={'use_kernels': True}"),
    # -- objective
    "label_smoothing_factor": Refused("a policy gradient has no labels to smooth", _LEAVE, (None, 0)),
    "neftune_noise_alpha": Refused("noise on embeddings would make the importance ratio meaningless", _LEAVE),
    # -- data
    "group_by_length": Refused(_OWN_LOOP, _LEAVE),
    "ignore_data_skip": Refused("the data position is part of the checkpoint and costs nothing to restore", _LEAVE),
    "label_names": Refused("prompts have no labels", "reward functions receive every column"),
    "length_column_name": Refused(_OWN_LOOP, _LEAVE, (None, "length")),
    "train_sampling_strategy": Refused("order is random or sequential", "set shuffle_dataset", (None, "random")),
    # -- evaluation
    "batch_eval_metrics": Refused(_OWN_LOOP, "use compute_metrics"),
    "eval_accumulation_steps": Refused("evaluation keeps no logits", _LEAVE),
    "eval_do_concat_batches": Refused("evaluation keeps no logits", _LEAVE, (None, True)),
    "eval_use_gather_object": Refused(_OWN_LOOP, _LEAVE),
    "include_for_metrics": Refused(_OWN_LOOP, "use compute_metrics", (None, [])),
    "include_inputs_for_metrics": Refused(_OWN_LOOP, "use compute_metrics"),
    "prediction_loss_only": Refused("rewards are what evaluation is for", _LEAVE),
    # -- the rest
    "debug": Refused(_OWN_LOOP, _LEAVE, (None, "", [])),
    "enable_jit_checkpoint": Refused("saving on a signal is not there yet", "set a smaller save_steps"),
    "full_determinism": Refused(
        "it changes global settings of PyTorch", "call transformers.enable_full_determinism(seed) in your script"
    ),
    "hub_always_push": Refused("uploads wait for the one before", _LEAVE),
    "hub_revision": Refused("uploads go to the main branch", "create the branch from it afterwards"),
}
"""Name -> what becomes of it, for every name of TRL's (and 2025's) that is not a field of GRPOConfig."""


def translate(
    given: Mapping[str, Any], fields: Collection[str], table: Mapping[str, Entry] = TABLE
) -> tuple[dict[str, Any], dict[str, str]]:
    """Split what was given into values for `fields` and problems by name (one sentence each).

    Names that need nothing done give a UserWarning, unless their value asks for nothing.
    """
    values = {name: value for name, value in given.items() if name in fields}
    problems: dict[str, str] = {}
    for name, value in given.items():
        if name in fields:
            continue
        match table.get(name):
            case Renamed(to=new):
                problem = _rename(name, new, value, values)
            case Needless(reason=reason, silent_values=silent):
                problem = ""
                if not _is_one_of(value, silent):
                    warnings.warn(f"{name}={value!r} changes nothing: {reason}.", UserWarning, stacklevel=3)
            case Refused(reason=reason, instead=instead, silent_values=silent):
                passes = _is_one_of(value, silent)
                problem = "" if passes else f"{name}={value!r} is not supported: {reason}. Instead, {instead}."
            case None:
                problem = unknown_name(name, [*fields, *table])
        if problem:
            problems[name] = problem
    return values, problems


def unknown_name(name: str, known: Collection[str], what: str = "GRPOConfig has no field") -> str:
    """'… has no field x. Did you mean y?'"""
    near = [MEANT[name]] if MEANT.get(name) in known else get_close_matches(name, known, n=1, cutoff=0.6)
    return f"{what} {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")


def _rename(old: str, new: str, value: Any, values: dict[str, Any]) -> str:
    """Put `value` into `values` under its new name; "" or what is wrong with that."""
    if value is None or (old == "warmup_ratio" and float(value) == 0):
        return ""
    if old == "warmup_ratio" and not 0 < float(value) < 1:
        return f"warmup_ratio={value!r} must be a share of all steps, at least 0 and below 1; or set warmup_steps."
    if new in values and values[new] != value:
        return f"{old}={value!r} is another name for {new}={values[new]!r}. Set {new} only."
    values[new] = value
    return ""


def _is_one_of(value: Any, silent: tuple[Any, ...]) -> bool:
    """Text from a command line or a YAML file counts as what it spells."""
    return value in silent or (isinstance(value, str) and value.lower() in {str(item).lower() for item in silent})
