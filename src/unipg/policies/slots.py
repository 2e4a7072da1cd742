"""What a model remembers of rows that are decoded together, each in a slot of its own, and of the prompts that several of them share.

SlotCache       rows leave and join, columns grow with the longest; where prompts are shared, a row's columns begin after its prompt
ModelCache      the model's own cache, whatever its kind: rows may leave
NoCache         nothing: every step runs the rows from their beginning, in the way that they are trained
FixedCache      memory that stays where it is, so that a GPU can replay a step (`fixed.py`)
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unipg.policies.packing import Prompts

ROOM = 16
"""Columns added to the cache when it is full: the live part is copied once in so many steps."""
SHRINK_AT = 0.5
"""Stores are made anew, smaller, once at most this share of their slots is in use."""


@dataclass(frozen=True)
class Prefill:
    """Prompts that the model has read together."""

    prompts: list[list[int]]
    logits: Tensor
    """[P,V] after each prompt."""
    cache: Any
    """The model's own, padded on the left; None without one."""


class Start(NamedTuple):
    """A row that begins."""

    home: int
    """A number for its prompt, the same in all of the prompt's rows."""
    prompt: int
    """Tokens of the prompt."""
    longest: int
    """Most tokens that prompt and answer may come to."""


class RowCache(ABC):
    """The protocol of all caches. `fed`, by slot: tokens that the model has seen of the slot's row; 0 for free slots."""

    joins: bool = True
    """Whether rows may start while others are being decoded."""
    moves: bool = True
    """Whether live rows may move to other slots and the slots behind them be dropped."""

    @abstractmethod
    def start(self, prefill: Prefill, source: Tensor, slots: Tensor, count: int, fed: Sequence[int], rows: Sequence[Start]) -> None:
        """Rows with the prompts at the places `source` of a prefill start in `slots`; then there are `count` slots. `fed`: before that."""

    @abstractmethod
    def step(self, model: Any, tokens: Tensor, fed: Sequence[int]) -> Tensor:
        """Feeds every slot its token, `tokens` [slots]. Logits [slots,V] of the next one."""

    def move(self, source: Tensor, target: Tensor, count: int, fed: Sequence[int]) -> None:
        """Copies slots `source` to `target` and drops all slots from `count` on. `fed` as it was before."""


class NoCache(RowCache):
    """For models whose cache is of no use here: their rows are run whole, padded on the right, as in training."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def start(self, prefill: Prefill, source: Tensor, slots: Tensor, count: int, fed: Sequence[int], rows: Sequence[Start]) -> None:
        self.rows = [*self.rows, *[[] for _ in range(count)]][:count]
        for slot, place in zip(slots.tolist(), source.tolist(), strict=True):
            self.rows[slot] = list(prefill.prompts[place])

    def move(self, source: Tensor, target: Tensor, count: int, fed: Sequence[int]) -> None:
        for old, new in zip(source.tolist(), target.tolist(), strict=True):
            self.rows[new] = self.rows[old]
        del self.rows[count:]

    def step(self, model: Any, tokens: Tensor, fed: Sequence[int]) -> Tensor:
        for slot, (token, n) in enumerate(zip(tokens.tolist(), fed, strict=True)):
            self.rows[slot] = [*self.rows[slot][:n], token]
        return last_logits(model, self.rows)


def last_logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """[R,V] after the last token of each row, in one forward pass without a cache."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits[torch.arange(len(rows), device=model.device), last]


class GrowingCache(RowCache):
    """Rows that all end at the same column; attention is told how many columns before it are a row's own."""

    cache: Any = None

    def __init__(self, positions: bool) -> None:
        self.positions = positions
        """Whether the model takes `position_ids`."""

    def step(self, model: Any, tokens: Tensor, fed: Sequence[int]) -> Tensor:
        own = self.own(fed)
        width = self.open(max(own))
        mask = None
        if any(n > 0 and o < width for n, o in zip(fed, own, strict=True)):
            columns = torch.tensor(own, device=tokens.device).unsqueeze(1)
            mask = (torch.arange(width + 1, device=tokens.device) >= width - columns).long()
        options = {"position_ids": torch.tensor(fed, device=tokens.device).unsqueeze(1)} if self.positions else {}
        out = model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **options,
            **self.options(),
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def own(self, fed: Sequence[int]) -> Sequence[int]:
        """By slot, tokens of its row that the slot's own columns hold."""
        return fed

    @abstractmethod
    def open(self, width: int) -> int:
        """Makes room for one more column, of rows that have at most `width`. Columns that attention will see before it."""

    def options(self) -> dict[str, Any]:
        """Further keyword arguments for the model's next step."""
        return {}


class ModelCache(GrowingCache):
    """The model's own cache, whatever its kind: rows may leave it, none may join while it lives."""

    joins = False
    width: int

    def start(self, prefill: Prefill, source: Tensor, slots: Tensor, count: int, fed: Sequence[int], rows: Sequence[Start]) -> None:
        self.cache, self.width = prefill.cache, prefill.cache.get_seq_length()
        self.cache.reorder_cache(source)

    def move(self, source: Tensor, target: Tensor, count: int, fed: Sequence[int]) -> None:
        kept = torch.arange(count, device=source.device)
        kept[target] = source
        self.cache.reorder_cache(kept)

    def open(self, width: int) -> int:
        self.width += 1
        return self.width - 1


class SlotCache(GrowingCache):
    """A DynamicCache of which rows can join and leave: layers write in place, all rows end at the same column, and attention sees only as
    many columns as the longest live row has tokens (`width`).

    `shares`: prompts are kept once for all of their rows (`SharedPrompts`), and the rows' columns hold only what comes after.
    """

    def __init__(self, positions: bool = True, shares: bool = False, room: int = ROOM) -> None:
        super().__init__(positions)
        self.prompts = SharedPrompts() if shares else None
        self.room = room

    def start(self, prefill: Prefill, source: Tensor, slots: Tensor, count: int, fed: Sequence[int], rows: Sequence[Start]) -> None:
        begin = 0 if self.prompts is None else prefill.cache.get_seq_length()
        self.join(prefill.cache, source, slots, count, max(self.own(fed), default=0), begin)
        if self.prompts is not None:
            self.prompts.start(prefill.cache, source, slots, count, rows)

    def join(self, cache: Any, source: Tensor, slots: Tensor, count: int, width: int, begin: int = 0) -> None:
        """Writes the rows `source` of a cache, from column `begin` on, into `slots`; so far the rows have at most `width` columns."""
        if self.cache is None:
            self.cache = type(cache)()
            self.cache.layers = [_slot_layer()(layer, self.room) for layer in cache.layers]
        for layer, new in zip(self.cache.layers, cache.layers, strict=True):
            layer.join([x[:, :, begin:] for x in (new.keys, new.values)], source, slots, count, width)

    def move(self, source: Tensor, target: Tensor, count: int, fed: Sequence[int]) -> None:
        self.shift(source, target, count, max(self.own(fed)))
        if self.prompts is not None:
            self.prompts.move(source, target, count)

    def shift(self, source: Tensor, target: Tensor, count: int, width: int) -> None:
        """Copies the last `width` columns of slots `source` to `target`, and keeps `count` slots."""
        for layer in self.cache.layers:
            layer.move(source, target, count, width)

    def own(self, fed: Sequence[int]) -> Sequence[int]:
        if self.prompts is None:
            return fed
        return [n - self.prompts.tokens(slot) if n else 0 for slot, n in enumerate(fed)]

    def open(self, width: int) -> int:
        for layer in self.cache.layers:
            layer.open(width)
        return width

    def options(self) -> dict[str, Any]:
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

    def tokens(self, slot: int) -> int:
        """Tokens of the prompt of the row in a slot."""
        return self._tokens[self._of_rows[slot]]

    def start(self, cache: Any, source: Tensor, slots: Tensor, count: int, starting: Sequence[Start]) -> None:
        """Rows with these prompts, at the places `source` of a prefill, start in `slots`; then there are `count` slots."""
        self._of_rows = [*self._of_rows, *[-1] * count][:count]
        for slot, row in zip(slots.tolist(), starting, strict=True):
            self._of_rows[slot] = row.home
        self._forget()
        if not self._tokens:
            self._held = []
        before = self._width
        new = {row.home: place for place, row in zip(source.tolist(), starting, strict=True) if row.home not in self._tokens}
        self._tokens |= {row.home: row.prompt for row in starting if row.home in new}
        free = [place for place, number in enumerate(self._held) if number is None]
        places = [*free, *range(len(self._held), len(self._held) + len(new))][: len(new)]
        self._held += [None] * (len(new) - len(free))
        for place, number in zip(places, new, strict=True):
            self._held[place] = number
        if new:
            self.store.join(cache, source.new_tensor(list(new.values())), source.new_tensor(places), len(self._held), before)
        self._compose(source)

    def move(self, source: Tensor, target: Tensor, count: int) -> None:
        """Rows move from the slots `source` to `target`, and those from `count` on are dropped."""
        for old, new in zip(source.tolist(), target.tolist(), strict=True):
            self._of_rows[new] = self._of_rows[old]
        del self._of_rows[count:]
        self._forget()
        if len(self._tokens) < len(self._held):
            moved, free = moves([number is not None for number in self._held])
            self.store.shift(source.new_tensor(moved), source.new_tensor(free), len(self._tokens), self._width)
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
