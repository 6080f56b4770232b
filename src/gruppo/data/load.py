"""Datasets from the hub, and from JSON Lines, JSON, CSV and Parquet files.

Thin on purpose: `datasets` does the work, and its own errors are given the name of what was being read.
Rows are not looked at here (`prompts.py`).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset, ReadInstruction, concatenate_datasets, load_dataset, load_from_disk

from gruppo.errors import DataError, boundary

_BUILDERS: Final = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

_SAVED_ONE: Final = "dataset_info.json"
_SAVED_MANY: Final = "dataset_dict.json"
"""What `save_to_disk` of a Dataset, and of a DatasetDict, leaves in its folder."""


def load_prompts(
    source: str | Path, *, split: str = "train", name: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """A dataset from a file, a folder of files, a folder made by `save_to_disk`, or a hub id.

    A single file is the split that is asked for; a single Dataset made by `save_to_disk` is `train`. Splits may be cut,
    as in "train[:90%]". `name` is the hub's configuration ("main" of openai/gsm8k). Raises DataError with the cause.
    """
    source = os.path.expanduser(source)
    path = Path(source)
    with boundary(DataError, f"loading the dataset {source!r} (split {split!r})"):
        rows = _rows_of(path, source, split, name=name, streaming=streaming)
        if streaming and path.exists() and next(iter(rows), None) is None:
            raise DataError(_no_rows(source, split))
    return rows


def _rows_of(path: Path, source: str, split: str, *, name: str | None, streaming: bool) -> Dataset | IterableDataset:
    if path.is_file():
        return _load_file(path, split, streaming)
    if (path / _SAVED_ONE).is_file() or (path / _SAVED_MANY).is_file():
        rows = _load_saved(path, split)
        return rows.to_iterable_dataset() if streaming else rows
    if not path.is_dir() and (path.suffix in _BUILDERS or path.is_absolute()):
        raise DataError(f"There is no dataset file {str(path)!r}.")
    return _load(source, name, shown=source, split=split, streaming=streaming)


def is_one_set(source: str | Path) -> bool:
    """Whether `source` is a file, or a single Dataset made by `save_to_disk`: it has no held-out rows of its own."""
    path = Path(source).expanduser()
    return path.is_file() or (path / _SAVED_ONE).is_file()


def eval_sets(dataset: Any) -> dict[str, Any]:
    """`eval_dataset` as a dictionary: one set is named "", a dictionary keeps its names, None has no sets.

    Metrics of a named set are called `eval_<name>_...`, as in transformers.
    """
    if dataset is None:
        return {}
    return dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}


def _load_file(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    builder = _BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise DataError(f"{str(path)!r} is not a dataset file: the name must end in {', '.join(_BUILDERS)}.")
    if _is_blank(path):
        raise DataError(
            f"The dataset file {str(path)!r} is empty: it holds no rows. Write at least one row with a column "
            "`prompt` to it, or name another file."
        )
    files = {split.partition("[")[0]: str(path)}
    return _load(builder, shown=str(path), data_files=files, split=split, streaming=streaming)


def _is_blank(path: Path) -> bool:
    """Whether a file has no content. Of Parquet, which always has some, it is the rows that count."""
    if path.suffix.lower() == ".parquet" and path.stat().st_size:
        return pq.read_metadata(path).num_rows == 0
    with path.open("rb") as lines:
        return not any(line.strip() for line in lines)


def _load(*arguments: Any, shown: str, split: str, **settings: Any) -> Dataset | IterableDataset:
    """`load_dataset`, which has two ways of saying that there are no rows, neither of which says it."""
    try:
        return load_dataset(*arguments, split=split, **settings)
    except StopIteration as error:  # from empty files, whose columns it cannot tell
        raise DataError(_no_rows(shown, split)) from error
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise DataError(_no_rows(shown, split)) from error


def _no_rows(source: str, split: str) -> str:
    larger = "Take a larger part" if "[" in split else "Add rows with a column `prompt`"
    return f"The dataset {source!r} has no rows in {split!r}. {larger}, or name another split or another dataset."


def _load_saved(path: Path, split: str) -> Dataset:
    """The rows of `split`, which may be cut and added up as `load_dataset` has it: "train[:10%]+train[90%:]"."""
    is_one = (path / _SAVED_ONE).is_file()
    names = ["train"] if is_one else json.loads((path / _SAVED_MANY).read_text(encoding="utf-8"))["splits"]
    wanted = [part.partition("[")[0].strip() for part in split.split("+")]
    for name in wanted:
        if name not in names:
            raise DataError(_no_split(name, names, path, is_one))
    splits = {name: _load_folder(path if is_one else path / name) for name in wanted}
    lengths = {name: len(rows) for name, rows in splits.items()}
    parts = [part for part in ReadInstruction.from_spec(split).to_absolute(lengths) if part.from_ < part.to]
    if not parts:
        raise DataError(_no_rows(str(path), split))
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def _load_folder(folder: Path) -> Dataset:
    """A Dataset as it was saved. `load_from_disk` breaks on one that was saved without rows."""
    has_rows = bool(json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"])
    return load_from_disk(str(folder)) if has_rows else Dataset.from_dict({})


def _no_split(name: str, names: list[str], path: Path, is_one: bool) -> str:
    if not is_one:
        return f"The dataset in {str(path)!r} has no split {name!r}; it has {', '.join(names)}."
    return (
        f"The dataset in {str(path)!r} is one Dataset without splits, so it has no split {name!r}. Ask for 'train', or "
        "for a part such as 'train[90%:]', or save a DatasetDict."
    )
