"""Between text and tokens: prompts, chat templates, answers; and how answers are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unipg.errors import InputError
from unipg.rollouts.generation import Completion
from unipg.tasks.base import Item


@dataclass(frozen=True)
class SamplingRecipe:
    """How answers are sampled."""

    max_new_tokens: int = 64
    """Limit on the tokens of one answer, its end-of-sequence token included."""
    temperature: float = 1.0
    """Of sampling AND of the log-probabilities that are trained on."""
    top_k: int | None = None
    """Not available: the importance ratio would be off by exactly the probability that is cut away."""
    top_p: float | None = None
    """Not available, for the same reason."""
    batch_rows: int = 256
    """Most answers decoded together."""
    chat_template: Literal["auto", "never"] = "auto"
    """auto: apply the tokenizer's chat template where it has one."""
    verifier_seconds: float = 10.0
    """Longest time one answer may take to score; then it counts as failed."""
    long_demonstrations: Literal["error", "truncate"] = "error"
    """What to do with a demonstration longer than `max_new_tokens`; truncated ones get no end-of-sequence token."""

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


def prompt_tokens(tokenizer: Any, item: Item, chat_template: str) -> list[int]:
    """The prompt's token ids, through the tokenizer's chat template where it has one."""
    if chat_template == "auto" and getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": item.prompt}] if isinstance(item.prompt, str) else item.prompt
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    elif isinstance(item.prompt, str):
        ids = tokenizer.encode(item.prompt)
        if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
            ids = ids[:-1]
    else:
        raise InputError(f"{item.place or f'item {item.index}'} is a conversation, but the tokenizer has no chat template")
    if not ids:
        raise InputError(f"{item.place or f'item {item.index}'}: the prompt is empty after tokenization")
    return list(ids)


def check_room(model: Any, items: Sequence[Item], prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuses prompts that leave no room for an answer in the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for item, prompt in zip(items, prompts, strict=True):
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise InputError(
                f"{item.place or f'item {item.index}'}: the prompt has {len(prompt)} tokens, and with rollouts.max_new_tokens "
                f"({max_new_tokens}) that is more than the model's context of {limit}"
            )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those of the model's generation config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return sorted({tokenizer.eos_token_id, *more})


def decode(tokenizer: Any, completion: Completion) -> str:
    return str(tokenizer.decode(completion.tokens, skip_special_tokens=True)).strip()
