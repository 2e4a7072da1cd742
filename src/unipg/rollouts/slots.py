"""Caches of rows that are decoded together, and of the prompts that several of them share.

    ModelCache      the model's own: rows may leave
    SlotCache       rows leave and join, columns grow with the longest; where prompts are shared, a row's columns begin after its prompt

Caches of fixed shape are in `fixed.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unipg.policies.packing import Prompts

ROOM = 16
"""Columns added to the cache when it is full: the live part is copied once in so many steps."""
SHRINK_AT = 0.5
"""Stores are made anew, smaller, once at most this share of their slots is in use."""


class ModelCache:
    """The model's own cache, whatever its kind: rows may leave it, none may join while it lives."""

    cache: Any
    width: int

    def start(self, cache: Any, source: Tensor, slots: Tensor, count: int, width: int, prompts: Sequence[tuple[int, int]]) -> None:
        self.cache, self.width = cache, cache.get_seq_length()
        cache.reorder_cache(source)

    def move(self, source: Tensor, target: Tensor, count: int, width: int) -> None:
        kept = torch.arange(count, device=source.device)
        kept[target] = source
        self.cache.reorder_cache(kept)

    def open(self, width: int) -> int:
        """Columns before the next token."""
        self.width += 1
        return self.width - 1

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the model's next step."""
        return {}


class SlotCache:
    """A DynamicCache of which rows can join and leave: layers write in place, all rows end at the same column, and attention sees only as
    many columns as the longest live row has tokens (`width`).

    `shares`: prompts are kept once for all of their rows (`SharedPrompts`), and the rows' columns hold only what comes after.
    """

    cache: Any = None

    def __init__(self, shares: bool = False, room: int = ROOM) -> None:
        self.prompts = SharedPrompts() if shares else None
        self.room = room

    def start(self, cache: Any, source: Tensor, slots: Tensor, count: int, width: int, prompts: Sequence[tuple[int, int]]) -> None:
        """Writes the rows `source` of a prefill's cache into `slots`; then there are `count`.

        `prompts`: a number for the prompt of each of these rows, the same in all of its rows, and how many tokens it has.
        """
        if self.cache is None:
            self.cache = type(cache)()
            self.cache.layers = [_slot_layer()(layer, self.room) for layer in cache.layers]
        begin = 0 if self.prompts is None else cache.get_seq_length()
        for layer, new in zip(self.cache.layers, cache.layers, strict=True):
            layer.join([x[:, :, begin:] for x in (new.keys, new.values)], source, slots, count, width)
        if self.prompts is not None:
            self.prompts.start(cache, source, slots, count, prompts)

    def move(self, source: Tensor, target: Tensor, count: int, width: int) -> None:
        """Copies slots `source` to `target` and drops all slots from `count` on."""
        for layer in self.cache.layers:
            layer.move(source, target, count, width)
        if self.prompts is not None:
            self.prompts.move(source, target, count)

    def open(self, width: int) -> int:
        """Makes room for one more column; attention will see `width` columns before it."""
        for layer in self.cache.layers:
            layer.open(width)
        return width

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the model's next step."""
        return {} if self.prompts is None else {"prompts": self.prompts.now}


class SharedPrompts:
    """The prompts of live rows, each once, in slots of their own; one that no row belongs to any more makes room."""

    now: Prompts
    """What attention is given."""

    def __init__(self) -> None:
        self.store = SlotCache(room=0)
        self._of_rows: list[int] = []  # by slot of a row, the number of its prompt
        self._held: list[int | None] = []  # by slot of a prompt, its number; None: no longer needed
        self._tokens: dict[int, int] = {}  # of each prompt that is held

    def start(self, cache: Any, source: Tensor, slots: Tensor, count: int, prompts: Sequence[tuple[int, int]]) -> None:
        """Rows with these prompts, at the places `source` of a prefill, start in `slots`; then there are `count` slots."""
        self._of_rows = [*self._of_rows, *[-1] * count][:count]
        for slot, (number, _) in zip(slots.tolist(), prompts, strict=True):
            self._of_rows[slot] = number
        self._forget()
        if not self._tokens:
            self._held = []
        before = self._width
        new = {number: place for place, (number, _) in zip(source.tolist(), prompts, strict=True) if number not in self._tokens}
        self._tokens |= {number: tokens for number, tokens in prompts if number in new}
        free = [place for place, number in enumerate(self._held) if number is None]
        places = [*free, *range(len(self._held), len(self._held) + len(new))][: len(new)]
        self._held += [None] * (len(new) - len(free))
        for place, number in zip(places, new, strict=True):
            self._held[place] = number
        if new:
            self.store.start(cache, source.new_tensor(list(new.values())), source.new_tensor(places), len(self._held), before, ())
        self._compose(source)

    def move(self, source: Tensor, target: Tensor, count: int) -> None:
        """Rows move from the slots `source` to `target`, and those from `count` on are dropped."""
        for old, new in zip(source.tolist(), target.tolist(), strict=True):
            self._of_rows[new] = self._of_rows[old]
        del self._of_rows[count:]
        self._forget()
        if len(self._tokens) < len(self._held):
            moved, free = moves([number is not None for number in self._held])
            self.store.move(source.new_tensor(moved), source.new_tensor(free), len(self._tokens), self._width)
            for old, new in zip(moved, free, strict=True):
                self._held[new] = self._held[old]
            del self._held[len(self._tokens) :]
        self._compose(source)

    @property
    def _width(self) -> int:
        return max(self._tokens.values(), default=0)

    def _forget(self) -> None:
        """Gives up the prompts that no row has."""
        wanted = set(self._of_rows)
        self._held = [number if number in wanted else None for number in self._held]
        self._tokens = {number: tokens for number, tokens in self._tokens.items() if number in wanted}

    def _compose(self, like: Tensor) -> None:
        """Says anew which rows belong to which prompt. `like`: any tensor of indices."""
        width = self._width
        rows: list[list[int]] = [[] for _ in self._held]
        place = {number: i for i, number in enumerate(self._held) if number is not None}
        among = []
        for slot, number in enumerate(self._of_rows):
            mine = rows[place[number]]
            among.append((place[number], len(mine)))
            mine.append(slot)
        most = max(map(len, rows))
        padding = [width - self._tokens.get(number, 0) if number is not None else 0 for number in self._held]
        steps = torch.arange(width, device=like.device)
        self.now = Prompts(
            tuple(layer.show(width) for layer in self.store.cache.layers),
            (steps < like.new_tensor(padding).unsqueeze(1))[:, None, None] if any(padding) else None,
            like.new_tensor([mine + [0] * (most - len(mine)) for mine in rows]).flatten(),
            like.new_tensor([prompt * most + i for prompt, i in among]),
        )


def moves(alive: Sequence[bool]) -> tuple[list[int], list[int]]:
    """What brings the live slots together at the front: slots to move, and the free ones that take them."""
    count = sum(alive)
    return [i for i in range(count, len(alive)) if alive[i]], [i for i in range(count) if not alive[i]]


def joinable(cache: Any) -> bool:
    """Whether rows can join a cache: whether it is plain enough for a `SlotCache`."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers)


@functools.cache
def _slot_layer() -> Any:
    """The class is made late: importing transformers takes a second."""
    from transformers.cache_utils import DynamicLayer

    class SlotLayer(DynamicLayer):
        """Keys and values of one layer in stores [slots, heads, columns, D]: `count` slots are in use, up to column `end`; `room` columns
        are added when they are full."""

        def __init__(self, like: Any, room: int) -> None:
            super().__init__()
            self.lazy_initialization(like.keys, like.values)
            self.stores = [x.new_empty(0, x.shape[1], 0, x.shape[3]) for x in (like.keys, like.values)]
            self.room = room
            self.count = self.end = 0

        def join(self, new: Sequence[Tensor], source: Tensor, slots: Tensor, count: int, width: int) -> None:
            prefix = new[0].shape[2]
            if self._fitting(count) != len(self.stores[0]) or prefix > self.end:
                self._rebuild(self._fitting(count), width, max(width, prefix))
            begin, end = self.end - prefix, self.end
            for store, rows in zip(self.stores, new, strict=True):
                # zeros, because attention multiplies even what it masks
                store[: self.count, :, begin : end - width] = 0
                store[slots, :, end - width : begin] = 0
                store[slots, :, begin:end] = rows[source]
            self.count = count

        def move(self, source: Tensor, target: Tensor, count: int, width: int) -> None:
            for store in self.stores:
                store[target, :, self.end - width : self.end] = store[source, :, self.end - width : self.end]
            self.count = count
            if self._fitting(count) != len(self.stores[0]):
                self._rebuild(count, width, width)

        def open(self, width: int) -> None:
            slots, _, columns, _ = self.stores[0].shape
            if self.end == columns:
                self._rebuild(slots, width, width)
            self.show(width)

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            for store, new in zip(self.stores, (key_states, value_states), strict=True):
                store[: self.count, :, self.end : self.end + 1] = new
            self.end += 1
            return self.show(self.get_seq_length() + 1)

        def show(self, width: int) -> tuple[Tensor, Tensor]:
            self.keys, self.values = (store[: self.count, :, self.end - width : self.end] for store in self.stores)
            return self.keys, self.values

        def _fitting(self, count: int) -> int:
            """Slots of stores for `count` rows: as they are if these fit and the stores are not far too large."""
            slots = len(self.stores[0])
            return slots if SHRINK_AT * slots < count <= slots else count

        def _rebuild(self, slots: int, width: int, end: int) -> None:
            """New stores with the last `width` columns, which now end at column `end`, and room after it."""
            kept = min(self.count, slots)
            for i, old in enumerate(self.stores):
                self.stores[i] = old.new_empty(slots, old.shape[1], end + self.room, old.shape[3])
                self.stores[i][:kept, :, end - width : end] = old[:kept, :, self.end - width : self.end]
            self.end = end

    return SlotLayer
