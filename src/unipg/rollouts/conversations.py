"""Rollouts that call tools: calls are found in what the policy wrote, run, and their results put behind it as tokens.

The tokens that the policy sampled are never tokenised again: a row is what was sampled, with the environment's tokens in between.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from unipg.errors import InputError, one_line
from unipg.rollouts.generation import Completion, sample
from unipg.rollouts.text import (
    SamplingRecipe,
    ToolRecipe,
    decode,
    end_tokens,
    has_template,
    prompt_messages,
    prompt_tokens,
    templated_tokens,
)
from unipg.tasks.base import Item, Messages
from unipg.tasks.tools import (
    CALL,
    CALL_END,
    OUTCOMES,
    RESULT,
    RESULT_END,
    TAGS,
    Call,
    Tool,
    assistant,
    calls_of,
    run_call,
    tools_of,
    turns_of,
)

SHORT = 200
"""Letters of a result that annotations keep."""
LONGEST_TOKEN = 100
"""Letters of a result that are looked at for each token which it may have; few tokens are longer."""
INVALID = "invalid"
"""Name in the template of a call that has none."""


@dataclass
class Talk:
    """What happened between the policy and its tools in one rollout."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    """`name`, `arguments`, `outcome` (ok, error, timeout), `result` (its beginning) and `turn` (from 0) of each call."""
    begins: list[int] = field(default_factory=lambda: [0])
    """Where each turn of the policy begins among the row's tokens."""
    at_limit: bool = False
    """Whether it ended with a call that was not run, because it had used up its turns."""

    @property
    def rounds(self) -> int:
        """How many times it waited for results."""
        return len(self.begins) - 1


@dataclass(frozen=True)
class Answer:
    """A sampled answer: its tokens, the text that is judged and, where there are tools, how they were used."""

    completion: Completion
    text: str
    """What the policy wrote in its last turn."""
    talk: Talk | None = None
    transcript: str = ""
    """Everything behind the prompt, with calls and results."""


class ToolFormat(ABC):
    """How calls and results are written in tokens."""

    stops: frozenset[int] = frozenset()
    """Tokens that end a turn beside the end-of-sequence tokens."""

    @abstractmethod
    def calls(self, turn: str, before: Sequence[int]) -> list[Call]:
        """The calls in the text of a turn, `before` which the row has these tokens; none in a final answer."""

    @abstractmethod
    def results(self, calls: Sequence[Call], texts: Sequence[str]) -> list[int]:
        """The environment's tokens after a turn with `calls`, up to where the policy goes on."""

    @abstractmethod
    def demonstration(self, item: Item, messages: Messages) -> tuple[list[int], list[bool]]:
        """The tokens of a conversation behind the prompt, with the last end token, and which of them are the policy's."""


class TaggedFormat(ToolFormat):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>` and `<tool_result>…</tool_result>`, for tokenizers without a template.

    Where `</tool_call>` is one token it ends the turn.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        end = self._tokens(CALL_END)
        self.stops = frozenset(end) if len(end) == 1 else frozenset()

    def calls(self, turn: str, before: Sequence[int]) -> list[Call]:
        return tagged_calls(turn)

    def results(self, calls: Sequence[Call], texts: Sequence[str]) -> list[int]:
        return self._tokens("".join(f"{RESULT}{text}{RESULT_END}" for text in texts))

    def demonstration(self, item: Item, messages: Messages) -> tuple[list[int], list[bool]]:
        tokens: list[int] = []
        chosen: list[bool] = []

        def add(more: list[int], own: bool) -> None:
            tokens.extend(more)
            chosen.extend([own] * len(more))

        for turn, results in turns_of(messages):
            calls, end = calls_of(turn), [self.tokenizer.eos_token_id]
            if not self.stops or not calls:
                add(self._tokens(turn["content"] + "".join(map(_tagged, calls))) + end, own=True)
                add(self.results(calls, results), own=False)
                continue
            add(self._tokens(turn["content"]), own=True)
            for call, result in zip(calls, results, strict=True):  # each call ends its turn, so its result comes at once
                add(self._tokens(_tagged(call)), own=True)
                add(self.results([call], [result]), own=False)
        return tokens, chosen

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


class TemplateFormat(ToolFormat):
    """Through the tokenizer's chat template. Calls are parsed by the tokenizer's response template where it has one, else as
    `<tool_call>{…}</tool_call>`, else as a turn that is nothing but `{"name": …, "parameters": {…}}`.

    `ends`: the end tokens. Errors: `InputError` for a template that cannot be continued turn by turn.
    """

    def __init__(self, tokenizer: Any, tools: Sequence[Tool], ends: frozenset[int]) -> None:
        self.tokenizer, self.tools, self.ends = tokenizer, list(tools), ends
        self._check()

    def calls(self, turn: str, before: Sequence[int]) -> list[Call]:
        if getattr(self.tokenizer, "response_template", None) is None:
            return tagged_calls(turn) or bare_calls(turn)
        schemas = [tool.schema for tool in self.tools]
        try:
            message = self.tokenizer.parse_response(turn, prefix=self.tokenizer.decode(before), tools=schemas)
        except Exception as error:  # whatever a parser makes of what a policy may write
            return [Call("", problem=f"the call cannot be read: {one_line(error)}")]
        return [_checked(call) for call in message.get("tool_calls") or ()]

    def results(self, calls: Sequence[Call], texts: Sequence[str]) -> list[int]:
        asked = [{"role": "user", "content": "x"}, assistant("", [Call(c.name or INVALID, c.arguments) for c in calls])]
        ids = [call["id"] for call in asked[-1]["tool_calls"]]
        told = [
            {"role": "tool", "name": call.name or INVALID, "tool_call_id": number, "content": text}
            for call, number, text in zip(calls, ids, texts, strict=True)
        ]
        before = templated_tokens(self.tokenizer, asked, self.tools)
        after = templated_tokens(self.tokenizer, [*asked, *told], self.tools, answer=True)
        ends = [place for place, token in enumerate(after) if token in self.ends]
        turns = sum(token in self.ends for token in before)
        if not turns or len(ends) < turns:
            raise InputError("the chat template does not end the assistant's turns with an end token, so that tools cannot be used with it")
        return after[ends[turns - 1] + 1 :]

    def demonstration(self, item: Item, messages: Messages) -> tuple[list[int], list[bool]]:
        where = item.place or f"item {item.index}"
        asked = prompt_messages(item)
        whole = templated_tokens(self.tokenizer, [*asked, *messages], self.tools)
        begin = end = len(templated_tokens(self.tokenizer, asked, self.tools, answer=True))
        chosen: list[bool] = []
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = templated_tokens(self.tokenizer, [*asked, *messages[:place]], self.tools, answer=True)
            stop = next((i for i in range(len(before), len(whole)) if whole[i] in self.ends), None)
            if whole[: len(before)] != before or stop is None:
                raise InputError(
                    f"{where}: the chat template rewrites earlier turns of the demonstration, so that it cannot be learned from"
                )
            chosen += [False] * (len(before) - end) + [True] * (stop + 1 - len(before))
            end = stop + 1
        return whole[begin:end], chosen

    def _check(self) -> None:
        """Two rounds with one call each: what came before must stay as it is, and the results must be seen."""
        call = Call(self.tools[0].name, {})
        first, second = self.results([call], ["first 17"]), self.results([call], ["second 18"])
        text = self.tokenizer.decode
        if "first 17" not in text(first) or "second 18" not in text(second):
            raise InputError(
                "the chat template does not show the results of tools; accepted: a template that renders the role 'tool', or "
                "rollouts.chat_template: never"
            )
        user: Messages = [{"role": "user", "content": "x"}]
        turns = [assistant("", [call]), {"role": "tool", "name": call.name, "tool_call_id": "call00000", "content": "first 17"}]
        whole = text(templated_tokens(self.tokenizer, [*user, *turns, *turns], self.tools, answer=True))
        if not whole.startswith(text(templated_tokens(self.tokenizer, user, self.tools))) or text(first) not in whole[: -len(text(first))]:
            raise InputError(
                "the chat template rewrites earlier turns when later ones follow, so that a rollout with tools would not be what was "
                "sampled; accepted: a template that only adds, or rollouts.chat_template: never"
            )


# --------------------------------------------------------------------------------------------------------------------- calls


def tagged_calls(text: str) -> list[Call]:
    """Every `<tool_call>{"name": …, "arguments": {…}}</tool_call>` of a turn, behind its thoughts if it has any."""
    text = text.rpartition("</think>")[2]
    if CALL not in text and CALL_END not in text:
        return []
    found = [_read(inside) for inside in re.findall(f"{CALL}(.*?){CALL_END}", text, re.DOTALL)]
    rest = re.sub(f"{CALL}.*?{CALL_END}", "", text, flags=re.DOTALL)
    if CALL in rest or CALL_END in rest:
        found.append(Call("", problem="a call has a tag before it and a tag behind it"))
    return found


def bare_calls(text: str) -> list[Call]:
    """A turn that is nothing but calls `{"name": …, "parameters": {…}}`, several of them with `;` in between."""
    text = text.strip()
    marked = text.startswith("<|python_tag|>")
    text = text.removeprefix("<|python_tag|>").strip()
    decoder, calls = json.JSONDecoder(), []
    while text.startswith("{"):
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):  # ValueError: also a number with thousands of digits
            break
        if not isinstance(value, dict) or "name" not in value or not ("parameters" in value or "arguments" in value):
            break
        calls.append(_checked(value))
        text = text[end:].lstrip(" ;\n")
    if not text and calls:
        return calls
    return [Call("", problem='a call is written {"name": …, "parameters": {…}}')] if marked else []


def _read(text: str) -> Call:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Call("", problem=f"the call is not valid JSON: {one_line(error)}")
    return _checked(value)


def _checked(value: Any) -> Call:
    inside = value.get("function", value) if isinstance(value, Mapping) else None
    inside = inside if isinstance(inside, Mapping) else {}
    name, arguments = inside.get("name"), inside.get("arguments", inside.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not _writable(inside) or not _writable(arguments):
        return Call("", problem="the call holds a number or a letter that JSON does not have")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        known = name if isinstance(name, str) else ""
        return Call(known, problem='a call is written {"name": …, "arguments": {…}}')
    return Call(name, dict(arguments))


def _writable(value: Any) -> bool:
    """Whether a value can be written as JSON in UTF-8: lone surrogates, NaN and infinity cannot, though Python's reader takes them."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _tagged(call: Call) -> str:
    return f"{CALL}{call.as_json()}{CALL_END}"


# ------------------------------------------------------------------------------------------------------------------ sampling


class Conversations:
    """The tools of a task, and how rows with them are written for a tokenizer and a model.

    Errors: `InputError` for a chat template that tools cannot be used with.
    """

    def __init__(self, model: Any, tokenizer: Any, tools: Sequence[Tool], sampling: SamplingRecipe) -> None:
        self.tokenizer, self.tools, self.sampling = tokenizer, tuple(tools), sampling
        self.recipe: ToolRecipe = sampling.tools
        self.ends = frozenset(end_tokens(model, tokenizer, sampling.chat_template))
        templated = has_template(tokenizer, sampling.chat_template)
        self.format: ToolFormat = TemplateFormat(tokenizer, tools, self.ends) if templated else TaggedFormat(tokenizer)
        limits = (self.recipe.row_tokens, getattr(model.config.get_text_config(), "max_position_embeddings", None))
        self.row_tokens: int | None = min((n for n in limits if n is not None), default=None)
        added = (token.content for token in tokenizer.added_tokens_decoder.values())
        self._marks = [mark for mark in dict.fromkeys((*TAGS, *added)) if len(mark.strip()) > 1]

    def prompt(self, item: Item) -> list[int]:
        """The prompt's tokens, with the tools in it."""
        return prompt_tokens(self.tokenizer, item, self.sampling.chat_template, self.tools, self.recipe.describe)

    def check_room(self, items: Sequence[Item], rows: Sequence[int]) -> None:
        """Refuses rows with more tokens than a row may have; `rows`: how many each has."""
        for item, length in zip(items, rows, strict=True):
            if self.row_tokens is not None and length >= self.row_tokens:
                raise InputError(
                    f"{item.place or f'item {item.index}'}: the row has {length} tokens, and with tools a row may have "
                    f"{self.row_tokens} with what follows: raise rollouts.tools.row_tokens, or take a model with a longer context"
                )

    def answered(self, talk: Talk, prompt: Sequence[int], tokens: list[int]) -> list[int] | None:
        """What the environment says after the policy's turn, or None if the row ends here."""
        begin = talk.begins[-1]
        end = len(tokens) - (tokens[-1] in self.ends)
        turn = str(self.tokenizer.decode(tokens[begin:end], skip_special_tokens=False))
        calls = self.format.calls(turn, [*prompt, *tokens[:begin]])
        if not calls:
            return None
        if talk.rounds == self.recipe.turns:
            talk.at_limit = True
            return None
        texts = []
        for call in calls:
            outcome, text = run_call(self.tools, call, self.recipe.seconds)
            texts.append(self._shortened(self._harmless(text)))
            told = {"name": call.name, "arguments": dict(call.arguments), "outcome": outcome, "result": text[:SHORT]}
            talk.calls.append({**told, "turn": talk.rounds})
        more = self.format.results(calls, texts)
        talk.begins.append(len(tokens) + len(more))
        return more

    def finished(self, talk: Talk, completion: Completion) -> Answer:
        """The answer of a row that is complete. A row that ended with a call that was not run did not end by itself."""
        if talk.at_limit:
            completion = replace(completion, ended=False)
        while talk.begins[-1] >= len(completion.tokens):  # there was no room for the last results
            talk.begins.pop()
        transcript = str(self.tokenizer.decode(completion.tokens, skip_special_tokens=False))
        return Answer(completion, decode(self.tokenizer, completion, talk.begins[-1]), talk, transcript)

    def demonstrated(self, item: Item, messages: Messages) -> tuple[list[int], list[bool]]:
        """The tokens of a demonstration in several turns, and which of them are the policy's."""
        return self.format.demonstration(item, messages)

    def _harmless(self, text: str) -> str:
        """A result must not contain what ends a turn or begins a call."""
        for mark in self._marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def _shortened(self, text: str) -> str:
        text = text[: self.recipe.result_tokens * LONGEST_TOKEN]  # no time is spent on what is cut off
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) <= self.recipe.result_tokens:
            return text
        return str(self.tokenizer.decode(tokens[: self.recipe.result_tokens])).rstrip("\ufffd")


def conversations(model: Any, tokenizer: Any, task: Any, sampling: SamplingRecipe) -> Conversations | None:
    """How the task's tools are used; None for a task without tools."""
    tools = tools_of(task)
    return Conversations(model, tokenizer, tools, sampling) if tools else None


def sample_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingRecipe,
    tools: Conversations | None,
    *,
    rollouts: int,
    temperature: float,
    generator: torch.Generator | None = None,
    greedy: bool = False,
    should_stop: Callable[[], bool] = bool,
    progress: Callable[[float], None] | None = None,
) -> list[list[Answer]]:
    """`rollouts` answers to each prompt, with tool calls where there are `tools`; rows in different turns are decoded together.

    The arguments are those of `generation.sample`, which says what is raised.
    """
    talks = [Talk() for _ in range(len(prompts) * rollouts)] if tools else []

    def on_stop(request: int, tokens: list[int]) -> list[int] | None:
        assert tools is not None
        return tools.answered(talks[request], prompts[request // rollouts], tokens)

    completions = sample(
        model,
        prompts,
        rollouts=rollouts,
        max_new_tokens=sampling.max_new_tokens,
        end_tokens=[*end_tokens(model, tokenizer, sampling.chat_template), *(tools.format.stops if tools else ())],
        pad_token=tokenizer.pad_token_id,
        temperature=temperature,
        generator=generator,
        greedy=greedy,
        batch_rows=sampling.batch_rows,
        max_total_tokens=tools.row_tokens if tools else None,
        on_stop=on_stop if tools else None,
        decoding=sampling.decoding,
        should_stop=should_stop,
        progress=progress,
    )
    if tools is None:
        return [[Answer(c, decode(tokenizer, c)) for c in group] for group in completions]
    return [
        [tools.finished(talks[i * rollouts + j], completion) for j, completion in enumerate(group)] for i, group in enumerate(completions)
    ]


# ----------------------------------------------------------------------------------------------------------------- what is told


def tool_facts(answers: Sequence[Answer]) -> dict[str, list[Any]]:
    """Annotations of rows with tools: `tool_calls`, `transcript`. None for rows without."""
    if not any(answer.talk for answer in answers):
        return {}
    return {
        "tool_calls": [answer.talk.calls if answer.talk else None for answer in answers],
        "transcript": [answer.transcript for answer in answers],
    }


def demonstrated_facts(messages: Messages) -> list[dict[str, Any]]:
    """The calls of a demonstration in the form of `Talk.calls`."""
    return [
        {"name": call.name, "arguments": dict(call.arguments), "outcome": "ok", "result": result[:SHORT], "turn": number}
        for number, (turn, results) in enumerate(turns_of(messages))
        for call, result in zip(calls_of(turn), results, strict=True)
    ]


def tool_metrics(answers: Sequence[Answer], tools: Sequence[Tool] | None) -> dict[str, float]:
    """What the rollouts did with their `tools`; empty where they had none.

    tools/calls          calls per rollout; with several tools, tools/calls/<name> of each
    tools/turns          turns of the policy per rollout
    tools/ok_fraction    share of the calls that gave a result; error_fraction, timeout_fraction likewise
    tools/turn_limit_fraction    share of the rollouts that ended with a call too many
    """
    talks = [answer.talk for answer in answers if answer.talk]
    if not talks:
        return {}
    calls = [call for talk in talks for call in talk.calls]
    metrics = {
        "tools/calls": len(calls) / len(talks),
        "tools/turns": sum(talk.rounds + 1 for talk in talks) / len(talks),
        "tools/turn_limit_fraction": sum(talk.at_limit for talk in talks) / len(talks),
    }
    names = Counter(call["name"] for call in calls)
    if tools and len(tools) > 1:
        metrics |= {f"tools/calls/{tool.name}": names[tool.name] / len(talks) for tool in tools}
    outcomes = Counter(call["outcome"] for call in calls)
    return metrics | {f"tools/{outcome}_fraction": outcomes[outcome] / len(calls) for outcome in OUTCOMES if calls}


def told_text(demonstration: str | Messages) -> list[str]:
    """Every text of a demonstration, calls and results included: what a tokenizer built from scratch learns from."""
    if isinstance(demonstration, str):
        return [demonstration]
    calls = [call.as_json() for message in demonstration for call in calls_of(message)]
    return [text for text in (*(str(message["content"]) for message in demonstration), *calls) if text]
