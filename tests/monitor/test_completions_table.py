"""TRL's completions log: its file, its printed table, its tracker tables."""

import sys
from collections import deque
from math import nan
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rich
from rich.console import Console

from gruppo.monitor.completions_table import CompletionRows, CompletionsTable, print_sample, to_arrow
from gruppo.types import Completion, Group, Prompt
from monitor import monitor_fakes as fakes

PATH = "completions/completions_00012.parquet"


def text_rows() -> CompletionRows:
    return CompletionRows(
        ["exact", "format"],
        prompts=["2+2=", "2+2=", "3+3="],
        completions=["4", "[bold]5[/]", "6"],
        rewards={"exact": [1.0, nan, 0.25], "format": [0.0, 0.5, 1.0]},
        extras={"note": ["a", None, "c"], "length": [1, 2, 3]},
        advantages=[0.5, -0.5, 0.0],
    )


def logged(tmp_path, monkeypatch, completions, steps=(12,)):
    """The printed text after recording and logging each step."""
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    monkeypatch.setattr(rich, "get_console", lambda: console)
    recorder = fakes.make_recorder(tmp_path, completions=completions)
    for step in steps:
        fakes.record_round(recorder, step, note=["a", "b", None, "d"])
    recorder.log_completions(steps[-1])
    recorder.close()
    console.file.close()
    assert recorder.num_failed_writes == 0
    return console.export_text()


def test_columns_and_values_of_the_file(tmp_path, monkeypatch):
    printed = logged(tmp_path, monkeypatch, CompletionsTable(), steps=(11, 12))
    frame = pd.read_parquet(tmp_path / PATH)
    assert list(frame.columns) == ["step", "prompt", "completion", "exact", "format", "note", "advantage"]
    assert frame["step"].tolist() == [12] * 4
    assert frame["exact"].tolist()[:3] == [1.0, 0.0, 0.25]
    assert frame["advantage"].tolist() == [0.5, -0.5, 0.0, 0.0]
    assert frame["note"].tolist()[:2] == ["a", "b"]
    assert "Step 12" in printed
    assert not (tmp_path / "completions/completions_00011.parquet").exists()


def test_an_evaluation_does_not_overwrite_the_training_file(tmp_path, monkeypatch):
    logged(tmp_path, monkeypatch, CompletionsTable(0))
    recorder = fakes.make_recorder(tmp_path, completions=CompletionsTable(0), start_step=None)
    fakes.record_round(recorder, 12, "eval")
    fakes.record_round(recorder, 12, "eval")
    recorder.log_completions(12, "eval")
    fakes.record_round(recorder, 12, "eval_math")
    fakes.record_round(recorder, 12, "eval")
    recorder.log_completions(12, "eval_math")
    recorder.close()
    assert len(pq.read_table(tmp_path / PATH)) == 4
    assert len(pq.read_table(tmp_path / "completions/completions_eval_00012.parquet")) == 8
    assert len(pq.read_table(tmp_path / "completions/completions_eval_math_00012.parquet")) == 4


def test_a_round_may_feed_two_lines_and_an_evaluation_feeds_one(tmp_path):
    recorder = fakes.make_recorder(tmp_path, completions=CompletionsTable(0))
    for split in ("train", "eval"):
        fakes.record_round(recorder, 1, split)
        recorder.log_completions(1, split)
        recorder.log_completions(2, split)
    recorder.close()
    names = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert names == ["completions_00001.parquet", "completions_00002.parquet", "completions_eval_00001.parquet"]
    assert pq.read_table(tmp_path / "completions/completions_00002.parquet")["step"].to_pylist() == [2] * 4


def test_all_trackers_are_those_installed(monkeypatch):
    monkeypatch.setattr("gruppo.monitor.completions_table.find_spec", lambda name: name == "trackio" or None)
    assert CompletionsTable(report_to=["all"]).trackers == ["trackio"]
    assert CompletionsTable(report_to=["none"]).trackers == []


def test_off_and_empty_write_nothing(tmp_path):
    for completions in (None, CompletionsTable()):
        recorder = fakes.make_recorder(tmp_path, completions=completions)
        recorder.log_completions(1)
        recorder.close()
    assert not (tmp_path / "completions").exists()


@pytest.mark.parametrize(("num_to_print", "num_rows"), [(None, 4), (0, 0), (-1, 0), (2, 2), (9, 4)])
def test_num_completions_to_print(num_to_print, num_rows):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    rows = CompletionRows(["r"], ["p"] * 4, ["zzz"] * 4, {"r": [1.0] * 4}, {}, [0.0] * 4)
    print_sample(1, rows, num_to_print, console)
    console.file.close()
    assert console.export_text().count("zzz") == num_rows


def test_printing_shows_markup_as_text_and_draws_by_step_alone():
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_sample(1, text_rows(), None, console)
    text = console.export_text()
    assert "[bold]5[/]" in text
    assert "nan" in text
    for _ in range(2):
        print_sample(3, text_rows(), 1, console)
    drawn = console.export_text(clear=True)
    console.file.close()
    assert drawn.count("Step 3") == 2
    assert drawn[: len(drawn) // 2] == drawn[len(drawn) // 2 :]


def test_trackers_get_one_row_per_prompt(tmp_path, monkeypatch):
    sent = []
    for name, run in (("wandb", object()), ("trackio", None)):
        tracker = ModuleType(name)
        tracker.run = run
        tracker.Table = lambda dataframe: dataframe
        tracker.log = lambda data, name=name: sent.append((name, data["completions"]))
        monkeypatch.setitem(sys.modules, name, tracker)
    logged(
        tmp_path, monkeypatch, CompletionsTable(0, unique_prompts=True, report_to=["tensorboard", "trackio", "wandb"])
    )
    assert [(name, len(frame)) for name, frame in sent] == [("wandb", 2), ("trackio", 2)]
    sys.modules["wandb"].run = None
    sent.clear()
    logged(tmp_path, monkeypatch, CompletionsTable(0, report_to=["wandb"]))
    assert sent == []


def test_values_without_a_common_type_become_json_text():
    rows = CompletionRows(
        [],
        prompts=[
            [{"role": "user", "content": "hi"}],
            [{"role": "user", "content": [{"type": "image", "image": object()}]}],
        ],
        completions=["a", "b"],
        extras={"mixed": [1, "x"], "huge": [10**400, 2]},
        advantages=[0.0, 0.0],
    )
    columns = to_arrow(1, rows).to_pydict()
    assert columns["mixed"] == ["1", "x"]
    assert columns["huge"] == [str(10**400), "2"]
    assert columns["prompt"][1] == '[{"role": "user", "content": [{"type": "image"}]}]'


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_the_file_equals_the_one_trl_writes(tmp_path):
    """TRL's own `log`, on a trainer that has only what that method reads, and ours, from the same values."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    rows = text_rows()
    (tmp_path / "trl" / "completions").mkdir(parents=True)
    trainer = object.__new__(grpo_trainer.GRPOTrainer)
    trainer.model = SimpleNamespace(training=True)
    trainer._metrics = {"train": {}}
    trainer.state = SimpleNamespace(global_step=12, epoch=1.0, log_history=[])
    trainer.args = SimpleNamespace(report_to=[], output_dir=str(tmp_path / "trl"), include_num_input_tokens_seen="no")
    trainer.control = None
    trainer.callback_handler = SimpleNamespace(on_log=lambda *args: None)
    trainer.accelerator = SimpleNamespace(is_main_process=True)
    trainer.log_completions, trainer.num_completions_to_print, trainer.log_unique_prompts = True, 0, False
    trainer._logs = {
        "images": deque(),
        "prompt": deque(rows.prompts),
        "completion": deque(rows.completions),
        "rewards": {name: deque(values) for name, values in rows.rewards.items()},
        "advantages": deque(rows.advantages),
        "extra": {name: deque(rows.extras[name]) for name in sorted(rows.extras)},  # the order of TRL's own gather
    }
    trainer.log({})
    groups = [
        Group(Prompt(0, "2+2=", [1]), [Completion(i, [1], "stop", text=rows.completions[i]) for i in (0, 1)]),
        Group(Prompt(1, "3+3=", [1]), [Completion(0, [1], "stop", text="6")]),
    ]
    table = fakes.rewards(**rows.extras)
    table.rewards_NF = table.rewards_NF.new_tensor([rows.rewards["exact"], rows.rewards["format"]]).T
    recorder = fakes.make_recorder(tmp_path / "ours", completions=CompletionsTable(0))
    advantages = fakes.advantages()
    recorder.record_rollouts(12, "train", groups, table, advantages, policy_version=0)
    recorder.log_completions(12)
    recorder.close()
    theirs, ours = pd.read_parquet(tmp_path / "trl" / PATH), pd.read_parquet(tmp_path / "ours" / PATH)
    pd.testing.assert_frame_equal(ours, theirs)
    assert np.isnan(ours["exact"][1])
