"""Optimizer states as plain tensors and numbers, and back: what a checkpoint without pickle can hold.

A plain optimizer keeps a tensor under each name. Libraries with small states keep more: bitsandbytes a dictionary of
tensors, torchao a tensor that is made of others (codes, scales, a table of values). Here both become flat entries with
a path for a name, `exp_avg/codes`, and the same objects again. Nothing is decoded or rounded on the way.

Which classes may be made again is a table here, so that no file can name a class to import. Files are not this
module's matter (`checkpoint`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gruppo.errors import CheckpointError

_MODULES: dict[str, str] = {
    "OptimState4bit": "torchao.optim.subclass_4bit",
    "OptimState8bit": "torchao.optim.subclass_8bit",
    "OptimStateFp8": "torchao.optim.subclass_fp8",
}
"""Where each class of composed tensors is at home."""

_CLASS = "class"
"""Last part of the path under which a composed tensor says what it is."""


def flat_entries(entries: Mapping[str, Any]) -> dict[str, Any]:
    """One parameter's state: plain tensors, and values for JSON, by path.

    Raises:
        CheckpointError: a composed tensor of a class that is not in the table (a sharded one, say).
    """
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        parts = _parts(name, value)
        if parts is None:
            flat[name] = value
        else:
            flat |= {f"{name}/{path}": part for path, part in parts.items()}
    return flat


def nested_entries(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat_entries`.

    Raises:
        CheckpointError: the library of a composed tensor is not installed, or the class is not in the table.
    """
    entries: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in flat.items():
        name, _, rest = path.partition("/")
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            entries[name] = value
    for name, parts in inner.items():
        entries[name] = _composed(parts) if _CLASS in parts else nested_entries(parts)
    return entries


def _parts(name: str, value: Any) -> dict[str, Any] | None:
    """What `value` is made of; None if it is plain."""
    if isinstance(value, Mapping):
        return flat_entries(value)
    if not _is_composed(value):
        return None
    kind = type(value)
    if _MODULES.get(kind.__name__) != kind.__module__:
        raise CheckpointError(
            f"The optimizer keeps {name!r} in a {kind.__module__}.{kind.__name__}, which a checkpoint cannot hold. "
            'Take another optimizer, or set save_strategy="no".'
        )
    names, context = value.__tensor_flatten__()
    parts = {part: getattr(value, part) for part in names}
    return parts | {_CLASS: {"name": kind.__name__, "context": [_to_json(x) for x in context]}}


def _is_composed(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(is_traceable_wrapper_subclass(value))


def _composed(parts: dict[str, Any]) -> Tensor:
    label = parts[_CLASS]
    tensors = {name: part for name, part in parts.items() if name != _CLASS}
    try:
        module = importlib.import_module(_MODULES[label["name"]])
    except (KeyError, ImportError) as error:
        raise CheckpointError(
            f"The optimizer's state holds tensors of the kind {label['name']!r}, which needs a library that is not "
            "installed here (torchao). Install it, or resume with the optimizer that the run began with."
        ) from error
    context = [_from_json(x) for x in label["context"]]
    composed: Tensor = getattr(module, label["name"]).__tensor_unflatten__(tensors, context, None, None)
    return composed


def _to_json(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return list(value) if isinstance(value, tuple) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return getattr(torch, value["dtype"])
    return tuple(value) if isinstance(value, list) else value
