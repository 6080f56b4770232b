"""The demo's questions, answers and reward."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gruppo.demo.task import FACTORS, TERMS, Question, as_row, final_number, right_answer, split_questions

questions = st.builds(
    Question, st.sampled_from(list(TERMS)), st.sampled_from(list(FACTORS)), st.sampled_from(list(FACTORS))
)


@settings(deadline=None)
@given(questions)
def test_the_answer_is_what_python_says(question: Question) -> None:
    assert question.answer == eval(question.text.removesuffix("=?"))
    assert as_row(question) == {
        "prompt": [{"role": "user", "content": question.text}],
        "answer": str(question.term + question.left * question.right),
    }


def test_the_split_is_all_questions_each_once() -> None:
    training, held_out = split_questions()
    every = {Question(a, b, c) for a in TERMS for b in FACTORS for c in FACTORS}
    assert len(training) + len(held_out) == len(every) == 90 * 64
    assert {*training, *held_out} == every
    assert 500 < len(held_out) < 650


def test_no_held_out_question_is_a_turned_round_training_question() -> None:
    training, held_out = split_questions()
    turned = {Question(a, c, b) for a, b, c in training}
    assert turned == set(training)
    assert not turned & set(held_out)


def test_the_split_is_always_the_same() -> None:
    assert split_questions() == split_questions()
    assert [question.text for question in split_questions()[1][:2]] == HELD_OUT_BEGINS_WITH


HELD_OUT_BEGINS_WITH = ["15+4*4=?", "63+6*5=?"]
"""The shipped policy was made without these: a change of the split would show it held-out questions."""


def test_final_number() -> None:
    assert final_number("3*4=12, 12+12=24") == "24"
    assert final_number("~27") == "27"
    assert final_number("is 007") == "7"
    assert final_number("no idea") is None
    assert final_number("") is None


def test_reward_looks_at_the_last_number_only() -> None:
    completions = [[{"role": "assistant", "content": text}] for text in ("3*4=12, 12+12=24", "~24", "24 or 25", "?")]
    assert right_answer(completions=completions, answer=["24"] * 4, trainer_state=None) == [1.0, 1.0, 0.0, 0.0]
