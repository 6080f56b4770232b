"""`gruppo compare A B`: two runs side by side: settings that differ, and the numbers that sum each up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gruppo.monitor.report.contents import read_lines_of
from gruppo.monitor.report.numbers import Number, headline, shown
from gruppo.monitor.report.untrusted import flat
from gruppo.monitor.server.compare import differences
from gruppo.monitor.server.status import config_of, dict_in, latest_attempt, read_run_json

SIDES = ("a", "b")


def run(argv: list[str]) -> int:
    """Compare. Returns the exit code."""
    return tyro.cli(compare, args=argv, prog="gruppo compare")


def compare(
    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A", help="Folder of a run (its output_dir).")],
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B", help="Folder of another.")],
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object instead of tables.")] = False,
) -> int:
    """Two runs side by side: settings and versions that differ, reward, evaluations, lengths, step time."""
    found = as_data(a, b)
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        _print(Console(highlight=False), found)
    return 0


def as_data(a: Path, b: Path) -> dict[str, Any]:
    """The comparison as plain JSON values. Raises DataError if a folder holds no run."""
    folders = dict(zip(SIDES, (a, b), strict=True))
    numbers = {side: {entry.name: entry for entry in headline(read_lines_of(folders[side]))} for side in SIDES}
    runs = {side: read_run_json(folder) for side, folder in folders.items()}
    configs = {side: config_of(run) for side, run in runs.items()}
    versions = {side: dict_in(latest_attempt(run), "versions") for side, run in runs.items()}
    return {
        **{side: str(folder) for side, folder in folders.items()},
        "config": differences(configs["a"], configs["b"]),
        "versions": differences(versions["a"], versions["b"]),
        "numbers": [_pair(name, numbers["a"].get(name), numbers["b"].get(name)) for name in _names(numbers)],
    }


def _names(numbers: dict[str, dict[str, Number]]) -> list[str]:
    """In the order of the side that has more; what only the other has comes last."""
    longer, shorter = sorted(SIDES, key=lambda side: -len(numbers[side]))
    return list(dict.fromkeys([*numbers[longer], *numbers[shorter]]))


def _pair(name: str, a: Number | None, b: Number | None) -> dict[str, Any]:
    known = {side: entry for side, entry in zip(SIDES, (a, b), strict=True) if entry is not None}
    pair: dict[str, Any] = {"name": name, "kind": next(iter(known.values())).kind}
    pair |= {side: entry.value for side, entry in known.items()}
    pair |= {f"{side}_step": entry.step for side, entry in known.items() if entry.step is not None}
    return pair | ({"difference": b.value - a.value} if a is not None and b is not None else {})


def _print(console: Console, found: dict[str, Any]) -> None:
    names = [flat(Path(found[side]).resolve().name) for side in SIDES]
    for title, word in (("config", "Settings"), ("versions", "Versions")):
        rows = [[pair["name"], *(_setting(pair, side) for side in SIDES)] for pair in found[title]]
        if rows:
            console.print(_table(f"{word} that differ", ["", *names], rows))
        else:
            console.print(Text(f"{word}: no difference"))
    rows = [[pair["name"], *(_number(pair, side) for side in SIDES), _difference(pair)] for pair in found["numbers"]]
    console.print(_table("Numbers (start and end: means over up to 20 steps)", ["", *names, "B − A"], rows, "right"))


def _table(title: str, heads: list[str], rows: list[list[str]], justify: Any = "left") -> Table:
    # Text throughout: names and values must not be read as markup, nor reach the terminal's control codes.
    table = Table(title=Text(title), title_justify="left")
    for position, head in enumerate(heads):
        table.add_column(Text(head), justify=justify if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(flat(cell)) for cell in row))
    return table


def _setting(pair: dict[str, Any], side: str) -> str:
    return json.dumps(pair[side], ensure_ascii=False) if side in pair else "–"


def _number(pair: dict[str, Any], side: str) -> str:
    if side not in pair:
        return "–"
    return Number(pair["name"], pair[side], pair["kind"], pair.get(f"{side}_step")).text()


def _difference(pair: dict[str, Any]) -> str:
    if "difference" not in pair:
        return "–"
    value = pair["difference"]
    return ("+" if value > 0 else "") + shown(value, pair["kind"])
