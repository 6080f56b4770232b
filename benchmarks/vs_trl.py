"""How long does a whole GRPO step take, gruppo against TRL? Each contender in its own process, in turn.

    python benchmarks/vs_trl.py [--cells small-384-64 ...] [--contenders trl gruppo ...] [--rounds 3] [--quick]

    trl            TRL 1.16 as it comes (gradient checkpointing), generation by transformers
    trl-tuned      the same without gradient checkpointing
    trl-cb         trl-tuned, generation by transformers' continuous batching (cache: a tenth of the free memory)
    gruppo         gruppo as it comes
    gruppo-oracle  gruppo with generation by transformers and padded forwards: what the fast paths are tested against

All train a model of the same random weights, in float32 or (cells named bf16) under autocast to bfloat16, on the same
prompts, with the same batch, micro-batch, reward and completion lengths (`harness/lengths.py`). A round goes through
all contenders, so that a machine that gets slower gets slower for all; ratios are taken round by round. Results are
written after every round, to benchmarks/results/vs_trl.{json,md,png}; `--append` adds rounds to those that are there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness import guard, step
from harness.measure import RESULTS, circumstances, gemm_rates, run_worker, spread
from harness.report import cell_lines, doubts, draw_bars, guard_doubts, preamble, step_table, summarise, write
from harness.step import CONTENDERS, Cell

SMALL = Cell("small", 384, 64)
LOGNORMAL = replace(SMALL, num_completion_tokens=256, median=48.0)
CELLS = {
    "small-384-64": SMALL,
    "small-64-64": replace(SMALL, num_prompt_tokens=64),
    "small-384-lognormal": LOGNORMAL,
    "small-64-lognormal": replace(LOGNORMAL, num_prompt_tokens=64),
    "small-64-64-g16": replace(SMALL, num_prompt_tokens=64, group_size=16),
    "small-384-64-g16": replace(SMALL, group_size=16),
    "small-384-64-bf16": replace(SMALL, bf16=True),
    "small-64-64-bf16": replace(SMALL, num_prompt_tokens=64, bf16=True),
    "qwen-0.5b-256-32": Cell("qwen2.5-0.5b", 256, 32, num_prompts=1),
}
DEFAULT_CELLS = [name for name in CELLS if name != "small-384-64-g16"]
DEFAULT_CONTENDERS = ["trl", "trl-tuned", "trl-cb", "gruppo"]

READING = """
Memory is resident memory of the whole process at its peak, and what the steps added to what was there when all was
loaded. Both are the highest of all rounds; ratios are gruppo's over the contender's. The roofline is 2 FLOP for each
parameter and token that generation cannot do without and 6 for training, over the GEMM rate: prompts once, completion
tokens once, the head for completion tokens only. Parameters are the layers' matrices and the head, without embedding
look-ups and norms; attention's own products are not counted.
"""


def main() -> None:
    arguments = parse()
    cells = {name: CELLS[name].quick() if arguments.quick else CELLS[name] for name in arguments.cells}
    stem = arguments.results / (arguments.output + ("_quick" if arguments.quick else ""))
    report = start(arguments, stem)
    print(preamble(report), flush=True)
    for name, cell in cells.items():
        measured = report["cells"].setdefault(name, {"runs": {}})
        measured |= {"cell": asdict(cell), "lengths": cell.rule().all_lengths()}
        if not arguments.no_guard:
            measured["guard"] = run_worker("harness.guard", guard.task(cell), arguments.threads)
        for _ in range(arguments.rounds):
            one_round(name, cell, measured["runs"], arguments)
            finish(report, arguments.threads)
            write(report, as_markdown(report), stem)
    panels = {
        name: {who: found["seconds"] for who, found in cell["contenders"].items()}
        for name, cell in finished(report).items()
    }
    draw_bars(panels, "seconds per step", stem.with_suffix(".png"))
    print(as_markdown(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=DEFAULT_CELLS)
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=DEFAULT_CONTENDERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="counted steps of each process, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny cells, one round: does everything run?")
    parser.add_argument("--append", action="store_true", help="add rounds to the results that are there")
    parser.add_argument("--no-guard", action="store_true", help="do not compare gruppo's numbers with the oracle's")
    parser.add_argument("--output", default="vs_trl", help="name of the files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def start(arguments: argparse.Namespace, stem: Path) -> dict[str, Any]:
    """An empty report, or the one that is there if rounds are to be added to it."""
    report: dict[str, Any] = circumstances(arguments.threads)
    path = stem.with_suffix(".json")
    if not (arguments.append and path.exists()):
        return {**report, "gemm_rates": [], "cells": {}}
    old = json.loads(path.read_text())
    for name in ("commit", "versions", "threads", "processor"):
        if old[name] != report[name]:
            raise SystemExit(f"--append: {path} has {name} {old[name]}, now it is {report[name]}. Leave --append out.")
    return {
        **old,
        "command": f"{old['command']}; {report['command']}",
        "load_at_start": max(old["load_at_start"], report["load_at_start"]),
    }


def one_round(name: str, cell: Cell, runs: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> None:
    """Adds a run of every contender, or of none: the n-th runs of all belong together."""
    if runs and set(runs) != set(arguments.contenders):
        raise SystemExit(f"--append: {name} was measured with {', '.join(runs)}; give the same --contenders.")
    found = {}
    for contender in arguments.contenders:
        run = run_worker("harness.step", step.task(contender, cell, arguments.steps), arguments.threads)
        found[contender] = run
        print(
            f"{name}  round {1 + len(runs.get(contender, []))}  {contender:<13} {run['seconds']:7.2f} s/step "
            f"(rollout {run['rollout_seconds']:.2f} s)  {run['peak_mib']:6.0f} MiB",
            flush=True,
        )
    for contender, run in found.items():
        runs.setdefault(contender, []).append(run)


def finish(report: dict[str, Any], threads: int) -> None:
    """Everything that follows from the rounds so far."""
    report["gemm_rates"] += gemm_rates(threads)
    report["gemm_gflops"] = spread([rate / 1e9 for rate in report["gemm_rates"]])
    for measured in report["cells"].values():
        runs = measured["runs"]
        if not runs:
            continue
        measured["num_rounds"] = min(map(len, runs.values()))
        measured["contenders"] = summarise(runs, Cell(**measured["cell"]).flop().step, max(report["gemm_rates"]))
        measured["doubts"] = guard_doubts(measured.get("guard"))
        measured["doubts"] += doubts(runs, report["load_at_start"], report["gemm_rates"])


def finished(report: dict[str, Any]) -> dict[str, Any]:
    """Cells with at least one round."""
    return {name: cell for name, cell in report["cells"].items() if "contenders" in cell}


def as_markdown(report: dict[str, Any]) -> str:
    done = finished(report)
    return "\n".join([preamble(report), step_table(done), cell_lines(done)]) + READING


if __name__ == "__main__":
    main()
