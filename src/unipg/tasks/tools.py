"""Tools: typed Python functions that a policy may call in the middle of its answer.

Belongs here: what a tool is, which ones there are, how a call is checked and run, and how a conversation with calls is written down. Does
not belong here: how calls are found in the policy's text, and how results become tokens (`rollouts/conversations.py`).
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unipg.errors import InputError, nearest, one_line
from unipg.loading import callable_named
from unipg.tasks.base import Messages
from unipg.tasks.limits import OutOfTime, limited

Outcome = Literal["ok", "error", "timeout"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "error", "timeout")

CALL, CALL_END, RESULT, RESULT_END = "<tool_call>", "</tool_call>", "<tool_result>", "</tool_result>"
TAGS = (CALL, CALL_END, RESULT, RESULT_END)
"""How calls and results are written where there is no chat template."""

LONGEST_EXPRESSION = 300
"""Letters of an expression that the calculator takes."""
LARGEST_NUMBER = 1e100
"""Of the calculator's numbers and results."""


@dataclass(frozen=True)
class Tool:
    """A function with a JSON schema, by which its arguments are checked and which chat templates show to the model."""

    name: str
    function: Callable[..., Any]
    schema: dict[str, Any]
    """`{"type": "function", "function": {"name", "description", "parameters"}}`."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        parameters: dict[str, Any] = self.schema["function"]["parameters"]
        return parameters


@dataclass(frozen=True)
class Call:
    """A call as the policy wrote it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why it cannot be run, where it is not written as a call must be."""

    def as_json(self) -> str:
        """`{"name": …, "arguments": {…}}` on one line."""
        return json.dumps({"name": self.name, "arguments": dict(self.arguments)}, ensure_ascii=False, default=str)


def tool_from(function: Callable[..., Any], name: str | None = None) -> Tool:
    """A tool of a function with type hints, and a docstring that describes it and, under `Args:`, each argument.

    Errors: `InputError` saying what the schema cannot be made of, and for a function that cannot be called by the names of its arguments
    or does not give its result at once.
    """
    from transformers.utils import get_json_schema

    called = str(name or getattr(function, "__name__", type(function).__name__))
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InputError(f"the tool '{called}' is asynchronous or a generator; accepted: a function that returns its result")
    for parameter in _signature(function, called).values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            argument = parameter.replace(annotation=parameter.empty)
            raise InputError(f"the tool '{called}' has the argument '{argument}'; accepted: arguments that can be given by name")
    try:
        schema = get_json_schema(function)
    except Exception as error:
        raise InputError(
            f"the tool '{called}' has no schema: {one_line(error)}; accepted: a function with type hints, and a docstring whose `Args:` "
            "describe every argument"
        ) from error
    return Tool(called, function, {**schema, "function": {**schema["function"], "name": called}})


def _signature(function: Callable[..., Any], called: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:  # some functions written in C have none
        raise InputError(f"the tool '{called}' has no signature; accepted: a function with type hints") from error


def tools_named(specs: Sequence[str], offered: Mapping[str, Tool] | None = None) -> tuple[Tool, ...]:
    """The tools that `specs` name: `calculator`, what the task offers, and functions written `package.module:function`.

    Errors: `InputError` for an unknown name with the nearest ones, for a name given twice, and those of `callable_named` and `tool_from`.
    """
    known = dict(offered or {})
    found: dict[str, Tool] = {}
    for spec in specs:
        if spec in known:
            tool = known[spec]
        elif spec == "calculator":
            tool = tool_from(calculator)
        elif "." in spec or ":" in spec:
            tool = tool_from(callable_named(spec, "tool"))
        else:
            hint = "only a task with documents offers search; " if spec == "search" else ""
            raise InputError(f"tool '{spec}' does not exist; {hint}{nearest(spec, [*known, 'calculator', 'package.module:function'])}")
        if tool.name in found:
            raise InputError(f"two tools are called '{tool.name}'; accepted: a different name for each function")
        found[tool.name] = tool
    return tuple(found.values())


def tools_of(task: Any) -> tuple[Tool, ...]:
    """The tools that rollouts of a task may call; none for most tasks."""
    tools: tuple[Tool, ...] = getattr(task, "tools", ())
    return tools


def run_call(tools: Sequence[Tool], call: Call, seconds: float) -> tuple[Outcome, str]:
    """How a call ended, and the text that goes back to the model: the tool's result, or what was wrong.

    Whatever a tool raises becomes text; only `KeyboardInterrupt` passes through. A tool is given a copy of the arguments.
    """
    outcome, text = _called(tools, call, seconds)
    return outcome, text.encode("utf-8", "replace").decode("utf-8")  # tokenizers and files take no lone surrogates


def _called(tools: Sequence[Tool], call: Call, seconds: float) -> tuple[Outcome, str]:
    if call.problem:
        return "error", f"error: {call.problem}"
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return "error", f"error: there is no tool '{call.name}'; tools: {', '.join(tool.name for tool in tools)}"
    problem = misfit(call.arguments, tool.parameters)
    if problem:
        return "error", f"error: {problem}"
    try:
        # the text is made inside the limit: a result may take long to print
        text: str = limited(lambda: _as_text(tool.function(**copy.deepcopy(dict(call.arguments)))), seconds)
    except OutOfTime:
        return "timeout", f"error: no result within {seconds:g} seconds"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "error", f"error: {one_line(error)}"
    return "ok", text


def _as_text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


# ------------------------------------------------------------------------------------------------------------------ arguments

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def misfit(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Why `arguments` do not fit a JSON schema of parameters, in words for the model; empty if they do."""
    properties = parameters.get("properties", {})
    for name, value in arguments.items():
        if name not in properties:
            return f"unknown argument '{name}'; arguments: {', '.join(properties) or 'none'}"
        problem = _wrong(value, properties[name])
        if problem:
            return f"argument '{name}' {problem}"
    missing = [name for name in parameters.get("required", ()) if name not in arguments]
    return f"argument '{missing[0]}' is missing" if missing else ""


def _wrong(value: Any, schema: Mapping[str, Any]) -> str:
    if value is None and schema.get("nullable"):
        return ""
    if "anyOf" in schema:
        problems = [_wrong(value, option) for option in schema["anyOf"]]
        return "" if "" in problems else problems[0]
    names = schema.get("type", ())
    names = [names] if isinstance(names, str) else list(names)
    if names and not any(_is(value, name) for name in names):
        return f"must be {' or '.join(names)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"must be one of {json.dumps(schema['enum'])}"
    if isinstance(value, list) and "items" in schema:
        return next((f"holds an item that {problem}" for item in value if (problem := _wrong(item, schema["items"]))), "")
    return ""


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES.get(name, (object,))) or (name == "integer" and isinstance(value, float) and value.is_integer())


# ----------------------------------------------------------------------------------------------------------------- calculator


def calculator(expression: str) -> str:
    """Computes the value of an arithmetic expression.

    Args:
        expression: Numbers, parentheses, + - * / // % ** and the functions abs, min, max, round, sqrt, for example (3 + 4) * 2
    """
    if len(expression) > LONGEST_EXPRESSION:
        raise ValueError(f"the expression has {len(expression)} letters, at most {LONGEST_EXPRESSION} are taken")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("not an arithmetic expression") from None
    value = _value(tree.body)
    return str(value) if isinstance(value, int) else f"{value:.12g}"


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_SIGNS: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "min": min, "max": max, "round": round, "sqrt": math.sqrt}


def _value(node: ast.AST) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
            return _bounded(_SIGNS[type(op)](_value(operand)))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _bounded(_OPERATORS[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*(_value(argument) for argument in arguments)))
    raise ValueError("only numbers, parentheses, + - * / // % ** and abs, min, max, round, sqrt are taken")


def _power(base: int | float, exponent: int | float) -> int | float:
    # decided before anything is computed: 9 ** 9 ** 9 would never end
    if base and exponent * math.log10(abs(base)) > math.log10(LARGEST_NUMBER):
        raise ValueError("the result is too large")
    return _bounded(base**exponent)


def _bounded(value: Any) -> int | float:
    if isinstance(value, complex):
        raise ValueError("the result is not a real number")
    if not abs(value) <= LARGEST_NUMBER:
        raise ValueError("the result is too large")
    number: int | float = value
    return number


# ------------------------------------------------------------------------------------------- conversations as demonstrations


def checked_conversation(value: Sequence[Any], where: str) -> Messages:
    """The turns of an answer that calls tools, in one form: messages of the assistant, with `tool_calls` where it calls, and of `tool`.

    A call may be written `{"function": {"name", "arguments"}}` or `{"name", "arguments"}`, its arguments as an object or as JSON text.

    Errors: `InputError` naming `where` and the message for another role, a result without its call or a call without its result, an empty
    turn, and for turns that do not end with an answer.
    """
    messages: Messages = []
    waiting = 0
    for number, message in enumerate(value, 1):
        place = f"{where}: message {number}"
        if not isinstance(message, Mapping) or message.get("role") not in ("assistant", "tool"):
            raise InputError(f"{place} must be an object with role assistant or tool")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            raise InputError(f"{place}: content must be text")
        if message["role"] == "tool":
            if not waiting:
                raise InputError(f"{place} is the result of a call, but no call is waiting for one")
            waiting -= 1
            messages.append({"role": "tool", "content": content or ""})
            continue
        if waiting:
            raise InputError(f"{place}: {waiting} calls before it have no result")
        calls = [_call(call, place) for call in message.get("tool_calls") or ()]
        if not calls and not (content or "").strip():
            raise InputError(f"{place} is empty")
        waiting = len(calls)
        messages.append(assistant(content or "", calls))
    if not messages or messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
        raise InputError(f"{where}: a conversation must end with the assistant's answer")
    return messages


def _call(value: Any, place: str) -> Call:
    inside = value.get("function") or value if isinstance(value, Mapping) else {}
    name, arguments = inside.get("name"), inside.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise InputError(f"{place}: a tool call must have a name, and arguments as an object")
    return Call(name, {key: item for key, item in arguments.items() if item is not None})  # Arrow fills absent keys with null


def assistant(content: str, calls: Sequence[Call] = ()) -> dict[str, Any]:
    """A message of the assistant, with its calls in the form that chat templates take."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        # nine letters and digits: some templates take nothing else for an id
        message["tool_calls"] = [
            {"id": f"call{i:05}", "type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}}
            for i, c in enumerate(calls)
        ]
    return message


def calls_of(message: Mapping[str, Any]) -> list[Call]:
    """The calls of a checked message."""
    return [Call(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())]


def turns_of(messages: Messages) -> list[tuple[dict[str, Any], list[str]]]:
    """The assistant's messages of a checked conversation, each with the results that its calls gave."""
    turns: list[tuple[dict[str, Any], list[str]]] = []
    for message in messages:
        if message["role"] == "assistant":
            turns.append((message, []))
        else:
            turns[-1][1].append(str(message["content"]))
    return turns


def final_text(demonstration: str | Messages) -> str:
    """What a verifier judges: a demonstration's text, or the last turn's."""
    return demonstration if isinstance(demonstration, str) else str(demonstration[-1]["content"])
