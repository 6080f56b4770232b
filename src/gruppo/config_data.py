"""A config written out: as JSON values, as the call that makes it, and as what rich prints, group by group.

Not here: the fields (`config.py`), and their page of documentation (`cli/config_docs.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gruppo.config_coerce import plain

_GROUP_STARTS = {
    "output_dir": "run",
    "model_init_kwargs": "model",
    "max_prompt_length": "data",
    "num_generations": "rollout",
    "reward_weights": "reward",
    "scale_rewards": "advantage",
    "loss_type": "loss",
    "per_device_train_batch_size": "optimisation",
    "logging_strategy": "logging",
    "health_thresholds": "health",
    "eval_strategy": "evaluation",
    "save_strategy": "saving",
    "push_to_hub": "hub",
}
"""First field of each group -> the group's name."""

COMMON_FIELDS: tuple[str, ...] = (
    "output_dir",
    "seed",
    "max_prompt_length",
    "num_train_epochs",
    "max_steps",
    "num_generations",
    "max_completion_length",
    "temperature",
    "reward_weights",
    "scale_rewards",
    "loss_type",
    "beta",
    "num_iterations",
    "epsilon",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "gradient_checkpointing",
    "logging_steps",
    "log_completions",
    "report_to",
    "eval_strategy",
    "eval_steps",
    "save_steps",
)
"""What most runs set: shown by `gruppo train --help`, and always when a config is printed."""


class AsData:
    """The part of GRPOConfig that writes its fields out, whichever they are. The hub token is masked everywhere."""

    if TYPE_CHECKING:
        # What a dataclass has; the fields are those of the class that derives from this one.
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
        hub_token: str | None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {**values, "hub_token": None if self.hub_token is None else "<HUB_TOKEN>"}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_sanitized_dict(self) -> dict[str, bool | int | float | str]:
        """Fields as the scalars that TensorBoard's hparams take."""
        return {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in self.to_dict().items()}

    def non_default(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        values = self.to_dict()
        changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != default_of(field)]
        return {name: values[name] for name in changed}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.non_default().items())})"

    def __rich_repr__(self) -> Iterator[Any]:
        """By group: the common fields, and every other that was changed."""
        values, shown = self.to_dict(), {*COMMON_FIELDS, *self.non_default()}
        groups: dict[str, dict[str, Any]] = {}
        for name, group in field_groups(values).items():
            if name in shown:
                groups.setdefault(group, {})[name] = values[name]
        for group, fields in groups.items():
            yield _RichGroup.named(group, fields)


def field_groups(names: Iterable[str]) -> dict[str, str]:
    """Field -> its group, for all the fields in their order."""
    groups: dict[str, str] = {}
    group = ""
    for name in names:
        group = _GROUP_STARTS.get(name, group)
        groups[name] = group
    return groups


def default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


class _RichGroup:
    """Some fields of one group, which rich prints as Group(name=value, ...)."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    @staticmethod
    def named(group: str, values: Mapping[str, Any]) -> _RichGroup:
        """An object whose class, and so whose printed name, is the group's."""
        kind: type[_RichGroup] = type(group, (_RichGroup,), {})
        return kind(values)

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        yield from self.values.items()
