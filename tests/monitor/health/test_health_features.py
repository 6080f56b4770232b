"""Features of texts and tokens, scripts, and the statistics: against values worked out by hand or by numpy."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruppo.monitor.health import stats
from gruppo.monitor.health.record import EvalRecord, row_signals, standard_error
from gruppo.monitor.health.rows import Rows
from gruppo.monitor.health.scripts import NAMES, letters_by_script
from gruppo.monitor.health.text_features import compression, prompt_text, repetition, text_features
from gruppo.monitor.health.token_features import gibberish_share


def features(completion: str, prompt: str = "") -> dict:
    return {name: values[0] for name, values in text_features([prompt], [completion], [0], [0]).items()}


def test_repetition_is_of_the_last_half():
    fresh, loop = [f"w{i}" for i in range(60)], ["a", "b", "c"] * 20
    assert repetition(loop + fresh) == 0.0
    assert repetition(fresh + loop) == pytest.approx(1 - 3 / 57)
    assert repetition(["a"] * 40) is None  # a tail of 20 words says nothing


def test_a_text_without_spaces_is_read_by_characters():
    assert features("哈" * 100)["rep4_tail"] == pytest.approx(1 - 1 / 47)
    assert features("".join(chr(0x4E00 + i) for i in range(100)))["rep4_tail"] == 0.0


def test_compression_tells_loops_from_prose():
    rng = random.Random(0)
    prose = " ".join("".join(rng.choice("etaoinshrdlu") for _ in range(5)) for _ in range(300))
    assert compression(prose) < 3
    assert compression("the answer is 12, so " * 60) > 12
    assert compression("short") is None


def test_copies_of_the_prompt():
    prompt = "how many apples are left if anna eats three of her ten apples today"
    assert features(prompt, prompt)["copy8"] == 1.0
    assert features("Well: " + prompt, prompt)["copy8"] == pytest.approx(7 / 8)
    assert features(" ".join(reversed(prompt.split())), prompt)["copy8"] == 0.0  # all its words, in another order
    assert features("seven", prompt)["copy8"] is None


def test_twins_name_the_first_sibling():
    columns = text_features([""] * 5, ["a b", " a  b\n", "c", "c", "a b"], [0, 0, 0, 1, 0], [2, 0, 1, 0, 3])
    assert columns["dup_of"] == [0, None, None, None, 0]


def test_scripts():
    counts = dict(zip(NAMES, letters_by_script("Héllo, мир! 你好 カナ 12 α😀").tolist(), strict=True))
    assert {name: count for name, count in counts.items() if count} == {"latin": 5, "cyrillic": 3, "han and kana": 4}
    english = "this prompt is in english"
    assert features("and so is the answer to it, really", english)["script_share"] == 0.0
    assert features("答案是十二" * 5, english)["script_share"] == 1.0
    assert features("answer answer 答案是十二答案是十二", english)["script_share"] == pytest.approx(10 / 22)
    assert features("答案是十二" * 5, "2+2=")["script_share"] is None
    assert features("четыре", english)["script_share"] is None  # too few letters


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_has_features(prompt, completion):
    for name, value in features(completion, prompt).items():
        assert value is None or (0 <= value <= 1) or name == "zlib_tail"


def test_the_text_of_messages():
    messages = '[{"role": "user", "content": "one"}, {"role": "user", "content": [{"type": "text", "text": "two"}]}]'
    assert prompt_text(messages, "messages") == 'one\n[{"type": "text", "text": "two"}]'
    assert prompt_text("[broken", "messages") == "[broken"
    assert prompt_text("plain", "text") == "plain"


def test_gibberish_is_rare_and_was_unlikely():
    unlikely = -math.log(100) - 2.1
    assert gibberish_share([74, 75, 99, 99], [unlikely, unlikely, unlikely, -1.0], 100) == 0.5
    assert gibberish_share([99], None, 100) is None
    assert gibberish_share([], [], 100) is None


def test_shares_of_the_reward_add_up_and_ignore_what_siblings_share():
    rows = Rows(
        {
            "group_id": [0, 0, 1, 1],
            "sample": [0, 1, 0, 1],
            "reward": [3.0, 1.0, 7.0, 7.0],
            "reward/a": [1.0, 0.0, 3.0, 3.0],
            "reward/b": [1.0, 1.0, 1.0, 1.0],
            "n_trained": [5, 4, 3, 2],
        },
        step=1,
    )
    signals = row_signals(rows, {"a": 2.0})
    assert signals["rows/share/a"] == 1.0
    assert signals["rows/share/b"] == 0.0
    assert signals["rows/reward_min"] == 1.0
    assert signals["rows/term_max/a"] == 3.0
    assert "rows/length_rho" not in signals  # groups of two have no rank correlation worth the name


def test_length_inside_parts_of_a_group_that_are_alike():
    def inside(rewards, lengths):
        columns = {"group_id": [0] * len(rewards), "sample": list(range(len(rewards))), "reward": rewards}
        return row_signals(Rows(columns | {"n_trained": lengths}, step=1), {}).get("rows/length_rho_inside")

    assert inside([1, 2, 3, 11, 12, 13], [5, 6, 7, 50, 60, 70]) == 1.0  # paid for in both parts
    assert inside([1, 2, 3, 11, 12, 13], [5, 6, 7, 70, 60, 50]) == 0.0  # in one, and the contrary in the other
    assert inside([0, 0, 0, 1, 1, 1], [5, 6, 7, 50, 60, 70]) is None  # right answers are long, that is all
    assert inside([1, 2, 3, 11, 11, 11], [5, 5, 5, 50, 50, 50]) is None
    assert inside([1, 2], [5, 6]) is None


def test_what_tricks_gain_over_their_siblings():
    columns = {
        "group_id": [0, 0, 0, 0, 1, 1, 1, 1],
        "sample": [0, 1, 2, 3] * 2,
        "completion": ["sys.exit(0)", "a", "b", "c", "sys.exit(0)"] + ["exit(0)"] * 3,
        "reward": [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0],
    }
    signals = row_signals(Rows(columns, step=1), {})
    assert signals["rows/trick_gain"] == 0.75  # the second group has nobody to compare with
    # by hand: the 1 falls on each of the four siblings alike, so the gain is 0.75 or three times -0.25
    assert signals["rows/trick_variance"] == pytest.approx((0.75**2 + 3 * 0.25**2) / 4)
    own = row_signals(Rows(columns, step=1), {}, [r"^[ab]$", "exit"])
    assert own["rows/trick_gain"] == pytest.approx(1 - 0.25 + 2 * -0.25)
    assert "rows/trick_gain" not in row_signals(Rows(columns | {"completion": ["a"] * 8}, step=1), {})


def test_one_evaluation_without_a_mistake_is_not_exact():
    counts = {"runtime": 2.0, "samples_per_second": 32.0}
    best, latest = (EvalRecord(step, "eval", counts | {"reward_std": std}) for step, std in ((10, 0.0), (20, 0.4)))
    assert standard_error([best]) == 0.0
    assert standard_error([latest]) == pytest.approx(0.05)
    assert standard_error([best, latest]) == pytest.approx(math.sqrt(0.08 / 64))


def test_slope_is_numpys_and_its_t_is_right():
    x, y = np.arange(6.0), np.array([1.0, 3.0, 2.0, 5.0, 4.0, 6.0])
    gain, t = stats.slope(x, y)
    assert gain == pytest.approx(np.polyfit(x, y, 1)[0])
    r = np.corrcoef(x, y)[0, 1]
    assert t == pytest.approx(r * math.sqrt(4 / (1 - r * r)))
    assert stats.slope(x, np.full(6, 0.1)) == (0.0, 0.0)
    assert stats.slope(x[:2], y[:2]) == (0.0, 0.0)
    assert stats.slope(x, 2 * x)[1] > 1e6


def test_spearman_shares_ranks_among_ties():
    assert stats.mean_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert stats.spearman(np.array([1.0, 2.0, 9.0]), np.array([2.0, 3.0, 4.0])) == pytest.approx(1.0)
    assert stats.spearman(np.array([0.0, 0.0, 1.0, 1.0]), np.array([4.0, 3.0, 2.0, 1.0])) == pytest.approx(-0.8944272)
    assert stats.spearman(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])) is None


def test_forecast_and_cusum():
    x = np.arange(20.0)
    noise = np.where(x % 2, 0.1, -0.1)
    z = stats.forecast_z(x, x + noise, np.array([20.0, 21.0]), np.array([20.0, 22.0]))
    assert abs(z[0]) < 0.3
    assert 7 < z[1] < 10
    assert stats.forecast_z(x, x, np.array([20.0]), np.array([99.0])).tolist() == [0.0]
    assert stats.cusum(np.array([1.0, 1.0, -0.5, 2.0]), slack=0.5) == 1.5
    assert stats.cusum(np.array([-1.0, -2.0, 1.0]), slack=0.5) == -2.0
    assert stats.cusum(np.zeros(4), slack=0.5) == 0.0


def test_spike_z_takes_the_widest_of_three_sigmas():
    quiet = np.ones(21)
    assert stats.spike_z(np.append(quiet, math.e), floor=0.2) == pytest.approx(5.0)
    assert stats.spike_z(np.append(quiet, 1 / math.e), floor=0.2) == pytest.approx(-5.0)
    even = np.exp(np.array([-1.0, 0.0, 1.0] * 7))
    assert stats.spike_z(np.append(even, math.exp(3)), floor=0.2) == pytest.approx(3 / 1.4826)
    tail = np.exp(np.array([0.0] * 18 + [2.0] * 3))
    assert stats.spike_z(np.append(tail, math.exp(3)), floor=0.2) == pytest.approx(3 * 1.2816 / 2)
    assert stats.spike_z(np.ones(1), floor=0.2) == 0.0


def test_sum_z_and_robust_sigma():
    assert stats.sum_z(np.array([1.0, 2.0]), np.array([4.0, 5.0])) == 1.0
    assert stats.sum_z(np.array([0.0]), np.array([0.0])) is None
    assert stats.robust_sigma(np.array([1.0, 2.0, 3.0, 4.0, 100.0])) == pytest.approx(1.4826)
