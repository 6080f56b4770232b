"""What follows from the config, with the device as it is (or as a test says it is)."""

from pathlib import Path

import pytest
import torch

from fakes import config
from gruppo.errors import ConfigError
from gruppo.settings import learner_settings, precision


def with_gpu(monkeypatch: pytest.MonkeyPatch, *, has_bf16: bool) -> None:
    """A CUDA device; an old one has bfloat16 by emulation only, as T4 and V100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )


@pytest.mark.parametrize("bf16", [None, True])
def test_emulated_bfloat16_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool | None) -> None:
    with_gpu(monkeypatch, has_bf16=False)
    chosen, note = precision(config(tmp_path, use_cpu=False, bf16=bf16))
    assert chosen == "no"
    assert note is not None
    assert "this GPU has no bfloat16 arithmetic" in note
    assert "fp16=True" in note


def test_a_gpu_with_bfloat16_computes_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, has_bf16=True)
    assert precision(config(tmp_path, use_cpu=False, bf16=None)) == ("bf16", None)
    assert precision(config(tmp_path, use_cpu=False, bf16=False)) == ("no", None)
    assert precision(config(tmp_path, use_cpu=False, bf16=None, fp16=True)) == ("fp16", None)
    assert precision(config(tmp_path, use_cpu=True, bf16=None))[0] == "no"


def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16=True needs a GPU"):
        precision(config(tmp_path, use_cpu=True, bf16=None, fp16=True))


@pytest.mark.parametrize(("asked", "is_corrected"), [(None, False), (False, False), (True, True)])
def test_the_sampler_is_corrected_for_if_asked(tmp_path: Path, asked: bool | None, is_corrected: bool) -> None:
    """TRL does so for vLLM alone, whatever a rollout_func says: None is never."""
    chosen = config(tmp_path, vllm_importance_sampling_correction=asked)
    assert learner_settings(chosen, aux_loss_coef=0.0, has_experts=False).has_correction is is_corrected
