"""Verifiers by name, and scoring that survives what a verifier may do."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import math
import os
import pkgutil
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unipg.errors import InputError, missing_package, nearest
from unipg.tasks.base import Item, Verifier

_RETRY_SECONDS = 0.02


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


_NAMED: dict[str, Verifier] = {"exact_match": exact_match, "math_verify": math_verify}
NEED_REFERENCE = frozenset(_NAMED)
"""Names of the verifiers that compare with `Item.expected`."""


def verifier_named(spec: str) -> Verifier:
    """The verifier that `spec` names: `exact_match`, `math_verify`, or any Python callable `(answer, item) -> float`.

    A callable is written `package.module:function` or `package.module.function`; modules of the current folder are found too.

    Errors: `InputError` with the nearest names for an unknown name, module or attribute; for a module that fails while it is imported; for
    something that cannot be called with an answer and an item.
    """
    if spec in _NAMED:
        return _NAMED[spec]
    module_name, _, path = spec.partition(":") if ":" in spec else spec.rpartition(".")
    if not module_name or not path:
        raise InputError(f"unknown verifier {spec!r}: {nearest(spec, [*_NAMED, 'package.module:function'])}")
    found: Any = _module_named(module_name, spec)
    for part in path.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name))]
            raise InputError(f"verifier {spec!r}: '{module_name}' has no '{part}'; {nearest(part, public)}")
        found = getattr(found, part)
    if isinstance(found, type) or not callable(found):
        raise InputError(f"verifier {spec!r} is a {type(found).__name__}; it must be a function (answer, item) -> float")
    try:
        inspect.signature(found).bind("answer", Item(0, "prompt"))
    except TypeError as error:
        raise InputError(f"verifier {spec!r} cannot be called as (answer, item): {error}") from error
    except ValueError:
        pass  # a built-in callable that does not tell its signature
    return found


def _module_named(name: str, spec: str) -> types.ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # a console script does not search the current folder; last, so that it shadows nothing
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(f"verifier {spec!r}: importing '{name}' failed: {_one_line(error)}") from error
        parent, _, last = error.name.rpartition(".")
        path = getattr(sys.modules.get(parent), "__path__", []) if parent else [folder]
        hint = nearest(last, [module.name for module in pkgutil.iter_modules(path)])
        where = f"in '{parent}'" if parent else "installed or in the current folder"
        raise InputError(f"verifier {spec!r}: there is no module '{last}' {where}; {hint}") from error
    except Exception as error:
        raise InputError(f"verifier {spec!r}: importing '{name}' failed: {_one_line(error)}") from error


@dataclass
class Failures:
    """Which answers of one call of `score` could not be scored, and why."""

    rows: list[int] = field(default_factory=list)
    """Positions of the failed answers; each has reward 0.0."""
    kinds: dict[str, int] = field(default_factory=dict)
    """How many failed by kind: `raised`, `timed_out`."""
    messages: dict[str, str] = field(default_factory=dict)
    """The first message of each kind, with the item it happened at."""

    @property
    def count(self) -> int:
        """How many answers failed."""
        return len(self.rows)

    @property
    def first(self) -> str | None:
        """The first message of all."""
        return next(iter(self.messages.values()), None)

    def add(self, kind: str, row: int, message: str) -> None:
        """Records one failed answer."""
        self.rows.append(row)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.messages.setdefault(kind, message)


class _OutOfTime(BaseException):
    """Not an `Exception`, so that `except Exception` in a verifier lets it pass."""


def score(
    verifier: Verifier, answers: Sequence[str], items: Sequence[Item], time_limit_seconds: float = 5.0
) -> tuple[list[float], Failures]:
    """One reward for each answer `[B]`, and which calls failed.

    A call that raises (`raised`; `SystemExit` too) or runs past the limit (`timed_out`) counts as failed and gives reward 0.0.

    The limit is for each answer. In the main thread an alarm signal stops the call, also `while True: pass`, `time.sleep`, a regular
    expression that backtracks forever and code that catches every `Exception`; only native code that never returns to the interpreter
    outlasts it. The alarm's earlier handler and timer are put back. In any other thread, and where there is no alarm (Windows), the call
    runs in a daemon thread which is waited for and, past the limit, left behind: it keeps its processor time until the process ends.

    Errors: `InputError` for a result that is NaN, infinite, None or anything else that is not a number, with the verifier's name and the
    item; and for a limit that is not above 0. An `InputError` raised by the verifier, and `KeyboardInterrupt`, pass through.
    """
    if not time_limit_seconds > 0:
        raise InputError(f"the verifier's time limit is {time_limit_seconds}; it must be above 0 seconds")
    rewards: list[float] = []
    failures = Failures()
    for row, (answer, item) in enumerate(zip(answers, items, strict=True)):
        reward, place = 0.0, item.place or f"item {item.index}"
        try:
            result = _limited(functools.partial(verifier, answer, item), time_limit_seconds)
        except _OutOfTime:
            failures.add("timed_out", row, f"{place}: no result within {time_limit_seconds:g} s")
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:
            failures.add("raised", row, f"{place}: {_one_line(error)}")
        else:
            number = _finite(result)
            if number is None:
                raise InputError(f"the verifier '{_name_of(verifier)}' gave {_shown(result)} for {place}: a reward must be a finite number")
            reward = number
        rewards.append(reward)
    return rewards, failures


def _finite(result: Any) -> float | None:
    if isinstance(result, str | bytes):
        return None
    try:
        number = float(result)
    except Exception:
        return None
    return number if math.isfinite(number) else None


def _limited(call: Callable[[], Any], seconds: float) -> Any:
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        return _limited_by_alarm(call, seconds)
    return _limited_by_thread(call, seconds)


def _limited_by_alarm(call: Callable[[], Any], seconds: float) -> Any:
    here = sys._getframe()
    late = False

    def ring(signum: int, frame: types.FrameType | None) -> None:
        nonlocal late
        if frame is not here:  # inside the call, not in the lines below that clean up
            late = True
            raise _OutOfTime

    def run() -> Any:
        return call()

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    # it rings again and again: a bare `except:` may swallow it
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _RETRY_SECONDS)
    try:
        result = run()
    except BaseException as error:
        if late and not isinstance(error, KeyboardInterrupt):  # whatever the call made of the alarm
            raise _OutOfTime from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 1e-6), interval)
        del here
    if late:
        raise _OutOfTime
    return result


def _limited_by_thread(call: Callable[[], Any], seconds: float) -> Any:
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    worker = threading.Thread(target=run, daemon=True, name="verifier")
    worker.start()
    worker.join(seconds)
    if not outcome:
        raise _OutOfTime
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _name_of(verifier: Verifier) -> str:
    return getattr(verifier, "__qualname__", type(verifier).__qualname__)


def _shown(value: Any) -> str:
    try:
        return normalised(repr(value))[:80]
    except Exception:
        return f"a {type(value).__name__}"


def _one_line(error: BaseException) -> str:
    try:
        text = normalised(str(error))[:200]
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
