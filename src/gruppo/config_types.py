"""The types that fields of GRPOConfig have: which values may be written, and what is kept of them.

Not here: the fields (`config.py`), how a spelling becomes a value (`config_coerce.py`), and the sentences for values
that are refused (`config_values.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from gruppo import config_coerce as coerce

Count = Annotated[int, Field(ge=1)]
TokenBudget = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Steps = Annotated[Positive, AfterValidator(coerce.whole)]
StepsOrZero = Annotated[NonNegative, AfterValidator(coerce.whole)]

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
SchedulerName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]

OptimizerName = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "adamw_anyprecision",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "sgd",
    "adagrad",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "grokadamw",
    "schedule_free_radam",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "apollo_adamw",
    "stable_adamw",
]

if TYPE_CHECKING:
    Path = str
    OptionalPath = str | None
    Resume = str | bool | None
    JsonDict = dict[str, Any]
    Interval = Literal["no", "steps", "epoch"]
    SaveInterval = Literal["no", "steps", "epoch", "best"]
    ScaleRewards = Literal["group", "batch", "none"]
    Trackers = str | list[str]
    TopK = int
    PadMultiple = int | str | None
    Targets = str | list[str] | None
    StaticSpace = str | Literal[False] | None
else:
    # What may be written is wider than what is kept: JSON text for a dict, True for "group", YAML's `no` for "no".
    # HfArgumentParser needs the `str` in JsonDict and PadMultiple to pass text through to the coercion, and looks at
    # the first two members of a union only.
    Path = Annotated[str, BeforeValidator(coerce.path)]
    OptionalPath = Annotated[str | None, BeforeValidator(coerce.home)]
    _FolderOrTrue = str | None | Literal[True]
    Resume = Annotated[_FolderOrTrue, BeforeValidator(coerce.resume)]
    JsonDict = Annotated[dict[str, Any] | str, BeforeValidator(coerce.json_dict)]
    Interval = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(coerce.choice)]
    SaveInterval = Annotated[Literal["no", "steps", "epoch", "best"], BeforeValidator(coerce.choice)]
    ScaleRewards = Annotated[Literal["group", "batch", "none"], BeforeValidator(coerce.scale_rewards)]
    SchedulerName = Annotated[SchedulerName, BeforeValidator(coerce.choice)]
    Trackers = Annotated[str | list[str], BeforeValidator(coerce.trackers)]
    TopK = Annotated[int, BeforeValidator(coerce.top_k), Field(ge=0)]
    PadMultiple = Annotated[int | str | None, BeforeValidator(coerce.pad_multiple)]
    OptimizerName = Annotated[OptimizerName, BeforeValidator(coerce.choice)]
    Targets = None | str | list[str]
    StaticSpace = str | None | Literal[False]
