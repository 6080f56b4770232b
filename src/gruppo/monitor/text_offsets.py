"""Where each token's text begins in its completion, in code points, so that readers need no tokenizer.

Offsets cut the text exactly: token i is `text[offsets[i]:offsets[i + 1]]`, the last one goes to the end. A character
whose bytes are spread over several tokens belongs to the first of them; special tokens, which the text leaves out,
are empty. Most tokens decode on their own, so their pieces are looked up; the rest are decoded together with their
neighbours. Not here: making the text (`chat.decode_completions`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import final

BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""

MAX_JOINT = 64
"""Tokens that are decoded together at most, to make sense of one that does not decode on its own."""

MAX_KNOWN = 2**16
"""Runs of tokens whose text is remembered."""

Decode = Callable[[list[int]], str]


@final
class TextOffsets:
    """The offsets of one tokenizer's texts. `decode` gives the text of a list of ids, as the completions were made."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._alone: dict[int, str] = {}
        self._sound: dict[int, str] = {}
        """Pieces of tokens that decode on their own."""
        self._after: dict[int, str] = {}
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, token_ids: Sequence[int], text: str) -> list[int] | None:
        """One offset per token; None if the text cannot be put together from its tokens."""
        pieces = [self._sound.get(token_id, BROKEN) for token_id in token_ids]
        if BROKEN not in text and "".join(pieces) == text:  # nearly all completions
            return [0, *accumulate(map(len, pieces))][:-1]
        return self._step_by_step(token_ids, text)

    def _step_by_step(self, token_ids: Sequence[int], text: str) -> list[int] | None:
        offsets: list[int] = []
        position = 0
        while len(offsets) < len(token_ids):
            token_id = token_ids[len(offsets)]
            piece = self._sound.get(token_id)
            if piece and text.startswith(piece, position):
                offsets.append(position)
                position += len(piece)
                continue
            size = self._size(token_id, text, position)
            if size is not None:
                offsets.append(position)
                position += size
                continue
            joint = self._joint(token_ids, len(offsets), text, position)
            if joint is None:
                return None
            starts, position = joint
            offsets += starts
        return offsets if position == len(text) else None

    def _size(self, token_id: int, text: str, position: int) -> int | None:
        """Characters of a token that decodes on its own, if the text goes on with it here."""
        alone = self._piece(token_id)
        if alone and text.startswith(alone, position):
            return len(alone) if BROKEN not in alone else None
        after = self._piece_after(token_id, alone)
        is_here = BROKEN not in after and text.startswith(after, position)
        return len(after) if is_here else (None if alone else 0)

    def _piece(self, token_id: int) -> str:
        piece = self._alone.get(token_id)
        if piece is None:
            piece = self._alone[token_id] = self._decode([token_id])
            if BROKEN not in piece:
                self._sound[token_id] = piece
        return piece

    def _piece_after(self, token_id: int, alone: str) -> str:
        """The token after another one: decoders may strip the space that a first token brings."""
        piece = self._after.get(token_id)
        if piece is None:
            piece = self._after[token_id] = self._decode([token_id, token_id]).removeprefix(alone)
        return piece

    def _joint(self, token_ids: Sequence[int], first: int, text: str, position: int) -> tuple[list[int], int] | None:
        """Offsets of the shortest run of tokens from `first` that makes whole characters of the text, and its end."""
        for stop in range(first + 1, min(len(token_ids), first + MAX_JOINT) + 1):
            together = self._text(token_ids[first:stop])
            lead = "" if text.startswith(together, position) else " "
            is_whole = not together.endswith(BROKEN) or stop == len(token_ids) or self._is_sound(token_ids[stop])
            if is_whole and text.startswith(lead + together, position):
                run = token_ids[first:stop]
                starts = [self._begun(run[:k]) + len(lead) if k else 0 for k in range(len(run))]
                end = len(lead) + len(together)
                return [position + min(max(starts[: k + 1]), end) for k in range(len(run))], position + end
        return None

    def _is_sound(self, token_id: int) -> bool:
        return BROKEN not in self._piece(token_id)

    def _begun(self, token_ids: Sequence[int]) -> int:
        """Characters that these tokens have begun, a last incomplete one included."""
        text = self._text(token_ids)
        whole = text.rstrip(BROKEN)
        return len(whole) + (len(whole) < len(text))

    def _text(self, token_ids: Sequence[int]) -> str:
        key = tuple(token_ids)
        if key not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = self._decode(list(key))
        return self._known[key]
