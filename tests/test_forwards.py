"""How a step's rows are cut and padded into forwards never changes what the step computes."""

import pytest
import torch

from fakes import flat, lines, policy, trainer


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo", "vespo"])
@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens_per_forward": 17},
        {"gradient_checkpointing": True},
        {"policy_forward": "padded"},
        {"policy_forward": "padded", "max_tokens_per_forward": 17},
        {"policy_forward": "padded", "pad_to_multiple_of": 8},
    ],
    ids=["tokens", "checkpointing", "padded", "padded-tokens", "padded-pad"],
)
def test_the_cut_into_forwards_does_not_change_the_step(tmp_path, loss_type, fields):
    common = {"loss_type": loss_type, "num_iterations": 2, "beta": 0.1, "entropy_coef": 0.01, "learning_rate": 1e-3}
    common["adam_epsilon"] = 1e-4  # with 1e-8 Adam makes full steps of rounding
    plain = trainer(tmp_path / "plain", common)
    plain.train()
    cut = trainer(tmp_path / "cut", {**common, **fields})
    cut.train()
    torch.testing.assert_close(flat(cut.model), flat(plain.model), rtol=0, atol=1e-6)
    for mine, theirs in zip(lines(cut), lines(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def widths_of_forwards(tmp_path, **fields):
    """Widths and numbers of tokens of the forwards that train."""
    made = trainer(tmp_path, {"max_steps": 1, "policy_forward": "padded", **fields})
    shapes = []

    def note(module, args, kwargs):
        if torch.is_grad_enabled():
            shapes.append(tuple(kwargs["input_ids"].shape))

    made.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    made.train()
    return shapes


def test_max_tokens_per_forward_limits_them(tmp_path):
    assert [rows for rows, _ in widths_of_forwards(tmp_path)] == [4, 4]
    limited = widths_of_forwards(tmp_path, max_tokens_per_forward=17)
    assert sum(rows for rows, _ in limited) == 8
    assert max(rows * width for rows, width in limited) <= 17


def test_pad_to_multiple_of_pads_rows(tmp_path):
    assert {width for _, width in widths_of_forwards(tmp_path)} == {8}
    assert {width for _, width in widths_of_forwards(tmp_path, pad_to_multiple_of=16)} == {16}


def test_learned_positions_need_not_reach_to_the_padding(tmp_path):
    made = trainer(
        tmp_path,
        {"max_steps": 1, "policy_forward": "padded", "pad_to_multiple_of": 64},
        model=policy("gpt2", n_positions=10),
    )
    made.train()
    assert made.state.global_step == 1
