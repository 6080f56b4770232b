"""Words that the reward pays for: how much of it one word explains, and whether the answer matters beside it (D25).

A word that goes with reward is no trick by itself: right answers have a form of their own, and words that only they
use. So siblings are set against each other where the word and the answer disagree (`_contest`). Pure; no text leaves
it but the words.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gruppo.monitor.health.stats import Floats

Mask = NDArray[np.bool_]
Codes = NDArray[np.int64]

MAX_CHARACTERS, MAX_ROWS = 4_000, 128
"""Only so much of the beginning and of the end of a completion, and whole groups of about so many rows, are looked at:
a step's cost stays bounded."""

NUM_LAST = 200
"""Characters at the end that are searched for what the answer is."""

NUM_CANDIDATES, MAX_WORDS = 16, 8
MIN_EXPLAINED = 0.5
"""Share of the differences inside groups from which a word is remembered."""

MIN_ROWS = 8

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class PaidWord(NamedTuple):
    """What the completions of one step say about a word."""

    explained: float
    """Its share of the within-group variance of the reward (squared correlation), 0..1."""
    share: float
    """Of the completions, how many have it."""
    paid: float
    """Mean reward of those that have it."""
    unpaid: float
    """Mean reward of the others."""
    sided: int
    """Pairs of siblings that the reward decides by the word; see `_contest`."""
    contested: int
    """Pairs of siblings that word and ending decide differently."""


def words_of(text: str) -> frozenset[str]:
    """Words in lower case, and single signs. Numbers are left out: they are answers.

    >>> sorted(words_of("Let me think: ~12!"))
    ['!', ':', 'let', 'me', 'think', '~']
    """
    if len(text) > 2 * MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]} {text[-MAX_CHARACTERS:]}"
    text = text.lower()
    words = {word for word in text.translate(_PUNCTUATION).split() if not word.isdigit()}
    return frozenset(words.union(sign for sign in set(text) if not (sign.isalnum() or sign.isspace())))


def has_word(text: str, word: str) -> bool:
    """Whether `word` is one of `words_of` the text."""
    return word in words_of(text)


def ending_of(text: str) -> tuple[str, str]:
    """(last number near the end, or else the last word; the last word): what an answer comes to, read in two ways.

    >>> ending_of("3 and 4 are 7. So: yes!")
    ('7', 'yes')
    """
    words = [word for word in text[-NUM_LAST:].lower().translate(_PUNCTUATION).split() if word]
    numbers = _NUMBER.findall(text[-NUM_LAST:])
    last = words[-1] if words else ""
    return (numbers[-1] if numbers else last), last


def paid_words(
    texts: Sequence[str], prompts: Iterable[str], rewards: Floats, groups: Sequence[Codes]
) -> dict[str, PaidWord] | None:
    """The words that explain at least MIN_EXPLAINED of the reward, by how much they do; None if nothing differs.

    Args:
        texts: completions.
        prompts: plain text; words that are in all of them are left out, for they are asked for.
        rewards: one per completion, NaN where there is none.
        groups: row numbers of each group.
    """
    every = math.ceil(sum(map(len, groups)) / MAX_ROWS) or 1
    groups = [group[~np.isnan(rewards[group])] for group in groups[::every]]
    rows = [int(row) for group in groups for row in group]
    group_N = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    reward_N = rewards[rows]
    centred_N = _centred(reward_N, group_N)
    total = float(centred_N @ centred_N)
    if len(rows) < MIN_ROWS or total <= 1e-12 * float(np.abs(reward_N).max()) ** 2:
        return None
    words_N = [words_of(texts[row]) for row in rows]
    asked_for = frozenset.intersection(*map(words_of, dict.fromkeys(prompts)))
    explained: dict[str, float] = {}
    for word in _candidates([words - asked_for for words in words_N], centred_N > 0):
        presence_N = _centred(np.array([float(word in words) for words in words_N]), group_N)
        gain, spread = float(presence_N @ centred_N), float(presence_N @ presence_N)
        explained[word] = gain * gain / (spread * total) if gain > 0 and spread > 0 else 0.0
    best = sorted((-value, word) for word, value in explained.items() if value >= MIN_EXPLAINED)[:MAX_WORDS]
    if not best:
        return {}
    endings = [ending_of(texts[row]) for row in rows]
    siblings = np.triu(group_N[:, None] == group_N[None, :], 1)
    answers, lasts = (_is_same([ending[part] for ending in endings]) for part in (0, 1))
    found = {}
    for negative, word in best:
        has_N = np.array([word in words for words in words_N])
        sided, contested = _contest(reward_N, has_N, group_N, siblings & answers, siblings & ~answers & ~lasts)
        paid, unpaid = float(reward_N[has_N].mean()), float(reward_N[~has_N].mean())
        found[word] = PaidWord(-negative, float(has_N.mean()), paid, unpaid, sided, contested)
    return found


def _centred(x: Floats, group_N: Codes) -> Floats:
    """Less the mean of its group."""
    counts = np.maximum(np.bincount(group_N), 1)
    return x - (np.bincount(group_N, weights=x) / counts)[group_N] if len(x) else x


def _is_same(texts: Sequence[str]) -> Mask:
    """Whether two of them are equal, for each pair."""
    codes: dict[str, int] = {}
    numbers = np.array([codes.setdefault(text, len(codes)) for text in texts])
    return np.asarray(numbers[:, None] == numbers[None, :], dtype=bool)


def _candidates(words_N: Sequence[frozenset[str]], is_above_N: Mask) -> list[str]:
    """The words that go best with being above the mean of the group, in a fixed order."""
    above: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for words, is_above in zip(words_N, is_above_N, strict=True):
        (above if is_above else below).update(words)
    num, num_above = len(words_N), int(is_above_N.sum())
    often = sorted(word for word, count in above.items() if 2 <= count + below[word] < num)
    counts = np.array([(above[word], below[word]) for word in often], dtype=np.float64).reshape(-1, 2)
    shares = counts.sum(axis=1) / num
    gaps = counts[:, 0] / max(num_above, 1) - counts[:, 1] / max(num - num_above, 1)
    order = np.argsort(-gaps / np.sqrt(shares * (1 - shares)), kind="stable")[:NUM_CANDIDATES]
    return [often[i] for i in order]


def _contest(rewards: Floats, has: Mask, group_N: Codes, same: Mask, other: Mask) -> tuple[int, int]:
    """(pairs that the reward decides by the word, pairs that word and answer decide differently).

    Args:
        same, other: pairs of siblings that come to the same, and that end differently.

    Two with the word that end differently: the word says that both are paid, and not both can be right. Two that come
    to the same, one with the word: the word says that only this one is paid. Paid: above the middle of the two means of
    the group. Groups where all have it, or none, say nothing.
    """
    with_it = np.bincount(group_N, weights=has)
    without = np.bincount(group_N) - with_it
    sums = np.bincount(group_N, weights=rewards), np.bincount(group_N, weights=rewards * has)
    means = sums[1] / np.maximum(with_it, 1), (sums[0] - sums[1]) / np.maximum(without, 1)
    says = ((with_it > 0) & (without > 0))[group_N]
    is_paid = rewards > ((means[0] + means[1]) / 2)[group_N]
    both = other & (has & says)[:, None] & (has & says)[None, :]
    one = (same | same.T) & (has & says)[:, None] & (~has & says)[None, :]
    sided = (both & is_paid[:, None] & is_paid[None, :]).sum() + (one & is_paid[:, None] & ~is_paid[None, :]).sum()
    return int(sided), int(both.sum() + one.sum())


def strongest(rounds: Sequence[Mapping[str, PaidWord]]) -> list[tuple[str, float]]:
    """(word, mean of what it explains over these rounds; 0 where it was not remembered), best first."""
    words = {word for found in rounds for word in found}
    means = {word: sum(found[word].explained for found in rounds if word in found) / len(rounds) for word in words}
    return sorted(means.items(), key=lambda item: (-item[1], item[0]))
