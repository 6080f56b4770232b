"""The table of TRL's names: complete, and each kind of row does what it says."""

import dataclasses
import warnings

import pytest

from gruppo.config import FIELD_GROUPS, GRPOConfig, field_default
from gruppo.errors import ConfigError
from gruppo.trl_names import TABLE, Needless, Refused, Renamed, translate

FIELDS = set(FIELD_GROUPS)

CHOSEN_DEFAULTS = {"gradient_checkpointing", "output_dir", "vllm_importance_sampling_correction"}
"""Fields whose default is another than TRL's, on purpose: a folder instead of None for the same folder, a correction
that is on for external engines only, and no recomputing of activations, since packed forwards need less memory."""


@pytest.mark.parity
def test_every_field_of_trl_is_a_field_here_or_a_row_of_the_table() -> None:
    import trl

    theirs = {field.name for field in dataclasses.fields(trl.GRPOConfig)}
    assert len(theirs) == 191
    assert theirs - FIELDS - set(TABLE) == set()


@pytest.mark.parity
def test_trl_defaults_are_our_defaults() -> None:
    import trl

    theirs = {f.name: f.default for f in dataclasses.fields(trl.GRPOConfig) if f.default is not dataclasses.MISSING}
    differing = {name for name in FIELDS & theirs.keys() if field_default(name) != theirs[name]}
    assert differing == CHOSEN_DEFAULTS


@pytest.mark.parity
def test_trl_defaults_pass_in_silence() -> None:
    import trl

    theirs = {
        f.name: f.default if f.default is not dataclasses.MISSING else f.default_factory()  # type: ignore[misc]
        for f in dataclasses.fields(trl.GRPOConfig)
    }
    config = GRPOConfig(**theirs)
    assert config.non_default() == {"vllm_importance_sampling_correction": True, "gradient_checkpointing": True}


def test_no_row_is_also_a_field_and_new_names_are_fields() -> None:
    assert set(TABLE) & FIELDS == set()
    assert {entry.to for entry in TABLE.values() if isinstance(entry, Renamed)} <= FIELDS


@pytest.mark.parametrize(
    ("old", "value", "new", "kept"),
    [
        ("evaluation_strategy", "epoch", "eval_strategy", "epoch"),
        ("wandb_log_unique_prompts", True, "log_unique_prompts", True),
        ("warmup_ratio", 0.1, "warmup_steps", 0.1),
        ("no_cuda", True, "use_cpu", True),
        ("activation_checkpointing", False, "gradient_checkpointing", False),
        ("vllm_importance_sampling_cap", 2.0, "vllm_importance_sampling_clip_max", 2.0),
    ],
)
def test_renamed(old: str, value: object, new: str, kept: object) -> None:
    assert getattr(GRPOConfig("out", **{old: value}), new) == kept


def test_both_names_with_different_values_contradict() -> None:
    with pytest.raises(ConfigError, match=r"evaluation_strategy='steps' is another name for eval_strategy='no'"):
        GRPOConfig("out", evaluation_strategy="steps", eval_strategy="no")


def test_warmup_ratio_is_a_share() -> None:
    assert GRPOConfig("out", warmup_ratio=0.0, warmup_steps=5).warmup_steps == 5
    with pytest.raises(ConfigError, match=r"warmup_ratio=1\.5 must be a share"):
        GRPOConfig("out", warmup_ratio=1.5)


@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if isinstance(entry, Needless)])
def test_needless_names_warn_unless_they_ask_for_nothing(name: str) -> None:
    entry = TABLE[name]
    assert isinstance(entry, Needless)
    for silent in entry.silent_values:
        assert translate({name: silent}, FIELDS) == ({}, {})
    with pytest.warns(UserWarning, match=f"{name}=.* changes nothing: "):
        assert translate({name: "something else"}, FIELDS) == ({}, {})


@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if isinstance(entry, Refused)])
def test_refused_names_say_why_unless_they_ask_for_nothing(name: str) -> None:
    entry = TABLE[name]
    assert isinstance(entry, Refused)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for silent in entry.silent_values:
            assert translate({name: silent}, FIELDS) == ({}, {})
        values, problems = translate({name: "something else"}, FIELDS)
    assert values == {}
    assert problems == {name: f"{name}='something else' is not supported: {entry.reason}. Instead, {entry.instead}."}


def test_text_counts_as_what_it_spells() -> None:
    assert translate({"use_vllm": "false", "vllm_gpu_memory_utilization": "0.3"}, FIELDS) == ({}, {})


def test_a_config_of_2025_is_accepted() -> None:
    config = GRPOConfig(
        output_dir="out",
        max_prompt_length=512,
        max_completion_length=1024,
        scale_rewards=True,
        top_k=None,
        use_vllm=False,
        vllm_mode="server",
        log_completions=True,
        warmup_ratio=0.03,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    assert (config.max_prompt_length, config.scale_rewards, config.top_k) == (512, "group", 0)
    assert config.get_warmup_steps(100) == 3
    with pytest.warns(UserWarning, match="use_liger_loss=True changes nothing"):
        GRPOConfig("out", use_liger_loss=True)


@pytest.mark.parametrize("value", [True, False])
def test_where_a_run_of_several_nodes_logs_is_nothing_to_warn_of(value: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GRPOConfig("out", log_on_each_node=value) == GRPOConfig("out")
