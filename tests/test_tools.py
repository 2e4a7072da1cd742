"""Tools and rollouts of several turns: what a tool is, how calls are read and answered, and that rows are exactly what was sampled."""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from unipg.cli import main
from unipg.errors import InputError
from unipg.policies.causal_lm import CausalLanguageModel, ScratchModel, build_model, train_tokenizer
from unipg.reports import write_report
from unipg.rollouts.base import Demand
from unipg.rollouts.conversations import Conversations, Talk, bare_calls, conversations, sample_answers, tagged_calls, tool_metrics
from unipg.rollouts.evaluation import EvaluationRecipe, evaluate_task
from unipg.rollouts.prompts import PromptRollouts, Stream
from unipg.rollouts.text import SamplingRecipe, ToolRecipe, prompt_tokens
from unipg.samplers import UniformSampler
from unipg.tasks.base import Item, Messages
from unipg.tasks.data import DataTask, data_task
from unipg.tasks.multi_hop import NOTHING, MultiHopRecipe, SearchIndex, World
from unipg.tasks.tools import (
    CALL,
    CALL_END,
    RESULT,
    RESULT_END,
    TAGS,
    Call,
    assistant,
    calculator,
    checked_conversation,
    misfit,
    run_call,
    tool_from,
    tools_named,
)
from unipg.tasks.verifiers import exact_match, qa_match
from unipg.training.recipe import load_recipe, typed
from unipg.trajectories import Source

ROOT = Path(__file__).parent.parent
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


# --------------------------------------------------------------------------------------------------------------- what a tool is


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


# ------------------------------------------------------------------------------------------------------------ reading calls


def test_tagged_calls() -> None:
    one, two = {"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": '{"y": 2}'}
    text = f"let me see {CALL}{json.dumps(one)}{CALL_END} and {CALL}\n{json.dumps(two)}\n{CALL_END}"
    assert [(c.name, c.arguments, c.problem) for c in tagged_calls(text)] == [("a", {"x": 1}, ""), ("b", {"y": 2}, "")]
    assert tagged_calls("no call, only <tool> and {}") == []
    assert tagged_calls(f"<think>I might {CALL}oops{CALL_END}</think> 42") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{CALL}{{'a': 1}}{CALL_END}", "the call is not valid JSON: JSONDecodeError"),
        (f"{CALL}{CALL_END}", "not valid JSON"),
        (f"{CALL}[1]{CALL_END}", 'a call is written {"name": …, "arguments": {…}}'),
        (f'{CALL}{{"name": "a"}}{CALL_END}', "a call is written"),
        (f'{CALL}{{"name": "a", "arguments": [1]}}{CALL_END}', "a call is written"),
        (f'{CALL}{{"name": "a", "arguments": "x"}}{CALL_END}', "a call is written"),
        (f'{CALL}{{"name": "a", "arguments": {{}}}}', "a call has a tag before it and a tag behind it"),
        (f"5{CALL_END}", "a call has a tag before it and a tag behind it"),
        (f"{CALL}{'[' * 100_000}{CALL_END}", "not valid JSON"),
    ],
)
def test_malformed_calls_are_errors_and_not_answers(text: str, problem: str) -> None:
    (call,) = tagged_calls(text)
    assert problem in call.problem
    assert run_call([tool_from(nap)], call, 1)[0] == "error"


def test_bare_calls() -> None:
    one = '{"name": "a", "parameters": {"x": 1}}'
    assert [(c.name, c.arguments) for c in bare_calls(one)] == [("a", {"x": 1})]
    assert [(c.name, c.arguments) for c in bare_calls(f"<|python_tag|>{one}; {one}")] == [("a", {"x": 1})] * 2
    for text in ('{"a":' * 100_000, "42", '{"answer": 42}', f"{one} is how it is written", '{"name": "Bob"}', "{1"):
        assert bare_calls(text) == []
    assert bare_calls("<|python_tag|>print(1)")[0].problem


# ------------------------------------------------------------------------------------------- rollouts of a model that can call

SHOWN: dict[str, Messages | str] = {
    "double 21?": [
        assistant("", [Call("calculator", {"expression": "21 * 2"})]),
        {"role": "tool", "content": "42"},
        assistant("42"),
    ],
    "twice?": [
        assistant("first ", [Call("calculator", {"expression": "1 + 1"})]),
        {"role": "tool", "content": "2"},
        assistant("", [Call("calculator", {"expression": "2 + 1"})]),
        {"role": "tool", "content": "3"},
        assistant("3"),
    ],
    "rest?": [
        assistant("", [Call("nap", {"seconds": 30.0})]),
        {"role": "tool", "content": "error: no result within 0.2 seconds"},
        assistant("late"),
    ],
    "wrong?": [
        assistant("", [Call("calculator", {"x": 1})]),
        {"role": "tool", "content": "error: unknown argument 'x'; arguments: expression"},
        assistant("sorry"),
    ],
    "plain?": "as it is",
}
EXPECTED = {"double 21?": "42", "twice?": "3", "rest?": "in time", "wrong?": "right", "plain?": "as it is"}
CALLS = {
    "double 21?": [("calculator", "ok", "42", 0)],
    "twice?": [("calculator", "ok", "2", 0), ("calculator", "ok", "3", 1)],
    "rest?": [("nap", "timeout", "error: no result within 0.2 seconds", 0)],
    "wrong?": [("calculator", "error", "error: unknown argument 'x'; arguments: expression", 0)],
    "plain?": [],
}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %} {{ t.function.name }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>\n'
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def task_of(*prompts: str) -> DataTask:
    chosen = prompts or tuple(SHOWN)
    items = tuple(Item(i, prompt, (SHOWN[prompt],), EXPECTED[prompt], place=f"line {i}") for i, prompt in enumerate(chosen))
    return DataTask("talk", items, exact_match, tools_named(["calculator", f"{__name__}:nap"]))


def sampling_of(**options: Any) -> SamplingRecipe:
    tools = {"describe": False, "seconds": LIMIT} | options.pop("tools", {})
    return SamplingRecipe(**({"max_new_tokens": 100} | options), tools=ToolRecipe(**tools))


def experience_of(task: Any, sampling: SamplingRecipe | None = None, prompts: int | None = None, **options: Any) -> PromptRollouts:
    count = prompts or len(task.items)
    return PromptRollouts(task, UniformSampler(len(task.items)), prompts=count, sampling=sampling or sampling_of(), **options)


def tokenizer_of(kind: str) -> Any:
    texts = [*experience_of(task_of()).texts(), 'error: unknown argument "x"', "system user assistant"] * 3
    if kind == "tags":
        return train_tokenizer(texts, 400, TAGS)
    tokenizer = train_tokenizer(texts, 400)
    if kind == "text":  # the tags are text, of several tokens
        return tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def taught(kind: str) -> CausalLanguageModel:
    """A model that has learnt the demonstrations by heart."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(kind)
    policy = CausalLanguageModel(build_model(ScratchModel("qwen3", 64, 2, 4, 128, 256), tokenizer), tokenizer)
    batch, _ = experience_of(task_of()).collect(policy, Demand(0, rollouts=0, demonstrations=True))
    optimizer = torch.optim.AdamW(policy.module.parameters(), lr=4e-3, weight_decay=0)
    for _ in range(150):
        loss = -policy.evaluate(batch).log_prob[batch.mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
    policy.model.eval()
    return policy


@pytest.fixture(scope="module", params=["tags", "text", "template"])
def policy(request: pytest.FixtureRequest) -> CausalLanguageModel:
    return taught(request.param)


@pytest.fixture(scope="module")
def tagged() -> CausalLanguageModel:
    return taught("tags")


def greedy(policy: CausalLanguageModel, task: DataTask, sampling: SamplingRecipe | None = None) -> dict[str, Any]:
    sampling = sampling or sampling_of()
    tools = conversations(policy.model, policy.tokenizer, task, sampling)
    prompts = [tools.prompt(item) for item in task.items]
    with policy.sampling() as model:
        found = sample_answers(model, policy.tokenizer, prompts, sampling, tools, rollouts=1, temperature=1.0, greedy=True)
    return {item.prompt: group[0] for item, group in zip(task.items, found, strict=True)}


def test_real_calls_continue_rows_and_the_row_is_the_demonstration(policy: CausalLanguageModel) -> None:
    task = task_of()
    found = greedy(policy, task)
    shown = experience_of(task).collect(policy, Demand(0, rollouts=0, demonstrations=True))[0]
    tools = conversations(policy.model, policy.tokenizer, task, sampling_of())
    for prompt, answer in found.items():
        row = shown.annotations["prompt"].index(prompt)
        item = task.items[list(SHOWN).index(prompt)]
        begin, end = len(tools.prompt(item)), int(shown.present[row].sum())
        assert answer.completion.tokens == shown.action[row, begin:end].tolist()
        assert answer.completion.chosen == shown.mask[row, begin:end].tolist()
        assert answer.completion.ended
        assert [(c["name"], c["outcome"], c["result"], c["turn"]) for c in answer.talk.calls] == CALLS[prompt]
        last = SHOWN[prompt] if isinstance(SHOWN[prompt], str) else SHOWN[prompt][-1]["content"]
        assert answer.text == last
        assert all(call[2] in answer.transcript for call in CALLS[prompt])
    assert found["double 21?"].talk.calls[0]["arguments"] == {"expression": "21 * 2"}


def test_the_row_is_what_the_template_says_of_the_whole_conversation() -> None:
    policy = taught("template")
    task = task_of("twice?")
    answer = greedy(policy, task)["twice?"]
    messages = [{"role": "user", "content": "twice?"}, *SHOWN["twice?"]]
    whole = policy.tokenizer.apply_chat_template(messages, tools=[t.schema for t in task.tools], tokenize=False)
    prompt = policy.tokenizer.decode(conversations(policy.model, policy.tokenizer, task, sampling_of()).prompt(task.items[0]))
    assert whole.rstrip("\n") == prompt + answer.transcript
    assert "Tools: calculator nap" in prompt


def test_masks_and_log_probs_are_those_of_the_training_forward(policy: CausalLanguageModel) -> None:
    experience = experience_of(task_of())
    batch, metrics = experience.collect(policy, Demand(0, rollouts=4, seed=5))
    now = policy.evaluate(batch)
    own = batch.mask
    torch.testing.assert_close(now.log_prob[own], batch.behaviour_log_prob[own], rtol=0, atol=1e-4)
    assert batch.behaviour_log_prob[~own].abs().max() == 0
    for row, calls in enumerate(batch.annotations["tool_calls"]):
        text = policy.tokenizer.decode(batch.action[row][~own[row] & batch.present[row]])
        theirs = policy.tokenizer.decode(batch.action[row][own[row]])
        fed = not bool(batch.truncated[row].any())  # the last results of a row that a limit stopped are not in it
        assert all((c["result"] in text or not fed) and c["result"] not in theirs for c in calls if c["outcome"] != "ok")
    assert int((batch.terminated | batch.truncated).sum()) == len(batch)
    ends = batch.present.sum(1) - 1
    assert bool(own[torch.arange(len(batch)), ends].all())
    counts = [len(c) for c in batch.annotations["tool_calls"]]
    known = [c["name"] for calls in batch.annotations["tool_calls"] for c in calls]
    assert {k: v for k, v in metrics.items() if k.startswith("tools/calls/")} == {
        f"tools/calls/{name}": known.count(name) / len(counts) for name in ("calculator", "nap")
    }
    assert metrics["tools/calls"] == pytest.approx(sum(counts) / len(counts))
    assert sum(counts) > 10
    ok = [c["outcome"] == "ok" for calls in batch.annotations["tool_calls"] for c in calls]
    assert metrics["tools/ok_fraction"] == pytest.approx(sum(ok) / len(ok))
    assert metrics["tools/ok_fraction"] + metrics["tools/error_fraction"] + metrics["tools/timeout_fraction"] == pytest.approx(1)
    assert metrics["length/mean"] == pytest.approx(float(own.sum(1).double().mean()))
    right = [float(a == e) for a, e in zip(batch.annotations["answer"], batch.annotations["expected"], strict=True)]
    assert batch.reward.tolist() == right
    assert sum(right) > 0


def test_garbage_where_the_environment_spoke_changes_nothing(tagged: CausalLanguageModel) -> None:
    batch, _ = experience_of(task_of()).collect(tagged, Demand(0, rollouts=2, seed=5))
    filled = torch.where(batch.mask, batch.behaviour_log_prob, torch.nan)
    assert bool(batch.replace(behaviour_log_prob=filled).behaviour_log_prob[batch.mask].isfinite().all())
    assert bool((tagged.evaluate(batch).log_prob[~batch.mask] == 0).all())


def test_the_same_seed_gives_the_same_rows_whatever_shares_the_batch(tagged: CausalLanguageModel) -> None:
    def collected(rows: int) -> Any:
        return experience_of(task_of(), sampling_of(batch_rows=rows)).collect(tagged, Demand(3, rollouts=3, seed=1))[0]

    one, two = collected(64), collected(64)
    assert torch.equal(one.action, two.action)
    assert one.annotations == two.annotations
    alone = greedy(tagged, task_of(), sampling_of(batch_rows=1))
    together = greedy(tagged, task_of())
    assert {p: a.completion.tokens for p, a in alone.items()} == {p: a.completion.tokens for p, a in together.items()}


def test_a_row_that_calls_beyond_its_turns_is_truncated(tagged: CausalLanguageModel) -> None:
    sampling = sampling_of(tools={"turns": 1})
    answer = greedy(tagged, task_of("twice?"), sampling)["twice?"]
    assert answer.talk.at_limit
    assert not answer.completion.ended
    assert [c["result"] for c in answer.talk.calls] == ["2"]
    assert answer.completion.tokens[-1] == tagged.tokenizer.convert_tokens_to_ids(CALL_END)
    assert answer.text == f'{CALL}{{"name": "calculator", "arguments": {{"expression": "2 + 1"}}}}{CALL_END}'
    assert tool_metrics([answer], None)["tools/turn_limit_fraction"] == 1
    batch, metrics = experience_of(task_of("twice?"), sampling).collect(tagged, Demand(0, rollouts=4))
    assert metrics["tools/turn_limit_fraction"] > 0.5
    assert int(batch.truncated.sum()) == round(4 * metrics["length/truncated_fraction"])


def test_the_budget_of_a_row(tagged: CausalLanguageModel) -> None:
    whole = greedy(tagged, task_of("double 21?"))["double 21?"].completion
    prompt = len(tagged.tokenizer.encode("double 21?"))
    results = whole.chosen.index(False)
    for budget in (prompt + len(whole.tokens), prompt + results + 3):
        answer = greedy(tagged, task_of("double 21?"), sampling_of(tools={"row_tokens": budget}))["double 21?"]
        fits = budget == prompt + len(whole.tokens)
        assert answer.completion.ended == fits
        assert answer.completion.tokens == whole.tokens[: len(whole.tokens) if fits else results]
        assert prompt + len(answer.completion.tokens) <= budget
        assert not answer.talk.at_limit
        assert answer.text == ("42" if fits else f'{CALL}{{"name": "calculator", "arguments": {{"expression": "21 * 2"}}}}{CALL_END}')
    with pytest.raises(InputError, match=r"line 0: the row has \d+ tokens, and with tools a row may have 3 .*rollouts.tools.row_tokens"):
        experience_of(task_of("double 21?"), sampling_of(tools={"row_tokens": 3})).collect(tagged, Demand(0, rollouts=1))


def test_results_are_cut_and_cannot_speak_for_the_policy(tagged: CausalLanguageModel) -> None:
    def loud() -> str:
        """Says a lot."""
        return f"{RESULT_END}{CALL}<|endoftext|>" + "word " * 100

    tools = Conversations(tagged.model, tagged.tokenizer, [tool_from(loud)], sampling_of(tools={"result_tokens": 30}))
    turn = tagged.tokenizer.encode(f'{CALL}{{"name": "loud", "arguments": {{}}}}{CALL_END}')
    more = tools.answered(Talk(), [1], turn)
    marks = {mark: tagged.tokenizer.convert_tokens_to_ids(mark) for mark in (*TAGS, "<|endoftext|>")}
    assert more[0] == marks[RESULT]
    assert more[-1] == marks[RESULT_END]
    assert not set(more[1:-1]) & set(marks.values())
    assert len(more) <= 33


def test_a_malformed_call_gets_an_error_and_the_row_goes_on(tagged: CausalLanguageModel) -> None:
    tools = Conversations(tagged.model, tagged.tokenizer, task_of().tools, sampling_of())
    talk = Talk()
    turn = tagged.tokenizer.encode(f"{CALL}double 21{CALL_END}")
    more = tools.answered(talk, [1], turn)
    assert tagged.tokenizer.decode(more).startswith(f"{RESULT}error: the call is not valid JSON")
    assert (talk.calls[0]["outcome"], talk.calls[0]["name"], talk.rounds) == ("error", "", 1)
    answer = [*tagged.tokenizer.encode("42"), tagged.tokenizer.eos_token_id]
    assert tools.answered(talk, [1], [*turn, *more, *answer]) is None


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (r'{"name": "\ud800", "arguments": {}}', "the call holds a number or a letter that JSON does not have"),
        (r'{"name": "double", "arguments": {"x": "\udfff"}}', "the call holds a number or a letter that JSON does not have"),
        ('{"name": "double", "arguments": {"x": NaN}}', "the call holds a number or a letter that JSON does not have"),
        ('{"name": "double", "arguments": {"x": 1e999}}', "the call holds a number or a letter that JSON does not have"),
        ('{"name": "double", "arguments": {"x": ' + "1" * 5000 + "}}", "the call is not valid JSON: ValueError"),
        ('{"name": "double", "arguments": "' + "1" * 5000 + '"}', "a call is written"),
    ],
)
def test_calls_that_only_pythons_reader_takes_are_errors(tagged: CausalLanguageModel, inside: str, said: str) -> None:
    assert tagged_calls(f"{CALL}{inside}{CALL_END}")[0].problem.startswith(said)
    assert all(call.problem for call in bare_calls(inside))
    tools, talk = Conversations(tagged.model, tagged.tokenizer, task_of().tools, sampling_of()), Talk()
    more = tools.answered(talk, [1], tagged.tokenizer.encode(f"{CALL}{inside}{CALL_END}"))
    assert f"error: {said}" in tagged.tokenizer.decode(more)
    json.dumps(talk.calls, allow_nan=False, ensure_ascii=False).encode()


def test_results_that_are_no_text_and_arguments_that_a_tool_changes(tagged: CausalLanguageModel) -> None:
    def odd(x: list[str]) -> str:
        """Is odd.

        Args:
            x: What
        """
        x.append(object())
        return "\ud800 half a letter"

    tools, talk = Conversations(tagged.model, tagged.tokenizer, [tool_from(odd)], sampling_of()), Talk()
    turn = tagged.tokenizer.encode(f'{CALL}{{"name": "odd", "arguments": {{"x": ["a"]}}}}{CALL_END}')
    assert "? half a letter" in tagged.tokenizer.decode(tools.answered(talk, [1], turn))
    assert (talk.calls[0]["arguments"], talk.calls[0]["outcome"]) == ({"x": ["a"]}, "ok")


def test_a_megabyte_of_result_is_not_tokenised(tagged: CausalLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def much() -> str:
        """Says much."""
        return "word " * 200_000

    tools = Conversations(tagged.model, tagged.tokenizer, [tool_from(much)], sampling_of(tools={"result_tokens": 8}))
    turn = tagged.tokenizer.encode(f'{CALL}{{"name": "much", "arguments": {{}}}}{CALL_END}')
    read: list[int] = []
    encode = type(tagged.tokenizer).encode

    def counted(self: Any, text: str, *arguments: Any, **options: Any) -> Any:
        read.append(len(text))
        return encode(self, text, *arguments, **options)

    monkeypatch.setattr(type(tagged.tokenizer), "encode", counted)
    assert len(tools.answered(Talk(), [1], turn)) <= 12
    assert max(read) <= 8 * 100


def test_the_tools_are_described_where_no_template_shows_them(tagged: CausalLanguageModel) -> None:
    item, tools = Item(0, "double 21?"), task_of().tools
    text = tagged.tokenizer.decode(prompt_tokens(tagged.tokenizer, item, "auto", tools))
    assert text.startswith("Tools that you may call:\ncalculator(expression: string): Computes")
    assert text.endswith("\n\ndouble 21?")
    assert tagged.tokenizer.decode(prompt_tokens(tagged.tokenizer, item, "auto", tools, describe=False)) == "double 21?"
    blind = tokenizer_of("template")
    blind.chat_template = TEMPLATE.replace("{% if tools %}", "{% if false %}")
    text = blind.decode(prompt_tokens(blind, item, "auto", tools))
    assert text.startswith("<|im_start|>user\nTools that you may call:")
    shown = tokenizer_of("template")
    assert "Tools that you may call" not in shown.decode(prompt_tokens(shown, item, "auto", tools))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("<tool_response>{{ m.content }}</tool_response>", "…", "does not show the results of tools"),
        ("{% for m in messages %}", "{% if messages | length > 3 %}long {% endif %}{% for m in messages %}", "rewrites earlier turns"),
        ("{{ m.content }}</tool_response>", "{{ m.content if loop.last else '' }}</tool_response>", "rewrites earlier turns"),
        ("{% endfor %}<|im_end|>\n", "{% endfor %}\n", "does not end the assistant's turns with an end token"),
    ],
)
def test_templates_that_tools_cannot_be_used_with(before: str, after: str, message: str) -> None:
    tokenizer = tokenizer_of("template")
    assert before in TEMPLATE
    tokenizer.chat_template = TEMPLATE.replace(before, after)
    if "end token" in message:
        tokenizer.chat_template = tokenizer.chat_template.replace("</tool_response><|im_end|>", "</tool_response>")
    model = build_model(ScratchModel("qwen3", 16, 1, 2, 32, 64), tokenizer)
    with pytest.raises(InputError, match=message):
        Conversations(model, tokenizer, task_of().tools, sampling_of())
    Conversations(model, tokenizer, task_of().tools, sampling_of(chat_template="never"))


def test_thoughts_that_a_template_drops_from_earlier_turns_do_not_matter() -> None:
    tokenizer = tokenizer_of("template")
    # as in Qwen3: the last turn of the assistant gets an empty thought, earlier ones have none
    tokenizer.chat_template = TEMPLATE.replace(
        "<|im_start|>{{ m.role }}\n", "<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
    )
    model = build_model(ScratchModel("qwen3", 16, 1, 2, 32, 64), tokenizer)
    tools = Conversations(model, tokenizer, task_of().tools, sampling_of())
    turn = tokenizer.encode(
        '<think>hm</think><tool_call>{"name": "calculator", "arguments": {"expression": "6 * 7"}}</tool_call><|im_end|>'
    )
    more = tools.answered(Talk(), tools.prompt(task_of().items[0]), turn)
    assert tokenizer.decode(more) == "\n<|im_start|>user\n<tool_response>42</tool_response><|im_end|>\n<|im_start|>assistant\n"


def test_several_calls_in_one_turn() -> None:
    tokenizer = tokenizer_of("template")
    model = build_model(ScratchModel("qwen3", 16, 1, 2, 32, 64), tokenizer)
    tools = Conversations(model, tokenizer, task_of().tools, sampling_of())
    call = '<tool_call>{{"name": "calculator", "arguments": {{"expression": "{}"}}}}</tool_call>'
    talk = Talk()
    more = tools.answered(talk, [1], tokenizer.encode(call.format("1 + 1") + call.format("x") + "<|im_end|>"))
    assert [(c["outcome"], c["turn"]) for c in talk.calls] == [("ok", 0), ("error", 0)]
    assert talk.rounds == 1
    assert tokenizer.decode(more).count("<tool_response>") == 2


def test_the_tokenizers_own_parser_is_used_where_it_has_one() -> None:
    tokenizer = tokenizer_of("template")
    tokenizer.response_template = {
        "version": 1,
        "start_anchor": "<|im_start|>assistant\n",
        "defaults": {"role": "assistant"},
        "fields": {
            "content": {"optional": True},
            "tool_calls": {"open": "[[", "close": "]]", "content": "json", "repeats": True, "optional": True},
        },
    }
    model = build_model(ScratchModel("qwen3", 16, 1, 2, 32, 64), tokenizer)
    tools = Conversations(model, tokenizer, task_of().tools, sampling_of())
    prompt = tools.prompt(task_of().items[0])
    talk = Talk()
    more = tools.answered(talk, prompt, tokenizer.encode('[[{"name": "calculator", "arguments": {"expression": "6 * 7"}}]]<|im_end|>'))
    assert "42" in tokenizer.decode(more)
    assert tools.answered(Talk(), prompt, tokenizer.encode("it is 42<|im_end|>")) is None
    broken = Talk()
    tools.answered(broken, prompt, tokenizer.encode("[[{]]<|im_end|>"))
    assert broken.calls[0]["outcome"] == "error"


def test_demonstrations_in_several_turns(tagged: CausalLanguageModel) -> None:
    task = task_of("twice?", "plain?")
    batch, _ = experience_of(task).collect(tagged, Demand(0, rollouts=0, demonstrations=True))
    row = batch.annotations["prompt"].index("twice?")
    decode = tagged.tokenizer.decode
    assert decode(batch.action[row][batch.present[row] & ~batch.mask[row]]) == f"twice?{RESULT}2{RESULT_END}{RESULT}3{RESULT_END}"
    calls = [c for m in SHOWN["twice?"] for c in m.get("tool_calls", ())]
    texts = [f"{CALL}{json.dumps(c['function'])}{CALL_END}" for c in calls]
    assert decode(batch.action[row][batch.mask[row]]) == f"first {texts[0]}{texts[1]}3<|endoftext|>"
    assert batch.annotations["answer"][row] == "3"
    assert [c["name"] for c in batch.annotations["tool_calls"][row]] == ["calculator", "calculator"]
    assert batch.annotations["tool_calls"][1 - row] == []
    own = int(batch.mask[row].sum())
    with pytest.raises(InputError, match=rf"the demonstration of line 0 has {own - 1} tokens and its end token, more than"):
        experience_of(task, sampling_of(max_new_tokens=own - 1)).collect(tagged, Demand(0, rollouts=0, demonstrations=True))
    cut, told = experience_of(task, sampling_of(max_new_tokens=own - 1, long_demonstrations="truncate")).collect(
        tagged, Demand(0, rollouts=0, demonstrations=True)
    )
    assert int(cut.mask.sum(1).max()) == own - 1
    assert told["demonstrations/truncated"] == 1
    with pytest.raises(InputError, match=r"calls tools, but its task has none: set task\.tools"):
        experience_of(DataTask("bare", task.items, exact_match)).collect(tagged, Demand(0, rollouts=0, demonstrations=True))


def test_parallel_calls_of_a_demonstration_come_one_by_one_where_a_call_ends_its_turn(tagged: CausalLanguageModel) -> None:
    both = [Call("calculator", {"expression": e}) for e in ("1 + 1", "2 + 2")]
    turns = [assistant("", both), *({"role": "tool", "content": r} for r in ("2", "4")), assistant("6")]
    tools = Conversations(tagged.model, tagged.tokenizer, task_of().tools, sampling_of())
    tokens, chosen = tools.demonstrated(Item(0, "x"), turns)
    text = "".join(f"{CALL}{c.as_json()}{CALL_END}{RESULT}{r}{RESULT_END}" for c, r in zip(both, ("2", "4"), strict=True))
    assert tagged.tokenizer.decode(tokens) == f"{text}6<|endoftext|>"
    assert sum(not c for c in chosen) == len(tagged.tokenizer.encode(f"{RESULT}2{RESULT_END}{RESULT}4{RESULT_END}"))


def test_demonstrations_of_another_stream_are_written_with_its_tools(tagged: CausalLanguageModel) -> None:
    plain = DataTask("plain", (Item(0, "plain?", (), "as it is"),), exact_match)
    mixed = experience_of(plain, demonstrations=Stream(task_of("twice?"), UniformSampler(1), 1))
    batch, metrics = mixed.collect(tagged, Demand(0, rollouts=1, demonstrations=True))
    shown = batch.rows_from(Source.DEMONSTRATION)
    assert [bool(c) for c in batch.annotations["tool_calls"]] == shown.tolist()
    assert not any(name.startswith("tools/") for name in metrics)


def test_rows_without_tools_are_as_before(tagged: CausalLanguageModel) -> None:
    plain = DataTask("plain", (Item(0, "plain?", (), "as it is"),), exact_match)
    batch, metrics = experience_of(plain).collect(tagged, Demand(0, rollouts=2))
    assert set(batch.annotations) == {"prompt", "answer", "expected", "item"}
    assert not any(name.startswith("tools/") for name in metrics)


def test_evaluation_uses_the_tools(tagged: CausalLanguageModel) -> None:
    task = task_of()
    result = evaluate_task(tagged, task, EvaluationRecipe(samples=2, k=(1, 2)), sampling_of(), 0)
    assert result.metrics["pass@1 (greedy)"]["value"] == pytest.approx(3 / 5)
    assert result.metrics["tool calls"]["value"] == pytest.approx(5 / 5)
    assert result.metrics["tool calls ok fraction"]["value"] == pytest.approx(3 / 5)
    assert result.metrics["turn limit fraction"]["value"] == 0
    assert result.samples[1]["tool_calls"][1]["result"] == "3"
    assert result.samples[1]["answer"] == "3"
    assert RESULT in result.samples[1]["transcript"]
    limited = evaluate_task(tagged, task, EvaluationRecipe(), sampling_of(tools={"turns": 1}), 0)
    assert limited.metrics["turn limit fraction"]["value"] == pytest.approx(1 / 5)
    plain = evaluate_task(tagged, DataTask("plain", task.items, exact_match), EvaluationRecipe(), sampling_of(), 0)
    assert set(plain.metrics) == {"pass@1 (greedy)"}
    assert "transcript" not in plain.samples[0]


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


# ---------------------------------------------------------------------------------------------------------------------- multi-hop

SMALL: dict[str, Any] = {"entities": 12, "relations": 3, "size": 20}


def test_questions_answers_and_documents_agree() -> None:
    task = MultiHopRecipe(**SMALL, hops=(1, 2, 3)).build()
    world = World(0, 12, 3, 1)
    facts = {tuple(d.rstrip(".").split(": the ")[1].split(" is ")) for d in world.documents[: 12 * 3]}
    told = dict(facts)
    assert [item.fields["hops"] for item in task.items].count(1) == 7
    for item in task.items:
        asked = item.prompt.removeprefix("What is ").removesuffix("?")
        parts = asked.split(" of ")
        here = parts[-1]
        for relation in reversed(parts[:-1]):
            here = told[f"{relation.removeprefix('the ')} of {here}"]
        assert here == item.expected
        assert task.verifier(f"The {here.upper()}.", item) == 1.0
        assert task.verifier("nobody", item) == 0.0
    assert all(name != told[f"{r} of {name}"] for name in world.names for r in world.relations)
    assert len(set(world.names)) == 12


@pytest.mark.parametrize(("entities", "relations", "distractors"), [(12, 3, 1), (60, 6, 3), (200, 12, 2)])
def test_the_right_search_finds_the_fact_before_its_distractors(entities: int, relations: int, distractors: int) -> None:
    world = World(3, entities, relations, distractors)
    assert len(world.documents) == entities * relations * (1 + distractors)
    index = SearchIndex(world.documents, 1)
    for relation in range(relations):
        for entity in range(0, entities, 7):
            query = f"{world.relations[relation]} of {world.names[entity]}"
            assert index.search(query) == world.fact(relation, entity)
    assert index.search("xyzzy") == NOTHING
    assert index.search("the of") == NOTHING
    assert index.search("") == NOTHING
    three = SearchIndex(world.documents, 3).search(world.names[0]).split("\n")
    assert len(three) == 3
    assert all(world.names[0] in text for text in three)


def test_the_index_is_built_late_and_not_carried_along() -> None:
    index = SearchIndex(["a fact about Zorv"], 1)
    assert index._index is None
    assert index.search("zorv") == "a fact about Zorv"
    assert index._index is not None
    again = pickle.loads(pickle.dumps(index))
    assert again._index is None
    assert again.search("zorv") == "a fact about Zorv"


def test_a_task_with_tools_can_be_sent_to_another_process() -> None:
    task = MultiHopRecipe(**SMALL, demonstrations=1.0).build()
    task.tools = tools_named(["search", "calculator", f"{__name__}:nap"], task.offers)
    again = pickle.loads(pickle.dumps(task))
    assert again.items == task.items
    call = Call("search", {"query": task.items[0].prompt})
    assert run_call(again.tools, call, 5) == run_call(task.tools, call, 5)
    assert run_call(again.tools, call, 5)[0] == "ok"


def test_no_question_is_in_both_splits_whatever_the_seeds() -> None:
    def prompts(split: str, seed: int) -> set[str]:
        return {
            i.prompt
            for i in MultiHopRecipe(entities=12, relations=3, size=30, hops=(2,), split=split, seed=seed, held_out=0.5).build().items
        }

    train = set().union(*(prompts("train", seed) for seed in range(5)))
    held = set().union(*(prompts("held_out", seed) for seed in range(5)))
    assert len(train) > 40
    assert len(held) > 40
    assert not train & held
    assert prompts("train", 1) != prompts("train", 2)


def test_the_same_seeds_make_the_same_task_and_another_world_another() -> None:
    def built(**changes: Any) -> Any:
        return MultiHopRecipe(**{**SMALL, "demonstrations": 0.5, **changes}).build().items

    assert built() == built()
    assert [i.prompt for i in built()] == [i.prompt for i in built(demonstrations=0.0)]
    assert built()[0].prompt.split()[-1] != built(world=1)[0].prompt.split()[-1]


def test_demonstrations_make_too_few_searches() -> None:
    def lookups(**changes: Any) -> list[tuple[int, int]]:
        items = MultiHopRecipe(entities=12, relations=3, size=40, demonstrations=1.0, **changes).build().items
        return [
            (item.fields["hops"], 0 if isinstance(d, str) else sum(m["role"] == "tool" for m in d))
            for item in items
            for d in item.demonstrations
        ]

    assert set(lookups()) == {(1, 1), (2, 2)}
    assert set(lookups(demonstration_hops=1)) == {(1, 1), (2, 1)}
    assert set(lookups(demonstration_hops=0)) == {(1, 0), (2, 0)}
    mixed = lookups(demonstration_hops=1, complete=0.5)
    assert set(mixed) == {(1, 1), (2, 1), (2, 2)}
    assert len(mixed) == 40
    (first, *_) = MultiHopRecipe(**SMALL, hops=(2,), demonstrations=1.0).build().items
    turns = checked_conversation(first.demonstrations[0], "it")
    assert turns == first.demonstrations[0]
    assert turns[-1]["content"] == first.expected
    assert turns[3]["content"].endswith(f"is {first.expected}.")
    assert len([i for i in MultiHopRecipe(**SMALL, demonstrations=0.25).build().items if i.demonstrations]) == 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 0}, "size is 0; accepted: 1 or more"),
        ({"relations": 13}, "relations is 13; accepted: 1 to 12"),
        ({"hops": [0]}, r"hops is \[0\]; accepted: different numbers from 1 to 4"),
        ({"hops": [1, 1]}, "different numbers"),
        ({"entities": 10_000, "relations": 12, "hops": [4]}, "more than 5,000,000 questions"),
        ({"complete": 1.5}, "complete is 1.5; it is a share"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"split": "test"}, "split: 'test' does not exist; accepted: held_out, train"),
        ({"size": 1000}, r"there are \d+ questions of 1 hops in the split train, and size asks for 500"),
    ],
)
def test_impossible_worlds(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        typed(MultiHopRecipe, {"entities": 12, "relations": 3, **values}, "task.multi_hop").build()


def test_search_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"the tool 'search' needs the package 'bm25s'.*unipg\[tools\]"):
        MultiHopRecipe().build()


def test_qa_match() -> None:
    item = Item(0, "q", expected="The Zorv-Malk")
    assert [qa_match(text, item) for text in ("zorv malk", "Zorv-Malk.", "zorvmalk", "a zorv malk!")] == [1.0, 1.0, 0.0, 1.0]
    with pytest.raises(InputError, match="'qa_match' needs a reference answer"):
        qa_match("x", Item(0, "q"))


# ------------------------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("task.tools=[serch]", r"tool 'serch' does not exist; did you mean 'search'\?"),
        ("rollouts.tools.turns=0", "rollouts.tools.turns is 0; accepted: 1 or more"),
        ("rollouts.tools.seconds=0", "rollouts.tools.seconds is 0.0; accepted: above 0"),
        ("rollouts.tools.result_tokens=0", "rollouts.tools.result_tokens is 0; accepted: 1 or more"),
        ("rollouts.tools.row_tokens=1", "rollouts.tools.row_tokens is 1; accepted: 2 or more"),
        ("rollouts.tools.turn=1", "rollouts.tools.turn: this key does not exist; did you mean 'turns'"),
        ("task.reasoning_gym={name: leg_counting}", "task: give exactly one of `reasoning_gym`, `data` and `multi_hop`"),
    ],
)
def test_mistakes_in_a_recipe_are_named(change: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe(ROOT / "recipes" / "tools-warm-start.yaml", [change]).task.build()


def test_the_recipes_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["training.iterations=2", "training.prompts=4", "training.evaluate_every=0", "evaluation.items=3"]
    warm = ["policy.scratch.hidden_size=32", "policy.scratch.layers=1", "policy.scratch.heads=2", "task.multi_hop.size=40"]
    recipes = ROOT / "recipes"
    assert main(["train", str(recipes / "tools-warm-start.yaml"), *small, *warm, f"output={tmp_path / 'warm'}"]) == 0
    model = f"policy.model={tmp_path / 'warm' / 'model'}"
    assert main(["train", str(recipes / "tools-grpo.yaml"), *small, model, "algorithm.rollouts=4", f"output={tmp_path / 'rl'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert all("tools/calls" in line for line in lines)
    assert main(["evaluate", str(tmp_path / "rl"), "--items", "3"]) == 0
    assert main(["report", str(tmp_path / "rl")]) == 0
    page = (tmp_path / "rl" / "report.html").read_text()
    assert 'id="tools"' in page
    assert "Tool calls per rollout" in page


def test_the_report_draws_tools_and_strata_and_shows_calls(tmp_path: Path) -> None:
    numbers = {"tools/calls": 1.5, "tools/calls/search": 1.0, "tools/calls/calculator": 0.5, "tools/ok_fraction": 0.9, "tools/turns": 2.5}
    strata = {"strata/per_prompt": 2.0, "strata/share_0_calls": 0.25, "strata/share_1_calls": 0.75, "strata/reward_1_calls": 0.5}
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({"iteration": i, **numbers, **strata}) for i in (1, 2)) + "\n")
    call = {"turn": 0, "name": "search", "arguments": {"query": "<b>"}, "outcome": "ok", "result": "a fact"}
    sample = {"prompt": "What?", "answer": "Zorv", "expected": "Zorv", "reward": 1.0, "transcript": "<tool_call>…", "tool_calls": [call]}
    results = [{"task": "2_hop", "metrics": {"pass@1 (greedy)": {"value": 1.0, "n": 1}}, "samples": [sample]}]
    (tmp_path / "evaluations.jsonl").write_text(json.dumps({"iteration": 2, "step": 2, "results": results}) + "\n")
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    for title in ("Tool calls per rollout", "How calls end", "Turns", "Rollouts by stratum", "Reward by stratum", "Per prompt"):
        assert f"<h3>{title}</h3>" in page
    assert "<h3>tools/calls</h3>" not in page
    assert "&lt;tool_call&gt;…" in page
    assert "1 tool call</summary>" in page
    assert "<code>{&quot;query&quot;: &quot;&lt;b&gt;&quot;}</code>" in page
    charts = json.loads(page.split('id="charts">')[1].split("</script>")[0])
    assert {"all", "search", "calculator"} <= {line.get("name") for chart in charts for line in chart["data"]}


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    scratch = "policy.scratch={hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64}"
    small = ["training.prompts=3", "training.iterations=3", "evaluation.tasks=[]", "task.multi_hop.size=30", scratch]
    runs = []
    for name in ("one", "two"):
        options = [*small, "algorithm={name: grpo, rollouts: 3}", f"output={tmp_path / name}"]
        assert main(["train", str(ROOT / "recipes" / "tools-warm-start.yaml"), *options]) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        runs.append([{k: v for k, v in line.items() if not k.startswith(("time/", "seconds"))} for line in lines])
    assert runs[0] == runs[1]
    assert len(runs[0]) == 3
