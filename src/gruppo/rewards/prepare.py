"""From what the user gave as `reward_funcs` to sources that can be scored. Signatures are checked before models load.

Not here: scoring (`score.py`), and finding functions by name for the command line (`resolve.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from gruppo.config_coerce import home
from gruppo.errors import RewardError
from gruppo.rewards.builtin_table import BUILTINS
from gruppo.rewards.model import load_reward_model, model_name, prepare_reward_model
from gruppo.rewards.protocol import RewardSource, RewardSpec, callable_name, is_async_callable, unique_names
from gruppo.rewards.signature import check_columns, check_signature


def prepare_rewards(
    reward_funcs: RewardSpec | list[RewardSpec],
    *,
    reward_processing_classes: Any = None,
    columns: Collection[str] | None = None,
    extra_columns_allowed: bool = False,
    model_init_kwargs: Mapping[str, Any] | None = None,
    is_conversational: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[RewardSource]:
    """Check every reward and load the models among them. The lists given are not changed.

    reward_processing_classes: TRL's argument: one tokenizer (or None) per reward; one alone for one reward.
    columns: names in the dataset; None if they are not known before the first row (streaming).
    extra_columns_allowed: a `rollout_func` may supply columns that the dataset lacks.
    model_init_kwargs: the policy's; a reward model named by id takes its dtype and the like, not its revision.
    is_conversational: are the prompts message lists? None if not known yet.

    Raises RewardError: nothing given, something that is no reward, a function that cannot receive what is passed, a
    column that is not there, a model or tokenizer that does not load.
    """
    specs = [home(spec) for spec in (reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs])]
    if not specs or specs == [None]:
        raise RewardError("No reward source provided. Pass at least one function or model as `reward_funcs`.")
    processing_classes = _one_per_reward(reward_processing_classes, len(specs))
    names = unique_names(_name(spec) for spec in specs)
    _check_functions(specs, names, columns, extra_columns_allowed)
    sources = []
    for spec, name, processing_class in zip(specs, names, processing_classes, strict=True):
        if isinstance(spec, str | nn.Module):
            model = load_reward_model(spec, model_init_kwargs) if isinstance(spec, str) else spec
            source = prepare_reward_model(
                model,
                name,
                processing_class,
                is_conversational=is_conversational,
                model_init_kwargs=model_init_kwargs,
                chat_template_kwargs=chat_template_kwargs or {},
            )
        else:
            source = RewardSource(name, spec, "async" if is_async_callable(spec) else "sync", processing_class)
        sources.append(source)
    return sources


def _name(spec: Any) -> str:
    """Name of a reward, known before anything is loaded. Raises RewardError for what is no reward."""
    if isinstance(spec, str):
        if spec in BUILTINS:
            raise RewardError(
                f"`reward_funcs` holds the text {spec!r}, and texts are model ids. For the built-in reward pass the "
                f"function itself: `from gruppo.rewards import {spec}`."
            )
        return spec.rstrip("/").split("/")[-1]
    if isinstance(spec, nn.Module):
        return model_name(spec)
    if inspect.isclass(spec):
        raise RewardError(f"`reward_funcs` holds the class `{spec.__name__}`; pass an instance: `{spec.__name__}()`.")
    if not callable(spec):
        raise RewardError(
            f"`reward_funcs` holds {spec!r} of type {type(spec).__name__}. A reward is a function, an object with "
            f"`__call__`, a sequence classifier, or the id or path of one."
        )
    return callable_name(spec)


def _check_functions(specs: list[Any], names: list[str], columns: Collection[str] | None, extra: bool) -> None:
    functions = [(spec, name) for spec, name in zip(specs, names, strict=True) if not isinstance(spec, str | nn.Module)]
    if functions and columns is not None:
        check_columns(columns)
    for function, name in functions:
        check_signature(function, name, columns, extra_columns_allowed=extra)


def _one_per_reward(given: Any, num_rewards: int) -> list[Any]:
    if given is None:
        return [None] * num_rewards
    processing_classes = list(given) if isinstance(given, list | tuple) else [given]
    if len(processing_classes) != num_rewards:
        raise RewardError(
            f"The number of reward processing classes ({len(processing_classes)}) must match the number of reward "
            f"functions ({num_rewards}). Give one per reward, None for functions."
        )
    return processing_classes
