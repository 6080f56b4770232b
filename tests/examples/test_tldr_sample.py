"""The invented TL;DR posts: enough of them, all different, in the right format, and made by the committed script."""

import json
import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples" / "data"


def rows():
    return [json.loads(line) for line in (FOLDER / "tldr_sample.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_committed_rows_are_what_the_script_makes():
    assert runpy.run_path(str(FOLDER / "make_tldr_sample.py"))["make_rows"]() == rows()


def test_there_are_enough_rows_and_no_two_are_the_same():
    assert len(rows()) >= 200
    assert len({row["prompt"] for row in rows()}) == len(rows())
    assert len({row["completion"] for row in rows()}) > len(rows()) / 2


def test_every_row_has_the_format_of_the_real_dataset():
    for row in rows():
        assert row.keys() == {"prompt", "completion"}
        subreddit, title, post, cue = row["prompt"].split("\n\n")
        assert subreddit.startswith("SUBREDDIT: r/")
        assert title.startswith("TITLE: ")
        assert post.startswith("POST: ")
        assert cue == "TL;DR:"
        assert len(post.split()) > 60
        assert row["completion"][0] == " "
        assert 5 < len(row["completion"].split()) < 30
        assert "{" not in row["prompt"] + row["completion"]
