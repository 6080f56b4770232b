"""Groups for reward tests. Not a fake of anything: these are the real types, built in one line."""

from gruppo.rewards import LocalRewards, Scorer, prepare_rewards
from gruppo.types import Completion, Group, Message, Prompt


def chat(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def group(
    content: str | list[Message], texts: list[str], id: int = 0, extras: list[dict] | None = None, **columns
) -> Group:
    """A group whose completions have one token per character, and an EOS (0)."""
    completions = [
        Completion(sample=i, token_ids=[*map(ord, text), 0], finish_reason="stop", text=text)
        for i, text in enumerate(texts)
    ]
    for completion, extra in zip(completions, extras or [], strict=False):
        completion.extras = extra
    return Group(Prompt(id=id, content=content, token_ids=[1], columns=columns), completions)


def score(reward_funcs, groups: list[Group], trainer_state=None, **scorer_options) -> LocalRewards:
    with Scorer(prepare_rewards(reward_funcs), **scorer_options) as scorer:
        return scorer.score(groups, trainer_state=trainer_state)
