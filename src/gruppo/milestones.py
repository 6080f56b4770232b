"""What happens between two optimizer steps: count, log, evaluate, save. And how a run begins, resumes and ends.

transformers' `DefaultFlowCallback` decides when (through `TrainerControl`); here is what is done then, in
transformers' order: log, evaluate, best model, save. The training itself is in `trainer.py`, what a checkpoint holds
in `run_checkpoints.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gruppo.algorithm.advantages import AdvantageTable
from gruppo.chat import piece_decoder
from gruppo.checkpoint import newest_checkpoint, save_pretrained
from gruppo.data.load import eval_sets
from gruppo.errors import DataError
from gruppo.evaluation import Evaluation, Evaluator, whole_groups
from gruppo.hub import CardFacts, CompletionsUpload, Uploads, persons_readme, write_model_card
from gruppo.log_window import LogWindow
from gruppo.metrics import Mean
from gruppo.monitor.completions_table import CompletionsTable
from gruppo.monitor.health.finding import Action
from gruppo.monitor.recorder import Recorder, TokenSettings
from gruppo.plan_checks import count
from gruppo.position import Position
from gruppo.run_checkpoints import Resumed, RunCheckpoints
from gruppo.settings import eval_sampling
from gruppo.types import Group, Prompt, RewardTable, TrainBatch
from gruppo.watch import Watch

if TYPE_CHECKING:
    from gruppo.wiring import Parts


logger = logging.getLogger(__name__)


class Assemble(Protocol):
    def __call__(self, groups: Sequence[Group], advantages: AdvantageTable, *, is_eval: bool = False) -> TrainBatch: ...


class Milestones:
    """The run's position, metrics window, records and callbacks."""

    def __init__(
        self,
        parts: Parts,
        *,
        assemble: Assemble,
        advantage: Callable[..., AdvantageTable],
        compute: Callable[[list[Group]], dict[str, float]] | None,
        log: Callable[[dict[str, float]], None],
    ) -> None:
        self.parts, self.config, self.plan = parts, parts.config, parts.plan
        self.callbacks = parts.callbacks
        self.window, self.position = LogWindow(), Position()
        self._run_dir = Path(self.config.output_dir)
        self._recorder: Recorder | None = None
        self._watch: Watch | None = None
        self._completions_upload: CompletionsUpload | None = None
        self._checkpoints, self._uploads = RunCheckpoints(parts), Uploads(self.config)
        self._compute, self._log = compute, log
        self.card = CardFacts()
        self._evaluator = Evaluator(
            rollout=parts.rollout,
            scorer=parts.scorer,
            advantage=advantage,
            assemble=lambda groups, advantages: assemble(groups, advantages, is_eval=True),
            forwards=parts.policy.forwards,
            loss_settings=parts.learner.loss_settings,
            max_completion_length=self.config.eval_max_completion_length or self.config.max_completion_length,
            plan=self.plan,
            world=parts.world,
        )

    # -- begin and end

    def begin(self, resume_from: str | bool | None) -> TrainBatch | None:
        """Start counting, or go on where a checkpoint stopped. Returns the round that was in use then, if any."""
        reader = self._checkpoints.find(resume_from)
        state_file = None if reader is None else reader.folder / "trainer_state.json"
        self.parts.learner.begin_run()
        self.callbacks.attach(optimizer=self.parts.learner.optimizer, lr_scheduler=self.parts.learner.scheduler)
        self.callbacks.start(
            self.plan.total_steps, self.plan.total_epochs, resume_from=state_file, restore_callbacks=reader is not None
        )
        resumed = Resumed(Position(), LogWindow(), None) if reader is None else self._checkpoints.restore(reader)
        self.position, self.window = resumed.position, resumed.window
        start_step = self.callbacks.state.global_step
        self._open_recorder(start_step)
        self.parts.monitor.begin()
        for line in self.parts.start_lines():
            self.parts.display.message(line)
        if reader is not None:
            self.parts.display.message(f"resumed     from {reader.folder} at step {start_step}")
        self._put_aside(start_step)
        self.parts.display.start(self.plan.total_steps, start_step)
        self.callbacks.on_train_begin()
        if self.config.eval_on_start:
            self.evaluate(None, "eval")
        self.parts.clock.restart()
        return resumed.batch

    def close(self, outcome: str) -> None:
        """However training (or an evaluation on its own) ended: stop the display and close the records.

        All is saved before the last upload.
        """
        self.parts.display.close()
        if self._recorder is not None:
            self._recorder.close(outcome)
            self._recorder = self._watch = self.parts.learner.on_forward = self.parts.learner.on_forget = None
        self.parts.monitor.update(is_last=True)
        if self._completions_upload is not None:
            upload, self._completions_upload = self._completions_upload, None
            upload.close(is_complete=outcome != "interrupted")

    def say_stopped(self) -> None:
        """For a person who pressed Ctrl-C: where training stopped, and what it could go on from."""
        newest = newest_checkpoint(self._run_dir)
        rest = "there is no checkpoint to go on from" if newest is None else f"the newest checkpoint is {newest}"
        place = f"{self.callbacks.state.global_step} of {self.plan.total_steps}"
        self.parts.display.message(f"stopped     at step {place}; {rest}")

    def finish(self, metrics: dict[str, float]) -> None:
        """After the last step of a training that was not broken off."""
        state = self.callbacks.state
        if self.config.load_best_model_at_end:
            self._checkpoints.load_best()
        self._log(dict(metrics))
        if self._recorder is not None:
            self._recorder.record_event("train_end", step=state.global_step, **metrics)
        self.callbacks.on_train_end()
        if self.config.push_to_hub:
            self.push("End of training")

    # -- after each optimizer step

    def end_step(self, grad_norm: float, learning_rate: float, num_new_tokens: float, batch: TrainBatch | None) -> None:
        """Count the step, tell the callbacks, and do what they ask for. `batch`: the round still in use."""
        state = self.callbacks.state
        if self.parts.learner.settings.has_entropy_bonus:
            self.window.add({"entropy_coef": Mean.of([self.parts.learner.entropy_control.coef])})
        self.window.add(self.parts.clock.take(num_new_tokens))
        values = self.window.end_step(grad_norm=grad_norm, learning_rate=learning_rate)
        actions: Collection[Action] = ()
        if self._recorder is not None:
            self._recorder.record_step(state.global_step, {"epoch": state.epoch, **values})
        if self._watch is not None:
            actions = self._watch.end_step(state.global_step, {"epoch": state.epoch, **values})
        self.callbacks.on_step_end()
        self._obey(actions)
        self.parts.display.step(state.global_step, values, is_log=self.callbacks.control.should_log)
        self._log_evaluate_save(batch)
        self.parts.monitor.update()
        self.parts.clock.restart()

    def end_epoch(self, batch: TrainBatch | None) -> None:
        """`batch`: the round still in use, if training stops inside one."""
        self.callbacks.on_epoch_end()
        self._log_evaluate_save(batch)
        self.parts.clock.restart()

    def _log_evaluate_save(self, batch: TrainBatch | None) -> None:
        state = self.callbacks.state
        if self.callbacks.control.should_log and self.window.num_steps:
            self._log(self.window.line() | (self._watch.values if self._watch is not None else {}))
            if self._recorder is not None:
                self._recorder.log_completions(state.global_step)
        if self.callbacks.control.should_evaluate:
            metrics = self.evaluate(None, "eval")
            self.parts.learner.step_plateau_schedule(metrics, f"eval_{self.config.best_metric}")
            is_best = self.callbacks.update_best(metrics)
            if self.config.save_strategy == "best":
                self.callbacks.control.should_save = is_best
        if self.callbacks.control.should_save:
            self.save_checkpoint(batch)
            self.callbacks.on_save()

    def record_rollouts(
        self, split: str, groups: Sequence[Group], rewards: RewardTable, advantages: AdvantageTable, rows: slice
    ) -> None:
        if self._recorder is None:
            return
        table_of_rows = self._recorder.record_rollouts(
            self.callbacks.state.global_step + (split == "train"),
            split,
            groups,
            rewards,
            advantages,
            policy_version=self.callbacks.state.global_step,
            rows=range(rows.start, rows.stop),
        )
        if self._watch is not None and split == "train":
            self._watch.add_rows(table_of_rows)

    def record_pass(self, batch: TrainBatch) -> None:
        """The round is used up, or will not be used further: record what training computed of its tokens."""
        if self._recorder is not None:
            self._recorder.record_pass(batch, is_old_from_sampler=self.parts.learner.settings.is_old_from_sampler)

    def _obey(self, actions: Collection[Action]) -> None:
        """What health findings ask for."""
        control = self.callbacks.control
        control.should_save |= not {"checkpoint", "pause"}.isdisjoint(actions)
        control.should_training_stop |= not {"pause", "stop"}.isdisjoint(actions)

    # -- evaluate

    def evaluate(self, dataset: Any, prefix: str) -> dict[str, float]:
        """All sets, one log line each; metrics of a named set are `<prefix>_<name>_...`."""
        sets = self.parts.data.eval_prompts if dataset is None else self.parts.data.prepare_eval(eval_sets(dataset))
        if not sets:
            raise DataError("There is nothing to evaluate. Pass eval_dataset to GRPOTrainer or to evaluate().")
        if self._recorder is not None:
            return self._evaluate_sets(sets, prefix)
        outcome = "interrupted"
        try:
            self._open_recorder(start_step=None)
            metrics = self._evaluate_sets(sets, prefix)
            outcome = "evaluated"
        finally:
            self.close(outcome)
        return metrics

    def _evaluate_sets(self, sets: Mapping[str, Sequence[Prompt]], prefix: str) -> dict[str, float]:
        metrics: dict[str, float] = {}
        with self.parts.clock.phase("evaluate"):
            for name, prompts in sets.items():
                metrics |= self._evaluate_set(prompts, f"{prefix}_{name}" if name else prefix)
        self.callbacks.on_evaluate(metrics)
        return metrics

    def _evaluate_set(self, prompts: Sequence[Prompt], prefix: str) -> dict[str, float]:
        parts, state = self.parts, self.callbacks.state
        parts.policy.model.eval()
        sampling = eval_sampling(
            self.config,
            eos_token_ids=parts.policy.eos_token_ids,
            pad_token_id=parts.policy.pad_token_id,
            step=state.global_step,
        )
        found = self._evaluator.run(
            list(prompts), sampling, trainer_state=state, after_batch=self.callbacks.on_prediction_step
        )
        values = _speed(found, self.plan.num_eval_batches(found.num_prompts)) | found.metrics
        values["num_tokens"] = float(state.num_input_tokens_seen)
        if self._compute is not None:
            values |= self._compute(whole_groups(found.batches, parts.world))
        metrics = {f"{prefix}_{name}": value for name, value in values.items()}
        self._log(dict(metrics))
        if self._recorder is not None:
            self._recorder.record_step(state.global_step, metrics, split=prefix)
        if self._watch is not None:
            self._obey(self._watch.end_evaluation(state.global_step, prefix, metrics))
        for batch in found.batches:
            num_rows = len(batch.rewards.statuses_NF)
            rank, size = parts.world.rank, parts.world.size
            own = slice(rank * num_rows // size, (rank + 1) * num_rows // size)
            self.record_rollouts(prefix, batch.groups, batch.rewards, batch.advantages, own)
        if self._recorder is not None:
            self._recorder.log_completions(state.global_step, prefix)
        return metrics

    # -- save and upload

    def save_model(self, folder: Path) -> None:
        """Model (or adapter), tokenizer and model card, in Hugging Face's layout."""
        parts = self.parts
        if parts.world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            readme = persons_readme(folder)
            save_pretrained(folder, parts.policy.model, parts.policy.tokenizer, parts.policy.adapter)
            if readme is None:
                self._write_card(folder)
            else:
                (folder / "README.md").write_bytes(readme)  # peft has added to it
        parts.world.barrier()

    def save_card(self, facts: CardFacts) -> bool:
        """README.md in output_dir; False, on the main process, if a person wrote one, which stays."""
        self.card = facts
        is_kept = self.parts.world.is_main and persons_readme(self._run_dir) is not None
        if self.parts.world.is_main and not is_kept:
            self._write_card(self._run_dir)
        return not is_kept

    def _write_card(self, folder: Path) -> None:
        step, name = self.callbacks.state.global_step, self.parts.policy.name
        write_model_card(folder, base_model=name, config=self.config, facts=self.card, num_steps=step)

    def save_checkpoint(self, batch: TrainBatch | None) -> None:
        """checkpoint-<step>; `batch` is the round still in use, if the step is inside one."""
        step = self.callbacks.state.global_step
        self.parts.display.phase("save")
        if self._recorder is not None:
            self._recorder.drain()  # a run that resumes from here never makes these rows again
        folder = self._checkpoints.save(self.position, self.window, batch)
        if self._recorder is not None:
            self._recorder.record_event("checkpoint", step=step, path=folder.name)
        self._await_uploads()
        self._checkpoints.delete_old(folder)
        if self.config.push_to_hub and self.config.hub_strategy != "end":
            self.callbacks.on_push_begin()
            if self.parts.world.is_main:
                self._uploads.checkpoint(folder, step)

    def push(self, commit_message: str) -> str:
        """Save the model into output_dir and upload it; the repository's address, "" on other ranks.

        Raises GruppoError with the hub's answer. What fails in the background during training is only told.
        """
        self.save_model(self._run_dir)
        self.callbacks.on_push_begin()
        self._await_uploads()
        return self._uploads.run(self._run_dir, commit_message) if self.parts.world.is_main else ""

    def _await_uploads(self) -> None:
        """A hub that is down for a moment is no reason to end a training: the next save uploads again."""
        for failure in self._uploads.wait():
            logger.warning("%s. Training is not affected.", failure)
            if self._recorder is not None:
                self._recorder.record_event("upload_failure", step=self.callbacks.state.global_step, error=failure)

    # -- records

    def _put_aside(self, start_step: int) -> None:
        """Checkpoints of steps that are made anew go where their records went."""
        if self._recorder is None:
            return
        attempt = self._recorder.attempt.number
        if num_moved := self._checkpoints.put_aside(start_step, attempt):
            moved = count(num_moved, "checkpoint")
            self.parts.display.message(f"put aside   {moved} of an earlier attempt, now in superseded/a{attempt}")

    def _open_recorder(self, start_step: int | None) -> None:
        config = self.config
        completions = None
        if config.log_completions:
            if config.log_completions_hub_repo is not None and self.parts.world.is_main:
                self._completions_upload = CompletionsUpload(config)
            trackers = [config.report_to] if isinstance(config.report_to, str) else config.report_to
            completions = CompletionsTable(config.num_completions_to_print, config.log_unique_prompts, trackers)
        policy = self.parts.policy
        self._recorder = Recorder(
            self._run_dir,
            config_dict=config.to_dict(),
            plan_lines=self.plan.describe(),
            world=self.parts.world,
            seeds={"seed": config.seed, "data": config.order_seed},
            start_step=start_step,
            completions=completions,
            model=policy.name,
            is_truncated_masked=config.mask_truncated_completions,
            tokens=TokenSettings(
                budget=config.monitor_tokens,
                decode=piece_decoder(policy.tokenizer),
                vocab_size=policy.model.config.get_text_config().vocab_size,
            ),
            look=self.parts.display.now,
        )
        self.parts.learner.on_forward = self._recorder.keep_forward
        self.parts.learner.on_forget = self._recorder.forget_forward
        if start_step is not None:
            self._watch = Watch(config, self._recorder, self.parts.display, self.parts.world, start_step)


def _speed(found: Evaluation, num_batches: int) -> dict[str, float]:
    return {
        "loss": found.metrics["loss"],
        "runtime": round(found.seconds, 4),
        "samples_per_second": round(found.num_prompts / found.seconds, 3),
        "steps_per_second": round(num_batches / found.seconds, 3),
    }
