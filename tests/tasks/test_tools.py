"""Tools: what one is, how arguments are checked and calls run, the calculator, and conversations that call them."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from unipg.errors import InputError
from unipg.tasks.data import data_task
from unipg.tasks.tools import (
    Call,
    assistant,
    calculator,
    checked_conversation,
    misfit,
    run_call,
    tool_from,
    tools_named,
)

LIMIT = 0.2
"""Seconds of a call."""


def nap(seconds: float) -> str:
    """Sleeps.

    Args:
        seconds: How long
    """
    time.sleep(seconds)
    return "rested"


def order(
    count: int, size: Literal["s", "l"] = "s", notes: list[str] | None = None, price: float = 1.0, paid: bool = False, box: dict | str = ""
) -> dict[str, Any]:
    """Orders something.

    Args:
        count: How many
        size: Which size
        notes: What to write on it
        price: How much
        paid: Whether it is paid
        box: Where to put it
    """
    return {"count": count, "size": size}


def fails() -> str:
    """Fails."""
    raise SystemExit("no\nway")


def undocumented(count: int) -> int:
    return count


def half_documented(count: int) -> int:
    """Counts."""
    return count


def test_a_schema_is_derived_from_signature_and_docstring() -> None:
    schema = tool_from(order).schema
    assert schema["type"] == "function"
    assert (schema["function"]["name"], schema["function"]["description"]) == ("order", "Orders something.")
    properties = schema["function"]["parameters"]["properties"]
    assert properties["count"] == {"type": "integer", "description": "How many"}
    assert properties["size"]["enum"] == ["s", "l"]
    assert schema["function"]["parameters"]["required"] == ["count"]
    for bad in (undocumented, half_documented, lambda x: x):
        with pytest.raises(InputError, match=r"has no schema: .*accepted: a function with type hints, and a docstring") as caught:
            tool_from(bad)
        assert "\n" not in str(caught.value)


def starred(*x: str) -> str:
    """Stars.

    Args:
        x: What
    """
    return ""


def placed(x: str, /) -> str:
    """Places.

    Args:
        x: What
    """
    return x


async def later(x: str) -> str:
    """Waits.

    Args:
        x: What
    """
    return x


def bit_by_bit(x: str) -> Iterator[str]:
    """Yields.

    Args:
        x: What
    """
    yield x


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (starred, r"the tool 'starred' has the argument '\*x'; accepted: arguments that can be given by name"),
        (placed, "the tool 'placed' has the argument 'x'"),
        (later, "the tool 'later' is asynchronous or a generator; accepted: a function that returns its result"),
        (bit_by_bit, "the tool 'bit_by_bit' is asynchronous or a generator"),
        (min, "the tool 'min' has no"),
    ],
)
def test_functions_that_could_never_be_called_are_refused(function: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tool_from(function)


@pytest.mark.parametrize("seconds", [float("inf"), 1e30, 1e-9])
def test_any_time_limit_above_0_is_one(seconds: float) -> None:
    call, outcome = (Call("nap", {"seconds": 0.0}), "ok") if seconds > 1 else (Call("nap", {"seconds": 0.3}), "timeout")
    assert run_call([tool_from(nap)], call, seconds)[0] == outcome


def test_a_tool_that_swallows_every_exception_for_ever_is_left() -> None:
    def stubborn() -> str:
        """Never ends."""
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(10)

    assert run_call([tool_from(stubborn)], Call("stubborn"), 0.05)[0] == "timeout"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"count": 2}, ""),
        ({"count": 2.0, "size": "l", "notes": ["a", "b"], "price": 3, "paid": True, "box": {}}, ""),
        ({"count": 2, "notes": None, "box": "b"}, ""),
        ({}, "argument 'count' is missing"),
        ({"count": 2, "colour": "red"}, "unknown argument 'colour'; arguments: count, size, notes, price, paid, box"),
        ({"count": "2"}, "argument 'count' must be integer"),
        ({"count": 2.5}, "argument 'count' must be integer"),
        ({"count": True}, "argument 'count' must be integer"),
        ({"count": 2, "price": "much"}, "argument 'price' must be number"),
        ({"count": 2, "paid": 1}, "argument 'paid' must be boolean"),
        ({"count": 2, "size": "m"}, """argument 'size' must be one of ["s", "l"]"""),
        ({"count": 2, "notes": "a"}, "argument 'notes' must be array"),
        ({"count": 2, "notes": ["a", 1]}, "argument 'notes' holds an item that must be string"),
        ({"count": 2, "box": 7}, "argument 'box' must be object or string"),
        ({"count": None}, "argument 'count' must be integer"),
    ],
)
def test_arguments_are_checked_against_the_schema(arguments: dict[str, Any], problem: str) -> None:
    tool = tool_from(order)
    assert misfit(arguments, tool.parameters) == problem
    expected = (
        ("error", f"error: {problem}") if problem else ("ok", json.dumps({"count": arguments["count"], "size": arguments.get("size", "s")}))
    )
    assert run_call([tool], Call("order", arguments), 5) == expected


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_what_a_call_comes_to(in_main_thread: bool) -> None:
    tools = [tool_from(f) for f in (nap, fails, order, calculator)]
    calls = [
        (Call("nap", {"seconds": 0.0}), ("ok", "rested")),
        (Call("nap", {"seconds": 30.0}), ("timeout", "error: no result within 0.2 seconds")),
        (Call("fails"), ("error", "error: SystemExit: no way")),
        (Call("naps", {"seconds": 0.0}), ("error", "error: there is no tool 'naps'; tools: nap, fails, order, calculator")),
        (Call("calculator", {"expression": "1 / 0"}), ("error", "error: ZeroDivisionError: division by zero")),
        (Call("order", {}, problem="not valid"), ("error", "error: not valid")),
    ]
    found: list[Any] = []

    def run() -> None:
        found.extend(run_call(tools, call, LIMIT) for call, _ in calls)

    began = time.monotonic()
    if in_main_thread:
        run()
    else:
        worker = threading.Thread(target=run)
        worker.start()
        worker.join()
    assert found == [expected for _, expected in calls]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(3 + 4) * 2", "14"),
        ("7 / 2", "3.5"),
        ("-7 // 2", "-4"),
        ("2 ** 10 % 1000", "24"),
        ("max(1, sqrt(9), abs(-2))", "3"),
        ("10 ** 100", str(10**100)),
        (" 1e3 ", "1000"),
    ],
)
def test_the_calculator(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "9 ** 9 ** 9",
        "10 ** 101",
        "1e99 * 1e99",
        "1e400",
        "(-8) ** 0.5",
        "__import__('os')",
        "(1).real",
        "[1]",
        "'a' * 3",
        "True",
        "abs(x=1)",
        "1 +",
        "1 " * 200,
        "lambda: 1",
        "1 if 2 else 3",
        "round",
    ],
)
def test_the_calculator_refuses_everything_else_at_once(expression: str) -> None:
    began = time.monotonic()
    with pytest.raises((ValueError, TypeError)):
        calculator(expression)
    assert time.monotonic() - began < 1


def test_tools_by_name() -> None:
    offered = {"search": tool_from(nap, "search")}
    assert [t.name for t in tools_named(["search", "calculator", f"{__name__}:nap"], offered)] == ["search", "calculator", "nap"]
    with pytest.raises(InputError, match=r"tool 'calculater' does not exist; did you mean 'calculator'\?"):
        tools_named(["calculater"])
    with pytest.raises(InputError, match=r"tool 'search' does not exist; only a task with documents offers search; accepted: calculator"):
        tools_named(["search"])
    with pytest.raises(InputError, match="two tools are called 'nap'"):
        tools_named([f"{__name__}:nap", f"{__name__}.nap"])
    with pytest.raises(InputError, match=r"tool '.*:napp'.*did you mean 'nap'"):
        tools_named([f"{__name__}:napp"])


# ------------------------------------------------------------------------------------------------- demonstrations in a data file


def test_a_data_file_with_conversations(tmp_path: Path) -> None:
    turns = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "calculator", "arguments": '{"expression": "1 + 1"}'}}],
        },
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "2", "tool_calls": None},
    ]
    other = [{"role": "assistant", "tool_calls": [{"name": "calculator", "arguments": {"expression": "1 + 1"}}]}, *turns[1:]]
    rows = [{"q": "a", "good": turns}, {"q": "b", "good": [turns, "2"]}, {"q": "c", "good": other}, {"q": "d", "good": None}]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    items = data_task(str(path), prompt="q", demonstration="good").items
    wanted = [assistant("", [Call("calculator", {"expression": "1 + 1"})]), {"role": "tool", "content": "2"}, assistant("2")]
    assert [item.demonstrations for item in items] == [(wanted,), (wanted, "2"), (wanted,), ()]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": "x"}], "message 1 must be an object with role assistant or tool"),
        ([{"role": "tool", "content": "x"}], "message 1 is the result of a call, but no call is waiting"),
        ([assistant("", [Call("a")]), assistant("b")], "message 2: 1 calls before it have no result"),
        ([assistant("", [Call("a")]), {"role": "tool", "content": "b"}], "must end with the assistant's answer"),
        ([assistant(" ")], "message 1 is empty"),
        ([assistant("x"), {"role": "assistant", "content": 3}], "message 2: content must be text"),
        ([{"role": "assistant", "tool_calls": [{"name": "a"}]}], "message 1: a tool call must have a name, and arguments"),
        ([{"role": "assistant", "tool_calls": [{"name": "a", "arguments": "{"}]}], "a tool call must have a name"),
        ([{"role": "assistant", "tool_calls": ["a"]}], "a tool call must have a name"),
    ],
)
def test_conversations_that_are_none(messages: Sequence[Any], said: str) -> None:
    with pytest.raises(InputError, match=f"here: .*{said}|here: {said}"):
        checked_conversation(messages, "here")
