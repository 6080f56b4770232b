"""Flags of `gruppo train` and `gruppo plan`: which were given, and their help by group.

tyro parses and prints. A dataclass with one field per option is made for it, so that help comes from the sentences
under the fields; common options are shown by --help, all by --help-all, one group by `--help GROUP`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, get_origin

import tyro

from gruppo.cli.field_types import in_words, members, takes_dict, type_hints
from gruppo.cli.run_options import OPTION_DOCS, OPTION_NAMES, RECIPE_TABLE, REWARD_MODEL, RunOptions
from gruppo.config import FIELD_DOCS, FIELD_GROUPS, GRPOConfig
from gruppo.config_data import COMMON_FIELDS
from gruppo.trl_names import TABLE, Entry, Renamed

COMMON_OPTIONS = ("model", "dataset", "dataset_split", "reward_funcs", "lora_r")

GROUPS: dict[str, str] = {**dict.fromkeys(OPTION_NAMES, "model, data and rewards"), **FIELD_GROUPS}
"""Option -> group in the help."""

HINTS: dict[str, Any] = {**type_hints(RunOptions), **type_hints(GRPOConfig)}
"""Option -> type."""

TABLES: frozenset[str] = frozenset(name for name, hint in HINTS.items() if takes_dict(hint))
"""Options whose value is a table (JSON on the command line)."""

_FILE_ENDINGS = (".toml", ".yaml", ".yml")

_BOOLEAN_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

_DOCS = {**OPTION_DOCS, **FIELD_DOCS}
_FIELDS = {f.name: f for f in (*dataclasses.fields(RunOptions), *dataclasses.fields(GRPOConfig))}
_OTHER_NAMES: dict[str, Entry] = {**RECIPE_TABLE, **TABLE}


def parse_flags(argv: list[str], command: str) -> tuple[list[Path], dict[str, Any]]:
    """Settings files and given options. Prints help, or what is wrong with a flag, and exits, where there is cause."""
    arguments, shown = _help_request(argv)
    arguments, others = _take_other_names(arguments)
    arguments = _files_first(_spell_out_booleans(arguments))
    parsed = tyro.cli(
        _flags_class(shown),
        args=arguments,
        prog=f"gruppo {command}",
        description=_DESCRIPTION[command],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    given = {name for name in map(_option_name, arguments) if name}
    values = {name: getattr(getattr(parsed, _slug(group)), name) for name, group in GROUPS.items() if name in given}
    return list(parsed.config), {**values, **others}


_MORE = "--help-all shows every option, --help GROUP one group; docs/config.md has them too."
_DESCRIPTION = {
    "train": f"Train a policy with GRPO. Flags override settings files, and later files earlier ones. {_MORE}",
    "plan": f"Say what a run would do, without loading weights. {_MORE}",
}


def _help_request(argv: list[str]) -> tuple[list[str], set[str]]:
    """The arguments with every form of help as `--help`, and the options that help should show."""
    everything = set(GROUPS)
    if "--help-all" in argv:
        return ["--help"], everything
    for flag in ("--help", "-h"):
        if flag in argv:
            group = " ".join(argv[argv.index(flag) + 1 :])
            chosen = {name for name in everything if group and GROUPS[name].startswith(group)}
            return ["--help"], chosen or {*COMMON_OPTIONS, *COMMON_FIELDS}
    return argv, everything


def _take_other_names(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Rename flags that go by another name; take out those which the tables of names answer for."""
    kept: list[str] = []
    taken: dict[str, Any] = {}
    name = ""
    for token in argv:
        flag, has_value, value = token.partition("=")
        if token.startswith("--"):
            name = flag[2:].replace("-", "_")
            entry = _OTHER_NAMES.get(name)
            if isinstance(entry, Renamed):
                token = f"--{entry.to}{has_value}{value}"  # noqa: PLW2901
            elif entry is not None or name == REWARD_MODEL:
                taken[name] = value if has_value else True
        is_file = token.endswith(_FILE_ENDINGS)
        if name in taken and not is_file:
            if not token.startswith("--"):
                taken[name] = token
        else:
            kept.append(token)
    return kept, taken


def _spell_out_booleans(argv: list[str]) -> list[str]:
    """`--push_to_hub false` and `--push_to_hub=0`, as other libraries have them, become `--no-push_to_hub`."""
    result: list[str] = []
    for token in argv:
        flag, equals, value = token.partition("=")
        is_pair = bool(equals) and token.startswith("--")
        before = flag if is_pair else result[-1] if result else ""
        name = before[2:].replace("-", "_") if before.startswith("--") else ""
        truth = _truth(name, value if is_pair else token)
        if truth is None:
            result.append(token)
            continue
        kept = result if is_pair else result[:-1]
        if HINTS[name] is bool:
            result = [*kept, f"--{name}" if truth else f"--no-{name}"]
        else:
            result = [*kept, before, str(truth)]
    return result


def _truth(name: str, word: str) -> bool | None:
    """What `word` means for the option, or None if that option is no boolean or the word does not say."""
    is_boolean = name in HINTS and bool in members(HINTS[name])
    return _BOOLEAN_WORDS.get(word.lower()) if is_boolean else None


def _files_first(argv: list[str]) -> list[str]:
    """Settings files to the front, in their order: an option that takes a list would take those after it."""
    files, rest = [], []
    is_value = False
    for token in argv:
        if token.endswith(_FILE_ENDINGS) and not token.startswith("--") and not is_value:
            files.append(token)
        else:
            rest.append(token)
        is_value = token.startswith("--") and "=" not in token and _takes_one_value(_option_name(token))
    return [*files, *rest]


def _takes_one_value(name: str | None) -> bool:
    hint = HINTS.get(name or "")
    return hint is not bool and all(get_origin(member) is not list for member in members(hint))


def _option_name(token: str) -> str | None:
    """The option that a token of the command line gives, or None."""
    if not token.startswith("--"):
        return None
    name = token[2:].partition("=")[0].replace("-", "_")
    if name in GROUPS:
        return name
    return name[3:] if name.startswith("no_") and name[3:] in GROUPS else None


def _flags_class(shown: Collection[str]) -> type[Any]:
    """A dataclass of one dataclass per group; options that are not `shown` work, but have no help."""
    files = Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help="TOML or YAML files.", metavar="[FILE ...]")
    ]
    groups: list[Any] = [("config", files, dataclasses.field(default=()))]
    for group in dict.fromkeys(GROUPS.values()):
        names = [name for name in GROUPS if GROUPS[name] == group]
        made = dataclasses.make_dataclass(_slug(group), [_flag(name, name in shown) for name in names])
        made.__doc__ = ""
        groups.append((_slug(group), made, dataclasses.field(default_factory=made)))
    return dataclasses.make_dataclass("Flags", groups)


def _flag(name: str, is_shown: bool) -> tuple[str, Any, Any]:
    source: Mapping[str, Any] = {"default": _FIELDS[name].default, "default_factory": _FIELDS[name].default_factory}
    default = {key: value for key, value in source.items() if value is not dataclasses.MISSING}
    hint = str | None if name in TABLES else HINTS[name]
    metavar = "JSON" if name in TABLES else None
    help_text = _DOCS[name] + ("" if is_shown else f" ({in_words(HINTS[name])})")
    marks = (tyro.conf.arg(help=help_text, metavar=metavar), *(() if is_shown else (tyro.conf.Suppress,)))
    return name, Annotated[(hint, *marks)], dataclasses.field(**default)


def _slug(group: str) -> str:
    return group.replace(",", "").replace(" ", "_")
