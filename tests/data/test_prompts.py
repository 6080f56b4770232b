"""Datasets of every accepted form become prompts; those that cannot be used say why."""

from itertools import islice

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from gruppo.data.prompts import PromptDataset, PromptStream, prepare_dataset
from gruppo.errors import DataError, ModelError
from tiny_tokenizer import ids, tiny_tokenizer

ROWS = [
    {"prompt": "one two three", "answer": 3, "tag": "a"},
    {"prompt": "four", "answer": 4, "tag": "b"},
    {"prompt": "five five five five", "answer": 5, "tag": "c"},
]


def messages(text, role="user"):
    return [{"role": role, "content": text}]


def prepare(dataset, **settings):
    return prepare_dataset(dataset, tokenizer=tiny_tokenizer(), **settings)


def stream(rows=ROWS):
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize("form", [list, tuple, Dataset.from_list])
def test_rows_become_prompts_with_tokens_and_all_other_columns(form):
    prompts = prepare(form(ROWS))
    assert isinstance(prompts, PromptDataset)
    assert (len(prompts), prompts.columns, prompts.is_conversational) == (3, {"answer", "tag"}, False)
    assert prompts[1].id == 1
    assert prompts[1].content == "four"
    assert prompts[1].token_ids == ids("<bos> four")
    assert prompts[1].columns == {"answer": 4, "tag": "b"}
    assert [prompt.id for prompt in prompts] == [0, 1, 2]
    assert prompts.notes == []


def test_conversational_prompts_go_through_the_template():
    prompts = prepare(Dataset.from_list([{"prompt": messages("one")}]), chat_template_kwargs={"shout": True})
    assert prompts.is_conversational
    assert prompts[0].content == messages("one")
    assert prompts[0].token_ids == ids("user one <eos> four assistant")


def test_rows_of_a_list_may_lack_columns():
    prompts = prepare([{"prompt": "one"}, {"prompt": "two", "answer": 2}])
    assert [prompt.columns for prompt in prompts] == [{"answer": None}, {"answer": 2}]


def test_a_transform_that_makes_the_prompt_is_used():
    raw = Dataset.from_dict({"question": ["one", "two"]})
    made = raw.with_transform(lambda rows: {"prompt": ["four " + q for q in rows["question"]], "n": rows["question"]})
    prompts = prepare(made)
    assert prompts.columns == {"n"}
    assert prompts[1].token_ids == ids("<bos> four two")


def test_long_prompts_keep_their_last_tokens():
    prompts = prepare(ROWS, max_prompt_length=3)
    assert [prompt.token_ids for prompt in prompts] == [ids("one two three"), ids("<bos> four"), ids("five five five")]
    assert prompts.num_overlong == 2
    assert prompts.notes == [
        "train_dataset: 2 of 3 prompts are longer than max_prompt_length=3 tokens and lose their first tokens."
    ]


def test_long_prompts_can_be_left_out_and_ids_stay_row_numbers():
    prompts = prepare(ROWS, max_prompt_length=2, overlong="filter")
    assert len(prompts) == 1
    assert (prompts[0].id, prompts[0].columns["tag"]) == (1, "b")
    assert prompts.notes == [
        "train_dataset: 2 of 3 prompts are longer than max_prompt_length=2 tokens and are left out."
    ]


def test_filtering_all_prompts_is_an_error():
    with pytest.raises(DataError, match=r"all 3 prompts are longer than max_prompt_length=1 .*Raise max_prompt_length"):
        prepare(ROWS, max_prompt_length=1, overlong="filter")


def test_prompts_that_end_with_an_assistant_message_are_noted():
    rows = [{"prompt": messages("one")}, {"prompt": messages("one") + messages("two", "assistant")}]
    assert prepare(rows).notes == [
        "train_dataset: 1 of 2 prompts end with an assistant message. It is not continued: the completion is a new "
        "assistant turn after it."
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "eval_dataset is empty"),
        ([{"promt": "x", "answer": 1}], r"no column `prompt`; it has .*rename_column\('promt', 'prompt'\)"),
        ([{"question": "x"}], r"rename_column\('question', 'prompt'\)"),
        ([{"zzz": "x"}], "Add one: a column of strings"),
        ([{"prompt": "x", "image": None}], "images are not yet supported"),
        ([{"prompt": "x", "completions": "y"}], r"rename_column\('completions', 'my_completions'\)"),
        (["one"], "row 0 is a str; rows are dicts"),
        ([{"prompt": "one"}, {"prompt": None}], "row 1: the prompt is None"),
        ([{"prompt": "one"}, {"answer": 1}], "row 1: the prompt is None"),
        ([{"prompt": 5}], "row 0: the prompt is a int; it must be a string"),
        ([{"prompt": {"role": "user", "content": "x"}}], "a single message. Put it into a list"),
        ([{"prompt": []}], "empty list of messages"),
        ([{"prompt": ["one"]}], "row 0, message 0 is 'one'; a message is a dict"),
        ([{"prompt": [{"content": "one"}]}], 'a dict with "role" and "content"'),
        ([{"prompt": [{"role": "user", "content": 5}]}], "message 0: content is a int"),
        ([{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}], "blocks of type `image` are not"),
        ([{"prompt": "one"}, {"prompt": messages("one")}], "row 1: the prompt is messages, but"),
        ([{"prompt": messages("one")}, {"prompt": "one"}], "row 1: the prompt is a string, but"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_at_construction(rows, message):
    with pytest.raises(DataError, match=message):
        prepare(rows, what="eval_dataset")


def test_an_empty_prompt_needs_a_special_token_to_go_on_from():
    rows = [{"prompt": "one"}, {"prompt": ""}]
    assert prepare(rows)[1].token_ids == ids("<bos>")
    with pytest.raises(DataError, match="row 1: the prompt is empty"):
        prepare_dataset(rows, tokenizer=tiny_tokenizer(bos=False))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (DatasetDict({"train": Dataset.from_list(ROWS)}), r"datasets \(train\). Pass one .*\['train'\]"),
        ("trl-lib/tldr", r"Load it first: `datasets.load_dataset\('trl-lib/tldr', split='train'\)`"),
        (range(3), "train_dataset is a range"),
    ],
)  # fmt: skip
def test_things_that_are_no_dataset_are_refused(dataset, message):
    with pytest.raises(DataError, match=message):
        prepare(dataset)


@pytest.mark.parametrize("form", [list, stream])
def test_messages_without_a_template_are_refused_at_construction(form):
    with pytest.raises(ModelError, match="no chat template"):
        prepare_dataset(form([{"prompt": messages("one")}]), tokenizer=tiny_tokenizer(template=None))


def test_a_stream_gives_rounds_over_epochs_and_drops_the_incomplete_one():
    prompts = prepare(stream())
    assert isinstance(prompts, PromptStream)
    assert prompts.columns == {"answer", "tag"}
    rounds = list(islice(prompts.rounds(2), 3))
    assert [[prompt.columns["tag"] for prompt in round_] for round_ in rounds] == [["a", "b"]] * 3
    assert [[prompt.id for prompt in round_] for round_ in rounds] == [[0, 1], [3, 4], [6, 7]]
    assert rounds[0][0].token_ids == ids("<bos> one two three")


def test_a_resumed_stream_goes_on_where_it_was():
    rows = [{"prompt": "one", "n": n} for n in range(10)]
    whole = list(islice(prepare(stream(rows)).rounds(3, seed=5, shuffle=True), 7))
    resumed = list(islice(prepare(stream(rows)).rounds(3, seed=5, shuffle=True, skip=4), 3))
    assert resumed == whole[4:]


def test_a_shuffled_stream_has_another_order_in_each_epoch():
    prompts = prepare(stream([{"prompt": "one", "n": n} for n in range(10)]))
    orders = [[prompt.columns["n"] for prompt in prompts.epoch(e, seed=5, shuffle=True)] for e in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != list(range(10))


def test_streams_truncate_and_filter_too():
    cut, left_out = (prepare(stream(), max_prompt_length=2, overlong=o) for o in ("truncate", "filter"))
    assert [prompt.token_ids for prompt in cut.epoch()] == [ids("two three"), ids("<bos> four"), ids("five five")]
    assert [prompt.token_ids for prompt in left_out.epoch()] == [ids("<bos> four")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty: the stream ended"),
        ([{"text": "x"}], r"rename_column\('text', 'prompt'\)"),
        ([{"prompt": 3}], "row 0: the prompt is a int"),
    ],
)
def test_bad_streams_are_refused_at_construction(rows, message):
    with pytest.raises(DataError, match=message):
        prepare(stream(rows))


def test_a_stream_with_fewer_prompts_than_a_round_is_an_error_and_not_an_endless_loop():
    with pytest.raises(DataError, match="gave 3 usable prompts in a whole epoch, fewer than the 4"):
        next(prepare(stream()).rounds(4))


def test_a_stream_that_changes_kind_is_refused_when_it_does():
    prompts = prepare(stream([{"prompt": "one"}, {"prompt": messages("one")}]))
    with pytest.raises(DataError, match="row 1 of the stream: text and messages are mixed"):
        list(prompts.epoch())
