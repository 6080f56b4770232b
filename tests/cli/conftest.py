"""A folder with a tiny model, prompts, a reward module and a settings file, as the working directory of a test."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tiny_tokenizer import ID, tiny_tokenizer

SETTINGS = """
dataset = "prompts.jsonl"
reward_funcs = ["my_rewards:shortness"]

[policy]
model = "tiny"

[run]
output_dir = "out"
use_cpu = true
max_steps = 2

[rollout]
num_generations = 4
max_completion_length = 6

[optimisation]
per_device_train_batch_size = 4
gradient_accumulation_steps = 2
"""

REWARDS = """
def shortness(completions, **kwargs):
    return [-float(len(text)) for text in completions]

def constant(completions, **kwargs):
    return [1.0 for _ in completions]

def narrow(completions):
    return [1.0 for _ in completions]

def needs_solution(completions, solution, **kwargs):
    return [1.0 for _ in completions]

def crashes(completions, **kwargs):
    return [text[100] for text in completions]
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny"
    config = LlamaConfig(
        vocab_size=len(ID),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=ID["<pad>"],
        bos_token_id=ID["<bos>"],
        eos_token_id=ID["<eos>"],
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny").symlink_to(tiny_model)
    rows = [{"prompt": " ".join(["one", "two", "three"][: 1 + i % 3]), "answer": "two"} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    (tmp_path / "run.toml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(__import__("sys").modules, "my_rewards", raising=False)
    return tmp_path
