"""GRPOTrainer: the wiring, the loop, and the four steps of GRPO.

    generate -> score -> advantage -> loss

It has TRL's constructor and public methods, calls transformers' callbacks, and is not a `transformers.Trainer`: the
loop is `train` and `train_round` below, and nothing else runs. Each step is a part of its own (`collect`, `scoring`,
`algorithm`, `learner`); this is the only file that knows all parts. How they are built from the user's arguments is in
`wiring.py`; logging, evaluating and saving between two steps is in `milestones.py`; what scripts call besides `train`
is in `script_methods.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import TrainOutput, speed_metrics

from gruppo.algorithm.advantages import AdvantageTable, group_relative
from gruppo.assemble import assemble
from gruppo.callbacks import Callback
from gruppo.data.order import round_prompts, slice_assignment
from gruppo.data.prompts import PromptDataset
from gruppo.hooks import refuse_idle_hooks
from gruppo.memory import freed_memory_kept
from gruppo.milestones import Milestones
from gruppo.round_metrics import RoundLengths, as_round_values, length_metrics, pass_metrics, reward_metrics
from gruppo.script_methods import ScriptMethods
from gruppo.settings import train_sampling
from gruppo.types import Group, Prompt, RewardTable, TrainBatch
from gruppo.wiring import Arguments, wire

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig


class GRPOTrainer(ScriptMethods):
    """Group Relative Policy Optimization (arXiv 2402.03300), by TRL 1.16's constructor: names and order.

    Args:
        model: hub id or path, a `PreTrainedModel`, or a `PeftModel`.
        reward_funcs: one or a list of: functions (sync or async), sequence classifiers or their ids.
        args: the config; by default `GRPOConfig("<model name>-GRPO")`.
        train_dataset: `Dataset`, `IterableDataset` (needs `max_steps`) or list of dicts with a `prompt` column; other
            columns go to the reward functions.
        eval_dataset: the same, or a dict of named sets.
        processing_class: a tokenizer; by default the model's.
        reward_processing_classes: one tokenizer (or None) for each reward.
        callbacks: transformers' callbacks.
        optimizers: (optimizer, scheduler) to use instead of the config's; either may be None.
        quantization_config: for `from_pretrained`.
        peft_config: train a fresh adapter; the reference is then the model without it.
        rollout_func: `rollout_func(prompts, trainer)` instead of the rollout engine, by TRL's contract.
        compute_metrics: called with all groups of an evaluation (prompts with their columns, completions with text);
            returns further metrics by name. (Not in TRL.)

    Raises ConfigError, DataError, ModelError or RewardError (all ValueErrors) before the first step, and as far as
    possible before weights load.
    """

    def __init__(  # noqa: PLR0917 - TRL's constructor takes them by position
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[Callback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Callable[..., Any] | None = None,
        environment_factory: Any = None,
        compute_metrics: Callable[[list[Group]], dict[str, float]] | None = None,
    ) -> None:
        given = Arguments(
            model=model,
            reward_funcs=reward_funcs,
            config=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            rollout_func=rollout_func,
            not_yet={"tools": tools, "environment_factory": environment_factory},
        )
        self._parts = parts = wire(self, given)
        self.args, self.plan = parts.config, parts.plan
        self.model, self.processing_class, self.accelerator = (
            parts.policy.model,
            parts.policy.tokenizer,
            parts.accelerator,
        )
        self.ref_model = parts.policy.reference_model
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.rollout, self.scorer, self.learner = parts.rollout, parts.scorer, parts.learner
        self.monitor = parts.monitor
        self.reward_funcs = [source.function for source in parts.scorer.sources]
        self.reward_func_names = [source.name for source in parts.scorer.sources]
        self.reward_weights = torch.tensor(parts.scorer.weights, dtype=torch.float32)
        self._milestones = Milestones(
            parts, assemble=self.assemble, advantage=self.advantage, compute=compute_metrics, log=self.log
        )
        self._milestones.callbacks.on_init_end()
        self._stream: Iterator[list[Prompt]] | None = None
        self._in_use: TrainBatch | None = None
        self._num_new_tokens = 0.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raises ConfigError if the class overrides a hook of TRL's that would never be called."""
        super().__init_subclass__(**kwargs)
        refuse_idle_hooks(cls, GRPOTrainer)

    # -- the four steps

    def train_round(self, prompts: Sequence[Prompt]) -> None:
        """One generation round: sample, score, compare, learn. It feeds one optimizer step, or several, or a part."""
        groups = self.rollout.generate(prompts, self.plan.group_size, self._sampling())  # 1 generate
        rewards = self.scorer.score(groups, trainer_state=self.state)  # 2 score
        advantages = self.advantage(rewards)  # 3 advantage
        self._record(groups, rewards, advantages)
        self.update(self.assemble(groups, advantages))  # 4 loss

    def advantage(self, rewards: RewardTable, group_size: int | None = None) -> AdvantageTable:
        """How much better than its siblings each completion is; the same table on every rank."""
        return group_relative(
            rewards.rewards_NF,
            self.reward_weights,
            group_size=group_size or self.plan.group_size,
            scale=self.args.scale_rewards,
            aggregation=self.args.multi_objective_aggregation,
        )

    def assemble(self, groups: Sequence[Group], advantages: AdvantageTable, *, is_eval: bool = False) -> TrainBatch:
        """This rank's rows with THE mask, each assigned to its slice (TRL's micro-batch)."""
        num_rows = sum(len(group.completions) for group in groups)
        world, plan, position = self._parts.world, self.plan, self._milestones.position
        slice_ids = (
            [0] * num_rows
            if is_eval
            else slice_assignment(num_rows, plan.slices_per_generation, self.args.seed, position.round, world.rank)
        )
        return assemble(
            groups,
            advantages.advantages_N[self._own_rows(len(advantages.advantages_N))],
            slice_ids=slice_ids,
            mask_truncated=self.args.mask_truncated_completions,
            device=world.device,
        )

    def update(self, batch: TrainBatch) -> None:
        """Consume a round's rows: segment by segment, an optimizer step wherever one is complete.

        Until the last one, the round counts as in use: a checkpoint holds it.
        """
        milestones, position = self._milestones, self._milestones.position
        segments = self.plan.segments(position.round_in_epoch)
        num_tokens = int(self._parts.world.sum_(batch.num_trained_tokens_N.sum()))
        if position.segment == 0:
            with self._parts.clock.phase("old_and_ref"):
                batch = self.learner.begin_round(batch, segments)
        self._in_use = batch
        for number in range(position.segment, len(segments)):
            segment = segments[number]
            if segment.is_first:
                milestones.callbacks.on_step_begin()
            with self._parts.clock.phase("update"):
                stats, loss = self.learner.accumulate(
                    batch, segment, num_generation_tokens=num_tokens, is_on_policy=number == 0
                )
            milestones.window.add(stats)
            milestones.window.add_loss(loss)
            if number == 0:
                milestones.window.add(as_round_values(self.learner.sampler_metrics(batch)))
            position.segment = number + 1
            if position.segment == len(segments):
                self._in_use = None
                milestones.record_pass(batch)
            for _ in segment.micro_steps[: -1 if segment.is_last else None]:
                milestones.callbacks.on_substep_end()  # transformers': each micro-step but the last of a step
            if segment.is_last:
                self._optimizer_step()
            if self.control.should_training_stop or self.control.should_epoch_stop:
                milestones.record_pass(batch)  # all that the round will have been used for in this attempt
                return

    def _optimizer_step(self) -> None:
        milestones, callbacks = self._milestones, self._milestones.callbacks
        with self._parts.clock.phase("optimizer"):
            grad_norm = self.learner.clip_gradients()
            callbacks.on_pre_optimizer_step()
            learning_rate = self.learner.step()
            callbacks.on_optimizer_step()
        self.state.global_step += 1
        self.state.epoch = milestones.position.epochs_done(self.plan)
        self.rollout.engine.load_weights(version=self.state.global_step)
        self._parts.sync_reference(self.state.global_step)
        milestones.end_step(grad_norm, learning_rate, self._num_new_tokens, self._in_use)
        self._num_new_tokens = 0.0

    # -- the loop

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Train to the end of the plan, or until a callback stops it.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest in `output_dir`; None takes the
                config's, False none.

        Returns transformers' TrainOutput: global step, mean training loss, run metrics.
        Raises CheckpointError if the checkpoint cannot be resumed from.
        """
        milestones = self._milestones
        self._stream = None
        outcome = "interrupted"
        try:
            asked, default = resume_from_checkpoint, self.args.resume_from_checkpoint
            self._in_use = milestones.begin(default if asked is None else asked)
            start, first_step = time.time(), self.state.global_step
            with freed_memory_kept():
                self._run_epochs()
            metrics = self._run_metrics(start, self.state.global_step - first_step)
            milestones.finish(metrics | milestones.window.leftovers())
            outcome = "finished"
        except KeyboardInterrupt:
            milestones.say_stopped()
            raise
        finally:
            milestones.close(outcome)
            self.scorer.close()
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    def _run_metrics(self, start: float, num_steps: int) -> dict[str, float]:
        """transformers' last line of a run."""
        train_loss = self._milestones.window.total_loss / max(self.state.global_step, 1)
        metrics: dict[str, float] = speed_metrics("train", start, num_steps * self.plan.rows_per_step, num_steps)
        return metrics | {"total_flos": self.state.total_flos, "train_loss": train_loss}

    def _run_epochs(self) -> None:
        milestones, position = self._milestones, self._milestones.position
        while position.epoch < self.plan.total_epochs and self.state.global_step < self.plan.total_steps:
            milestones.callbacks.on_epoch_begin()
            while position.round_in_epoch < self.plan.rounds_per_epoch:
                if self._in_use is None:
                    self.train_round(self._next_prompts())
                else:  # a checkpoint from inside a round: its completions are used up first
                    self.update(self._in_use)
                if self.control.should_training_stop or self.control.should_epoch_stop:
                    break
                position.next_round()
            if not self.control.should_training_stop:  # the rest of the epoch, if any, is skipped
                self._in_use = None
                position.next_epoch(self.plan)
            milestones.end_epoch(self._in_use)
            if self.control.should_training_stop:
                return

    def _next_prompts(self) -> list[Prompt]:
        position, data = self._milestones.position, self._parts.data.train_prompts
        num_prompts, seed, shuffle = self.plan.prompts_per_generation, self.args.order_seed, self.args.shuffle_dataset
        if isinstance(data, PromptDataset):
            place = (position.epoch, position.round_in_epoch)
            return [data[i] for i in round_prompts(len(data), num_prompts, seed, *place, shuffle=shuffle)]
        assert data is not None
        if self._stream is None:
            self._stream = data.rounds(num_prompts, seed=seed, shuffle=shuffle, skip=position.round)
        return next(self._stream)

    def _sampling(self) -> Any:
        self.model.train()  # a user's rollout_func tells training from evaluation by this
        policy = self._parts.policy
        return train_sampling(
            self.args,
            eos_token_ids=policy.eos_token_ids,
            pad_token_id=policy.pad_token_id,
            step=self._milestones.position.round,
        )

    def _record(self, groups: Sequence[Group], rewards: RewardTable, advantages: AdvantageTable) -> None:
        milestones, group_size = self._milestones, self.plan.group_size
        lengths = RoundLengths.gather(groups, self._parts.world)
        self.state.num_input_tokens_seen += lengths.num_processed
        self._num_new_tokens += int(lengths.num_tokens_N.sum())
        values = length_metrics(lengths) | reward_metrics(rewards, advantages, group_size)
        values |= pass_metrics(rewards, group_size)
        milestones.window.add(as_round_values(values, num_tokens=self.state.num_input_tokens_seen))
        milestones.record_rollouts("train", groups, rewards, advantages, self._own_rows(len(advantages.rewards_N)))

    def _own_rows(self, num_rows: int) -> slice:
        world = self._parts.world
        return slice(world.rank * num_rows // world.size, (world.rank + 1) * num_rows // world.size)
