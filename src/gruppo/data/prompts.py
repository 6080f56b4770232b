"""A dataset of any accepted form as `Prompt`s: checked at construction, tokenized when asked for.

    datasets.Dataset, or a list of dicts    PromptDataset: indexed by row
    datasets.IterableDataset                PromptStream: rounds of prompts, in the stream's order

Standard and conversational prompts; every other column travels along for the reward functions. Prompts longer than
`max_prompt_length` tokens (a field of TRL's 2025 releases) lose their first tokens, or are left out.

Not here: which prompts come when (`order.py`), and how text becomes tokens (`gruppo.chat`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, final

from datasets import Dataset, IterableDataset

from gruppo.chat import tokenize_prompts
from gruppo.data.checks import check_columns, check_prompt, ends_with_assistant
from gruppo.errors import DataError
from gruppo.types import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["truncate", "filter"]
"""What happens to a prompt of more than `max_prompt_length` tokens: it keeps its last ones, or it is left out."""

Content: TypeAlias = str | list[Message]
Rows: TypeAlias = Dataset | Sequence[Mapping[str, Any]]

_CHUNK: Final = 512
"""Rows that are read and tokenized together where all rows are looked at."""


@dataclass(frozen=True, slots=True)
class _Encoder:
    """One row to one Prompt, with the run's settings."""

    tokenizer: PreTrainedTokenizerBase
    max_prompt_length: int | None
    overlong: Overlong
    chat_template_kwargs: Mapping[str, Any]
    what: str

    def prompt(self, row_id: int, row: Mapping[str, Any], columns: set[str]) -> Prompt:
        """The row with its tokens, all of them. A column that the row lacks is None, as in `Dataset.from_list`."""
        (ids,) = self.token_ids([row["prompt"]])
        if not ids:
            raise DataError(
                f"{self.what} row {row_id}: the prompt is empty and the tokenizer adds no special token, so there is "
                "nothing to complete. Remove the row: `dataset.filter(lambda row: row['prompt'])`."
            )
        return Prompt(row_id, row["prompt"], ids, {name: row.get(name) for name in sorted(columns)})

    def token_ids(self, contents: Sequence[Content]) -> list[list[int]]:
        return tokenize_prompts(
            contents,
            self.tokenizer,
            chat_template_kwargs=self.chat_template_kwargs,
            warn_if_long=self.max_prompt_length is None,
        )

    def is_overlong(self, num_tokens: int) -> bool:
        return self.max_prompt_length is not None and num_tokens > self.max_prompt_length

    def cut(self, prompt: Prompt) -> Prompt:
        """At most the last `max_prompt_length` tokens: the end of a prompt is what the completion goes on from."""
        if self.max_prompt_length is None or not self.is_overlong(len(prompt.token_ids)):
            return prompt
        return replace(prompt, token_ids=prompt.token_ids[-self.max_prompt_length :])


@final
class PromptDataset:
    """A dataset with a length. `dataset[i]` is the i-th usable row as a Prompt; its id is the row's number.

    Construction reads every prompt once, so that a bad row is an error now and not in the middle of a run; with
    `max_prompt_length` it also tokenizes them once, to know which are too long.
    """

    def __init__(self, rows: Rows, encoder: _Encoder) -> None:
        if len(rows) == 0:
            raise DataError(f"{encoder.what} is empty: it has no rows. Pass one with at least one row.")
        columns = _columns_of(rows, encoder.what)
        check_columns(columns, encoder.what)
        self._rows = rows
        self._encoder = encoder
        self.columns: set[str] = columns - {"prompt"}
        """Every other column; `rewards` says which of them its functions receive."""
        self.is_conversational: bool = check_prompt(rows[0].get("prompt"), f"{encoder.what} row 0")
        self.num_overlong: int = 0
        """Prompts of more than `max_prompt_length` tokens: truncated, or left out."""
        self._num_ending_with_assistant = 0
        self._kept = self._scan()
        encoder.prompt(self._kept[0], rows[self._kept[0]], self.columns)  # a missing chat template shows here

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Prompt:
        row_id = self._kept[index]
        return self._encoder.cut(self._encoder.prompt(row_id, self._rows[row_id], self.columns))

    def __iter__(self) -> Iterator[Prompt]:
        return (self[index] for index in range(len(self)))

    @property
    def notes(self) -> list[str]:
        """What the user should know about this data, in sentences, for the start of the run."""
        what, limit, num_rows = self._encoder.what, self._encoder.max_prompt_length, len(self._rows)
        notes = []
        if self.num_overlong:
            fate = "are left out" if self._encoder.overlong == "filter" else "lose their first tokens"
            notes.append(
                f"{what}: {self.num_overlong} of {num_rows} prompts are longer than max_prompt_length={limit} tokens "
                f"and {fate}."
            )
        if self._num_ending_with_assistant:
            notes.append(
                f"{what}: {self._num_ending_with_assistant} of {num_rows} prompts end with an assistant message. It is "
                "not continued: the completion is a new assistant turn after it."
            )
        return notes

    def _scan(self) -> Sequence[int]:
        """Check every prompt; the numbers of the rows that are kept."""
        encoder, kept, row_id = self._encoder, [], 0
        for contents in _chunks(self._rows):
            for number, content in enumerate(contents, row_id):
                self._check_kind(content, number)
                self._num_ending_with_assistant += ends_with_assistant(content)
            overlong = self._overlong(contents)
            self.num_overlong += sum(overlong)
            kept += [row_id + i for i, is_long in enumerate(overlong) if not (is_long and encoder.overlong == "filter")]
            row_id += len(contents)
        if not kept:
            raise DataError(
                f"{encoder.what}: all {len(self._rows)} prompts are longer than "
                f"max_prompt_length={encoder.max_prompt_length} tokens and would be left out. Raise max_prompt_length, "
                "or truncate instead of filtering."
            )
        return kept

    def _check_kind(self, content: object, row_id: int) -> None:
        where = f"{self._encoder.what} row {row_id}"
        if check_prompt(content, where) != self.is_conversational:
            first, this = ("messages", "a string") if self.is_conversational else ("a string", "messages")
            raise DataError(
                f"{where}: the prompt is {this}, but that of row 0 is {first}. Make all prompts of one kind; a string "
                'becomes messages as [{"role": "user", "content": text}].'
            )
        if content == "":
            self._encoder.prompt(row_id, {"prompt": content}, set())

    def _overlong(self, contents: list[Content]) -> list[bool]:
        encoder = self._encoder
        if encoder.max_prompt_length is None:
            return [False] * len(contents)
        return [encoder.is_overlong(len(ids)) for ids in encoder.token_ids(contents)]


@final
class PromptStream:
    """A dataset that can only be read from its beginning. Rows are checked as they come.

    Its length is not known, so a run over it needs `max_steps`. Ids count the prompts handed out, over all epochs.
    """

    def __init__(self, dataset: IterableDataset, encoder: _Encoder) -> None:
        first = next(iter(dataset), None)
        if first is None:
            raise DataError(
                f"{encoder.what} is empty: the stream ended before its first row. Pass one with at least one row."
            )
        check_columns(first.keys(), encoder.what)
        self._dataset = dataset
        self._encoder = encoder
        self.columns: set[str] = set(first) - {"prompt"}
        """Every other column of the first row."""
        self.is_conversational: bool = check_prompt(first["prompt"], f"{encoder.what} row 0")
        encoder.prompt(0, first, self.columns)  # a missing chat template shows here

    def epoch(self, epoch: int = 0, *, seed: int = 0, shuffle: bool = False) -> Iterator[Prompt]:
        """One pass over the stream. `shuffle` draws from a buffer, in another order for each seed and epoch."""
        return self._pass(epoch, seed, shuffle, count())

    def rounds(
        self, prompts_per_round: int, *, seed: int = 0, shuffle: bool = False, skip: int = 0
    ) -> Iterator[list[Prompt]]:
        """Endless rounds, epoch after epoch; the incomplete last round of each is dropped, as in TRL.

        `skip` rounds are read and thrown away: this is how a resumed run gets back to its place.
        """
        return islice(self._all_rounds(prompts_per_round, seed, shuffle), skip, None)

    def _all_rounds(self, prompts_per_round: int, seed: int, shuffle: bool) -> Iterator[list[Prompt]]:
        ids = count()
        for epoch in count():
            prompts = self._pass(epoch, seed, shuffle, ids)
            num_rounds = 0
            while len(this_round := list(islice(prompts, prompts_per_round))) == prompts_per_round:
                num_rounds += 1
                yield this_round
            if num_rounds == 0:
                raise DataError(
                    f"{self._encoder.what} gave {len(this_round)} usable prompts in a whole epoch, fewer than the "
                    f"{prompts_per_round} of one generation round. Lower generation_batch_size, or add data."
                )

    def _pass(self, epoch: int, seed: int, shuffle: bool, ids: Iterator[int]) -> Iterator[Prompt]:
        encoder = self._encoder
        dataset = self._dataset.shuffle(seed=seed) if shuffle else self._dataset
        dataset.set_epoch(epoch)
        for number, row in enumerate(dataset):
            where = f"{encoder.what} row {number} of the stream"
            if check_prompt(row.get("prompt"), where) != self.is_conversational:
                raise DataError(f"{where}: text and messages are mixed in `prompt`. Make all prompts of one kind.")
            prompt = encoder.prompt(number, row, self.columns)
            if encoder.is_overlong(len(prompt.token_ids)) and encoder.overlong == "filter":
                continue
            yield replace(encoder.cut(prompt), id=next(ids))


def prepare_dataset(
    dataset: Rows | IterableDataset,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int | None = None,
    overlong: Overlong = "truncate",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    what: str = "train_dataset",
) -> PromptDataset | PromptStream:
    """Check a dataset and make its rows prompts. `what` is how messages call it.

    Raises DataError if it cannot be used, ModelError for messages without a chat template.
    """
    encoder = _Encoder(tokenizer, max_prompt_length, overlong, chat_template_kwargs or {}, what)
    if isinstance(dataset, IterableDataset):
        return PromptStream(dataset, encoder)
    if isinstance(dataset, Mapping):
        names = ", ".join(map(str, dataset))
        raise DataError(
            f"{what} is a dictionary of datasets ({names}). Pass one of them: `dataset[{next(iter(dataset), '')!r}]`."
        )
    if isinstance(dataset, str):
        raise DataError(
            f"{what} is the string {dataset!r}. Load it first: `datasets.load_dataset({dataset!r}, split='train')`."
        )
    if not isinstance(dataset, Dataset | list | tuple):
        raise DataError(
            f"{what} is a {type(dataset).__name__}; it must be a datasets.Dataset, a datasets.IterableDataset or a "
            "list of dicts. A pandas DataFrame becomes one with `Dataset.from_pandas(frame)`."
        )
    return PromptDataset(dataset, encoder)


def _columns_of(rows: Rows, what: str) -> set[str]:
    """Names of all columns. Rows of a list may each lack some; a transform of a Dataset may add some."""
    if isinstance(rows, Dataset):
        return set(rows[0])
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{what} row {number} is a {type(row).__name__}; rows are dicts such as {{'prompt': '...'}}."
            )
    return set().union(*rows)


def _chunks(rows: Rows) -> Iterator[list[Any]]:
    """The `prompt` of every row in order, some hundred at a time; no other column is read where that can be avoided."""
    if isinstance(rows, Dataset) and rows.format["type"] is None:
        rows = rows.select_columns(["prompt"])
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        yield list(chunk["prompt"]) if isinstance(chunk, Mapping) else [row.get("prompt") for row in chunk]
