"""What the launcher asked for, and what comes of it."""

import pytest

from fakes import trainer
from gruppo.errors import ConfigError
from gruppo.launch import launcher_note, refuse_sharding


@pytest.mark.parametrize(
    ("environment", "is_said"),
    [
        ({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}, True),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500", "WORLD_SIZE": "2"}, False),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500", "OMPI_COMM_WORLD_SIZE": "2"}, False),
        ({"ACCELERATE_USE_CPU": "True"}, False),
        ({}, False),
    ],
)
def test_one_process_where_several_were_asked_for_is_said(environment, is_said):
    note = launcher_note(environment)
    assert (note is not None) is is_said


@pytest.mark.parametrize(
    ("name", "what"), [("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")]
)
def test_a_launch_that_shards_the_model_is_refused(tmp_path, monkeypatch, name, what):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=f"launched for {what}, which is not there yet.*torchrun"):
        trainer(tmp_path, model="nobody/no-such-model")


def test_other_launches_are_not():
    refuse_sharding({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2"})
