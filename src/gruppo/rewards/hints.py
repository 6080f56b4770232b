"""Explaining an exception from a reward function: most come from mixing up text and chat completions.

Not here: catching it (`calls.py`), or deciding what it means for the run (`score.py`).
"""

from __future__ import annotations

import re

from gruppo.rewards.rows import Rows

ABOUT_CONTAINERS = re.compile(r"\b(list|dict|string|str|bytes-like)\b")


def explain(name: str, error: BaseException, rows: Rows) -> str:
    """One paragraph: which function, what it raised, and what to change where that is known."""
    told = f"Reward `{name}` raised {type(error).__name__}: {error}."
    return f"{told} {hint}" if (hint := _hint(error, rows)) else told


def _hint(error: BaseException, rows: Rows) -> str:
    if not isinstance(error, TypeError | AttributeError) or not ABOUT_CONTAINERS.search(str(error)):
        return ""
    completion = rows.completions[0]
    if isinstance(completion, str):
        if "string indices" in str(error):
            return "Your prompts are plain text, so each completion is a string: use `completion` itself."
        return ""
    return (
        "Your prompts are chat messages, so each completion is a list of messages, and its text is "
        '`completion[0]["content"]`. Use that, or put the `@text_reward` wrapper of `gruppo.rewards` on the function. '
        f"The first completion here is {completion!r:.200}"
    )
