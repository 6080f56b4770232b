"""How fast are rollouts? HFEngine against EmbeddedEngine, on the CPU, in one process, interleaved A B A B.

    python benchmarks/rollout.py [--cells small demo] [--rounds 5] [--threads 2] [--dtype float32]

Models are random, of a real family's shape; random models hardly ever say EOS, so the end of each completion is
imposed through the EOS ids where a cell says so (`eos_share`: that share of the vocabulary ends a row, for both
engines alike). It prints medians and spreads, kept tokens per second, and the fraction of the GEMM roofline
(2 FLOP per body parameter and token that had to be computed, head where logits are needed, over the rate of a plain
matrix product measured in the same run), and writes them as JSON to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from harness.measure import RESULTS, circumstances, gemm_rates, needed_flop
from harness.models import make_model

from gruppo.rollout.engine import EmbeddedEngine
from gruppo.rollout.hf import HFEngine
from gruppo.types import Group, Prompt, RolloutRequest, SamplingParams


@dataclass(frozen=True)
class Cell:
    model: str
    num_prompts: int
    prompt_tokens: int
    group_size: int
    max_tokens: int
    eos_share: float = 0.0


CELLS = {
    "small": Cell("small", 4, 384, 8, 64),
    "small-short": Cell("small", 4, 64, 8, 64),
    "small-ragged": Cell("small", 4, 384, 8, 128, eos_share=1 / 48),
    "demo": Cell("demo", 32, 12, 8, 24),
    "demo-ragged": Cell("demo", 32, 12, 8, 24, eos_share=1 / 12),
    "half-billion": Cell("qwen2.5-0.5b", 4, 256, 8, 32),
}


def work(model: Any, groups: list[Group]) -> float:
    """FLOP that cannot be avoided."""
    head = model.get_output_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in model.model.layers.parameters() if parameter.dim() == 2)
    lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
    return needed_flop(body, head, sum(len(group.prompt.token_ids) for group in groups), lengths).rollout


def measure(cell: Cell, rounds: int, threads: int, rollout_dtype: torch.dtype | None) -> dict[str, Any]:
    model = make_model(cell.model).eval()
    vocab = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    prompts = [
        Prompt(i, "", torch.randint(vocab, (cell.prompt_tokens,), generator=generator).tolist())
        for i in range(cell.num_prompts)
    ]
    requests = [RolloutRequest(prompt, range(cell.group_size)) for prompt in prompts]
    eos = tuple(range(round(cell.eos_share * vocab)))
    engines = {"hf": HFEngine(model), "embedded": EmbeddedEngine(model, rollout_dtype=rollout_dtype)}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    tokens: dict[str, int] = {}
    flop: dict[str, float] = {}
    rates: list[float] = []
    # Round 0 warms up.
    for step in range(rounds + 1):
        rates += gemm_rates(threads, "float32" if rollout_dtype is None else "bfloat16")
        for name, engine in engines.items():
            sampling = SamplingParams(max_tokens=cell.max_tokens, eos_token_ids=eos, seed=1, step=step % 2)
            started = time.perf_counter()
            groups = engine.generate(requests, sampling)
            if step:
                seconds[name].append(time.perf_counter() - started)
            tokens[name] = sum(len(c.token_ids) for group in groups for c in group.completions)
            flop[name] = work(model, groups)
    ratios = [a / b for a, b in zip(seconds["hf"], seconds["embedded"], strict=True)]
    rate = max(rates)
    return {
        "cell": asdict(cell),
        "forward": engines["embedded"].health()["forward"],
        "seconds": seconds,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "tokens": tokens,
        "tokens_per_second": {name: tokens[name] / statistics.median(seconds[name]) for name in engines},
        "speedup": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        "gemm_gflops": rate / 1e9,
        "roofline_share": {name: flop[name] / rate / statistics.median(seconds[name]) for name in engines},
    }


def _line(name: str, result: dict[str, Any]) -> str:
    seconds, share = result["median_seconds"], result["roofline_share"]
    low, high = result["speedup_range"]
    return (
        f"{name:14s} hf {seconds['hf']:7.3f} s   embedded {seconds['embedded']:7.3f} s   "
        f"{result['speedup']:5.2f}x ({low:.2f} to {high:.2f})   {result['tokens_per_second']['embedded']:8.0f} tok/s   "
        f"roofline {share['hf']:.0%} -> {share['embedded']:.0%} of {result['gemm_gflops']:.0f} GFLOP/s   "
        f"({result['forward']})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="HFEngine against EmbeddedEngine.")
    parser.add_argument("--cells", nargs="+", default=["small", "demo"], choices=list(CELLS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS / "rollout.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = None if options.dtype == "float32" else torch.bfloat16
    results = {}
    for name in options.cells:
        results[name] = result = measure(CELLS[name], options.rounds, options.threads, dtype)
        print(_line(name, result), flush=True)
    record = {**circumstances(options.threads), "dtype": options.dtype, "cells": results}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
