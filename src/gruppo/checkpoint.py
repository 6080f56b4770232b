"""Save and resume: one folder that `from_pretrained` loads and that holds all the next step depends on.

    checkpoint-12/
        model.safetensors, config.json, tokenizer...   Hugging Face's own layout (an adapter alone under PEFT)
        trainer_state.json                             transformers' TrainerState, callbacks' states within
        optimizer.safetensors, optimizer.json          moments, and the groups' numbers
        scheduler.json, gruppo.json                    schedule; position in the data, controllers, metric counters
        random-0.safetensors                           generators of rank 0, 1, ...
        rollouts-0.safetensors                         the generation round in use, if the step is inside one
        reference.safetensors                          the KL reference, if it ever moved
        manifest.json                                  sha256 of every file, written last

Nothing is pickled and nothing unpickles. The folder appears by rename, whole or not at all; what a kill leaves behind
is hidden (`.checkpoint-12.partial`) and goes with the next save. Not here: what of a run goes into which file
(`run_checkpoints.py`), and which old checkpoints to delete (`retention.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from gruppo.errors import CheckpointError, boundary
from gruppo.policy.optim_state import flat_entries, nested_entries
from gruppo.types import TrainBatch

if TYPE_CHECKING:
    from gruppo.distributed.world import World

SCHEMA = 1

_NAME = re.compile(r"checkpoint-(\d+)|\.checkpoint-(\d+)\.replaced")

_RAGGED = ("prompt_ids", "completion_ids")
_INTEGERS = ("group_ids", "slice_ids")
_TENSORS = (
    "trained_NT",
    "advantages_N",
    "sampler_logprobs_NT",
    "old_logprobs_NT",
    "ref_logprobs_NT",
)


class CheckpointWriter:
    """Collects the files of one checkpoint in a hidden folder; `commit` makes it appear. All ranks take part."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self._world = folder, world
        self.staging = folder.with_name(f".{folder.name}.partial")
        if world.is_main:
            clear_up(folder.parent)
            self.staging.mkdir(parents=True)
        world.barrier()

    def model(self, model: Any, tokenizer: Any, adapter: str | None) -> None:
        """Weights, config and tokenizer; with `adapter`, that adapter alone."""
        if self._world.is_main:
            save_pretrained(self.staging, model, tokenizer, adapter)

    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._world.is_main:
            return
        tensors, numbers = split_state(optimizer.state_dict())
        save_file(tensors, self.staging / "optimizer.safetensors")
        self.json("optimizer.json", numbers)

    def random_state(self) -> None:
        """This rank's generators."""
        save_file(random_state(), self.staging / f"random-{self._world.rank}.safetensors")

    def rollouts(self, batch: TrainBatch | None) -> None:
        """This rank's rows of the generation round in use."""
        if batch is not None:
            save_file(batch_to_tensors(batch), self.staging / f"rollouts-{self._world.rank}.safetensors")

    def tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        if tensors and self._world.is_main:
            save_file(_on_host(tensors), self.staging / name)

    def json(self, name: str, content: Any) -> None:
        if self._world.is_main:
            (self.staging / name).write_text(json.dumps(content, indent=1))

    def commit(self) -> None:
        """Write the manifest and let the folder appear under its name."""
        self._world.barrier()
        if self._world.is_main:
            files = sorted(path for path in self.staging.rglob("*") if path.is_file())
            sums = {str(path.relative_to(self.staging)): _sha256(path) for path in files}
            self.json("manifest.json", {"schema": SCHEMA, "world_size": self._world.size, "sha256": sums})
            if self.folder.exists():
                os.replace(self.folder, self.folder.with_name(f".{self.folder.name}.replaced"))
            os.replace(self.staging, self.folder)
            clear_up(self.folder.parent)
        self._world.barrier()


class CheckpointReader:
    """An existing checkpoint, verified file by file against its manifest.

    Raises CheckpointError if it is incomplete or damaged, or was saved by another number of processes.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self._world = folder, world
        if not (folder / "manifest.json").is_file():
            raise CheckpointError(
                f"{folder} is not a checkpoint that training can resume from: it has no manifest.json. Pass a folder "
                "checkpoint-<step> that gruppo wrote, or the run's output_dir to take its newest."
            )
        manifest = self.json("manifest.json")
        for name, expected in manifest["sha256"].items():
            if not (folder / name).is_file() or _sha256(folder / name) != expected:
                raise CheckpointError(f"{folder / name} is missing or damaged. Resume from an older checkpoint.")
        if manifest["world_size"] != world.size:
            raise CheckpointError(
                f"{folder} was saved by {manifest['world_size']} processes and this run has {world.size}: their random "
                f"states and rows do not fit. Launch with --num_processes {manifest['world_size']}."
            )

    def require_resumable(self) -> None:
        """Raises CheckpointError for a checkpoint that holds a model alone."""
        if not (self.folder / "gruppo.json").is_file():
            raise CheckpointError(
                f"{self.folder} holds a model only (save_only_model=True), so there is nothing to resume. Load it as "
                "a model: GRPOTrainer(model=...)."
            )

    def json(self, name: str) -> Any:
        with boundary(CheckpointError, f"reading {self.folder / name}"):
            return json.loads((self.folder / name).read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Empty if the checkpoint has no such file."""
        return load_file(self.folder / name) if (self.folder / name).is_file() else {}

    @torch.no_grad()
    def model(self, model: Any, adapter: str | None) -> None:
        """Load the weights into `model`, which has the same shape; with `adapter`, that adapter alone."""
        if adapter is not None:
            # PEFT saves an adapter of another name than "default" into a folder of that name.
            named = self.folder / adapter
            model.load_adapter(str(named if named.is_dir() else self.folder), adapter, is_trainable=True)
            return
        # from_pretrained knows every renaming and tying between a state dict and its files; a plain load does not.
        with boundary(CheckpointError, f"loading the model of {self.folder}"), _without_progress_bar():
            saved, report = type(model).from_pretrained(
                self.folder, dtype=_widest_type(model), output_loading_info=True
            )
            if missing := sorted(report["missing_keys"]):  # from_pretrained would make them up
                raise CheckpointError(
                    f"{self.folder} holds another model: it lacks {len(missing)} of the tensors of "
                    f"{type(model).__name__}, {missing[0]} among them. Resume with the model that the run began with."
                )
            model.load_state_dict(saved.state_dict())

    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        with boundary(CheckpointError, f"restoring the optimizer from {self.folder}"):
            optimizer.load_state_dict(join_state(self.tensors("optimizer.safetensors"), self.json("optimizer.json")))

    def random_state(self) -> None:
        set_random_state(self.tensors(f"random-{self._world.rank}.safetensors"))

    def rollouts(self, device: torch.device) -> TrainBatch | None:
        tensors = self.tensors(f"rollouts-{self._world.rank}.safetensors")
        return batch_from_tensors(tensors, device) if tensors else None


def _widest_type(model: Any) -> torch.dtype:
    """One that holds all weights exactly: a head in float32 would be rounded to the type of the others."""
    types = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    widest: torch.dtype = reduce(torch.promote_types, types)
    return widest


def save_pretrained(folder: Path, model: Any, tokenizer: Any, adapter: str | None) -> None:
    """Model (or the adapter of that name alone) and tokenizer, in Hugging Face's layout."""
    selected = {} if adapter is None else {"selected_adapters": [adapter]}
    with _without_progress_bar():
        model.save_pretrained(folder, **selected)
    tokenizer.save_pretrained(folder)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers' own; ours shows the run."""
    was_shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            enable_progress_bar()


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint of the highest step in a run's folder; None if it has none.

    Where a kill came between taking a checkpoint's old folder away and putting the new one there, it is the old one.
    """
    steps: dict[int, Path] = {}
    for path in sorted(output_dir.glob("*checkpoint-*")):  # the hidden ones come first
        match = _NAME.fullmatch(path.name)
        if match and (path / "manifest.json").is_file():
            steps[int(match[1] or match[2])] = path
    return steps[max(steps)] if steps else None


def clear_up(run_dir: Path) -> None:
    """What a kill left behind: half checkpoints go, and one whose successor never came gets its name back."""
    for partial in run_dir.glob(".checkpoint-*.partial"):
        shutil.rmtree(partial)
    for replaced in run_dir.glob(".checkpoint-*.replaced"):
        folder = run_dir / replaced.name.removeprefix(".").removesuffix(".replaced")
        if folder.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(folder)


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state dict as named tensors on the host, and the rest as JSON values.

    Tensors that are there already are the optimizer's own: write them before it goes on.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        for name, value in flat_entries(entries).items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}/{name}"] = value
            else:
                numbers.setdefault(str(parameter), {})[name] = value
    return _on_host(tensors), {"param_groups": state["param_groups"], "state": numbers}


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them: contiguous, and no two in one storage (tied weights are). A GPU copies nothing."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        if host.untyped_storage().data_ptr() in storages:
            host = host.clone()
        storages.add(host.untyped_storage().data_ptr())
        found[name] = host
    return found


def join_state(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_state`."""
    state: dict[int, dict[str, Any]] = {int(key): dict(entries) for key, entries in numbers["state"].items()}
    for key, tensor in tensors.items():
        parameter, name = key.split("/", 1)
        state.setdefault(int(parameter), {})[name] = tensor
    nested = {parameter: nested_entries(entries) for parameter, entries in state.items()}
    return {"state": nested, "param_groups": numbers["param_groups"]}


def random_state() -> dict[str, Tensor]:
    """Generators of torch, CUDA, numpy and Python as tensors."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert kind == "MT19937", kind
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    position, has_gauss, cached = state["numpy_rest"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    version, *internal = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(internal), gauss[0] if gauss else None))


def batch_to_tensors(batch: TrainBatch) -> dict[str, Tensor]:
    """A TrainBatch as flat named tensors. Row weights are not among them: they are counted again."""
    tensors: dict[str, Tensor] = {}
    for name in _RAGGED:
        rows: list[list[int]] = getattr(batch, name)
        tensors[f"{name}/lengths"] = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        tensors[f"{name}/tokens"] = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    for name in _INTEGERS:
        tensors[name] = torch.tensor(getattr(batch, name), dtype=torch.int64)
    for name in _TENSORS:
        value = getattr(batch, name)
        if value is not None:
            tensors[name] = value.detach().cpu().clone().contiguous()
    return tensors


def batch_from_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> TrainBatch:
    """The inverse of `batch_to_tensors`."""
    fields: dict[str, Any] = {}
    for name in _RAGGED:
        rows = tensors[f"{name}/tokens"].split(tensors[f"{name}/lengths"].tolist())
        fields[name] = [row.tolist() for row in rows]
    for name in _INTEGERS:
        fields[name] = tensors[name].tolist()
    for name in _TENSORS:
        fields[name] = tensors[name].to(device) if name in tensors else None
    return TrainBatch(**fields)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
