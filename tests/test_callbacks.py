"""transformers' own callbacks, run through the bridge by a loop like the trainer's."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from gruppo.callbacks import CallbackBridge
from gruppo.config import GRPOConfig
from gruppo.distributed.world import World
from gruppo.errors import CheckpointError, ConfigError

MODEL = object()


def make_bridge(tmp_path, callbacks=None, **fields):
    config = GRPOConfig(output_dir=str(tmp_path), **fields)
    world = World(SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu")))
    bridge = CallbackBridge(config, callbacks, model=MODEL, processing_class="tokenizer", world=world)
    bridge.on_init_end()
    return bridge


def run(bridge, max_steps, eval_rewards=()):
    """The trainer's order of events, without a model: returns what was done at which step."""
    done = []
    rewards = iter(eval_rewards)
    bridge.on_train_begin()
    bridge.on_epoch_begin()
    while bridge.state.global_step < max_steps and not bridge.control.should_training_stop:
        bridge.on_step_begin()
        bridge.on_substep_end()
        bridge.on_pre_optimizer_step()
        bridge.on_optimizer_step()
        bridge.state.global_step += 1
        bridge.state.epoch = bridge.state.global_step / max_steps
        bridge.on_step_end()
        done += react(bridge, rewards)
    bridge.on_epoch_end()
    bridge.on_train_end()
    return done


def react(bridge, rewards):
    step, done = bridge.state.global_step, []
    if bridge.control.should_log:
        bridge.on_log({"loss": 0.5, "reward": step / 10})
        done.append(f"log {step}")
    if bridge.control.should_evaluate:
        metrics = {"eval_reward": next(rewards, 0.0)}
        bridge.on_prediction_step()
        bridge.on_log(metrics)
        bridge.on_evaluate(metrics)
        done.append(f"evaluate {step}" + (" best" if bridge.update_best(metrics) else ""))
    if bridge.control.should_save:
        bridge.on_save()
        done.append(f"save {step}")
    return done


class Spy(TrainerCallback):
    """Notes each event and what it came with."""

    def __init__(self):
        self.events = []
        self.seen = {}

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def event(args, state, control, **kwargs):
            self.events.append(name)
            self.seen[name] = kwargs

        return event


def test_events_come_in_transformers_order_with_its_arguments(tmp_path):
    spy = Spy()
    bridge = make_bridge(tmp_path, [spy], logging_steps=1, eval_strategy="steps", eval_steps=1, save_steps=1)
    bridge.attach(optimizer="optimizer", lr_scheduler="scheduler")
    bridge.start(1, 1)
    run(bridge, 1)
    assert spy.events == [
        "on_init_end",
        "on_train_begin",
        "on_epoch_begin",
        "on_step_begin",
        "on_substep_end",
        "on_pre_optimizer_step",
        "on_optimizer_step",
        "on_step_end",
        "on_log",
        "on_prediction_step",
        "on_log",
        "on_evaluate",
        "on_save",
        "on_epoch_end",
        "on_train_end",
    ]
    common = {
        "model": MODEL,
        "processing_class": "tokenizer",
        "optimizer": "optimizer",
        "lr_scheduler": "scheduler",
        "train_dataloader": None,
        "eval_dataloader": None,
    }
    assert spy.seen["on_step_end"] == common
    assert spy.seen["on_evaluate"] == {**common, "metrics": {"eval_reward": 0.0}}
    assert spy.seen["on_log"] == {**common, "logs": {"eval_reward": 0.0, "epoch": 1.0}}


@pytest.mark.parametrize(
    ("fields", "done"),
    [
        (
            {"logging_steps": 2, "save_steps": 3, "eval_strategy": "steps", "eval_steps": 4},
            ["log 2", "save 3", "log 4", "evaluate 4", "evaluate 5", "save 5"],
        ),
        ({"logging_steps": 0.5, "save_strategy": "no", "logging_first_step": True}, ["log 1", "log 3"]),
        ({"logging_strategy": "no", "save_steps": 0.4}, ["save 2", "save 4", "save 5"]),
        (
            {"logging_steps": 2, "save_strategy": "no", "eval_strategy": "steps", "eval_delay": 3},
            ["log 2", "log 4", "evaluate 4", "evaluate 5"],
        ),
    ],
)
def test_strategies_decide_when_to_log_evaluate_and_save(tmp_path, fields, done):
    bridge = make_bridge(tmp_path, **fields)
    bridge.start(5, 1)
    assert [entry.removesuffix(" best") for entry in run(bridge, 5)] == done


def test_epoch_strategies(tmp_path):
    bridge = make_bridge(tmp_path, logging_strategy="epoch", eval_strategy="epoch", save_strategy="epoch")
    bridge.start(2, 1)
    assert run(bridge, 2) == []
    assert react(bridge, iter([0.5])) == ["log 2", "evaluate 2 best", "save 2"]


class Director(TrainerCallback):
    """A user's callback that takes the wheel."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = state.global_step == 1
        control.should_save = state.global_step == 2
        control.should_log = state.global_step == 3
        control.should_training_stop = state.global_step == 4
        return control


def test_a_users_callback_is_obeyed_and_flags_fall_back(tmp_path):
    bridge = make_bridge(tmp_path, [Director], logging_strategy="no", save_strategy="no")
    bridge.start(9, 1)
    assert run(bridge, 9) == ["evaluate 1 best", "save 2", "log 3"]
    assert bridge.state.global_step == 4
    bridge.start(9, 1)
    assert bridge.state.global_step == 0
    assert bridge.state.log_history == []
    assert run(bridge, 9) == ["evaluate 1 best", "save 2", "log 3"]


def test_log_history_is_transformers(tmp_path):
    bridge = make_bridge(tmp_path, logging_steps=1, save_strategy="no")
    bridge.start(2, 1)
    run(bridge, 2)
    bridge.on_log({"kl": float("nan")})
    assert bridge.state.log_history == [
        {"loss": 0.5, "reward": 0.1, "epoch": 0.5, "step": 1},
        {"loss": 0.5, "reward": 0.2, "epoch": 1.0, "step": 2},
        {"kl": None, "epoch": 1.0, "step": 2},
    ]


def early_stopping_run(tmp_path, **fields):
    fields = {"metric_for_best_model": "reward", "load_best_model_at_end": True} | fields
    return make_bridge(
        tmp_path,
        [EarlyStoppingCallback(early_stopping_patience=2)],
        logging_strategy="no",
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        **fields,
    )


def test_early_stopping(tmp_path):
    bridge = early_stopping_run(tmp_path)
    bridge.start(9, 1)
    done = run(bridge, 9, [0.1, 0.5, 0.4, 0.5, 0.9])
    evaluations = [entry for entry in done if entry.startswith("evaluate")]
    assert evaluations == ["evaluate 1 best", "evaluate 2 best", "evaluate 3", "evaluate 4"]
    assert (bridge.state.best_metric, bridge.state.best_global_step) == (0.5, 2)


def test_smaller_is_better_where_the_metric_says_so(tmp_path):
    bridge = make_bridge(tmp_path, metric_for_best_model="eval_loss")
    assert [bridge.update_best({"eval_loss": value}) for value in (0.3, 0.4, float("nan"), 0.2)] == [1, 0, 0, 1]


def test_a_best_metric_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"means eval_accuracy, .* It gave: eval_loss, eval_reward"):
        make_bridge(tmp_path, metric_for_best_model="accuracy").update_best({"eval_reward": 1.0, "eval_loss": 0.0})
    assert make_bridge(tmp_path).update_best({"eval_math_reward": 1.0}) is False


def test_state_and_callbacks_survive_a_restart(tmp_path):
    bridge = early_stopping_run(tmp_path)
    bridge.start(9, 1)
    run(bridge, 3, [0.5, 0.4, 0.6])
    bridge.handler.callbacks[-1].early_stopping_patience_counter = 1
    bridge.save_state(tmp_path / "checkpoint-3" / "trainer_state.json")
    saved = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert saved["global_step"] == 3
    assert saved["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"] == {"early_stopping_patience_counter": 1}
    assert set(saved["stateful_callbacks"]) == {"EarlyStoppingCallback", "TrainerControl"}

    again = early_stopping_run(tmp_path)
    again.start(20, 2, resume_from=tmp_path / "checkpoint-3" / "trainer_state.json", restore_callbacks=True)
    assert (again.state.global_step, again.state.max_steps, again.state.num_train_epochs) == (3, 20, 2)
    assert (again.state.best_metric, again.state.log_history[0]["eval_reward"]) == (0.6, 0.5)
    run(again, 20, [0.5, 0.9])
    assert again.state.global_step == 4  # one more bad evaluation was enough

    fresh = early_stopping_run(tmp_path)
    fresh.start(20, 2, resume_from=tmp_path / "checkpoint-3" / "trainer_state.json")
    run(fresh, 20, [0.5, 0.5, 0.9])
    assert fresh.state.global_step == 5


class Counting(TrainerCallback, ExportableState):
    def __init__(self, name):
        self.name = name
        self.count = 0

    def state(self):
        return {"args": {"name": self.name}, "attributes": {"count": self.count}}


def test_two_callbacks_of_one_class_keep_their_own_state(tmp_path, caplog):
    with caplog.at_level(logging.ERROR):
        bridge = make_bridge(tmp_path, [Counting("a"), Counting("b")])
    bridge.handler.callbacks[-1].count = 5
    bridge.start(1, 1)
    bridge.save_state(tmp_path / "state.json")
    bridge.save_state(tmp_path / "state.json")  # writing twice must not pile states up
    again = make_bridge(tmp_path, [Counting("x"), Counting("y")])
    again.start(1, 1, resume_from=tmp_path / "state.json", restore_callbacks=True)
    assert [(c.name, c.count) for c in again.handler.callbacks[-2:]] == [("a", 0), ("b", 5)]


def test_a_damaged_state_file(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"epoch": ')
    with pytest.raises(CheckpointError, match=r"reading .*trainer_state.json failed"):
        make_bridge(tmp_path).start(1, 1, resume_from=tmp_path / "trainer_state.json")


def events(folder: Path):
    (file,) = folder.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(file.parent))
    accumulator.Reload()
    return accumulator


def test_tensorboard_files_can_be_read_back(tmp_path):
    bridge = make_bridge(tmp_path, report_to="tensorboard", logging_dir=str(tmp_path / "boards"), logging_steps=1)
    bridge.attach(model=SimpleNamespace(config=None))
    bridge.start(3, 1)
    run(bridge, 3)
    accumulator = events(tmp_path / "boards")
    assert [(e.step, round(e.value, 6)) for e in accumulator.Scalars("train/reward")] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    args = json.loads(accumulator.Tensors("args/text_summary")[0].tensor_proto.string_val[0])
    assert args["logging_steps"] == 1


def test_tensorboard_default_folder_is_below_output_dir(tmp_path):
    bridge = make_bridge(tmp_path, report_to=["tensorboard"], logging_steps=1)
    bridge.attach(model=SimpleNamespace(config=None))
    bridge.start(1, 1)
    run(bridge, 1)
    assert events(tmp_path / "runs").Scalars("train/loss")[0].value == 0.5


@pytest.mark.parametrize("report_to", ["none", ["none"], []])
def test_no_reporting(tmp_path, report_to):
    bridge = make_bridge(tmp_path, report_to=report_to)
    assert bridge.handler.callback_list == "DefaultFlowCallback"


def test_a_tracker_or_callback_that_cannot_be_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="weights_and_measures"):
        make_bridge(tmp_path, report_to="weights_and_measures")
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(ConfigError, match=r"report_to='wandb' failed: RuntimeError: .*pip install wandb"):
        make_bridge(tmp_path, report_to="wandb")
    with pytest.raises(ConfigError, match=r"no transformers.TrainerCallback"):
        make_bridge(tmp_path, [lambda: None])


def test_add_pop_and_remove(tmp_path):
    bridge = make_bridge(tmp_path)
    bridge.add_callback(Director)
    spy = Spy()
    bridge.add_callback(spy)
    assert bridge.handler.callback_list.split() == ["DefaultFlowCallback", "Director", "Spy"]
    assert isinstance(bridge.pop_callback(Director), Director)
    assert bridge.pop_callback(Director) is None
    bridge.remove_callback(spy)
    bridge.remove_callback(Spy)
    assert bridge.handler.callback_list == "DefaultFlowCallback"
