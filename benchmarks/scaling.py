"""How do a step's time and memory grow with G, P, T and B? Doublings of one at a time, each cell in its own process.

    python benchmarks/scaling.py [--axes P G T B] [--trl] [--rounds 3] [--quick]

From the base (small model, B=2 prompts of P=128 tokens, G=8 completions of T=32) one axis at a time is doubled; steps
are measured as in `vs_trl.py`. With --trl, tuned TRL goes along the P axis too: what it costs to compute each prompt G
times. A round goes through all cells, so that a machine that gets slower does not look like growth. Writes
benchmarks/results/scaling.{json,md,png}.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from harness import step
from harness.measure import RESULTS, circumstances, run_worker, spread
from harness.report import MAX_OTHER_CPUS, draw_lines, preamble, range_, table, write
from harness.step import Cell

BASE = Cell("small", 128, 32, num_prompts=2, group_size=8)
AXES = {
    "P": ("num_prompt_tokens", [64, 128, 256, 512, 1024]),
    "G": ("group_size", [4, 8, 16, 32, 64]),
    "T": ("num_completion_tokens", [16, 32, 64, 128, 256]),
    "B": ("num_prompts", [1, 2, 4, 8, 16]),
}


def main() -> None:
    arguments = parse()
    report: dict[str, Any] = {
        **circumstances(arguments.threads),
        "base": asdict(BASE.quick() if arguments.quick else BASE),
        "points": points(arguments),
    }
    print(preamble(report), flush=True)
    stem = arguments.results / (arguments.output + ("_quick" if arguments.quick else ""))
    for _ in range(arguments.rounds):
        for point in report["points"]:
            run = run_worker("harness.step", step.task(point["contender"], Cell(**point["cell"]), 1), arguments.threads)
            point["runs"].append(run)
            print(
                f"{point['axis']}={point['value']:<5} {point['contender']:<10} {run['seconds']:7.2f} s/step "
                f"{run['peak_mib']:6.0f} MiB",
                flush=True,
            )
        write(report, as_markdown(report), stem)
    panels = {
        axis: {
            name: {p["value"]: of(p, "seconds") for p in line} for name, line in lines(report["points"], axis).items()
        }
        for axis in arguments.axes
    }
    draw_lines(panels, "seconds per step", stem.with_suffix(".png"))
    print(as_markdown(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--trl", action="store_true", help="tuned TRL along the P axis too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny cells, two doublings, one round: does it run?")
    parser.add_argument("--output", default="scaling")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def points(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One for each axis, value and contender; the base is measured once for each axis it lies on."""
    found = []
    for axis in arguments.axes:
        field, values = AXES[axis]
        for value in values[:2] if arguments.quick else values:
            cell = replace(BASE, **{field: value})
            cell = cell.quick() if arguments.quick else cell
            found += [
                {"axis": axis, "value": value, "contender": contender, "cell": asdict(cell), "runs": []}
                for contender in ("gruppo", *(["trl-tuned"] if arguments.trl and axis == "P" else []))
            ]
    return found


def lines(found: list[dict[str, Any]], axis: str) -> dict[str, list[dict[str, Any]]]:
    """Contender -> its points along an axis, in order."""
    along: dict[str, list[dict[str, Any]]] = {}
    for point in found:
        if point["axis"] == axis:
            along.setdefault(point["contender"], []).append(point)
    return along


def of(point: dict[str, Any], name: str) -> float:
    return median(run[name] for run in point["runs"])


def growth(line: list[dict[str, Any]], name: str) -> list[float]:
    """By what each doubling multiplies."""
    return [of(after, name) / of(before, name) for before, after in pairwise(line)]


def as_markdown(report: dict[str, Any]) -> str:
    head = ["axis", "value", "contender", "s/step", "times the one before", "peak MiB", "of it after loading"]
    head += ["times the one before"]
    rows, sentences = [], []
    for axis in AXES:
        for name, line in lines(report["points"], axis).items():
            factors = {field: ["", *(f"{x:.2f}" for x in growth(line, field))] for field in ("seconds", "step_mib")}
            for place, point in enumerate(line):
                seconds = spread([run["seconds"] for run in point["runs"]])
                row = [axis, str(point["value"]), name, range_(seconds), factors["seconds"][place]]
                row += [f"{of(point, 'peak_mib'):.0f}", f"{of(point, 'step_mib'):.0f}", factors["step_mib"][place]]
                rows.append(row)
            low, high = min(growth(line, "seconds")), max(growth(line, "seconds"))
            sentences.append(f"- Doubling {axis} multiplies {name}'s step time by {low:.2f} to {high:.2f}.")
    base = report["base"]
    intro = (
        f"Base: {base['shape']} model, B={base['num_prompts']}, P={base['num_prompt_tokens']}, "
        f"G={base['group_size']}, T={base['num_completion_tokens']}; medians over the rounds "
        f"({len(report['points'][0]['runs'])}).{disturbance(report['points'])}\n"
    )
    return "\n".join([preamble(report), intro, table(head, rows), *sentences]) + "\n"


def disturbance(found: list[dict[str, Any]]) -> str:
    others = [run["other_cpus"] for point in found for run in point["runs"] if run["other_cpus"] is not None]
    if not others or max(others) <= MAX_OTHER_CPUS:
        return ""
    return f" **Not to be quoted**: others kept up to {max(others):.1f} CPUs busy meanwhile."


if __name__ == "__main__":
    main()
