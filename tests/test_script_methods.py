"""What scripts read and call besides `train`: names as in TRL, files as in transformers."""

import json
import logging

import pytest
from transformers import TrainerState

from fakes import DATA, config, count_twos, trainer


def read(path):
    return json.loads(path.read_text())


def test_scripts_read_these_attributes(tmp_path):
    made = trainer(tmp_path, {"beta": 0.1, "temperature": 0.7})
    assert (made.num_generations, made.beta, made.temperature) == (4, 0.1, 0.7)
    with pytest.raises(AttributeError, match="beta"):
        made.beta = 0.2  # it would change nothing


def test_a_script_of_transformers_runs_to_its_end(tmp_path, capsys):
    made = trainer(tmp_path / "run", {"max_steps": 2}, eval_dataset=DATA[:1])
    result = made.train()
    made.log_metrics("train", result.metrics)
    made.save_metrics("train", result.metrics)
    made.save_state()
    metrics = made.evaluate()
    made.save_metrics("eval", metrics)
    made.save_metrics("test", {"test_x": 1.0}, combined=False)
    printed = capsys.readouterr().out
    assert "***** train metrics *****" in printed
    assert "train_loss" in printed
    run = tmp_path / "run"
    assert read(run / "train_results.json") == result.metrics
    assert read(run / "eval_results.json") == metrics
    assert read(run / "test_results.json") == {"test_x": 1.0}
    assert read(run / "all_results.json") == result.metrics | metrics
    state = TrainerState.load_from_json(str(run / "trainer_state.json"))
    assert (state.global_step, state.log_history) == (2, made.state.log_history[:-1])


def test_other_processes_write_and_print_nothing(tmp_path, capsys, monkeypatch):
    made = trainer(tmp_path / "run")
    monkeypatch.setattr(type(made), "is_world_process_zero", lambda self: False)
    made.log_metrics("train", {"x": 1.0})
    made.save_metrics("train", {"x": 1.0})
    made.save_state()
    assert capsys.readouterr().out == ""
    assert list((tmp_path / "run").glob("*")) == []


def test_metrics_and_state_may_be_saved_before_anything_else(tmp_path):
    made = trainer(tmp_path / "run")
    made.save_metrics("train", {"x": 1.0})
    made.save_state()
    assert read(tmp_path / "run" / "all_results.json") == {"x": 1.0}
    assert read(tmp_path / "run" / "trainer_state.json")["global_step"] == 0


# -- the model card


def test_a_model_card_says_what_is_known_and_later_saves_keep_it(tmp_path):
    made = trainer(tmp_path, {"max_steps": 1, "loss_type": "grpo"})
    made.train()
    made.create_model_card(model_name="twos", dataset_name="me/words", tags="counting")
    made.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "\n# twos\n" in card
    assert "1 step of GRPO" in card
    assert "(https://huggingface.co/datasets/me/words)" in card
    assert "- counting\n" in card
    assert "(https://huggingface.co/papers/2402.03300)" in card
    assert "`loss_type=grpo`" in card
    assert all(f"{package} " in card.split("Versions: ")[1] for package in ("gruppo", "transformers", "torch"))


def test_a_readme_of_a_person_stays(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    made = trainer(tmp_path)
    made.save_model()
    with pytest.warns(UserWarning, match=r"README\.md was not written by gruppo, so it stays"):
        made.create_model_card()
    assert readme.read_text() == "mine"


def test_a_card_of_gruppos_is_written_anew(tmp_path):
    made = trainer(tmp_path)
    made.create_model_card()
    made.create_model_card(dataset_name=["a/b", "c/d"])
    card = (tmp_path / "README.md").read_text()
    assert "- a/b\n- c/d\n" in card


# -- the config


def test_scripts_ask_the_config_for_rank_and_log_level(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert config(tmp_path).local_rank == -1
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert config(tmp_path).local_rank == 3
    assert config(tmp_path, log_level="info").get_process_log_level() == logging.INFO
    monkeypatch.setattr(logging.getLogger("gruppo"), "level", logging.ERROR)
    assert config(tmp_path).get_process_log_level() == logging.ERROR


# -- Ctrl-C, and going on


def interrupting(after):
    """A reward that is broken off with Ctrl-C in the round after `after` rounds."""
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return count_twos(completions)

    return reward


def messages(made, monkeypatch):
    seen = []
    monkeypatch.setattr(made._parts.display, "message", seen.append)
    return seen


def test_ctrl_c_says_where_it_stopped_and_what_is_saved(tmp_path, monkeypatch):
    made = trainer(tmp_path, {"save_strategy": "steps", "save_steps": 2}, reward_funcs=interrupting(2))
    seen = messages(made, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert seen[-1] == f"stopped     at step 2 of 3; the newest checkpoint is {tmp_path / 'checkpoint-2'}"
    again = trainer(tmp_path)
    seen = messages(again, monkeypatch)
    again.train(resume_from_checkpoint=True)
    assert f"resumed     from {tmp_path / 'checkpoint-2'} at step 2" in seen
    assert again.state.global_step == 3


def test_ctrl_c_without_a_checkpoint_says_so(tmp_path, monkeypatch):
    made = trainer(tmp_path, reward_funcs=interrupting(1))
    seen = messages(made, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert seen[-1] == "stopped     at step 1 of 3; there is no checkpoint to go on from"
    assert not any(line.startswith("resumed") for line in seen)


@pytest.mark.parametrize("value", [True, "True", "true"])
def test_the_config_may_ask_for_the_newest_checkpoint(tmp_path, value):
    trainer(tmp_path, {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}).train()
    again = trainer(tmp_path, {"resume_from_checkpoint": value})
    assert again.args.resume_from_checkpoint is True
    first_steps = []
    again.add_callback(_first_step(first_steps))
    again.train()
    assert first_steps == [2]


def test_an_argument_of_train_comes_before_the_config(tmp_path):
    trainer(tmp_path, {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}).train()
    again = trainer(tmp_path, {"resume_from_checkpoint": True})
    first_steps = []
    again.add_callback(_first_step(first_steps))
    again.train(resume_from_checkpoint=False)
    assert first_steps == [0]


def _first_step(found):
    from transformers import TrainerCallback

    class FirstStep(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            found.append(state.global_step)

    return FirstStep()
