"""Step 1 as the loop sees it: prompts in, this rank's groups out, decoded and checked.

The engine samples; here is what every engine needs around it: which rows are this rank's, the order of groups, the text
of each completion. Not here: how tokens are sampled (`rollout/`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gruppo.chat import decode_completions
from gruppo.data.order import rows_of_rank
from gruppo.errors import RolloutError
from gruppo.types import Group, Prompt, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gruppo.clock import Clock
    from gruppo.distributed.world import World
    from gruppo.rollout.protocol import RolloutEngine


class Collector:
    """Asks a `RolloutEngine` for this rank's share of P x G completions. `check` looks at all prompts before."""

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerBase,
        world: World,
        clock: Clock,
        check: Callable[[Sequence[Prompt]], None] | None = None,
    ) -> None:
        self.engine = engine
        self._check = check
        self._clock = clock
        self._tokenizer = tokenizer
        self._world = world

    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingParams) -> list[Group]:
        """This rank's completions of `prompts`, groups in the order of the prompts, samples in order.

        A group at the edge of the rank's block may hold only some of its G samples. Raises RolloutError where the
        engine returned other rows than it was asked for. On several ranks an error of one is RolloutError on all.
        """
        if self._check is not None:
            self._check(prompts)  # all ranks look at the same
        made: list[list[Group]] = []  # kept here: only whether it went well travels
        self._world.gather_outcomes(
            lambda: made.append(self._own(prompts, group_size, sampling)), RolloutError, "Sampling completions"
        )
        return made[0]

    def _own(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingParams) -> list[Group]:
        shares = rows_of_rank(len(prompts), group_size, self._world.rank, self._world.size)
        requests = [RolloutRequest(prompts[share.position], share.samples) for share in shares]
        with self._clock.phase("generate"):
            groups = _in_order(requests, self.engine.generate(requests, sampling))
        completions = [completion for group in groups for completion in group.completions]
        if not completions:  # a tokenizer makes one empty text of an empty batch
            return groups
        texts = decode_completions(self._tokenizer, [completion.token_ids for completion in completions])
        for completion, text in zip(completions, texts, strict=True):
            completion.text = text
        return groups


def _in_order(requests: Sequence[RolloutRequest], groups: Sequence[Group]) -> list[Group]:
    """Engines may finish groups in any order: ids tie them to their requests."""
    found = {group.prompt.id: group for group in groups}
    if len(found) != len(groups) or found.keys() != {request.prompt.id for request in requests}:
        raise RolloutError(
            f"The rollout engine was asked for prompts {[request.prompt.id for request in requests]} and returned "
            f"{[group.prompt.id for group in groups]}. It must return one group for each."
        )
    ordered = []
    for request in requests:
        group = found[request.prompt.id]
        completions = sorted(group.completions, key=lambda completion: completion.sample)
        samples = [completion.sample for completion in completions]
        if samples != list(request.samples):
            raise RolloutError(
                f"Prompt {request.prompt.id}: asked for samples {list(request.samples)}, the engine returned {samples}."
            )
        ordered.append(Group(group.prompt, completions))
    return ordered
