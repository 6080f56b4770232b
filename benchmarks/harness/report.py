"""From measured rounds to what is quoted: summaries, verdicts on noise, Markdown tables, bar and line charts.

Nothing here measures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from harness.measure import Spread, ratios, spread

Run = dict[str, Any]
"""What a worker handed back."""

MIN_ROUNDS = 3
MAX_RATIO_RANGE = 1.25
"""Highest over lowest ratio of the rounds."""
MAX_GEMM_RANGE = 1.5
"""The same for the calibration, which is shorter and so noisier."""
MAX_OTHER_CPUS = 0.2
MAX_DIFFERENCE = 1e-4
"""Between float32 computations of the same number: log-probs, and gradients relative to their norm."""
MAX_LOAD = 0.5
"""Where the system does not say who was busy during the rounds: load average before them."""


def summarise(runs: dict[str, list[Run]], flop: float, peak_flops: float) -> dict[str, Any]:
    """Per contender: spreads over the rounds, and how many times faster and smaller gruppo is, round by round.

    Args:
        flop: that a step cannot do without.
        peak_flops: FLOP per second of the GEMM calibration.
    """
    ours = runs.get("gruppo", [])
    return {
        name: _summary(done, [] if name == "gruppo" else ours, flop, peak_flops) for name, done in runs.items() if done
    }


def _summary(done: list[Run], ours: list[Run], flop: float, peak_flops: float) -> dict[str, Any]:
    def of(name: str, runs: list[Run] = done) -> list[float]:
        return [run[name] for run in runs]

    result: dict[str, Any] = {name: spread(of(name)) for name in sorted(done[0]) if _is_number(done, name)}
    rates = [run["tokens"] / run["seconds"] for run in done]
    result["tokens_per_second"] = spread(rates)
    result["roofline_share"] = flop / peak_flops / median(of("seconds"))
    if ours:
        result["slower_than_gruppo"] = ratios(of("seconds"), of("seconds", ours))
        for ratio, name in (("peak_of_gruppo", "peak_mib"), ("step_memory_of_gruppo", "step_mib")):
            if name in result:
                result[ratio] = ratios(of(name, ours), of(name))
    return result


def _is_number(done: list[Run], name: str) -> bool:
    return all(isinstance(run[name], int | float) for run in done)


def doubts(runs: dict[str, list[Run]], load_at_start: float, gemm_rates: Sequence[float] = ()) -> list[str]:
    """Why these rounds should not be quoted; empty if they may."""
    found = []
    if gemm_rates and max(gemm_rates) > MAX_GEMM_RANGE * min(gemm_rates):
        found.append(f"GEMM rate between {min(gemm_rates) / 1e9:.0f} and {max(gemm_rates) / 1e9:.0f} GFLOP/s")
    num_rounds = min(map(len, runs.values()))
    if num_rounds < MIN_ROUNDS:
        found.append(f"{num_rounds} of at least {MIN_ROUNDS} rounds")
    others = [run["other_cpus"] for done in runs.values() for run in done if run.get("other_cpus") is not None]
    if others and max(others) > MAX_OTHER_CPUS:
        found.append(f"others kept up to {max(others):.1f} CPUs busy meanwhile")
    if not others and load_at_start > MAX_LOAD:
        found.append(f"load average {load_at_start:.1f} at the start")
    for name, done in runs.items():
        ratio = ratios([run["seconds"] for run in done], [run["seconds"] for run in runs.get("gruppo", [])])
        if name != "gruppo" and ratio and ratio["max"] > MAX_RATIO_RANGE * ratio["min"]:
            found.append(f"ratio to {name} between {ratio['min']:.1f} and {ratio['max']:.1f}")
    return found


def guard_doubts(guard: dict[str, float] | None) -> list[str]:
    """What the guard says against the numbers."""
    if guard is None:
        return ["nothing was compared with the oracle"]
    differences = {name: value for name, value in guard.items() if name.endswith("difference")}
    return [
        f"{name.replace('_', ' ')} of {value:.1e}" for name, value in differences.items() if not value <= MAX_DIFFERENCE
    ]


def times(values: Spread | None, digits: int = 1) -> str:
    return f"{values['median']:.{digits}f}x ({values['min']:.{digits}f}-{values['max']:.{digits}f})" if values else ""


def range_(values: Spread, digits: int = 2) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}-{values['max']:.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def preamble(report: dict[str, Any]) -> str:
    """Command, commit, machine and versions: one line each."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    gemm = report.get("gemm_gflops")
    lines = [
        f"`{report['command']}`",
        f"commit {report['commit']}; Python {report['python']}, {versions}",
        f"{report['processor']}, {report['cpus']} CPUs, {report['threads']} threads; "
        f"load average at the start {report['load_at_start']:.2f}"
        + (f"; GEMM (torch.mm, float32) {range_(gemm, 0)} GFLOP/s, the highest counts" if gemm else ""),
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def step_table(cells: dict[str, Any]) -> str:
    """One row for each cell and contender of `vs_trl.py`."""
    head = ["cell", "contender", "s/step", "rollout s", "tokens/s", "gruppo is faster by", "peak MiB"]
    head += ["of it after loading", "gruppo's peak / its peak", "after loading", "roofline"]
    rows = [
        [
            cell,
            name,
            range_(result["seconds"]),
            f"{result['rollout_seconds']['median']:.2f}",
            f"{result['tokens_per_second']['median']:.0f}",
            times(result.get("slower_than_gruppo")),
            f"{result['peak_mib']['max']:.0f}",
            f"{result['step_mib']['max']:.0f}",
            times(result.get("peak_of_gruppo"), 2),
            times(result.get("step_memory_of_gruppo"), 2),
            f"{result['roofline_share']:.0%}",
        ]
        for cell, measured in cells.items()
        for name, result in measured["contenders"].items()
    ]
    return table(head, rows)


def cell_lines(cells: dict[str, Any]) -> str:
    """What each cell asked for, what the guard found, and whether its numbers may be quoted."""
    lines = []
    for name, measured in cells.items():
        lengths, cell, guard = measured["lengths"], measured["cell"], measured.get("guard")
        lines.append(
            f"**{name}**: {cell['shape']}, {cell['num_prompts']} prompts of {cell['num_prompt_tokens']} tokens x "
            f"{cell['group_size']} completions of {min(lengths)} to {max(lengths)} tokens (mean {mean(lengths):.1f}); "
            f"rounds: {measured['num_rounds']}."
        )
        if guard:
            lines[-1] += (
                f" Guard, gruppo against the padded float32 oracle on the same rollouts: log-probs differ by at most "
                f"{guard['max_logprob_difference']:.1e}, the gradient by {guard['relative_gradient_difference']:.1e} "
                f"of its norm; the sampler's log-probs by at most {guard['max_sampler_logprob_difference']:.1e}."
            )
        if measured["doubts"]:
            lines[-1] += f" **Not to be quoted**: {'; '.join(measured['doubts'])}."
    return "\n\n".join(lines) + "\n"


def write(report: dict[str, Any], markdown: str, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown)


# -- charts

OURS, THEIRS = "#0072B2", "#999999"
PANELS_PER_ROW = 4


def draw_bars(panels: dict[str, dict[str, Spread]], unit: str, path: Path) -> None:
    """One panel for each cell, one bar for each contender, from its lowest to its highest round."""
    plt = _pyplot()
    num_columns = min(len(panels), PANELS_PER_ROW)
    num_rows = -(-len(panels) // num_columns)
    figure, axes = plt.subplots(num_rows, num_columns, figsize=(4.2 * num_columns, 2.8 * num_rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, bars) in zip(axes.flat, panels.items(), strict=False):
        names, values = list(bars), list(bars.values())
        medians = [value["median"] for value in values]
        errors = [[v["median"] - v["min"] for v in values], [v["max"] - v["median"] for v in values]]
        colors = [OURS if name.startswith("gruppo") else THEIRS for name in names]
        axis.barh(names, medians, xerr=errors, color=colors, capsize=3)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.2 * max(value["max"] for value in values))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(unit)
        for place, value in enumerate(values):
            label = f" {value['median']:.3g}" if value["median"] < 100 else f" {value['median']:,.0f}"
            axis.text(value["max"], place, label, va="center", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_lines(panels: dict[str, dict[str, dict[int, float]]], unit: str, path: Path) -> None:
    """One panel for each axis, one line for each contender, both scales logarithmic."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.0), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, points in lines.items():
            color = OURS if name.startswith("gruppo") else THEIRS
            axis.plot(list(points), list(points.values()), marker="o", color=color, label=name)
        ticks = sorted({x for points in lines.values() for x in points})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(title)
        axis.set_ylabel(unit)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
