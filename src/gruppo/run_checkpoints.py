"""What a run puts into a checkpoint, and how it goes on from one.

Which files a checkpoint has is in `checkpoint.py`, which old ones go in `retention.py`, when one is due in
`milestones.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gruppo.algorithm.entropy import EntropyControl
from gruppo.checkpoint import CheckpointReader, CheckpointWriter, newest_checkpoint
from gruppo.errors import CheckpointError
from gruppo.log_window import LogWindow
from gruppo.position import Position
from gruppo.retention import delete_old, last_put_aside, put_aside

if TYPE_CHECKING:
    from gruppo.plan import BatchPlan
    from gruppo.types import TrainBatch
    from gruppo.wiring import Parts

_BATCH_FIELDS = {
    "num_generations": "group_size",
    "per_device_train_batch_size": "rows_per_slice",
    "gradient_accumulation_steps": "slices_per_step",
    "steps_per_generation": "slices_per_generation",
    "num_iterations": "num_iterations",
}
"""The sizes that the position counts in, by their names in BatchPlan. The number of processes is in the manifest."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the loop goes on with; everything else is in its place again."""

    position: Position
    window: LogWindow
    batch: TrainBatch | None
    """The generation round in use, if the checkpoint is from inside one."""


class RunCheckpoints:
    """The checkpoints of one run's folder. All ranks call everything; the main process writes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._run_dir = Path(parts.config.output_dir)

    def find(self, resume_from: str | bool | None) -> CheckpointReader | None:
        """The verified checkpoint that this means; None if it means none. Nothing is loaded yet.

        Raises CheckpointError if there is none, or if this run cannot resume from it.
        """
        if not resume_from:
            return None
        folder = self._run_dir if resume_from is True else Path(resume_from).expanduser()
        if not (folder / "manifest.json").is_file():
            folder = newest_checkpoint(folder) or _no_checkpoint(resume_from, folder)
        reader = CheckpointReader(folder, self._parts.world)
        reader.require_resumable()
        _require_same_batches(reader, self._parts.plan)
        return reader

    def restore(self, reader: CheckpointReader) -> Resumed:
        """Load everything; the callbacks' state is loaded already (`global_step`)."""
        parts, saved = self._parts, reader.json("gruppo.json")
        reader.model(parts.policy.model, parts.policy.adapter)
        reader.optimizer(parts.learner.optimizer)
        parts.learner.scheduler.load_state_dict(reader.json("scheduler.json"))
        parts.learner.entropy_control = EntropyControl(**saved["entropy_control"])
        if parts.policy.reference is not None:
            parts.policy.reference.load_state_dict(reader.tensors("reference.safetensors"))
        if saved["scaler"] is not None and parts.accelerator.scaler is not None:
            parts.accelerator.scaler.load_state_dict(saved["scaler"])
        parts.rollout.engine.load_weights(version=parts.callbacks.state.global_step)
        position, batch = Position(**saved["position"]), reader.rollouts(parts.world.device)
        if batch is None and position.segment:
            position.next_round()
        if position.round_in_epoch >= parts.plan.rounds_per_epoch:
            position.next_epoch(parts.plan)
        reader.random_state()
        return Resumed(position, LogWindow.from_state(saved["window"]), batch)

    def load_best(self) -> None:
        """The weights of the best checkpoint, if there is one."""
        parts, saved_in = self._parts, self._parts.callbacks.state.best_model_checkpoint
        if saved_in is None:
            return
        best = Path(saved_in)
        if not best.is_dir():  # the run's folder has moved since
            best = self._run_dir / best.name
        CheckpointReader(best, parts.world).model(parts.policy.model, parts.policy.adapter)

    def save(self, position: Position, window: LogWindow, batch: TrainBatch | None) -> Path:
        """checkpoint-<step>, whole; `batch` is the round still in use, if the step is inside one."""
        parts, state = self._parts, self._parts.callbacks.state
        folder = self._run_dir / f"checkpoint-{state.global_step}"
        writer = CheckpointWriter(folder, parts.world)
        writer.model(parts.policy.model, parts.policy.tokenizer, parts.policy.adapter)
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(folder)
        if parts.world.is_main:
            parts.callbacks.save_state(writer.staging / "trainer_state.json")
        if not parts.config.save_only_model:
            self._save_training(writer, position, window, batch)
        writer.commit()
        return folder

    def _save_training(
        self, writer: CheckpointWriter, position: Position, window: LogWindow, batch: TrainBatch | None
    ) -> None:
        parts, learner, control = self._parts, self._parts.learner, self._parts.learner.entropy_control
        writer.optimizer(learner.optimizer)
        writer.json("scheduler.json", learner.scheduler.state_dict())
        scaler = parts.accelerator.scaler
        writer.json(
            "gruppo.json",
            {
                "batch": _batch_fields(parts.plan),
                "position": position.state(),
                "window": window.state(),
                "entropy_control": {"coef": control.coef, "last_entropy": control.last_entropy},
                "scaler": None if scaler is None else scaler.state_dict(),
            },
        )
        writer.random_state()
        writer.rollouts(batch)
        if parts.policy.reference is not None:
            writer.tensors("reference.safetensors", parts.policy.reference.state_dict())

    def delete_old(self, written: Path) -> None:
        """By `save_total_limit`, now that `written` is there."""
        best = self._parts.callbacks.state.best_model_checkpoint
        if self._parts.world.is_main:
            delete_old(written, self._parts.config.save_total_limit, None if best is None else Path(best))

    def put_aside(self, start_step: int, attempt: int) -> int:
        """Checkpoints of steps that this attempt makes anew go to superseded/a<attempt>/; how many (main process)."""
        self._parts.world.barrier()  # all ranks have read theirs
        if not self._parts.world.is_main:
            return 0
        return len(put_aside(self._run_dir, start_step=start_step, attempt=attempt))


def _no_checkpoint(resume_from: str | bool, folder: Path) -> NoReturn:
    aside = last_put_aside(folder)
    hint = "" if aside is None else f" A later start put an earlier one aside: {aside}."
    raise CheckpointError(
        f"resume_from_checkpoint={resume_from!r}: there is no checkpoint in {folder}. Start without it, or pass the "
        f"folder of a checkpoint.{hint}"
    )


def _batch_fields(plan: BatchPlan) -> dict[str, int]:
    return {field: getattr(plan, name) for field, name in _BATCH_FIELDS.items()}


def _require_same_batches(reader: CheckpointReader, plan: BatchPlan) -> None:
    """A checkpoint that does not say what its were is taken as it is."""
    saved: dict[str, int] = reader.json("gruppo.json").get("batch", {})
    present = _batch_fields(plan)
    changed = {name: value for name, value in saved.items() if value != present[name]}
    if changed:
        differences = "; ".join(f"{name} was {value} and is {present[name]}" for name, value in changed.items())
        raise CheckpointError(
            f"{reader.folder} was saved with other batch fields: {differences}. Its place in the data is "
            "counted in batches of those sizes. Set them as they were, or begin a new run with its weights: "
            f'GRPOTrainer(model="{reader.folder}").'
        )
