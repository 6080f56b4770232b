"""GRPOConfig: what it accepts, what it refuses and in which words, and how it prints."""

import copy
import dataclasses
import io
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console
from rich.pretty import pprint

from gruppo.cli.config_docs import config_page
from gruppo.config import FIELD_DOCS, FIELD_GROUPS, GRPOConfig, field_default
from gruppo.config_checks import all_rules
from gruppo.config_data import COMMON_FIELDS
from gruppo.errors import ConfigError

THIRTEEN = [
    # what TRL 1.16's constructor accepts
    ({"epsilon": 20}, r"epsilon=20 must be at most 1\.0\. .*Usual is 0\.2"),
    ({"loss_type": "gpro"}, r"loss_type='gpro' must be one of grpo, bnpo, .*Did you mean 'grpo'\?"),
    ({"scale_rewards": "grup"}, r"scale_rewards='grup' must be one of group, batch, none\. Did you mean 'group'\?"),
    ({"learning_rate": 2e-4}, r"learning_rate=0\.0002 is far above .*usual are 1e-7 to 5e-6.*allow_unusual"),
    ({"temperature": 0.0}, r"temperature=0\.0 must be greater than 0.*nothing is learnt.*eval_temperature=0"),
    ({"beta": -1}, r"beta=-1 must be at least 0.*Set 0 for no KL term"),
    ({"max_completion_length": -5}, r"max_completion_length=-5 must be at least 1"),
    ({"top_p": 5}, r"top_p=5 must be at most 1.*Set 1\.0 to sample from all tokens"),
    ({"reward_weights": "1,2"}, r"reward_weights='1,2' must be a list.*\[1\.0, 0\.5\]"),
    # what it refuses too
    ({"num_generations": 1}, r"num_generations=1 must be at least 2"),
    ({"num_generations": 6}, r"num_generations=6 needs a multiple of 6.*gradient_accumulation_steps=3"),
    ({"generation_batch_size": 8, "steps_per_generation": 1}, r"say the same thing twice"),
    ({"num_generatons": 8}, r"GRPOConfig has no field 'num_generatons'\. Did you mean 'num_generations'\?"),
]


@pytest.mark.parametrize(("fields", "message"), THIRTEEN, ids=[next(iter(fields)) for fields, _ in THIRTEEN])
def test_thirteen_of_thirteen_bad_values_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        GRPOConfig("out", **fields)
    assert len(error.value.problems) == 1


def test_all_mistakes_come_at_once() -> None:
    mistakes: dict[str, object] = {}
    for fields, _ in THIRTEEN[:9]:
        mistakes |= fields
    with pytest.raises(ConfigError) as error:
        GRPOConfig("out", **mistakes, use_vllm=True, nonsense=1, generation_batch_size=12)
    assert len(error.value.problems) == 12
    assert "12 problems:" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 0}, r"max_steps=0 trains nothing"),
        ({"bf16": True, "fp16": True}, r"exclude each other"),
        ({"sync_ref_model": True}, r"Set beta above 0, or sync_ref_model=False"),
        ({"loss_type": "cispo"}, r"for cispo it caps the importance ratio itself.*usual is 5\.0"),
        ({"epsilon_high": 5.0}, r"usual is 0\.2 to 0\.3"),
        ({"loss_type": "vespo", "vllm_importance_sampling_correction": True}, r"token_truncate' or 'token_mask'"),
        ({"vllm_importance_sampling_clip_min": 4.0}, r"clip_min=4\.0 must be less than .*clip_max=3\.0"),
        (
            {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": None},
            r"clamps to bounds, and both are None",
        ),
        ({"use_adaptive_entropy": True, "entropy_coef_min": 2.0}, r"entropy_coef_min=2\.0 is above"),
        ({"reward_weights": [0.0, 0.0]}, r"nothing could be learnt"),
        ({"reward_weights": [1.0, float("nan")]}, r"reward_weights=\[1\.0, nan\] \(entry 2\) must be a finite number"),
        ({"log_completions_hub_repo": "me/x"}, r"Set log_completions=True"),
        ({"logging_steps": 2.5}, r"logging_steps=2\.5 must be a whole number of steps, or a share"),
        ({"warmup_steps": 1.5}, r"warmup_steps=1\.5 must be a whole number"),
        ({"save_steps": 0}, r"save_steps=0 saves nothing"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch"},
            r"save_strategy='steps' and eval_strategy='epoch'",
        ),
        ({"save_strategy": "best"}, r"leaves nothing to choose the best checkpoint by"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 30, "save_steps": 100},
            r"save_steps=100 is not a multiple of eval_steps=30",
        ),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, r"follows the evaluation metric"),
        ({"generation_kwargs": {"temperature": 0}}, r"^generation_kwargs: temperature=0 must be greater than 0"),
        ({"generation_kwargs": {"top_p": 5}}, r"^generation_kwargs: top_p=5 must be at most 1.*Set 1\.0 to sample"),
        ({"generation_kwargs": {"max_new_tokens": None}}, r"^generation_kwargs: max_new_tokens=None must be a whole"),
        ({"generation_kwargs": {"min_p": "0.1"}}, r"^generation_kwargs: min_p='0\.1' must be a number\.$"),
        ({"max_new_tokens": 64}, r"no field 'max_new_tokens'\. Did you mean 'max_completion_length'\?"),
        ({"kl_coef": 0.1}, r"Did you mean 'beta'\?"),
        ({"optim": "adamww"}, r"optim='adamww' must be one of .*Did you mean 'adamw_torch'\?"),
        ({"optim": "paged_adamw"}, r"Did you mean 'paged_adamw_32bit'\?"),
        ({"lr_scheduler_type": "constant_with_warmpu"}, r"Did you mean 'constant_with_warmup'\?"),
        ({"generation_kwargs": "{oops"}, r"text must be a JSON object"),
        ({"generation_kwargs": "[1]"}, r"text must be a JSON object"),
        ({"pad_to_multiple_of": "some"}, r"pad_to_multiple_of='some' cannot be used: give a positive number"),
        ({"pad_to_multiple_of": 0}, r"pad_to_multiple_of=0 cannot be used"),
        ({"allow_unusual": ["lr"]}, r"allow_unusual has 'lr', but only learning_rate, epsilon_high"),
        ({"learning_rate": "fast"}, r"learning_rate='fast' must be a number"),
        ({"optim": "adam"}, r"optim='adam' must be one of"),
        ({"use_vllm": True}, r"use_vllm=True is not supported: sampling with vLLM is not there yet\. Instead, "),
        ({"hub_token": 7}, r"hub_token=<HUB_TOKEN> must be text"),
        ({"max_completion_length": None}, r"max_completion_length=None must be a whole number"),
    ],
)
def test_other_mistakes(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GRPOConfig("out", **fields)


def test_errors_are_never_pydantic_s() -> None:
    with pytest.raises(ConfigError) as error:
        GRPOConfig("out", seed="x")
    assert error.value.__cause__ is None
    assert "pydantic" not in str(error.value)


def test_only_output_dir_is_positional() -> None:
    with pytest.raises(ConfigError, match="Only output_dir can be given by position"):
        GRPOConfig("out", "name")


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 2e-4, "allow_unusual": ["learning_rate"]},
        {"loss_type": "cispo", "allow_unusual": ["epsilon_high"]},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"learning_rate": 1e-4},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "save_steps": 20},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3},
        {"save_strategy": "best", "eval_strategy": "epoch", "load_best_model_at_end": True},
        {"loss_type": "vespo", "vllm_importance_sampling_correction": True}
        | {"vllm_importance_sampling_mode": "token_mask"},
    ],
)
def test_unusual_and_tight_values_that_pass(fields: dict[str, object]) -> None:
    config = GRPOConfig("out", **fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "luspo"}, "made for importance_sampling_level='sequence', not 'token'"),
        ({"importance_sampling_level": "sequence"}, "GSPO uses loss_type='grpo'"),
        ({"importance_sampling_level": "sequence", "loss_type": "vespo"}, "changes nothing for loss_type='vespo'"),
        ({"entropy_target": 1.0}, "play no part without use_adaptive_entropy=True"),
        ({"use_adaptive_entropy": True, "entropy_coef": 2.0}, "starts outside"),
        ({"cache_implementation": "static"}, "cache_implementation='static' is for transformers' generate"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8 plays no part in packed forwards"),
        ({"rollout_engine": "hf", "rollout_dtype": "bfloat16"}, "rollout_dtype='bfloat16' plays no part"),
        ({"rollout_engine": "hf", "rollout_cuda_graphs": False}, "rollout_cuda_graphs=False plays no part"),
        (
            {"generation_kwargs": {"temperature": 0.5}},
            "at another temperature than temperature=1\\.0, of which",
        ),
        ({"top_k": 5, "generation_kwargs": {"top_k": 9}}, "top_k=5 plays no part: generation_kwargs={'top_k': 9} has"),
        ({"eval_top_p": 0.5, "generation_kwargs": {"top_p": 0.9}}, "eval_top_p=0\\.5 plays no part"),
        (
            {"eval_max_completion_length": 8, "generation_kwargs": {"max_new_tokens": 9}},
            "eval_max_completion_length=8 plays no part",
        ),
    ],
)
def test_doubtful_combinations_warn(fields: dict[str, object], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        GRPOConfig("out", **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_implementation": "static", "rollout_engine": "hf"},
        {"pad_to_multiple_of": 8, "policy_forward": "padded"},
        {"pad_to_multiple_of": "auto"},
        {"rollout_dtype": "bfloat16", "rollout_cuda_graphs": False},
        {"generation_kwargs": {"top_k": 20, "min_p": 0.01, "max_new_tokens": 9, "repetition_penalty": None}},
        {"temperature": 0.5, "eval_temperature": 0.0, "generation_kwargs": {"temperature": 0.5}},
        {"top_k": 9, "generation_kwargs": {"top_k": 9, "cache_implementation": "static"}},
    ],
)
def test_what_has_an_effect_does_not_warn(fields: dict[str, object]) -> None:
    GRPOConfig("out", **fields)


def test_every_rule_can_fill_its_sentence() -> None:
    config = GRPOConfig("out")
    for rule in all_rules():
        rule.sentence.format(**{name: getattr(config, name) for name in rule.fields})


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("output_dir", None, "trainer_output"),
        ("output_dir", Path("a/b"), "a/b"),
        ("scale_rewards", True, "group"),
        ("scale_rewards", False, "none"),
        ("scale_rewards", "True", "group"),
        ("eval_strategy", False, "no"),
        ("learning_rate", "1e-6", 1e-6),
        ("gradient_checkpointing", "false", False),
        ("model_init_kwargs", '{"dtype": "bfloat16"}', {"dtype": "bfloat16"}),
        ("top_k", None, 0),
        ("save_steps", "50.0", 50),
        ("report_to", ["none"], "none"),
        ("report_to", None, "none"),
        ("report_to", ["wandb", "tensorboard"], ["wandb", "tensorboard"]),
        ("report_to", "wandb", "wandb"),
        ("report_to", "wandb, trackio,", ["wandb", "trackio"]),
        ("report_to", ["wandb,trackio"], ["wandb", "trackio"]),
        ("report_to", "none,", "none"),
        ("pad_to_multiple_of", "8", 8),
        ("pad_to_multiple_of", "none", None),
        ("pad_to_multiple_of", "AUTO", "auto"),
        ("resume_from_checkpoint", True, True),
        ("resume_from_checkpoint", "True", True),
        ("resume_from_checkpoint", False, None),
        ("resume_from_checkpoint", "out/checkpoint-3", "out/checkpoint-3"),
    ],
)
def test_spellings(name: str, given: object, kept: object) -> None:
    assert getattr(GRPOConfig(policy_forward="padded", **{name: given}), name) == kept


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = GRPOConfig("~/runs", logging_dir="~/board", resume_from_checkpoint=Path("~/runs/checkpoint-5"))
    assert config.output_dir == "/home/someone/runs"
    assert config.logging_dir == "/home/someone/board"
    assert config.resume_from_checkpoint == "/home/someone/runs/checkpoint-5"
    assert (GRPOConfig().logging_dir, GRPOConfig(resume_from_checkpoint=None).resume_from_checkpoint) == (None, None)


def test_it_stays_a_dataclass() -> None:
    config = GRPOConfig("out", seed=1)
    assert dataclasses.fields(config)[0].name == "output_dir"
    assert dataclasses.replace(config, seed=2).seed == 2
    assert dataclasses.replace(config) == config == copy.deepcopy(config)
    with pytest.raises(ConfigError, match="beta=-1"):
        dataclasses.replace(config, beta=-1)


def test_transformers_argument_parser_takes_it() -> None:
    from transformers import HfArgumentParser, SchedulerType

    parser = HfArgumentParser(GRPOConfig)
    (config,) = parser.parse_args_into_dataclasses(
        [
            *("--output_dir", "out", "--learning-rate", "2e-6", "--reward_weights", "1", "0.5", "--no_shuffle_dataset"),
            *("--gradient_checkpointing_kwargs", '{"use_reentrant": false}', "--report_to", "wandb", "--bf16", "false"),
            *("--pad_to_multiple_of", "8", "--eval_strategy", "steps", "--min_p", "0.1", "--policy_forward", "padded"),
            *("--resume_from_checkpoint", "True"),
        ]
    )
    assert config == GRPOConfig(
        "out",
        learning_rate=2e-6,
        reward_weights=[1.0, 0.5],
        shuffle_dataset=False,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        report_to=["wandb"],
        bf16=False,
        pad_to_multiple_of=8,
        policy_forward="padded",
        eval_strategy="steps",
        min_p=0.1,
        resume_from_checkpoint=True,
    )
    assert FIELD_DOCS["temperature"] in re.sub(r"\s+", " ", parser.format_help())
    assert GRPOConfig("out", lr_scheduler_type=SchedulerType.COSINE).lr_scheduler_type == "cosine"


@pytest.mark.parity
def test_optimizer_and_schedule_names_are_transformers_own() -> None:
    from typing import get_args, get_type_hints

    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    hints = get_type_hints(GRPOConfig)
    assert set(get_args(hints["optim"])) <= {name.value for name in OptimizerNames}
    assert set(get_args(hints["lr_scheduler_type"])) == {name.value for name in SchedulerType} - {"greedy"}


def test_transformers_flow_callback_reads_it() -> None:
    from transformers import TrainerControl, TrainerState
    from transformers.trainer_callback import DefaultFlowCallback, EarlyStoppingCallback

    config = GRPOConfig("out", eval_strategy="steps", logging_steps=3, save_steps=3, load_best_model_at_end=True)
    args = config.for_callbacks()
    assert (args.eval_steps, args.metric_for_best_model, args.greater_is_better) == (3, "reward", True)
    assert (config.eval_steps, config.metric_for_best_model, config.greater_is_better) == (None, None, None)
    state = TrainerState(global_step=3, max_steps=10)
    state.compute_steps(args, 10)
    control = DefaultFlowCallback().on_step_end(args, state, TrainerControl())
    assert (control.should_log, control.should_evaluate, control.should_save) == (True, True, True)
    EarlyStoppingCallback().on_train_begin(args, state, control)


def test_what_callbacks_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GRPOConfig("out", hub_token="hf_secret", model_init_kwargs={"dtype": "bfloat16"})
    values = json.loads(config.to_json_string())
    assert values["hub_token"] == "<HUB_TOKEN>"
    assert values["model_init_kwargs"] == {"dtype": "bfloat16"}
    assert set(values) == {field.name for field in dataclasses.fields(config)}
    assert all(isinstance(value, bool | int | float | str) for value in config.to_sanitized_dict().values())
    assert "hf_secret" not in repr(config) + config.to_json_string() + printed(config)
    assert (config.world_size, config.process_index, config.local_process_index, config.should_save) == (1, 0, 0, True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert (config.world_size, config.process_index, config.should_save, config.should_log) == (4, 3, False, True)


def test_torch_dtypes_become_names() -> None:
    import torch

    assert GRPOConfig(model_init_kwargs={"dtype": torch.float32}).to_dict()["model_init_kwargs"] == {"dtype": "float32"}


def test_derived_values() -> None:
    assert GRPOConfig().epsilon_upper == 0.2
    assert GRPOConfig(epsilon_high=0.28).epsilon_upper == 0.28
    assert [GRPOConfig().uses_bf16, GRPOConfig(fp16=True).uses_bf16, GRPOConfig(bf16=False).uses_bf16] == [True, 0, 0]
    assert [GRPOConfig(seed=3).order_seed, GRPOConfig(seed=3, data_seed=4).order_seed] == [3, 4]
    padded = GRPOConfig(policy_forward="padded", pad_to_multiple_of=8)
    assert [GRPOConfig().pad_multiple, padded.pad_multiple] == [None, 8]
    assert [GRPOConfig(warmup_steps=w).get_warmup_steps(30) for w in (0, 0.1, 7)] == [0, 3, 7]
    best = GRPOConfig(metric_for_best_model="eval_loss")
    assert (best.best_metric, best.is_greater_better) == ("loss", False)


def test_repr_is_what_was_changed() -> None:
    assert repr(GRPOConfig("out", seed=1, beta=0.1)) == "GRPOConfig(output_dir='out', seed=1, beta=0.1)"


def printed(config: GRPOConfig) -> str:
    console = Console(file=io.StringIO(), width=100, no_color=True)
    pprint(config, console=console, indent_guides=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rich_prints_it_by_group() -> None:
    text = printed(GRPOConfig(output_dir="test", vespo_k_pos=1.5))
    assert text.startswith("GRPOConfig(\n    run(output_dir='test', seed=42),\n")
    assert "    rollout(num_generations=8, max_completion_length=512, temperature=1.0),\n" in text
    assert "vespo_k_pos=1.5" in text
    assert "vespo_k_neg" not in text
    assert len(text.splitlines()) < 30


def test_every_field_has_one_sentence_and_a_group() -> None:
    names = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert set(FIELD_GROUPS) == set(FIELD_DOCS) == names
    assert set(COMMON_FIELDS) <= names
    assert len(COMMON_FIELDS) == 26
    for name, sentence in FIELD_DOCS.items():
        assert re.fullmatch(r"[A-Z][^\n]*\.", sentence), name
    assert list(dict.fromkeys(FIELD_GROUPS.values())) == [
        *("run", "model", "data", "rollout", "reward", "advantage", "loss", "optimisation"),
        *("logging", "health", "evaluation", "saving", "hub"),
    ]


def test_defaults_make_a_config_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GRPOConfig() == GRPOConfig(**{name: field_default(name) for name in FIELD_GROUPS})


def test_docs_page_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "config.md"
    assert page.read_text() == config_page(), "run: python -m gruppo.cli.config_docs > docs/config.md"


def test_it_does_not_import_torch() -> None:
    code = "import sys, gruppo.config, gruppo.plan; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
