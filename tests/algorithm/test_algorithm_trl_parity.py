"""gruppo's algorithm against TRL 1.16's own methods: masks, weights, and its whole loss on a stand-in trainer.

TRL's `_compute_loss` is called with everything around it faked (model, accelerator), in float32, per micro-batch
and rank; ours gets all rows of the rank at once. Loss, gradient and every logged metric are compared. Of the
advantages only the deviation is compared here, because TRL computes them inside generation.
"""

import warnings
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gruppo.algorithm.advantages import nan_std
from gruppo.algorithm.losses import (
    LOSSES,
    LossInputs,
    LossSettings,
    RowStats,
    Terms,
    gamma_weights,
    loss_metrics,
    policy_loss,
    row_weights,
)
from gruppo.algorithm.masks import off_policy_keep, top_entropy
from gruppo.algorithm.reduce import RowCounts, entropy_weights

pytestmark = pytest.mark.parity

ROWS_PER_SLICE, NUM_SLICES, LENGTH, MAX_LENGTH = 3, 2, 6, 8


@pytest.fixture(scope="module")
def trl_trainer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("trl.trainer.grpo_trainer")
    return module.GRPOTrainer


class OneRank:
    """accelerate.Accelerator as TRL's loss sees it on a single process (or, for the loss alone, on one of two)."""

    sync_gradients = True

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes

    def gather(self, x):
        return x.reshape(-1) if x.ndim == 0 else x

    def reduce(self, x, reduction):
        return x

    def pad_across_processes(self, x, dim, pad_index):
        return x


def make_rows(seed: int, num_rows: int) -> dict[str, torch.Tensor]:
    """One rank's rows in float32; one of them without any trained token, one with a hole."""
    g = torch.Generator().manual_seed(seed)
    shape = (num_rows, LENGTH)
    trained_NT = torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (num_rows, 1), generator=g)
    trained_NT[0] = False
    trained_NT[1, 1] = False
    logprobs_NT = -torch.rand(shape, generator=g) * 3 - 0.05
    sampler_NT = logprobs_NT + 0.3 * torch.randn(shape, generator=g)
    sampler_NT[2, 0] = torch.nan
    return {
        "trained": trained_NT,
        # As TRL's own forward leaves them: 0 on tokens that are not trained.
        "logprobs": logprobs_NT * trained_NT,
        "old": (logprobs_NT + 0.4 * torch.randn(shape, generator=g)) * trained_NT,
        "ref": (logprobs_NT + 0.4 * torch.randn(shape, generator=g)) * trained_NT,
        "sampler": sampler_NT,
        "entropy": torch.rand(shape, generator=g) * trained_NT,
        "advantages": torch.randn(num_rows, generator=g),
        "token_correction": torch.where(trained_NT, torch.rand(shape, generator=g) * 2, 1.0),
        "row_correction": torch.rand(num_rows, 1, generator=g) * 2,
    }


def fake_trainer(trl_trainer, settings: LossSettings, case: dict, world_size: int) -> SimpleNamespace:
    has_correction = "correction" in case
    fake = SimpleNamespace(
        accelerator=OneRank(world_size),
        args=SimpleNamespace(
            use_bias_correction_kl=settings.use_bias_correction_kl,
            delta=settings.delta,
            steps_per_generation=case.get("S", NUM_SLICES),
            sapo_temperature_pos=settings.sapo_temperature_pos,
            sapo_temperature_neg=settings.sapo_temperature_neg,
            vespo_k_pos=settings.vespo_k_pos,
            vespo_k_neg=settings.vespo_k_neg,
            vespo_lambda_pos=settings.vespo_lambda_pos,
            vespo_lambda_neg=settings.vespo_lambda_neg,
        ),
        model=SimpleNamespace(training=case.get("training", True)),
        aux_loss_enabled=False,
        top_entropy_quantile=settings.top_entropy_quantile,
        off_policy_mask_threshold=settings.off_policy_mask_threshold,
        importance_sampling_level=settings.importance_level,
        beta=settings.beta,
        loss_type=settings.loss_type,
        epsilon_low=settings.epsilon_low,
        epsilon_high=settings.epsilon_high,
        use_vllm=has_correction,
        vllm_importance_sampling_correction=has_correction,
        current_gradient_accumulation_steps=NUM_SLICES,
        max_completion_length=MAX_LENGTH,
        _entropy_bonus_enabled="entropy_coef" in case,
        use_adaptive_entropy=False,
        entropy_coef=case.get("entropy_coef", 0.0),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        get_off_policy_mask=trl_trainer.get_off_policy_mask,
        get_gamma_weights=trl_trainer.get_gamma_weights,
    )
    fake.get_high_entropy_mask = lambda *args: trl_trainer.get_high_entropy_mask(fake, *args)
    return fake


def run_trl(trl_trainer, rows, settings, case, *, num_generation_tokens, world_size):
    """-> (sum of micro-losses of this rank, gradient, metrics per micro-batch)."""
    fake = fake_trainer(trl_trainer, settings, case, world_size)
    logprobs_NT = rows["logprobs"].clone().requires_grad_()
    total = torch.zeros(())
    for part in torch.arange(len(logprobs_NT)).split(ROWS_PER_SLICE):
        fake._get_per_token_logps_and_entropies = lambda *args, part=part, **kwargs: (
            logprobs_NT[part],
            rows["entropy"][part],
            None,
        )
        mask_NT = rows["trained"][part].long()
        inputs = {
            "prompt_ids": torch.ones(len(part), 1),
            "prompt_mask": torch.ones(len(part), 1),
            "completion_ids": torch.ones_like(mask_NT),
            "completion_mask": mask_NT,
            "advantages": rows["advantages"][part],
            "old_per_token_logps": rows["old"][part] if case.get("has_old", True) else None,
            "ref_per_token_logps": rows["ref"][part],
            "num_items_in_batch": torch.tensor(num_generation_tokens),
        }
        if case.get("has_sampler"):
            inputs["sampling_per_token_logps"] = rows["sampler"][part]
        if "correction" in case:
            inputs["importance_sampling_ratio"] = rows[case["correction"]][part]
        loss = trl_trainer._compute_loss(fake, None, inputs)
        loss.backward()
        total += loss.detach()
    return total, logprobs_NT.grad, fake._metrics["train" if case.get("training", True) else "eval"]


def run_ours(rows, settings, case, *, num_generation_tokens, world_size):
    slice_ids_N = torch.arange(len(rows["logprobs"])) // ROWS_PER_SLICE
    logprobs_NT = rows["logprobs"].clone().requires_grad_()
    counts = RowCounts(
        num_tokens_N=rows["trained"].sum(dim=1),
        slice_ids_N=slice_ids_N,
        num_rows_per_slice=ROWS_PER_SLICE,
        num_slices_in_window=NUM_SLICES,
        num_slices_per_generation=case.get("S", NUM_SLICES),
        num_generation_tokens=num_generation_tokens,
        world_size=world_size,
        max_completion_length=MAX_LENGTH,
        is_training=case.get("training", True),
    )
    entropy_mask_NT = None
    if settings.top_entropy_quantile < 1:
        slices = torch.arange(len(logprobs_NT)).split(ROWS_PER_SLICE)
        keep = settings.top_entropy_quantile
        masks = [top_entropy(rows["entropy"][i], rows["trained"][i], quantile_keep=keep) for i in slices]
        entropy_mask_NT = torch.cat(masks)
    active_NT = rows["trained"] if entropy_mask_NT is None else entropy_mask_NT
    out = policy_loss(
        LossInputs(
            logprobs_NT=logprobs_NT,
            entropy_NT=rows["entropy"],
            advantages_N=rows["advantages"],
            trained_NT=rows["trained"],
            row_weights_N=row_weights(settings.loss_type, counts),
            old_logprobs_NT=rows["old"] if case.get("has_old", True) else None,
            ref_logprobs_NT=rows["ref"],
            sampler_logprobs_NT=rows["sampler"] if case.get("has_sampler") else None,
            sampler_correction_NT=rows[case["correction"]] if "correction" in case else None,
            entropy_mask_NT=entropy_mask_NT,
            entropy_coef=case.get("entropy_coef", 0.0),
            entropy_weights_N=entropy_weights(active_NT.sum(dim=1), counts),
        ),
        settings,
    )
    out.loss.backward()
    return out, logprobs_NT.grad, slice_ids_N, counts


CASES = {
    "plain": ({}, {}),
    "on-policy": ({"beta": 0.1}, {"has_old": False}),
    "kl": ({"beta": 0.2}, {}),
    "kl, uncorrected": ({"beta": 0.2, "use_bias_correction_kl": False}, {}),
    "delta, asymmetric": ({"delta": 1.3, "epsilon_low": 0.1, "epsilon_high": 0.4}, {}),
    "rounds longer than steps": ({}, {"S": 8}),
    "evaluation": ({"beta": 0.2}, {"training": False}),
    "off-policy mask": ({"off_policy_mask_threshold": 0.05}, {}),
    "off-policy mask by sampler": ({"off_policy_mask_threshold": 0.05}, {"has_sampler": True}),
    "token correction": ({"beta": 0.1}, {"correction": "token_correction"}),
    "row correction": ({}, {"correction": "row_correction"}),
    "entropy mask": ({"top_entropy_quantile": 0.3}, {}),
    "entropy bonus": ({"top_entropy_quantile": 0.6, "beta": 0.1}, {"entropy_coef": 0.05}),
    "other gates": (
        {"sapo_temperature_pos": 0.7, "sapo_temperature_neg": 1.4, "vespo_k_pos": 1.5, "vespo_lambda_neg": 1.0},
        {},
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", sorted(LOSSES))
def test_loss_gradient_and_metrics_equal_trl(trl_trainer, loss_type, level, name):
    setting_changes, case = CASES[name]
    settings = LossSettings(loss_type=loss_type, importance_level=level, **setting_changes)
    if loss_type == "cispo":
        settings = replace(settings, epsilon_high=1.1)
    rows = make_rows(seed=11, num_rows=ROWS_PER_SLICE * NUM_SLICES)
    tokens = int(rows["trained"].sum())
    theirs, their_gradient, their_metrics = run_trl(
        trl_trainer, rows, settings, case, num_generation_tokens=tokens, world_size=1
    )
    out, gradient, slice_ids_N, counts = run_ours(rows, settings, case, num_generation_tokens=tokens, world_size=1)
    # fp32 rounding: 16 ulp of the largest term.
    torch.testing.assert_close(out.loss.detach(), theirs, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(gradient, their_gradient, rtol=2e-6, atol=1e-8)
    metrics = loss_metrics(
        out.rows,
        slice_ids_N,
        settings,
        num_slices_in_window=counts.window,
        has_entropy_bonus="entropy_coef" in case,
    )
    ours_only = {"ratio/mean", "ratio/max"}
    theirs_only = {"entropy_coef"}  # the controller's, not the loss's
    assert set(metrics) - ours_only == set(their_metrics) - theirs_only
    for key in set(metrics) - ours_only:
        assert metrics[key] == pytest.approx(their_metrics[key], rel=2e-6, abs=1e-7), key


@pytest.mark.parametrize("loss_type", sorted(LOSSES))
def test_two_ranks_summed_equal_trl_averaged(trl_trainer, loss_type):
    settings = LossSettings(loss_type=loss_type, beta=0.1)
    ranks = [make_rows(seed, ROWS_PER_SLICE * NUM_SLICES) for seed in (1, 2)]
    tokens = sum(int(rows["trained"].sum()) for rows in ranks)
    theirs = [
        run_trl(trl_trainer, rows, settings, {}, num_generation_tokens=tokens, world_size=2)[:2] for rows in ranks
    ]
    ours = [run_ours(rows, settings, {}, num_generation_tokens=tokens, world_size=2)[:2] for rows in ranks]
    their_loss = sum(loss for loss, _ in theirs) / 2
    all_rows = RowStats.cat([out.rows for out, _ in ours])
    torch.testing.assert_close(all_rows.loss.sum(), their_loss, rtol=2e-6, atol=2e-7)
    for (_, gradient), (_, their_gradient) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, their_gradient / 2, rtol=2e-6, atol=1e-8)


def test_off_policy_keep_equals_trl(trl_trainer):
    rows = make_rows(3, 50)
    for threshold in (0.0, 0.05, 0.2):
        ours = off_policy_keep(
            rows["advantages"], rows["logprobs"], rows["sampler"], rows["trained"], threshold=threshold
        )
        theirs = trl_trainer.get_off_policy_mask(
            rows["advantages"].unsqueeze(1), rows["logprobs"], rows["sampler"], rows["trained"].long(), threshold
        )
        assert ours.equal(theirs.bool())
        assert 0 < ours.sum() < 50


@pytest.mark.parametrize("correction", [None, "token_correction", "row_correction"])
def test_gamma_weights_equal_trl(trl_trainer, correction):
    rows = make_rows(4, 50)
    log_ratio_NT = 4 * (rows["logprobs"] - rows["old"])
    correction_N = None if correction is None else rows[correction].masked_fill(rows[correction] < 0.2, 0.0)
    terms = Terms(
        logprobs_NT=rows["logprobs"],
        log_ratio_NT=log_ratio_NT,
        ratio=log_ratio_NT.exp(),
        advantages_N1=rows["advantages"].unsqueeze(1),
        sampler_correction=correction_N,
        trained_NT=rows["trained"],
    )
    theirs = trl_trainer.get_gamma_weights(
        rows["advantages"].unsqueeze(1), log_ratio_NT, rows["trained"].long(), correction_N
    )
    torch.testing.assert_close(gamma_weights(terms, LossSettings()), theirs, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.5, 0.8, 0.9])
def test_top_entropy_equals_trl(trl_trainer, keep):
    for seed in range(5):
        rows = make_rows(seed, 30)
        fake = SimpleNamespace(accelerator=OneRank(1))
        theirs = trl_trainer.get_high_entropy_mask(fake, rows["entropy"], rows["trained"].long(), 1 - keep)
        assert top_entropy(rows["entropy"], rows["trained"], quantile_keep=keep).equal(theirs)


def test_nan_std_equals_trl(trl_trainer):
    theirs = pytest.importorskip("trl.trainer.utils").nanstd
    values_PG = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * 3
    values_PG[values_PG > 2] = torch.nan
    torch.testing.assert_close(
        nan_std(values_PG).squeeze(1), theirs(values_PG, dim=1), rtol=1e-6, atol=0, equal_nan=True
    )
    values_N = values_PG.flatten()
    torch.testing.assert_close(nan_std(values_N), theirs(values_N).unsqueeze(0), rtol=1e-6, atol=0)
