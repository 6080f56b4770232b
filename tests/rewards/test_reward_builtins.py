"""The built-in rewards, by their numbers."""

import asyncio
import functools
import json
import logging
import pickle

import pytest
import reasoning_gym

from gruppo.errors import RewardError
from gruppo.rewards import (
    BUILTINS,
    accuracy_reward,
    exact_match_reward,
    format_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    length_reward,
    prepare_rewards,
    reasoning_accuracy_reward,
    reasoning_gym_reward,
    think_format_reward,
)
from rewards.reward_rows import chat, group, score


def test_think_format():
    completions = [
        "<think>\nwhy\n</think>\nso",
        [{"role": "assistant", "content": "<think></think>"}],
        "<think>why so",
        " <think>why</think>so",
        "<think>a</think><think>b</think>",
        "",
        [],
    ]
    assert think_format_reward(completions) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_format_matches_the_whole_completion():
    reward = format_reward(r"<think>.*</think><answer>\d+</answer>")
    texts = ["<think>a\nb</think><answer>42</answer>\n", "<think>a</think><answer>42</answer> or 43", "42"]
    assert reward(completions=texts) == [1.0, 0.0, 0.0]
    with pytest.raises(RewardError, match="Compiling the pattern"):
        format_reward("(")


def test_length_in_tokens_and_characters():
    texts = ["four", "threes", ""]
    ids = [[1] * 8, [1] * 10, [1] * 20]
    assert length_reward(10)(completions=texts, completion_ids=ids) == [-0.2, 0.0, -1.0]
    assert length_reward(4, unit="characters")(completions=texts, completion_ids=ids) == [0.0, -0.5, -1.0]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert length_reward(4, unit="characters")(completions=chats, completion_ids=ids) == [0.0, -0.5, -1.0]


def test_repetition_penalty():
    reward = get_repetition_penalty_reward(ngram_size=2, max_penalty=-2.0)
    assert reward(completion_ids=[[1, 2, 3, 4], [5] * 5, [5], [], [1, 2, 1, 2]]) == [
        0.0,
        -1.5,
        0.0,
        0.0,
        pytest.approx(-2 / 3),
    ]


def test_soft_overlong_punishment():
    reward = get_soft_overlong_punishment(100, 20)
    assert reward(completion_ids=[[1] * n for n in (80, 81, 90, 100, 101)]) == [0.0, -0.05, -0.5, -1.0, -1.0]
    assert get_soft_overlong_punishment(10, 0)(completion_ids=[[1] * 10, [1] * 11]) == [0.0, -1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: length_reward(0), "target 0"),
        (lambda: length_reward(5, unit="words"), "unit 'words'"),
        (lambda: get_repetition_penalty_reward(max_penalty=0.5), "max_penalty 0.5 should not be positive"),
        (lambda: get_repetition_penalty_reward(ngram_size=0), "ngram_size is 0"),
        (lambda: get_soft_overlong_punishment(10, 11), "soft_punish_cache is 11"),
        (lambda: get_soft_overlong_punishment(10, -1), "soft_punish_cache is -1"),
        (lambda: get_cosine_scaled_reward(max_len=0), "max_len is 0"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(RewardError, match=message):
        make()


def test_exact_match():
    assert exact_match_reward([" 42\n", "43", "42"], answer=["42", "42", None]) == [1.0, 0.0, None]
    assert exact_match_reward(["42"], solution=[42]) == [1.0]
    assert exact_match_reward(["no: 1, yes: 42", "none"], answer=["42", "x"], extract=r"\w+: (\d+)") == [1.0, 0.0]
    assert exact_match_reward(["1, 42"], answer=["42"], extract=r"\d+") == [1.0]
    assert exact_match_reward(["42!", "?"], answer=["42", "?"], extract=lambda t: t[:-1] or None) == [1.0, 0.0]
    with pytest.raises(RewardError, match="needs a column `answer` or `solution`"):
        exact_match_reward(["42"])


def test_accuracy_logs_what_it_understood():
    logged = {}
    texts = [r"\boxed{\frac{1}{2}}", r"\boxed{2}", "no idea", r"\boxed{1}"]
    golds = ["$0.5$", "$3$", "$3$", "not a number"]
    rewards = accuracy_reward(texts, golds, log_extra=logged.__setitem__)
    assert rewards == [1.0, 0.0, 0.0, None]
    assert logged["solution"] == golds
    assert logged["gold_parsed"][1] == "[3, '3']"
    assert logged["gold_parsed"][3] == "[unparseable]"
    assert logged["answer_parsed"][2:] == ["[unparseable]", "[skipped]"]


def test_reasoning_accuracy_reads_what_follows_the_reasoning():
    texts = [r"\boxed{1}</think>\boxed{2}", r"\boxed{2}", r"a</think>b</think>\boxed{2}"]
    assert reasoning_accuracy_reward(texts, ["$2$"] * 3) == [1.0, 0.0, 1.0]
    assert reasoning_accuracy_reward([r"x#\boxed{2}"], ["$2$"], reasoning_delimiters=["|", "#"]) == [1.0]


def test_cosine_runs_between_its_bounds():
    reward = get_cosine_scaled_reward(max_len=10)
    right, wrong = r"\boxed{2}", r"\boxed{3}"
    lengths = [0, 5, 10, 30]
    ids = [[1] * n for n in lengths]
    assert reward([right] * 4, ["$2$"] * 4, ids) == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert reward([wrong] * 4, ["$2$"] * 4, ids) == pytest.approx([-1.0, -0.75, -0.5, -0.5])
    assert reward([right], ["nothing"], [[1]]) == [None]


def test_math_works_off_the_main_thread_without_a_word(caplog):
    async def in_a_thread(completions, solution, **kwargs):
        return await asyncio.to_thread(accuracy_reward, completions, solution)

    with caplog.at_level(logging.DEBUG):
        rewards = score([accuracy_reward, in_a_thread], [group("p", [r"\boxed{2}", "3"], solution="$2$")], timeout=60)
    assert rewards.rewards_NF.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert not [record for record in caplog.records if record.name.startswith("math_verify")]


def test_reasoning_gym_scores_by_the_tasks_own_grader():
    entries = [reasoning_gym.create_dataset(name, size=1, seed=3)[0] for name in ("basic_arithmetic", "word_sorting")]
    texts = [f"so <answer>0</answer><answer> {entry['answer']} </answer>" for entry in entries]
    columns = {name: [entry[name] for entry in entries] for name in ("question", "answer", "metadata")}
    assert reasoning_gym_reward(texts, **columns) == [1.0, 1.0]
    assert reasoning_gym_reward([entry["answer"] for entry in entries], **columns, answer_tag=None) == [1.0, 1.0]
    assert reasoning_gym_reward(["<answer>x</answer>", "no tags"], **columns) == [0.0, 0.0]
    columns["metadata"] = [json.dumps(metadata) for metadata in columns["metadata"]]
    assert reasoning_gym_reward(texts, **columns) == [1.0, 1.0]


@pytest.mark.parametrize("metadata", [{}, {"source_dataset": "chess"}])
def test_reasoning_gym_needs_a_known_task(metadata):
    with pytest.raises(RewardError, match="cannot grade row 0"):
        reasoning_gym_reward(["x"], ["x"], [metadata])


def test_names_in_metrics_are_trls():
    rewards = [
        get_cosine_scaled_reward(10),
        get_repetition_penalty_reward(),
        get_soft_overlong_punishment(10, 5),
        length_reward(5),
        format_reward("x"),
        functools.partial(exact_match_reward, extract="x"),
    ]
    assert [source.name for source in prepare_rewards(rewards, columns={"prompt", "solution"})] == [
        "cosine_scaled_reward",
        "repetition_penalty_reward",
        "soft_overlong_punishment_reward",
        "length_reward",
        "format_reward",
        "exact_match_reward",
    ]


def test_settings_cannot_be_overridden_by_a_column():
    rewards = score(length_reward(3), [group("p", ["ab"], target=100, unit="characters")])
    assert rewards.rewards_NF.tolist() == [[0.0]]


def test_made_rewards_travel_between_processes():
    reward = pickle.loads(pickle.dumps(get_soft_overlong_punishment(100, 20)))
    assert reward(completion_ids=[[1] * 90]) == [-0.5]


def test_builtins_run_on_chat_and_text():
    functions = [
        BUILTINS["think_format_reward"],
        BUILTINS["accuracy_reward"],
        BUILTINS["reasoning_accuracy_reward"],
        BUILTINS["exact_match_reward"],
        BUILTINS["get_cosine_scaled_reward"](max_len=10),
        BUILTINS["format_reward"](".*"),
        BUILTINS["length_reward"](10),
    ]
    text = r"<think>2</think>\boxed{2}"
    tables = [score(functions, [group(p, [text, "2"], solution="$2$")]).rewards_NF.tolist() for p in ("p", chat("p"))]
    assert tables[0] == tables[1]
    assert tables[0][0][:3] == [1.0, 1.0, 1.0]
