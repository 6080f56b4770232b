"""Step 4, loss: forward, backward and optimizer step over this rank's rows of a generation round.

The user's batch fields decide which rows an optimizer step contains and what each row weighs (`plan`, `algorithm`).
Row weights are counted before the first forward, so how the rows are cut into forwards (`forward_cut`) never changes
the objective, and a step that runs out of memory is done again in smaller ones.

Not here: when to log, evaluate or save (`trainer`), and the formulas (`algorithm`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from gruppo.algorithm.entropy import EntropyControl, applied_coef, next_entropy_control
from gruppo.algorithm.losses import LossInputs, LossOutput, LossSettings, loss_metrics, policy_loss, row_weights
from gruppo.algorithm.masks import top_entropy
from gruppo.algorithm.ratios import sampler_correction
from gruppo.algorithm.reduce import RowCounts, entropy_weights
from gruppo.algorithm.row_stats import RowStats
from gruppo.distributed.shard import sum_gradients
from gruppo.errors import ConfigError
from gruppo.forward_cut import ForwardCut
from gruppo.metrics import Mean, Stats
from gruppo.types import TrainBatch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gruppo.distributed.world import World
    from gruppo.forwards import Forwards
    from gruppo.plan import BatchPlan, Segment
    from gruppo.policy.logprobs import Forward
    from gruppo.settings import LearnerSettings

Done = TypeVar("Done")


class Learner:
    """Owns optimizer and schedule, and the gradients that add up between two optimizer steps."""

    def __init__(
        self,
        forwards: Forwards,
        *,
        parameters: list[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        loss_settings: LossSettings,
        settings: LearnerSettings,
        entropy_control: EntropyControl,
        plan: BatchPlan,
        accelerator: Accelerator,
        world: World,
    ) -> None:
        self.optimizer, self.scheduler = optimizer, scheduler
        self.entropy_control = entropy_control
        self._forwards, self._parameters = forwards, parameters
        self.loss_settings, self.settings, self._plan = loss_settings, settings, plan
        self._accelerator, self._world = accelerator, world
        self._active_entropy = [0.0, 0.0]
        self._aux_losses: list[Tensor] = []
        self._cut = ForwardCut(
            rows_per_slice=plan.rows_per_slice,
            is_packed=settings.is_packed,
            max_tokens=settings.max_tokens_per_forward,
            is_by_slice=loss_settings.top_entropy_quantile < 1.0 or settings.aux_loss_coef != 0.0,
            # Then the loss of a row is its advantage times something.
            skips_zero_advantage=loss_settings.beta == 0.0
            and not settings.has_entropy_bonus
            and not settings.has_experts,
        )
        self._first_schedule = copy.deepcopy(scheduler.state_dict())
        self._first_rates = [group["lr"] for group in optimizer.param_groups]
        self._first_control = entropy_control
        self.on_forward: Callable[[Sequence[int], Forward, LossOutput, bool], None] | None = None
        """Told after each backward pass: rows (places in the round's batch), their forward and loss, is_on_policy."""
        self.on_forget: Callable[[Sequence[int]], None] | None = None
        """Told that what `on_forward` was told of these rows last does not count: they go through once more."""

    # -- once per run

    def begin_run(self) -> None:
        """Schedule and controllers as at construction, no gradients; the optimizer keeps its moments, as in
        transformers. A second `train()` would otherwise go on at the end of the first one's schedule."""
        self.scheduler.load_state_dict(copy.deepcopy(self._first_schedule))
        for group, rate in zip(self.optimizer.param_groups, self._first_rates, strict=True):
            group["lr"] = rate
        self.entropy_control = self._first_control
        self._active_entropy, self._aux_losses = [0.0, 0.0], []
        self.optimizer.zero_grad()

    # -- once per generation round

    @torch.no_grad()
    def begin_round(self, batch: TrainBatch, segments: Sequence[Segment]) -> TrainBatch:
        """Add what the loss needs and the live policy cannot give later: reference and old log-probs.

        Rows of the first segment are on-policy: the live policy's own detached values are their old log-probs, and
        their forward fills them in (NaN until then). Only rows whose first use comes after an optimizer step of this
        round cost an extra forward here; with `old_logprobs="sampler"` (decision 11) only those of which the sampler
        did not say everything.
        """
        old_logprobs_NT = torch.full(batch.trained_NT.shape, torch.nan, device=batch.trained_NT.device)
        fresh = {micro.slice_index for micro in segments[0].micro_steps}
        is_used = {micro.slice_index for segment in segments for micro in segment.micro_steps}
        stale = [row for row, number in enumerate(batch.slice_ids) if number in is_used - fresh]
        said_NT = batch.sampler_logprobs_NT if self.settings.is_old_from_sampler else None
        unsaid = stale
        if said_NT is not None:
            has_gap = (batch.trained_NT & said_NT.isnan()).any(dim=1).tolist()
            unsaid = [row for row in stale if has_gap[row]]
        self._fill(old_logprobs_NT, batch, unsaid, lambda part: self._forwards.frozen(part).logprobs_NT)
        if said_NT is not None:
            old_logprobs_NT[stale] = said_NT[stale].where(~said_NT[stale].isnan(), old_logprobs_NT[stale])
        return replace(batch, old_logprobs_NT=old_logprobs_NT, ref_logprobs_NT=self._reference(batch))

    def _reference(self, batch: TrainBatch) -> Tensor | None:
        if not self._forwards.has_reference:
            return None
        ref_logprobs_NT = torch.zeros(batch.trained_NT.shape, device=batch.trained_NT.device)
        self._fill(ref_logprobs_NT, batch, list(range(len(batch))), self._forwards.reference)
        return ref_logprobs_NT

    def _fill(
        self, target_NT: Tensor, batch: TrainBatch, rows: list[int], forward: Callable[[TrainBatch], Tensor]
    ) -> None:
        def run() -> None:
            for part in self._cut.without_gradient(batch, rows):
                _write(target_NT, part, forward(batch.rows(part)))

        self._within_memory(run, batch.rows(rows), undo=lambda: None)

    def _within_memory(self, run: Callable[[], Done], batch: TrainBatch, undo: Callable[[], None] | None) -> Done:
        """`run()`; out of memory: `undo()`, and again with forwards of half the size, as often as that is possible."""
        while True:
            try:
                return run()
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                error.add_note("gruppo: max_tokens_per_forward makes forwards smaller; the loss stays the same.")
                if undo is None or not self._cut.halve(batch):
                    raise
            undo()

    def sampler_metrics(self, batch: TrainBatch) -> dict[str, float]:
        """sampling/*: how far the sampler's log-probs are from the trainer's (nats), and the importance ratio that the
        correction applies (or would apply, unclipped). Known once the round's first segment has been through.

        Collective. A rank whose sampler said nothing counts as one whose tokens are all unknown.
        """
        assert batch.old_logprobs_NT is not None
        is_known = torch.tensor([batch.sampler_logprobs_NT is not None], dtype=torch.int32)
        if not self._world.max_(is_known).item():
            return {}
        old_NT, sampler_NT = batch.old_logprobs_NT, batch.sampler_logprobs_NT
        if sampler_NT is None:
            sampler_NT = torch.full_like(old_NT, torch.nan)
        gap_NT = (old_NT - sampler_NT).abs()
        gap = self._world.gather_rows(gap_NT[batch.trained_NT & ~gap_NT.isnan()])
        ratio = self._correction(replace(batch, sampler_logprobs_NT=sampler_NT), old_NT)
        ratio = self._world.gather_rows(ratio.flatten() if ratio.shape[1] == 1 else ratio[batch.trained_NT])
        gap, ratio = (x if x.numel() else x.new_zeros(1) for x in (gap, ratio))
        return {
            "sampling/sampling_logp_difference/mean": gap.mean().item(),
            "sampling/sampling_logp_difference/max": gap.max().item(),
            "sampling/importance_sampling_ratio/min": ratio.min().item(),
            "sampling/importance_sampling_ratio/mean": ratio.mean().item(),
            "sampling/importance_sampling_ratio/max": ratio.max().item(),
        }

    def _correction(self, batch: TrainBatch, old_logprobs_NT: Tensor) -> Tensor:
        assert batch.sampler_logprobs_NT is not None
        has_correction = self.settings.has_correction
        return sampler_correction(
            old_logprobs_NT,
            batch.sampler_logprobs_NT,
            batch.trained_NT,
            mode=self.settings.correction_mode if has_correction else "token_truncate",
            clip_min=self.settings.correction_clip_min if has_correction else None,
            clip_max=self.settings.correction_clip_max if has_correction else None,
        )

    # -- once per segment: the part of the round that falls into one optimizer step

    def accumulate(
        self, batch: TrainBatch, segment: Segment, *, num_generation_tokens: int, is_on_policy: bool
    ) -> tuple[Stats, float]:
        """Forward and backward of a segment's rows; gradients add up until `step`.

        Args:
            batch: this rank's rows of the round, from `begin_round`; its old log-probs are filled in.
            num_generation_tokens: trained tokens of the round, all ranks.
            is_on_policy: no optimizer step since the round was sampled.

        Returns TRL's per-slice metrics and the segment's share of the loss, over all ranks.
        """
        uses = [  # (number of the micro-step, row): a row comes twice if two passes fall into one optimizer step
            (number, row)
            for number, micro in enumerate(segment.micro_steps)
            for row, slice_id in enumerate(batch.slice_ids)
            if slice_id == micro.slice_index
        ]
        rows, numbers = [row for _, row in uses], torch.tensor([number for number, _ in uses])
        step = batch.rows(rows)
        counts = self._counts(step, numbers.to(step.trained_NT.device), segment.window_size, num_generation_tokens)
        step = replace(step, row_weights_N=row_weights(self.loss_settings.loss_type, counts))
        bonus_weights_N = entropy_weights(step.num_trained_tokens_N, counts)

        told: list[list[int]] = []

        def run() -> tuple[list[RowStats], list[int]]:
            stats, order = [], []
            for part in self._cut.for_training(step, numbers.tolist()):
                used, tokens = [rows[place] for place in part.rows], step.rows(part.rows)
                with torch.set_grad_enabled(part.has_gradient):
                    tokens, forward = self._forward(batch, used, tokens, is_on_policy)
                    output = self._loss(tokens, forward, _of(counts, part.rows), bonus_weights_N[part.rows])
                if part.has_gradient:
                    self._accelerator.backward(output.loss)
                if self.on_forward is not None:
                    self.on_forward(used, forward, output, is_on_policy)
                    told.append(used)
                stats.append(output.rows)
                order += part.rows
            return stats, order

        # What a broken-off backward pass leaves can be told from earlier gradients only if there are none.
        stats, order = self._within_memory(run, step, undo=partial(self._forget, told) if segment.is_first else None)
        return self._summary(RowStats.cat(stats), numbers[order], segment.window_size)

    def _forget(self, told: list[list[int]]) -> None:
        self.optimizer.zero_grad()
        self._aux_losses = []
        while told and self.on_forget is not None:
            self.on_forget(told.pop())

    def _counts(self, step: TrainBatch, numbers_N: Tensor, window_size: int, num_generation_tokens: int) -> RowCounts:
        return RowCounts(
            num_tokens_N=step.num_trained_tokens_N,
            slice_ids_N=numbers_N,
            num_rows_per_slice=self._plan.rows_per_slice,
            num_slices_in_window=window_size,
            num_slices_per_generation=self._plan.slices_per_generation,
            num_generation_tokens=num_generation_tokens,
            world_size=self._world.size,
            max_completion_length=self.settings.max_completion_length,
            is_training=True,
        )

    def _forward(
        self, batch: TrainBatch, rows: list[int], part: TrainBatch, is_on_policy: bool
    ) -> tuple[TrainBatch, Forward]:
        assert batch.old_logprobs_NT is not None
        forward = self._forwards.live(part, entropy_needs_grad=self.settings.has_entropy_bonus)
        if is_on_policy:
            part = replace(part, old_logprobs_NT=None)
            _write(batch.old_logprobs_NT, rows, forward.logprobs_NT.detach())
        return part, forward

    def _loss(self, part: TrainBatch, forward: Forward, counts: RowCounts, bonus_weights_N: Tensor) -> LossOutput:
        output = policy_loss(self._loss_inputs(part, forward, counts, bonus_weights_N), self.loss_settings)
        loss, rows = output.loss, output.rows
        if forward.aux_loss is not None:
            # Every row brings the same part of its forward's load-balancing loss, so that slices weigh the same.
            row_share = 1.0 / (counts.num_rows_per_slice * counts.window * counts.world_size)
            aux_loss = self.settings.aux_loss_coef * row_share * forward.aux_loss
            loss = loss + len(part) * aux_loss
            rows = replace(rows, loss=rows.loss + aux_loss.detach())
            self._aux_losses.append(forward.aux_loss.detach())
        return replace(output, loss=loss, rows=rows)

    def _loss_inputs(
        self, part: TrainBatch, forward: Forward, counts: RowCounts, bonus_weights_N: Tensor
    ) -> LossInputs:
        assert part.row_weights_N is not None
        assert forward.entropy_NT is not None
        settings = self.settings
        old_logprobs_NT = forward.logprobs_NT.detach() if part.old_logprobs_NT is None else part.old_logprobs_NT
        is_corrected = settings.has_correction and part.sampler_logprobs_NT is not None
        entropy_mask_NT = self._entropy_mask(forward.entropy_NT, part.trained_NT)
        if entropy_mask_NT is not None:
            # The tokens that the bonus acts on are known only now; this forward holds their whole slice.
            bonus_weights_N = entropy_weights((part.trained_NT & entropy_mask_NT).sum(dim=1), counts)
        has_bonus = settings.has_entropy_bonus
        return LossInputs(
            logprobs_NT=forward.logprobs_NT,
            entropy_NT=forward.entropy_NT,
            advantages_N=part.advantages_N,
            trained_NT=part.trained_NT,
            row_weights_N=part.row_weights_N,
            old_logprobs_NT=part.old_logprobs_NT,
            ref_logprobs_NT=part.ref_logprobs_NT,
            sampler_logprobs_NT=part.sampler_logprobs_NT,
            sampler_correction_NT=self._correction(part, old_logprobs_NT) if is_corrected else None,
            entropy_mask_NT=entropy_mask_NT,
            entropy_coef=applied_coef(self.entropy_control, settings.entropy_target) if has_bonus else 0.0,
            entropy_weights_N=bonus_weights_N if has_bonus else None,
        )

    def _entropy_mask(self, entropy_NT: Tensor, trained_NT: Tensor) -> Tensor | None:
        if self.loss_settings.top_entropy_quantile >= 1.0:
            return None
        all_entropies = self._world.gather_rows(entropy_NT.detach()[trained_NT])
        keep = self.loss_settings.top_entropy_quantile
        return top_entropy(entropy_NT, trained_NT, quantile_keep=keep, all_entropies=all_entropies)

    def _summary(self, rows: RowStats, numbers_N: Tensor, window_size: int) -> tuple[Stats, float]:
        everything = RowStats.unstack(self._world.gather_rows(rows.stack()))
        numbers_N = self._world.gather_rows(numbers_N)
        self._active_entropy[0] += everything.active_entropy.sum().item()
        self._active_entropy[1] += everything.num_active_tokens.sum().item()
        by_slice = loss_metrics(
            everything,
            numbers_N,
            self.loss_settings,
            num_slices_in_window=window_size,
            has_entropy_bonus=self.settings.has_entropy_bonus,
        )
        stats = Stats({name: Mean.of(values) for name, values in by_slice.items()})
        if self._aux_losses:
            stats.add({"aux_loss": Mean.of(self._world.gather_rows(torch.stack(self._aux_losses)).tolist())})
            self._aux_losses = []
        return stats, everything.loss.sum().item()

    # -- once per optimizer step

    def clip_gradients(self) -> float:
        """Sum gradients over ranks and clip them to `max_grad_norm` (0: no clipping). Returns the norm before it."""
        sum_gradients(self._parameters, self._world)
        limit = self.settings.max_grad_norm
        return float(self._accelerator.clip_grad_norm_(self._parameters, limit if limit > 0 else float("inf")))

    def step(self) -> float:
        """Optimizer and schedule. Returns the learning rate that was used."""
        self.optimizer.step()
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        if not self._accelerator.optimizer_step_was_skipped and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        self.optimizer.zero_grad()
        self._control_entropy()
        return learning_rate

    def step_plateau_schedule(self, metrics: Mapping[str, float], name: str) -> None:
        """After an evaluation: reduce_lr_on_plateau goes by metric `name`, all other schedules by steps alone.

        Raises ConfigError if the evaluation did not give that metric.
        """
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            return
        if name not in metrics:
            raise ConfigError(
                f"lr_scheduler_type='reduce_lr_on_plateau' follows {name}, which the evaluation did not give. It gave: "
                f"{', '.join(sorted(metrics))}. Set metric_for_best_model to one of these."
            )
        self.scheduler.step(metrics[name])

    def _control_entropy(self) -> None:
        settings = self.settings
        if settings.has_entropy_bonus and settings.entropy_target is not None:
            self.entropy_control = next_entropy_control(
                self.entropy_control,
                *self._active_entropy,
                target=settings.entropy_target,
                delta=settings.entropy_coef_delta,
                min=settings.entropy_coef_min,
                max=settings.entropy_coef_max,
            )
        self._active_entropy = [0.0, 0.0]


def _write(target_NT: Tensor, rows: Sequence[int], values_NT: Tensor) -> None:
    target_NT[list(rows), : values_NT.shape[1]] = values_NT.to(target_NT.dtype)


def _of(counts: RowCounts, rows: list[int]) -> RowCounts:
    return replace(counts, num_tokens_N=counts.num_tokens_N[rows], slice_ids_N=counts.slice_ids_N[rows])
