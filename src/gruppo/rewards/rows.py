"""The rows to be scored, laid out as reward functions receive them: lists, one value per completion.

Not here: calling anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gruppo.rewards.signature import NOT_PASSED
from gruppo.types import Completion, Group, Message, Prompt

Text = str | list[Message]
"""A prompt or a completion: text (standard), or messages (conversational)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """N completions with their prompts and columns, all lists of length N, in group order."""

    prompts: list[Text]
    completions: list[Text]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    """Dataset columns and extra fields of the rollout; None where a row lacks one."""
    prompt_numbers: list[int]
    """`Prompt.id` of each row, for messages."""

    def __len__(self) -> int:
        return len(self.completions)

    def keywords(self) -> dict[str, Any]:
        """Arguments of one reward call. Lists and messages are fresh, so no function sees what another one changed."""
        return {
            **{name: list(values) for name, values in self.columns.items()},
            "prompts": [_copy(prompt) for prompt in self.prompts],
            "completions": [_copy(completion) for completion in self.completions],
            "completion_ids": [list(ids) for ids in self.completion_ids],
        }

    def row(self, number: int) -> dict[str, Any]:
        """Everything known of one row, for a warning."""
        return {
            **{name: values[number] for name, values in self.columns.items()},
            "prompt": self.prompts[number],
            "completion": self.completions[number],
        }


def rows_of(groups: list[Group]) -> Rows:
    """Flatten groups: one row per completion, in the order given."""
    pairs = [(group.prompt, completion) for group in groups for completion in group.completions]
    fields = [{**prompt.columns, **completion.extras} for prompt, completion in pairs]
    names = [name for name in dict.fromkeys(key for row in fields for key in row) if name not in NOT_PASSED]
    return Rows(
        prompts=[prompt.content for prompt, _ in pairs],
        completions=[_completion_as_text_or_messages(prompt, completion) for prompt, completion in pairs],
        completion_ids=[completion.token_ids for _, completion in pairs],
        columns={name: [row.get(name) for row in fields] for name in names},
        prompt_numbers=[prompt.id for prompt, _ in pairs],
    )


def text_of(completion: Text) -> str:
    """The text of a completion in either format: itself, or the content of its first message.

    Content given as blocks is joined from its text blocks. An empty conversation is the empty text.
    """
    if isinstance(completion, str):
        return completion
    content = completion[0].get("content") if completion else None
    if isinstance(content, list):
        return "".join(str(block.get("text", "")) for block in content)
    return content or ""


def _completion_as_text_or_messages(prompt: Prompt, completion: Completion) -> Text:
    return [{"role": "assistant", "content": completion.text}] if prompt.is_conversational else completion.text


def _copy(text: Text) -> Text:
    return text if isinstance(text, str) else [dict(message) for message in text]
