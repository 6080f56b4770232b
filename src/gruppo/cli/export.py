"""`gruppo export RUN`: a run's metrics, completions, events and tokens as files for other programs and people."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, get_args

import tyro

from gruppo.errors import ConfigError, DataError, boundary
from gruppo.monitor.export_choice import FORMATS, KINDS, Choice, Format, Kind

USUAL: tuple[Kind, ...] = ("metrics", "rollouts", "events")
"""What is written without --what. Tokens are large: they are asked for by name."""


def run(argv: list[str]) -> int:
    """Export. Returns the exit code."""
    return tyro.cli(export, args=argv, prog="gruppo export")


def export(
    run: Annotated[
        Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Folder of the run (its output_dir).")
    ],
    *,
    output: Annotated[
        Path | None,
        tyro.conf.arg(
            aliases=["-o"],
            help="A folder for the files (default: RUN's name with -export, here), or one file as x.csv with one "
            "--what. Older files of the same names are replaced.",
        ),
    ] = None,
    what: Annotated[
        str, tyro.conf.arg(metavar="KINDS", help=f"Of {', '.join(KINDS)}, with commas between.")
    ] = ",".join(USUAL),
    format: Annotated[
        Format | None,
        tyro.conf.arg(help="Default: metrics as csv, rollouts and tokens as parquet. Events are always jsonl."),
    ] = None,
    steps: Annotated[
        str | None, tyro.conf.arg(metavar="FROM:TO", help="Only these steps, both included: 10:50, 10:, :50, 12.")
    ] = None,
    split: Annotated[
        str | None, tyro.conf.arg(help="Only this split of metrics, rollouts and tokens: train, eval, eval_<set>.")
    ] = None,
    superseded: Annotated[
        bool, tyro.conf.arg(help="Also what later attempts made anew after a resume; by default it is left out.")
    ] = False,
) -> int:
    """A run as files for others: metrics, completions (a row for each, rewards by name), events, tokens."""
    first, last = _steps(steps)
    kinds = _kinds(what)
    choice = Choice(first, last, split, superseded)
    targets = [_target(run, output, kind, _format(kind, format, output), is_alone=len(kinds) == 1) for kind in kinds]
    from gruppo.monitor.export import export as write  # late: `--help` needs no readers

    num_files = 0
    for kind, (path, form) in zip(kinds, targets, strict=True):
        with boundary(DataError, f"Exporting {kind} to {path}"):
            num_rows = write(run, kind, path, form, choice)
        if num_rows:
            num_files += 1
            print(f"wrote {path}  {num_rows:,} row{'s' if num_rows > 1 else ''}")
        else:
            print(f"no {kind} of this choice in {run}")
    if not num_files:
        asked = " ".join(f"--{name} {value}" for name, value in (("steps", steps), ("split", split)) if value)
        raise DataError(f"Nothing to export: {run} holds no {', '.join(kinds)}{f' with {asked}' if asked else ''}.")
    return 0


def _kinds(what: str) -> list[Kind]:
    named = list(dict.fromkeys(name.strip() for name in what.split(",") if name.strip()))
    kinds = [kind for name in named for kind in KINDS if kind == name]
    for name in named:
        if name not in KINDS:
            near = get_close_matches(name, KINDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"--what {what}: there is no {name!r}.{hint} There are: {', '.join(KINDS)}.")
    if not kinds:
        raise ConfigError(f"--what {what!r} names nothing. There are: {', '.join(KINDS)}.")
    return kinds


def _steps(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    first, colon, last = text.partition(":")
    ends = [first, last if colon else first]
    if not any(ends) or not all(end == "" or (end.isascii() and end.isdigit()) for end in ends):
        raise ConfigError(f"--steps {text!r} cannot be read. Write 10:50, 10:, :50 or 12; both ends are included.")
    low, high = (int(end) if end else None for end in ends)
    if low is not None and high is not None and low > high:
        raise ConfigError(f"--steps {text!r} ends before it begins. Write the smaller step first: {high}:{low}.")
    return low, high


def _format(kind: Kind, given: Format | None, output: Path | None) -> Format:
    """The format asked for by --format or by the file's name; events ignore a --format that is meant for others."""
    by_name = None if output is None else next((form for form in get_args(Format) if output.suffix == f".{form}"), None)
    if given is not None and by_name is not None and given != by_name:
        raise ConfigError(f"-o {output} says {by_name}, --format says {given}. Give one of them.")
    wanted: Format | None = by_name or given
    if wanted is None or (kind == "events" and by_name is None):
        return FORMATS[kind][0]
    if wanted not in FORMATS[kind]:
        raise ConfigError(f"{kind} cannot be written as {wanted}, only as {' or '.join(FORMATS[kind])}.")
    return wanted


def _target(run: Path, output: Path | None, kind: Kind, form: Format, *, is_alone: bool) -> tuple[Path, Format]:
    if output is not None and output.suffix in {f".{known}" for known in get_args(Format)}:
        if not is_alone:
            raise ConfigError(f"-o {output} is one file. Give a folder, or one kind: --what rollouts.")
        return output, form
    folder = Path(f"{run.resolve().name}-export") if output is None else output
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"-o {folder} is a file without an ending that says its format. Give a folder, or x.csv.")
    return folder / f"{kind}.{form}", form
