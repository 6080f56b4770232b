"""Completions over HTTP: groups, tables, texts, tokens, the same prompt again; parts that come, go and break."""

import json
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from gruppo.monitor.server.parts import contains, read_numbers, read_texts
from gruppo.monitor.server.rounds import CompletionId, Rounds, concatenated
from gruppo.monitor.server.store import Store
from monitor.server_runs import client_of, get, line, only_run, row, two_groups, write_lines, write_part, write_run_json

VIEWS = (
    "steps/1/groups",
    "steps/1/groups/1",
    "rollouts",
    "rollouts/1.1.0.train",
    "rollouts/1.1.0.train/text",
    "prompts/1/history",
    "rewards",
)
"""Every view of the completions of group 1 at step 1."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "r"
    write_run_json(run, loss_type="dapo", beta=0.0)
    return run


def ask(run: Path, path: str, **parameters: Any) -> dict[str, Any]:
    with client_of(run.parent) as client:
        return get(client, f"{only_run(client)}/{path}", **parameters)


# -- groups


def test_groups_of_a_step(run: Path) -> None:
    write_part(run, two_groups(4))
    write_part(run, [row(4, 3, 0, reward=0.0), row(4, 3, 1, reward=0.0)], "part-r1-a1")
    write_part(run, [row(4, 5, 0, reward=None), row(4, 5, 1, reward=None)], "part-r2-a1")
    answer = ask(run, "steps/4/groups")
    assert [(g["group_id"], g["kind"]) for g in answer["groups"]] == [
        (7, "mixed"),
        (5, "unscored"),
        (3, "failed"),
        (9, "solved"),
    ]
    mixed = answer["groups"][0]
    assert mixed["ids"] == ["4.7.0.train", "4.7.1.train"]
    assert mixed["terms"] == {"exact": [0.0, 1.0], "format": [None, None]}
    assert mixed["prompt"] == {"format": "text", "text": "prompt 7", "num_chars": 8, "next_offset": None}
    assert mixed["previews"] == ["answer 4 7 0", "answer 4 7 1"]
    assert answer["reward_weights"] == [1.0, 0.5]
    assert (answer["totals"]["reward_mean"], answer["totals"]["num_mixed"]) == (0.5, 1)


def test_groups_with_failing_reward_functions_come_first(run: Path) -> None:
    faulty = {"reward_status/exact": "error", "reward/exact": None}
    write_part(run, [*two_groups(1), row(1, 20, 0, group_std=0.0, **faulty), row(1, 20, 1, group_std=0.0)])
    answer = ask(run, "steps/1/groups")
    assert [g["group_id"] for g in answer["groups"]] == [20, 7, 9]
    assert answer["totals"]["num_faults"] == 1


@pytest.mark.parametrize(
    ("sort", "order"), [("group_id", [7, 8, 9]), ("-group_id", [9, 8, 7]), ("mean", [7, 9, 8]), ("-std", [7, 9, 8])]
)
def test_groups_are_sorted_with_missing_values_last(run: Path, sort: str, order: list[int]) -> None:
    write_part(run, [*two_groups(1), row(1, 8, 0, group_mean=None, group_std=None)])
    assert [g["group_id"] for g in ask(run, "steps/1/groups", sort=sort)["groups"]] == order


def test_groups_are_paged(run: Path) -> None:
    write_part(run, [row(1, group_id, 0) for group_id in range(25)])
    answer = ask(run, "steps/1/groups", sort="group_id", per_page=10, page=3)
    assert [g["group_id"] for g in answer["groups"]] == [20, 21, 22, 23, 24]
    assert (answer["num_groups"], answer["num_pages"]) == (25, 3)


def test_a_step_between_rounds_shows_the_round_that_fed_it(run: Path) -> None:
    for step in (2, 6, 9):
        write_part(run, two_groups(step))
    answer = ask(run, "steps/7/groups")
    assert [answer[name] for name in ("step", "round_step", "is_exact", "previous", "next")] == [7, 6, False, 2, 9]
    with client_of(run.parent) as client:
        assert client.get(f"/api/{only_run(client)}/steps/1/groups").status_code == 404


def test_one_group_whole(run: Path) -> None:
    write_part(run, two_groups(4, completion="x" * 30_000))
    write_lines(run / "metrics.jsonl", [line(4, loss=0.5, kl=None, grad_norm=2.0)])
    answer = ask(run, "steps/4/groups/7")
    assert (answer["previous"], answer["next"], answer["kind"]) == (None, 9, "mixed")
    assert answer["columns"]["text"] == '{"answer": "4"}'
    first = answer["completions"][0]
    assert (len(first["completion"]["text"]), first["completion"]["num_chars"]) == (20_000, 30_000)
    assert first["completion"]["next_offset"] == 20_000
    assert first["terms"][1] == {"name": "format", "value": None, "status": "none", "weight": 0.5}
    assert {"loss_type": "dapo", "loss": 0.5, "kl": None, "grad_norm": 2.0}.items() <= answer["loss"].items()


# -- the table


def ids(answer: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in answer["rows"]]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["reward:lt:0.5"], ["1.7.0.train"]),
        (["reward:ge:1"], ["1.7.1.train", "1.9.0.train", "1.9.1.train"]),
        (["sample:eq:1", "group_id:ne:9"], ["1.7.1.train"]),
        (["completion:has:ANSWER 1 9 0"], ["1.9.0.train"]),
        (["prompt:has:mpt 7"], ["1.7.0.train", "1.7.1.train"]),
        (["reward_status/format:eq:none", "sample:le:0"], ["1.7.0.train", "1.9.0.train"]),
        (["finish_reason:ne:stop"], []),
        (["reward/format:null:false"], []),
        (["reward/format:null:true", "group_id:gt:7"], ["1.9.0.train", "1.9.1.train"]),
        (["extra/parsed:has:SEVEN"], ["1.7.0.train", "1.7.1.train"]),
        (["extra/parsed:null:true"], ["1.9.0.train", "1.9.1.train"]),
        (["completion:null:true"], []),
    ],
)
def test_filters(run: Path, filters: list[str], found: list[str]) -> None:
    rows = [entry | {"extra/parsed": "is seven" if entry["group_id"] == 7 else None} for entry in two_groups(1)]
    write_part(run, rows, parsed=pa.string())
    assert ids(ask(run, "rollouts", filter=filters)) == found


def test_a_round_that_feeds_several_steps_is_found_behind_an_evaluation(run: Path) -> None:
    write_part(run, two_groups(19))
    write_part(run, [row(20, 1, 0, split="eval")], "part-eval-r0-a1")
    write_part(run, two_groups(21))
    answer = ask(run, "steps/20/groups")
    names = ("round_step", "is_exact", "num_groups", "splits", "previous", "next")
    assert [answer[name] for name in names] == [19, False, 2, ["eval", "train"], None, 21]
    assert ask(run, "steps/20/groups/7")["step"] == 19
    evaluation = ask(run, "steps/20/groups", split="eval")
    assert [evaluation[name] for name in names[:3]] == [20, True, 1]


def test_before_the_first_round_there_is_nothing_to_train_on(run: Path) -> None:
    write_part(run, [row(0, 1, 0, split="eval")], "part-eval-r0-a1")
    with client_of(run.parent) as client:
        assert client.get(f"/api/{only_run(client)}/steps/0/groups").status_code == 404
        assert get(client, f"{only_run(client)}/steps/0/groups", split="eval")["num_groups"] == 1


def test_sorting_paging_and_splits(run: Path) -> None:
    write_part(run, [row(3, 1, sample, reward=[0.5, None, 0.9][sample]) for sample in range(3)])
    write_part(run, [row(3, 1, 0, split="eval_ü/b", reward=0.7)], "part-eval-r0-a1")
    assert ids(ask(run, "rollouts", sort="-reward", split="train")) == ["3.1.2.train", "3.1.0.train", "3.1.1.train"]
    answer = ask(run, "rollouts", split="eval_ü/b")
    assert (answer["num_rows"], answer["rows"][0]["split"]) == (1, "eval_ü/b")
    page = ask(run, "rollouts", sort="sample", per_page=3, page=2)
    assert (page["num_rows"], page["num_pages"], len(page["rows"])) == (4, 2, 1)
    one = ask(run, f"rollouts/{ids(answer)[0]}")
    assert (one["split"], one["reward"]) == ("eval_ü/b", 0.7)


def test_a_range_is_read_newest_first_within_a_budget(run: Path) -> None:
    for step in range(1, 71):
        write_part(run, [row(step, 1, 0)])
    with client_of(run.parent) as client:
        path = f"{only_run(client)}/rollouts"
        assert ids(get(client, path)) == ["70.1.0.train"]
        answer = get(client, path, **{"from": 3})
        assert (answer["from"], answer["to"], answer["num_rows"], answer["next_to"]) == (7, 70, 64, 6)
        rest = get(client, path, **{"from": 3, "to": answer["next_to"]})
        assert (rest["from"], rest["to"], rest["num_rows"], rest["next_to"]) == (3, 6, 4, None)


def test_a_run_without_rollouts(run: Path) -> None:
    assert ask(run, "rollouts")["rows"] == []
    assert ask(run, "rewards")["num_rows"] == 0
    assert ask(run, "prompts/7/history")["visits"] == []


# -- one completion, long and strange texts


def test_one_completion_and_its_siblings(run: Path) -> None:
    write_part(run, two_groups(2))
    answer = ask(run, "rollouts/2.7.1.train")
    assert (answer["siblings"], answer["previous"], answer["next"]) == (
        ["2.7.0.train", "2.7.1.train"],
        "2.7.0.train",
        None,
    )
    assert answer["completion"] == {"text": "answer 2 7 1", "num_chars": 12, "next_offset": None}
    with client_of(run.parent) as client:
        for wrong in ("2.7.5.train", "9.7.1.train", "2.7.1.eval", "2.7.1", "x", "2.7.1.train.parquet"):
            assert client.get(f"/api/{only_run(client)}/rollouts/{wrong}").status_code == 404


def test_ten_megabytes_come_in_pieces(run: Path) -> None:
    text = "0123456789" * 1_000_000 + "end😀"
    write_part(run, [row(1, 1, 0, completion=text), row(1, 1, 1)])
    with client_of(run.parent) as client:
        path = only_run(client)
        for small in ("steps/1/groups", "steps/1/groups/1", "rollouts", "rollouts/1.1.0.train", "prompts/1/history"):
            assert len(client.get(f"/api/{path}/{small}").content) < 30_000
        one = get(client, f"{path}/rollouts/1.1.0.train")["completion"]
        assert (one["num_chars"], one["next_offset"]) == (10_000_004, 20_000)
        piece = get(client, f"{path}/rollouts/1.1.0.train/text", offset=9_999_998, limit=200_000)
        assert (piece["text"], piece["next_offset"]) == ("89end😀", None)
        beyond = get(client, f"{path}/rollouts/1.1.0.train/text", offset=10**9)
        assert (beyond["text"], beyond["next_offset"]) == ("", None)


STRANGE = [
    "<script>alert(1)</script>",
    "\u202eesrever\u2066",
    "nul \x00 esc \x1b[31m",
    "line\u2028separator\x85",
    "a" + "\u0301" * 1000,
    "\ufeff",
    '"}\n{"',
    "",
]


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_texts_arrive_unchanged(run: Path, text: str) -> None:
    write_part(run, [row(1, 1, 0, completion=text, prompt=text, **{"extra/x": text[:300]})], x=pa.string())
    answer = ask(run, "rollouts/1.1.0.train")
    assert (answer["completion"]["text"], answer["prompt"]["text"], answer["extras"]["x"]) == (text, text, text[:300])


def test_numbers_that_json_cannot_say_are_null(run: Path) -> None:
    write_part(run, [row(1, 1, 0, reward=float("nan"), advantage=float("inf"), **{"reward/exact": float("-inf")})])
    with client_of(run.parent) as client:
        for path in VIEWS:
            text = client.get(f"/api/{only_run(client)}/{path}").text
            assert "error" not in json.loads(text, parse_constant=pytest.fail), path


# -- tokens


def write_tokens(run: Path, step: int, rows: list[dict[str, Any]]) -> None:
    path = run / "tokens" / f"step-{step:06d}" / "part-r0-a1.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    types = {"step": pa.int32(), "split": pa.string(), "group_id": pa.int64(), "sample": pa.int32()}
    types |= {
        "completion_ids": pa.list_(pa.int32()),
        "text_offsets": pa.list_(pa.int32()),
        "delta": pa.list_(pa.float16()),
    }
    halves = [entry | {"delta": [np.float16(value) for value in entry["delta"]]} for entry in rows]
    pq.write_table(pa.Table.from_pylist(halves, schema=pa.schema(list(types.items()))), path)


def test_tokens_of_a_selected_completion(run: Path) -> None:
    write_part(run, [row(1, 7, 0, completion="ab😀cd"), row(1, 7, 1)])
    tokens = {"completion_ids": [5, 6, 7], "text_offsets": [0, 2, 3], "delta": [0.5, float("nan"), -1.0]}
    write_tokens(run, 1, [{"step": 1, "split": "train", "group_id": 7, "sample": 0} | tokens])
    answer = ask(run, "tokens/1.7.0.train")
    assert (answer["num_tokens"], answer["next_offset"], answer["text"]) == (3, None, "ab😀cd")
    assert answer["columns"] == tokens | {"delta": [0.5, None, -1.0]}
    part = ask(run, "tokens/1.7.0.train", offset=1, limit=1)
    assert (part["text"], part["text_offset"], part["next_offset"]) == ("😀", 2, 2)
    assert part["columns"]["completion_ids"] == [6]
    assert ask(run, "rollouts/1.7.0.train")["has_tokens"]
    assert not ask(run, "rollouts/1.7.1.train")["has_tokens"]
    with client_of(run.parent) as client:
        response = client.get(f"/api/{only_run(client)}/tokens/1.7.1.train")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "no_tokens")
    assert "was not among those selected" in response.text


def test_without_token_parts_the_reason_is_said(run: Path) -> None:
    write_part(run, two_groups(1))
    with client_of(run.parent) as client:
        response = client.get(f"/api/{only_run(client)}/tokens/1.7.1.train")
    assert response.status_code == 404
    assert "none were recorded for this step" in response.json()["error"]["message"]


# -- the same prompt, and rewards over rounds


def test_history_of_a_prompt_newest_first(run: Path) -> None:
    for step in range(1, 31):
        write_part(run, [row(step, step % 3, sample) for sample in (0, 1)])
    with client_of(run.parent) as client:
        path = f"{only_run(client)}/prompts/1/history"
        answer = get(client, path, limit=4)
        assert [visit["step"] for visit in answer["visits"]] == [28, 25, 22, 19]
        assert answer["prompt"]["text"] == "prompt 1"
        rest = get(client, path, limit=100, before=answer["next_before"])
        assert [visit["step"] for visit in rest["visits"]] == [16, 13, 10, 7, 4, 1]
        assert rest["next_before"] is None


def test_shares_and_correlations_of_rewards(run: Path) -> None:
    # exact makes 1·1·(r - mean), format 0.5·... : in this group the reward is exact + 0.5·format.
    exact, formats = [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]
    rows = [
        row(1, 7, i, reward=e + 0.5 * f, n_completion=10 * (i + 1), **{"reward/exact": e, "reward/format": f})
        for i, (e, f) in enumerate(zip(exact, formats, strict=True))
    ]
    write_part(run, rows)
    write_part(run, [row(2, 7, i, reward=1.0, **{"reward/exact": 1.0, "reward/format": 0.0}) for i in range(4)])
    answer = ask(run, "rewards")
    assert answer["shares"] == {"exact": 0.8, "format": 0.2}
    assert answer["by_round"] == {"steps": [1, 2], "shares": {"exact": [0.8, None], "format": [0.2, None]}}
    first = ask(run, "rewards", to=1)
    assert (first["rounds"], first["num_rows"]) == ([1], 4)
    matrix = first["correlations"]["matrix"]
    assert first["correlations"]["names"] == ["reward", "length", "exact", "format"]
    assert (matrix[0][0], matrix[2][3], matrix[0][2]) == (1.0, 0.0, pytest.approx(2 / 5**0.5, abs=1e-6))
    assert ask(run, "rewards", max_rows=3)["num_used"] == 3


# -- parts that come, go and break


def test_a_broken_part_is_counted_and_the_rest_is_shown(run: Path) -> None:
    write_part(run, two_groups(1))
    (run / "rollouts" / "step-000001" / "part-r1-a1.parquet").write_bytes(b"PAR1 not really")
    (run / "rollouts" / "step-000001" / ".part-r2-a1.parquet.tmp").write_bytes(b"half")
    for path in ("steps/1/groups", "rollouts"):
        answer = ask(run, path)
        assert answer["unreadable_parts"] == 1
        assert answer.get("num_completions", answer.get("num_rows")) == 4


def test_a_part_that_appears_is_seen_and_one_that_goes_is_forgotten(run: Path) -> None:
    store = Store(run.parent)
    write_part(run, two_groups(1))
    assert store.rounds.steps(run).tolist() == [1]
    second = write_part(run, [row(1, 20, 0)], "part-r1-a1")
    write_part(run, two_groups(2))
    assert store.rounds.read(run, 1).table.num_rows == 5
    assert store.rounds.steps(run).tolist() == [1, 2]
    second.unlink()
    assert store.rounds.read(run, 1).table.num_rows == 4
    (run / "rollouts" / "step-000002").rename(run / "step-000002")
    assert store.rounds.steps(run).tolist() == [1]


def test_a_part_that_vanishes_while_it_is_read_is_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_part(run, two_groups(1))

    def vanish(_: Path) -> pa.Table:
        path.unlink()
        return read_numbers(path)

    monkeypatch.setattr("gruppo.monitor.server.rounds.read_numbers", vanish)
    found = Rounds().read(run, 1)
    assert (found.table.num_rows, found.num_unreadable) == (0, 0)


def test_a_run_that_is_being_written_is_read_without_an_error(run: Path) -> None:
    def write() -> None:
        for step in range(1, 61):
            write_part(run, two_groups(step))
            write_lines(run / "metrics.jsonl", [line(step, reward=float(step))])
            if step % 20 == 0:  # an attempt from an earlier step: parts move away
                (run / "superseded").mkdir(exist_ok=True)
                (run / "rollouts" / f"step-{step:06d}").rename(run / "superseded" / f"step-{step:06d}")

    writer = Thread(target=write)
    with client_of(run.parent) as client:
        path, cursor = only_run(client), None
        writer.start()
        while writer.is_alive():
            answer = get(client, f"{path}/metrics", keys="reward", **({"cursor": cursor} if cursor else {}))
            cursor = answer["cursor"]
            for view in ("", "/rollouts?from=0", "/rewards", "/prompts/7/history", "/events", "/health"):
                assert client.get(f"/api/{path}{view}").status_code == 200
            newest = get(client, f"{path}/rollouts")["rows"]
            if newest:
                response = client.get(f"/api/{path}/rollouts/{newest[0]['id']}")
                assert response.status_code in (200, 404), "404: it moved away between the two requests"
        writer.join()
        assert get(client, f"{path}/metrics")["num_rows"] == 60
        assert get(client, path)["rollouts"] == {"first": 1, "last": 59, "count": 57}


def test_a_column_may_turn_from_numbers_into_text(run: Path) -> None:
    numbers = write_part(run, [row(1, 1, 0, **{"extra/x": 1.5})], x=pa.float64())
    texts = write_part(run, [row(1, 1, 1, **{"extra/x": "two"})], "part-r1-a1", x=pa.string())
    table = concatenated([read_numbers(numbers), read_numbers(texts)])
    assert table["extra/x"].to_pylist() == ["1.5", "two"]
    assert [entry["extras"] for entry in ask(run, "rollouts")["rows"]] == [{"x": "1.5"}, {"x": "two"}]


def test_parts_of_older_columns_are_enough(run: Path) -> None:
    path = run / "rollouts" / "step-000001" / "part-r0-a1.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"step": [1, 1], "split": ["train"] * 2, "group_id": [1, 1], "sample": [0, 1]}), path)
    for name in VIEWS:
        ask(run, name)


def test_texts_and_numbers_of_a_part(tmp_path: Path) -> None:
    path = write_part(tmp_path, [row(1, 1, i, completion="äöü" * i) for i in range(50)])
    table = read_numbers(path)
    assert "completion" not in table.column_names
    assert table["num_chars/completion"].to_pylist() == [3 * i for i in range(50)]
    pieces = read_texts(path, "completion", [40, 2, 0], limit=4, offset=1)
    assert {number: piece.text for number, piece in pieces.items()} == {0: "", 2: "öüäö", 40: "öüäö"}
    assert pieces[40].next_offset == 5
    assert contains(path, "completion", "ÜÄ").sum() == 48


def test_caches_stay_within_their_budget(run: Path) -> None:
    for step in range(1, 41):
        write_part(run, two_groups(step))
    one = Rounds().read(run, 1).table.nbytes
    rounds = Rounds(max_part_bytes=5 * one)
    with client_of(run.parent, Store(run.parent, rounds=rounds)) as client:
        path = only_run(client)
        for step in range(1, 41):
            get(client, f"{path}/steps/{step}/groups")
        assert 0 < rounds.num_bytes < 7 * one


def test_ids_name_splits_of_any_letters() -> None:
    assert str(CompletionId(12, 7, 3, "train")) == "12.7.3.train"
    assert str(CompletionId(12, -1, 3, "eval_a/b")) == "12.-1.3.~6576616c5f612f62"


def test_pages_answer_while_parts_are_missing(client_path: tuple[TestClient, str]) -> None:
    client, path = client_path
    assert client.get(f"/api/{path}/steps/99/groups/7").status_code == 200
    assert client.get(f"/api/{path}/steps/99/groups/8").status_code == 404


@pytest.fixture
def client_path(run: Path):  # type: ignore[no-untyped-def]
    write_part(run, two_groups(2))
    with client_of(run.parent) as client:
        yield client, only_run(client)
