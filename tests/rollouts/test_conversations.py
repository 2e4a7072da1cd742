"""Rollouts of several turns: how calls are read and answered, and that rows are exactly what was sampled."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch

from unipg.errors import InputError
from unipg.policies.causal_lm import CausalLanguageModel, ScratchModel, build_model, train_tokenizer
from unipg.rollouts.base import Demand
from unipg.rollouts.conversations import Conversations, Talk, bare_calls, conversations, sample_answers, tagged_calls, tool_metrics
from unipg.rollouts.evaluation import EvaluationRecipe, evaluate_task
from unipg.rollouts.prompts import PromptRollouts, Stream
from unipg.rollouts.text import SamplingRecipe, ToolRecipe, prompt_tokens
from unipg.samplers import UniformSampler
from unipg.tasks.base import Item, Messages
from unipg.tasks.data import DataTask
from unipg.tasks.tools import (
    CALL,
    CALL_END,
    RESULT,
    RESULT_END,
    TAGS,
    Call,
    assistant,
    run_call,
    tool_from,
    tools_named,
)
from unipg.tasks.verifiers import exact_match
from unipg.trajectories import Source

LIMIT = 0.2
"""Seconds of a call."""


def nap(seconds: float) -> str:
    """Sleeps.

    Args:
        seconds: How long
    """
    time.sleep(seconds)
    return "rested"


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


def test_how_tools_are_used_is_found_once_for_a_collection(tagged: CausalLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, rollouts and demonstrations of one task share it; a stream of demonstrations from elsewhere has its own."""
    made: list[int] = []
    begin = Conversations.__init__
    monkeypatch.setattr(Conversations, "__init__", lambda self, *arguments: made.append(1) or begin(self, *arguments))
    source = experience_of(task_of(), prompts=3)
    source.collect(tagged, Demand(0, rollouts=1, demonstrations=True))
    assert len(made) == 1
    more = task_of()
    source.demonstrations = Stream(more, UniformSampler(len(more.items)), 2)
    source.collect(tagged, Demand(1, rollouts=1, demonstrations=True))
    assert len(made) == 1 + 2
