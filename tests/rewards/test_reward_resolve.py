"""Rewards by text, for the command line."""

import sys

import pytest

from gruppo.errors import RewardError
from gruppo.rewards import BUILTINS, resolve_reward, think_format_reward
from gruppo.rewards.builtin_table import FACTORIES
from gruppo.rewards.resolve import _example

SOURCE = """
def my_reward(completions, **kwargs):
    return [1.0] * len(completions)

class Judge:
    @staticmethod
    def grade(completions, **kwargs):
        return [2.0] * len(completions)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_for_resolve.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_rewards_for_resolve"
    sys.modules.pop("my_rewards_for_resolve", None)


def test_builtins_by_name():
    assert resolve_reward("think_format_reward") is think_format_reward
    assert resolve_reward("think_format_reward()") is think_format_reward


def test_builtins_with_settings():
    overlong = resolve_reward("get_soft_overlong_punishment(100, soft_punish_cache=20)")
    assert overlong(completion_ids=[[1] * 90]) == [-0.5]
    match = resolve_reward(r"exact_match_reward(extract='= (\\d+)')")
    assert match(completions=["1+1 = 2"], answer=["2"]) == [1.0]


def test_functions_of_modules_and_files(module, tmp_path):
    path_before = list(sys.path)
    assert resolve_reward(f"{module}:my_reward")(["a"]) == [1.0]
    assert resolve_reward(f"{module}:Judge.grade")(["a"]) == [2.0]
    assert resolve_reward(f"{module}.my_reward")(["a"]) == [1.0]
    assert resolve_reward(f"{tmp_path}/{module}.py:my_reward")(["a", "b"]) == [1.0, 1.0]
    assert resolve_reward(f"{module}.py:my_reward")(["a"]) == [1.0]
    assert sys.path == [*path_before, str(tmp_path)]  # last: nothing there hides a module of the same name


def test_the_home_folder_may_be_short(module, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_reward(f"~/{module}.py:my_reward")(["a"]) == [1.0]
    assert resolve_reward("~/judge") == f"{tmp_path}/judge"
    with pytest.raises(RewardError, match=f"There is no file '{tmp_path}/nowhere.py'"):
        resolve_reward("~/nowhere.py:my_reward")


@pytest.fixture
def helper(tmp_path):
    """A module beside the reward's file, in a folder that nobody stands in."""
    name = "helper_of_a_reward_file"
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / f"{name}.py").write_text("VALUE = 3.0")
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["fresh", "code"])
def test_a_file_may_hold_a_dataclass_with_postponed_annotations(module, helper, tmp_path, name):
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    (tmp_path / "rewards" / f"{name}.py").write_text(f"{source}{SOURCE}")
    assert resolve_reward(f"rewards/{name}.py:my_reward")(["a"]) == [1.0]
    import code  # the standard library's

    assert "rewards" not in code.__file__


def test_a_file_may_import_its_neighbours(module, helper, tmp_path):
    (tmp_path / "rewards" / "mine.py").write_text(f"import {helper}\ndef f(completions, **kw): return [{helper}.VALUE]")
    assert resolve_reward("rewards/mine.py:f")(["a"]) == [3.0]


@pytest.mark.parametrize("spec", ["late:f", "late.py:f", "rewards/late.py:f"])
def test_neighbours_may_be_imported_at_call_time(module, helper, tmp_path, spec):
    for folder in (tmp_path, tmp_path / "rewards"):
        (folder / f"{helper}.py").write_text("VALUE = 3.0")
        (folder / "late.py").write_text(
            f"def f(completions, **kw):\n    import {helper}\n    return [{helper}.VALUE]\n"
        )
    try:
        assert resolve_reward(spec)(["a"]) == [3.0]
    finally:
        sys.modules.pop("late", None)


def test_a_module_may_extend_the_path_itself(module, tmp_path):
    (tmp_path / "extends.py").write_text("import sys\nsys.path.append('elsewhere')\ndef f(**kw): return []\n")
    resolve_reward("extends.py:f")
    assert "elsewhere" in sys.path


@pytest.mark.parametrize("spec", ["{}.py", "./{}.py", "{}.py:"])
def test_a_file_without_a_function_lists_its_functions(module, spec):
    shown = spec.format(module).removesuffix(":")
    with pytest.raises(RewardError, match=f"Name the function: `{shown}:my_reward`. It has `my_reward`."):
        resolve_reward(spec.format(module))


def test_a_file_without_functions_says_so(module, tmp_path):
    (tmp_path / "empty.py").write_text("def _private(): pass")
    with pytest.raises(RewardError, match=r"Name the function: `empty.py:my_reward`. It has no public one."):
        resolve_reward("empty.py")
    with pytest.raises(RewardError, match=r"There is no file './none.py' to take a reward from"):
        resolve_reward("./none.py")


def test_models_stay_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge").mkdir()
    assert resolve_reward("owner/name-1.5b") == "owner/name-1.5b"
    assert resolve_reward("judge") == "judge"
    assert resolve_reward(" ./judge ") == "./judge"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("acuracy_reward", "is no built-in reward. Did you mean `accuracy_reward`?"),
        ("zzz", "'zzz' is no built-in reward. The built-in ones are accuracy_reward, "),
        ("length_reward", r"Write them as a call: `length_reward\(target=200\)`"),
        ("lenght_reward(200)", "'lenght_reward' is no built-in reward. Did you mean `length_reward`?"),
        ("length_reward(goal=200)", "unexpected keyword argument 'goal'"),
        ("length_reward(target=0)", "give the wanted length"),
        ("length_reward(target=open('x'))", "must be literals"),
        ("length_reward(**{})", r"has `\*\*`"),
        ("length_reward(", "is no built-in reward"),
        ("length_reward(target=)", "Reading the reward 'length_reward"),
        ("os.system('x')", "is no call of a built-in reward"),
        ("exact_match_reward('x')", "Give the settings of `exact_match_reward` by name"),
        ("my_rewards_for_resolve:my_rewrad", "has no `my_rewrad`. Did you mean `my_reward`?"),
        ("my_rewards_for_resolve:Judge.grad", "has no `Judge.grad`. Did you mean `grade`?"),
        ("no_such_module_here:f", "Importing the module 'no_such_module_here' of a reward failed: ModuleNotFoundError"),
        ("no_such_file.py:f", "There is no file 'no_such_file.py'"),
    ],
)
def test_errors_name_the_nearest(module, spec, message):
    with pytest.raises(RewardError, match=message):
        resolve_reward(spec)


def test_a_file_that_fails(module, tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(RewardError, match=r"Running 'bad.py', which holds a reward, failed: ZeroDivisionError"):
        resolve_reward("bad.py:f")


@pytest.mark.parametrize("name", FACTORIES)
def test_the_example_of_each_factory_works(name):
    assert callable(resolve_reward(_example(name)))


def test_every_builtin_is_documented():
    assert all(function.__doc__ for function in BUILTINS.values())
