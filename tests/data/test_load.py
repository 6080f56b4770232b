"""Local files of every kind load; what cannot be loaded names itself."""

import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from gruppo.data.load import eval_sets, is_one_set, load_prompts
from gruppo.errors import DataError

ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(path):
    data = Dataset.from_list(ROWS)
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(ROWS))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        case ".csv":
            path.write_text("prompt,answer\none,1\ntwo,2\n")
        case ".parquet":
            data.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_files(tmp_path, suffix):
    loaded = load_prompts(write(tmp_path / f"rows{suffix}"))
    assert loaded.to_list() == ROWS


def test_a_file_is_the_split_that_is_asked_for_and_may_be_sliced(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    assert load_prompts(path, split="test").to_list() == ROWS
    assert load_prompts(str(path), split="train[:1]").to_list() == ROWS[:1]


def test_streaming(tmp_path):
    loaded = load_prompts(write(tmp_path / "rows.jsonl"), streaming=True)
    assert isinstance(loaded, IterableDataset)
    assert list(loaded) == ROWS


def test_a_folder_of_files_has_its_splits(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl")
    (folder / "test.jsonl").write_text('{"prompt": "held out", "answer": 3}\n')
    assert load_prompts(folder, split="test").to_list() == [{"prompt": "held out", "answer": 3}]
    assert load_prompts(folder).to_list() == ROWS


def test_folders_made_by_save_to_disk(tmp_path):
    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"train": data}).save_to_disk(tmp_path / "many")
    assert load_prompts(tmp_path / "one").to_list() == ROWS
    assert load_prompts(tmp_path / "many").to_list() == ROWS
    with pytest.raises(DataError, match="has no split 'test'; it has train"):
        load_prompts(tmp_path / "many", split="test")


def test_one_saved_dataset_is_the_train_split_and_no_other(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match=r"one' is one Dataset without splits, so it has no split 'test'.*'train'"):
        load_prompts(tmp_path / "one", split="test")
    with pytest.raises(DataError, match=r"has no split 'test'"):
        load_prompts(tmp_path / "one", split="train+test[:1]")


@pytest.mark.parametrize("kind", ["one", "many"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [("train[:1]", ROWS[:1]), ("train[50%:]", ROWS[1:]), ("train[1:]+train[:1]", ROWS[::-1])],
)
def test_saved_folders_may_be_sliced(tmp_path, kind, split, expected):
    data = Dataset.from_list(ROWS)
    (data if kind == "one" else DatasetDict({"train": data})).save_to_disk(tmp_path / kind)
    assert load_prompts(tmp_path / kind, split=split).to_list() == expected
    streamed = load_prompts(tmp_path / kind, split=split, streaming=True)
    assert isinstance(streamed, IterableDataset)
    assert list(streamed) == expected


def test_a_slice_that_cannot_be_read_names_itself(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match=r"\(split 'train\[x\]'\) failed: ValueError"):
        load_prompts(tmp_path / "one", split="train[x]")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet"])
def test_an_empty_file_is_called_empty(tmp_path, name, streaming):
    (tmp_path / name).write_text("\n" if name == "rows.jsonl" else "")
    with pytest.raises(DataError, match=rf"{name}' is empty: it holds no rows.*column `prompt`"):
        load_prompts(tmp_path / name, streaming=streaming)


def without_rows(tmp_path, kind):
    """Something that holds column names, or the names of splits, but no row of `train`; and what to load of it."""
    folder = tmp_path / "set"
    folder.mkdir()
    empty = Dataset.from_dict({"prompt": []})
    match kind:
        case "saved":
            empty.save_to_disk(folder)
        case "saved after a filter":  # it has a file of no rows; the others have no file
            Dataset.from_list(ROWS).filter(lambda row: False).save_to_disk(folder)
        case "saved split":
            DatasetDict({"train": empty, "test": Dataset.from_list(ROWS)}).save_to_disk(folder)
        case "folder of headers":
            (folder / "train.csv").write_text("prompt,answer\n")
        case "folder of empty files":
            (folder / "train.jsonl").touch()
        case _:
            path = folder / kind
            path.write_text("[]" if kind == "train.json" else "prompt,answer\n")
            return path
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "train.csv",
        "train.json",
        "saved",
        "saved after a filter",
        "saved split",
        "folder of headers",
        "folder of empty files",
    ],
)
def test_a_dataset_without_rows_says_so_when_it_is_loaded(tmp_path, kind, streaming):
    source = without_rows(tmp_path, kind)
    message = r"^The dataset '.*set.*' has no rows in 'train'. Add rows with a column `prompt`, or name another split"
    with pytest.raises(DataError, match=message):
        load_prompts(source, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_without_rows_is_empty_too(tmp_path, streaming):
    Dataset.from_dict({"prompt": []}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows.parquet' is empty: it holds no rows"):
        load_prompts(tmp_path / "rows.parquet", streaming=streaming)


def test_a_split_without_rows_leaves_the_others_usable(tmp_path):
    folder = without_rows(tmp_path, "saved split")
    assert load_prompts(folder, split="test").to_list() == ROWS
    assert load_prompts(folder, split="train+test[1:]").to_list() == ROWS[1:]


@pytest.mark.parametrize("name", ["rows.jsonl", "saved"])
def test_a_cut_that_leaves_no_rows_asks_for_a_larger_part(tmp_path, name):
    write(tmp_path / "rows.jsonl")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"has no rows in 'train\[2:\]'. Take a larger part, or name"):
        load_prompts(tmp_path / name, split="train[2:]")


def test_the_home_folder_may_be_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rows.jsonl")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl")
    assert load_prompts("~/rows.jsonl").to_list() == ROWS
    assert load_prompts("~/set").to_list() == ROWS


def test_sources_without_splits_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"train": data}).save_to_disk(tmp_path / "many")
    write(tmp_path / "rows.jsonl")
    found = {name: is_one_set(f"~/{name}") for name in ("one", "many", "rows.jsonl", "nothing")}
    assert found == {"one": True, "many": False, "rows.jsonl": True, "nothing": False}


def test_what_is_not_there_or_not_readable_names_itself(tmp_path):
    with pytest.raises(DataError, match=r"no dataset file 'rows.jsonl'"):
        load_prompts("rows.jsonl")
    text = tmp_path / "rows.txt"
    text.write_text("one")
    with pytest.raises(DataError, match=r"must end in .jsonl, .json, .csv, .parquet"):
        load_prompts(text)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": ')
    with pytest.raises(DataError, match=r"loading the dataset '.*broken.jsonl' \(split 'train'\) failed: "):
        load_prompts(broken)


def test_eval_sets():
    data = Dataset.from_list(ROWS)
    assert eval_sets(None) == {}
    assert eval_sets(data) == {"": data}
    assert eval_sets({"easy": data, "hard": ROWS}) == {"easy": data, "hard": ROWS}
    assert eval_sets(DatasetDict({"test": data})) == {"test": data}
