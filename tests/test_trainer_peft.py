"""Adapters: they alone train, the reference is the model without them (or as it came), they save, load and resume."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fakes import StopAt, flat, lines, policy, timeless, trainer
from gruppo.errors import ConfigError

# PEFT reads an attribute that transformers 5.23 calls by another name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def lora(**overrides):
    return LoraConfig(**{**LORA, **overrides})


def trained_adapter():
    """A PeftModel whose adapter already does something."""
    torch.manual_seed(3)
    model = get_peft_model(policy(), lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


def split(model):
    """(adapter, base) parameters by name."""
    found = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    adapter = {name: value for name, value in found.items() if "lora_" in name}
    return adapter, {name: value for name, value in found.items() if name not in adapter}


def test_a_fresh_adapter_trains_alone(tmp_path):
    made = trainer(tmp_path, peft_config=lora())
    adapter, base = split(made.model)
    assert isinstance(made.model, PeftModel)
    made.train()
    adapter_after, base_after = split(made.model)
    assert all(torch.equal(base[name], base_after[name]) for name in base)
    assert not all(torch.equal(adapter[name], adapter_after[name]) for name in adapter)
    assert {parameter for group in made.optimizer.param_groups for parameter in group["params"]} == {
        parameter for name, parameter in made.model.named_parameters() if "lora_" in name
    }


def test_the_reference_of_a_fresh_adapter_is_the_model_without_it(tmp_path):
    made = trainer(tmp_path, {"beta": 0.1}, peft_config=lora())
    assert made.ref_model is None
    made.train()
    kls = [line["kl"] for line in lines(made)]
    assert kls[0] == 0.0
    assert min(kls[1:]) > 0.0
    assert [parameter.requires_grad for name, parameter in made.model.named_parameters() if "lora_" in name] == [
        True
    ] * len(split(made.model)[0])


def test_a_peft_model_trains_on_and_is_its_own_reference(tmp_path):
    model = trained_adapter()
    start, _ = split(model)
    made = trainer(tmp_path, {"beta": 0.1}, model=model)
    made.train()
    assert lines(made)[0]["kl"] == 0.0
    assert lines(made)[2]["kl"] > 0.0
    after, _ = split(made.model)
    assert not all(torch.equal(start[name], after[name]) for name in start)


def test_a_checkpoint_holds_the_adapter_alone_and_loads_with_peft(tmp_path):
    made = trainer(
        tmp_path, {"beta": 0.1, "save_strategy": "steps", "save_steps": 2, "max_steps": 2}, model=trained_adapter()
    )
    made.train()
    folder = tmp_path / "checkpoint-2"
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} < names
    assert "model.safetensors" not in names
    assert "ref" not in names
    loaded = PeftModel.from_pretrained(policy(), folder)
    mine, theirs = split(made.model)[0], split(loaded)[0]
    assert {name: value for name, value in mine.items() if ".ref." not in name}.keys() == theirs.keys()
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def make(folder, kind, **arguments):
    fields = {"max_steps": 4, "beta": 0.1, "steps_per_generation": 4}
    if kind == "fresh":
        return trainer(folder, fields, peft_config=lora(lora_dropout=0.2), **arguments)
    if kind == "named":
        model = get_peft_model(policy(), lora(lora_dropout=0.2), adapter_name="mine")
        return trainer(folder, fields, model=model, **arguments)
    return trainer(folder, fields, model=trained_adapter(), **arguments)


@pytest.mark.parametrize("kind", ["fresh", "trained", "named"])
def test_resume_is_bitwise(tmp_path, kind):
    torch.manual_seed(0)
    whole = make(tmp_path / "whole", kind)
    whole.train()
    torch.manual_seed(0)
    make(tmp_path / "parts", kind, callbacks=[StopAt(3)]).train()
    torch.manual_seed(0)
    resumed = make(tmp_path / "parts", kind)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(flat(whole.model), flat(resumed.model))
    assert [timeless(line) for line in whole.state.log_history[3:]] == [
        timeless(line) for line in resumed.state.log_history[3:]
    ]


def test_load_best_model_at_end_loads_the_adapter(tmp_path):
    given = iter([1.0, 5.0, 2.0])

    def reward(completions, **kwargs):
        return [next(given)] if len(completions) == 1 else [float(i % 2) for i in range(len(completions))]

    fields = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    fields |= {"load_best_model_at_end": True, "num_generations_eval": 1}
    made = trainer(tmp_path, fields, peft_config=lora(), reward_funcs=reward, eval_dataset=[{"prompt": "one"}])
    made.train()
    best = PeftModel.from_pretrained(policy(), tmp_path / "checkpoint-2")
    assert torch.equal(flat(made.model), flat(best))


def test_save_model_saves_the_adapter(tmp_path):
    made = trainer(tmp_path, {"max_steps": 1}, peft_config=lora())
    made.train()
    made.save_model(str(tmp_path / "adapter"))
    assert torch.equal(flat(PeftModel.from_pretrained(policy(), tmp_path / "adapter")), flat(made.model))
    assert "gruppo" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_readme_of_a_person_stays_beside_an_adapter(tmp_path):
    readme = tmp_path / "adapter" / "README.md"
    readme.parent.mkdir()
    readme.write_text("---\ntags:\n- mine\n---\n# Mine\n")
    before = readme.read_bytes()
    trainer(tmp_path, peft_config=lora()).save_model(str(readme.parent))
    assert readme.read_bytes() == before


def test_sync_ref_model_and_adapters_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="sync_ref_model=True cannot be used with an adapter"):
        trainer(tmp_path, {"beta": 0.1, "sync_ref_model": True}, peft_config=lora())


def test_gradient_checkpointing_trains_adapters_too(tmp_path):
    made = trainer(tmp_path, {"gradient_checkpointing": True, "max_steps": 1}, peft_config=lora())
    adapter, _ = split(made.model)
    made.train()
    assert lines(made)[0]["grad_norm"] > 0.0
    assert not all(torch.equal(adapter[name], value) for name, value in split(made.model)[0].items())
