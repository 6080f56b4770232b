"""Every error gruppo raises on purpose, and the one place where foreign errors are classified.

    GruppoError
    ├── ConfigError      (ValueError)    a setting that cannot be; all mistakes of a config at once
    ├── PlanError        (ConfigError)   batch arithmetic that does not divide; proposes what does
    ├── DataError        (ValueError)    a dataset or a prompt that cannot be used
    ├── ModelError       (ValueError)    a model, tokenizer or adapter that cannot be used
    ├── RewardError      (ValueError)    a reward function with the wrong signature or return value
    ├── RolloutError     (RuntimeError)  a rollout engine that broke its contract
    └── CheckpointError  (RuntimeError)  a checkpoint that is incomplete or does not fit

Each is also a standard error, so `except ValueError` keeps working in scripts written for TRL.
A message says what was given, why it cannot be, and what to set. `assert` is for our own mistakes only.

This is not a place for warnings, nor for control flow.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class GruppoError(Exception):
    """Base of all errors that gruppo raises on purpose."""


class ConfigError(GruppoError, ValueError):
    """One or more settings that cannot be. `problems` holds one complete sentence for each."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(_as_list(self.problems))


class PlanError(ConfigError):
    """Batch arithmetic that does not divide. The message proposes values that do."""


class DataError(GruppoError, ValueError):
    """A dataset, a column or a prompt that cannot be used."""


class ModelError(GruppoError, ValueError):
    """A model, tokenizer or adapter that cannot be used as asked."""


class RewardError(GruppoError, ValueError):
    """A reward function with the wrong signature or the wrong return value; names function and row."""


class RolloutError(GruppoError, RuntimeError):
    """A rollout engine (or the user's `rollout_func`) that broke its contract."""


class CheckpointError(GruppoError, RuntimeError):
    """A checkpoint that is incomplete, damaged, or belongs to another run."""


@contextmanager
def boundary(error_type: type[GruppoError], doing: str) -> Iterator[None]:
    """Turn a foreign exception into ours at one named place: `with boundary(DataError, "reading x.jsonl"): ...`.

    Errors of gruppo's own family pass unchanged, so a boundary may nest.
    """
    try:
        yield
    except GruppoError:
        raise
    except Exception as error:
        raise error_type(f"{doing} failed: {type(error).__name__}: {error}") from error


def _as_list(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:\n" + "\n".join(f"  {i}. {text}" for i, text in enumerate(problems, 1))
