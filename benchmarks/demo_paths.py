"""Is the demo faster on the fast path, and does it learn the same? Both paths, in turn, each in its own process.

    python benchmarks/demo_paths.py [--seeds 0 1 2] [--steps 150]

    fast    the embedded engine and packed forwards: gruppo as it comes
    hf      generation by transformers (`rollout_engine="hf"`) and padded forwards (`policy_forward="padded"`)

The demo's policy, task and settings on one thread, without its exams before and after; its held-out quiz every 25 steps
stays, outside the timed steps. Prints and writes (benchmarks/results/demo_paths.{json,md,png}) the median step time of
each run and seed, their ratios, and the held-out curves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.demo import PHASES
from harness.measure import circumstances, ratios, run_worker, spread
from harness.report import draw_lines, preamble, range_, table, times, write

RESULTS = Path(__file__).parent / "results"
PATHS: dict[str, dict[str, Any]] = {
    "hf": {"rollout_engine": "hf", "policy_forward": "padded"},
    "fast": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--output", default="demo_paths", help="name of the files in benchmarks/results")
    arguments = parser.parse_args()
    report = circumstances(1)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PATHS}
    for seed in arguments.seeds:
        for name, fields in PATHS.items():
            run = run_worker("harness.demo", {"fields": fields, "seed": seed, "steps": arguments.steps}, 1)
            runs[name].append(run)
            print(
                f"seed {seed} {name}: {run['step_time']:.3f} s a step, held out {run['held_out'][-1][1]:.3f}",
                flush=True,
            )
    report |= {"seeds": arguments.seeds, "steps": arguments.steps, "runs": runs}
    faster = {phase: ratios(*([run[phase] for run in runs[name]] for name in PATHS)) for phase in PHASES}
    report["times_faster"] = faster
    write(report, markdown(report), RESULTS / arguments.output)
    curves = {
        f"seed {seed}": {name: {step: value for step, value in runs[name][i]["held_out"] if step} for name in PATHS}
        for i, seed in enumerate(arguments.seeds)
    }
    draw_lines(curves, "held-out accuracy", (RESULTS / arguments.output).with_suffix(".png"))
    print(markdown(report))


def markdown(report: dict[str, Any]) -> str:
    rows = []
    for name, runs in report["runs"].items():
        ends = ", ".join(f"{run['held_out'][-1][1]:.3f}" for run in runs)
        rows.append([name, *(range_(spread([run[phase] for run in runs]), 3) for phase in PHASES), ends])
    rows.append(["times faster", *(times(report["times_faster"][phase], 2) for phase in PHASES), ""])
    head = ["path", "step, s", "generate, s", "update, s", "held out at the end, by seed"]
    return f"# The demo on both paths\n\n{preamble(report)}\n\n{table(head, rows)}\n"


if __name__ == "__main__":
    main()
