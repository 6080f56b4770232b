"""Datasets from the hub, and from JSON Lines, JSON, CSV and Parquet files.

Thin on purpose: `datasets.load_dataset` does the work, and its own errors are given the name of what was being read.
Rows are not looked at here (`prompts.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

from gruppo.errors import DataError, boundary

_BUILDERS: Final = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_prompts(
    source: str | Path, *, split: str = "train", name: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """A dataset from a file, a folder of files, a folder made by `save_to_disk`, or a hub id.

    A single file is the split that is asked for. `name` is the hub's configuration ("main" of openai/gsm8k).
    Raises DataError with the cause.
    """
    path = Path(source)
    with boundary(DataError, f"loading the dataset {str(source)!r} (split {split!r})"):
        if path.is_file():
            return _load_file(path, split, streaming)
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return _pick_split(load_from_disk(str(path)), split, path)
        if not path.is_dir() and (path.suffix in _BUILDERS or path.is_absolute()):
            raise DataError(f"There is no dataset file {str(path)!r}.")
        return load_dataset(str(source), name, split=split, streaming=streaming)


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
    split_name = split.partition("[")[0]
    return load_dataset(builder, data_files={split_name: str(path)}, split=split, streaming=streaming)


def _pick_split(saved: Any, split: str, path: Path) -> Dataset:
    if isinstance(saved, Dataset):
        return saved
    if split not in saved:
        raise DataError(f"The dataset in {str(path)!r} has no split {split!r}; it has {', '.join(saved)}.")
    return saved[split]
