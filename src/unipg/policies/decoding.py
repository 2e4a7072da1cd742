"""How tokens are drawn from a Hugging Face causal language model, with the sampler's own log-probabilities.

Continuous batching: a prompt is prefilled once for all rollouts of its group, rows that have ended leave the batch and the next prompts
take their slots, so that decode steps follow the sum of the lengths and not the longest rows. The distribution sampled from is exactly
softmax(logits / temperature), the one that log-probabilities are taken of; there is no top-k or top-p here, because then the two would
differ. The caches are in `slots.py` and `fixed.py`; which of them a model can be trusted with, its proof says (`proof.py`).
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from unipg.errors import InputError, Interrupted
from unipg.policies import packing, proof
from unipg.policies.fixed import FixedCache
from unipg.policies.proof import Proof
from unipg.policies.slots import ModelCache, NoCache, Prefill, RowCache, SlotCache, Start, joinable, last_logits, moves

REFILL_AT = 0.25
"""Waiting prompts are prefilled once this share of the slots is free: a prefill for few rows costs as much overhead as for many."""
COMPACT_BELOW = 0.9
"""Ended rows are dropped once fewer than this share is alive: moving rows in the cache costs too."""
SHARED_QUERY, SHARED_ROW, SHARED_STEP = 0.2, 4, 768
"""What a decode step costs with shared prompts, in tokens that one row looks at: L · (1 + SHARED_QUERY · G) for a prompt of L tokens with G
rows, where they cost L · G one by one; SHARED_ROW for each row and SHARED_STEP once. Measured on one thread at a width of 256."""

Decoding = Literal["auto", "growing", "shared", "fixed", "whole"]
OnStop = Callable[[int, list[int]], "list[int] | None"]


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    tokens: list[int]
    """With the end-of-sequence token where it ended by itself, and with the tokens of the environment where it was continued."""
    log_probs: list[float]
    """log pi(token), as sampled; zeros for greedy decoding and for tokens of the environment."""
    ended: bool
    """Whether it ended by itself; otherwise a limit stopped it."""
    chosen: list[bool]
    """Which tokens the policy chose; the others came from the environment."""


@dataclass
class _Row:
    """A request while it is being decoded."""

    request: int
    prompt: int
    """Number of prompt tokens."""
    home: int
    """Which prompt it is, counted over all that were prefilled."""
    limit: int
    """Most tokens that the policy may choose."""
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    sampled: int = 0
    """Tokens that the policy chose."""
    forced: deque[int] = field(default_factory=deque)
    """Environment tokens that are still to be fed."""

    def append(self, token: int, log_prob: float, chosen: bool) -> None:
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.chosen.append(chosen)
        self.sampled += chosen


class ContinuousBatch:
    """Slots in which rows are decoded together, each at its own length; free slots are refilled from a queue of prompts.

    `batch_rows`: number of slots. A row finishes after an end token, after `max_new_tokens` tokens of the policy (or a limit of its own,
    see `add`), or when prompt and completion together have `max_total_tokens`. With `on_stop(request, tokens so far)`, a row that chose an
    end token finishes only if the answer is None; a list holds environment tokens: they are fed, and the policy goes on in the same batch.
    Where the limits leave no room for them and another token of the policy, the row finishes without them and counts as not ended.

    Models whose cache is not a plain DynamicCache (sliding windows, recurrent states), or that take no `position_ids`, get no refill:
    their slots are filled again when all of them are free.

    `decoding`: `growing` caches hold as many columns as the longest live row has tokens; `shared` ones hold a prompt once for all of its
    rows, and of each row what came after it (`slots.py`); `fixed` ones hold all that any row may need, and a GPU replays each step as one
    graph (`fixed.py`); `whole` has no cache and runs the rows anew at every step. `auto` is fixed on a GPU, without `on_stop`; on a CPU it
    is shared where the prompts that wait at the first step are long enough, and have enough rows each, to make steps faster. Fixed needs
    `max_total_tokens` where there is an `on_stop`, shared a model that runs packed (`packing.py`). What cannot be fixed or shared is
    growing, and what a model's proof does not allow gives way in the same order; `whole` is always right.

    Rows end where the model's proof ends, too: at the original context of rotary embeddings that would change beyond it.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_new_tokens: int,
        end_tokens: Iterable[int],
        pad_token: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        greedy: bool = False,
        batch_rows: int = 256,
        max_total_tokens: int | None = None,
        on_stop: OnStop | None = None,
        decoding: Decoding = "auto",
        proven: Proof | None = None,
    ) -> None:
        """`proven`: what is known of the model; default: its proof."""
        if batch_rows < 1 or max_new_tokens < 1:
            raise InputError(f"batch_rows is {batch_rows} and max_new_tokens {max_new_tokens}; accepted: 1 or more")
        self.model = model
        self.max_new_tokens, self.max_total_tokens = max_new_tokens, max_total_tokens
        self.end_tokens = frozenset(end_tokens)
        # never looked at, but some tokenizers pad with a token that the model does not have
        self.pad_token = pad_token if pad_token < model.get_input_embeddings().weight.shape[0] else 0
        self.temperature, self.generator, self.greedy = temperature, generator, greedy
        self.batch_rows, self.on_stop = batch_rows, on_stop
        base = proof.bare(model)
        parameters = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self.proven = proven = proof_of(model) if proven is None else proven
        if (longest := proven.longest(base.config)) is not None:
            self.max_total_tokens = min(longest, longest if max_total_tokens is None else max_total_tokens)
        # whatever `max_total_tokens` allows is held, so rows that may be lengthened are fixed only on request
        fixed = on_stop is None if decoding == "auto" and model.device.type == "cuda" else decoding == "fixed"
        self._fixed = fixed and (on_stop is None or max_total_tokens is not None) and proven.allows("fixed")
        self._whole = decoding == "whole" or not proven.allows("growing")
        # None: by the rule, as soon as there are prompts
        self._shared = None if decoding == "auto" and model.device.type == "cpu" else decoding == "shared"
        self._shared = proven.allows("shared") and base.config._attn_implementation == packing.ATTENTION and self._shared
        self.steps = 0  # forward passes so far, one after the other: prefills and decode steps
        self._waiting: deque[tuple[list[int], list[int], int]] = deque()  # prompts, each with its requests and their limit
        self._prefilled: deque[tuple[_Row, int]] = deque()  # rows that have not started, each with its prompt's place in the prefill
        self._prefill: Prefill | None = None
        self._queued = 0  # rows that have not started
        self._rows: list[_Row | None] = []  # by slot
        self._live = 0
        self._tokens = self._index([])  # [slots] to be fed next
        self._cache: RowCache | None = None
        self._finished: dict[int, Completion] = {}
        self._homes = 0  # prompts prefilled so far

    def add(self, prompt: Sequence[int], requests: Iterable[int], limit: int | None = None) -> None:
        """Queues one row for each of `requests`, numbers of the caller's choice; the prompt is prefilled once for every
        `batch_rows` of them. `limit`: most tokens that the policy chooses in these rows; default: `max_new_tokens`.

        Raises InputError for an empty prompt, one that leaves no room under `max_total_tokens`, and a limit below 1.
        """
        limit = self.max_new_tokens if limit is None else limit
        if limit < 1:
            raise InputError(f"the limit of a row is {limit} new tokens; accepted: 1 or more")
        if not len(prompt) or (self.max_total_tokens is not None and len(prompt) >= self.max_total_tokens):
            raise InputError(f"a prompt has {len(prompt)} tokens; accepted: 1 or more, and fewer than max_total_tokens")
        numbers = list(requests)
        self._queued += len(numbers)
        for start in range(0, len(numbers), self.batch_rows):
            self._waiting.append((list(prompt), numbers[start : start + self.batch_rows], limit))

    @property
    def busy(self) -> bool:
        """Whether any row is waiting or being decoded."""
        return bool(self._live or self._queued)

    @torch.no_grad()
    def step(self) -> dict[int, Completion]:
        """Starts waiting rows where that pays, then decodes one token of every row. Gives the completions that finished, by request."""
        while self._worth_refilling():
            self._refill()
        if self._live:
            assert self._cache is not None
            if self._live < COMPACT_BELOW * len(self._rows) and self._cache.moves:
                self._compact()
            self._tokens = self._draw(range(len(self._rows)), self._forward())
        finished, self._finished = self._finished, {}
        return finished

    def run(self, should_stop: Callable[[], bool] = bool, progress: Callable[[float], None] | None = None) -> dict[int, Completion]:
        """Steps until nothing is left; the completions by request. `progress` is told the finished share.

        Raises Interrupted when `should_stop` answers true between steps.
        """
        total = self._live + self._queued
        finished: dict[int, Completion] = {}
        while self.busy:
            if should_stop():
                raise Interrupted
            done = self.step()
            finished.update(done)
            if done and progress is not None:
                progress(len(finished) / total)
        return finished

    @property
    def _can_refill(self) -> bool:
        return self._queued > 0 and (self._live == 0 or (self._cache is not None and self._cache.joins))

    def _worth_refilling(self) -> bool:
        wanted = 0 if self._live == 0 else min(math.ceil(REFILL_AT * self.batch_rows), self._queued)
        return self._can_refill and self.batch_rows - self._live >= wanted

    def _refill(self) -> None:
        """Gives free slots to prefilled rows, and samples their first tokens."""
        if not self._prefilled:
            self._prefill_next()
        assert self._prefill is not None
        if self._cache is None:
            self._cache = self._fitting(self._prefill.cache)
        if self._live == 0:
            self._rows = [] if self._cache.moves else [None] * self.batch_rows
            self._tokens = self._index([0] * len(self._rows))
        before = self._fed()
        starting = [self._prefilled.popleft() for _ in range(min(self.batch_rows - self._live, len(self._prefilled)))]
        grown = max(0, self._live + len(starting) - len(self._rows))
        self._rows += [None] * grown
        self._tokens = torch.cat([self._tokens, self._tokens.new_zeros(grown)])
        slots = [slot for slot, row in enumerate(self._rows) if row is None][: len(starting)]
        for slot, (row, _) in zip(slots, starting, strict=True):
            self._rows[slot] = row
        self._live += len(slots)
        self._queued -= len(slots)
        where, source = self._index(slots), self._index([place for _, place in starting])
        begins = [Start(row.home, row.prompt, self._longest(row)) for row, _ in starting]
        self._cache.start(self._prefill, source, where, len(self._rows), before, begins)
        self._tokens[where] = self._draw(slots, self._prefill.logits[source])
        if not self._prefilled:
            self._prefill = None

    def _fitting(self, cache: Any) -> RowCache:
        """The cache for all rows to come, by what the first prompts left in the model's own."""
        if cache is None:
            return NoCache()
        if not (self._takes_positions and joinable(cache)):
            return ModelCache(self._takes_positions)
        if self._fixed:
            self.batch_rows = min(self.batch_rows, self._queued)
            return FixedCache(cache, self.batch_rows, max(self._longest(row) for row, _ in self._prefilled))
        return SlotCache(self._takes_positions, bool(self._shared))

    def _prefill_next(self) -> None:
        """One forward over the next prompts whose rows fit into the free slots; at least one prompt."""
        if self._cache is None and self._shared is None:
            self._shared = self._worth_sharing()
        prompts: list[list[int]] = []
        room = self.batch_rows - self._live
        while self._waiting:
            prompt, requests, limit = self._waiting[0]
            # without position ids, padding would shift positions
            alike = self._takes_positions or not prompts or len(prompt) == len(prompts[0])
            if prompts and (len(requests) > room or not alike):
                break
            self._waiting.popleft()
            self._prefilled.extend((_Row(request, len(prompt), self._homes, limit), len(prompts)) for request in requests)
            self._homes += 1
            prompts.append(prompt)
            room -= len(requests)
        self.steps += 1
        if self._whole:
            self._prefill = Prefill(prompts, last_logits(self.model, prompts), None)
            return
        width = max(len(p) for p in prompts)
        tokens = self._index([[self.pad_token] * (width - len(p)) + p for p in prompts])
        mask = self._index([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        padded = any(len(p) < width for p in prompts)
        options: dict[str, Any] = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if self._takes_positions else {}
        out = self.model(input_ids=tokens, attention_mask=mask if padded else None, use_cache=True, logits_to_keep=1, **options)
        self._prefill = Prefill(prompts, out.logits[:, -1], out.past_key_values)

    def _forward(self) -> Tensor:
        """Feeds every slot its token. Logits [slots,V] of the next one."""
        assert self._cache is not None
        self.steps += 1
        return self._cache.step(self.model, self._tokens, self._fed())

    def _draw(self, slots: Sequence[int], logits: Tensor) -> Tensor:
        """Tokens [N] for `slots` from logits [N,V]: forced where the environment has spoken, sampled elsewhere. Retires finished rows."""
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        if self.greedy:
            tokens = scores.argmax(-1)
            log_probs = [0.0] * len(slots)
        else:
            log_p = torch.log_softmax(scores, -1)
            # argmax(log p − log E) with E ~ Exp(1) is a draw from p
            noise = torch.empty_like(log_p).exponential_(generator=self.generator)
            tokens = (log_p - noise.log()).argmax(-1)
            log_probs = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
        forced: dict[int, int] = {}
        for i, (slot, token, log_prob) in enumerate(zip(slots, tokens.tolist(), log_probs, strict=True)):
            row = self._rows[slot]
            if row is None:
                continue
            if row.forced:
                forced[i] = row.forced.popleft()
                row.append(forced[i], 0.0, False)
                continue
            row.append(token, log_prob, True)
            if token in self.end_tokens:
                ended = self._stops(row)
            elif row.sampled == row.limit or row.prompt + len(row.tokens) == self.max_total_tokens:
                ended = False
            else:
                continue
            if ended is not None:
                self._finished[row.request] = Completion(row.tokens, row.log_probs, ended, row.chosen)
                self._rows[slot] = None
                self._live -= 1
        if forced:
            tokens[self._index(list(forced))] = self._index(list(forced.values()))
        return tokens

    def _stops(self, row: _Row) -> bool | None:
        """After an end token: True if the row ended by itself, False if a limit keeps it from going on, None if it goes on."""
        more = None if self.on_stop is None else self.on_stop(row.request, list(row.tokens))
        if more is None:
            return True
        total = row.prompt + len(row.tokens) + len(more)
        if row.sampled == row.limit or (self.max_total_tokens is not None and total >= self.max_total_tokens):
            return False
        row.forced.extend(more)
        return None

    def _compact(self) -> None:
        """Moves the last live rows into free slots before them, and drops the slots after."""
        assert self._cache is not None
        count = self._live
        moved, free = moves([row is not None for row in self._rows])
        source, target = self._index(moved), self._index(free)
        self._cache.move(source, target, count, self._fed())
        for old, new in zip(moved, free, strict=True):
            self._rows[new] = self._rows[old]
        del self._rows[count:]
        self._tokens[target] = self._tokens[source]
        self._tokens = self._tokens[:count]

    def _worth_sharing(self) -> bool:
        """Whether decoding what waits is faster with shared prompts: they are long enough, and enough rows have the same."""
        rows = [len(requests) for _, requests, _ in self._waiting]
        length = sum(len(prompt) for prompt, _, _ in self._waiting) / len(rows)
        # a prompt with few rows costs as much as one with many
        saved = length * (sum(rows) - len(rows) * (1 + SHARED_QUERY * max(rows))) - SHARED_ROW * sum(rows)
        return saved * min(1, self.batch_rows / sum(rows)) > SHARED_STEP

    def _longest(self, row: _Row) -> int:
        """The most tokens, prompt and all, that a row may come to."""
        limit = row.prompt + row.limit if self.on_stop is None else self.max_total_tokens
        if limit is None or self.max_total_tokens is None:
            return limit or 0  # only a cache of fixed shape asks, and has a limit
        return min(limit, self.max_total_tokens)

    def _fed(self) -> list[int]:
        """Tokens of each slot's row that the model has seen, all but its last one; 0 for free slots."""
        return [0 if row is None else row.prompt + len(row.tokens) - 1 for row in self._rows]

    def _index(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)


def proof_of(model: Any) -> Proof:
    """The model's proof (`proof.prove`), its ways of decoding tried by the engine above."""
    return proof.prove(model, _decoded)


def _decoded(model: Any, decoding: str, prompts: Sequence[Sequence[int]]) -> list[list[tuple[list[int], list[float]]]]:
    """Answers to prompts, four rows each, from few slots; with the log-probabilities as sampled."""
    batch = ContinuousBatch(
        model,
        max_new_tokens=proof.ANSWER,
        end_tokens=(1,),
        pad_token=0,
        generator=torch.Generator(model.device).manual_seed(3),
        batch_rows=7,
        decoding=decoding,  # type: ignore[arg-type]
        proven=proof.TRUSTED,
    )
    for i, prompt in enumerate(prompts):
        batch.add(prompt, range(4 * i, 4 * i + 4))
    done = batch.run()
    return [[(done[i].tokens, done[i].log_probs) for i in range(4 * p, 4 * p + 4)] for p in range(len(prompts))]
