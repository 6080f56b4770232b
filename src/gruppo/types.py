"""The nouns of GRPO: Prompt, Completion, Group, TrainBatch. And THE shape legend.

Shape legend (suffixes of tensors and ragged lists, everywhere in gruppo):

    P   prompts of one generation round
    G   completions per prompt (the group size, `num_generations`)
    N   rows = completions; N = P*G over all ranks, or this rank's share of them
    T   tokens of a padded completion (or row)
    S   tokens of a packed row
    V   vocabulary
    D   hidden size
    F   reward functions

Log-probs say who computed them: `sampler_` (the rollout engine), `old_` (the policy at generation time),
`ref_` (the KL reference), and plain `logprobs_` (the live policy). All are in nats and of the distribution
softmax(logits / temperature), before any top-k / top-p truncation.

Nothing here computes: these are the values that the four steps hand to each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Message = dict[str, Any]
"""A chat message: {"role": "user", "content": "..."} and whatever else the chat template understands."""

FinishReason = Literal["stop", "length", "abort"]
"""`stop`: ended by EOS or a stop string. `length`: cut at max_completion_length. `abort`: the engine gave up."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One dataset row, ready to be completed.

    >>> Prompt(id=7, content="2+2=", token_ids=[50, 43, 50, 61], columns={"answer": "4"})
    """

    id: int
    """Row number in its dataset (or position in the stream): seeds and records use it."""
    content: str | list[Message]
    """The `prompt` column as the user gave it: text (standard) or messages (conversational)."""
    token_ids: list[int]
    columns: dict[str, Any] = field(default_factory=dict)
    """Every other column of the row; reward functions receive them."""

    @property
    def is_conversational(self) -> bool:
        return not isinstance(self.content, str)


@dataclass(slots=True)
class Completion:
    """One sampled answer. `token_ids` includes the EOS that ended it, and no padding."""

    sample: int
    """Index within its group, 0..G-1; a rank may hold only some of a group's samples."""
    token_ids: list[int]
    finish_reason: FinishReason
    sampler_logprobs: list[float] | None = None
    """One per token; NaN where the sampler did not say; None if it never does."""
    trained: list[bool] | None = None
    """False on tokens that the model did not make (tool results). None: all are the model's."""
    prompt_token_ids: list[int] | None = None
    """What the model really saw, where that differs from `Prompt.token_ids` (a user's rollout_func)."""
    policy_version: int = 0
    """Optimizer steps done when this was sampled."""
    seconds: float = 0.0
    text: str = ""
    """Decoded without special tokens; filled in by the trainer after generation."""
    extras: dict[str, Any] = field(default_factory=dict)
    """Further fields of a rollout_func; reward functions receive them."""

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason != "stop"


@dataclass(slots=True)
class Group:
    """One prompt and (this rank's share of) its G completions: the unit that advantages are relative to."""

    prompt: Prompt
    completions: list[Completion]

    def prompt_ids(self, completion: Completion) -> list[int]:
        return self.prompt.token_ids if completion.prompt_token_ids is None else completion.prompt_token_ids


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Ask for completions `samples` (indices within the group) of `prompt`; whole groups are range(0, G)."""

    prompt: Prompt
    samples: range


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. Names and meanings are those of transformers' GenerationConfig (and so TRL's)."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 switches it off, as in TRL and vLLM."""
    min_p: float | None = None
    repetition_penalty: float = 1.0
    is_greedy: bool = False
    """Take the most likely token; temperature and truncation then play no part."""
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0
    seed: int = 0
    phase: Literal["train", "eval"] = "train"
    step: int = 0
    """(seed, phase, step, prompt id, sample) decide a completion's random numbers, and nothing else does."""
    generation_kwargs: dict[str, Any] = field(default_factory=dict)
    """Overrides for transformers' GenerationConfig (`stop_strings`, `suppress_tokens`, ...)."""


@dataclass(slots=True)
class RewardTable:
    """The rewards of one generation round, all ranks: one row per completion, one column per reward function."""

    names: list[str]
    rewards_NF: Tensor
    """float32; NaN where a function abstained or failed."""
    statuses_NF: list[list[str]]
    """ok | none | nan | inf | error | timeout"""
    extras: dict[str, list[Any]] = field(default_factory=dict)
    """Columns that reward functions logged with `log_extra`, one value per row."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Values that reward functions logged with `log_metric`, averaged over calls and ranks."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each function, this rank."""


@dataclass(slots=True)
class TrainBatch:
    """This rank's rows of one generation round, as the loss wants them. Rows are independent: any order will do.

    Completion-side tensors are right-padded to T; prompts stay ragged. `trained_NT` is THE mask: made by the
    model, not padding, not dropped. Every denominator is counted from it.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    """All tokens of each completion, trained or not: the model must see them."""
    trained_NT: Tensor
    """bool"""
    advantages_N: Tensor
    group_ids: list[int]
    """Rows with the same number share their prompt (and are computed together where that is faster)."""
    slice_ids: list[int]
    """0..steps_per_generation-1: which of TRL's micro-batches the row belongs to."""
    row_weights_N: Tensor | None = None
    """What each row's summed token loss is multiplied by; from `algorithm.reduce`."""
    sampler_logprobs_NT: Tensor | None = None
    """NaN where unknown."""
    old_logprobs_NT: Tensor | None = None
    """None: on-policy, the live policy's own detached values are meant."""
    ref_logprobs_NT: Tensor | None = None
    sampler_correction_NT: Tensor | None = None
    """Importance weights trainer/sampler, already truncated or masked; shape (N, T) or (N, 1)."""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_trained_tokens_N(self) -> Tensor:
        return self.trained_NT.sum(dim=1)

    def rows(self, index: list[int]) -> TrainBatch:
        """A batch of the chosen rows, in the given order, cut to their longest completion."""
        longest = max([1, *(len(self.completion_ids[i]) for i in index)])

        def cut(x_NT: Tensor | None) -> Tensor | None:
            # (N, 1) tensors are per row and broadcast over T: they have nothing to cut.
            return None if x_NT is None else x_NT[index][:, : longest if x_NT.shape[1] != 1 else 1]

        trained_NT = cut(self.trained_NT)
        assert trained_NT is not None
        return replace(
            self,
            prompt_ids=[self.prompt_ids[i] for i in index],
            completion_ids=[self.completion_ids[i] for i in index],
            trained_NT=trained_NT,
            advantages_N=self.advantages_N[index],
            group_ids=[self.group_ids[i] for i in index],
            slice_ids=[self.slice_ids[i] for i in index],
            row_weights_N=None if self.row_weights_N is None else self.row_weights_N[index],
            sampler_logprobs_NT=cut(self.sampler_logprobs_NT),
            old_logprobs_NT=cut(self.old_logprobs_NT),
            ref_logprobs_NT=cut(self.ref_logprobs_NT),
            sampler_correction_NT=cut(self.sampler_correction_NT),
        )
