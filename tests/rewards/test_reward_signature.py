"""Mistakes in `reward_funcs` that are found before anything runs."""

import functools

import pytest
import torch

from gruppo.errors import RewardError
from gruppo.rewards import exact_match_reward, prepare_rewards, text_reward
from gruppo.rewards.protocol import unique_names
from gruppo.rewards.signature import nearest_column


def good(completions, **kwargs):
    return [0.0] * len(completions)


def needs_solution(completions, solution, **kwargs):
    return [0.0] * len(completions)


class Judge:
    def __call__(self, completions, **kwargs):
        return [0.0] * len(completions)


class AsyncJudge:
    async def __call__(self, completions, **kwargs):
        return [0.0] * len(completions)


async def async_good(completions, **kwargs):
    return [0.0] * len(completions)


def test_names_and_kinds():
    given = [good, functools.partial(functools.partial(good, a=1), b=2), Judge(), async_good, AsyncJudge(), Judge()]
    given.append(functools.partial(async_good, a=1))
    sources = prepare_rewards(given)
    assert [source.name for source in sources] == [
        "good",
        "good_2",
        "Judge",
        "async_good",
        "AsyncJudge",
        "Judge_2",
        "async_good_2",
    ]
    assert [source.kind for source in sources] == ["sync", "sync", "sync", "async", "async", "sync", "async"]
    assert [source.function for source in sources] == given


def test_unique_names_never_collide_with_given_ones():
    assert unique_names(["a", "a", "a_2", "a"]) == ["a", "a_3", "a_2", "a_4"]


def test_the_users_lists_are_not_changed():
    functions, processing_classes = [good, Judge()], [None, None]
    before = list(functions)
    prepare_rewards(functions, reward_processing_classes=processing_classes)
    assert functions == before
    assert processing_classes == [None, None]


def test_missing_kwargs_names_everything_that_cannot_be_received():
    def reward_len(prompts, completions):
        return [0.0]

    with pytest.raises(RewardError) as raised:
        prepare_rewards(reward_len, columns={"prompt", "answer"})
    assert str(raised.value).startswith(
        "Reward `reward_len(prompts, completions)` cannot receive `completion_ids`, `trainer_state`, `log_extra`, "
        "`log_metric`, `answer`:"
    )
    assert "Add `**kwargs`" in str(raised.value)


def test_a_function_that_names_every_keyword_needs_no_kwargs():
    def explicit(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric):  # noqa: PLR0917
        return [0.0]

    assert prepare_rewards(explicit, columns={"prompt", "answer"})[0].name == "explicit"
    assert prepare_rewards(explicit, columns=None)[0].name == "explicit"
    with pytest.raises(RewardError, match="cannot receive `hint`"):
        prepare_rewards(explicit, columns={"prompt", "answer", "hint"})


def test_missing_column_proposes_the_rename():
    with pytest.raises(RewardError) as raised:
        prepare_rewards(needs_solution, columns={"prompt", "answer"})
    assert str(raised.value) == (
        "Reward `needs_solution` needs column `solution`; the dataset has `answer`, `prompt`. "
        "Rename: `dataset = dataset.rename_column('answer', 'solution')`."
    )


def test_the_prompt_counts_among_the_columns():
    for columns in (set(), {"prompt"}):
        with pytest.raises(RewardError, match=r"needs column `solution`; the dataset has `prompt`\. Add the column"):
            prepare_rewards(needs_solution, columns=columns)


@pytest.mark.parametrize(
    ("wanted", "columns", "nearest"),
    [
        ("solution", ["solutions", "answer"], "solutions"),
        ("solution", ["id", "ground_truth"], "ground_truth"),
        ("question", ["problem"], "problem"),
        ("solution", ["id"], None),
        ("difficulty", ["id"], None),
    ],
)
def test_nearest_column(wanted, columns, nearest):
    assert nearest_column(wanted, columns) == nearest


def test_missing_column_without_a_near_one():
    with pytest.raises(RewardError, match="Add the column to the dataset, or give the parameter `solution` a default"):
        prepare_rewards(needs_solution, columns={"prompt", "id"})


def test_a_column_already_in_use_is_not_proposed():
    def compare(completions, answer, solution, **kwargs):
        return [0.0]

    with pytest.raises(RewardError, match="Add the column"):
        prepare_rewards(compare, columns={"prompt", "answer"})


@pytest.mark.parametrize("options", [{"columns": None}, {"columns": {"prompt"}, "extra_columns_allowed": True}])
def test_unknown_columns_are_not_missed(options):
    assert prepare_rewards(needs_solution, **options)[0].name == "needs_solution"


def test_singular_names_get_the_plural_as_hint():
    def singular(completion, **kwargs):
        return [0.0]

    with pytest.raises(RewardError, match="passed as `completions`"):
        prepare_rewards(singular, columns={"prompt", "completion"})


def test_partials_count_as_supplied():
    assert prepare_rewards(functools.partial(needs_solution, solution=["x"]), columns={"prompt"})
    assert prepare_rewards(functools.partial(exact_match_reward, extract="x"), columns={"prompt"})


def test_text_reward_keeps_name_and_signature():
    wrapped = text_reward(needs_solution)
    with pytest.raises(RewardError, match="Reward `needs_solution` needs column `solution`"):
        prepare_rewards(wrapped, columns={"prompt"})


def test_an_adapter_is_called_by_its_own_signature():
    def inner(text, gold):
        return 1.0

    @functools.wraps(inner)
    def adapted(completions, **kwargs):
        return [inner(text, "x") for text in completions]

    assert prepare_rewards(adapted, columns={"prompt"})[0].name == "inner"
    assert prepare_rewards(text_reward(adapted), columns={"prompt"})
    assert prepare_rewards(text_reward(dict), columns={"prompt"})  # made in C, without a signature


def test_positional_only_is_refused():
    def positional(completions, /, **kwargs):
        return [0.0]

    with pytest.raises(RewardError, match="by position only"):
        prepare_rewards(positional)


@pytest.mark.parametrize("column", ["prompts", "completions"])
def test_columns_that_would_be_passed_twice(column):
    with pytest.raises(RewardError, match=f"column `{column}`"):
        prepare_rewards(good, columns={"prompt", column})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "No reward source provided"),
        (None, "No reward source provided"),
        (Judge, "pass an instance: `Judge\\(\\)`"),
        (3, "holds 3 of type int"),
        ([good, None], "holds None of type NoneType"),
        ("accuracy_reward", "from gruppo.rewards import accuracy_reward"),
    ],
)
def test_what_is_no_reward(given, message):
    with pytest.raises(RewardError, match=message):
        prepare_rewards(given)


def test_processing_classes_must_match():
    with pytest.raises(ValueError, match="must match"):
        prepare_rewards([good, good], reward_processing_classes=[None])


def test_signatures_are_checked_before_models_load():
    def narrow(completions):
        return [0.0]

    with pytest.raises(RewardError, match=r"Add `\*\*kwargs`"):
        prepare_rewards(["./no/such/model", narrow])


def test_a_module_without_a_tokenizer_is_refused():
    with pytest.raises(RewardError, match="reward_processing_classes"):
        prepare_rewards(torch.nn.Linear(2, 1))
