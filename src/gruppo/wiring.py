"""From the user's arguments to the parts of a run, in the order that finds mistakes cheapest first.

    refused arguments, seed, device, callbacks -> tokenizer -> datasets -> batch plan -> rewards -> policy and the rest

Nothing runs here: the loop is in `trainer.py`. Seed, device and precision are in `launch.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset

from gruppo.callbacks import Callback, CallbackBridge
from gruppo.clock import Clock
from gruppo.collect import Collector
from gruppo.config import GRPOConfig
from gruppo.config_coerce import home
from gruppo.data.load import eval_sets
from gruppo.data.prompts import PromptDataset, PromptStream, prepare_dataset
from gruppo.distributed.shard import broadcast_parameters
from gruppo.distributed.world import World
from gruppo.errors import DataError
from gruppo.forwards import Forwards
from gruppo.launch import start
from gruppo.learner import Learner
from gruppo.monitor.health.live import HealthMonitor
from gruppo.monitor.progress import Progress
from gruppo.monitor.run_monitor import RunMonitor
from gruppo.monitor.web import WebPage
from gruppo.plan import BatchPlan
from gruppo.policy.load import (
    has_experts,
    is_peft_model,
    load_policy,
    load_tokenizer,
    router_aux_loss_coef,
)
from gruppo.policy.logprobs import LogprobFunction, token_logprobs
from gruppo.policy.optim import build_optimizer, build_scheduler
from gruppo.policy.reference import FrozenCopy, Reference, reference_for
from gruppo.policy.shared_prefix import packed_logprobs
from gruppo.policy.vocabulary import eos_token_ids, padding_id, set_pad_token
from gruppo.rewards.prepare import prepare_rewards
from gruppo.rewards.score import Scorer
from gruppo.rollout.custom import CustomRollout
from gruppo.rollout.engine import EmbeddedEngine
from gruppo.rollout.hf import HFEngine
from gruppo.scoring import GlobalScorer
from gruppo.settings import entropy_control, learner_settings, loss_settings
from gruppo.start_checks import (
    PromptCheck,
    check_arguments,
    check_eval_columns,
    check_generation_kwargs,
    check_output_folder,
    eval_name,
    warn_if_beyond_context,
)
from gruppo.types import Prompt

if TYPE_CHECKING:
    from gruppo.rollout.protocol import RolloutEngine


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the user passed to GRPOTrainer."""

    model: Any
    reward_funcs: Any
    config: GRPOConfig | None
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    reward_processing_classes: Any
    callbacks: Sequence[Callback] | None
    optimizers: tuple[Any, Any]
    quantization_config: Any
    peft_config: Any
    rollout_func: Callable[..., Any] | None
    not_yet: Mapping[str, Any]
    """Arguments of TRL's that are refused if given."""

    @property
    def model_name(self) -> str:
        if isinstance(self.model, str):
            return self.model
        return str(getattr(self.model.config, "_name_or_path", "") or "model")


@dataclass(frozen=True, slots=True)
class Data:
    """Training prompts, and the held-out sets by name."""

    train_prompts: PromptDataset | PromptStream
    eval_prompts: dict[str, Sequence[Prompt]]
    prepare_eval: Callable[[Mapping[str, Any]], dict[str, Sequence[Prompt]]]
    """For sets that come with `evaluate()`."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The model that trains, its tokenizer, and its reference."""

    model: Any
    name: str
    tokenizer: Any
    adapter: str | None
    """Name of the adapter that trains; None for a full model."""
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    reference: Reference | None
    forwards: Forwards

    @property
    def reference_model(self) -> Any:
        """The second model that is the KL reference; None if there is none, or if it lives inside the policy."""
        return self.reference.model if isinstance(self.reference, FrozenCopy) else None


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a run is made of."""

    config: GRPOConfig
    plan: BatchPlan
    accelerator: Any
    world: World
    data: Data
    policy: Policy
    rollout: Collector
    scorer: GlobalScorer
    learner: Learner
    callbacks: CallbackBridge
    display: Progress
    monitor: RunMonitor
    clock: Clock
    notes: list[str]

    def sync_reference(self, step: int) -> None:
        """TRL's `sync_ref_model`: every `ref_model_sync_steps` steps the reference moves towards the policy."""
        reference = self.policy.reference
        if self.config.sync_ref_model and reference is not None and step % self.config.ref_model_sync_steps == 0:
            reference.sync(self.policy.model, self.config.ref_model_mixup_alpha)

    def start_lines(self) -> list[str]:
        """What a person should read before the first step."""
        return [*self.plan.describe(), *self.notes]


def wire(trainer: Any, given: Arguments) -> Parts:
    """See GRPOTrainer for the arguments. Raises ConfigError, DataError, ModelError or RewardError."""
    given = replace(given, model=home(given.model))
    check_arguments(given)
    config = given.config or GRPOConfig(f"{given.model_name.rstrip('/').split('/')[-1]}-GRPO")
    HealthMonitor(config.to_dict(), thresholds=config.health_thresholds, actions=config.health_actions)  # checks names
    if given.rollout_func is None:
        check_generation_kwargs(config)
    accelerator, notes = start(config)
    world = World(accelerator)
    callbacks = CallbackBridge(config, given.callbacks, model=None, processing_class=None, world=world)
    tokenizer = _tokenizer(given, config)
    data = _data(given, config, tokenizer)
    plan = _plan(config, data, world)
    check_output_folder(config, world)
    notes += data.train_prompts.notes if isinstance(data.train_prompts, PromptDataset) else []
    scorer = _scorer(given, config, data, world)
    display = Progress(world.is_main and not config.disable_tqdm)
    clock = Clock(display.phase)
    policy = _policy(given, config, tokenizer, accelerator, world)
    prompt_check = PromptCheck(policy.model, tokenizer, has_rollout_func=given.rollout_func is not None)
    prompt_check.at_start(data)
    if given.rollout_func is None:
        warn_if_beyond_context(policy.model.config, config, data.train_prompts)
    engine = _engine(given, config, trainer, policy, accelerator)
    learner = _learner(given, config=config, plan=plan, policy=policy, accelerator=accelerator, world=world)
    callbacks.attach(model=policy.model, processing_class=tokenizer)
    # From here on ranks draw different numbers (dropout); everything before was the same on all of them.
    set_seed(config.seed, device_specific=True)
    return Parts(
        config=config,
        plan=plan,
        accelerator=accelerator,
        world=world,
        data=data,
        policy=policy,
        rollout=Collector(engine, tokenizer, world, clock, prompt_check.of_round),
        scorer=GlobalScorer(scorer, world, clock),
        learner=learner,
        callbacks=callbacks,
        display=display,
        monitor=_monitor(config, display, world),
        clock=clock,
        notes=notes,
    )


def _tokenizer(given: Arguments, config: GRPOConfig) -> Any:
    revision = (config.model_init_kwargs or {}).get("revision")
    return load_tokenizer(
        given.processing_class, given.model_name, revision=revision, trust_remote_code=config.trust_remote_code
    )


def _prepared(dataset: Any, what: str, *, config: GRPOConfig, tokenizer: Any) -> PromptDataset | PromptStream:
    if config.remove_unused_columns:
        dataset = _without_columns(dataset)
    return prepare_dataset(
        dataset,
        tokenizer=tokenizer,
        max_prompt_length=config.max_prompt_length,
        overlong=config.overlong_prompts,
        chat_template_kwargs=config.chat_template_kwargs,
        what=what,
    )


def _without_columns(dataset: Any) -> Any:
    """The prompts alone. What is no row is left for `prepare_dataset` to name."""
    if isinstance(dataset, Dataset | IterableDataset):
        return dataset.select_columns(["prompt"])
    if not isinstance(dataset, list | tuple):
        return dataset
    rows = (
        ({"prompt": row["prompt"]} if "prompt" in row else {}) if isinstance(row, Mapping) else row for row in dataset
    )
    return list(rows)


def _data(given: Arguments, config: GRPOConfig, tokenizer: Any) -> Data:
    if given.train_dataset is None:
        raise DataError("train_dataset is missing. Pass a dataset with a `prompt` column.")
    prepare = partial(_prepared, config=config, tokenizer=tokenizer)
    prepare_eval = partial(_eval_prompts, prepare=prepare)
    data = Data(
        prepare(given.train_dataset, "train_dataset"), prepare_eval(eval_sets(given.eval_dataset)), prepare_eval
    )
    if config.eval_strategy != "no" and not data.eval_prompts:
        raise DataError(f"eval_strategy={config.eval_strategy!r} needs an eval_dataset. Pass one, or set it to 'no'.")
    return data


def _plan(config: GRPOConfig, data: Data, world: World) -> BatchPlan:
    num_prompts = len(data.train_prompts) if isinstance(data.train_prompts, PromptDataset) else None
    return BatchPlan.from_config(config, num_prompts=num_prompts, world_size=world.size)


def _eval_prompts(sets: Mapping[str, Any], prepare: Callable[[Any, str], Any]) -> dict[str, Sequence[Prompt]]:
    """Held-out sets are finite: a stream is read to its end."""
    found: dict[str, Sequence[Prompt]] = {}
    for name, dataset in sets.items():
        prompts = prepare(dataset, eval_name(name))
        found[name] = list(prompts.epoch()) if isinstance(prompts, PromptStream) else prompts
    return found


def _scorer(given: Arguments, config: GRPOConfig, data: Data, world: World) -> Scorer:
    has_extras = given.rollout_func is not None
    sources = prepare_rewards(
        given.reward_funcs,
        reward_processing_classes=given.reward_processing_classes,
        columns=data.train_prompts.columns,
        extra_columns_allowed=has_extras,
        model_init_kwargs=config.model_init_kwargs,
        is_conversational=data.train_prompts.is_conversational,
        chat_template_kwargs=config.chat_template_kwargs,
    )
    check_eval_columns(sources, data.eval_prompts, extra_columns_allowed=has_extras)
    for source in sources:
        if isinstance(source.function, torch.nn.Module):
            source.function.to(world.device)
    return Scorer(sources, weights=config.reward_weights, timeout=config.reward_timeout)


def _monitor(config: GRPOConfig, display: Progress, world: World) -> RunMonitor:
    run, page = Path(config.output_dir), None
    if config.monitor == "web":
        page = WebPage(run, print if config.disable_tqdm else display.message)
    return RunMonitor(run, is_main=world.is_main, page=page)


def _policy(given: Arguments, config: GRPOConfig, tokenizer: Any, accelerator: Any, world: World) -> Policy:
    model = load_policy(
        given.model,
        model_init_kwargs=config.model_init_kwargs,
        trust_remote_code=config.trust_remote_code,
        quantization_config=given.quantization_config,
        peft_config=given.peft_config,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs=config.gradient_checkpointing_kwargs,
        disable_dropout=config.disable_dropout,
        cast_lm_head_to_fp32=config.cast_lm_head_to_fp32,
    )
    set_pad_token(model, tokenizer)
    pad_token_id = padding_id(model, tokenizer)
    model.to(world.device)
    broadcast_parameters(model, world)
    is_fresh = given.peft_config is not None
    logprobs: LogprobFunction = packed_logprobs
    if config.policy_forward == "padded":
        logprobs = partial(token_logprobs, pad_to_multiple_of=config.pad_multiple)
    reference = None
    if config.beta != 0.0:
        reference = reference_for(model, is_fresh_adapter=is_fresh, logprobs=logprobs)
    return Policy(
        model=model,
        name=given.model_name,
        tokenizer=tokenizer,
        adapter=model.active_adapter if is_peft_model(model) else None,
        eos_token_ids=eos_token_ids(model, tokenizer),
        pad_token_id=pad_token_id,
        reference=reference,
        forwards=Forwards(
            model,
            reference,
            logprobs=logprobs,
            temperature=config.temperature,
            pad_token_id=pad_token_id,
            has_aux_loss=router_aux_loss_coef(model, config.router_aux_loss_coef) != 0.0,
            autocast=accelerator.autocast,
        ),
    )


def _engine(given: Arguments, config: GRPOConfig, trainer: Any, policy: Policy, accelerator: Any) -> RolloutEngine:
    if given.rollout_func is not None:
        idle = [
            name for name in ("rollout_engine", "rollout_dtype", "rollout_cuda_graphs") if name in config.non_default()
        ]
        if idle:
            text = f"{' and '.join(idle)}: no part is played where a rollout_func samples. Leave it out."
            warnings.warn(text, UserWarning, stacklevel=4)
        return CustomRollout(given.rollout_func, trainer)
    if config.rollout_engine == "hf":
        return HFEngine(
            policy.model,
            tokenizer=policy.tokenizer,
            autocast=accelerator.autocast,
            cache_implementation=config.cache_implementation,
        )
    return EmbeddedEngine(
        policy.model,
        tokenizer=policy.tokenizer,
        autocast=accelerator.autocast,
        rollout_dtype=None if config.rollout_dtype is None else getattr(torch, config.rollout_dtype),
        cache_implementation=config.cache_implementation,
        cuda_graphs=config.rollout_cuda_graphs,
    )


def _learner(
    given: Arguments, *, config: GRPOConfig, plan: BatchPlan, policy: Policy, accelerator: Any, world: World
) -> Learner:
    optimizer, scheduler = _optimizer_and_schedule(policy.model, config, plan, given.optimizers)
    aux_loss_coef = router_aux_loss_coef(policy.model, config.router_aux_loss_coef)
    return Learner(
        policy.forwards,
        parameters=[parameter for parameter in policy.model.parameters() if parameter.requires_grad],
        optimizer=accelerator.prepare_optimizer(optimizer),
        scheduler=scheduler,
        loss_settings=loss_settings(config),
        settings=learner_settings(config, aux_loss_coef=aux_loss_coef, has_experts=has_experts(policy.model)),
        entropy_control=entropy_control(config),
        plan=plan,
        accelerator=accelerator,
        world=world,
    )


def _optimizer_and_schedule(
    policy: Any, config: GRPOConfig, plan: BatchPlan, given: tuple[Any, Any]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer, scheduler = given
    if optimizer is None:
        optimizer = build_optimizer(policy, config)
    return optimizer, scheduler or build_scheduler(optimizer, config, plan.total_steps)
