"""How fast is one training pass (forward and backward) when prompts are shared? One process, contenders interleaved.

    python benchmarks/train_pass.py [--rounds 5] [--threads 2] [--dtype float32] [--cells 384x64 64x64]

    packed           gruppo: one packed row, each prompt once (`policy.shared_prefix`)
    padded           gruppo's padded forward (`policy.logprobs`); its head, too, sees completions only
    every_position   the padded forward with the head on all positions, as TRL 1.16 does on the CPU

Nobody checkpoints activations. A model of random weights in Qwen3's shape: 8 layers, H = 384, V = 32,768. Prints and
writes (benchmarks/results/train_pass.json) medians and ranges of wall and CPU time, ratios, the share of the GEMM
roofline, and the largest differences between packed and padded in log-probs and gradients.

The roofline is 6 N FLOP for each token that must go through the body or the head, at the rate of a 2048 x 2048 product
measured between the rounds. On a busy machine trust the ratios, and those of CPU time first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness.measure import RESULTS, circumstances, gemm_rates, spread
from harness.models import make_model

from gruppo.policy.head import LogitTransform, score_tokens
from gruppo.policy.logprobs import decoder, token_logprobs
from gruppo.policy.packing import pack
from gruppo.policy.shared_prefix import packed_logprobs
from gruppo.types import TrainBatch

NUM_PROMPTS, GROUP_SIZE = 4, 8
SETTINGS: dict[str, Any] = {"temperature": 1.0, "pad_token_id": 0, "with_entropy": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: by autocast")
    parser.add_argument("--cells", nargs="+", default=["384x64", "64x64"], help="prompt x completion length")
    parser.add_argument("--output", type=Path, default=RESULTS / "train_pass.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = make_model("small").train()
    lengths = [[int(length) for length in cell.split("x")] for cell in arguments.cells]
    cells = [run_cell(model, {"P": p, "T": t}, arguments.rounds, arguments.dtype) for p, t in lengths]
    report = {**circumstances(arguments.threads), "dtype": arguments.dtype, "rounds": arguments.rounds, "cells": cells}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {arguments.output}")


def make_batch(cell: dict[str, int], vocab_size: int) -> TrainBatch:
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(3, vocab_size, (length,), generator=generator).tolist()

    num_rows = NUM_PROMPTS * GROUP_SIZE
    prompts = [ids(cell["P"]) for _ in range(NUM_PROMPTS)]
    return TrainBatch(
        prompt_ids=[prompts[row // GROUP_SIZE] for row in range(num_rows)],
        completion_ids=[ids(cell["T"]) for _ in range(num_rows)],
        trained_NT=torch.ones(num_rows, cell["T"], dtype=torch.bool),
        advantages_N=torch.zeros(num_rows),
        group_ids=[row // GROUP_SIZE for row in range(num_rows)],
        slice_ids=[0] * num_rows,
    )


def every_position(model: Any, batch: TrainBatch, **_: Any) -> Any:
    """Log-probs of all tokens of equally long rows."""
    ids_NT = torch.tensor([p + c for p, c in zip(batch.prompt_ids, batch.completion_ids, strict=True)])
    hidden_NTD = decoder(model)(input_ids=ids_NT, attention_mask=torch.ones_like(ids_NT), use_cache=False)[0]
    logprobs_S, _ = score_tokens(
        model.get_output_embeddings(), hidden_NTD.flatten(0, 1), ids_NT.roll(-1, 1).flatten(),
        transform=LogitTransform(), temperature=1.0, with_entropy=True,
    )  # fmt: skip
    length = len(batch.prompt_ids[0])
    return argparse.Namespace(logprobs_NT=logprobs_S.view(ids_NT.shape)[:, length - 1 : -1])


CONTENDERS: dict[str, Callable[..., Any]] = {
    "packed": packed_logprobs,
    "padded": token_logprobs,
    "every_position": every_position,
}


def training_pass(name: str, model: Any, batch: TrainBatch, dtype: str) -> torch.Tensor:
    """Forward and backward of a made-up loss. Returns the log-probs; gradients are left in the model."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        logprobs_NT: torch.Tensor = CONTENDERS[name](model, batch, **SETTINGS).logprobs_NT
    (logprobs_NT * torch.linspace(-1, 1, logprobs_NT.numel()).view(logprobs_NT.shape)).sum().backward()
    return logprobs_NT.detach()


def run_cell(model: Any, cell: dict[str, int], rounds: int, dtype: str) -> dict[str, Any]:
    batch = make_batch(cell, model.config.vocab_size)
    guard = compare(model, batch, dtype)
    training_pass("every_position", model, batch, dtype)  # warm-up; compare() has warmed the others
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    rates = []
    for _ in range(rounds):
        for name, times in seconds.items():
            rates += gemm_rates(torch.get_num_threads(), dtype)
            times.append(timed(training_pass, name, model, batch, dtype))
            print(f"    {name}: {times[-1][0]:.2f} s wall, {times[-1][1]:.2f} s CPU", flush=True)
    flops = needed_flops(model, batch)
    result: dict[str, Any] = {**cell, "B": NUM_PROMPTS, "G": GROUP_SIZE, "gemm_gflops": max(rates) / 1e9, **guard}
    print(f"P={cell['P']} T={cell['T']} B={NUM_PROMPTS} G={GROUP_SIZE} {dtype}: GEMM {max(rates) / 1e9:.0f} GFLOP/s")
    for name, times in seconds.items():
        wall, cpu = ([pair[i] for pair in times] for i in (0, 1))
        ratios = {
            kind: [mine[i] / packed[i] for mine, packed in zip(times, seconds["packed"], strict=True)]
            for i, kind in enumerate(("wall", "cpu"))
        }
        result[name] = {
            "wall_s": spread(wall),
            "cpu_s": spread(cpu),
            "times_packed_wall": spread(ratios["wall"]),
            "times_packed_cpu": spread(ratios["cpu"]),
            "roofline_share": flops / max(rates) / statistics.median(wall),
        }
        print(
            f"  {name:15s} {statistics.median(wall):6.2f} s wall, {statistics.median(cpu):6.2f} s CPU; packed is "
            f"{statistics.median(ratios['wall']):.2f}x (wall), {statistics.median(ratios['cpu']):.2f}x (CPU) faster; "
            f"{result[name]['roofline_share']:.0%} of the roofline"
        )
    print("  " + ", ".join(f"{name} {value:.1e}" for name, value in guard.items()))
    return result


def compare(model: Any, batch: TrainBatch, dtype: str) -> dict[str, float]:
    """Packed against padded."""
    found = []
    for name in ("packed", "padded"):
        logprobs_NT = training_pass(name, model, batch, dtype)
        found.append((logprobs_NT, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])))
    (mine_NT, my_gradient), (their_NT, their_gradient) = found
    return {
        "max_logprob_difference": float((mine_NT - their_NT).abs().max()),
        "max_gradient_difference": float((my_gradient - their_gradient).abs().max()),
        "relative_gradient_difference": float((my_gradient - their_gradient).norm() / their_gradient.norm()),
    }


def needed_flops(model: Any, batch: TrainBatch) -> float:
    """6 N for each token that the body, and each that the head must see."""
    head = model.get_output_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in model.model.layers.parameters() if parameter.dim() == 2)
    return 6.0 * (body * len(pack(batch)) + head * int(batch.trained_NT.sum()))


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(*args)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
