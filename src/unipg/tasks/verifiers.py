"""Verifiers by name, and scoring that survives what a verifier may do."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import string
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from unipg.errors import InputError, missing_package, nearest, one_line
from unipg.loading import IN_MEMORY, callable_named, name_of
from unipg.tasks.base import Item, Verifier
from unipg.tasks.limits import OutOfTime, limited


def normalised(text: str) -> str:
    """`text` with every run of white space made one space, and none at its ends."""
    return " ".join(text.split())


def _reference(item: Item, who: str) -> str:
    if item.expected is None:
        raise InputError(f"{item.place or f'item {item.index}'}: the verifier '{who}' needs a reference answer, and there is none")
    return item.expected


def exact_match(answer: str, item: Item) -> float:
    """1.0 iff `answer` equals `item.expected` once white space is normalised; upper and lower case differ.

    Errors: `InputError` for an item without a reference answer.
    """
    return float(normalised(answer) == normalised(_reference(item, "exact_match")))


def math_verify(answer: str, item: Item) -> float:
    """1.0 iff the last mathematical expression of `answer` equals `item.expected`, as the package `math-verify` decides it.

    `item.expected` is the bare answer, plain or LaTeX (`72`, `\\frac{1}{2}`, `[0, 9)`), or text that holds it in `$…$` or `\\boxed{…}`. An
    answer that equals it as text is right without being parsed. An answer without mathematics scores 0.0.

    The package's own time limits are off: they use the alarm that `score` uses, and fail outside the main thread.

    Errors: `InputError` without a reference answer or without the package; `ValueError` for a reference answer that cannot be parsed.
    """
    expected = _reference(item, "math_verify")
    if normalised(answer) == normalised(expected):
        return 1.0
    package = _math_verify_package()
    gold = _parsed_reference(expected)
    if not gold:
        raise ValueError(f"the reference answer {expected[:60]!r} is not mathematics that math-verify can parse")
    # a bare LaTeX answer has no delimiters for the parser to find
    found = package.parse(answer, parsing_timeout=None) or package.parse(f"${answer}$", parsing_timeout=None)
    return float(package.verify(gold, found, timeout_seconds=None))


def qa_match(answer: str, item: Item) -> float:
    """1.0 iff `answer` equals `item.expected` without punctuation, articles and the difference of upper and lower case.

    The exact match of question answering (SQuAD, arXiv 1606.05250). Errors: `InputError` for an item without a reference answer.
    """
    return float(_plain(answer) == _plain(_reference(item, "qa_match")))


def _plain(text: str) -> str:
    letters = "".join(" " if character in string.punctuation else character for character in text.lower())
    return " ".join(word for word in letters.split() if word not in ("a", "an", "the"))


@functools.cache
def _math_verify_package() -> Any:
    try:
        import math_verify as package
    except ImportError as error:
        raise missing_package("math-verify", "math", "the verifier 'math_verify'") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off
    return package


@functools.lru_cache(maxsize=4096)
def _parsed_reference(expected: str) -> list[Any]:
    delimited = any(mark in expected for mark in ("$", "\\boxed", "\\(", "\\["))
    # without delimiters the parser would take `2x+3` for 2
    return _math_verify_package().parse(expected if delimited else f"${expected}$", parsing_timeout=None)


_NAMED: dict[str, Verifier] = {"exact_match": exact_match, "math_verify": math_verify, "qa_match": qa_match}
NEED_REFERENCE = frozenset(_NAMED)
"""Names of the verifiers that compare with `Item.expected`."""


def verifier_named(spec: str) -> Verifier:
    """The verifier that `spec` names: `exact_match`, `math_verify`, `qa_match`, or any Python callable: `(answer, item) -> float`, or, told
    by a parameter of this name, `(completions, …) -> list of numbers` (`BatchFunction`).

    A callable is written `package.module:function` or `package.module.function`; modules of the current folder are found too.

    Errors: `InputError` with the nearest names for an unknown name, module or attribute; for a module that fails while it is imported; for
    something that cannot be called with an answer and an item.
    """
    if spec in _NAMED:
        return _NAMED[spec]
    if "." not in spec and ":" not in spec:
        raise InputError(f"unknown verifier {spec!r}: {nearest(spec, [*_NAMED, 'package.module:function'])}")
    found = callable_named(spec, "verifier")
    name = name_of(found) if spec.startswith(IN_MEMORY) else spec
    try:
        signature = inspect.signature(found)
    except ValueError:  # a built-in callable that does not tell
        return found
    if inspect.iscoroutinefunction(found):
        raise InputError(f"verifier '{name}' is async; accepted: a plain function")
    if "completions" in signature.parameters:
        return BatchFunction(found, name)
    try:
        signature.bind("answer", Item(0, "prompt"))
    except TypeError as error:
        raise InputError(f"verifier '{name}' cannot be called as (answer, item), nor has it a parameter `completions`: {error}") from error
    return found


@dataclass
class Failures:
    """Which answers of one call of `score` could not be scored, and why."""

    rows: list[int] = field(default_factory=list)
    """Positions of the failed answers; each has reward 0.0."""
    kinds: dict[str, int] = field(default_factory=dict)
    """How many failed by kind: `raised`, `timed_out`."""
    messages: dict[str, str] = field(default_factory=dict)
    """The first message of each kind, with the item it happened at."""
    traceback: str = ""
    """Of the first call that raised."""

    @property
    def count(self) -> int:
        """How many answers failed."""
        return len(self.rows)

    @property
    def trouble(self) -> str:
        """What to read about it: the first message of each kind, then the traceback; empty where nothing failed."""
        return "\n".join(
            [*(f"{kind}: {message}" for kind, message in self.messages.items()), *([self.traceback] if self.traceback else [])]
        )

    @property
    def first(self) -> str | None:
        """The first message of all."""
        return next(iter(self.messages.values()), None)

    def add(self, kind: str, row: int, message: str) -> None:
        """Records one failed answer."""
        self.rows.append(row)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.messages.setdefault(kind, message)

    def join(self, others: Failures) -> None:
        """Takes in those of another call for the same answers: one that fails in both is counted once."""
        self.rows = sorted({*self.rows, *others.rows})
        self.kinds = {kind: max(self.kinds.get(kind, 0), others.kinds.get(kind, 0)) for kind in self.kinds | others.kinds}
        self.messages = others.messages | self.messages
        self.traceback = self.traceback or others.traceback


@runtime_checkable
class Together(Protocol):
    """A verifier that scores many answers in one call."""

    def together(self, answers: Sequence[str], items: Sequence[Item], seconds: float) -> tuple[list[float], Failures]:
        """One reward for each answer [B], NaN where it has nothing to say, and which failed; `seconds`: the limit for one answer."""


class BatchFunction:
    """A function over many answers, as TRL's reward functions are: `(completions, …) -> list of numbers`.

    It is given by name, of what it has parameters for: `completions`, `prompts`, and every column of the rows as a list. A completion is
    text, or `[{"role": "assistant", "content": text}]` where the prompt is a conversation. None in its list is no opinion.

    Errors: `InputError` for a parameter that is no column (`check`), and for a list of another length.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
        parameters = inspect.signature(function).parameters.values()
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.needs = [p.name for p in parameters if p.name in self.takes and p.default is p.empty]

    def check(self, items: Sequence[Item]) -> None:
        """Refuses rows that do not have a column which the function must be given."""
        columns = items[0].fields if items else {}
        missing = next((name for name in self.needs if name not in ("completions", "prompts", *columns)), None)
        if missing is not None:
            known = nearest(missing, ["completions", "prompts", *columns])
            raise InputError(f"'{self.name}' asks for '{missing}', but the rows have no such column; {known}")

    def __call__(self, answer: str, item: Item) -> float:
        return float(self._call([answer], [item])[0])

    def _call(self, answers: Sequence[str], items: Sequence[Item]) -> list[Any]:
        said = [a if isinstance(i.prompt, str) else [{"role": "assistant", "content": a}] for a, i in zip(answers, items, strict=True)]
        own = {"prompts": [item.prompt for item in items], "completions": said}
        columns = items[0].fields if self.takes_all else [name for name in self.takes if name in items[0].fields]
        told = {name: [item.fields.get(name) for item in items] for name in columns if name not in ("prompt", "completion")}
        given = told | {name: value for name, value in own.items() if self.takes_all or name in self.takes}
        return list(self.function(**given))

    def together(self, answers: Sequence[str], items: Sequence[Item], seconds: float) -> tuple[list[float], Failures]:
        failures = Failures()
        if not answers:
            return [], failures
        self.check(items)
        place = f"{len(answers)} answers from {items[0].place or f'item {items[0].index}'} on"
        try:
            found = limited(functools.partial(self._call, answers, items), seconds * len(answers))
        except OutOfTime:
            failure = ("timed_out", f"{place}: no result within {seconds * len(answers):g} s")
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:
            failure = ("raised", f"{place}: {one_line(error)}")
            failures.traceback = f"{place}:\n{''.join(traceback.format_exception(error))}"
        else:
            if len(found) != len(answers):
                raise InputError(f"'{self.name}' gave {len(found)} rewards for {len(answers)} completions")
            gave = [math.nan if value is None else _reward(value, self.name, item) for value, item in zip(found, items, strict=True)]
            return gave, failures
        for row in range(len(answers)):
            failures.add(failure[0], row, failure[1])
        return [0.0] * len(answers), failures


def score(
    verifier: Verifier, answers: Sequence[str], items: Sequence[Item], time_limit_seconds: float = 5.0, *, gaps: bool = False
) -> tuple[list[float], Failures]:
    """One reward for each answer `[B]`, and which calls failed. `gaps`: NaN is taken from a verifier that has nothing to say of an answer.

    A call that raises (`raised`; `SystemExit` too) or runs past the limit (`timed_out`) counts as failed and gives reward 0.0.

    The limit is for each answer; `limits.limited` says how it is kept.

    Errors: `InputError` for a result that is NaN, infinite, None or anything else that is not a number, with the verifier's name and the
    item; and for a limit that is not above 0. An `InputError` raised by the verifier, and `KeyboardInterrupt`, pass through.
    """
    if not time_limit_seconds > 0:
        raise InputError(f"the verifier's time limit is {time_limit_seconds}; it must be above 0 seconds")
    if isinstance(verifier, Together):
        rewards, failures = verifier.together(answers, items, time_limit_seconds)
        for reward, item in zip(rewards, items, strict=True):
            if not gaps:
                _reward(reward, name_of(verifier), item)
        return rewards, failures
    rewards = []
    failures = Failures()
    for row, (answer, item) in enumerate(zip(answers, items, strict=True)):
        reward, place = 0.0, item.place or f"item {item.index}"
        try:
            result = limited(functools.partial(verifier, answer, item), time_limit_seconds)
        except OutOfTime:
            failures.add("timed_out", row, f"{place}: no result within {time_limit_seconds:g} s")
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:
            failures.add("raised", row, f"{place}: {one_line(error)}")
            failures.traceback = failures.traceback or f"{place}:\n{''.join(traceback.format_exception(error))}"
        else:
            reward = _reward(result, name_of(verifier), item)
        rewards.append(reward)
    return rewards, failures


def _reward(result: Any, who: str, item: Item) -> float:
    number = _finite(result)
    if number is None:
        place = item.place or f"item {item.index}"
        raise InputError(f"the verifier '{who}' gave {_shown(result)} for {place}: a reward must be a finite number")
    return number


def _finite(result: Any) -> float | None:
    if isinstance(result, str | bytes):
        return None
    try:
        number = float(result)
    except Exception:
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    try:
        return normalised(repr(value))[:80]
    except Exception:
        return f"a {type(value).__name__}"
