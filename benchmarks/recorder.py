"""What does recording cost a training step? One process, the same training with and without, interleaved.

    python benchmarks/recorder.py [--workloads demo small] [--rounds 3] [--threads 2]

    off      no recorder and no health checks: nothing is written
    record   the recorder as shipped (rollouts, tokens, metrics, heartbeat), no health checks
    all      the recorder and the health checks, as every run has them

    demo     the demo's policy, task and settings: 128 completions in a step, of about 20 tokens
    small    random weights in Qwen3's shape (8 layers, H = 384, V = 32,768): 2 prompts of 64 tokens x 8 completions of
             64 tokens in a step. Such a model draws nearly every token for the first time, which is the worst case for
             the table of token texts

Two measurements. (1) Step times: all contenders draw the same tokens from the same seeds, so that step i is the same
work in each; the share is the median over steps and rounds of time / time of `off` in the same round - 1. (2) Account:
CPU seconds that the training thread spends in the recorder's calls, and that the recorder's own threads use, per step.
The account sees what the noise of step times hides; it cannot see waiting for the interpreter lock or for caches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from gruppo import GRPOConfig, GRPOTrainer
from gruppo.demo.run import POLICY, demo_config
from gruppo.demo.task import as_row, right_answer, split_questions
from gruppo.milestones import Milestones
from gruppo.monitor.files import PartWriter
from gruppo.monitor.heartbeat import Heartbeat
from gruppo.monitor.recorder import Recorder

RESULTS = Path(__file__).parent / "results"
CONTENDERS = ("off", "record", "all")
NUM_STEPS = {"demo": 30, "small": 4}
NUM_WARM = 1
"""Steps at the start of each run that do not count."""

TRAINING_THREAD = ("record_step", "record_event", "record_rollouts", "keep_forward", "record_pass", "log_completions")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=list(NUM_STEPS), default=list(NUM_STEPS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "recorder.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    report = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"workloads": {}}
    for workload in arguments.workloads:
        report["workloads"][workload] = measure(workload, arguments.rounds) | circumstances(arguments)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    arguments.output.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


def measure(workload: str, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[list[float]]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    num_bytes = 0
    account = Account()
    run("off", workload, NUM_WARM + 1)  # compiles and allocates what a process needs once
    for number in range(rounds):
        for contender in CONTENDERS[number % 3 :] + CONTENDERS[: number % 3]:  # nobody is always first
            account.clear()
            steps, size, num_dropped = run(contender, workload, NUM_WARM + NUM_STEPS[workload])
            seconds[contender].append(steps)
            if contender != "off":
                for kind in ("training", "background"):
                    cpu[f"{contender}/{kind}"].append(account[kind] / len(steps))
                assert num_dropped == 0, num_dropped
                num_bytes = size // len(steps)
            print(f"{workload} {number + 1}/{rounds} {contender}: {statistics.median(steps):.3f} s a step", flush=True)
    return summary(seconds, cpu) | {"bytes_per_step": num_bytes}


def summary(seconds: dict[str, list[list[float]]], cpu: dict[str, list[float]]) -> dict[str, Any]:
    base = seconds["off"]
    found: dict[str, Any] = {"contenders": {}}
    for contender, rounds in seconds.items():
        steps = sorted(step for steps in rounds for step in steps)
        shares = [
            mine / other - 1
            for one, two in zip(rounds, base, strict=True)
            for mine, other in zip(one, two, strict=True)
        ]
        entry: dict[str, Any] = {
            "median_step_seconds": statistics.median(steps),
            "quartiles_step_seconds": quartiles(steps),
            "median_share": statistics.median(shares),
            "quartiles_share": quartiles(shares),
            "round_medians_share": [
                statistics.median(mine / other - 1 for mine, other in zip(one, two, strict=True))
                for one, two in zip(rounds, base, strict=True)
            ],
        }
        for kind in ("training", "background"):
            values = cpu.get(f"{contender}/{kind}")
            if values:
                entry[f"{kind}_cpu_seconds_per_step"] = statistics.median(values)
        found["contenders"][contender] = entry
    return found


def quartiles(values: list[float]) -> list[float]:
    first, _, third = statistics.quantiles(values, n=4)
    return [first, third]


class Account(Counter[str]):
    """CPU seconds of the recorder's calls, by thread: `training` and `background`. Wraps them for good."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        for name in TRAINING_THREAD:
            self._wrap(Recorder, name, "training")
        self._wrap(PartWriter, "_write", "background")
        self._wrap(Heartbeat, "_beat", "background")

    def _wrap(self, owner: type, name: str, kind: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if kind == "training" and self._depth:  # record_rollouts records events of its own
                return inner(*args, **kwargs)
            self._depth += kind == "training"
            start = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self[kind] += time.thread_time() - start
                self._depth -= kind == "training"

        setattr(owner, name, timed)


def run(contender: str, workload: str, num_steps: int) -> tuple[list[float], int, int]:
    """Step times without the warm ones, bytes of parts, parts dropped."""
    with tempfile.TemporaryDirectory() as folder:
        made = WORKLOADS[workload](folder, num_steps)
        undo = switch(contender)
        try:
            made.train()
        finally:
            undo()
        steps = [line["step_time"] for line in made.state.log_history if "step_time" in line]
        assert len(steps) == num_steps, (len(steps), num_steps)
        size = sum(path.stat().st_size for path in Path(folder).rglob("part-*.parquet"))
        events = Path(folder) / "events.jsonl"
        stops = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
        return steps[NUM_WARM:], size, sum(event.get("num_dropped_parts", 0) for event in stops)


def switch(contender: str) -> Callable[[], None]:
    """Take out the recorder or the checks; returns what puts them back."""
    opened = Milestones._open_recorder

    def open_recorder(self: Milestones, start_step: int | None) -> None:
        if contender != "off":
            opened(self, start_step)
        if contender == "record":
            self._watch = None

    Milestones._open_recorder = open_recorder  # type: ignore[method-assign]
    return lambda: setattr(Milestones, "_open_recorder", opened)


def demo(folder: str, num_steps: int) -> GRPOTrainer:
    training, _ = split_questions()
    config = demo_config(folder, seed=0, steps=num_steps)
    fields = {
        **config.non_default(),
        "eval_strategy": "no",
        "eval_on_start": False,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    rows = Dataset.from_list([as_row(question) for question in training])
    return GRPOTrainer(str(POLICY), right_answer, GRPOConfig(**fields), rows)


def small(folder: str, num_steps: int) -> GRPOTrainer:
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=32768, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, max_position_embeddings=2048, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    config = GRPOConfig(
        folder, num_generations=8, per_device_train_batch_size=16, max_completion_length=64, max_steps=num_steps,
        use_cpu=True, bf16=False, logging_steps=1, save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    prompts = [" ".join(f"w{(97 * row + 31 * place) % 32000}" for place in range(64)) for row in range(64)]
    return GRPOTrainer(
        Qwen3ForCausalLM(shape), even_words, config, [{"prompt": text} for text in prompts], processing_class=words()
    )


def even_words(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(sum(word[-1:] in "02468" for word in text.split())) for text in completions]


def words() -> PreTrainedTokenizerFast:
    """32,768 words."""
    names = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(32765))]
    core = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


WORKLOADS: dict[str, Callable[[str, int], GRPOTrainer]] = {"demo": demo, "small": small}


def circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "commit": git.stdout.strip(),
        "load": os.getloadavg()[0],
    }


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# What recording costs",
        "",
        "Made by `python benchmarks/recorder.py`; its docstring says what is measured. Medians; quartiles in brackets.",
        "",
        "| workload | contender | step | against off | training thread | background thread | both, share of the step |",
        "|---|---|---|---|---|---|---|",
    ]
    for workload, found in report["workloads"].items():
        for contender, entry in found["contenders"].items():
            low, high = entry["quartiles_step_seconds"]
            step = f"{entry['median_step_seconds']:.3f} s [{low:.3f}, {high:.3f}]"
            cells = ["–"] * 4
            if contender != "off":
                low, high = entry["quartiles_share"]
                front, back = entry["training_cpu_seconds_per_step"], entry["background_cpu_seconds_per_step"]
                share = (front + back) / found["contenders"]["off"]["median_step_seconds"]
                cells = [
                    f"{entry['median_share']:+.1%} [{low:+.1%}, {high:+.1%}]",
                    f"{front * 1e3:.2f} ms",
                    f"{back * 1e3:.1f} ms",
                    f"{share:.2%}",
                ]
            lines.append(f"| {workload} | {contender} | {step} | {' | '.join(cells)} |")
    for workload, found in report["workloads"].items():
        lines += [
            "",
            f"{workload}: {found['bytes_per_step'] / 1024:.0f} KiB of parts for each step. {found['rounds']} rounds, "
            f"threads: {found['threads']}, cores: {found['cores']} ({found['machine']}), torch {found['torch']}, "
            f"commit {found['commit']} and what was not committed then.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
