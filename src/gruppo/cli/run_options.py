"""RunOptions: what `gruppo train` needs to know besides GRPOConfig, in which a script would pass objects.

The names of TRL's recipes are accepted too. The sentence under a field is its help.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import field
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from gruppo.trl_names import Entry, Needless, Refused, Renamed


def _as_list(value: object) -> object:
    """One name may come as text."""
    return [value] if isinstance(value, str) else value


@dataclass(config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class RunOptions:
    """Model, data, rewards and adapter of a run, all by name."""

    model: Annotated[str, AfterValidator(os.path.expanduser)] = ""
    """Policy to train: a hub id or a folder."""
    model_revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    dtype: str | None = None
    """Type of the weights (float32, bfloat16, float16); None takes float32."""
    attn_implementation: str | None = None
    """Attention kernel, by transformers' names (sdpa, eager, flash_attention_2, ...)."""
    dataset: str = ""
    """Prompts: a hub id, a folder, or a .jsonl, .json, .csv or .parquet file."""
    dataset_config: str | None = None
    """Configuration of a dataset on the hub (for example main)."""
    dataset_split: str = "train"
    """Split that is trained on."""
    dataset_streaming: bool = False
    """Read the dataset as it comes, without a length; needs max_steps."""
    eval_dataset: str | None = None
    """Prompts for evaluation; None takes `dataset`."""
    eval_split: str = "test"
    """Split that is evaluated, if eval_strategy asks for evaluation."""
    reward_funcs: list[str] = field(default_factory=list)
    """Rewards: built-in names, module:function, file.py:function, or reward models."""
    use_peft: bool | None = None
    """Train a LoRA adapter; None does so if lora_r is set."""
    lora_r: Annotated[int, Field(ge=1)] | None = None
    """Rank of the LoRA adapter; None takes 16."""
    lora_alpha: Annotated[int, Field(ge=1)] | None = None
    """Scale of the LoRA adapter; None takes twice its rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in the LoRA adapter."""
    lora_target_modules: Annotated[list[str] | None, BeforeValidator(_as_list)] = None
    """Modules that get the adapter, or one pattern; None and all-linear take all linear ones."""

    @property
    def has_adapter(self) -> bool:
        return self.lora_r is not None if self.use_peft is None else self.use_peft

    @property
    def adapter_modules(self) -> str | list[str]:
        """As peft wants them: names in a list; all-linear, and what is no name but a pattern, as text."""
        names = self.lora_target_modules or ["all-linear"]
        is_text = len(names) == 1 and not re.fullmatch(r"[\w.]+", names[0])
        return names[0] if is_text else names

    @property
    def adapter_rank(self) -> int:
        return self.lora_r or 16


OPTION_NAMES: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(RunOptions))

OPTION_DOCS: dict[str, str] = {
    name: info.description or ""
    for name, info in RunOptions.__pydantic_fields__.items()  # type: ignore[attr-defined]
}

_NOT_YET = "quantised loading from the command line is not there yet"
_IN_SCRIPT = "pass quantization_config to GRPOTrainer in a script"
_PEFT_IN_SCRIPT = "pass peft_config to GRPOTrainer in a script"

RECIPE_TABLE: dict[str, Entry] = {
    "model_name_or_path": Renamed("model"),
    "torch_dtype": Renamed("dtype"),
    "dataset_name": Renamed("dataset"),
    "dataset_train_split": Renamed("dataset_split"),
    "dataset_test_split": Renamed("eval_split"),
    "lora_task_type": Needless("the task is causal language modelling", (None, "CAUSAL_LM")),
    "lora_target_parameters": Refused("only modules can be chosen here", _PEFT_IN_SCRIPT, (None, [])),
    "lora_modules_to_save": Refused("only modules can be chosen here", _PEFT_IN_SCRIPT, (None, [])),
    "use_rslora": Refused("only plain LoRA can be chosen here", _PEFT_IN_SCRIPT),
    "use_dora": Refused("only plain LoRA can be chosen here", _PEFT_IN_SCRIPT),
    "load_in_4bit": Refused(_NOT_YET, _IN_SCRIPT),
    "load_in_8bit": Refused(_NOT_YET, _IN_SCRIPT),
    "bnb_4bit_quant_type": Refused(_NOT_YET, _IN_SCRIPT, (None, "nf4")),
    "bnb_4bit_quant_storage": Refused(_NOT_YET, _IN_SCRIPT),
    "use_bnb_nested_quant": Refused(_NOT_YET, _IN_SCRIPT),
    "datasets": Refused("mixtures of datasets are not there yet", "write the mixture to one file", (None, [])),
    "ignore_bias_buffers": Refused("gruppo has no such workaround", "leave it out"),
}
"""Names of TRL's recipes (its script, model and dataset arguments) that are not fields of RunOptions."""

REWARD_MODEL = "reward_model_name_or_path"
"""TRL's name for a reward model; here it is one more entry of `reward_funcs`."""
