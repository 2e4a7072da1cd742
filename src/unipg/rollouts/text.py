"""Between text and tokens: prompts, chat templates, answers; and how answers are sampled."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from unipg.arguments import CheckedArguments
from unipg.errors import InputError
from unipg.rollouts.generation import Completion, Decoding
from unipg.tasks.base import Item, Messages
from unipg.tasks.tools import CALL, CALL_END, Tool


@dataclass(frozen=True)
class ToolRecipe(CheckedArguments):
    """How rollouts call the tools of a task that has any (`task.tools`)."""

    turns: int = 4
    """Most times that a rollout may wait for results; if it calls once more, it ends there, as truncated."""
    seconds: float = 5.0
    """Longest time of one call."""
    result_tokens: int = 128
    """Most tokens of one result; the rest is cut off."""
    row_tokens: int | None = None
    """Most tokens of prompt, answer and results together; default: the model's context."""
    describe: bool = True
    """Put a description of the tools before the prompt, where the tokenizer has no chat template that shows them."""

    def __post_init__(self) -> None:
        for name in ("turns", "result_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"rollouts.tools.{name} is {getattr(self, name)}; accepted: 1 or more")
        if not self.seconds > 0:
            raise InputError(f"rollouts.tools.seconds is {self.seconds}; accepted: above 0")
        if self.row_tokens is not None and self.row_tokens < 2:
            raise InputError(f"rollouts.tools.row_tokens is {self.row_tokens}; accepted: 2 or more")


@dataclass(frozen=True)
class SamplingRecipe(CheckedArguments):
    """How answers are sampled."""

    max_new_tokens: int = 64
    """Limit on the tokens that the policy writes in one answer, all its turns and its end-of-sequence token included."""
    temperature: float = 1.0
    """Of sampling AND of the log-probabilities that are trained on."""
    top_k: int | None = None
    """Not available: the importance ratio would be off by exactly the probability that is cut away."""
    top_p: float | None = None
    """Not available, for the same reason."""
    batch_rows: int = 256
    """Most answers decoded together."""
    decoding: Decoding = "auto"
    """growing: caches as long as the longest live row; shared: a group's prompt once, and what each row adds; fixed: as long as any row may
    become, replayed as a graph on a GPU. auto: fixed on a GPU; on a CPU shared where groups are large and prompts long, else growing."""
    chat_template: Literal["auto", "never"] = "auto"
    """auto: apply the tokenizer's chat template where it has one."""
    verifier_seconds: float = 10.0
    """Longest time one answer may take to score; then it counts as failed."""
    long_demonstrations: Literal["error", "truncate"] = "error"
    """What to do with a demonstration longer than `max_new_tokens`; truncated ones get no end-of-sequence token."""
    tools: ToolRecipe = field(default_factory=ToolRecipe)
    """How tools are called."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"rollouts.max_new_tokens is {self.max_new_tokens}; accepted: 1 or more")
        for name in ("top_k", "top_p"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"rollouts.{name} is set, but log-probabilities are taken of the whole distribution, so the importance ratio would be "
                    "wrong by the probability that is cut away; accepted: null (use temperature instead)"
                )
        if not self.temperature > 0:
            raise InputError(f"rollouts.temperature is {self.temperature}; accepted: above 0")
        if self.batch_rows < 1 or not self.verifier_seconds > 0:
            raise InputError("rollouts.batch_rows and rollouts.verifier_seconds must be above 0")


def prompt_text(item: Item) -> str:
    """The prompt as text for people: the last message of a conversation."""
    return item.prompt if isinstance(item.prompt, str) else str(item.prompt[-1].get("content", ""))


def prompt_tokens(tokenizer: Any, item: Item, chat_template: str, tools: Sequence[Tool] = (), describe: bool = True) -> list[int]:
    """The prompt's token ids, through the tokenizer's chat template where it has one.

    `tools`: those that may be called; a template is given their schemas, and where none shows them they are described before the prompt
    if `describe`.
    """
    templated = has_template(tokenizer, chat_template)
    if tools and describe and not (templated and shows_tools(tokenizer, tools)):
        item = replace(item, prompt=_described(item.prompt, tools))
    if templated:
        ids = templated_tokens(tokenizer, prompt_messages(item), tools, answer=True)
    elif isinstance(item.prompt, str):
        ids = tokenizer.encode(item.prompt)
        if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
            ids = ids[:-1]
    else:
        raise InputError(f"{item.place or f'item {item.index}'} is a conversation, but the tokenizer has no chat template")
    if not ids:
        raise InputError(f"{item.place or f'item {item.index}'}: the prompt is empty after tokenization")
    first = 1 if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2 else 0  # one is the text's own
    return list(ids)[first:]


def has_template(tokenizer: Any, chat_template: str) -> bool:
    """Whether rows go through the tokenizer's chat template."""
    return chat_template == "auto" and bool(getattr(tokenizer, "chat_template", None))


def prompt_messages(item: Item) -> Messages:
    """The prompt as a conversation."""
    return [{"role": "user", "content": item.prompt}] if isinstance(item.prompt, str) else item.prompt


def templated_tokens(tokenizer: Any, messages: Messages, tools: Sequence[Tool] = (), answer: bool = False) -> list[int]:
    """A conversation through the chat template; with `answer`, and the beginning of the assistant's turn."""
    schemas: dict[str, Any] = {"tools": [tool.schema for tool in tools]} if tools else {}
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=answer, tokenize=True, return_dict=False, **schemas)
    return list(ids)


def shows_tools(tokenizer: Any, tools: Sequence[Tool]) -> bool:
    """Whether the chat template tells the model about tools."""
    probe: Messages = [{"role": "user", "content": "x"}]
    return templated_tokens(tokenizer, probe, tools) != templated_tokens(tokenizer, probe)


def _described(prompt: str | Messages, tools: Sequence[Tool]) -> str | Messages:
    """The prompt after a list of the tools and how they are called; in a conversation it goes before the first message of the user."""
    lines = [f"{tool.name}({_signature(tool)}): {tool.schema['function']['description']}" for tool in tools]
    call = CALL + '{"name": "…", "arguments": {…}}' + CALL_END
    text = "\n".join(["Tools that you may call:", *lines, f"A call is written {call}; the result comes back."]) + "\n\n"
    if isinstance(prompt, str):
        return text + prompt
    place = next((i for i, message in enumerate(prompt) if message["role"] == "user"), 0)
    return [{**m, "content": text + m["content"]} if i == place else m for i, m in enumerate(prompt)]


def _signature(tool: Tool) -> str:
    return ", ".join(f"{name}: {schema.get('type', 'any')}" for name, schema in tool.parameters.get("properties", {}).items())


def check_room(model: Any, items: Sequence[Item], prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuses prompts that leave no room for an answer in the model's context, and tokens that the model does not have."""
    known = model.get_input_embeddings().weight.shape[0]
    for item, prompt in zip(items, prompts, strict=True):
        if max(prompt) >= known:
            raise InputError(
                f"{item.place or f'item {item.index}'}: the tokenizer gives token {max(prompt)}, but the model has {known}; accepted: the "
                "model's own tokenizer"
            )
    limit = getattr(model.config, "max_position_embeddings", None)
    for item, prompt in zip(items, prompts, strict=True):
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise InputError(
                f"{item.place or f'item {item.index}'}: the prompt has {len(prompt)} tokens, and with rollouts.max_new_tokens "
                f"({max_new_tokens}) that is more than the model's context of {limit}"
            )


def end_tokens(model: Any, tokenizer: Any, chat_template: str = "auto") -> list[int]:
    """Every token that ends an answer: the tokenizer's, those of the model's generation config, and what ends a turn of the template."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return sorted({tokenizer.eos_token_id, end_of_answer(tokenizer, chat_template), *more})


def end_of_answer(tokenizer: Any, chat_template: str = "auto") -> int:
    """The token that a given answer is ended with: what the chat template ends the assistant's turns with, else the tokenizer's own."""
    if not has_template(tokenizer, chat_template):
        return int(tokenizer.eos_token_id)
    return _end_of_turn(tokenizer, str(tokenizer.chat_template))


@functools.lru_cache(maxsize=16)
def _end_of_turn(tokenizer: Any, template: str) -> int:
    asked: Messages = [{"role": "user", "content": "x"}]
    try:
        before = templated_tokens(tokenizer, asked, answer=True)
        whole = templated_tokens(tokenizer, [*asked, {"role": "assistant", "content": "y"}])
    except Exception:  # a template for other conversations than this one
        return int(tokenizer.eos_token_id)
    special = set(tokenizer.all_special_ids) - {tokenizer.bos_token_id}
    rest = whole[len(before) :] if whole[: len(before)] == before else whole
    return next((token for token in rest if token in special), int(tokenizer.eos_token_id))


def answer_with_end(tokenizer: Any, text: str, place: str, chat_template: str = "auto", ended: bool = True) -> list[int]:
    """The tokens of a given answer with one end token behind it, whether the text had some already or not; `ended`: False for none.

    Errors: `InputError` for an end token in the middle of the text, which a policy would be taught to write past.
    """
    end = end_of_answer(tokenizer, chat_template)
    ends = {end, int(tokenizer.eos_token_id)}
    tokens: list[int] = list(tokenizer.encode(text, add_special_tokens=False))
    while tokens and tokens[-1] in ends:
        tokens.pop()
    inside = next((token for token in tokens if token in ends), None)
    if inside is not None:
        raise InputError(
            f"{place}: an answer has the end token {tokenizer.decode([inside])!r} in its middle; accepted: at its end, or none"
        )
    return [*tokens, end] if ended else tokens


def decode(tokenizer: Any, completion: Completion, begin: int = 0) -> str:
    """The answer's text without special tokens, from token `begin` on."""
    return str(tokenizer.decode(completion.tokens[begin:], skip_special_tokens=True)).strip()
