"""The KL reference stays the policy's start, whatever kind of policy it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gruppo.errors import ModelError
from gruppo.policy.load import load_policy
from gruppo.policy.logprobs import token_logprobs
from gruppo.policy.reference import AdapterCopy, AdapterOff, FrozenCopy, Reference, reference_for
from gruppo.types import TrainBatch
from tiny_models import PAD, tiny

peft = pytest.importorskip("peft")

# peft 0.21 asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BATCH = TrainBatch(
    prompt_ids=[[5, 6], [7]],
    completion_ids=[[8, 9, 1], [4]],
    trained_NT=torch.tensor([[True, True, True], [True, False, False]]),
    advantages_N=torch.zeros(2),
    group_ids=[0, 1],
    slice_ids=[0, 0],
)


def lora(**kwargs: Any) -> Any:
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **kwargs)


def of_policy(model: Any) -> Tensor:
    with torch.no_grad():
        return token_logprobs(model, BATCH, temperature=0.8, pad_token_id=PAD, with_entropy=False).logprobs_NT


def of_reference(reference: Reference) -> Tensor:
    logprobs_NT = reference.logprobs(BATCH, temperature=0.8, pad_token_id=PAD)
    assert not logprobs_NT.requires_grad
    return logprobs_NT


def shake(model: Any) -> None:
    """Changes everything that trains."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def trained(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_full_model_is_a_frozen_copy_of_the_policy_in_memory() -> None:
    policy = tiny("gpt2", resid_pdrop=0.5)
    shake(policy)
    start = of_policy(policy)
    reference = reference_for(policy.train(), is_fresh_adapter=False)
    assert isinstance(reference, FrozenCopy)
    shake(policy)
    torch.testing.assert_close(of_reference(reference), start, rtol=0, atol=0)
    assert not trained(reference.model)
    assert not reference.model.training
    assert policy.training
    assert reference.state_dict() == {}


def test_sync_is_an_exponential_moving_average_and_is_saved() -> None:
    policy = tiny("llama")
    reference = reference_for(policy, is_fresh_adapter=False)
    before = {name: value.clone() for name, value in reference.model.state_dict().items()}
    shake(policy)
    reference.sync(policy, 0.25)
    for name, value in reference.model.state_dict().items():
        torch.testing.assert_close(value, 0.25 * policy.state_dict()[name] + 0.75 * before[name])
    other = reference_for(tiny("llama"), is_fresh_adapter=False)
    assert not torch.equal(of_reference(other), of_reference(reference))
    other.load_state_dict(reference.state_dict())
    assert torch.equal(of_reference(other), of_reference(reference))
    assert other.state_dict().keys() == reference.state_dict().keys()
    assert other.state_dict()


def test_loading_nothing_keeps_the_start() -> None:
    reference = reference_for(tiny("llama"), is_fresh_adapter=False)
    before = of_reference(reference)
    reference.load_state_dict({})
    assert torch.equal(of_reference(reference), before)
    assert reference.state_dict() == {}


def test_fresh_adapter_is_switched_off() -> None:
    start = of_policy(tiny("llama"))
    policy = load_policy(tiny("llama"), peft_config=lora(lora_dropout=0.5)).train()
    names = trained(policy)
    reference = reference_for(policy, is_fresh_adapter=True)
    assert isinstance(reference, AdapterOff)
    shake(policy)
    torch.testing.assert_close(of_reference(reference), start, rtol=0, atol=1e-6)
    assert (of_policy(policy.eval()) - start).abs().max() > 1e-3
    assert trained(policy) == names
    assert reference.state_dict() == {}


def test_trained_adapter_is_copied() -> None:
    policy = load_policy(tiny("llama"), peft_config=lora(init_lora_weights=False))
    start = of_policy(policy)
    assert not torch.allclose(start, of_policy(tiny("llama")))
    names = trained(policy)
    reference = reference_for(policy.train(), is_fresh_adapter=False)
    assert isinstance(reference, AdapterCopy)
    assert trained(policy) == names
    shake(policy)
    torch.testing.assert_close(of_reference(reference), start, rtol=0, atol=1e-6)
    # The policy is as before: active adapter, what trains, and its mode.
    assert policy.active_adapter == "default"
    assert trained(policy) == names
    assert policy.training
    shaken = of_policy(policy.eval())
    assert (shaken - start).abs().max() > 1e-3
    assert torch.equal(of_policy(policy), shaken)


def test_hand_frozen_parts_of_an_adapter_stay_frozen() -> None:
    policy = load_policy(tiny("llama"), peft_config=lora(init_lora_weights=False))
    for name, parameter in policy.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    names = trained(policy)
    of_reference(reference_for(policy, is_fresh_adapter=False))
    assert trained(policy) == names


def test_an_adapter_with_the_references_name_is_refused() -> None:
    policy = load_policy(tiny("llama"), peft_config=lora())
    reference_for(policy, is_fresh_adapter=False)
    with pytest.raises(ModelError, match="adapter named 'ref'"):
        reference_for(policy, is_fresh_adapter=False)


@pytest.mark.parametrize("is_fresh_adapter", [True, False])
def test_a_reference_inside_the_policy_cannot_be_synced(is_fresh_adapter: bool) -> None:
    policy = load_policy(tiny("llama"), peft_config=lora())
    reference = reference_for(policy, is_fresh_adapter=is_fresh_adapter)
    with pytest.raises(ModelError, match="sync_ref_model=True cannot be used with an adapter"):
        reference.sync(policy, 0.5)
