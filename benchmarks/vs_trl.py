"""How long does a whole GRPO step take, gruppo against TRL? Each contender in its own process, in turn.

    python benchmarks/vs_trl.py [--cells small-384-64 ...] [--rounds 3] [--steps 1] [--threads 2]

    trl            TRL 1.16 as it comes (gradient checkpointing), float32, generation by transformers
    trl-tuned      the same without gradient checkpointing
    trl-cb         the same as trl-tuned, generation by transformers' continuous batching
    gruppo         gruppo as it comes
    gruppo-oracle  gruppo with generation by transformers and padded forwards: what the fast paths are tested against

All train a model of random weights on the same prompts with the same batch, in the same precision, with the same
reward. A step is measured from the end of one optimizer step to the end of the next; the first is not counted. Rounds
go through all contenders, so that a machine that gets slower gets slower for all. Prints and writes medians, ranges,
ratios round by round, tokens per second and peak memory (benchmarks/results/vs_trl.{json,md,png}).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """A model's shape and one step's work: B prompts of P tokens, G completions of T tokens each."""

    shape: str
    num_prompt_tokens: int
    num_completion_tokens: int
    num_prompts: int = 4
    group_size: int = 8


CELLS = {
    "small-384-64": Cell("small", 384, 64),
    "small-64-64": Cell("small", 64, 64),
    "qwen-0.5b-256-32": Cell("qwen2.5-0.5b", 256, 32, num_prompts=1),
}
CONTENDERS = ("trl", "trl-tuned", "trl-cb", "gruppo", "gruppo-oracle")
BASELINES = ("trl", "trl-tuned", "trl-cb", "gruppo-oracle")

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "kind": "qwen3",
        "vocab_size": 32768,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "qwen2.5-0.5b": {
        "kind": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=sorted(CELLS), default=["small-384-64", "small-64-64"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["trl", "trl-tuned", "gruppo"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="counted steps of each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="vs_trl", help="name of the files in benchmarks/results")
    parser.add_argument("--worker", nargs=2, metavar=("CONTENDER", "CELL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(*arguments.worker, arguments)))
        return
    results = {cell: measure(cell, arguments) for cell in arguments.cells}
    report = {**circumstances(arguments), "cells": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.output}.json").write_text(json.dumps(report, indent=2) + "\n")
    (RESULTS / f"{arguments.output}.md").write_text(as_markdown(report))
    draw(report, RESULTS / f"{arguments.output}.png")
    print(as_markdown(report))


# -- one contender, in its own process


def work(contender: str, cell_name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train 1 + steps steps; seconds of each counted step, completion tokens of a step, peak memory in MiB."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(arguments.threads)
    cell = CELLS[cell_name]

    class Stopwatch(TrainerCallback):
        """Time of each optimizer step's end."""

        ends: list[float] = []  # noqa: RUF012

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = build(contender, cell, Path(folder), 1 + arguments.steps, Stopwatch())
        trainer.train()
    ends = Stopwatch.ends
    tokens = [line["completions/mean_length"] for line in trainer.state.log_history if "loss" in line]
    return {
        "seconds": [after - before for before, after in pairwise(ends)],
        "tokens": tokens[-1] * cell.num_prompts * cell.group_size,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def build(contender: str, cell: Cell, folder: Path, num_steps: int, stopwatch: Any) -> Any:
    from datasets import Dataset

    model, tokenizer = make_model(SHAPES[cell.shape]), make_tokenizer(SHAPES[cell.shape]["vocab_size"])
    rows_per_slice = 8
    common = {
        "output_dir": str(folder),
        "num_generations": cell.group_size,
        "per_device_train_batch_size": rows_per_slice,
        "gradient_accumulation_steps": cell.num_prompts * cell.group_size // rows_per_slice,
        "max_completion_length": cell.num_completion_tokens,
        "max_steps": num_steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }
    dataset = Dataset.from_list([{"prompt": prompt(cell.num_prompt_tokens, number)} for number in range(16)])
    given = {"train_dataset": dataset, "processing_class": tokenizer, "callbacks": [stopwatch]}
    if contender.startswith("trl"):
        from trl import GRPOConfig, GRPOTrainer

        common["gradient_checkpointing"] = contender == "trl"
        common["use_transformers_continuous_batching"] = contender == "trl-cb"
        return GRPOTrainer(model, reward, args=GRPOConfig(**common), **given)
    from gruppo import GRPOConfig as OurConfig
    from gruppo import GRPOTrainer as OurTrainer

    if contender == "gruppo-oracle":
        common |= {"rollout_engine": "hf", "policy_forward": "padded", "gradient_checkpointing": False}
    return OurTrainer(model, reward, args=OurConfig(**common), **given)


def reward(completions: list[str], **kwargs: Any) -> list[float]:
    """Differs within every group, and costs nothing."""
    return [float(sum(completion.encode()) % 7) for completion in completions]


def make_model(shape: dict[str, Any]) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    fields = {name: value for name, value in shape.items() if name != "kind"}
    fields |= {"tie_word_embeddings": True, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    if shape["kind"] == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**fields))
    return Qwen2ForCausalLM(Qwen2Config(**fields))


def make_tokenizer(vocab_size: int) -> Any:
    """One word per token, so that a prompt has exactly the tokens that the cell asks for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w2"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", eos_token="w1", padding_side="left")


def prompt(num_tokens: int, number: int) -> str:
    return " ".join(f"w{3 + (number * 7919 + place * 104729) % 32000}" for place in range(num_tokens))


# -- all contenders


def measure(cell: str, arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in arguments.contenders}
    for number in range(arguments.rounds):
        for contender in arguments.contenders:
            runs[contender].append(run_worker(contender, cell, arguments))
            seconds = statistics.mean(runs[contender][-1]["seconds"])
            print(f"{cell}  round {number + 1}  {contender:<14} {seconds:7.2f} s/step", flush=True)
    return {
        contender: {
            "seconds": spread([statistics.mean(run["seconds"]) for run in done]),
            "tokens_per_second": statistics.median(run["tokens"] / statistics.mean(run["seconds"]) for run in done),
            "peak_mib": max(run["peak_mib"] for run in done),
        }
        | ({} if contender == "gruppo" else {"ratio_to_gruppo": ratios(done, runs.get("gruppo", []))})
        for contender, done in runs.items()
    }


def run_worker(contender: str, cell: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", contender, cell]
    command += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{contender} failed on {cell}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ratios(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, float] | None:
    """How many times gruppo is faster, round by round."""
    pairs = zip(theirs, ours, strict=False)
    found = [statistics.mean(a["seconds"]) / statistics.mean(b["seconds"]) for a, b in pairs]
    return spread(found) if found else None


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": " ".join(["python", "benchmarks/vs_trl.py", *sys.argv[1:]]),
        "commit": commit,
        "versions": {name: version(name) for name in ("gruppo", "trl", "torch", "transformers", "accelerate")},
        "machine": {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()},
        "gemm_gflops_float32": gemm_rate(arguments.threads),
        "load_before": os.getloadavg()[0],
    }


def gemm_rate(threads: int, size: int = 2048) -> float:
    """GFLOP/s of a square float32 product: what this machine could do at best just now."""
    import torch

    torch.set_num_threads(threads)
    a = torch.randn(size, size)
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * size**3 / (time.perf_counter() - start) / 1e9


def as_markdown(report: dict[str, Any]) -> str:
    lines = [
        f"`{report['command']}` at {report['commit'][:12]}; {report['machine']['cpus']} CPUs, "
        f"GEMM {report['gemm_gflops_float32']:.0f} GFLOP/s; {report['versions']}",
        "",
        "| cell | contender | s/step, median (range) | tokens/s | peak MiB | gruppo is faster by (range) |",
        "|---|---|---|---|---|---|",
    ]
    for cell, contenders in report["cells"].items():
        for name, result in contenders.items():
            seconds, ratio = result["seconds"], result.get("ratio_to_gruppo")
            faster = f"{ratio['median']:.1f}x ({ratio['min']:.1f}-{ratio['max']:.1f})" if ratio else ""
            lines.append(
                f"| {cell} | {name} | {seconds['median']:.2f} ({seconds['min']:.2f}-{seconds['max']:.2f}) "
                f"| {result['tokens_per_second']:.0f} | {result['peak_mib']:.0f} | {faster} |"
            )
    return "\n".join(lines) + "\n"


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(report["cells"]), figsize=(5 * len(report["cells"]), 3.2), squeeze=False)
    for axis, (cell, contenders) in zip(axes[0], report["cells"].items(), strict=True):
        names = list(contenders)
        medians = [contenders[name]["seconds"]["median"] for name in names]
        low = [median - contenders[name]["seconds"]["min"] for name, median in zip(names, medians, strict=True)]
        high = [contenders[name]["seconds"]["max"] - median for name, median in zip(names, medians, strict=True)]
        colors = ["#0072B2" if name == "gruppo" else "#999999" for name in names]
        axis.barh(names, medians, xerr=[low, high], color=colors, capsize=3)
        axis.invert_yaxis()
        axis.set_title(cell)
        axis.set_xlabel("seconds per step")
        for place, median in enumerate(medians):
            axis.text(median, place, f"  {median:.1f}", va="center")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
