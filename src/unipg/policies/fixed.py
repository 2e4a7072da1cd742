"""Decoding with fixed shapes: a cache that stays where it is while rows live in it, so that a GPU can replay a step as one graph.

Row r of the cache holds its tokens from column 0 on; a step writes each row's next column, and a mask says how many columns it has. Every
step therefore touches the same memory in the same way. On a CPU the same steps run one by one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unipg.errors import one_line
from unipg.policies.slots import Prefill, RowCache, Start

COLUMNS = 64
"""The cache has a multiple of so many columns: a row that needs a little more finds it there."""
WARM_UPS = 3


class FixedCache(RowCache):
    """Keys and values of `slots` rows of at most `columns` tokens, `[slots, heads, columns, D]` in each layer."""

    moves = False

    def __init__(self, like: Any, slots: int, columns: int) -> None:
        self.slots, self.columns = slots, -(-columns // COLUMNS) * COLUMNS
        self.cache = type(like)()
        device = like.layers[0].keys.device
        self.places = torch.zeros(slots, dtype=torch.long, device=device)
        """[slots] the column that the next token of each row is written to."""
        self.cache.layers = [_fixed_layer()(layer, self) for layer in like.layers]
        self._step: FixedStep | None = None

    def start(self, prefill: Prefill, source: Tensor, slots: Tensor, count: int, fed: Sequence[int], rows: Sequence[Start]) -> None:
        """Writes the rows `source` of a prefill's cache, padded on the left, into `slots`."""
        self._hold(max(row.longest for row in rows))
        lengths = torch.tensor([row.prompt for row in rows], device=source.device)
        width = prefill.cache.layers[0].keys.shape[2]
        steps = torch.arange(width, device=lengths.device)
        index = (steps + (width - lengths).unsqueeze(1)).clamp_max(width - 1)[:, None, :, None]
        for mine, new in zip(self.cache.layers, prefill.cache.layers, strict=True):
            for store, x in ((mine.keys, new.keys), (mine.values, new.values)):
                found = x[source]
                store[slots, :, :width] = found.gather(2, index.expand(-1, found.shape[1], -1, found.shape[3]))

    def step(self, model: Any, tokens: Tensor, fed: Sequence[int]) -> Tensor:
        if self._step is None:
            self._step = FixedStep(model, self)
        return self._step(tokens, fed)

    def _hold(self, columns: int) -> None:
        """Has room for rows of so many tokens; the memory moves only where it has to grow."""
        if columns <= self.columns:
            return
        before, self.columns, self._step = self.columns, -(-columns // COLUMNS) * COLUMNS, None
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                larger = old.new_zeros(*old.shape[:2], self.columns, old.shape[3])
                larger[:, :, :before] = old
                setattr(layer, name, larger)


@functools.cache
def _fixed_layer() -> Any:
    """The class is made late: importing transformers takes a second."""
    from transformers.cache_utils import DynamicLayer

    class FixedLayer(DynamicLayer):
        def __init__(self, like: Any, owner: FixedCache) -> None:
            super().__init__()
            self.lazy_initialization(like.keys, like.values)
            shape = owner.slots, like.keys.shape[1], owner.columns
            # zeros, because attention multiplies even what it masks
            self.keys = like.keys.new_zeros(*shape, like.keys.shape[3])
            self.values = like.values.new_zeros(*shape, like.values.shape[3])
            self.owner = owner

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            assert self.keys is not None
            assert self.values is not None
            place = self.owner.places[:, None, None, None]
            self.keys.scatter_(2, place.expand_as(key_states), key_states)
            self.values.scatter_(2, place.expand_as(value_states), value_states)
            return self.keys, self.values

        def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
            return 0  # positions are given; a length that changed would change the step

    return FixedLayer


class FixedStep:
    """One decode step of a model on a fixed cache: tokens and lengths in, logits [slots,V] out. On a GPU it is captured once as a graph."""

    def __init__(self, model: Any, cache: FixedCache) -> None:
        self.model, self.cache = model, cache
        device = cache.places.device
        self._tokens = torch.zeros(cache.slots, 1, dtype=torch.long, device=device)
        self._columns = torch.arange(cache.columns, device=device)
        self._captures = device.type == "cuda"
        self._graph: Any = None
        self._logits: Tensor | None = None

    def __call__(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """`tokens` [slots] are fed; `lengths`: tokens that the cache has of each row already, 0 for free slots."""
        self._tokens.copy_(tokens.unsqueeze(1))
        self.cache.places.copy_(torch.tensor(lengths, device=tokens.device))
        if self._captures and self._graph is None:
            try:
                self._capture()
            except RuntimeError as error:
                self._captures, self._graph = False, None
                warnings.warn(f"decode steps cannot be captured as a graph and run one by one: {one_line(error)}", stacklevel=2)
        if self._graph is None:
            return self._run()
        self._graph.replay()
        assert self._logits is not None
        return self._logits

    def _run(self) -> Tensor:
        places = self.cache.places.unsqueeze(1)
        # in numbers and not in bools: eager attention adds its mask
        hidden = torch.zeros(len(places), 1, 1, self.cache.columns, dtype=self.model.dtype, device=places.device)
        hidden.masked_fill_((self._columns > places)[:, None, None, :], torch.finfo(self.model.dtype).min)
        out = self.model(
            input_ids=self._tokens, attention_mask=hidden, position_ids=places, past_key_values=self.cache.cache, use_cache=True
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def _capture(self) -> None:
        """Runs the step a few times beside the main stream, then records it. Writing the same columns again changes nothing."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._run()
