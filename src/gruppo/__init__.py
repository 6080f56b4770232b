"""gruppo: GRPO post-training of language models, with TRL's API.

    from gruppo import GRPOConfig, GRPOTrainer

Public names are loaded when they are first used, so `import gruppo` (and `gruppo --help`) needs no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig
    from gruppo.data.load import load_prompts
    from gruppo.trainer import GRPOTrainer
    from gruppo.types import Completion, Group, Prompt

_HOMES = {
    "GRPOConfig": "gruppo.config",
    "GRPOTrainer": "gruppo.trainer",
    "load_prompts": "gruppo.data.load",
    "Completion": "gruppo.types",
    "Group": "gruppo.types",
    "Prompt": "gruppo.types",
}

__all__ = ["Completion", "GRPOConfig", "GRPOTrainer", "Group", "Prompt", "load_prompts"]

__version__ = version("gruppo")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gruppo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
