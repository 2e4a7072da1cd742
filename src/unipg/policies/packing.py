"""Padding removed and prompts shared: a batch as one stream of tokens, in which each row attends to what it may see.

    padded            [B,T], one row each
    packed            the rows end to end; nothing is spent on padding outside attention
    packed, shared    the prompt of a group once, and its answers as branches that attend to it

Everything but attention works on single tokens, so it runs on the stream as it stands. Attention takes the stream apart into few small
padded batches of rows of similar length and puts the result together again; a branch's keys are its prompt's and its own. On a GPU,
FlexAttention does the same in one kernel whose mask says who sees whom, where a trial shows that it can. The gradient is that of the
padded batch.
"""

from __future__ import annotations

import functools
import heapq
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unipg.trajectories import Trajectories

ATTENTION = "sdpa_branches"
"""Name under which the attention below is registered with transformers: plain SDPA where no layout is given."""
SIMILAR = 0.5
"""Shortest row, as a share of the longest, in one padded batch of attention."""
FEWEST = 2
"""Rows of a padded batch of attention before a shorter row starts another."""


@dataclass(frozen=True)
class Bucket:
    """Rows of similar length that attend together: `S` rows of at most `Q` tokens."""

    query: Tensor
    """[S·Q] places in the stream; 0 for padding."""
    key: Tensor
    """[S·K] places in the stream: a shared prompt's, then the row's own."""
    rows: int
    mask: Tensor | None
    """[S,1,Q,K] bool, 1 where a token may look; None for causal attention of a row to itself."""


@dataclass(frozen=True)
class Layout:
    """Where every token of a batch lies in the stream of `N` tokens. The last token of each row predicts nothing and is left out."""

    tokens: Tensor
    """[1,N] token ids."""
    positions: Tensor
    """[1,N] position of each token in its row."""
    buckets: tuple[Bucket, ...]
    back: Tensor
    """[N] place of each token among the buckets' outputs, end to end."""
    predictor: Tensor
    """[M] place in the stream of the token before each of the policy's M tokens, row by row."""
    padded: int
    """Tokens that the padded batch has: B · (T − 1)."""
    lengths: Tensor
    """[S] tokens of each segment of the stream: shared prompts, then what each row has of its own."""
    above: Tensor
    """[S] the segment of the prompt that a segment attends to beside itself; −1 for none."""

    @cached_property
    def block_mask(self) -> Any:
        """FlexAttention's: a token sees its own segment up to itself, and the prompt above it."""
        from torch.nn.attention.flex_attention import create_block_mask

        segment = torch.repeat_interleave(torch.arange(len(self.lengths), device=self.lengths.device), self.lengths)
        above = self.above[segment]

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return ((segment[q] == segment[k]) & (k <= q)) | (segment[k] == above[q])

        create = _compiled(create_block_mask) if self.lengths.is_cuda else create_block_mask
        return create(visible, None, None, len(self), len(self), device=self.lengths.device)

    def __len__(self) -> int:
        return self.tokens.shape[1]


def shared_prefixes(batch: Trajectories) -> Tensor:
    """[B] how many leading tokens of each row are the same in its whole group, before anyone's policy acts; 0 in a group of one."""
    assert batch.group is not None
    assert batch.present is not None
    columns = batch.mask.shape[1]
    order = torch.argsort(batch.group, stable=True)
    groups, unit, counts = batch.group.unique(return_inverse=True, return_counts=True)
    first = order[torch.cumsum(counts, 0) - counts][unit]
    steps = torch.arange(columns, device=batch.mask.device)
    acts = torch.where(batch.mask, steps, columns).amin(1)
    differs = (batch.action != batch.action[first]) | ~batch.present | ~batch.present[first]
    same = torch.where(differs, steps, columns).amin(1)
    # a row's last token is never fed, so it cannot be shared
    common = torch.minimum(torch.minimum(acts, same), batch.present.sum(1) - 1).clamp_min(0)
    least = common.new_full((len(groups),), columns).scatter_reduce(0, unit, common, "amin")
    return torch.where(counts[unit] > 1, least[unit], 0)


def layout_of(batch: Trajectories, prefix: Tensor) -> Layout:
    """The stream of a batch. `prefix` [B]: leading tokens that each row shares with its group (`shared_prefixes`); 0 for none."""
    assert batch.group is not None
    assert batch.present is not None
    device, columns = batch.mask.device, batch.mask.shape[1]
    length = (batch.present.sum(1) - 1).clamp_min(0)
    steps = torch.arange(columns, device=device)
    groups, unit = batch.group.unique(return_inverse=True)
    owner = torch.full((len(groups),), -1, device=device).scatter(0, unit, torch.arange(len(batch), device=device))
    trunk_length = torch.zeros(len(groups), dtype=torch.long, device=device).scatter(0, unit, prefix)
    # segments: the shared prompt of each group, then each row from where its own tokens begin
    lengths = torch.cat([trunk_length, length - prefix])
    starts = torch.cumsum(lengths, 0) - lengths
    trunk_start, row_start = starts[: len(groups)], starts[len(groups) :]
    trunk_cells = steps < trunk_length.unsqueeze(1)
    row_cells = (steps >= prefix.unsqueeze(1)) & (steps < length.unsqueeze(1))
    tokens = torch.cat([batch.action[owner][trunk_cells], batch.action[row_cells]])
    positions = torch.cat([steps.expand(len(groups), -1)[trunk_cells], steps.expand(len(batch), -1)[row_cells]])
    row, before = batch.mask[:, 1:].nonzero(as_tuple=True)
    inside = before < prefix[row]
    predictor = torch.where(inside, trunk_start[unit[row]] + before, row_start[row] + before - prefix[row])
    branches = torch.cat([torch.zeros_like(trunk_length), prefix])
    origin = torch.cat([trunk_start, trunk_start[unit]])
    buckets, back = _buckets(starts, lengths, branches, origin, int(lengths.sum()))
    above = torch.cat([torch.full_like(trunk_length, -1), torch.where(prefix > 0, unit, -1)])
    padded = len(batch) * max(0, columns - 1)
    return Layout(tokens.unsqueeze(0), positions.unsqueeze(0), buckets, back, predictor, padded, lengths, above)


def _buckets(starts: Tensor, lengths: Tensor, prefix: Tensor, origin: Tensor, total: int) -> tuple[tuple[Bucket, ...], Tensor]:
    """Segments `[S]` by kind and length, and where each of the `total` tokens comes out."""
    device = starts.device
    back = torch.zeros(total, dtype=torch.long, device=device)
    buckets: list[Bucket] = []
    done = 0
    order = torch.argsort(lengths, descending=True, stable=True)
    for branch in (False, True):
        chosen = order[(lengths[order] > 0) & ((prefix[order] > 0) == branch)]
        sizes = lengths[chosen].tolist()
        begin = 0
        while begin < len(sizes):
            end = begin + 1
            while end < len(sizes) and (end - begin < FEWEST or sizes[end] >= SIMILAR * sizes[begin]):
                end += 1
            rows, most = chosen[begin:end], sizes[begin]
            steps = torch.arange(most, device=device)
            real = steps < lengths[rows].unsqueeze(1)
            own = torch.where(real, starts[rows].unsqueeze(1) + steps, 0)
            key, mask = own, None
            if branch:
                deep = int(prefix[rows].max())
                above = torch.arange(deep, device=device)
                seen = above < prefix[rows].unsqueeze(1)
                key = torch.cat([torch.where(seen, origin[rows].unsqueeze(1) + above, 0), own], 1)
                causal = (steps <= steps.unsqueeze(1)).expand(len(rows), -1, -1)
                mask = torch.cat([seen.unsqueeze(1).expand(-1, most, -1), causal], 2).unsqueeze(1)
            buckets.append(Bucket(own.reshape(-1), key.reshape(-1), len(rows), mask))
            back[own[real]] = (done + torch.arange(own.numel(), device=device).reshape(own.shape))[real]
            done += own.numel()
            begin = end
    return tuple(buckets), back


OVERHEAD, SHARED_OVERHEAD, BRANCH_ATTENTION = 1.05, 1.08, 0.7
"""What a token of a stream costs beside one of a padded batch, without and with shared prompts; and what a pair of tokens costs in the
attention of branches, beside one in causal attention. Measured; see docs/speed.md."""


def plan(batch: Trajectories, hidden_size: int) -> Layout | None:
    """The cheapest way to run a batch: None for padded, otherwise the stream, with prompts shared where that pays.

    Costs in units of one token through the layers: attention adds (tokens looked at) / (6 · hidden size), half of it where it is causal.
    """
    assert batch.present is not None
    length = (batch.present.sum(1) - 1).clamp_min(0).double()
    pair = 1 / (6 * hidden_size)
    width = batch.mask.shape[1] - 1
    padded = len(batch) * width * (1 + width * pair / 2)
    packed = float((length * (OVERHEAD + length * pair / 2)).sum())
    prefix = shared_prefixes(batch)
    if bool(prefix.any()):
        assert batch.group is not None
        _, unit = batch.group.unique(return_inverse=True)
        trunks = torch.zeros(len(batch), dtype=torch.double, device=unit.device).scatter(0, unit, prefix.double())
        own = length - prefix
        looked = (own * length * pair * torch.where(prefix > 0, BRANCH_ATTENTION, 0.5)).sum() + (trunks**2).sum() * pair / 2
        shared = float((trunks.sum() + own.sum()) * SHARED_OVERHEAD + looked)
        if shared < min(padded, packed):
            return layout_of(batch, prefix)
    return layout_of(batch, torch.zeros_like(prefix)) if packed < padded else None


@dataclass(frozen=True)
class Prompts:
    """Keys and values of prompts, once each, for R rows that are decoded and whose own cache begins after the prompt."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Of each layer, keys and values [P,heads,K,d], padded on the left."""
    hidden: Tensor | None
    """[P,1,1,K] bool, True for padding; None where there is none."""
    rows: Tensor
    """[P·G] the rows of each prompt, G places each; 0 for no row."""
    places: Tensor
    """[R] where each row is among them."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
        """[R,1,heads,d] from the query [R,heads,1,d] of each row's next token: softmax over its prompt and its own W tokens together.

        `mask` [R,1,1,W] bool: True for what a row sees of its own. The rows of a prompt go through it as one matrix.
        """
        prompt_key, prompt_value = self.layers[layer]
        wide = torch.promote_types(query.dtype, torch.float32)  # as SDPA accumulates
        heads, count, own_heads = query.shape[1], len(prompt_key), key.shape[1]

        def by_prompt(x: Tensor) -> Tensor:
            return x.index_select(0, self.rows).unflatten(0, (count, -1)).transpose(1, 2).flatten(2, 3)

        def by_row(x: Tensor) -> Tensor:
            return x.unflatten(2, (-1, heads // own_heads)).transpose(1, 2).flatten(0, 1).index_select(0, self.places)

        scaled = query.to(wide) * (query.shape[3] ** -0.5 if scaling is None else scaling)
        scaled = scaled.reshape(len(query), own_heads, -1, query.shape[3])
        above = by_prompt(scaled) @ prompt_key.to(wide).mT
        if self.hidden is not None:
            above.masked_fill_(self.hidden, -torch.inf)
        own = scaled @ key.to(wide).mT
        if mask is not None:
            own.masked_fill_(~mask, -torch.inf)
        weight = torch.cat([by_row(above), own], -1).softmax(-1)
        above, own = weight.split([prompt_key.shape[2], key.shape[2]], -1)
        out = by_row(by_prompt(above) @ prompt_value.to(wide)) + own @ value.to(wide)
        return out.reshape(len(query), 1, heads, -1).to(query.dtype)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    flex: bool = False,
    prompts: Prompts | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' interface: `[1,heads,N,d]` in, `[1,N,heads,d]` out, along `layout`; plain SDPA without one.

    `flex`: by FlexAttention, which has no dropout, and on a CPU no gradient. `prompts`: a decode step of rows that share them.
    """
    if prompts is not None:
        return prompts.attend(module.layer_idx, query, key, value, attention_mask, scaling), None
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return plain
    repeats = query.shape[1] // key.shape[1]
    if flex and not dropout:
        from torch.nn.attention.flex_attention import flex_attention

        attention = _compiled(flex_attention) if query.is_cuda else flex_attention
        return attention(query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=repeats > 1).transpose(1, 2), None
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    found = []
    for bucket in layout.buckets:
        rows = bucket.rows

        def padded(stream: Tensor, places: Tensor, rows: int = rows) -> Tensor:
            return stream.index_select(0, places).unflatten(0, (rows, -1)).transpose(1, 2)

        keys, values = padded(k, bucket.key), padded(v, bucket.key)
        if repeats > 1:
            keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
        out = torch.nn.functional.scaled_dot_product_attention(
            padded(q, bucket.query), keys, values, bucket.mask, dropout, is_causal=bucket.mask is None, scale=scaling
        )
        found.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, layout.back).unsqueeze(0), None


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


def run(trunk: Any, layout: Layout, flex: bool = False) -> Tensor:
    """[N,H] last hidden states of the stream; `flex`: attention by FlexAttention."""
    anything = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=layout.tokens.device)  # stops the model from building a mask of its own
    out = trunk(input_ids=layout.tokens, position_ids=layout.positions, attention_mask=anything, use_cache=False, layout=layout, flex=flex)
    states: Tensor = out.last_hidden_state[0]
    return states


def register() -> None:
    """Makes the attention above known to transformers by its name; once in each process."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def enable(trunk: Any) -> None:
    """Switches a model that uses SDPA to the attention above. Whether it then runs packed, its proof says (`proof.py`)."""
    register()
    trunk.config._attn_implementation = ATTENTION


def disable(trunk: Any) -> None:
    """Back to SDPA."""
    trunk.config._attn_implementation = "sdpa"


def flexible(trunk: Any) -> bool:
    """Whether FlexAttention gives a model that runs packed the same states and gradients as SDPA: tried on a few tokens, on a GPU alone."""
    first = next(trunk.parameters())
    if first.device.type != "cuda":
        return False
    layout = layout_of(probe := _probe(trunk), shared_prefixes(probe))
    was_training = trunk.training
    trunk.eval()
    found = []
    try:
        for flex in (False, True):
            states = run(trunk, layout, flex)
            embedding = trunk.get_input_embeddings().weight
            found += (
                [states.detach(), torch.autograd.grad(states.float().square().mean(), embedding)[0]] if first.requires_grad else [states]
            )
        half = len(found) // 2
        works = all(_alike(a, b) for a, b in zip(found[:half], found[half:], strict=True))
    except Exception:  # whatever a compiler says, there is another way
        works = False
    trunk.train(was_training)
    return works


def _alike(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 3e-2
    return bool(torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance * float(one.float().abs().max())))


def _probe(trunk: Any) -> Trajectories:
    """Three rows of two prompts, one of them shared; longer than a block of FlexAttention."""
    device, vocabulary = next(trunk.parameters()).device, trunk.get_input_embeddings().weight.shape[0]
    action = (torch.arange(600, device=device).reshape(3, 200) * 7 + 1) % vocabulary
    action[1, :90] = action[0, :90]
    present = torch.arange(200, device=device) < torch.tensor([[200], [170], [60]], device=device)
    mask = present & (torch.arange(200, device=device) >= 90)
    mask[2, 30:60] = True
    return Trajectories(action=action, mask=mask, present=present, group=torch.tensor([0, 0, 1], device=device))


def balanced(costs: list[int], budget: int) -> list[list[int]]:
    """Indices in as few bins as the budget allows, of nearly equal cost: the costliest first, each into the emptiest bin that has room."""
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    count = max(1, -(-sum(costs) // budget))
    while True:
        bins: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, number) for number in range(count)]
        for index in order:
            load, number = heapq.heappop(loads)
            if bins[number] and load + costs[index] > budget:
                break
            bins[number].append(index)
            heapq.heappush(loads, (load + costs[index], number))
        else:
            return [sorted(chosen) for chosen in bins if chosen]
        count += 1
