"""Calls with a time limit: verifiers and tools may hang, and a run must not."""

from __future__ import annotations

import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

_RETRY_SECONDS = 0.02
PATIENT_RINGS = 5
SHORTEST_SECONDS = 1e-5


class OutOfTime(BaseException):
    """The call ran past its limit. Not an `Exception`, so that `except Exception` in what is called lets it pass."""


def limited(call: Callable[[], Any], seconds: float) -> Any:
    """`call()`, stopped after `seconds`.

    In the main thread an alarm signal stops the call, also `while True: pass`, `time.sleep`, a regular expression that backtracks forever
    and a loop that catches every exception; only native code that never returns to the interpreter outlasts it. The alarm's earlier handler
    and timer are put back. In any other thread, and where there is no alarm (Windows), the call runs in a daemon thread which is waited for
    and, past the limit, left behind: it keeps its processor time until the process ends.

    Raises OutOfTime past the limit, and whatever the call raises.
    """
    seconds = min(max(seconds, SHORTEST_SECONDS), threading.TIMEOUT_MAX)  # timers take 0 as no limit, and no infinity
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        return _limited_by_alarm(call, seconds)
    return _limited_by_thread(call, seconds)


def _limited_by_alarm(call: Callable[[], Any], seconds: float) -> Any:
    here = sys._getframe()
    late, rings = False, 0

    def ring(signum: int, frame: types.FrameType | None) -> None:
        nonlocal late, rings
        if frame is not here:  # inside the call, not in the lines below that clean up
            late, rings = True, rings + 1
            if rings > PATIENT_RINGS:  # a loop of `try: … except: pass` can only be left between two tries: at some odd moment
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + rings * 0.618 % 1 * 3e-4, _RETRY_SECONDS)
            raise OutOfTime

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
            raise OutOfTime from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 1e-6), interval)
        del here
    if late:
        raise OutOfTime
    return result


def _limited_by_thread(call: Callable[[], Any], seconds: float) -> Any:
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    worker = threading.Thread(target=run, daemon=True, name="limited")
    worker.start()
    worker.join(seconds)
    if not outcome:
        raise OutOfTime
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
