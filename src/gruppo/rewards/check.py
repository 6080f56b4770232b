"""A reward function tried out before a run: called on made-up answers, with what is odd about its numbers in words.

Problems are what would break a run or teach nothing (or the wrong thing); notes are worth a look. Text and chat
prompts get the completions that training would give them, through the same scorer.

Not here: finding the function and reading the dataset (the command line does).
"""

from __future__ import annotations

import inspect
import math
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from transformers import TrainerState

from gruppo.errors import GruppoError, RewardError, boundary
from gruppo.rewards.prepare import prepare_rewards
from gruppo.rewards.protocol import BASE_KEYWORDS, RewardSpec, callable_name
from gruppo.rewards.rows import text_of
from gruppo.rewards.score import Scorer
from gruppo.rewards.signature import passed_columns
from gruppo.types import Completion, Group, Prompt

REFERENCE_COLUMNS = ("answer", "solution", "ground_truth", "completion")
"""Columns that hold a right answer, the likeliest first."""

ANSWERS = {
    "empty": "",
    "unsure": "I do not know.",
    "fake": "The answer is 42.",
    "repeated": "The answer is 42. " * 100,
    "long": "<think>" + "We try the next number and add it to the last one, which was 17. " * 2_000,
    "long_nested": r"\boxed{" * 2_000 + "((((" * 2_000,
    "long_unbroken": "a" * 100_000 + "!",
}
"""Kinds of answers that are the same for every prompt. The long ones have tags that never close, brackets too deep for
a recursive parser, and a run of letters on which a careless regular expression takes quadratic time or worse."""

REFERENCES = {
    "reference": "{}",
    "reference_boxed": r"The answer is \boxed{{{}}}.",
    "reference_tagged": "<think>\nLet us see.\n</think>\n<answer>{}</answer>",
}
"""The right answer, as it is and in the two forms that rewards most often ask for."""

JUNK = ("unsure", "repeated", "long", "long_nested", "long_unbroken")
"""Answers that should not score above the right one. `fake` is missing: 42 may be right."""

SLOW = 1.0
"""Seconds for one answer from which on training would wait for the reward."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence or two about the reward. `code` is stable, for programs."""

    level: Literal["problem", "note"]
    code: str
    text: str


@dataclass(slots=True)
class KindResult:
    """What one kind of answer got: one value per prompt, None where there is none."""

    values: list[float | None]
    seconds: float
    error: str | None = None

    @property
    def mean(self) -> float | None:
        known = [value for value in self.values if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(slots=True)
class RewardCheck:
    """All that was found out about one reward function."""

    name: str
    signature: str
    num_prompts: int
    is_conversational: bool
    columns: list[str]
    """Dataset columns that the function receives."""
    columns_named: list[str]
    """Those among them that its signature names."""
    reference_column: str | None
    kinds: dict[str, KindResult] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def has_problem(self) -> bool:
        return any(finding.level == "problem" for finding in self.findings)

    @property
    def range(self) -> tuple[float, float] | None:
        """Smallest and largest value; None if there was none."""
        known = [value for kind in self.kinds.values() for value in kind.values if value is not None]
        return (min(known), max(known)) if known else None

    @property
    def best_reference(self) -> str | None:
        """The form of the right answer that scored highest; the first of equals."""
        means = {name: mean for name in REFERENCES if (mean := self._mean(name)) is not None}
        return max(means, key=lambda name: means[name]) if means else None

    def _mean(self, kind: str) -> float | None:
        return self.kinds[kind].mean if kind in self.kinds else None

    def compare(self, kind: str) -> tuple[int, int, int]:
        """Prompts on which the best form of the right answer scored above, equal to, and below `kind`."""
        reference = self.best_reference
        if reference is None or kind not in self.kinds:
            return 0, 0, 0
        pairs = zip(self.kinds[reference].values, self.kinds[kind].values, strict=True)
        signs = [(a > b) - (a < b) for a, b in pairs if a is not None and b is not None]
        return signs.count(1), signs.count(0), signs.count(-1)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; all numbers finite."""
        above, equal, below = self.compare("empty")
        return {
            **asdict(self),
            "has_problem": self.has_problem,
            "range": None if self.range is None else list(self.range),
            "is_constant": _is_constant(self),
            "best_reference": self.best_reference,
            "reference_against_empty": {"above": above, "equal": equal, "below": below},
            "kinds": {name: {**asdict(kind), "mean": kind.mean} for name, kind in self.kinds.items()},
        }


def check_reward(spec: RewardSpec, prompts: Sequence[Prompt], *, cpu_limit: float = 10.0) -> RewardCheck:
    """Try `spec` on made-up answers to `prompts`.

    cpu_limit: seconds of processor time for one call, where the system can interrupt (not on Windows, nor off the
        main thread).
    Raises RewardError if there is no prompt, or `spec` is a reward model.
    """
    if not prompts:
        raise RewardError("There is no prompt to try the reward on: the dataset is empty.")
    if isinstance(spec, str) or not callable(spec) or "forward" in dir(spec):
        raise RewardError(f"{spec!r:.100} is a reward model; only reward functions are checked here.")
    columns = list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))
    named = _parameters(spec)
    check = RewardCheck(
        name=callable_name(spec),
        signature=_signature(spec),
        num_prompts=len(prompts),
        is_conversational=prompts[0].is_conversational,
        columns=passed_columns(columns),
        columns_named=[name for name in passed_columns(columns) if name in named],
        reference_column=_reference_column(columns, named),
    )
    try:
        sources = prepare_rewards(spec, columns=columns, is_conversational=check.is_conversational)
    except RewardError as error:
        check.findings.append(Finding("problem", "signature", str(error)))
        return check
    answers = _answers(prompts, check.reference_column)
    with Scorer(sources, on_error="abstain") as scorer:
        for kind, texts in answers.items():
            check.kinds[kind] = _score(scorer, prompts, texts, cpu_limit)
        _judge(check)
        if not check.has_problem:
            check.findings += _stability(check, scorer, prompts, answers, cpu_limit)
    return check


def _signature(function: Any) -> str:
    try:
        return f"{callable_name(function)}{inspect.signature(function)}"
    except (TypeError, ValueError):  # some callables made in C carry no signature
        return f"{callable_name(function)}(...)"


def _parameters(function: Any) -> list[str]:
    try:
        return [name for name in inspect.signature(function).parameters if name not in BASE_KEYWORDS]
    except (TypeError, ValueError):
        return []


def _reference_column(columns: Collection[str], named: Collection[str]) -> str | None:
    """The column of right answers: one that the function asks for, if it asks for one."""
    present = [name for name in REFERENCE_COLUMNS if name in columns]
    return next((name for name in present if name in named), present[0] if present else None)


def _answers(prompts: Sequence[Prompt], reference_column: str | None) -> dict[str, list[str | None]]:
    """Kind -> one answer per prompt; None where the dataset has no right answer for it."""
    answers: dict[str, list[str | None]] = {kind: [text] * len(prompts) for kind, text in ANSWERS.items()}
    if reference_column is not None:
        golds = [_gold(prompt.columns.get(reference_column)) for prompt in prompts]
        if any(gold is not None for gold in golds):
            for kind, form in REFERENCES.items():
                answers[kind] = [None if gold is None else form.format(gold) for gold in golds]
    return answers


def _gold(value: Any) -> str | None:
    if value is None:
        return None
    is_messages = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    return text_of(value) if is_messages else str(value)


def _group(prompt: Prompt, texts: Sequence[str]) -> Group:
    # Rewards of length count tokens: a word and the space around it stand for one, and there is the EOS.
    completions = [
        Completion(number, list(range(len(text.split()) + 1)), "stop", text=text) for number, text in enumerate(texts)
    ]
    return Group(prompt, completions)


def _score(scorer: Scorer, prompts: Sequence[Prompt], texts: Sequence[str | None], cpu_limit: float) -> KindResult:
    """Score one answer per prompt, in one call."""
    asked = [number for number, text in enumerate(texts) if text is not None]
    groups = [_group(prompts[number], [texts[number] or ""]) for number in asked]
    values: list[float | None] = [None] * len(texts)
    try:
        with boundary(RewardError, "Calling the reward"), _limit(cpu_limit):
            rewards = scorer.score(groups, trainer_state=TrainerState())
    except GruppoError as error:
        return KindResult(values, 0.0, str(error))
    for number, value in zip(asked, rewards.rewards_NF[:, 0].tolist(), strict=True):
        values[number] = None if math.isnan(value) else value
    errors = [cells[0] for cells in rewards.errors_NF if cells[0] is not None]
    return KindResult(values, rewards.seconds[scorer.names[0]], errors[0] if errors else None)


class _Expired(BaseException):
    """Stops a call. No `Exception`, since many rewards catch all of those and go on."""


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError from the block after so much processor time. A deadline on a thread (the scorer's) would not
    do: a regular expression that hangs holds the interpreter. Rewards may use SIGALRM themselves, so it is left alone.

    A reward that catches even `_Expired` is stopped again after every further second, and reported all the same.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    has_expired = False

    def stop(*_: object) -> None:
        nonlocal has_expired
        has_expired = True
        raise _Expired

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
    try:
        yield
    except _Expired:
        pass
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    if has_expired:
        raise TimeoutError(f"stopped after {seconds:g} s of processor time")


def _judge(check: RewardCheck) -> None:
    check.findings += [*_failures(check), *_constancy(check), *_reference(check), *_junk(check), *_speed(check)]


def _failures(check: RewardCheck) -> Iterator[Finding]:
    """Each cause once, with the kinds of answers that met it: a broken function fails alike on all of them."""
    causes: dict[str, list[str]] = {}
    for name, kind in check.kinds.items():
        if kind.error is not None:
            # "Reward `x` raised KeyError": what follows the colon often quotes the answer.
            causes.setdefault(kind.error.split(":")[0], []).append(name)
    for kinds in causes.values():
        yield Finding("problem", "failure", f"On answers of kind {', '.join(kinds)}: {check.kinds[kinds[0]].error}")


def _is_constant(check: RewardCheck) -> bool:
    """Does every prompt give the same value to all answers? Then no group has an advantage."""
    rows = zip(*(kind.values for kind in check.kinds.values()), strict=True)
    distinct = [{value for value in row if value is not None} for row in rows]
    return any(distinct) and all(len(values) <= 1 for values in distinct)


def _constancy(check: RewardCheck) -> Iterator[Finding]:
    if check.range is None:
        if all(kind.error is None for kind in check.kinds.values()):
            yield Finding("problem", "abstains", "It abstains (None) on every answer, so it teaches nothing.")
    elif _is_constant(check):
        low, high = check.range
        said = f"{low:g}" if low == high else f"{low:g} to {high:g}, by prompt"
        yield Finding(
            "problem",
            "constant",
            f"It gives all answers to a prompt the same value ({said}), so no answer has an advantage. Check what it "
            f"looks for; if that is a form of its own, these {len(check.kinds)} kinds of answers may all lack it.",
        )


def _reference(check: RewardCheck) -> Iterator[Finding]:
    if check.reference_column is None:
        known = ", ".join(f"`{name}`" for name in REFERENCE_COLUMNS)
        yield Finding("note", "no_reference", f"The dataset has none of {known}: no right answer was tried.")
        return
    if check.best_reference is None or check.kinds["empty"].mean is None:
        return
    above, equal, below = check.compare("empty")
    where = f"column `{check.reference_column}`, form {check.best_reference}"
    if below > above:
        text = f"The right answer ({where}) scores below an empty one on {below} of {above + equal + below} prompts."
        yield Finding("problem", "reference_below_empty", f"{text} Is its sign right?")
    elif above == 0 and not _is_constant(check):
        yield Finding(
            "note", "reference_equals_empty", f"The right answer ({where}) scores no better than an empty one."
        )


def _junk(check: RewardCheck) -> Iterator[Finding]:
    for kind in JUNK:
        above, equal, below = check.compare(kind)
        if below > above:
            total = above + equal + below
            text = f"Answers of kind {kind} score above the right answer on {below} of {total} prompts."
            yield Finding("note", "junk_beats_reference", f"{text} Training would find that out.")


def _speed(check: RewardCheck) -> Iterator[Finding]:
    for name, kind in check.kinds.items():
        each = kind.seconds / check.num_prompts
        if each > SLOW:
            yield Finding("note", "slow", f"One answer of kind {name} takes {each:.1f} s.")


def _stability(
    check: RewardCheck,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    answers: dict[str, list[str | None]],
    cpu_limit: float,
) -> list[Finding]:
    """The short answers once more, in groups as in training: the same answer should get the same value."""
    short = [kind for kind in answers if not kind.startswith("long")]
    groups, expected = [], []
    for number, prompt in enumerate(prompts):
        kinds = [kind for kind in short if answers[kind][number] is not None]
        groups.append(_group(prompt, [answers[kind][number] or "" for kind in kinds]))
        expected += [check.kinds[kind].values[number] for kind in kinds]
    try:
        with boundary(RewardError, "Calling the reward on mixed answers"), _limit(cpu_limit):
            values = scorer.score(groups, trainer_state=TrainerState()).rewards_NF[:, 0].tolist()
    except GruppoError as error:
        return [Finding("problem", "failure", f"On answers of several kinds in one call: {error}")]
    found = [None if math.isnan(value) else value for value in values]
    changed = sum(before != after for before, after in zip(expected, found, strict=True))
    if not changed:
        return []
    text = f"{changed} of {len(found)} answers got another value when scored again among other answers."
    return [Finding("note", "unstable", f"{text} It is random, keeps state, or depends on the rest of the batch.")]
