"""Items, tasks and verifiers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Messages = list[dict[str, Any]]
"""A conversation: `[{"role": "user", "content": "…"}]`; messages of the assistant may have `tool_calls`."""


@dataclass(frozen=True)
class ScoredCompletion:
    """A given answer to a prompt and what it was found worth."""

    text: str
    score: float
    """1 for the chosen of a pair or a liked one, 0 for the rejected or disliked, any number where answers were scored."""


@dataclass(frozen=True)
class Item:
    """One prompt and what is known about it."""

    index: int
    """Its place in the task; stable over runs."""
    prompt: str | Messages
    demonstrations: tuple[str | Messages, ...] = ()
    """Good answers without the prompt: text, or the turns of one that calls tools (`tools.checked_conversation`)."""
    expected: str | None = None
    """The reference answer, where there is one."""
    fields: dict[str, Any] = field(default_factory=dict)
    """The whole row it came from, for verifiers."""
    place: str = ""
    """Where it came from, for errors: `train.jsonl line 7`."""
    completions: tuple[ScoredCompletion, ...] = ()
    """Given answers with their scores, for methods that learn from preferences."""


def fingerprint(items: Sequence[Item]) -> str:
    """How many items there are, and a checksum of what they say; files that differ in nothing that is read have the same."""
    digest = hashlib.sha256()
    for item in items:
        said = [item.prompt, item.demonstrations, item.expected, item.fields, [(c.text, c.score) for c in item.completions]]
        text = json.dumps(said, skipkeys=True, default=stable)
        digest.update(text.encode() + b"\n")
    return f"{len(items)} items, {digest.hexdigest()[:12]}"


def stable(value: Any) -> Any:
    """Something that is the same in every process, for a value that JSON does not know."""
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if hasattr(value, "tolist"):
        return value.tolist()
    return type(value).__qualname__


class Verifier(Protocol):
    """Scores one answer. Any Python callable of this shape will do."""

    def __call__(self, answer: str, item: Item) -> float: ...


class Task(Protocol):
    """A fixed sequence of items with one verifier."""

    name: str
    items: Sequence[Item]
    verifier: Verifier
