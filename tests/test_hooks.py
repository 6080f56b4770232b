"""Subclasses of GRPOTrainer: what they may override is called, and a hook that nothing calls is an error."""

import pytest

from fakes import DATA, Recording, lines, trainer
from gruppo import GRPOTrainer
from gruppo.errors import ConfigError
from gruppo.hooks import IDLE_HOOKS

HOOKS = [(name, row) for row in IDLE_HOOKS for name in row.names]

CALLED_BY_USERS = {
    "end",
    "get_cp_size",
    "get_learning_rates",
    "get_num_trainable_parameters",
    "get_optimizer_group",
    "get_sp_size",
    "get_total_train_batch_size",
    "get_tp_size",
    "hyperparameter_search",
    "init_hf_repo",
    "metrics_format",
    "num_examples",
    "predict",
}
"""Of transformers' trainer, and not of gruppo's: a subclass may add them, since its user calls them."""


def define(*names, bases=(GRPOTrainer,)):
    return type("Mine", bases, {name: lambda self, *args, **kwargs: None for name in names})


@pytest.mark.parametrize(("name", "row"), HOOKS, ids=[name for name, _ in HOOKS])
def test_a_hook_that_nothing_calls_is_refused(name, row):
    with pytest.raises(ConfigError) as error:
        define(name)
    assert error.value.problems == [
        f"Mine overrides {name}, which gruppo never calls: {row.reason}. Instead, {row.instead}."
    ]


def test_hooks_are_named_together_and_what_to_use_instead():
    with pytest.raises(ConfigError) as error:
        define("compute_loss", "training_step", "_calculate_rewards", "create_optimizer", "_save_checkpoint", "helper")
    first, *others = error.value.problems
    assert first.startswith("Mine overrides compute_loss, training_step, which gruppo never calls: ")
    assert [problem.split(",")[0] for problem in others] == [
        "Mine overrides _calculate_rewards",
        "Mine overrides create_optimizer",
        "Mine overrides _save_checkpoint",
    ]
    assert "pass optimizers=(optimizer, scheduler)." in others[1]
    assert "use a callback (on_step_begin" in others[2]


def test_a_hook_of_a_mixin_or_of_a_subclass_of_a_subclass_is_refused():
    mixin = type("Mixin", (), {"prediction_step": lambda self: None})
    with pytest.raises(ConfigError, match="Mine overrides prediction_step"):
        define(bases=(mixin, GRPOTrainer))
    with pytest.raises(ConfigError, match="Mine overrides _prepare_inputs"):
        define("_prepare_inputs", bases=(define("helper"),))


def test_what_is_called_may_be_overridden_and_what_is_new_may_be_added():
    define("train", "evaluate", "save_model", "log", "train_round", "advantage", "_helper", *CALLED_BY_USERS)


@pytest.mark.parity
def test_every_method_of_trls_trainer_is_here_or_refused_or_the_users_to_call():
    import trl

    theirs = {name for name in dir(trl.GRPOTrainer) if callable(getattr(trl.GRPOTrainer, name))}
    passed = set()
    for name in theirs - set(dir(GRPOTrainer)):
        try:
            define(name)
        except ConfigError:
            continue
        passed.add(name)
    assert passed == CALLED_BY_USERS | {"_send_telemetry"}  # overridden to send none, and none is sent


class Logging(GRPOTrainer):
    """Adds a value to every line, as scripts for transformers do."""

    def log(self, logs, start_time=None):
        logs["mine"] = len(logs)
        super().log(logs, start_time)


class Seen(Recording):
    """Keeps what trackers would get."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_an_own_log_adds_to_every_line(tmp_path, monkeypatch):
    monkeypatch.setattr("fakes.GRPOTrainer", Logging)
    seen = Seen()
    fields = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    made = trainer(tmp_path, fields, eval_dataset=DATA[:1], callbacks=[seen])
    output = made.train()
    assert len(made.state.log_history) == len(seen.logs) == 2 + 2 + 1
    assert all(line["mine"] > 1 for line in [*made.state.log_history, *seen.logs])
    assert len(lines(made)) == 2
    assert "mine" not in output.metrics
    assert "mine" not in made.evaluate()
    assert made.state.log_history[-1]["mine"] > 1
