"""BatchPlan: every count that follows from the batch fields, and which slice belongs to which optimizer step.

The arithmetic is TRL 1.16's, exactly. `per_device_train_batch_size` counts completions, not prompts:

    slice            B rows on each of W processes             per_device_train_batch_size
    generation round S slices, sampled together (P prompts × G) steps_per_generation, num_generations
    pass             one walk over the S slices of a round      num_iterations (μ passes)
    step             one optimizer update from GA slices        gradient_accumulation_steps

Pure integers: no tensors, no ranks, no data. It does not say which prompts come when (`data.order` does), nor how
rows are cut into forwards (that never changes the objective).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gruppo.errors import PlanError
from gruppo.plan_checks import batch_problems, count, processes, slices_per_generation, unit

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig


@dataclass(frozen=True, slots=True)
class MicroStep:
    """One slice in one pass: B rows per process."""

    round: int
    """Generation round within its epoch."""
    pass_index: int
    """0..num_iterations-1: how often the slice was used before."""
    slice_index: int
    """0..slices_per_generation-1."""


@dataclass(frozen=True, slots=True)
class Window:
    """The micro-steps whose gradients one optimizer step adds up. The last window of an epoch may be shorter."""

    epoch: int
    step_in_epoch: int
    micro_steps: tuple[MicroStep, ...]

    def __len__(self) -> int:
        """GA': TRL's `current_gradient_accumulation_steps`."""
        return len(self.micro_steps)

    @property
    def rounds(self) -> tuple[int, ...]:
        """The generation rounds it draws from, in order."""
        return tuple(dict.fromkeys(micro.round for micro in self.micro_steps))


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of one generation round that falls into one optimizer step."""

    step_in_epoch: int
    micro_steps: tuple[MicroStep, ...]
    window_size: int
    """GA' of the whole optimizer step, of which this segment may be a part."""
    is_first: bool
    """No earlier round contributes to this step."""
    is_last: bool
    """The optimizer step follows this segment."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What one slice, round, step, epoch and run consist of.

    >>> plan = BatchPlan(world_size=1, group_size=8, rows_per_slice=4, slices_per_step=4, slices_per_generation=4)
    >>> plan.rows_per_generation, plan.prompts_per_generation, plan.needs_old_logprobs
    (16, 2, False)
    """

    world_size: int
    """W: processes."""
    group_size: int
    """G: completions per prompt."""
    rows_per_slice: int
    """B: completions per process in one slice."""
    slices_per_step: int
    """GA: slices per optimizer step (fewer at the end of an epoch)."""
    slices_per_generation: int
    """S: slices that are sampled together."""
    num_iterations: int = 1
    """μ: passes over each generation round."""
    num_prompts: int | None = None
    """Prompts of the training set; None: a stream of unknown length."""
    num_epochs: float = 1.0
    """Passes over the training set; plays no part if `max_steps` is positive."""
    max_steps: int = -1
    """Optimizer steps; -1: as many as `num_epochs` takes."""
    eval_group_size: int = 1
    """Completions per prompt in evaluation."""
    eval_rows_per_slice: int = 1
    """Completions per process in one evaluation batch."""

    @classmethod
    def from_config(cls, config: GRPOConfig, *, num_prompts: int | None, world_size: int) -> BatchPlan:
        """The plan for `num_prompts` rows of data (None: a stream) on `world_size` processes.

        Raises PlanError, with values that would do, if the batch fields do not divide, if the prompts cannot fill
        one generation round, or if a stream has no `max_steps`.
        """
        problems = batch_problems(config, world_size)
        if problems:
            raise PlanError(problems)
        plan = cls(
            world_size=world_size,
            group_size=config.num_generations,
            rows_per_slice=config.per_device_train_batch_size,
            slices_per_step=config.gradient_accumulation_steps,
            slices_per_generation=slices_per_generation(config, world_size),
            num_iterations=config.num_iterations,
            num_prompts=num_prompts,
            num_epochs=config.num_train_epochs,
            max_steps=config.max_steps,
            eval_group_size=config.num_generations_eval or config.num_generations,
            eval_rows_per_slice=config.per_device_eval_batch_size,
        )
        plan._check_data()
        return plan

    # -- one generation round

    @property
    def local_rows_per_generation(self) -> int:
        """B·S: completions of one process in a round."""
        return self.rows_per_slice * self.slices_per_generation

    @property
    def rows_per_generation(self) -> int:
        """B·W·S: completions of all processes in a round."""
        return self.local_rows_per_generation * self.world_size

    @property
    def prompts_per_generation(self) -> int:
        """P: prompts of a round."""
        return self.rows_per_generation // self.group_size

    @property
    def slices_per_round(self) -> int:
        """S·μ: micro-steps that one round feeds, over all passes."""
        return self.slices_per_generation * self.num_iterations

    @property
    def needs_old_logprobs(self) -> bool:
        """True if the policy may change between sampling and using a slice (TRL: GA mod μS ≠ 0)."""
        return self.slices_per_step % self.slices_per_round != 0

    # -- one optimizer step

    @property
    def rows_per_step(self) -> int:
        """B·W·GA: completions of a full optimizer step, all processes."""
        return self.rows_per_slice * self.world_size * self.slices_per_step

    @property
    def prompts_per_step(self) -> float:
        """Prompts' worth of completions in a full optimizer step; a fraction if a round feeds several steps."""
        return self.rows_per_step / self.group_size

    # -- one epoch

    @property
    def rounds_per_epoch(self) -> int:
        """⌊N/P⌋; the last N mod P prompts of an epoch's order are left out. A stream is one epoch of `max_steps`."""
        if self.num_prompts is None:
            return math.ceil(self.slices_per_epoch / self.slices_per_round)
        return self.num_prompts // self.prompts_per_generation

    @property
    def slices_per_epoch(self) -> int:
        """Micro-steps of an epoch."""
        if self.num_prompts is None:
            return self.max_steps * self.slices_per_step
        return self.rounds_per_epoch * self.slices_per_round

    @property
    def steps_per_epoch(self) -> int:
        """⌈slices/GA⌉: the last step of an epoch takes what is left."""
        return math.ceil(self.slices_per_epoch / self.slices_per_step)

    @property
    def prompts_left_out(self) -> int:
        """N mod P: prompts of an epoch's order that no full round is left for."""
        return 0 if self.num_prompts is None else self.num_prompts % self.prompts_per_generation

    # -- the run

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.num_epochs * self.steps_per_epoch)

    @property
    def total_epochs(self) -> int:
        """Epochs begun."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def num_rounds(self) -> int:
        """Generation rounds of the run."""
        full, steps_left = divmod(self.total_steps, self.steps_per_epoch)
        slices_left = min(steps_left * self.slices_per_step, self.slices_per_epoch)
        return full * self.rounds_per_epoch + math.ceil(slices_left / self.slices_per_round)

    # -- which slice belongs to which step

    def window(self, step: int) -> Window:
        """The micro-steps of optimizer step `step` (0-based, over the whole run)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = step_in_epoch * self.slices_per_step
        last = min(first + self.slices_per_step, self.slices_per_epoch)
        return Window(epoch, step_in_epoch, tuple(self._micro_step(i) for i in range(first, last)))

    def segments(self, round_in_epoch: int) -> tuple[Segment, ...]:
        """How one generation round is shared out among optimizer steps, in order of use."""
        first = round_in_epoch * self.slices_per_round
        last = min(first + self.slices_per_round, self.slices_per_epoch)
        steps = range(first // self.slices_per_step, (last - 1) // self.slices_per_step + 1)
        return tuple(self._segment(step, round_in_epoch) for step in steps)

    def _segment(self, step_in_epoch: int, round_in_epoch: int) -> Segment:
        window = self.window(step_in_epoch)
        return Segment(
            step_in_epoch=step_in_epoch,
            micro_steps=tuple(micro for micro in window.micro_steps if micro.round == round_in_epoch),
            window_size=len(window),
            is_first=window.rounds[0] == round_in_epoch,
            is_last=window.rounds[-1] == round_in_epoch,
        )

    def _micro_step(self, index: int) -> MicroStep:
        round_in_epoch, rest = divmod(index, self.slices_per_round)
        return MicroStep(round_in_epoch, *divmod(rest, self.slices_per_generation))

    # -- evaluation

    @property
    def eval_rows_per_batch(self) -> int:
        """Completions of one evaluation batch, all processes."""
        return self.eval_rows_per_slice * self.world_size

    @property
    def eval_prompts_per_batch(self) -> int:
        """Prompts of one evaluation batch, all processes; at least 1."""
        return max(1, self.eval_rows_per_batch // self.eval_group_size)

    def num_eval_batches(self, num_prompts: int) -> int:
        """Batches that an evaluation set of `num_prompts` takes; the last may be smaller."""
        return math.ceil(num_prompts / self.eval_prompts_per_batch)

    # -- in words

    def describe(self) -> list[str]:
        """The plan in words, one line each."""
        lines = [self._describe_step(), self._describe_round(), self._describe_run()]
        if self.needs_old_logprobs:
            lines.append(
                "off-policy  completions outlive the policy that made them: their old log-probs are kept for the ratio"
            )
        return lines

    def _describe_step(self) -> str:
        share = self.prompts_per_step
        groups = f"{share:g} prompts × {self.group_size}" if share >= 1 else f"{share:g} of a prompt's group"
        return (
            f"update      {count(self.rows_per_slice, 'completion')} × {processes(self.world_size)}"
            f" × {self.slices_per_step} accumulation = {count(self.rows_per_step, 'completion')} = {groups}"
        )

    def _describe_round(self) -> str:
        text = (
            f"generation  {count(self.prompts_per_generation, 'prompt')} × {self.group_size}"
            f" = {count(self.rows_per_generation, 'completion')} at a time"
        )
        passes = "" if self.num_iterations == 1 else f", used {self.num_iterations} times"
        per_round = self.slices_per_round / self.slices_per_step
        return text + passes + f", for {per_round:g} update{'' if per_round == 1 else 's'}"

    def _describe_run(self) -> str:
        steps = f"run         {count(self.total_steps, 'step')}, {count(self.num_rounds, 'generation round')}"
        if self.num_prompts is None:
            return steps + " from a stream of prompts"
        epochs = self.total_steps / self.steps_per_epoch
        length = f"{epochs:.3g} epochs of {count(self.steps_per_epoch, 'step')}"
        text = f"{steps} from {count(self.num_prompts, 'prompt')} ({length})"
        return text + (f"; {self.prompts_left_out} left out in each epoch" if self.prompts_left_out else "")

    def _check_data(self) -> None:
        if self.num_prompts is None:
            if self.max_steps <= 0:
                raise PlanError(
                    "A streaming dataset has no length, so epochs cannot be counted, and max_steps is "
                    f"{self.max_steps}. Set max_steps to the number of optimizer steps."
                )
        elif self.num_prompts < self.prompts_per_generation:
            raise PlanError(self._too_few_prompts(self.num_prompts))

    def _too_few_prompts(self, num_prompts: int) -> str:
        remedies = [f"give at least {self.prompts_per_generation} prompts"]
        rows_per_slice = self.rows_per_slice * self.world_size
        step = unit(self.group_size, rows_per_slice)
        slices = num_prompts * self.group_size // rows_per_slice // step * step
        if slices:
            remedies.insert(0, f"set steps_per_generation={slices}")
        return (
            f"{count(num_prompts, 'prompt')} cannot fill one generation round: per_device_train_batch_size="
            f"{self.rows_per_slice} × {processes(self.world_size)} × {self.slices_per_generation} slices = "
            f"{count(self.rows_per_generation, 'completion')} = {count(self.prompts_per_generation, 'prompt')} × "
            f"num_generations={self.group_size}. Nothing would be trained: {' or '.join(remedies)}."
        )
