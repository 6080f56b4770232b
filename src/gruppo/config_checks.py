"""Rules across the fields of GRPOConfig, and the one error that reports every mistake at once.

Rules are rows: which fields they are about, when they are broken, and the sentence (given values, reason, remedy).
Ranges of single fields stand at the fields themselves, in `config.py`, and their sentences in `config_values.py`; names
in `trl_names.py`; batch arithmetic in `plan.py`. Nothing here changes a value.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gruppo.config_values import construct
from gruppo.errors import ConfigError, PlanError
from gruppo.plan_checks import BATCH_FIELDS, batch_problems
from gruppo.trl_names import translate

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig

T = TypeVar("T")

MAX_USUAL_LEARNING_RATE = 1e-4


class Rule(NamedTuple):
    """A sentence (a template over the config's fields) for configs of which `is_broken` is true."""

    fields: tuple[str, ...]
    is_broken: Callable[[GRPOConfig], bool]
    sentence: str


def report_all_mistakes(cls: type[T]) -> type[T]:
    """Make construction of a pydantic dataclass raise one ConfigError (PlanError if only the batch is wrong).

    Names are translated first; then types and ranges, rules, and batch arithmetic are checked, as far as the fields
    they need are sound. Positional arguments other than the first are not taken.
    """
    validated_init: Callable[..., None] = vars(cls)["__init__"]
    names = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
    docs: dict[str, str] = {name: info.description or "" for name, info in cls.__pydantic_fields__.items()}  # type: ignore[attr-defined]
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        # Where HfArgumentParser looks for help; argparse takes % for a format.
        field.metadata = {"help": docs[field.name].replace("%", "%%")}  # type: ignore[assignment]

    @functools.wraps(validated_init)
    def init(self: Any, *args: Any, **given: Any) -> None:
        if len(args) > 1:
            raise ConfigError(
                f"Only {names[0]} can be given by position; write the other {len(args) - 1} as name=value."
            )
        given = {**dict(zip(names, args, strict=False)), **given}
        values, problems = translate(given, names)
        _, bad_values = construct(functools.partial(validated_init, self), values)
        sound = set(names) - bad_values.keys() - problems.keys()
        rule_problems = broken_rules(self, sound)
        if "generation_kwargs" in sound:
            scratch = functools.partial(validated_init, cls.__new__(cls))
            rule_problems += bad_generation_values(scratch, self.generation_kwargs or {})
        batch = batch_problems(self, self.world_size) if sound.issuperset(BATCH_FIELDS) else []
        others = [*problems.values(), *bad_values.values(), *rule_problems]
        if others:
            raise ConfigError([*others, *batch])
        if batch:
            raise PlanError(batch)
        _warn(self)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


# -- rules across fields


def _is_whole_or_share(value: float | None) -> bool:
    return value is None or value < 1 or value == int(value)


def _saves_between_evaluations(config: GRPOConfig) -> bool:
    """True if some checkpoint would have no evaluation to be judged by."""
    if not config.load_best_model_at_end or config.save_strategy != "steps" or config.eval_strategy != "steps":
        return False
    eval_steps = config.logging_steps if config.eval_steps is None else config.eval_steps
    if (eval_steps < 1) != (config.save_steps < 1):
        return True
    # In millionths, so that shares such as 0.3 and 0.1 divide.
    return round(config.save_steps * 1e6) % max(1, round(eval_steps * 1e6)) != 0


OWN_FIELD = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_completion_length",
}
"""GenerationConfig's name -> the field that says the same, whose range holds for both."""

_MAY_BE_NONE = OWN_FIELD.keys() - {"max_new_tokens"}


def bad_generation_values(construct_field: Callable[..., Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Sentences for values of generation_kwargs that are outside the range of their field."""
    sentences = []
    for key in OWN_FIELD.keys() & kwargs.keys():
        value, field = kwargs[key], OWN_FIELD[key]
        if value is None and key in _MAY_BE_NONE:  # as in transformers: off
            continue
        if isinstance(value, str):
            sentences.append(f"generation_kwargs: {key}={value!r} must be a number.")
            continue
        _, problems = construct(construct_field, {field: value})
        sentences += [f"generation_kwargs: {key}{text.removeprefix(field)}" for text in problems.values()]
    return sorted(sentences)


def _unknown_unusual(config: GRPOConfig) -> list[str]:
    return [name for name in config.allow_unusual if name not in UNUSUAL]


def _lacks_monitor_extra(config: GRPOConfig) -> bool:
    return config.monitor == "web" and not all(find_spec(name) for name in ("starlette", "uvicorn"))


RULES: tuple[Rule, ...] = (
    Rule(
        ("monitor",),
        _lacks_monitor_extra,
        "monitor={monitor!r} serves a page, and starlette or uvicorn is not installed. Run pip install "
        "'gruppo[monitor]', or set monitor='off'.",
    ),
    Rule(
        ("max_steps",),
        lambda c: c.max_steps == 0,
        "max_steps=0 trains nothing. Set a positive number of optimizer steps, or -1 for num_train_epochs.",
    ),
    Rule(
        ("bf16", "fp16"),
        lambda c: bool(c.bf16 and c.fp16),
        "bf16=True and fp16=True exclude each other. Set one of them (bf16 where the device has it).",
    ),
    Rule(
        ("sync_ref_model", "beta"),
        lambda c: c.sync_ref_model and c.beta == 0,
        "sync_ref_model=True moves a reference that beta=0 does without. Set beta above 0, or sync_ref_model=False.",
    ),
    Rule(
        ("loss_type", "vllm_importance_sampling_mode", "vllm_importance_sampling_correction"),
        lambda c: (
            c.loss_type == "vespo"
            and c.vllm_importance_sampling_correction is True
            and c.vllm_importance_sampling_mode.startswith("sequence")
        ),
        "loss_type='vespo' puts the sampler correction inside its own sequence weight, so "
        "vllm_importance_sampling_mode={vllm_importance_sampling_mode!r} would count it twice. Set "
        "vllm_importance_sampling_mode='token_truncate' or 'token_mask'.",
    ),
    Rule(
        ("vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max"),
        lambda c: (
            c.vllm_importance_sampling_clip_min is not None
            and c.vllm_importance_sampling_clip_max is not None
            and c.vllm_importance_sampling_clip_min >= c.vllm_importance_sampling_clip_max
        ),
        "vllm_importance_sampling_clip_min={vllm_importance_sampling_clip_min} must be less than "
        "vllm_importance_sampling_clip_max={vllm_importance_sampling_clip_max}.",
    ),
    Rule(
        (
            "vllm_importance_sampling_correction",
            "vllm_importance_sampling_mode",
            "vllm_importance_sampling_clip_min",
            "vllm_importance_sampling_clip_max",
        ),
        lambda c: (
            c.vllm_importance_sampling_correction is not False
            and c.vllm_importance_sampling_mode.endswith("truncate")
            and c.vllm_importance_sampling_clip_min is None
            and c.vllm_importance_sampling_clip_max is None
        ),
        "vllm_importance_sampling_mode={vllm_importance_sampling_mode!r} clamps to bounds, and both are None. Set "
        "vllm_importance_sampling_clip_max (usual is 3.0) or vllm_importance_sampling_clip_min.",
    ),
    Rule(
        ("use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max"),
        lambda c: c.use_adaptive_entropy and c.entropy_coef_min > c.entropy_coef_max,
        "entropy_coef_min={entropy_coef_min} is above entropy_coef_max={entropy_coef_max}. Swap them.",
    ),
    Rule(
        ("reward_weights",),
        lambda c: c.reward_weights is not None and not any(c.reward_weights),
        "reward_weights={reward_weights} weighs every reward 0, so nothing could be learnt. Give at least one other.",
    ),
    Rule(
        ("log_completions_hub_repo", "log_completions"),
        lambda c: c.log_completions_hub_repo is not None and not c.log_completions,
        "log_completions_hub_repo={log_completions_hub_repo!r} uploads completions that log_completions=False does "
        "not keep. Set log_completions=True.",
    ),
    *(
        Rule(
            (name,),
            lambda c, name=name: not _is_whole_or_share(getattr(c, name)),  # type: ignore[misc]
            f"{name}={{{name}}} must be a whole number of steps, or a share of all steps below 1.",
        )
        for name in ("logging_steps", "eval_steps", "save_steps", "warmup_steps")
    ),
    Rule(
        ("save_strategy", "save_steps"),
        lambda c: c.save_strategy == "steps" and c.save_steps == 0,
        "save_steps=0 saves nothing. Set a number of steps, or save_strategy='no'.",
    ),
    Rule(
        ("load_best_model_at_end", "eval_strategy", "save_strategy"),
        lambda c: c.load_best_model_at_end and c.save_strategy not in ("best", c.eval_strategy),
        "load_best_model_at_end=True needs an evaluation for each checkpoint, but save_strategy={save_strategy!r} and "
        "eval_strategy={eval_strategy!r}. Set both to the same, or save_strategy='best'.",
    ),
    Rule(
        ("save_strategy", "eval_strategy"),
        lambda c: c.eval_strategy == "no" and (c.save_strategy == "best" or c.load_best_model_at_end),
        "eval_strategy='no' leaves nothing to choose the best checkpoint by. Set eval_strategy='steps' and eval_steps.",
    ),
    Rule(
        ("load_best_model_at_end", "eval_strategy", "save_strategy", "eval_steps", "save_steps", "logging_steps"),
        _saves_between_evaluations,
        "load_best_model_at_end=True needs an evaluation for each checkpoint, but save_steps={save_steps} is not a "
        "multiple of eval_steps={eval_steps} (None means logging_steps={logging_steps}). Set save_steps to a multiple.",
    ),
    Rule(
        ("lr_scheduler_type", "eval_strategy"),
        lambda c: c.lr_scheduler_type == "reduce_lr_on_plateau" and c.eval_strategy == "no",
        "lr_scheduler_type='reduce_lr_on_plateau' follows the evaluation metric, and eval_strategy='no'. Set "
        "eval_strategy='steps' and eval_steps.",
    ),
)

UNUSUAL: dict[str, Rule] = {
    "learning_rate": Rule(
        ("learning_rate",),
        lambda c: c.learning_rate > MAX_USUAL_LEARNING_RATE,
        "learning_rate={learning_rate} is far above what GRPO stands; usual are 1e-7 to 5e-6 for all weights and 1e-6 "
        "to 2e-5 for LoRA. Lower it, or set allow_unusual=['learning_rate'] if you mean it.",
    ),
    "epsilon_high": Rule(
        ("loss_type", "epsilon_high", "epsilon"),
        lambda c: (c.epsilon_upper < 1) if c.loss_type == "cispo" else (c.epsilon_upper > 1),
        "epsilon_high={epsilon_high} with loss_type={loss_type!r} and epsilon={epsilon}: for cispo it caps the "
        "importance ratio itself, so below 1 it shrinks every update (usual is 5.0); for other losses the cap is 1 + "
        "epsilon_high (usual is 0.2 to 0.3). Change it, or set allow_unusual=['epsilon_high'] if you mean it.",
    ),
}
"""Values that are legal but nearly always a mistake; `allow_unusual` lets them pass."""


def broken_rules(config: GRPOConfig, sound: set[str]) -> list[str]:
    """Sentences of the rules that `config` breaks, of those whose fields are all `sound`."""
    unusual = [rule for name, rule in UNUSUAL.items() if name not in config.allow_unusual]
    sentences = [
        rule.sentence.format(**_values(config, rule))
        for rule in (*RULES, *unusual)
        if sound.issuperset(rule.fields) and rule.is_broken(config)
    ]
    if "allow_unusual" in sound:
        sentences += [
            f"allow_unusual has {name!r}, but only {', '.join(UNUSUAL)} are checked for unusual values. Remove it."
            for name in _unknown_unusual(config)
        ]
    return sentences


def _values(config: GRPOConfig, rule: Rule) -> dict[str, Any]:
    return {name: getattr(config, name) for name in rule.fields}


# -- warnings: legal, and known to work badly

_SEQUENCE_UNFIT = ("bnpo", "dr_grpo", "dapo", "cispo")

_ADAPTIVE_ONLY = {"entropy_coef_min": 0.0, "entropy_coef_max": 1.0, "entropy_coef_delta": 0.005, "entropy_target": 0.2}

_OVERRULED = (
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("repetition_penalty", "repetition_penalty"),
    ("top_p", "eval_top_p"),
    ("top_k", "eval_top_k"),
    ("temperature", "eval_temperature"),
    ("max_new_tokens", "eval_max_completion_length"),
)
"""Key of generation_kwargs, and a field that it leaves without effect."""


def _is_overruled(config: GRPOConfig, key: str, field: str) -> bool:
    """True if the field is set and says something else. An `eval_temperature` of 0 is greedy, whatever is said."""
    kwargs, value = config.generation_kwargs or {}, getattr(config, field)
    default = type(config).__dataclass_fields__[field].default
    return key in kwargs and value not in (default, 0, kwargs[key])


DOUBTS: tuple[Rule, ...] = (
    Rule(
        ("loss_type", "importance_sampling_level"),
        lambda c: c.loss_type == "luspo" and c.importance_sampling_level != "sequence",
        "loss_type='luspo' is made for importance_sampling_level='sequence', not {importance_sampling_level!r}.",
    ),
    Rule(
        ("loss_type", "importance_sampling_level"),
        lambda c: c.loss_type in _SEQUENCE_UNFIT and c.importance_sampling_level == "sequence",
        "importance_sampling_level='sequence' gives each completion one ratio, which loss_type={loss_type!r} then "
        "averages over tokens, so long completions weigh more. GSPO uses loss_type='grpo'.",
    ),
    Rule(
        ("loss_type", "importance_sampling_level"),
        lambda c: c.loss_type == "vespo" and c.importance_sampling_level == "sequence",
        "importance_sampling_level='sequence' changes nothing for loss_type='vespo', which weighs sequences itself.",
    ),
    Rule(
        ("use_adaptive_entropy",),
        lambda c: not c.use_adaptive_entropy and any(getattr(c, n) != d for n, d in _ADAPTIVE_ONLY.items()),
        "entropy_coef_min, _max, _delta and entropy_target play no part without use_adaptive_entropy=True.",
    ),
    Rule(
        ("use_adaptive_entropy", "entropy_coef", "entropy_coef_min", "entropy_coef_max"),
        lambda c: c.use_adaptive_entropy and not c.entropy_coef_min <= c.entropy_coef <= c.entropy_coef_max,
        "entropy_coef={entropy_coef} starts outside entropy_coef_min={entropy_coef_min} and "
        "entropy_coef_max={entropy_coef_max}, and will jump to the bound at its first change.",
    ),
    Rule(
        ("generation_kwargs", "temperature"),
        lambda c: (c.generation_kwargs or {}).get("temperature", c.temperature) != c.temperature,
        "generation_kwargs={generation_kwargs} draws at another temperature than temperature={temperature}, of "
        "which log-probs and loss are, as in TRL. Set temperature alone, unless you mean it.",
    ),
    *(
        Rule(
            ("generation_kwargs", field),
            lambda c, key=key, field=field: _is_overruled(c, key, field),  # type: ignore[misc]
            f"{field}={{{field}}} plays no part: generation_kwargs={{generation_kwargs}} has the last word. Set one of "
            "them only.",
        )
        for key, field in _OVERRULED
    ),
    Rule(
        ("cache_implementation",),
        lambda c: c.cache_implementation is not None and c.rollout_engine == "embedded",
        "cache_implementation={cache_implementation!r} is for transformers' generate: rollout_engine='embedded' has "
        "its own, and hands over only models and generation_kwargs that it does not know. Set rollout_engine='hf'.",
    ),
    Rule(
        ("pad_to_multiple_of",),
        lambda c: c.pad_multiple is not None and c.policy_forward == "packed",
        "pad_to_multiple_of={pad_to_multiple_of} plays no part in packed forwards, which have no padding. Set "
        "policy_forward='padded' if you need it.",
    ),
    Rule(
        ("rollout_dtype",),
        lambda c: c.rollout_dtype is not None and c.rollout_engine == "hf",
        "rollout_dtype={rollout_dtype!r} plays no part with rollout_engine='hf', which takes training's precision.",
    ),
    Rule(
        ("rollout_cuda_graphs",),
        lambda c: not c.rollout_cuda_graphs and c.rollout_engine == "hf",
        "rollout_cuda_graphs=False plays no part with rollout_engine='hf', which records no graphs.",
    ),
)


def _warn(config: GRPOConfig) -> None:
    for doubt in DOUBTS:
        if doubt.is_broken(config):
            warnings.warn(doubt.sentence.format(**_values(config, doubt)), UserWarning, stacklevel=3)


def all_rules() -> Iterable[Rule]:
    """Every rule, for tests of their templates."""
    return (*RULES, *UNUSUAL.values(), *DOUBTS)
