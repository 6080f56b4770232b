"""Words that the reward pays for: against values worked out by hand."""

import numpy as np
import pytest

from gruppo.monitor.health.words import MAX_CHARACTERS, MAX_ROWS, ending_of, has_word, paid_words, strongest, words_of

GROUPS = [np.arange(4), np.arange(4, 8)]
PROMPTS = ["what is it?", "what is that?"]


def found(texts, rewards, groups=GROUPS, prompts=PROMPTS):
    return paid_words(texts, prompts, np.array(rewards, dtype=float), groups)


def test_words_are_lower_case_without_numbers_and_signs_stand_alone():
    assert words_of("Let ME think: 12! x2 ~3") == {"let", "me", "think", "x2", ":", "!", "~"}
    assert words_of("") == set()
    assert has_word("I THINK so", "think")
    assert not has_word("I rethink so", "think")


def test_of_a_long_text_both_ends_are_read():
    middle = "a " * MAX_CHARACTERS
    assert words_of(f"first {middle} middle {middle} last") == {"first", "a", "last"}


def test_what_an_answer_comes_to():
    assert ending_of("so 3*4=12, 12+12=24.") == ("24", "24")
    assert ending_of("that is 1,250.5 apples!") == ("1,250.5", "apples")
    assert ending_of("Yes.") == ("yes", "yes")
    assert ending_of("") == ("", "")
    assert ending_of("7 " + "x" * 300)[0] != "7"  # too far from the end


def test_a_word_that_explains_everything():
    texts = ["think 1", "think 2", "guess 3", "guess 4", "think 5", "guess 6", "guess 7", "guess 8"]
    words = found(texts, [1, 1, 0, 0, 1, 0, 0, 0])
    assert set(words) == {"think"}
    assert words["think"] == (pytest.approx(1.0), 3 / 8, 1.0, 0.0, 1, 1)


def test_what_it_explains_is_a_squared_correlation_inside_groups():
    texts = [f"{word} {row}" for row, word in enumerate(["so", "so", "no", "no", "so", "so", "no", "no"])]
    rewards = [1.0, 1.0, 0.0, 0.4, 11.0, 10.6, 10.0, 10.0]  # the groups lie far apart, which says nothing
    centred = np.array(rewards) - np.repeat([0.6, 10.4], 4)
    presence = np.array([0.5, 0.5, -0.5, -0.5] * 2)
    expected = (presence @ centred) ** 2 / (presence @ presence) / (centred @ centred)
    assert found(texts, rewards)["so"].explained == pytest.approx(expected)


def test_siblings_that_come_to_the_same_count_where_one_has_the_word():
    texts = ["think 5", "5", "think 5", "6", "think 5", "5", "7", "8"]
    by_word = found(texts, [1, 0, 1, 0, 1, 0, 0, 0])["think"]
    assert (by_word.sided, by_word.contested) == (3, 3)
    by_answer = found(texts, [1, 1, 1, 0, 1, 1, 0, 0])
    assert by_answer == {}  # the word explains too little of that


def test_a_reward_for_right_answers_sides_with_none():
    texts = ["work 5", "work 5", "work 6", "guess 9", "work 5", "guess 8", "guess 7", "guess 3"]
    word = found(texts, [1, 1, 0, 0, 1, 0, 0, 0])["work"]
    assert word.explained >= 0.5
    assert (word.sided, word.contested) == (0, 2)


def test_the_same_last_word_is_not_called_another_ending():
    texts = ["think 1 yes", "think 2 yes", "no", "no", "think 3 yes", "no", "no", "no"]
    assert found(texts, [1, 1, 0, 0, 1, 0, 0, 0])["think"].contested == 0


def test_what_is_asked_for_is_left_out():
    texts = ["think 1", "think 2", "guess 3", "guess 4", "think 5", "guess 6", "guess 7", "guess 8"]
    rewards = [1, 1, 0, 0, 1, 0, 0, 0]
    assert found(texts, rewards, prompts=["Think: a", "Think: b"]) == {}
    assert set(found(texts, rewards, prompts=["Think: a", "b"])) == {"think"}  # a question of one prompt only


def test_nothing_to_say():
    assert found(["a", "b"] * 4, [0.5] * 8) is None  # no differences
    assert found(["a", "b"] * 4, [0.5] * 4 + [0.7] * 4) is None  # none inside groups
    assert found(["a", "b", "a"], [0, 1, 0], [np.arange(3)]) is None  # too few rows
    assert found(["same"] * 8, [0, 1] * 4) == {}


def test_rows_without_a_reward_are_left_out():
    texts = ["think 1", "think 2", "guess 3", "guess 4", "think 5", "guess 6", "guess 7", "guess 8", "think", "guess"]
    rewards = [1, 1, 0, 0, 1, 0, 0, 0, np.nan, np.nan]
    groups = [np.array([0, 1, 2, 3, 8]), np.array([4, 5, 6, 7, 9])]
    assert found(texts, rewards, groups)["think"].share == 3 / 8


def test_of_many_rows_whole_groups_are_looked_at():
    num = 3 * MAX_ROWS
    texts = [f"{'think' if row % 4 == 0 else 'guess'} {row}" for row in range(num)]
    rewards = [float(row % 4 == 0) for row in range(num)]
    word = found(texts, rewards, [np.arange(start, start + 4) for start in range(0, num, 4)])["think"]
    assert word[:4] == (pytest.approx(1.0), 0.25, 1.0, 0.0)


def test_the_strongest_over_rounds():
    word = found(["think 1", "guess 2"] * 4, [1, 0] * 4)["think"]
    rounds = [{"a": word, "b": word._replace(explained=0.6)}, {"b": word._replace(explained=0.8)}, {}]
    assert strongest(rounds) == [("b", pytest.approx(1.4 / 3)), ("a", pytest.approx(1 / 3))]
