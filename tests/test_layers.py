"""The house's one rule of traffic: imports run one way, and the folders of row 3 do not know each other."""

import ast
from pathlib import Path

import pytest

import gruppo

ROOT = Path(gruppo.__file__).parent

ROWS = {
    "errors": 0,
    "types": 0,
    "metrics": 0,
    "algorithm": 1,
    "config": 1,
    "config_checks": 1,
    "config_coerce": 1,
    "config_data": 1,
    "config_derived": 1,
    "config_types": 1,
    "config_values": 1,
    "plan_checks": 1,
    "trl_names": 1,
    "plan": 1,
    "distributed": 2,
    "chat": 2,
    "modes": 2,
    "model_source": 2,
    "output_folder": 1,
    "data": 3,
    "rollout": 3,
    "rewards": 3,
    "policy": 3,
    "monitor": 3,
    "checkpoint": 4,
    "callbacks": 4,
    "clock": 4,
    "collect": 4,
    "forward_cut": 4,
    "forwards": 4,
    "log_window": 4,
    "memory": 4,
    "milestones": 4,
    "position": 4,
    "retention": 4,
    "run_checkpoints": 4,
    "scoring": 4,
    "script_methods": 4,
    "settings": 4,
    "start_checks": 4,
    "watch": 4,
    "wiring": 4,
    "assemble": 4,
    "launch": 4,
    "learner": 4,
    "round_metrics": 4,
    "evaluation": 4,
    "hooks": 4,
    "hub": 4,
    "trainer": 5,
    "__init__": 6,
    "cli": 6,
    "demo": 6,
}
PEERS_THAT_MAY_MEET = {1, 4, 6}
"""Rows whose modules may import each other; in row 3 they may not."""

LIGHT = {"errors", "types", "metrics", "plan_checks", "trl_names", "plan"} | {
    name for name in ROWS if name.startswith("config")
}
"""Modules that must not import torch or transformers at run time: `gruppo --help` imports them."""


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, functions included, `if TYPE_CHECKING` left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_row() -> None:
    assert {room(path) for path in files()} <= set(ROWS)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    mine = room(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "gruppo" or len(parts) < 2:
            continue
        theirs = parts[1] if parts[1] in ROWS else "__init__"
        if theirs == mine:
            continue
        assert ROWS[theirs] <= ROWS[mine], f"{mine} (row {ROWS[mine]}) imports {theirs} (row {ROWS[theirs]})"
        if ROWS[theirs] == ROWS[mine]:
            assert ROWS[mine] in PEERS_THAT_MAY_MEET, f"{mine} and {theirs} are peers in row {ROWS[mine]}"


@pytest.mark.parametrize("path", [p for p in files() if room(p) in LIGHT], ids=lambda p: p.name)
def test_light_modules_stay_light(path: Path) -> None:
    heavy = {name for name in imported(path) if name.split(".")[0] in {"torch", "transformers", "datasets"}}
    assert not heavy


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 400, "split by noun"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name}: {length} lines"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "open the file with a docstring"
