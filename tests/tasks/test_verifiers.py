"""Verifiers by name, and scoring whatever a verifier does."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unipg.errors import InputError
from unipg.tasks.base import Item
from unipg.tasks.verifiers import exact_match, score, verifier_named


def item(expected: str | None = "4", place: str = "") -> Item:
    return Item(0, "2 + 2 = ?", expected=expected, place=place)


def good(answer: str, item: Item) -> float:
    return 0.5


def length(answer: str) -> float:
    return float(len(answer))


class Namespace:
    @staticmethod
    def inside(answer: str, item: Item) -> float:
        return 0.25


def scores_of(verifier: Callable[..., Any], *, limit: float = 0.1) -> tuple[list[float], Any]:
    """The verifier on one answer, beside one that succeeds."""
    return score(lambda a, i: 1.0 if a == "fine" else verifier(a, i), ["fine", "bad"], [item(), item(place="train.jsonl line 7")], limit)


@pytest.fixture
def in_a_thread() -> Callable[[Callable[[], Any]], Any]:
    """Runs a call outside the main thread."""

    def run(call: Callable[[], Any]) -> Any:
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(call())
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        return outcome[0]

    return run


# names


@pytest.mark.parametrize(("answer", "reward"), [("4", 1.0), (" 4\n", 1.0), ("four", 0.0), ("", 0.0), ("4 4", 0.0)])
def test_exact_match(answer: str, reward: float) -> None:
    assert exact_match(answer, item()) == reward


def test_exact_match_counts_a_run_of_white_space_as_one_space() -> None:
    assert exact_match("New \t\n York", item("New York")) == 1.0
    assert exact_match("NewYork", item("New York")) == 0.0
    assert exact_match("new york", item("New York")) == 0.0


@pytest.mark.parametrize("name", ["exact_match", "math_verify"])
def test_a_missing_reference_answer_is_named_with_its_place(name: str) -> None:
    with pytest.raises(InputError, match=rf"train.jsonl line 7.*'{name}'"):
        verifier_named(name)("4", item(None, "train.jsonl line 7"))


@pytest.mark.parametrize(
    ("expected", "answer", "reward"),
    [
        ("1/2", "so it is $\\frac{1}{2}$.", 1.0),
        ("\\frac{1}{2}", "0.5", 1.0),
        ("72", "She sold $48+24=\\boxed{72}$ clips", 1.0),
        ("72", "\\boxed{73}", 0.0),
        ("2x+3", "$3 + 2x$", 1.0),
        ("2x+3", "$2$", 0.0),
        ("11\\sqrt2", "$\\sqrt{242}$", 1.0),
        ("[0,9)", "\\boxed{[0, 9)}", 1.0),
        ("the result is $x^2-1$", "(x-1)(x+1)", 1.0),
        ("72", "I do not know", 0.0),
        ("72", "", 0.0),
        ("Monday", "Monday ", 1.0),
    ],
)
def test_math_verify_decides_by_value(expected: str, answer: str, reward: float) -> None:
    pytest.importorskip("math_verify")
    assert verifier_named("math_verify")(answer, item(expected)) == reward


def test_math_verify_refuses_a_reference_without_mathematics() -> None:
    pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match="is not mathematics"):
        verifier_named("math_verify")("4", item("$$"))


def test_math_verify_works_outside_the_main_thread(in_a_thread: Callable[..., Any]) -> None:
    pytest.importorskip("math_verify")
    assert in_a_thread(lambda: verifier_named("math_verify")("$\\frac{14}{2}$", item("7"))) == 1.0


def test_math_verify_leaves_the_alarm_alone() -> None:
    pytest.importorskip("math_verify")
    signal.setitimer(signal.ITIMER_REAL, 50)
    try:
        assert verifier_named("math_verify")("$\\frac{14}{2}$", item("7")) == 1.0
        assert 40 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_math_verify_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from unipg.tasks import verifiers

    verifiers._math_verify_package.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(InputError, match=r"math-verify.*unipg\[math\]"):
        verifier_named("math_verify")("4", item("5"))


@pytest.mark.parametrize("spec", [f"{__name__}:good", f"{__name__}.good"])
def test_a_callable_by_its_dotted_path(spec: str) -> None:
    assert verifier_named(spec) is good


def test_a_callable_inside_a_class() -> None:
    assert verifier_named(f"{__name__}:Namespace.inside")("", item()) == 0.25


def test_a_module_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_mine.py").write_text("def by_length(answer, item):\n    return len(answer) / 10\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    assert verifier_named("rewards_of_mine:by_length")("four", item()) == 0.4
    with pytest.raises(InputError, match=r"no module 'reward_of_mine'.*did you mean 'rewards_of_mine'"):
        verifier_named("reward_of_mine:by_length")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("exactmatch", "did you mean 'exact_match'"),
        ("", "accepted: exact_match, math_verify, package.module:function"),
        ("unipg.tasks.verifiers:exactmatch", "has no 'exactmatch'; did you mean 'exact_match'"),
        ("unipg.tasks.verifier:exact_match", "no module 'verifier' in 'unipg.tasks'; did you mean 'verifiers'"),
        ("no_such_package_here:f", "no module 'no_such_package_here' installed or in the current folder"),
        ("unipg.tasks.base:Item", "must be a function"),
        ("unipg.tasks.verifiers:NEED_REFERENCE", "is a frozenset; it must be a function"),
        (f"{__name__}:length", r"cannot be called as \(answer, item\)"),
    ],
)
def test_a_name_that_leads_nowhere(spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        verifier_named(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("broken_dependency", "import no_such_dependency", "No module named 'no_such_dependency'"),
        ("broken_syntax", "def f(:", "SyntaxError"),
        ("broken_code", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_module_that_cannot_be_imported(name: str, text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"importing '{name}' failed: .*{said}"):
        verifier_named(f"{name}:f")


def test_a_built_in_without_a_signature_is_taken_as_it_is() -> None:
    assert verifier_named("builtins:min") is min


# scoring


@pytest.mark.parametrize("result", [0.75, numpy.float32(0.75), numpy.float64(0.75), torch.tensor(0.75)])
def test_any_number_is_a_reward(result: Any) -> None:
    rewards, failures = score(lambda a, i: result, ["x"], [item()])
    assert rewards == [0.75]
    assert type(rewards[0]) is float
    assert failures.count == 0
    assert failures.first is None


@pytest.mark.parametrize(("result", "reward"), [(True, 1.0), (False, 0.0), (3, 3.0), (-1, -1.0), (numpy.bool_(True), 1.0)])
def test_truth_and_whole_numbers_are_rewards(result: Any, reward: float) -> None:
    assert score(lambda a, i: result, ["x"], [item()])[0] == [reward]


@pytest.mark.parametrize("result", [math.nan, math.inf, -math.inf, None, "1.0", b"1", [1.0, 2.0], torch.ones(2), object(), 10**400])
def test_anything_else_is_an_error_that_names_verifier_and_item(result: Any) -> None:
    def judge(answer: str, item: Item) -> Any:
        return result

    with pytest.raises(InputError, match=r"judge' gave .* for train.jsonl line 7: a reward must be a finite number"):
        score(judge, ["x"], [item(place="train.jsonl line 7")])


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


class NotAnException(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("division\n by zero"), "train.jsonl line 7: ZeroDivisionError: division by zero"),
        (KeyError(), "train.jsonl line 7: KeyError"),
        (Unprintable(), "train.jsonl line 7: Unprintable"),
        (SystemExit(3), "train.jsonl line 7: SystemExit: 3"),
        (NotAnException("odd"), "train.jsonl line 7: NotAnException: odd"),
        (RecursionError("deep"), "train.jsonl line 7: RecursionError: deep"),
    ],
)
def test_a_verifier_that_raises(error: BaseException, said: str, in_a_thread: Callable[..., Any]) -> None:
    def fails(answer: str, item: Item) -> float:
        raise error

    for rewards, failures in (scores_of(fails), in_a_thread(lambda: scores_of(fails))):
        assert rewards == [1.0, 0.0]
        assert (failures.kinds, failures.messages) == ({"raised": 1}, {"raised": said})


def test_an_unprintable_result() -> None:
    with pytest.raises(InputError, match=r"gave a Unprintable for train.jsonl line 7"):
        scores_of(lambda a, i: Unprintable())


def swallow_exceptions(answer: str, item: Item) -> float:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.001)


def swallow_everything_once(answer: str, item: Item) -> float:
    try:
        time.sleep(1e9)
    except BaseException:
        return spin(answer, item)
    return 0.0


def give_a_reward_when_stopped(answer: str, item: Item) -> float:
    try:
        time.sleep(1e9)
    except BaseException:
        return 1.0
    return 0.0


def raise_another_error_when_stopped(answer: str, item: Item) -> float:
    try:
        time.sleep(1e9)
    except BaseException as error:
        raise ValueError("stopped") from error
    return 0.0


def spin(answer: str, item: Item) -> float:
    while True:
        pass


def sleep(answer: str, item: Item) -> float:
    time.sleep(1e9)
    return 1.0


def backtrack(answer: str, item: Item) -> float:
    return float(bool(re.match(r"(a+)+$", "a" * 60 + "b")))


@pytest.mark.parametrize(
    "verifier",
    [spin, sleep, backtrack, swallow_exceptions, swallow_everything_once, give_a_reward_when_stopped, raise_another_error_when_stopped],
)
def test_the_time_limit_stops(verifier: Callable[..., float]) -> None:
    started = time.monotonic()
    rewards, failures = scores_of(verifier, limit=0.05)
    assert time.monotonic() - started < 1.0
    assert rewards == [1.0, 0.0]
    assert failures.messages == {"timed_out": "train.jsonl line 7: no result within 0.05 s"}


def test_the_alarm_passes_by_code_that_catches_every_exception() -> None:
    caught: list[Exception] = []

    def catches(answer: str, item: Item) -> float:
        try:
            time.sleep(0.2)
        except Exception as error:
            caught.append(error)
        return 1.0

    assert scores_of(catches, limit=0.02)[1].kinds == {"timed_out": 1}
    assert caught == []


def test_the_time_limit_outside_the_main_thread(in_a_thread: Callable[..., Any]) -> None:
    release = threading.Event()
    started = time.monotonic()
    rewards, failures = in_a_thread(lambda: scores_of(lambda a, i: release.wait(30), limit=0.05))
    assert time.monotonic() - started < 1.0
    release.set()  # the thread left behind ends
    assert (rewards, failures.kinds) == ([1.0, 0.0], {"timed_out": 1})


def test_scoring_where_there_is_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "setitimer")
    release = threading.Event()
    rewards, failures = scores_of(lambda a, i: release.wait(30), limit=0.05)
    release.set()
    assert (rewards, failures.kinds) == ([1.0, 0.0], {"timed_out": 1})


def test_the_time_limit_is_for_each_answer() -> None:
    def slow(answer: str, item: Item) -> float:
        time.sleep(0.1)
        return 1.0

    assert score(slow, ["x"] * 4, [item()] * 4, 0.3)[0] == [1.0] * 4


def test_every_kind_is_counted_and_keeps_its_first_message() -> None:
    def verifier(answer: str, item: Item) -> Any:
        if answer == "raise":
            raise ValueError(item.place)
        if answer == "sleep":
            time.sleep(60)
        return 1.0

    answers = ["sleep", "raise", "fine", "sleep", "raise", "raise"]
    rewards, failures = score(verifier, answers, [item(place=f"row {n}") for n in range(6)], 0.05)
    assert rewards == [0, 0, 1, 0, 0, 0]
    assert failures.kinds == {"timed_out": 2, "raised": 3}
    assert failures.rows == [0, 1, 3, 4, 5]
    assert failures.count == 5
    assert failures.messages["raised"] == "row 1: ValueError: row 1"
    assert failures.first == failures.messages["timed_out"] == "row 0: no result within 0.05 s"


def test_a_verifier_that_fails_on_every_answer_lets_the_run_go_on() -> None:
    rewards, failures = score(lambda answer, item: 1 / 0, ["a", "b"], [item(), item()])
    assert (rewards, failures.count) == ([0.0, 0.0], 2)


def test_no_answers_are_no_failure() -> None:
    rewards, failures = score(good, [], [])
    assert (rewards, failures.count) == ([], 0)


def test_an_input_error_passes_through(in_a_thread: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="needs a reference answer"):
        score(exact_match, ["a", "b"], [item(None), item("b")])
    error = in_a_thread(lambda: score(exact_match, ["a", "b"], [item(None), item("b")]))
    assert isinstance(error, InputError)


def test_the_user_can_interrupt() -> None:
    def interrupted(answer: str, item: Item) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(interrupted, ["a"], [item()])


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_the_time_limit_must_be_above_zero(limit: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        score(good, ["a"], [item()], limit)


def test_answers_and_items_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        score(good, ["a", "b"], [item()])


def test_the_earlier_alarm_rings_when_it_should() -> None:
    rung: list[float] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    try:
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        scores_of(sleep, limit=0.05)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.25
        while not rung and time.monotonic() - started < 1.0:
            time.sleep(0.01)
        assert rung[0] - started >= 0.29
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_earlier_alarm_that_came_due_meanwhile_rings_afterwards() -> None:
    rung: list[bool] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        scores_of(sleep, limit=0.06)
        time.sleep(0.02)
        assert rung == [True]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_no_alarm_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    scores_of(spin, limit=0.02)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_that_races_the_end_of_the_call_never_escapes() -> None:
    def about_the_limit(answer: str, item: Item) -> float:
        end = time.perf_counter() + float(answer)
        while time.perf_counter() < end:
            pass
        return 1.0

    answers = [str(0.001 + 0.00001 * (n - 60)) for n in range(120)] + ["0"] * 5
    rewards, failures = score(about_the_limit, answers, [item()] * len(answers), 0.001)
    assert failures.rows == [row for row, reward in enumerate(rewards) if reward == 0.0]
    assert set(failures.kinds) == {"timed_out"}
    assert failures.count > 10


def test_an_alarm_before_the_call_has_begun_is_no_failure_and_never_escapes() -> None:
    before = signal.getsignal(signal.SIGALRM)
    rewards, failures = score(good, ["x"] * 200, [item()] * 200, 1e-6)
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (before, (0.0, 0.0))
    assert rewards.count(0.5) == 200 - failures.count > 100


@given(st.lists(st.sampled_from(["1", "0", "raise"]), min_size=1, max_size=20))
@settings(deadline=None)
def test_rewards_are_finite_and_failures_add_up(answers: list[str]) -> None:
    items = [Item(n, "p") for n in range(len(answers))]
    bad = [row for row, answer in enumerate(answers) if answer == "raise"]

    def verifier(answer: str, item: Item) -> float:
        return float(answer)  # raises for "raise"

    rewards, failures = score(verifier, answers, items)
    assert rewards == [float(answer == "1") for answer in answers]
    assert failures.rows == bad
    assert sum(failures.kinds.values()) == failures.count == len(bad)
