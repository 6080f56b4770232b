"""Settings of one run: files and flags merged, checked as a whole, each value with where it came from.

Later files come before earlier ones, flags before files. All mistakes, of RunOptions and of GRPOConfig, are one error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gruppo.cli.field_types import takes_none
from gruppo.cli.flags import HINTS, TABLES, parse_flags
from gruppo.cli.run_options import OPTION_NAMES, RECIPE_TABLE, REWARD_MODEL, RunOptions
from gruppo.cli.settings_files import read_settings_file
from gruppo.config import FIELD_GROUPS, GRPOConfig, field_default
from gruppo.config_values import construct
from gruppo.errors import ConfigError
from gruppo.trl_names import TABLE, Renamed, translate, unknown_name


@dataclass(frozen=True)
class Settings:
    """A run as the command line describes it."""

    options: RunOptions
    config: GRPOConfig
    origins: dict[str, str]
    """Name -> file or `flag`, for every value that was given."""


def read_settings(argv: list[str], command: str) -> Settings:
    """Settings from the files and flags in `argv`. Raises ConfigError with every mistake in them."""
    files, flags = parse_flags(argv, command)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source, given in [*((str(path), read_settings_file(path, TABLES)) for path in files), ("flag", flags)]:
        values |= given
        origins |= {_new_name(name): source for name in given}
    return check_settings({name: _none_if_spelt(name, value) for name, value in values.items()}, origins)


def check_settings(values: Mapping[str, Any], origins: dict[str, str]) -> Settings:
    """Sort values by owner and check them. Raises ConfigError with every mistake."""
    known = {*OPTION_NAMES, *RECIPE_TABLE, REWARD_MODEL, *FIELD_GROUPS, *TABLE}
    problems = [unknown_name(name, known, "there is no setting") for name in values if name not in known]
    ours = {name: value for name, value in values.items() if name in OPTION_NAMES or name in RECIPE_TABLE}
    config_values = {name: value for name, value in values.items() if name in FIELD_GROUPS or name in TABLE}
    option_values, name_problems = translate(ours, OPTION_NAMES, RECIPE_TABLE)
    rewards = option_values.get("reward_funcs") or []
    rewards = [rewards] if isinstance(rewards, str) else rewards
    if values.get(REWARD_MODEL) and isinstance(rewards, list):
        rewards = [values[REWARD_MODEL], *rewards]
    option_values["reward_funcs"] = rewards
    options, value_problems = construct(RunOptions, option_values)
    problems += [*name_problems.values(), *value_problems.values(), *_missing(options, value_problems)]
    try:
        config = GRPOConfig(**config_values)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return Settings(options, config, origins)


def value_of(settings: Settings, name: str) -> Any:
    """A setting's value, whichever part it belongs to."""
    return getattr(settings.options if name in OPTION_NAMES else settings.config, name)


def default_of(name: str) -> Any:
    """A setting's default."""
    if name in FIELD_GROUPS:
        return field_default(name)
    return {f.name: f.default for f in dataclasses.fields(RunOptions)}[name]


def _missing(options: RunOptions, bad: Mapping[str, str]) -> list[str]:
    needed = {
        "model": "Set it to a hub id or a folder.",
        "dataset": "Set it to a hub id, a folder or a file.",
        "reward_funcs": "Set it to at least one reward, as in ['think_format_reward'].",
    }
    return [
        f"{name} is missing. {remedy}"
        for name, remedy in needed.items()
        if not getattr(options, name) and name not in bad
    ]


def _new_name(name: str) -> str:
    entry = RECIPE_TABLE.get(name, TABLE.get(name))
    return entry.to if isinstance(entry, Renamed) else name


def _none_if_spelt(name: str, value: Any) -> Any:
    """TOML has no word for None: "none" stands for it where None is a possible value."""
    is_none = isinstance(value, str) and value.lower() in ("none", "null") and takes_none(HINTS.get(name))
    return None if is_none else value
