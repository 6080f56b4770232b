"""Spread, ratios, needed FLOP, summaries, verdicts on noise, tables: values in, values out."""

import json
import math

import pytest
import scaling
import vs_trl
from harness.measure import command_line, needed_flop, ratios, spread
from harness.report import cell_lines, doubts, draw_bars, draw_lines, guard_doubts, step_table, summarise, table, times
from harness.step import Cell, check


def run(seconds, peak=100.0, step=20.0, other=0.0):
    return {
        "seconds": seconds,
        "cpu_seconds": seconds,
        "rollout_seconds": seconds / 2,
        "tokens": 50,
        "peak_mib": peak,
        "loaded_mib": peak - step,
        "step_mib": step,
        "other_cpus": other,
    }


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_ratios_are_taken_round_by_round():
    assert ratios([6.0, 8.0, 10.0], [1.0, 2.0, 1.0]) == {"median": 6.0, "min": 4.0, "max": 10.0}
    assert ratios([6.0, 8.0], [2.0]) == {"median": 3.0, "min": 3.0, "max": 3.0}
    assert ratios([6.0], []) is None


def test_needed_flop_counts_prompts_once_and_the_last_token_in_the_head_only():
    flop = needed_flop(body=10, head=3, num_prompt_tokens=7, lengths=[4, 1])
    products = 10 * (7 + 3 + 0) + 3 * 5
    assert (flop.rollout, flop.training, flop.step) == (2 * products, 6 * products, 8 * products)


def test_summary_of_two_contenders():
    runs = {"trl": [run(8.0, 400.0, 300.0), run(12.0, 200.0, 100.0)], "gruppo": [run(2.0), run(2.0)]}
    found = summarise(runs, flop=100.0, peak_flops=50.0)
    assert found["trl"]["seconds"] == {"median": 10.0, "min": 8.0, "max": 12.0}
    assert found["trl"]["slower_than_gruppo"] == {"median": 5.0, "min": 4.0, "max": 6.0}
    assert found["trl"]["peak_of_gruppo"] == {"median": 0.375, "min": 0.25, "max": 0.5}
    assert found["trl"]["step_memory_of_gruppo"]["max"] == pytest.approx(0.2)
    assert found["gruppo"]["tokens_per_second"]["median"] == 25.0
    assert found["gruppo"]["roofline_share"] == 1.0
    assert "slower_than_gruppo" not in found["gruppo"]


def test_contenders_without_memory_after_loading_have_no_ratio_of_it():
    runs = {
        "vllm": [{"seconds": 2.0, "tokens": 4, "peak_mib": 8.0}],
        "gruppo": [{"seconds": 1.0, "tokens": 4, "peak_mib": 4.0}],
    }
    found = summarise(runs, 1.0, 1.0)["vllm"]
    assert found["peak_of_gruppo"]["median"] == 0.5
    assert "step_memory_of_gruppo" not in found


OTHERS = "others kept up to 0.9 CPUs busy meanwhile"
QUIET = {"trl": [run(8.0), run(8.4), run(8.2)], "gruppo": [run(2.0), run(2.0), run(2.0)]}


@pytest.mark.parametrize(
    ("runs", "load", "said"),
    [
        (QUIET, 9.0, []),
        ({name: done[:2] for name, done in QUIET.items()}, 0.0, ["2 of at least 3 rounds"]),
        ({**QUIET, "trl": [run(8.0), run(12.0), run(8.0)]}, 0.0, ["ratio to trl between 4.0 and 6.0"]),
        (
            {**QUIET, "trl": [run(8.0, other=0.9), *QUIET["trl"][1:]]},
            0.0,
            ["others kept up to 0.9 CPUs busy meanwhile"],
        ),
    ],
)
def test_what_speaks_against_quoting(runs, load, said):
    assert doubts(runs, load) == said


def test_an_unsteady_calibration_speaks_against_quoting():
    assert doubts(QUIET, 0.0, [140e9, 100e9]) == []
    assert doubts(QUIET, 0.0, [140e9, 35e9]) == ["GEMM rate between 35 and 140 GFLOP/s"]


def test_the_load_average_counts_where_nothing_better_is_known():
    runs = {name: [{**r, "other_cpus": None} for r in done] for name, done in QUIET.items()}
    assert doubts(runs, 1.5) == ["load average 1.5 at the start"]
    assert doubts(runs, 0.1) == []


def test_the_guard_speaks_against_numbers_that_are_not_right():
    fine = {"max_logprob_difference": 1e-6, "relative_gradient_difference": 1e-6, "other_cpus": 0.5}
    assert guard_doubts(fine) == []
    assert guard_doubts({**fine, "relative_gradient_difference": 0.02}) == ["relative gradient difference of 2.0e-02"]
    assert guard_doubts({**fine, "max_logprob_difference": math.nan}) == ["max logprob difference of nan"]
    assert guard_doubts(None) == ["nothing was compared with the oracle"]


def test_tables():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert times({"median": 6.04, "min": 5.0, "max": 7.0}) == "6.0x (5.0-7.0)"
    assert times(None) == ""


def cells():
    return {
        "c": {
            "cell": {"shape": "small", "num_prompts": 2, "num_prompt_tokens": 5, "group_size": 3},
            "lengths": [1, 3, 5, 7, 2, 6],
            "guard": {
                "max_logprob_difference": 1.2e-6,
                "relative_gradient_difference": 3.4e-7,
                "max_sampler_logprob_difference": 5.6e-6,
            },
            "num_rounds": 3,
            "doubts": ["it was noisy"],
            "contenders": summarise(QUIET, 100.0, 500.0),
        }
    }


def test_the_step_table_holds_every_number():
    lines = step_table(cells()).splitlines()
    same = "1.00x (1.00-1.00)"
    times_ = "4.1x (4.0-4.2)"
    assert lines[2] == f"| c | trl | 8.20 (8.00-8.40) | 4.10 | 6 | {times_} | 100 | 20 | {same} | {same} | 2% |"
    assert lines[3] == "| c | gruppo | 2.00 (2.00-2.00) | 1.00 | 25 |  | 100 | 20 |  |  | 10% |"


def test_the_lines_under_it_say_what_was_asked_for_what_the_guard_found_and_what_speaks_against_it():
    text = cell_lines(cells())
    assert "2 prompts of 5 tokens x 3 completions of 1 to 7 tokens (mean 4.0); rounds: 3" in text
    assert "at most 1.2e-06, the gradient by 3.4e-07 of its norm; the sampler's log-probs by at most 5.6e-06" in text
    assert "**Not to be quoted**: it was noisy." in text


def test_absolute_paths_do_not_reach_the_results():
    argv = ["/somewhere/benchmarks/vs_vllm.py", "--vllm-python", "/home/me/env/bin/python", "--rounds", "3"]
    assert command_line(argv) == "python benchmarks/vs_vllm.py --vllm-python python --rounds 3"


def test_a_broken_length_rule_is_refused():
    rule = Cell("tiny", 4, 6, num_prompts=1, group_size=2).rule()
    kept = {f"completions/{name}_length": 6.0 for name in ("mean", "min", "max")}
    check(rule, [kept, {"train_runtime": 1.0}])
    with pytest.raises(SystemExit, match="rule was not kept"):
        check(rule, [kept, {**kept, "completions/min_length": 5.0}])
    with pytest.raises(SystemExit, match="rule was not kept"):
        check(rule, [])


@pytest.mark.parametrize("name", list(vs_trl.CELLS))
def test_every_cell_fills_whole_micro_batches_and_keeps_its_limit(name):
    cell = vs_trl.CELLS[name]
    lengths = cell.rule().all_lengths()
    assert cell.num_rows % 8 == 0
    assert len(lengths) == cell.num_rows
    assert max(lengths) <= cell.num_completion_tokens
    assert cell.flop().training == 3 * cell.flop().rollout
    assert len({tuple(prompt) for prompt in cell.prompts()}) == cell.num_prompts


def test_growth_is_from_one_doubling_to_the_next():
    points = [
        {"axis": "P", "value": value, "contender": "gruppo", "runs": [{"seconds": s, "step_mib": s}]}
        for value, s in ((64, 1.0), (128, 1.5), (256, 3.0))
    ]
    points.append({**points[0], "axis": "G"})
    assert list(scaling.lines(points, "P")) == ["gruppo"]
    assert scaling.growth(scaling.lines(points, "P")["gruppo"], "seconds") == [1.5, 2.0]


def test_charts_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    draw_bars({"c": {"trl": spread([2.0, 3.0]), "gruppo": spread([1.0])}}, "s", tmp_path / "bars.png")
    draw_lines({"P": {"gruppo": {64: 1.0, 128: 1.5}}}, "s", tmp_path / "lines.png")
    for name in ("bars.png", "lines.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_rounds_are_added_on_the_same_commit_only(tmp_path, monkeypatch):
    now = {"commit": "b", "versions": {}, "threads": 2, "processor": "p", "command": "new", "load_at_start": 0.1}
    monkeypatch.setattr(vs_trl, "circumstances", lambda threads: dict(now))
    monkeypatch.setattr("sys.argv", ["vs_trl.py", "--append", "--results", str(tmp_path)])
    arguments = vs_trl.parse()
    assert vs_trl.start(arguments, tmp_path / "vs_trl")["cells"] == {}
    old = {**now, "command": "old", "load_at_start": 0.4, "cells": {"c": {"runs": {}}}, "gemm_rates": [1.0]}
    (tmp_path / "vs_trl.json").write_text(json.dumps(old))
    report = vs_trl.start(arguments, tmp_path / "vs_trl")
    assert (report["command"], report["load_at_start"], report["cells"]) == ("old; new", 0.4, {"c": {"runs": {}}})
    (tmp_path / "vs_trl.json").write_text(json.dumps({**old, "commit": "a"}))
    with pytest.raises(SystemExit, match="has commit a"):
        vs_trl.start(arguments, tmp_path / "vs_trl")


def test_a_round_counts_whole_or_not_at_all(monkeypatch):
    def worker(module, task, threads):
        if task["contender"] == "gruppo":
            raise SystemExit("broken off")
        return run(1.0)

    monkeypatch.setattr("sys.argv", ["vs_trl.py", "--contenders", "trl", "gruppo"])
    arguments, cell, runs = vs_trl.parse(), vs_trl.CELLS["small-64-64"], {}
    monkeypatch.setattr(vs_trl, "run_worker", worker)
    with pytest.raises(SystemExit, match="broken off"):
        vs_trl.one_round("c", cell, runs, arguments)
    assert runs == {}
    monkeypatch.setattr(vs_trl, "run_worker", lambda module, task, threads: run(1.0))
    vs_trl.one_round("c", cell, runs, arguments)
    vs_trl.one_round("c", cell, runs, arguments)
    assert {name: len(done) for name, done in runs.items()} == {"trl": 2, "gruppo": 2}
    arguments.contenders = ["gruppo"]
    with pytest.raises(SystemExit, match="same --contenders"):
        vs_trl.one_round("c", cell, runs, arguments)
