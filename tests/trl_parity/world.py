"""The little world both trainers live in: models of a few thousand weights, a tokenizer, rollouts and rewards.

Everything here is a pure function of its arguments (and of how often a prompt was asked for), so that TRL and gruppo
see the same tokens and the same rewards without sharing a random generator. Nothing here knows about either trainer.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

VOCAB_SIZE = 64
PAD_ID, EOS_ID, UNK_ID, SECOND_EOS_ID = 0, 1, 2, 3
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"


def build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Words `w4` ... `w63` and the chat roles; whitespace separates them."""
    vocab = {"<pad>": PAD_ID, "</s>": EOS_ID, "<unk>": UNK_ID, "</turn>": SECOND_EOS_ID}
    vocab |= {f"w{i}": i for i in range(4, VOCAB_SIZE - 2)} | {"user": VOCAB_SIZE - 2, "system": VOCAB_SIZE - 1}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # far from uniform predictions, so that ratios, entropies and KL have something to say
    "pad_token_id": PAD_ID,
    "eos_token_id": EOS_ID,
    "bos_token_id": None,
}

MODELS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES, tie_word_embeddings=False),
    "llama_tied": lambda: transformers.LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "gemma2_softcap": lambda: transformers.Gemma2Config(
        **_SIZES, head_dim=8, final_logit_softcapping=3.0, attn_logit_softcapping=5.0, sliding_window=64
    ),
    "granite_scaled": lambda: transformers.GraniteConfig(**_SIZES, logits_scaling=0.5),
    "mixtral": lambda: transformers.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
    "two_eos": lambda: transformers.Qwen2Config(**(_SIZES | {"eos_token_id": [EOS_ID, SECOND_EOS_ID]})),
}


def save_model(kind: str, directory: Path) -> Path:
    """Write the model of this kind below `directory` (once), and return where."""
    path = directory / kind
    if not path.exists():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(MODELS[kind](), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:  # ones and zeros at birth: they would hide what they scale
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(path)
    return path


def prompts(num_prompts: int, *, is_conversational: bool = False, start: int = 0) -> list[Any]:
    """Distinct prompts of one to six words."""
    texts = []
    for index in range(start, start + num_prompts):
        rng = random.Random(f"prompt {index}")
        texts.append(" ".join([f"w{4 + index}"] + [f"w{rng.randrange(4, 60)}" for _ in range(rng.randrange(6))]))
    return [[{"role": "user", "content": text}] for text in texts] if is_conversational else texts


@dataclass
class Rollout:
    """A `rollout_func`: the n-th answer to a prompt depends on the prompt and on n alone.

    `sampler` says which log-probs it reports: `none`; `exact` ones of the policy that it finds in the trainer; or
    `noisy` ones, near those of a policy that is not quite the trained one.
    """

    tokenizer: Any
    max_length: int
    sampler: str = "none"
    temperature: float = 1.0
    has_env_mask: bool = False
    eos_ids: Sequence[int] = (EOS_ID,)
    truncated_share: float = 0.3
    noise: float = 0.3
    asked: Counter[str] = field(default_factory=Counter)

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        prompt_ids = [self._encode(prompt) for prompt in prompts]
        completion_ids, env_mask = [], []
        for ids in prompt_ids:
            rng = random.Random(f"{ids} {self.asked[str(ids)]}")
            self.asked[str(ids)] += 1
            completion_ids.append(self._complete(rng))
            env_mask.append(self._mask(rng, len(completion_ids[-1])))
        logprobs = self._logprobs(prompt_ids, completion_ids, trainer)
        answer: dict[str, Any] = {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}
        answer["bonus"] = [float(sum(ids) % 3) for ids in completion_ids]  # an extra field: reaches the rewards
        return answer | ({"env_mask": env_mask} if self.has_env_mask else {})

    def _encode(self, prompt: Any) -> list[int]:
        text = prompt if isinstance(prompt, str) else f"user {prompt[-1]['content']}"
        return list(self.tokenizer(text)["input_ids"])

    def _complete(self, rng: random.Random) -> list[int]:
        if rng.random() < self.truncated_share:
            return [rng.randrange(4, 60) for _ in range(self.max_length - rng.randrange(2))]
        words = [rng.randrange(4, 60) for _ in range(rng.randrange(self.max_length))]
        return [*words, rng.choice(list(self.eos_ids))]

    def _mask(self, rng: random.Random, length: int) -> list[int]:
        if rng.random() < 0.15:
            return [0] * length  # a row of which the model made nothing
        return [int(rng.random() < 0.7) for _ in range(length)]

    def _logprobs(self, prompt_ids: list[list[int]], completion_ids: list[list[int]], trainer: Any) -> Any:
        if self.sampler == "none":
            return None
        exact = [
            policy_logprobs(trainer.model, prompt, completion, self.temperature)
            for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        ]
        if self.sampler == "exact":
            return exact
        return [
            [value + random.Random(f"{prompt} {ids} {t}").gauss(0.0, self.noise) for t, value in enumerate(row)]
            for prompt, ids, row in zip(prompt_ids, completion_ids, exact, strict=True)
        ]


@torch.no_grad()
def policy_logprobs(model: Any, prompt: list[int], completion: list[int], temperature: float) -> list[float]:
    """Log-probs of one row without padding: the plainest forward there is."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits / temperature, -1)[range(len(completion)), completion].tolist()


# ---- rewards: pure functions of the completion's ids ------------------------------------------------------------


def short(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [-0.3 * len(ids) for ids in completion_ids]


def even(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]


def small_words(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [sum(i < 30 for i in ids) / len(ids) for ids in completion_ids]


def abstains(completion_ids: list[list[int]], **kwargs: Any) -> list[float | None]:
    return [None if sum(ids) % 3 == 0 else float(ids[0] % 5) for ids in completion_ids]


def never(completion_ids: list[list[int]], **kwargs: Any) -> list[float | None]:
    return [None for _ in completion_ids]


def constant(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [1.0 for _ in completion_ids]


def by_row(completion_ids: list[list[int]], level: list[int], bonus: list[float], **kwargs: Any) -> list[float]:
    """Uses a dataset column, a rollout's extra field, and logs."""
    kwargs["log_metric"]("my_metric", float(sum(level)) / len(level))
    kwargs["log_extra"]("level", level)
    return [row / 3 + extra * (1 + len(ids) % 3) for ids, row, extra in zip(completion_ids, level, bonus, strict=True)]


async def later(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(ids[-1] % 7) for ids in completion_ids]


REWARDS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (short, even, small_words, abstains, never, constant, by_row, later)
}
