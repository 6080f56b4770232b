"""Datasets from the hub, and from JSON Lines, JSON, CSV and Parquet files.

Thin on purpose: `datasets` does the work, and its own errors are given the name of what was being read.
Rows are not looked at here (`prompts.py`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

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
        if path.is_file():
            return _load_file(path, split, streaming)
        if (path / _SAVED_ONE).is_file() or (path / _SAVED_MANY).is_file():
            rows = _pick_split(load_from_disk(source), split, path)
            return rows.to_iterable_dataset() if streaming else rows
        if not path.is_dir() and (path.suffix in _BUILDERS or path.is_absolute()):
            raise DataError(f"There is no dataset file {str(path)!r}.")
        return load_dataset(source, name, split=split, streaming=streaming)


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
    with path.open("rb") as lines:
        if not any(line.strip() for line in lines):
            raise DataError(
                f"The dataset file {str(path)!r} is empty: it holds no rows. Write at least one row with a column "
                "`prompt` to it, or name another file."
            )
    split_name = split.partition("[")[0]
    return load_dataset(builder, data_files={split_name: str(path)}, split=split, streaming=streaming)


def _pick_split(saved: Any, split: str, path: Path) -> Dataset:
    """The rows of `split`, which may be cut and added up as `load_dataset` has it: "train[:10%]+train[90%:]"."""
    is_one = isinstance(saved, Dataset)
    splits: dict[str, Dataset] = {"train": saved} if is_one else dict(saved)
    for name in (part.partition("[")[0].strip() for part in split.split("+")):
        if name not in splits:
            raise DataError(_no_split(name, list(splits), path, is_one))
    lengths = {name: len(rows) for name, rows in splits.items()}
    parts = ReadInstruction.from_spec(split).to_absolute(lengths)
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def _no_split(name: str, names: list[str], path: Path, is_one: bool) -> str:
    if not is_one:
        return f"The dataset in {str(path)!r} has no split {name!r}; it has {', '.join(names)}."
    return (
        f"The dataset in {str(path)!r} is one Dataset without splits, so it has no split {name!r}. Ask for 'train', or "
        "for a part such as 'train[90%:]', or save a DatasetDict."
    )
