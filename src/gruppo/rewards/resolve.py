"""Rewards by text, as the command line and config files name them.

    think_format_reward                      a built-in
    length_reward(target=200)                a built-in with settings (literals only: nothing is evaluated)
    my_module:my_reward                      a function of a module; the working directory counts
    rewards/mine.py:my_reward                a function of a file
    my_package.module.my_reward              the same, dotted (as TRL's command line)
    owner/name  ./some/directory             a reward model

Not for scripts, where the function itself is passed.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gruppo.errors import RewardError, boundary
from gruppo.rewards.builtin_table import BUILTINS, FACTORIES
from gruppo.rewards.protocol import RewardSpec


def resolve_reward(spec: str) -> RewardSpec:
    """The reward that `spec` names (see the top of this file), or the id or path of a reward model, as it is.

    Importing a user's module runs it, and its folder stays on `sys.path`, at the end. Raises RewardError: an unknown
    name (with the nearest known one), a module that does not import, a file without a function's name, settings that
    are missing or are no literals.
    """
    spec = os.path.expanduser(spec.strip())
    if spec.endswith(")"):
        return _builtin_with_settings(spec)
    if spec in FACTORIES:
        raise RewardError(f"The reward `{spec}` needs its settings. Write them as a call: `{_example(spec)}`.")
    if spec in BUILTINS:
        return BUILTINS[spec]
    if spec.removesuffix(":").endswith(".py"):
        raise RewardError(_without_function(spec.removesuffix(":")))
    if ":" in spec:
        return _from_module(*spec.rsplit(":", 1))
    if "/" in spec or Path(spec).is_dir():
        return spec
    if "." in spec:
        return _from_module(*spec.rsplit(".", 1))
    raise RewardError(
        f"{spec!r} is no built-in reward.{_did_you_mean(spec, BUILTINS)} The built-in ones are {', '.join(BUILTINS)}. "
        f"Your own function is `module:function` or `file.py:function`; a model is `owner/name` or a directory."
    )


def _builtin_with_settings(spec: str) -> RewardSpec:
    with boundary(RewardError, f"Reading the reward {spec!r}"):
        call = ast.parse(spec, mode="eval").body
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise RewardError(f"{spec!r} is no call of a built-in reward, like `length_reward(target=200)`.")
    name = call.func.id
    if name not in BUILTINS:
        raise RewardError(f"{name!r} is no built-in reward.{_did_you_mean(name, BUILTINS)}")
    if any(keyword.arg is None for keyword in call.keywords):
        raise RewardError(f"{spec!r} has `**`; write out the settings.")
    with boundary(RewardError, f"Reading the settings of {spec!r} (they must be literals: numbers, texts, lists)"):
        values = [ast.literal_eval(value) for value in call.args]
        settings = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    if name not in FACTORIES:
        if values:
            raise RewardError(f"Give the settings of `{name}` by name, as in `{name}(setting=value)`.")
        return functools.partial(BUILTINS[name], **settings) if settings else BUILTINS[name]
    with boundary(RewardError, f"Making the reward {spec!r}"):
        reward: RewardSpec = FACTORIES[name](*values, **settings)
    return reward


def _from_module(module_name: str, function_name: str) -> RewardSpec:
    module = _load_file(module_name) if module_name.endswith(".py") else _import(module_name)
    found: Any = module
    for part in function_name.split("."):
        if part not in dir(found):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise RewardError(f"`{module_name}` has no `{function_name}`.{_did_you_mean(part, public)}")
        found = getattr(found, part)
    reward: RewardSpec = found
    return reward


def _import(name: str) -> ModuleType:
    # An installed command, unlike `python script.py`, does not look where the user stands.
    with boundary(RewardError, f"Importing the module {name!r} of a reward"), _folder_on_path(os.getcwd()):
        return importlib.import_module(name)


def _load_file(path: str) -> ModuleType:
    _check_is_file(path)
    full = Path(path).resolve()
    # Dataclasses look their module up in `sys.modules`. The name is made unique: a user's `code.py` is not Python's.
    name = f"{full.stem}_{zlib.crc32(os.fsencode(full)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with boundary(RewardError, f"Running {path!r}, which holds a reward,"), _folder_on_path(str(full.parent)):
        spec.loader.exec_module(module)
    return module


def _check_is_file(path: str) -> None:
    if not Path(path).is_file():
        raise RewardError(f"There is no file {path!r} to take a reward from.")


def _without_function(path: str) -> str:
    """What to say to a file without a function's name. The file is read, not run."""
    _check_is_file(path)
    with boundary(RewardError, f"Reading {path!r}, which holds a reward,"):
        tree = ast.parse(Path(path).read_bytes())
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    public = [name for name in functions if not name.startswith("_")]
    listed = ", ".join(f"`{name}`" for name in public) or "no public one"
    return f"Name the function: `{path}:{public[0] if public else 'my_reward'}`. It has {listed}."


@contextmanager
def _folder_on_path(folder: str) -> Iterator[None]:
    """First in line meanwhile, and last for the rest of the process: a function may import its neighbours when it is
    called, but a neighbour must not hide a library's module of the same name from the library."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # a module may have changed the path itself
            sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _did_you_mean(name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean `{nearest[0]}`?" if nearest else ""


def _example(factory: str) -> str:
    return {
        "format_reward": r"format_reward(pattern='<answer>.*</answer>')",
        "get_cosine_scaled_reward": "get_cosine_scaled_reward(max_len=1024)",
        "get_repetition_penalty_reward": "get_repetition_penalty_reward(ngram_size=3, max_penalty=-1.0)",
        "get_soft_overlong_punishment": "get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256)",
        "length_reward": "length_reward(target=200)",
    }[factory]
