"""The same model, prompts, completions and rewards through TRL 1.16 and gruppo: same parameters, same log.

What is compared, how to run it, and where gruppo differs on purpose: docs/trl-parity.md.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from pyarrow import parquet

from gruppo.data.order import epoch_permutation
from trl_parity.cases import CASES, LOSS_TYPES, Case
from trl_parity.harness import differing_metrics, differing_parameters, run_gruppo, run_trl

pytestmark = [
    pytest.mark.parity,
    # Both trainers advise against sequence-level ratios for some losses; what they compute then is compared anyway.
    pytest.mark.filterwarnings("ignore:.*importance_sampling_level:UserWarning"),
    # peft asks transformers by an old name.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_as_trl(case: Case, models: Path, tmp_path: Path) -> None:
    trl = run_trl(case, models, tmp_path / "trl")
    ours = run_gruppo(case, models, tmp_path / "gruppo")
    problems = differing_metrics(trl.log_history, ours.log_history) + differing_parameters(trl, ours)
    assert not problems, "\n".join(problems)


def test_cases_are_many_and_hold_every_loss_with_every_correction() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    met = {(case.settings.get("loss_type"), case.settings.get("vllm_importance_sampling_mode")) for case in CASES}
    modes = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    refused = {("vespo", "sequence_truncate"), ("vespo", "sequence_mask")}
    assert met >= set(product(LOSS_TYPES, modes)) - refused


def test_a_small_difference_is_noticed(models: Path, tmp_path: Path) -> None:
    case = Case("noticed", {"max_steps": 2})
    nearly = replace(case, config=case.config | {"learning_rate": 0.10001, "epsilon": 0.2})
    one, other = run_trl(case, models, tmp_path / "one"), run_trl(nearly, models, tmp_path / "other")
    assert differing_parameters(one, other)
    assert any("learning_rate" in problem for problem in differing_metrics(one.log_history, other.log_history))
    assert not differing_parameters(one, one)


def test_completions_table_is_trls(models: Path, tmp_path: Path) -> None:
    case = Case("table", {"log_completions": True, "max_steps": 2}, rewards=("by_row", "even"))
    run_trl(case, models, tmp_path / "trl")
    run_gruppo(case, models, tmp_path / "gruppo")
    for step in (1, 2):
        name = f"completions/completions_{step:05d}.parquet"
        theirs, ours = (parquet.read_table(tmp_path / side / name).to_pydict() for side in ("trl", "gruppo"))
        assert ours.pop("advantage") == pytest.approx(theirs.pop("advantage"), rel=1e-5)
        assert ours == theirs


def test_epochs_visit_prompts_in_trls_order() -> None:
    from trl.trainer.utils import RepeatSampler

    sampler = RepeatSampler(range(7), mini_repeat_count=1, batch_size=1, seed=3)
    assert [list(sampler) for _ in range(3)] == [epoch_permutation(7, 3, epoch) for epoch in range(3)]
