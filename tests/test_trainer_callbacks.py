"""transformers' callbacks, trackers, optimizers and schedules, through a real training."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset as TorchDataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from fakes import DATA, Recording, StopAt, flat, lines, policy, trainer
from gruppo.errors import ConfigError

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


class _Rows(TorchDataset):
    """Twelve rows of three tokens: as many micro-steps per epoch as the toy task has slices."""

    def __init__(self, num_rows):
        self.num_rows = num_rows

    def __len__(self):
        return self.num_rows

    def __getitem__(self, index):
        return {"input_ids": torch.tensor([3, 4, 5]), "labels": torch.tensor([3, 4, 5])}


def transformers_events(folder, **fields):
    """The events of a real `transformers.Trainer`: three steps of two micro-steps an epoch, one evaluation batch."""
    recording = Recording()
    Trainer(
        policy(),
        TrainingArguments(
            output_dir=str(folder),
            **{
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "per_device_eval_batch_size": 8,
                "use_cpu": True,
                "disable_tqdm": True,
                "report_to": "none",
                "save_strategy": "no",
                "logging_steps": 1,
                **fields,
            },
        ),
        train_dataset=_Rows(24),
        eval_dataset=_Rows(8),
        callbacks=[recording],
    ).train()
    return recording.events


def our_events(folder, **fields):
    recording = Recording()
    # Six prompts of four completions are 24 rows; two prompts are one evaluation batch.
    made = trainer(folder, {"max_steps": -1, **fields}, eval_dataset=DATA[:2], callbacks=[recording])
    made.train()
    return recording.events


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "fields",
    [
        {"num_train_epochs": 2.0},
        {"num_train_epochs": 1.5, **EVERY_STEP, "eval_on_start": True},
        {"num_train_epochs": 2.0, "logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"max_steps": 4, "logging_steps": 2, "logging_first_step": True, "eval_strategy": "steps", "eval_steps": 3},
        {"max_steps": 4, "logging_strategy": "no", "save_strategy": "steps", "save_steps": 3},
    ],
    ids=["plain", "every step", "every epoch", "logging", "saving"],
)
def test_events_and_their_steps_are_those_of_transformers_trainer(tmp_path, fields):
    ours = our_events(tmp_path / "ours", **fields)
    theirs = transformers_events(tmp_path / "theirs", **fields)
    assert ours == theirs


def test_real_early_stopping_stops(tmp_path):
    fields = {**EVERY_STEP, "max_steps": 10, "load_best_model_at_end": True, "metric_for_best_model": "eval_reward"}
    made = trainer(
        tmp_path,
        fields,
        reward_funcs=lambda completions, **kwargs: [1.0] * len(completions),
        eval_dataset=DATA[:1],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    made.train()
    # The first evaluation is the best so far, two more bring nothing.
    assert made.state.global_step == 3
    assert made.state.best_global_step == 1


@pytest.mark.parametrize(
    "fields", [{}, {"steps_per_generation": 4, "num_iterations": 2}], ids=["round", "inside a round"]
)
def test_should_training_stop_ends_the_run_after_the_step(tmp_path, fields):
    made = trainer(tmp_path, {"max_steps": 10, **fields}, callbacks=[StopAt(2)])
    output = made.train()
    assert output.global_step == 2
    assert [line["step"] for line in lines(made)] == [1, 2]
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()


def test_should_evaluate_save_and_log_are_honoured(tmp_path):
    class Asks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = state.global_step == 1
            control.should_save = state.global_step == 2
            control.should_log = state.global_step == 3

    made = trainer(tmp_path, {"logging_strategy": "no"}, eval_dataset=DATA[:1], callbacks=[Asks()])
    made.train()
    assert [line["step"] for line in lines(made, "eval_reward")] == [1]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    (line,) = lines(made)
    assert line["step"] == 3


def test_should_epoch_stop_goes_on_with_the_next_epoch(tmp_path):
    class CutShort(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.epoch < 1

    made = trainer(tmp_path, {"max_steps": -1, "num_train_epochs": 2}, callbacks=[CutShort()])
    made.train()
    assert [line["epoch"] for line in lines(made)] == pytest.approx([1 / 3, 4 / 3, 5 / 3, 2.0])


def test_callbacks_see_the_run(tmp_path):
    seen = {}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.update(kwargs, args=args, max_steps=state.max_steps)

    made = trainer(tmp_path, {"max_steps": 1}, callbacks=[Look])
    made.train()
    assert seen["model"] is made.model
    assert seen["optimizer"] is made.optimizer
    assert seen["lr_scheduler"] is made.lr_scheduler
    assert seen["processing_class"] is made.processing_class
    assert seen["max_steps"] == 1
    assert seen["args"].output_dir == made.args.output_dir


def test_callbacks_may_come_and_go(tmp_path):
    made = trainer(tmp_path, {"max_steps": 1})
    recording = Recording()
    made.add_callback(recording)
    made.train()
    assert recording.names()[0] == "on_train_begin"
    assert made.pop_callback(Recording) is recording
    made.add_callback(recording)
    made.remove_callback(recording)
    num_events = len(recording.events)
    made.train()
    assert len(recording.events) == num_events


def test_logging_and_evaluation_by_epoch(tmp_path):
    fields = {"max_steps": -1, "num_train_epochs": 2, "logging_strategy": "epoch", "eval_strategy": "epoch"}
    made = trainer(tmp_path, fields, eval_dataset=DATA[:1])
    made.train()
    assert [(line["step"], line["epoch"]) for line in lines(made)] == [(3, 1.0), (6, 2.0)]
    assert [line["step"] for line in lines(made, "eval_reward")] == [3, 6]


# -- report_to


def test_tensorboard_gets_the_scalars(tmp_path):
    made = trainer(
        tmp_path,
        {"max_steps": 2, "report_to": "tensorboard", "logging_dir": str(tmp_path / "tb"), **EVERY_STEP},
        eval_dataset=DATA[:1],
    )
    made.train()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    logged = [scalar.value for scalar in events.Scalars("train/reward")]
    assert logged == pytest.approx([line["reward"] for line in lines(made)])
    assert [scalar.step for scalar in events.Scalars("eval/reward")] == [1, 2]


# -- optimizers=


def test_given_optimizer_and_schedule_are_used(tmp_path):
    model = policy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    made = trainer(tmp_path, model=model, optimizers=(optimizer, scheduler))
    before = flat(model)
    made.train()
    assert [line["learning_rate"] for line in lines(made)] == [0.5, 0.25, 0.125]
    assert made.lr_scheduler is scheduler
    assert made.optimizer.optimizer is optimizer
    assert not torch.equal(flat(model), before)


def test_a_given_optimizer_gets_the_configs_schedule(tmp_path):
    model = policy()
    made = trainer(tmp_path, model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.3), None))
    made.train()
    assert [line["learning_rate"] for line in lines(made)] == pytest.approx([0.3, 0.2, 0.1])


def test_the_optimizer_steps_by_sgd_exactly(tmp_path):
    model = policy()
    gradients = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            gradients.append(torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    made = trainer(
        tmp_path, {"max_steps": 1, "max_grad_norm": 1e-3}, model=model, optimizers=(optimizer, None), callbacks=[Look]
    )
    before = flat(model)
    made.train()
    assert gradients[0].norm().item() == pytest.approx(1e-3, rel=1e-4)
    torch.testing.assert_close(flat(model), before - 0.5 * gradients[0])
    assert lines(made)[0]["grad_norm"] > 1e-2


# -- schedules


NAMES = {
    "linear": None,
    "cosine": None,
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"lr_end": 1e-4, "power": 2.0},
    "constant": None,
    "constant_with_warmup": None,
    "inverse_sqrt": None,
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 2},
}


@pytest.mark.parametrize("name", NAMES)
def test_schedules_train_save_and_resume(tmp_path, name):
    fields = {"lr_scheduler_type": name, "lr_scheduler_kwargs": NAMES[name], "warmup_steps": 1, "max_steps": 4}
    fields |= {"save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, fields)
    whole.train()
    rates = [line["learning_rate"] for line in lines(whole)]
    assert rates[0] == (1e-2 if name == "constant" else pytest.approx(rates[0], abs=1e-2))
    resumed = trainer(tmp_path, fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [line["learning_rate"] for line in lines(resumed)] == rates


def plateau(tmp_path, rewards, **fields):
    """A run whose evaluations give `rewards`, one after the other."""
    given = iter(rewards)

    def reward(completions, trainer_state, **kwargs):
        is_eval = len(completions) == 1
        value = next(given) if is_eval else 0.0
        return [value] * len(completions)

    fields = {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5},
        "max_steps": len(rewards),
        "num_generations_eval": 1,
        **EVERY_STEP,
        **fields,
    }
    made = trainer(tmp_path, fields, reward_funcs=reward, eval_dataset=DATA[:1])
    made.train()
    return made


def test_reduce_lr_on_plateau_follows_the_evaluation(tmp_path):
    made = plateau(tmp_path, [1.0, 2.0, 1.5, 3.0])
    # The third evaluation was no better; the fourth step is the first to feel it.
    assert [line["learning_rate"] for line in lines(made)] == [1e-2, 1e-2, 1e-2, 5e-3]


def test_reduce_lr_on_plateau_survives_a_checkpoint(tmp_path):
    whole = plateau(tmp_path, [1.0, 0.5, 0.4, 0.3])
    assert [line["learning_rate"] for line in lines(whole)] == [1e-2, 1e-2, 5e-3, 2.5e-3]
    state = json.loads((tmp_path / "checkpoint-2" / "scheduler.json").read_text())
    assert (state["best"], state["mode"]) == (1.0, "max")


def test_reduce_lr_on_plateau_does_not_count_evaluation_on_start(tmp_path):
    made = plateau(tmp_path, [9.0, 1.0, 2.0], max_steps=2, eval_on_start=True)
    assert made.lr_scheduler.best == 2.0


def test_reduce_lr_on_plateau_may_follow_another_metric(tmp_path):
    made = plateau(tmp_path, [1.0, 1.0, 1.0], metric_for_best_model="loss")
    # The loss is 0 each time: no better, so the rate halves after each evaluation but the first.
    assert made.lr_scheduler.mode == "min"
    assert [line["learning_rate"] for line in lines(made)] == [1e-2, 1e-2, 5e-3]


def test_reduce_lr_on_plateau_needs_its_metric(tmp_path):
    with pytest.raises(ConfigError, match=r"follows eval_accuracy, which the evaluation did not give"):
        plateau(tmp_path, [1.0], metric_for_best_model="accuracy")
