"""Scheduler: which rows run now, and in which slots their keys and values lie. Whole numbers only, no tensors.

Live rows occupy tail slots 0..n-1 and live prompts prefix slots 0..p-1, without holes: whoever leaves is replaced by
the last one, and the caller moves that one's keys and values as `retire` says. So every forward sees dense slices.

A prompt is admitted with its first row and leaves with its last. A token budget says how many slots there are; rows
for which there is none wait. Neither order nor budget changes any token: those depend on the row alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Admission:
    """What just became live. Rows have the last tail slots and prompts the last prefix slots, in this order."""

    prompts: list[int]
    rows: list[int]


@dataclass(slots=True)
class Moves:
    """Copies, {to slot: from slot}. No slot is in both roles, so they may be made at once."""

    rows: dict[int, int] = field(default_factory=dict)
    prompts: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grid:
    """Live rows by prompt, padded to the largest group: prefix attention works on this rectangle.

    `cells[p * width + j]` is the tail slot of the j-th live row of the prompt in slot p (0 where there is none), and
    `places[n]` is the cell of the row in tail slot n.
    """

    width: int
    cells: list[int]
    places: list[int]

    @property
    def is_identity(self) -> bool:
        """Every cell is taken by the row of the same number."""
        return self.cells == list(range(len(self.places)))


class Scheduler:
    """First come, first served, within a budget of tokens.

    Args:
        prompt_of_row: the prompt of each row; rows of a prompt stand together.
        prompt_lengths: tokens of each prompt.
        max_tokens: new tokens that a row may need, and so the size of a tail slot.
        budget: places in all slots together. A prefix slot is as long as the longest prompt that has rows. None is no
            limit. There is one slot of each kind, however small the budget.
    """

    def __init__(
        self, prompt_of_row: Sequence[int], prompt_lengths: Sequence[int], *, max_tokens: int, budget: int | None
    ) -> None:
        self._prompt_of_row = list(prompt_of_row)
        self._waiting = deque(range(len(self._prompt_of_row)))
        self.rows: list[int] = []
        """The row in each tail slot."""
        self.prompts: list[int] = []
        """The prompt in each prefix slot."""
        self._newest = -1
        self._num_left = [0] * len(prompt_lengths)
        for prompt in self._prompt_of_row:
            self._num_left[prompt] += 1
        longest = max((length for length, num in zip(prompt_lengths, self._num_left, strict=True) if num), default=0)
        self._num_rows, self._num_prompts = _slots(self._num_left, longest, max_tokens, budget)

    @property
    def is_done(self) -> bool:
        return not self.rows and not self._waiting

    def capacity(self) -> tuple[int, int]:
        """(rows, prompts) that can be live at once: how many slots are needed."""
        return self._num_rows, self._num_prompts

    def admit(self) -> Admission:
        """Makes live as many waiting rows as fit."""
        admission = Admission([], [])
        while self._waiting and len(self.rows) < self._num_rows:
            prompt = self._prompt_of_row[self._waiting[0]]
            if prompt != self._newest:
                if len(self.prompts) == self._num_prompts:
                    break
                self._newest = prompt
                self.prompts.append(prompt)
                admission.prompts.append(prompt)
            row = self._waiting.popleft()
            self.rows.append(row)
            admission.rows.append(row)
        return admission

    def retire(self, slots: Sequence[int]) -> Moves:
        """Ends the rows in these tail slots, and the prompts that have no row left, waiting or live."""
        moves = Moves()
        # From the back, so that the last row is never one that is about to leave.
        for slot in sorted(slots, reverse=True):
            prompt = self._prompt_of_row[self.rows[slot]]
            _fill_hole(self.rows, slot, moves.rows)
            self._num_left[prompt] -= 1
            if self._num_left[prompt] == 0:
                _fill_hole(self.prompts, self.prompts.index(prompt), moves.prompts)
        return moves

    def grid(self) -> Grid:
        slot_of_prompt = {prompt: slot for slot, prompt in enumerate(self.prompts)}
        slots = [slot_of_prompt[self._prompt_of_row[row]] for row in self.rows]
        members: list[list[int]] = [[] for _ in self.prompts]
        for n, slot in enumerate(slots):
            members[slot].append(n)
        width = max(map(len, members), default=0)
        cells = [0] * (width * len(members))
        places = [0] * len(slots)
        for slot, group in enumerate(members):
            for j, n in enumerate(group):
                cells[slot * width + j] = n
                places[n] = slot * width + j
        return Grid(width, cells, places)


def _slots(rows_of_prompt: Sequence[int], longest: int, max_tokens: int, budget: int | None) -> tuple[int, int]:
    """How many tail and prefix slots the budget holds."""
    num_rows, num_prompts = sum(rows_of_prompt), sum(num > 0 for num in rows_of_prompt)
    if budget is None:
        return num_rows, num_prompts
    # Prompts stay for their last rows, so more of them are live than whole groups would fit.
    half_group = -(-max(rows_of_prompt, default=0) // 2)
    num_prompts = max(1, min(num_prompts, budget // (longest + half_group * max_tokens)))
    num_rows = max(1, min(num_rows, (budget - num_prompts * longest) // max_tokens))
    return num_rows, min(num_prompts, num_rows)


def _fill_hole(slots: list[int], hole: int, moves: dict[int, int]) -> None:
    last = len(slots) - 1
    # The last may itself have been moved there a moment ago: then its first place is meant.
    origin = moves.pop(last, last)
    if hole != last:
        moves[hole] = origin
        slots[hole] = slots[last]
    slots.pop()
