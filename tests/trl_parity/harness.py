"""Runs one case through TRL 1.16 and through gruppo, and says where the two differ.

Not a test: `test_parity.py` asserts. What is patched in TRL, and why, stands at `_trl_rows` and `_force_correction`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update({"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"})

import datasets
import peft
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState

from gruppo.data.order import slice_assignment
from trl_parity import world
from trl_parity.cases import CORRECTION, Case

UNUSUAL = ["learning_rate", "epsilon_high"]
"""What gruppo takes for mistakes unless told otherwise: a handful of steps must move the weights visibly here."""


@dataclass
class RunResult:
    """What a run leaves behind. `start` are the parameters before it, `parameters` those after."""

    log_history: list[dict[str, Any]]
    parameters: dict[str, torch.Tensor]
    start: dict[str, torch.Tensor]


def run_trl(case: Case, models: Path, output_dir: Path) -> RunResult:
    """The case through TRL's trainer."""
    with _quiet():
        import trl
        from trl.trainer import grpo_trainer

        _forget_accelerator()
        trainer = trl.GRPOTrainer(**_inputs(case, models, trl.GRPOConfig(output_dir=str(output_dir), **case.settings)))
        trainer.remove_callback(transformers.PrinterCallback)
        if case.is_corrected:
            _force_correction(trainer)
        start = _parameters(trainer.model)
        with _trl_rows(grpo_trainer, trainer.args):
            trainer.train()
    return RunResult(trainer.state.log_history, _parameters(trainer.model), start)


def run_gruppo(case: Case, models: Path, output_dir: Path) -> RunResult:
    """The case through gruppo's trainer."""
    import gruppo

    _forget_accelerator()
    settings = case.settings | {f"{CORRECTION}_correction": case.is_corrected, "allow_unusual": UNUSUAL} | case.ours
    trainer = gruppo.GRPOTrainer(**_inputs(case, models, gruppo.GRPOConfig(output_dir=str(output_dir), **settings)))
    start = _parameters(trainer.model)
    trainer.train()
    return RunResult(trainer.state.log_history, _parameters(trainer.model), start)


def _inputs(case: Case, models: Path, args: Any) -> dict[str, Any]:
    """Both constructors' keyword arguments; nothing mutable is shared between two runs."""
    path = world.save_model(case.model, models)
    tokenizer = world.build_tokenizer()
    rollout = world.Rollout(
        tokenizer,
        max_length=args.max_completion_length,
        sampler=case.sampler,
        temperature=args.temperature,
        has_env_mask=case.has_env_mask,
        eos_ids=(world.EOS_ID, world.SECOND_EOS_ID) if case.model == "two_eos" else (world.EOS_ID,),
    )
    return {
        "model": _model(case, path),
        "reward_funcs": [world.REWARDS[name] for name in case.rewards],
        "args": args,
        "train_dataset": _dataset(case, case.num_prompts, 0),
        "eval_dataset": _dataset(case, case.num_eval_prompts, 40) if case.num_eval_prompts else None,
        "processing_class": tokenizer,
        "rollout_func": rollout,
        "peft_config": _lora(has_effect=False) if case.lora == "fresh" else None,
    }


def _dataset(case: Case, num_prompts: int, start: int) -> datasets.Dataset | datasets.IterableDataset:
    rows = world.prompts(num_prompts, is_conversational=case.is_conversational, start=start)
    dataset = datasets.Dataset.from_dict({"prompt": rows, "level": [i % 4 for i in range(num_prompts)]})
    return dataset.to_iterable_dataset() if case.is_streamed else dataset


def _model(case: Case, path: Path) -> Any:
    if case.lora != "given" and not case.is_in_memory and not case.is_double:
        return str(path)
    dtype = torch.float64 if case.is_double else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    if case.lora != "given":
        return model
    torch.manual_seed(1)
    with _quiet():
        return peft.get_peft_model(model, _lora(has_effect=True))


def _lora(*, has_effect: bool) -> peft.LoraConfig:
    """A new adapter changes nothing until it is trained; `has_effect` draws it at random instead."""
    return peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=not has_effect, task_type="CAUSAL_LM"
    )


def _parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def _forget_accelerator() -> None:
    """Accelerate keeps its state in process-wide singletons; each run starts without the last one's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TRL's and transformers' warnings are theirs; gruppo's run outside of this, where warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


# ---- what is patched in TRL -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _trl_rows(grpo_trainer: Any, args: Any) -> Iterator[None]:
    """Let TRL deal the rows of a generation round to its slices as gruppo does.

    TRL permutes them with the process-wide generator, from which everything else in the process draws too; gruppo's
    permutation is a pure function of (seed, round), so that a resumed run deals the same hand. Which permutation is
    drawn is no part of the algorithm, so TRL is given gruppo's.
    """
    original, rounds = grpo_trainer.shuffle_sequence_dict, itertools.count()

    def deal(rows: dict[str, Any]) -> dict[str, Any]:
        num_rows = len(rows["prompt_ids"])
        slices = slice_assignment(num_rows, args.steps_per_generation, args.seed, next(rounds), 0)
        order = sorted(range(num_rows), key=slices.__getitem__)
        return {key: value[order] if value.ndim else value for key, value in rows.items()}

    grpo_trainer.shuffle_sequence_dict = deal
    try:
        yield
    finally:
        grpo_trainer.shuffle_sequence_dict = original


class _NoEngine:
    """Stands where TRL keeps its vLLM engine; the completions come from `rollout_func`."""

    def sync_weights(self) -> None:
        """Nothing to do: there is no second copy of the weights."""


def _force_correction(trainer: Any) -> None:
    """Make TRL apply its sampler correction without vLLM: it asks for `use_vllm` when it computes, not before."""
    trainer.use_vllm = True
    trainer.vllm_importance_sampling_correction = True
    trainer.vllm_generation = _NoEngine()
    trainer._last_loaded_step = -1


# ---- comparing --------------------------------------------------------------------------------------------------

TIMING = ("step_time", "runtime", "per_second")
"""Endings of the names that measure a clock."""


def differing_metrics(trl_log: list[dict[str, Any]], our_log: list[dict[str, Any]]) -> list[str]:
    """One line for each of TRL's logged values that ours does not repeat, in the order in which they were logged.

    Ours may say more; it may not say less, say it elsewhere, or be off by more than 1e-5.
    """
    problems = []
    if [_place(line) for line in trl_log] != [_place(line) for line in our_log]:
        problems.append(f"lines: TRL {[_place(line) for line in trl_log]}, gruppo {[_place(line) for line in our_log]}")
    for theirs, ours in zip(trl_log, our_log, strict=False):
        for name, value in theirs.items():
            if name.endswith(TIMING):
                continue
            if name not in ours:
                problems.append(f"{_place(theirs)} {name}: TRL {value}, gruppo says nothing")
            elif not _is_close(name, value, ours[name]):
                problems.append(f"{_place(theirs)} {name}: TRL {value}, gruppo {ours[name]}")
    return problems


def _place(line: dict[str, Any]) -> str:
    kinds = {"loss": "training", "train_loss": "summary"}
    kind = next((kind for name, kind in kinds.items() if name in line), "evaluation")
    return f"{kind} of step {line['step']}"


def _is_close(name: str, theirs: float | None, ours: float | None) -> bool:
    """1e-5 relative; the absolute part is for fp32 numbers that cancel: losses of advantages, KLs of nothing."""
    if theirs is None or ours is None:
        return theirs is ours
    return math.isclose(theirs, ours, rel_tol=1e-5, abs_tol=1e-5 if name.endswith("loss") else 1e-6)


def differing_parameters(trl: RunResult, ours: RunResult) -> list[str]:
    """One line for each parameter that ends elsewhere: by 1e-6 of its norm, or by 1e-3 of how far it was moved."""
    assert trl.parameters.keys() == ours.parameters.keys(), "not the same model"
    problems = []
    for name, theirs in trl.parameters.items():
        gap = (theirs - ours.parameters[name]).norm().item()
        size, move = theirs.norm().item(), (theirs - trl.start[name]).norm().item()
        if gap > 1e-6 * size or gap > max(1e-3 * move, 1e-7 * size):
            problems.append(f"{name}: differs by {gap:.1e}; its norm is {size:.1e}, it was moved by {move:.1e}")
    return problems
