"""`gruppo check-reward`: rewards with one known fault each, on text and chat prompts."""

import json
import sys
from pathlib import Path

import pytest

from gruppo.cli.main import main
from gruppo.errors import RewardError
from gruppo.rewards.check import ANSWERS, REFERENCES, RewardCheck, check_reward
from gruppo.types import Prompt

REWARDS = """
def right(completions, answer, **kwargs):
    print("looking")
    return [float(gold in text and len(text) < 100) for text, gold in zip(completions, answer)]

def negated(completions, answer, **kwargs):
    return [-float(gold in text) for text, gold in zip(completions, answer)]

def right_chat(completions, answer, **kwargs):
    return [float(c[0]["content"] == gold) for c, gold in zip(completions, answer)]
"""


def prompts(**columns: object) -> list[Prompt]:
    return [Prompt(number, f"What is {number}?", [], dict(columns)) for number in range(3)]


def codes(check: RewardCheck, level: str) -> list[str]:
    return [finding.code for finding in check.findings if finding.level == level]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(REWARDS)
    text = [{"prompt": f"Say w{i}!", "answer": f"w{i}", "level": i} for i in range(12)]
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in text]
    for name, rows in {"text": text, "chat": chat, "other": [{"question": "Who?"}]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_a_good_reward_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-reward", "mine:right", "--dataset", "text.jsonl", "--rows", "5", "--json"]) == 0
    streams = capsys.readouterr()
    found = json.loads(streams.out)  # what the function prints is not among it
    assert "looking" in streams.err
    assert found["signature"] == "right(completions, answer, **kwargs)"
    assert (found["columns"], found["columns_named"]) == (["answer", "level"], ["answer"])
    assert (found["num_prompts"], found["is_conversational"], found["reference_column"]) == (5, False, "answer")
    assert list(found["kinds"]) == [*ANSWERS, *REFERENCES]
    assert found["kinds"]["reference"]["values"] == [1.0] * 5
    assert found["kinds"]["empty"]["mean"] == 0.0
    assert found["range"] == [0.0, 1.0]
    assert found["reference_against_empty"] == {"above": 5, "equal": 0, "below": 0}
    assert (found["is_constant"], found["has_problem"], found["findings"]) == (False, False, [])


def test_the_text_report_and_exit_code_of_a_wrong_sign(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-reward", "mine:negated", "--dataset", "text.jsonl"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "range       -1 to 0" in lines
    assert "right       above an empty answer on 0 prompts, equal on 0, below on 8" in lines
    assert any(line.startswith("problem") and line.endswith("Is its sign right?") for line in lines)


def test_chat_prompts_get_messages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-reward", "mine:right_chat", "--dataset", "chat.jsonl"]) == 0
    assert "first 8 rows, chat messages; right answers: answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine:righ", "--dataset", "text.jsonl"], "Did you mean `right`?"),
        (["mine:right", "--dataset", "other.jsonl"], "has no column `prompt`"),
        (["mine:right", "--dataset", "gone.jsonl"], "There is no dataset file"),
        (["mine:right", "--dataset", "text.jsonl", "--rows", "0"], "give numbers above 0"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-reward", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_signature_that_cannot_be_called_is_a_problem_and_nothing_is_called() -> None:
    def narrow(completions: list[str]) -> list[float]:
        raise AssertionError

    check = check_reward(narrow, prompts(answer="x"))
    assert (codes(check, "problem"), check.kinds) == (["signature"], {})
    assert "Add `**kwargs` to `narrow`" in check.findings[0].text


def test_text_expected_where_messages_come_is_explained_once() -> None:
    def shouts(completions: list[str], **kwargs: object) -> list[float]:
        return [float("A" in text.upper()) for text in completions]

    chat = [Prompt(0, [{"role": "user", "content": "?"}], [], {"answer": "A"})]
    check = check_reward(shouts, chat)
    assert codes(check, "problem") == ["failure"]
    assert "empty, unsure, fake, repeated, long" in check.findings[0].text
    assert '`completion[0]["content"]`' in check.findings[0].text


def test_a_crash_on_one_kind_names_that_kind() -> None:
    def first_word(completions: list[str], **kwargs: object) -> list[float]:
        return [float(text.split()[0] == "The") for text in completions]

    check = check_reward(first_word, prompts())
    assert codes(check, "problem") == ["failure"]
    assert check.findings[0].text.startswith("On answers of kind empty: Reward `first_word` raised IndexError")
    assert check.kinds["fake"].values == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "code"), [(0.5, "constant"), (None, "abstains"), (float("inf"), "failure"), ("1", "failure")]
)
def test_a_value_that_teaches_nothing_or_is_none_of_the_kind(value: object, code: str) -> None:
    check = check_reward(lambda completions, **kwargs: [value] * len(completions), prompts(answer="x"))
    assert codes(check, "problem") == [code]


def test_a_reward_of_the_prompt_alone_is_constant() -> None:
    def of_prompt(prompts: list[str], **kwargs: object) -> list[float]:
        return [float(text[-2]) for text in prompts]

    check = check_reward(of_prompt, prompts(answer="x"))
    assert codes(check, "problem") == ["constant"]
    assert "0 to 2, by prompt" in check.findings[0].text


def test_a_wrong_number_of_values_is_a_problem() -> None:
    check = check_reward(lambda completions, **kwargs: [1.0], prompts(answer="x"))
    assert codes(check, "problem") == ["failure"]
    assert "returned 1 rewards, but 3 were expected" in check.findings[0].text


def test_junk_that_scores_above_the_right_answer_is_noted() -> None:
    def length(completions: list[str], **kwargs: object) -> list[float]:
        return [float(len(text)) for text in completions]

    check = check_reward(length, prompts(answer="x"))
    assert codes(check, "problem") == []
    assert codes(check, "note") == ["junk_beats_reference"] * 4  # all but the short `unsure`


def test_a_right_answer_in_the_form_that_the_reward_asks_for_counts() -> None:
    def tagged(completions: list[str], **kwargs: object) -> list[float]:
        return [float(text.endswith("<answer>x</answer>")) for text in completions]

    check = check_reward(tagged, prompts(solution="x"))
    assert (check.reference_column, check.best_reference, check.findings) == ("solution", "reference_tagged", [])


def test_a_right_answer_no_better_than_an_empty_one_is_noted() -> None:
    def is_short(completions: list[str], **kwargs: object) -> list[float]:
        return [float(len(text) < 200) for text in completions]

    assert codes(check_reward(is_short, prompts(answer="x")), "note") == ["reference_equals_empty"]
    assert codes(check_reward(is_short, prompts()), "note") == ["no_reference"]


def test_the_column_that_the_function_names_is_the_reference() -> None:
    def right(completions: list[str], solution: list[str], **kwargs: object) -> list[float]:
        return [float(text == gold) for text, gold in zip(completions, solution, strict=True)]

    check = check_reward(right, prompts(answer="no", solution="yes"))
    assert (check.reference_column, check.compare("empty")) == ("solution", (3, 0, 0))


def test_rows_without_a_right_answer_are_left_out_of_the_comparison() -> None:
    def right(completions: list[str], answer: list[str | None], **kwargs: object) -> list[float]:
        return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]

    rows = [Prompt(0, "a", [], {"answer": "x"}), Prompt(1, "b", [], {"answer": None})]
    check = check_reward(right, rows)
    assert check.kinds["reference"].values == [1.0, None]
    assert check.compare("empty") == (1, 0, 0)


def test_a_reward_that_depends_on_its_calls_is_noted() -> None:
    calls = []

    def counts(completions: list[str], **kwargs: object) -> list[float]:
        calls.append(1)
        return [len(calls) + len(text) / 1e6 for text in completions]

    assert "unstable" in codes(check_reward(counts, prompts()), "note")


def test_an_endless_call_is_stopped_and_async_rewards_work() -> None:
    def endless(completions: list[str], **kwargs: object) -> list[float]:
        while True:
            pass

    check = check_reward(endless, prompts(), cpu_limit=0.01)
    assert codes(check, "problem") == ["failure"]
    assert "stopped after 0.01 s of processor time" in check.findings[0].text

    async def later(completions: list[str], trainer_state: object, **kwargs: object) -> list[float]:
        return [float("42" in text) + trainer_state.global_step for text in completions]  # type: ignore[attr-defined]

    assert codes(check_reward(later, prompts()), "problem") == []


def test_models_and_empty_datasets_are_refused() -> None:
    with pytest.raises(RewardError, match="reward model"):
        check_reward("owner/model", prompts())
    with pytest.raises(RewardError, match="the dataset is empty"):
        check_reward(lambda completions, **kwargs: [], [])
