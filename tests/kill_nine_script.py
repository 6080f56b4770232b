"""Run by test_kill_nine.py. Imports torch once, then forks a trainer for each attempt. Not a test by itself.

One JSON object per line comes in: `folder`, `hold_at` (train up to this step and wait there; null: to the end), and
either nothing more or `moment` and `number` (die at the number-th such moment, see MOMENTS). Two go out: `pid`, and
`status` once it has ended (negative: the signal that ended it). What the trainer prints goes to FOLDER.log; a run that
ends leaves its parameters in FOLDER.safetensors.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from fakes import DATA, flat, policy, trainer
from gruppo import checkpoint
from gruppo.monitor.files import JsonLines
from gruppo.monitor.schema import to_json

NUM_STEPS = 45
SAVE_STEPS = 3
FIELDS = {
    "max_steps": NUM_STEPS,
    "save_strategy": "steps",
    "save_steps": SAVE_STEPS,
    "save_total_limit": 2,
    "steps_per_generation": 4,  # a round feeds two steps: every other checkpoint lies inside one
    "eval_strategy": "steps",
    "eval_steps": 4,
}


class Hold(TrainerCallback):
    """Waits before the step after `step`, so that a slow killer finds the run unfinished."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            time.sleep(600)


def train(folder: Path, hold_at: int | None) -> None:
    model = policy("gpt2")  # with dropout: a lost generator state would show
    holding = [] if hold_at is None else [Hold(hold_at)]
    made = trainer(folder, FIELDS, model=model, eval_dataset=DATA[:1], callbacks=holding)
    made.train(resume_from_checkpoint=checkpoint.newest_checkpoint(folder) is not None)
    save_file({"parameters": flat(made.model)}, folder.with_suffix(".safetensors"))


# -- moments of death


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut(path: Path) -> None:
    """Half of the file, then the end."""
    os.truncate(path, path.stat().st_size // 2)
    die()


def before_rename(is_due: Callable[[], bool]) -> None:
    replace = os.replace

    def dying(source: Any, target: Any) -> None:
        if is_due():
            die()
        replace(source, target)

    os.replace = dying


def after_rename(is_due: Callable[[], bool]) -> None:
    replace = os.replace

    def dying(source: Any, target: Any) -> None:
        replace(source, target)
        if is_due():
            die()

    os.replace = dying


def half_a_part(is_due: Callable[[], bool]) -> None:
    write_table = pq.write_table

    def dying(table: Any, where: Path, **options: Any) -> None:
        write_table(table, where, **options)
        if is_due():
            cut(where)

    pq.write_table = dying


def half_a_line(is_due: Callable[[], bool]) -> None:
    append = JsonLines.append

    def dying(self: JsonLines, record: dict[str, Any]) -> None:
        if is_due():
            line = to_json(record).encode()
            with self.path.open("ab") as file:
                file.write(line[: len(line) // 2])
            die()
        append(self, record)

    JsonLines.append = dying


def half_a_checkpoint(is_due: Callable[[], bool]) -> None:
    save = checkpoint.save_file

    def dying(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save(tensors, path)
        if is_due():
            cut(path)

    checkpoint.save_file = dying


def half_superseded(is_due: Callable[[], bool]) -> None:
    rename = Path.rename

    def dying(self: Path, target: Path) -> Path:
        if is_due():
            die()
        return rename(self, target)

    Path.rename = dying


def half_deleted(is_due: Callable[[], bool]) -> None:
    rmtree = shutil.rmtree

    def dying(path: Path, *args: Any, **options: Any) -> None:
        if Path(path).is_dir() and is_due():
            for file in sorted(Path(path).iterdir()):
                if file.name != "manifest.json":
                    file.unlink()
            die()
        rmtree(path, *args, **options)

    shutil.rmtree = dying


MOMENTS: dict[str, tuple[Callable[[Callable[[], bool]], None], int]] = {
    "before a rename": (before_rename, 12),
    "after a rename": (after_rename, 12),
    "half a part": (half_a_part, 5),
    "half a line": (half_a_line, 7),
    "half a checkpoint": (half_a_checkpoint, 3),
    "half superseded": (half_superseded, 2),
    "half deleted": (half_deleted, 1),
}
"""name -> (what arranges it, how often it comes in an attempt of five steps)."""


def countdown(number: int) -> Callable[[], bool]:
    """True at the number-th call."""
    left = [number]

    def is_due() -> bool:
        left[0] -= 1
        return left[0] == 0

    return is_due


# -- the server


def attempt(order: dict[str, Any]) -> int:
    """One trainer, in the forked child; its exit status."""
    folder = Path(order["folder"])
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        if "moment" in order:
            arrange, _ = MOMENTS[order["moment"]]
            arrange(countdown(order["number"]))
        train(folder, order["hold_at"])
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(attempt(json.loads(line)))
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
