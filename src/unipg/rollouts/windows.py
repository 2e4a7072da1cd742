"""Responses that are decoded a window at a time and outlive the collection that began them.

Belongs here: what is known of such a response, and one more window of it. Does not belong here: which prompts come next, and scoring
(`prompts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unipg.rollouts.generation import Completion, ContinuousBatch
from unipg.tasks.base import Item


@dataclass(frozen=True)
class Slot:
    """A response in work."""

    item: Item
    prompt: list[int]
    group: int
    born: int
    """The iteration in which it was begun."""
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    """log pi(token) under the policy that chose it, when it did."""
    start: int = 0
    """First token of the latest window."""
    windows: int = 0
    ended: bool = False
    """Whether it ended by itself."""

    def finished(self, limit: int) -> bool:
        """Whether nothing follows, also because `limit` tokens are all that it may have."""
        return self.ended or len(self.tokens) == limit

    @property
    def fresh(self) -> int:
        """Tokens of the latest window."""
        return len(self.tokens) - self.start

    @property
    def completion(self) -> Completion:
        """All of it so far."""
        return Completion(list(self.tokens), list(self.log_probs), self.ended, [True] * len(self.tokens))


def advance(batch: ContinuousBatch, slots: Sequence[Slot], window: int, limit: int, should_stop: Callable[[], bool] = bool) -> list[Slot]:
    """One more window of each slot: at most `window` new tokens, and `limit` in all. What was said so far is prefilled anew, since the
    policy has changed; a prompt whose responses all begin is prefilled once.

    Raises Interrupted when `should_stop` answers true between decode steps.
    """
    together: dict[tuple[int, ...], list[int]] = {}
    for number, slot in enumerate(slots):
        together.setdefault((slot.group, number) if slot.tokens else (slot.group,), []).append(number)
    contexts = [([*slots[numbers[0]].prompt, *slots[numbers[0]].tokens], numbers) for numbers in together.values()]
    for context, numbers in sorted(contexts, key=lambda pair: len(pair[0])):
        batch.add(context, numbers, min(window, limit - len(slots[numbers[0]].tokens)))
    done = batch.run(should_stop)
    return [
        replace(
            slot,
            tokens=(*slot.tokens, *done[number].tokens),
            log_probs=(*slot.log_probs, *done[number].log_probs),
            start=len(slot.tokens),
            windows=slot.windows + 1,
            ended=done[number].ended,
        )
        for number, slot in enumerate(slots)
    ]
