"""The folders of a step's parts have one name that is written, and two that are read."""

import pytest

from gruppo.monitor.export import export
from gruppo.monitor.export_choice import Choice
from gruppo.monitor.readers import read_rollouts
from gruppo.monitor.report.samples import last_extremes
from gruppo.monitor.server.rounds import Rounds
from gruppo.monitor.step_folders import step_of, steps_among
from monitor import monitor_fakes as fakes


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-000012", 12),
        ("step=000012", 12),
        ("step-1234567", 1234567),
        ("step-", None),
        ("step_12", None),
        ("step-12.tmp", None),
        (".step-000012", None),
        ("step-1" + "0" * 12, None),
    ],
)
def test_names(name, step):
    assert step_of(name) == step


def test_steps_are_sorted_and_counted_once():
    assert steps_among(["step-000010", "step=000002", "step=000010", "other"]) == [2, 10]


def test_a_run_with_folders_of_the_other_name_is_read_everywhere_and_superseded(tmp_path):
    first = fakes.make_recorder(tmp_path)
    for step in (1, 2, 3):
        fakes.record_round(first, step)
        first.record_step(step, {"reward": 0.5})
    first.close("killed")
    for step in (1, 2, 3):
        (tmp_path / f"rollouts/step-00000{step}").rename(tmp_path / f"rollouts/step=00000{step}")
    second = fakes.make_recorder(tmp_path, start_step=2)
    fakes.record_round(second, 2, "eval")
    second.close()

    found = [(row["step"], row["split"], row["attempt"]) for row in read_rollouts(tmp_path).to_pylist()]
    assert found == [(1, "train", 1)] * 4 + [(2, "eval", 2)] * 4 + [(2, "train", 1)] * 4
    assert read_rollouts(tmp_path, step=2).num_rows == 8
    assert [path.name for path in tmp_path.glob("superseded/a2/rollouts/*")] == ["step=000003"]
    rounds = Rounds()
    assert rounds.steps(tmp_path).tolist() == [1, 2]
    assert rounds.read(tmp_path, 2).table.num_rows == 8
    assert last_extremes(tmp_path).step == 2
    assert export(tmp_path, "rollouts", tmp_path / "all.jsonl", "jsonl", Choice()) == 12
