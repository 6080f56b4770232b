"""resolved.toml: every setting of a run with its value and where the value came from; a settings file itself.

`gruppo train <output_dir>/resolved.toml` repeats the run. The hub token is never written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gruppo.cli.flags import GROUPS
from gruppo.cli.settings import Settings, default_of, value_of
from gruppo.config_coerce import plain
from gruppo.output_folder import make_output_folder


def write_resolved(settings: Settings) -> Path:
    """Write <output_dir>/resolved.toml, whole or not at all; returns its path. Raises ConfigError for a folder that
    cannot be written."""
    path = make_output_folder(settings.config.output_dir) / "resolved.toml"
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(resolved_text(settings), encoding="utf-8")
    part.replace(path)
    return path


def resolved_text(settings: Settings) -> str:
    """The file's content: one section per group."""
    lines: list[str] = []
    section = ""
    for name, group in GROUPS.items():
        if group != section:
            section = group
            lines += ["", f"[{json.dumps(group) if ' ' in group else group}]"]
        lines.append(_line(name, value_of(settings, name), settings.origins.get(name, "default")))
    return "\n".join(lines[1:]) + "\n"


def _line(name: str, value: Any, origin: str) -> str:
    if name == "hub_token" and value is not None:
        return f"# hub_token: given ({origin}), not written"
    # TOML has no None: a line that would only repeat a default of None is a comment.
    mark = "# " if value is None and default_of(name) is None else ""
    return f"{mark}{name} = {toml_value(plain(value))}  # {origin}"


def toml_value(value: Any) -> str:
    """A JSON value as TOML; None as the text "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    # JSON's text and numbers are TOML's; 127 is the one character that JSON leaves alone and TOML forbids.
    return json.dumps(value).replace("\x7f", "\\u007f")
