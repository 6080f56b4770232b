"""Whether the parts of a run fit each other, looked at before it starts; what each part is by itself, it checks itself.

    check_arguments          the model is a model and `args` a GRPOConfig; none of them excludes another
    check_generation_kwargs  rollout engines know the names
    check_output_folder      it can be written; on all ranks, or on none
    check_eval_columns       held-out sets have the columns that the rewards need
    warn_if_beyond_context   prompts and completions fit the model's positions
    PromptCheck              the model has embeddings for the prompts' tokens

The order is in `wiring.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from gruppo.config import GRPOConfig
from gruppo.data.prompts import PromptDataset, PromptStream
from gruppo.errors import ConfigError, DataError, ModelError, RolloutError
from gruppo.output_folder import make_output_folder
from gruppo.policy.load import check_model_kind, is_peft_model
from gruppo.policy.vocabulary import ids_beyond, misfit, table_size
from gruppo.rewards.signature import check_signature
from gruppo.rollout.settings import check_sampling
from gruppo.settings import train_sampling
from gruppo.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gruppo.distributed.world import World
    from gruppo.rewards.protocol import RewardSource
    from gruppo.wiring import Arguments, Data

MAX_PROMPTS = 64
"""Prompts whose length is looked at, evenly spread over the dataset; of a stream none."""


def check_arguments(given: Arguments) -> None:
    """What the user passed to GRPOTrainer. Raises ConfigError, or ModelError for a model that is none."""
    check_model_kind(given.model)
    _check_args(given.config)
    not_yet = [name for name, value in given.not_yet.items() if value is not None]
    if not_yet:
        raise ConfigError(
            f"{' and '.join(not_yet)} cannot be used yet: gruppo trains single-turn completions so far. Leave it out; "
            "a rollout_func can run tools itself and mark their tokens with env_mask."
        )
    has_adapter = given.peft_config is not None or is_peft_model(given.model)
    if given.config is not None and given.config.sync_ref_model and has_adapter:
        raise ConfigError(
            "sync_ref_model=True cannot be used with an adapter: the reference shares the policy's weights, so there "
            "is no second model to move. Set sync_ref_model=False, or train the full model."
        )
    optimizer, scheduler = given.optimizers
    if optimizer is None and scheduler is not None:
        raise ConfigError("optimizers=(None, scheduler): a scheduler belongs to an optimizer. Pass both, or neither.")


def _check_args(args: Any) -> None:
    """What is no config of gruppo's, such as the one that a script imported from TRL."""
    if args is None or isinstance(args, GRPOConfig):
        return
    if isinstance(args, Mapping):
        raise ConfigError("args is a dict, but must be a GRPOConfig. Pass GRPOConfig(**args).")
    library = type(args).__module__.partition(".")[0]
    raise ConfigError(
        f"args is the {type(args).__name__} of {library}, but must be gruppo's GRPOConfig, whose defaults and checks "
        "are its own. Import it from gruppo: `from gruppo import GRPOConfig`. It has TRL's fields, by TRL's names."
    )


def check_generation_kwargs(config: GRPOConfig) -> None:
    """Raises ConfigError for names that the rollout engines do not take."""
    try:
        check_sampling(train_sampling(config, eos_token_ids=(), pad_token_id=0, step=0))
    except RolloutError as error:  # not while sampling: it is a setting that cannot be
        raise ConfigError(str(error)) from error


def check_output_folder(config: GRPOConfig, world: World) -> None:
    """The main process makes it and tries it. If that fails, all ranks raise ConfigError: none is left waiting."""
    world.gather_outcomes(
        lambda: make_output_folder(config.output_dir) if world.is_main else None, ConfigError, "Making output_dir"
    )


def check_eval_columns(
    sources: Sequence[RewardSource], sets: Mapping[str, Sequence[Prompt]], *, extra_columns_allowed: bool
) -> None:
    """Raises RewardError for a function that cannot be called with the columns of a held-out set; names both."""
    functions = [source for source in sources if source.kind != "model"]
    for name, prompts in sets.items():
        if not functions or not len(prompts):
            continue
        columns, what = set(prompts[0].columns), eval_name(name)
        for source in functions:
            check_signature(
                source.function, source.name, columns, extra_columns_allowed=extra_columns_allowed, what=what
            )


def eval_name(name: str) -> str:
    """A held-out set as messages call it; the set that is alone has no name."""
    return f"eval_dataset[{name!r}]" if name else "eval_dataset"


def warn_if_beyond_context(model_config: Any, config: GRPOConfig, prompts: PromptDataset | PromptStream) -> None:
    """Gives a UserWarning if the longest prompt looked at and the longest completion exceed the model's positions.

    No error: some models do run beyond them.
    """
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    kwargs = config.generation_kwargs or {}
    name = "generation_kwargs' max_new_tokens" if "max_new_tokens" in kwargs else "max_completion_length"
    num_new = kwargs.get("max_new_tokens", config.max_completion_length)
    num_prompt = _longest(prompts)
    if num_prompt + num_new <= limit:
        return
    room = limit - num_prompt
    remedy = f"Set {name} to {room} or less" if room > 0 else "Set max_prompt_length"
    warnings.warn(
        f"{name}={num_new} after a prompt of {num_prompt} tokens makes {num_prompt + num_new}, and the model has "
        f"{limit} positions (max_position_embeddings). Beyond them answers get worse, and some models fail. {remedy}.",
        UserWarning,
        stacklevel=4,
    )


def _longest(prompts: PromptDataset | PromptStream) -> int:
    if isinstance(prompts, PromptStream):
        return 0
    stride = -(-len(prompts) // MAX_PROMPTS)
    return max(len(prompts[index].token_ids) for index in range(0, len(prompts), stride))


@final
class PromptCheck:
    """Looks at prompts for tokens that the model has no embedding for. Costs nothing where the tokenizer has none such.

    With a `rollout_func` it looks at nothing: the function makes the prompts' ids itself.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, has_rollout_func: bool) -> None:
        self._tokenizer, self._size = tokenizer, table_size(model)
        self._beyond = frozenset() if has_rollout_func else ids_beyond(tokenizer, self._size)

    def at_start(self, data: Data) -> None:
        """Every prompt of every set, but those of a stream, which are looked at as they come. Raises ModelError.

        Not where the pad token alone is beyond the table: prompts do not hold it, and to tokenize all takes time.
        """
        if not self._beyond - {self._tokenizer.pad_token_id}:
            return
        sets: dict[str, Iterable[Prompt]] = {}
        if isinstance(data.train_prompts, PromptDataset):
            sets["train_dataset"] = data.train_prompts
        sets |= {eval_name(name): prompts for name, prompts in data.eval_prompts.items()}
        for what, prompts in sets.items():
            for prompt in prompts:
                if problem := self._problem(prompt, f"{what} row {prompt.id}"):
                    raise ModelError(problem)

    def of_round(self, prompts: Sequence[Prompt]) -> None:
        """The prompts of one round, before it is sampled: those of a stream are not known earlier. Raises DataError."""
        for prompt in prompts if self._beyond else ():
            if problem := self._problem(prompt, f"The prompt with id {prompt.id}"):
                raise DataError(problem)

    def _problem(self, prompt: Prompt, where: str) -> str | None:
        return misfit(prompt.token_ids, where, tokenizer=self._tokenizer, size=self._size)
