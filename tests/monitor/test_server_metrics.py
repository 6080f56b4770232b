"""The server's curves: the readers' rule, cursors, thinning, a file that grows, tears and is exchanged."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gruppo.monitor.readers import read_metrics
from gruppo.monitor.server.buckets import bucketed
from gruppo.monitor.server.metric_log import MetricLog, chosen_names
from gruppo.monitor.server.refusal import Refusal
from gruppo.monitor.server.store import Store
from monitor.server_runs import client_of, get, line, only_run, write_lines, write_run_json

# -- thinning

numbers = st.one_of(st.just(math.nan), st.floats(-1e12, 1e12))


@given(st.lists(numbers, min_size=1, max_size=200), st.integers(2, 50))
def test_thinning_keeps_extremes_and_means(values: list[float], max_points: int) -> None:
    series = np.array(values)
    answer = bucketed(np.arange(len(values)), {"x": series}, max_points)
    points = answer["series"]["x"]
    assert len(answer["steps"]) == len(points["mean"]) <= max_points
    known = [value for value in values if not math.isnan(value)]
    low, high = points.get("min", points["mean"]), points.get("max", points["mean"])
    kept_low, kept_high = [v for v in low if v is not None], [v for v in high if v is not None]
    assert bool(kept_low) == bool(known)
    if known:
        assert min(kept_low) == pytest.approx(min(known), rel=1e-5, abs=1e-2)
        assert max(kept_high) == pytest.approx(max(known), rel=1e-5, abs=1e-2)
    for first, last, mean in zip(
        answer["steps"], answer.get("last_steps", answer["steps"]), points["mean"], strict=True
    ):
        inside = [value for value in values[first : last + 1] if not math.isnan(value)]
        assert (mean is None) == (not inside)
        if inside:
            assert mean == pytest.approx(math.fsum(inside) / len(inside), rel=1e-4, abs=1.0)


@given(st.integers(1, 500), st.integers(2, 50))
def test_buckets_cover_every_step_once(num_rows: int, max_points: int) -> None:
    steps = np.arange(10, 10 + num_rows)
    answer = bucketed(steps, {}, max_points)
    firsts, lasts = answer["steps"], answer.get("last_steps", answer["steps"])
    covered = [step for first, last in zip(firsts, lasts, strict=True) for step in range(first, last + 1)]
    assert covered == steps.tolist()


def test_numbers_are_strict_json_of_six_digits() -> None:
    values = np.array([1 / 3, 1e6 / 3, 2.0, np.inf, np.nan, 1795339111.1956382, 123456789012.0])
    points = bucketed(np.arange(7), {"x": values}, 100)["series"]["x"]["mean"]
    assert points == [0.333333, 333333.33, 2, None, None, 1795339111.2, 123456789012]
    json.dumps(points, allow_nan=False)


# -- the readers' rule

lines_of_a_file = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from(["train", "train", "train", "eval", "eval_b"]), st.integers(1, 3)),
    max_size=25,
)


def file_with(folder: Path, rows: list[tuple[int, str, int]], name: str = "x") -> Path:
    path = folder / "metrics.jsonl"
    path.unlink(missing_ok=True)
    write_lines(path, [line(step, attempt, split, **{name: i}) for i, (step, split, attempt) in enumerate(rows)])
    return path


@settings(max_examples=150, deadline=None)
@given(lines_of_a_file, st.integers(60, 2000))
def test_rows_are_those_that_readers_keep(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, int]], max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    if rows:
        file_with(folder, rows)
    log = MetricLog(folder, max_bytes)
    while not log.refresh():
        pass
    for split in ("train", "eval", "eval_b"):
        wanted = [(r["step"], r["x"]) for r in read_metrics(folder, split)]
        found = log.columns(["x"], split)
        assert list(zip(found["step"].tolist(), found["x"].tolist(), strict=True)) == wanted


@settings(max_examples=100, deadline=None)
@given(lines_of_a_file, st.lists(st.integers(1, 25), max_size=6))
def test_a_client_that_follows_the_cursor_has_what_a_new_client_gets(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, int]], cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    log, cursor = MetricLog(folder), None
    held: list[tuple[int, float]] = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(rows)], strict=True):
        new = [line(step, attempt, split, x=i + start) for i, (step, split, attempt) in enumerate(rows[start:end])]
        write_lines(folder / "metrics.jsonl", new)
        answer = log.answer("train", ["x"], cursor=cursor)
        cursor = answer["cursor"]
        points = list(zip(answer["steps"], answer["series"].get("x", {"mean": []})["mean"], strict=True))
        held = points if answer["reset"] else held + points
    assert held == [(r["step"], r["x"]) for r in read_metrics(folder)]


def test_the_cursor_outlives_the_server(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [line(s, x=s) for s in (1, 2)])
    cursor = MetricLog(tmp_path).answer("train", ["x"])["cursor"]
    write_lines(tmp_path / "metrics.jsonl", [line(3, x=3)])
    answer = MetricLog(tmp_path).answer("train", ["x"], cursor=cursor)
    assert (answer["reset"], answer["steps"]) == (False, [3])
    assert "names" not in answer


def test_a_resumed_run_resets_the_client(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [line(s, x=s) for s in (1, 2, 3)])
    log = MetricLog(tmp_path)
    cursor = log.answer("train", ["x"])["cursor"]
    write_lines(tmp_path / "metrics.jsonl", [line(2, attempt=2, x=20)])
    answer = log.answer("train", ["x"], cursor=cursor)
    assert answer["reset"]
    assert answer["series"]["x"]["mean"] == [1, 20]
    assert answer["attempts"] == [
        {"attempt": 1, "first": 1, "last": 1},
        {"attempt": 2, "first": 2, "last": 2},
    ]


def test_an_exchanged_file_resets_the_client(tmp_path: Path) -> None:
    path = file_with(tmp_path, [(s, "train", 1) for s in range(5)])
    log = MetricLog(tmp_path)
    cursor = log.answer("train", ["x"])["cursor"]
    path.write_text("")
    write_lines(path, [line(1, time=5.0, y=7)])
    answer = log.answer("train", ["*"], cursor=cursor)
    assert answer["reset"]
    assert answer["names"] == ["time", "y"]
    assert answer["series"]["y"]["mean"] == [7]


# -- a file that is being written, and strange ones


def test_a_torn_line_waits_and_a_broken_one_is_passed_over(tmp_path: Path) -> None:
    path = file_with(tmp_path, [(1, "train", 1)])
    log = MetricLog(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"step": 2, "split": "tr')
    assert log.answer("train", [])["num_rows"] == 1
    with path.open("ab") as file:
        file.write(
            b'ain", "attempt": 1}\n{"step": 3, "spl\n[1]\n\xff\xfe\n{"step": 4, "split": "train", "attempt": 1}\n'
        )
    assert log.answer("train", [])["steps"] == [1, 2, 4]


@pytest.mark.parametrize(
    "text",
    [
        '{"step": "1", "split": "train", "attempt": 1}',
        '{"step": -1, "split": "train", "attempt": 1}',
        '{"step": 1.5, "split": "train", "attempt": 1}',
        '{"step": true, "split": "train", "attempt": 1}',
        '{"step": 1, "split": 5, "attempt": 1}',
        '{"step": 1, "split": "train"}',
        "[" * 100_000,
        '{"step": 1' + "0" * 5000 + "}",
        "null",
    ],
    ids=range(9),
)
def test_lines_that_are_no_metrics_are_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text + "\n")
    assert MetricLog(tmp_path).answer("train", ["*"])["num_rows"] == 0


def test_values_that_are_no_numbers_are_null(tmp_path: Path) -> None:
    values = 'NaN, "b": Infinity, "c": 1e999, "d": "text", "e": null, "f": true, "g": [1], "h": 1' + "0" * 400
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "split": "train", "attempt": 1, "a": {values}}}\n')
    answer = MetricLog(tmp_path).answer("train", ["*"])
    assert {name: series["mean"] for name, series in answer["series"].items() if series["mean"] != [None]} == {"f": [1]}
    json.dumps(answer, allow_nan=False)


def test_a_large_file_is_read_in_slices(tmp_path: Path) -> None:
    file_with(tmp_path, [(s, "train", 1) for s in range(1, 201)])
    log = MetricLog(tmp_path, max_bytes_per_call=4000)
    answer = log.answer("train", ["x"], max_points=1000)
    steps, num_answers = answer["steps"], 1
    assert not answer["complete"]
    while not answer["complete"]:
        answer = log.answer("train", ["x"], cursor=answer["cursor"], max_points=1000)
        steps, num_answers = steps + answer["steps"], num_answers + 1
    assert steps == list(range(1, 201))
    assert num_answers > 2


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    answer = MetricLog(tmp_path).answer("train", ["x"])
    assert (answer["num_rows"], answer["complete"], answer["names"]) == (0, True, [])


def test_names_are_chosen_exactly_or_by_prefix() -> None:
    names = ["a", "b/x", "b/y", "c"]
    assert chosen_names(names, ["c", "b/*", "c", "nothing", "b"]) == ["c", "b/x", "b/y"]
    assert chosen_names(names, ["*"]) == names
    assert len(chosen_names([f"n{i}" for i in range(500)], ["*"])) == 200


@pytest.mark.parametrize("cursor", ["", "0", "-1", "0-0", "0-0-0-0", "../..", "zz-0-0", "0-0-99999999999999999"])
def test_a_made_up_cursor_is_refused(tmp_path: Path, cursor: str) -> None:
    with pytest.raises(Refusal, match="send the cursor of the answer before"):
        MetricLog(tmp_path).answer("train", [], cursor=cursor)


# -- over HTTP


def test_zoom_and_keys(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "r" / "metrics.jsonl", [line(s, reward=s, **{"rewards/a/mean": s * 2}) for s in range(1, 11)]
    )
    with client_of(tmp_path) as client:
        parameters = {"keys": ["rewards/*", "nothing"], "from": 3, "to": 5}
        answer = get(client, f"{only_run(client)}/metrics", **parameters)
    assert answer["steps"] == [3, 4, 5]
    assert answer["series"] == {"rewards/a/mean": {"mean": [6, 8, 10]}}


def test_live_append(tmp_path: Path) -> None:
    run = tmp_path / "r"
    write_run_json(run)
    with client_of(tmp_path) as client:
        path = f"{only_run(client)}/metrics"
        answer = get(client, path, keys="reward")
        for step in range(1, 6):
            write_lines(run / "metrics.jsonl", [line(step, reward=step)])
            before = answer
            answer = get(client, path, keys="reward", cursor=answer["cursor"])
            assert answer["reset"] == (step == 1), "the first line gives the file its fingerprint"
            assert answer["steps"] == [step]
            assert answer["cursor"] != before["cursor"]


def test_evals_have_their_own_axis_and_their_best(tmp_path: Path) -> None:
    lines = [line(10, split="eval", eval_reward=0.5), line(20, split="eval", eval_reward=0.5), line(21, reward=1.0)]
    lines += [line(20, split="eval_b", eval_b_loss=1.0)]
    write_lines(tmp_path / "r" / "metrics.jsonl", lines)
    with client_of(tmp_path) as client:
        answer = get(client, f"{only_run(client)}/evals")
    assert answer["splits"]["eval"]["best"] == {"step": 10, "reward": 0.5}
    assert answer["splits"]["eval"]["series"]["reward"] == {"mean": [0.5, 0.5]}
    assert answer["splits"]["eval_b"]["best"] is None
    assert set(answer["splits"]) == {"eval", "eval_b"}


def test_curves_of_many_runs_stay_within_their_budget(tmp_path: Path) -> None:
    for name in "abcdef":
        write_lines(tmp_path / name / "metrics.jsonl", [line(s, reward=s) for s in range(1, 101)])
    one = 100 * 5 * 8
    store = Store(tmp_path, max_metric_bytes=2 * one)
    with client_of(tmp_path, store) as client:
        for _ in range(2):
            for run in get(client, "runs")["runs"]:
                answer = get(client, f"runs/{run['id']}/metrics", keys="reward")
                assert (answer["num_rows"], answer["reset"]) == (100, True)
                assert store._logs.num_bytes <= 3 * one


@pytest.mark.slow
def test_a_run_of_100_000_steps(tmp_path: Path) -> None:
    names = [f"metric/{i}" for i in range(4)]
    curated = ["reward", "reward_std", "entropy", "kl", "grad_norm", "completions/mean_length", "loss", "step_time"]
    rng = np.random.default_rng(0)
    run = tmp_path / "long"
    write_run_json(run, max_steps=100_000)
    for start in range(0, 100_000, 10_000):
        values = rng.normal(size=(10_000, 12))
        keys = [*curated, *names]
        write_lines(
            run / "metrics.jsonl",
            [line(start + i + 1, **dict(zip(keys, row.tolist(), strict=True))) for i, row in enumerate(values)],
        )
    with client_of(tmp_path) as client:
        path, size = only_run(client), 0
        complete = False
        while not complete:
            summary = client.get(f"/api/{path}")
            curves = client.get(f"/api/{path}/metrics", params={"keys": curated})
            complete = curves.json()["complete"] and summary.json()["complete"]
        size = len(summary.content) + len(curves.content)
        assert summary.json()["latest"]["step"] == 100_000
        assert curves.json()["num_rows"] == 100_000
        assert size < 300_000, "the Overview: summary and eight curves"
        again = client.get(f"/api/{path}/metrics", params={"keys": curated, "cursor": curves.json()["cursor"]})
        assert len(again.content) < 2000
