"""The parts of `gruppo plan` that look at real things: tokenizer, prompts, model config, reward functions.

Weights are never loaded. What cannot be looked at (no network, a gated model) becomes a note, not a problem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from gruppo.cli.memory import estimate_memory
from gruppo.cli.run_options import RunOptions
from gruppo.config import GRPOConfig
from gruppo.data import checks
from gruppo.data.prompts import PromptDataset, prepare_dataset
from gruppo.errors import DataError, GruppoError, ModelError, RewardError, boundary
from gruppo.plan import BatchPlan
from gruppo.policy.load import load_tokenizer
from gruppo.rewards import LocalRewards, Scorer, prepare_rewards
from gruppo.rewards.protocol import RewardSpec
from gruppo.rewards.signature import SAME_MEANING
from gruppo.types import Completion, Group, Prompt

if TYPE_CHECKING:
    from gruppo.cli.plan import Report

MAX_LENGTHS = 2000
"""Prompts whose length is looked at, evenly spread over the dataset."""

NUM_TRIED = 2
"""Prompts that are shown, and that rewards are tried on."""

FAKE_ANSWERS = ("", "I do not know.", "The answer is 42.")
"""Completions that rewards are tried on, besides the dataset's own answer if it has one."""


@dataclass(frozen=True)
class PromptData:
    """The prompts of a dataset, as far as they were looked at."""

    prompts: Any
    """PromptDataset or PromptStream; the rows themselves without a tokenizer."""
    first: list[Prompt]
    lengths: list[int]
    """Sorted token counts; empty without a tokenizer."""


def load_model_files(model: str, config: GRPOConfig, report: Report) -> tuple[Any, Any]:
    """Tokenizer and config of the model; None for what cannot be loaded, with a note."""
    kwargs = config.model_init_kwargs or {}
    settings: dict[str, Any] = {
        "revision": kwargs.get("revision"),
        "trust_remote_code": config.trust_remote_code,
    }
    tokenizer = model_config = None
    try:
        tokenizer = load_tokenizer(None, model, **settings)
        with boundary(ModelError, f"reading the config of {model!r}"):
            model_config = AutoConfig.from_pretrained(model, **settings)
    except GruppoError as error:
        report.notes.append(f"Prompt lengths and memory are left out where they need it: {_first_line(error)}")
    return tokenizer, model_config


def check_prompts(rows: Any, config: GRPOConfig, tokenizer: Any, report: Report) -> PromptData | None:
    """Check the dataset and say how long its prompts are; None, with a problem, if it cannot be used."""
    return report.attempt(lambda: _check_prompts(rows, config, tokenizer, report))


def _check_prompts(rows: Any, config: GRPOConfig, tokenizer: Any, report: Report) -> PromptData:
    if tokenizer is None:
        return _untokenized(rows)
    prompts = prepare_dataset(
        rows,
        tokenizer=tokenizer,
        max_prompt_length=config.max_prompt_length,
        overlong=config.overlong_prompts,
        chat_template_kwargs=config.chat_template_kwargs,
    )
    if isinstance(prompts, PromptDataset):
        stride = max(1, len(prompts) // MAX_LENGTHS)
        looked_at = [prompts[index] for index in range(0, len(prompts), stride)]
        report.notes += prompts.notes
    else:
        looked_at = list(islice(prompts.epoch(), MAX_LENGTHS))
    lengths = sorted(len(prompt.token_ids) for prompt in looked_at)
    report.line("prompts", _describe_lengths(lengths, len(prompts) if isinstance(prompts, PromptDataset) else None))
    for prompt in looked_at[:NUM_TRIED]:
        report.line("", f"{_shorten(tokenizer.decode(prompt.token_ids))!r}")
    return PromptData(prompts, looked_at[:NUM_TRIED], lengths)


def _untokenized(rows: Any) -> PromptData:
    first_rows = list(islice(iter(rows), NUM_TRIED))
    if not first_rows:
        raise DataError("train_dataset is empty: it has no rows. Name a dataset or a split with at least one row.")
    columns = set(first_rows[0])
    checks.check_columns(columns, "train_dataset")
    first = [
        Prompt(number, row["prompt"], [], {name: row[name] for name in columns - {"prompt"}})
        for number, row in enumerate(first_rows)
    ]
    return PromptData(rows, first, [])


def _describe_lengths(lengths: list[int], num_prompts: int | None) -> str:
    def at(share: float) -> int:
        return lengths[round(share * (len(lengths) - 1))]

    of = "of a stream" if num_prompts is None else f"of {num_prompts:,}"
    which = f"{len(lengths):,} {of}" if len(lengths) != num_prompts else f"all {num_prompts:,}"
    return f"p50 {at(0.5):,} / p95 {at(0.95):,} / max {lengths[-1]:,} tokens ({which})  {_histogram(lengths)}"


def _histogram(values: list[int], num_bins: int = 16) -> str:
    """`values` as bars, from the smallest to the largest."""
    low, width = values[0], max(1, values[-1] - values[0] + 1)
    counts = [0] * num_bins
    for value in values:
        counts[(value - low) * num_bins // width] += 1
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // max(counts))] for count in counts)


def say_memory(
    report: Report, model_config: Any, config: GRPOConfig, *, plan: BatchPlan, options: RunOptions, data: Any
) -> None:
    """A line of memory."""
    lengths = data.lengths if data is not None and data.lengths else [config.max_prompt_length or 512]
    rank = options.adapter_rank if options.has_adapter else None
    memory = report.attempt(
        lambda: _estimate(model_config, config, plan, prompt_length=lengths[-1], lora_rank=rank),
    )
    if memory is not None:
        report.line("memory", memory.describe())
        if memory.total > memory.available:
            report.notes.append(
                "Memory looks too small. Try a lower max_tokens_per_forward, steps_per_generation or "
                "max_completion_length, dtype='bfloat16', or an adapter (lora_r=16)."
            )


def _estimate(model_config: Any, config: GRPOConfig, plan: BatchPlan, **sizes: Any) -> Any:
    with boundary(ModelError, "sizing the model from its config"):
        return estimate_memory(model_config, config, plan, **sizes)


def say_groups(group_size: int, report: Report) -> None:
    """How many groups would teach nothing, for guessed pass rates: all right and all wrong have no advantage."""
    shares = {rate: rate**group_size + (1 - rate) ** group_size for rate in (0.05, 0.1, 0.2, 0.5)}
    text = ", ".join(f"{share:.0%} if {rate:.0%} of answers are right" for rate, share in shares.items())
    report.line("groups", f"all right or all wrong teach nothing: {text}")


def try_rewards(rewards: list[RewardSpec], config: GRPOConfig, data: PromptData | None, report: Report) -> None:
    """Check every reward's signature, and call the functions on fake answers."""
    weights = config.reward_weights
    if weights is not None and len(weights) != len(rewards):
        report.problems.append(
            f"reward_weights={weights} has {len(weights)} numbers for {len(rewards)} reward functions. Give one each."
        )
    functions: list[RewardSpec] = [spec for spec in rewards if not isinstance(spec, str)]
    for spec in rewards:
        if isinstance(spec, str):
            report.line("rewards", f"{spec}: a model, not loaded here")
    if functions and data is not None:
        report.attempt(lambda: _try_functions(functions, data, report))


def _try_functions(functions: list[RewardSpec], data: PromptData, report: Report) -> None:
    columns = data.first[0].columns
    is_conversational = data.first[0].is_conversational
    sources = prepare_rewards(functions, columns=list(columns), is_conversational=is_conversational)
    gold = next((name for name in SAME_MEANING[0] if name in columns), None)
    groups = [_fake_group(prompt, gold) for prompt in data.first]
    with Scorer(sources, on_error="abstain") as scorer:
        rewards = scorer.score(groups)
    for index, name in enumerate(rewards.names):
        report.attempt(lambda index=index, name=name: _say_reward(rewards, index, name, gold, report))  # type: ignore[misc]


def _fake_group(prompt: Prompt, gold: str | None) -> Group:
    answers = [*FAKE_ANSWERS, *([] if gold is None else [str(prompt.columns[gold])])]
    return Group(
        prompt, [Completion(number, list(range(len(text))), "stop", text=text) for number, text in enumerate(answers)]
    )


def _say_reward(rewards: LocalRewards, index: int, name: str, gold: str | None, report: Report) -> None:
    faults = [row[index] for row in rewards.errors_NF if row[index]]
    if faults:
        raise RewardError(f"{faults[0]} (tried on fake answers)")
    values = [value for value in rewards.rewards_NF[:, index].tolist() if not math.isnan(value)]
    milliseconds = rewards.seconds[name] * 1000
    said = f"{min(values) + 0:g} to {max(values) + 0:g}" if values else "abstains"
    report.line("rewards", f"{name}: {said} on {len(rewards.statuses_NF)} fake answers in {milliseconds:.0f} ms")
    if values and min(values) == max(values):
        report.notes.append(f"Reward {name!r} cannot tell the fake answers apart: all score {values[0]:g}.")
    num_answers = len(FAKE_ANSWERS) + 1
    first = rewards.rewards_NF[:num_answers, index].tolist()
    if gold is not None and first[-1] < first[0]:
        report.notes.append(
            f"Reward {name!r} scores the dataset's {gold!r} ({first[-1] + 0:g}) below an empty answer "
            f"({first[0] + 0:g}). Is its sign right?"
        )


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
