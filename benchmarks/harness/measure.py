"""Measuring: spread and ratios, the machine's GEMM rate, peak memory, who else computes, and workers of their own.

No tables (`report.py`) and no models (`models.py`).
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
RESULTS = FOLDER / "results"
RESULT_MARK = "RESULT "
"""Begins the line on which a worker hands its result back: libraries print to stdout too."""

Spread = dict[str, float]
"""median, min, max"""


def spread(values: Sequence[float]) -> Spread:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread | None:
    """How many times as long they took, round by round; None before the first round that both have."""
    found = [a / b for a, b in zip(theirs, ours, strict=False)]
    return spread(found) if found else None


# -- the machine


def gemm_rates(threads: int, dtype: str = "float32", size: int = 2048, repeats: int = 5) -> list[float]:
    """FLOP per second of `torch.mm` of square matrices: what the machine can do at best just now."""
    import torch

    torch.set_num_threads(threads)
    a_SS = torch.ones(size, size, dtype=getattr(torch, dtype))
    torch.mm(a_SS, a_SS)
    return [2.0 * size**3 / seconds_of(torch.mm, a_SS, a_SS) for _ in range(repeats)]


def seconds_of(action: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    action(*args)
    return time.perf_counter() - start


def memory_mib() -> dict[str, float]:
    """Resident memory of this process, now and at its peak.

    From /proc where there is one: `ru_maxrss` of a child begins with what its parent held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return {"now": int(fields["VmRSS"].split()[0]) / 1024, "peak": int(fields["VmHWM"].split()[0]) / 1024}
    unit = 1024 if sys.platform == "darwin" else 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit / 1024
    return {"now": peak, "peak": peak}


def forget_peak() -> None:
    """From here on, `memory_mib` reports the peak since now. (Linux; elsewhere it stays that since the start.)"""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


class OtherLoad:
    """How many CPUs somebody else kept busy (the hypervisor included) while we measured. None where Linux is not."""

    def __init__(self) -> None:
        self._start = self._read()

    def cpus(self) -> float | None:
        if self._start is None:
            return None
        now = self._read()
        assert now is not None
        seconds, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, (busy - own) / seconds)

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Wall seconds, busy CPU seconds of the machine, CPU seconds of this process and its ended children."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        jiffies = [int(value) for value in stat.read_text().splitlines()[0].split()[1:9]]
        busy = (sum(jiffies) - jiffies[3] - jiffies[4]) / os.sysconf("SC_CLK_TCK")
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.perf_counter(), busy, sum(usage.ru_utime + usage.ru_stime for usage in used)


def processor() -> str:
    """The CPU's name, and its extensions that matter for matrix products."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(known)})"


def circumstances(threads: int) -> dict[str, Any]:
    """Everything a reader needs to judge the numbers, taken at the start."""
    return {
        "command": command_line(sys.argv),
        "commit": _git("rev-parse", "HEAD") + (" with changes" if _git("status", "--porcelain", "--", "src") else ""),
        "versions": {name: _version(name) for name in ("gruppo", "torch", "transformers", "trl", "accelerate")},
        "python": platform.python_version(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load_at_start": os.getloadavg()[0],
    }


def command_line(argv: Sequence[str]) -> str:
    """As typed from the repository's root. Of absolute paths only the name: results are for other machines too."""
    words = [Path(word).name if word.startswith("/") else word for word in argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(argv[0]).name}", *words])


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=FOLDER, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


# -- work that must be done


@dataclass(frozen=True)
class Flop:
    """FLOP that no contender can do without, attention's own products not counted.

    A prompt goes through the body once, and so does every completion token but the last; the head sees what predicts a
    completion token. Twice the parameters for generation, six times for training (forward and both gradients).
    """

    rollout: float
    training: float

    @property
    def step(self) -> float:
        return self.rollout + self.training


def needed_flop(body: int, head: int, num_prompt_tokens: int, lengths: Sequence[int]) -> Flop:
    """`body`, `head`: parameters; `num_prompt_tokens`: of all prompts, each counted once."""
    through_body = num_prompt_tokens + sum(lengths) - len(lengths)
    products = float(body * through_body + head * sum(lengths))
    return Flop(rollout=2.0 * products, training=6.0 * products)


# -- workers


def worker_environment(threads: int) -> dict[str, str]:
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_worker(module: str, task: dict[str, Any], threads: int) -> dict[str, Any]:
    """`python -m module task` in a process of its own; what it handed back, and how busy others were meanwhile.

    Raises SystemExit with the end of its error output if it fails.
    """
    others = OtherLoad()
    command = [sys.executable, "-m", module, json.dumps(task | {"threads": threads})]
    done = subprocess.run(command, capture_output=True, text=True, env=worker_environment(threads), check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT_MARK)]
    if done.returncode or not results:
        raise SystemExit(f"{module} failed on {task}:\n{done.stderr[-3000:]}")
    return {**json.loads(results[-1][len(RESULT_MARK) :]), "other_cpus": others.cpus()}


def hand_back(result: dict[str, Any]) -> None:
    """A worker's last word."""
    print(RESULT_MARK + json.dumps(result), flush=True)
