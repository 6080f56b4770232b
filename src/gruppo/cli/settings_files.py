"""Settings from TOML and YAML files, flat: sections are for the reader's eye only.

Names and values are not judged here; `settings.py` does that.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gruppo.errors import ConfigError, boundary


def read_settings_file(path: Path, tables: Collection[str]) -> dict[str, Any]:
    """Name -> value. `tables` are the names whose value is itself a table and stays one.

    Raises ConfigError: no such file, another ending than .toml, .yaml or .yml, a syntax error, a name given twice.
    """
    if not path.is_file():
        raise ConfigError(f"There is no settings file {str(path)!r}. Give a .toml or .yaml file that exists.")
    with boundary(ConfigError, f"reading {str(path)!r}"):
        content = _parse(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{str(path)!r} holds a {type(content).__name__}; it must hold name = value pairs.")
    settings: dict[str, Any] = {}
    for name, value in _flat(content, tables):
        if name in settings:
            raise ConfigError(f"{str(path)!r} sets {name} twice, in two sections. Remove one of them.")
        settings[name] = value
    return settings


def _parse(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        return tomllib.loads(text)
    if path.suffix in (".yaml", ".yml"):
        return yaml.safe_load(text) or {}
    raise ConfigError(f"{str(path)!r} must end in .toml, .yaml or .yml.")


def _flat(content: Mapping[str, Any], tables: Collection[str]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and name not in tables:
            yield from _flat(value, tables)
        else:
            yield str(name), value
