"""Local files of every kind load; what cannot be loaded names itself."""

import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from gruppo.data.load import eval_sets, load_prompts
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
