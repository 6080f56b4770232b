"""Checkpoints: Hugging Face's layout, whole or not at all, nothing pickled, damage is found."""

import json
import os
import random
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from fakes import DATA, StopAt, flat, policy, trainer
from gruppo.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    batch_from_tensors,
    batch_to_tensors,
    join_state,
    newest_checkpoint,
    random_state,
    set_random_state,
    split_state,
)
from gruppo.distributed.world import World
from gruppo.errors import CheckpointError
from gruppo.monitor.files import write_parquet
from gruppo.types import TrainBatch

CPU = torch.device("cpu")


def one_process():
    return World(SimpleNamespace(process_index=0, num_processes=1, device=CPU))


@pytest.fixture
def saved(tmp_path):
    """checkpoint-2 of a run that stopped inside a round, with a reference that has moved."""
    fields = {"steps_per_generation": 4, "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "max_steps": 4}
    made = trainer(tmp_path, fields, callbacks=[StopAt(3)])
    made.train()
    return SimpleNamespace(folder=tmp_path / "checkpoint-3", made=made, fields=fields, run_dir=tmp_path)


def resume(saved, **fields):
    made = trainer(saved.run_dir, {**saved.fields, **fields})
    made.train(resume_from_checkpoint=str(saved.folder))
    return made


def test_the_files_are_those_of_the_page(saved):
    names = {path.name for path in saved.folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} < names
    assert {
        "trainer_state.json",
        "optimizer.safetensors",
        "optimizer.json",
        "scheduler.json",
        "gruppo.json",
        "random-0.safetensors",
        "rollouts-0.safetensors",
        "reference.safetensors",
        "manifest.json",
    } < names
    assert not (saved.run_dir / ".checkpoint-3.partial").exists()


def test_nothing_is_pickled(saved):
    files = [path for path in saved.run_dir.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl", ".parquet", ".jinja", ".md"}
    # A zip archive (torch.save) or a pickle (protocol 2 and up) would begin like this, whatever its name.
    assert not [path for path in files if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")]


def test_nothing_unpickles_on_resume(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert resume(saved).state.global_step == 4


def test_it_loads_with_from_pretrained_and_trains_on(saved):
    model = AutoModelForCausalLM.from_pretrained(saved.folder, dtype=torch.float32)
    assert torch.equal(flat(model), flat(saved.made.model))
    assert AutoTokenizer.from_pretrained(saved.folder).convert_tokens_to_ids("two") == 8
    made = trainer(saved.run_dir / "next", {"max_steps": 1}, model=model)
    made.train()
    assert made.state.global_step == 1


@pytest.mark.parametrize(
    "name", ["model.safetensors", "gruppo.json", "optimizer.safetensors", "rollouts-0.safetensors"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_found_and_named(saved, name, damage):
    path = saved.folder / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"{name} is missing or damaged"):
        CheckpointReader(saved.folder, one_process())


def test_a_damaged_checkpoint_stops_training_before_it_begins(saved):
    (saved.folder / "scheduler.json").write_text("{}")
    made = trainer(saved.run_dir, saved.fields)
    before = flat(made.model)
    with pytest.raises(CheckpointError, match=r"scheduler\.json is missing or damaged"):
        made.train(resume_from_checkpoint=str(saved.folder))
    assert torch.equal(flat(made.model), before)


def test_an_unfinished_checkpoint_does_not_count(saved):
    shutil.copytree(saved.folder, saved.run_dir / "checkpoint-9")
    (saved.run_dir / "checkpoint-9" / "manifest.json").unlink()
    assert newest_checkpoint(saved.run_dir) == saved.folder
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        CheckpointReader(saved.run_dir / "checkpoint-9", one_process())


def test_newest_is_the_highest_number(tmp_path):
    for step in (2, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "manifest.json").write_text("{}")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert newest_checkpoint(tmp_path / "elsewhere") is None


def test_another_number_of_processes_is_refused(saved):
    world = one_process()
    world.size = 2
    with pytest.raises(CheckpointError, match=r"saved by 1 processes and this run has 2.*--num_processes 1"):
        CheckpointReader(saved.folder, world)


def test_no_checkpoint_to_resume_from(tmp_path):
    with pytest.raises(CheckpointError, match=r"resume_from_checkpoint=True: there is no checkpoint in"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_save_only_model_saves_no_more_and_cannot_be_resumed(tmp_path):
    fields = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    made = trainer(tmp_path, fields)
    made.train()
    folder = tmp_path / "checkpoint-2"
    names = {path.name for path in folder.iterdir()}
    assert not names & {"optimizer.safetensors", "scheduler.json", "gruppo.json", "random-0.safetensors"}
    assert torch.equal(flat(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)), flat(made.model))
    with pytest.raises(CheckpointError, match=r"holds a model only \(save_only_model=True\)"):
        trainer(tmp_path, fields).train(resume_from_checkpoint=True)


def test_a_model_of_another_shape_is_refused(saved):
    made = trainer(saved.run_dir, saved.fields, model=policy("gpt2"))
    with pytest.raises(CheckpointError, match=r"holds another model: it lacks \d+ of the tensors of GPT2LMHeadModel"):
        made.train(resume_from_checkpoint=str(saved.folder))


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-1"
    for content in ({"a": 1}, {"a": 2}):
        writer = CheckpointWriter(folder, one_process())
        writer.json("gruppo.json", content)
        if content["a"] == 1:
            writer.commit()
    assert json.loads((folder / "gruppo.json").read_text()) == {"a": 1}
    assert CheckpointReader(folder, one_process()).json("gruppo.json") == {"a": 1}


class KilledError(Exception):
    pass


def saved_twice(folder, monkeypatch, num_renames):
    """A checkpoint saved a second time by a process that dies after so many renames."""
    replace, left = os.replace, [num_renames]

    def dying(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise KilledError
        replace(source, target)

    first = CheckpointWriter(folder, one_process())
    first.json("gruppo.json", 1)
    first.commit()
    second = CheckpointWriter(folder, one_process())
    second.json("gruppo.json", 2)
    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KilledError):
        second.commit()
    monkeypatch.undo()


@pytest.mark.parametrize("num_renames", [0, 1])
def test_a_kill_while_a_checkpoint_is_replaced_loses_neither_of_them(tmp_path, monkeypatch, num_renames):
    folder = tmp_path / "checkpoint-1"
    saved_twice(folder, monkeypatch, num_renames)
    newest = newest_checkpoint(tmp_path)
    assert CheckpointReader(newest, one_process()).json("gruppo.json") == 1
    writer = CheckpointWriter(tmp_path / "checkpoint-2", one_process())
    assert newest_checkpoint(tmp_path) == folder, "it has its name back"
    writer.json("gruppo.json", 3)
    writer.commit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_half_a_checkpoint_goes_with_the_next_save(tmp_path):
    CheckpointWriter(tmp_path / "checkpoint-7", one_process()).json("gruppo.json", {})
    CheckpointWriter(tmp_path / "checkpoint-8", one_process()).commit()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


def test_a_checkpoint_appears_after_what_was_recorded_before_it(tmp_path, monkeypatch):
    """A resumed run does not make these rows again: a kill right after the save must not have cost them."""
    found = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            found.append({path.parent.parent.name for path in tmp_path.glob(f"*/step*{state.global_step}/*.parquet")})

    def slowly(path, table):
        time.sleep(0.05)
        write_parquet(path, table)

    monkeypatch.setattr("gruppo.monitor.files.write_parquet", slowly)
    trainer(tmp_path, {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}, callbacks=[Look]).train()
    assert found == [{"rollouts", "tokens"}] * 2


# -- the parts


def test_generators_are_restored_to_the_bit():
    random.gauss(0, 1)
    np.random.standard_normal()
    state = random_state()

    def draw():
        return random.random(), random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()

    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first


def test_a_batch_survives_as_tensors():
    batch = TrainBatch(
        prompt_ids=[[1, 2], [3]],
        completion_ids=[[], [4, 5, 6]],
        trained_NT=torch.tensor([[False] * 3, [True, False, True]]),
        advantages_N=torch.tensor([0.5, -0.5]),
        group_ids=[0, 1],
        slice_ids=[1, 0],
        old_logprobs_NT=torch.tensor([[0.0] * 3, [-1.0, torch.nan, -2.0]]),
    )
    again = batch_from_tensors(batch_to_tensors(batch), CPU)
    assert (again.prompt_ids, again.completion_ids) == (batch.prompt_ids, batch.completion_ids)
    assert (again.group_ids, again.slice_ids) == (batch.group_ids, batch.slice_ids)
    assert torch.equal(again.trained_NT, batch.trained_NT)
    assert torch.equal(again.advantages_N, batch.advantages_N)
    torch.testing.assert_close(again.old_logprobs_NT, batch.old_logprobs_NT, rtol=0, atol=0, equal_nan=True)
    assert again.ref_logprobs_NT is again.sampler_logprobs_NT is None


@pytest.mark.parametrize("kind", ["Adam", "SGD", "Adafactor", "RMSprop"])
def test_an_optimizer_survives_as_tensors_and_json(kind):
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = getattr(torch.optim, kind)(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors, numbers = split_state(optimizer.state_dict())
    state = join_state(tensors, json.loads(json.dumps(numbers)))
    assert state["param_groups"] == json.loads(json.dumps(optimizer.state_dict()["param_groups"]))
    for number, entries in optimizer.state_dict()["state"].items():
        assert state["state"][number].keys() == entries.keys()
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(state["state"][number][name]), torch.as_tensor(value))


def test_saving_copies_nothing_that_is_on_the_host_already(tmp_path, monkeypatch):
    """On a GPU a copy beside the optimizer would need its memory once more."""
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors, _ = split_state(optimizer.state_dict())
    assert tensors["0/exp_avg"].data_ptr() == optimizer.state[parameter]["exp_avg"].data_ptr()

    def refuse(self, *args, **kwargs):
        raise AssertionError("cloned")

    monkeypatch.setattr(torch.Tensor, "clone", refuse)
    CheckpointWriter(tmp_path / "checkpoint-1", one_process()).tensors("a.safetensors", {"a": torch.ones(3)})


def test_tied_tensors_are_saved_under_both_names(tmp_path):
    both = torch.arange(6.0).view(2, 3)
    writer = CheckpointWriter(tmp_path / "checkpoint-1", one_process())
    writer.tensors("a.safetensors", {"head": both, "embeddings": both, "turned": both.T})
    writer.commit()
    found = CheckpointReader(tmp_path / "checkpoint-1", one_process()).tensors("a.safetensors")
    assert torch.equal(found["head"], both)
    assert torch.equal(found["embeddings"], both)
    assert torch.equal(found["turned"], both.T)


def test_the_position_and_controllers_are_readable(saved):
    content = json.loads((saved.folder / "gruppo.json").read_text())
    assert content["position"] == {"epoch": 1, "round_in_epoch": 0, "round": 1, "segment": 1}
    assert content["entropy_control"]["coef"] == 0.0
    assert json.loads((saved.folder / "trainer_state.json").read_text())["global_step"] == 3


def test_data_of_the_demo_is_small():
    """Six prompts make one round of four and leave two out: the position above depends on it."""
    assert len(DATA) == 6
