"""Makes `tldr_policy/`: a tiny language model (0.4 M parameters) that writes summaries like those of the sample.

    python examples/data/make_tldr_policy.py

Ordinary supervised training on `tldr_sample.jsonl`, seeded, some minutes on a CPU. Every summary is cut at a random
word, so the policy stops anywhere: it has no idea how long a summary should be. That is left for GRPO to find out.
It parrots the sample's sentences and knows nothing else; it is there so that the examples run without a network.
"""

import json
import random
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE: Final = Path(__file__).parent
SAMPLE, TARGET = HERE / "tldr_sample.jsonl", HERE / "tldr_policy"
VOCAB_SIZE: Final = 1024
NUM_STEPS: Final = 500
BATCH_SIZE: Final = 16
PEAK_LEARNING_RATE: Final = 4e-3
SEED: Final = 11
PAD, EOS = "<|pad|>", "<|end|>"
IGNORED: Final = -100
"""torch's cross entropy leaves out targets with this value."""


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text round-trips, and the sample's common words are one token each."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, padding_side="left", model_max_length=512
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def cut_anywhere(summary: str, rng: random.Random) -> str:
    words = summary.split(" ")  # the first is empty: summaries begin with a space
    return " ".join(words[: rng.randint(2, len(words))])


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]]) -> None:
    rng = random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, NUM_STEPS, pct_start=0.1)
    for step in range(1, NUM_STEPS + 1):
        texts = [row["prompt"] + cut_anywhere(row["completion"], rng) + EOS for row in rng.sample(rows, BATCH_SIZE)]
        batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        targets_NT = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        loss = model(**batch, labels=targets_NT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step} of {NUM_STEPS}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    torch.manual_seed(SEED)
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in rows])
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters")
    train(model, tokenizer, rows)
    model.to(torch.bfloat16).save_pretrained(TARGET)  # half the size; a run loads it as float32 again
    tokenizer.save_pretrained(TARGET)
    print(f"wrote {TARGET.name}/")


if __name__ == "__main__":
    main()
