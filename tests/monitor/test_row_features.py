"""Columns of rollouts that are computed after sampling: the same numbers as the health checks, and why rows drop."""

import pytest
import torch

from gruppo.monitor.health.rows import Rows
from gruppo.monitor.health.text_features import TEXT_COLUMNS
from gruppo.monitor.readers import read_rollouts
from gruppo.monitor.recorder import TokenSettings
from gruppo.monitor.row_features import MIN_VOCABULARY, drop_columns, feature_columns
from gruppo.types import Completion, Group, Prompt, RewardTable
from monitor import monitor_fakes as fakes

LOOP = "so it is that " * 40
TEXTS = [
    "The answer is four, as every child knows.",
    LOOP,
    " The answer is four,  as every child knows.",
    "Ответ четыре, это знает каждый ребёнок.",
]


def recorded(folder, texts, **settings):
    prompt = Prompt(3, [{"role": "user", "content": "What is two and two?"}], [1, 2])
    group = Group(prompt, [fakes.completion(sample, text) for sample, text in enumerate(texts)])
    table = RewardTable(["r"], torch.zeros(len(texts), 1), [["ok"]] * len(texts))
    recorder = fakes.make_recorder(folder, **settings)
    recorder.record_rollouts(1, "train", [group], table, None, policy_version=0)
    recorder.close()
    return read_rollouts(folder)


def test_the_columns_are_what_the_checks_compute(tmp_path):
    table = recorded(tmp_path, TEXTS).to_pydict()
    plain = {name: table[name] for name in ("prompt", "prompt_format", "completion", "group_id", "sample")}
    rows = Rows(plain, 1)
    for name in TEXT_COLUMNS:
        assert table[name] == rows.column(name), name
    assert table["rep4_tail"][1] > 0.8
    assert table["zlib_tail"][1] > 8
    assert table["dup_of"] == [None, None, 0, None]
    assert table["script_share"] == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("vocab_size", "logprobs", "share"),
    [
        (MIN_VOCABULARY, [-0.1, -20.0], 0.5),
        (MIN_VOCABULARY, [-0.1, -1.0], 0.0),
        (MIN_VOCABULARY, None, None),
        (MIN_VOCABULARY - 1, [-0.1, -20.0], None),
        (None, [-0.1, -20.0], None),
    ],
)
def test_gibberish_needs_log_probs_and_a_real_vocabulary(vocab_size, logprobs, share):
    columns = {"prompt": ["a"], "prompt_format": ["text"], "completion": ["b"], "group_id": [0], "sample": [0]}
    completion = Completion(0, [5, MIN_VOCABULARY - 1], "stop", logprobs)
    assert feature_columns(columns, [completion], vocab_size)["gibberish_share"] == [share]


def test_the_recorder_knows_the_vocabulary(tmp_path):
    settings = TokenSettings(budget=0, decode=str, vocab_size=5000)
    assert recorded(tmp_path, TEXTS, tokens=settings)["gibberish_share"].to_pylist() == [None] * 4  # no log-probs


def test_why_rows_drop():
    completions = [
        Completion(0, [1, 2], "stop"),
        Completion(1, [1, 2], "length"),
        Completion(2, [1, 2], "abort"),
        Completion(3, [], "length"),
        Completion(4, [1, 2], "stop", trained=[False, False]),
        Completion(5, [1, 2], "stop", trained=[False, True]),
    ]
    assert drop_columns(completions, True) == {
        "used": [True, False, False, False, False, True],
        "drop_reason": [None, "truncated", "truncated", "no_tokens", "no_tokens", None],
    }
    assert drop_columns(completions, False)["drop_reason"] == [None, None, None, "no_tokens", "no_tokens", None]
    assert drop_columns(completions, None) == {"used": [None] * 6, "drop_reason": [None] * 6}
