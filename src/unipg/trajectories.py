"""The one carrier: what was done, how likely it was, how it was rewarded.

Belongs here: the fields every method shares and the row operations on them (select, join, pad, move). Does not belong here: how a
trajectory is drawn (`rollouts/`), scored (`tasks/`) or turned into a gradient (`estimator/`).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unipg.errors import InputError, nearest


class Source(enum.IntEnum):
    """Where a row comes from. What makes SFT differ from REINFORCE with advantage 1 is only this."""

    ROLLOUT = 0
    DEMONSTRATION = 1
    PREFERENCE = 2
    """A given completion with a score: one of a pair, one that was liked or not, one of several."""
    REPLAY = 3
    MISMATCHED = 4
    """The completion of another prompt: only how likely the policy finds it is of interest."""


@dataclass
class Trajectories:
    """A batch of `B` trajectories of at most `T` tokens or steps, padded on the right.

    Language: `action` holds prompt, answer and (in several turns) environment tokens in order; `mask` is 1 on the tokens the policy
    chose. Control: `observation [B,T,…]` and `action [B,T,…]` per step. Everything here is detached; the graph lives in `Evaluation`.

    Shapes: `[B,T]` per token or step, `[B]` per row. Entries where `mask` is 0 may hold anything, NaN included.
    """

    action: Tensor
    """[B,T] token ids or discrete actions (int64), or [B,T,A] continuous actions."""
    mask: Tensor
    """[B,T] bool: 1 where the policy chose the action."""
    present: Tensor | None = None
    """[B,T] bool: 1 where there is anything at all (prompt, answer, environment); 0 is padding. Default: all 1."""
    observation: Tensor | None = None
    """[B,T,…] what a control policy saw before each step; language policies read `action` itself."""
    next_observation: Tensor | None = None
    """[B,T,…] what followed each step, of kept transitions: the true final observation where the episode ended, also by a limit."""
    group: Tensor | None = None
    """[B] int64: which prompt or start state the row answers. Default: each row its own group."""
    source: Tensor | None = None
    """[B] int64: a `Source`. Default: all rollouts."""
    reward: Tensor | None = None
    """[B] outcome of the whole trajectory, earned at its last policy step."""
    step_reward: Tensor | None = None
    """[B,T] reward after each step (control; penalties put in the reward)."""
    terminated: Tensor | None = None
    """[B,T] bool: the episode ended after this step (end of sequence); nothing follows."""
    truncated: Tensor | None = None
    """[B,T] bool: a limit stopped it after this step; `bootstrap_value` says what would have followed. A row that ends with neither
    flag is cut by the window and goes on elsewhere."""
    behaviour_log_prob: Tensor | None = None
    """[B,T] log-probability under the policy that sampled, as the sampler recorded it."""
    episode: Tensor | None = None
    """[B,T] int64: which episode each step is of, where rows are kept transitions or windows of several."""
    old_log_prob: Tensor | None = None
    """[B,T] log-probability under the policy as it was when this batch was assembled, taken by the training network."""
    anchor_log_prob: Tensor | None = None
    """[B,T] log-probability under the policy a KL is measured against."""
    old_entropy: Tensor | None = None
    """[B,T] entropy over the full vocabulary of the distribution each action was drawn from, in nats, under the same policy."""
    value: Tensor | None = None
    """[B,T] the critic's value before each step, when the batch was assembled."""
    bootstrap_value: Tensor | None = None
    """[B,T] the critic's value of the state after a step at which the trajectory is truncated or cut by the window."""
    planned: dict[str, Tensor] = field(default_factory=dict)
    """What planning adds, by name: [B], [B,T] … (`<term>/advantage`, `<term>/weight`, gate weights)."""
    annotations: dict[str, list[Any]] = field(default_factory=dict)
    """Free-form facts per row that advantages and reports read (extracted answers, strata, tool calls)."""

    def __post_init__(self) -> None:
        self.mask = _tensor_of("mask", self.mask)
        self.action = _tensor_of("action", self.action)
        if self.mask.ndim != 2:
            raise InputError(f"mask is {list(self.mask.shape)}; accepted: [B,T]")
        rows, steps = self.mask.shape
        if self.action.shape[:2] != self.mask.shape:
            raise InputError(f"action is {list(self.action.shape)} but mask is {list(self.mask.shape)}; they must share [B,T]")
        device = self.mask.device
        if self.present is None:
            self.present = torch.ones(rows, steps, dtype=torch.bool, device=device)
        if self.group is None:
            self.group = torch.arange(rows, device=device)
        if self.source is None:
            self.source = torch.full((rows,), int(Source.ROLLOUT), device=device)
        self._check(_tensor_fields())

    def _check(self, names: Iterable[str]) -> None:
        """Takes lists and arrays as the tensors they stand for; refuses what has another shape or another kind of number."""
        shape = self.mask.shape
        for name in names:
            value = getattr(self, name)
            if value is None:
                continue
            tensor = _tensor_of(name, value, self.mask.device)
            want = shape[:1] if name in _ROW_FIELDS else shape
            if tensor.shape != want and (name not in _WIDE_FIELDS or tensor.shape[:2] != want):
                raise InputError(f"{name} is {list(tensor.shape)} but must {'start with' if name in _WIDE_FIELDS else 'be'} {list(want)}")
            if tensor is not value:
                setattr(self, name, tensor)

    def _with(self, changes: dict[str, Any]) -> Trajectories:
        """A shallow copy with some fields changed, not checked: checks cost a small controller's step a few percent."""
        changed = object.__new__(Trajectories)
        changed.__dict__ = self.__dict__ | changes
        if "mask" in changes or "source" in changes:
            changed.__dict__["_known"] = {}
        return changed

    def derived(self, key: object, tensors: Sequence[Tensor | None], find: Callable[[], Any]) -> Any:
        """What `find` makes of some fields, found once for as long as they are these tensors and nobody writes to them."""
        known = self.__dict__.setdefault("_known", {})
        some = [tensor for tensor in tensors if tensor is not None]
        # inference mode keeps no count of writes
        versions = None if any(tensor.is_inference() for tensor in some) else [tensor._version for tensor in some]
        of, at, value = known.get(key, ((), None, None))
        same = len(of) == len(tensors) and all(a is b for a, b in zip(of, tensors, strict=True))
        if not same or at is None or at != versions:
            value = find()
            known[key] = tuple(tensors), versions, value
        return value

    @property
    def full(self) -> bool:
        """Whether the policy chose at every step of every row."""
        full: bool = self.derived("full", (self.mask,), lambda: bool(self.mask.all()))
        return full

    @classmethod
    def tensor_fields(cls) -> list[str]:
        return list(_tensor_fields())

    def __len__(self) -> int:
        return self.mask.shape[0]

    def require(self, name: str, who: str) -> Tensor:
        """The field or planned tensor `name`, or an error that says who needed it."""
        tensor = self.planned.get(name) if name in self.planned else getattr(self, name, None)
        if tensor is None:
            have = [f for f in self.tensor_fields() if getattr(self, f) is not None] + list(self.planned)
            raise InputError(f"{who} needs the field '{name}', which this batch does not carry; {nearest(name, have)}")
        return tensor

    def rows_from(self, *sources: Source) -> Tensor:
        """[B] bool: the rows that come from any of `sources`."""
        assert self.source is not None
        source = self.source

        def find() -> Tensor:
            found = [source == int(wanted) for wanted in sources]
            return functools.reduce(torch.logical_or, found) if found else torch.zeros_like(source, dtype=torch.bool)

        rows: Tensor = self.derived(sources, (source,), find)
        return rows

    def total_reward(self) -> Tensor:
        """[B] outcome plus the sum of the step rewards over the policy's own steps."""
        if self.reward is None and self.step_reward is None:
            self.require("reward", "the advantage")
        total = torch.zeros(len(self), device=self.mask.device, dtype=_float_of(self.reward, self.step_reward))
        if self.reward is not None:
            total = total + self.reward
        if self.step_reward is not None:
            total = total + torch.where(self.mask, self.step_reward, 0).sum(1)
        return total

    def last_step(self) -> Tensor:
        """[B] index of the last policy step of each row (0 for a row without one)."""
        steps = torch.arange(self.mask.shape[1], device=self.mask.device)
        return torch.where(self.mask, steps, -1).amax(1).clamp_min(0)

    def _map(self, change: Callable[[Tensor], Tensor], annotations: Callable[[list[Any]], list[Any]] = list) -> Trajectories:
        values: dict[str, Any] = {n: None if (t := getattr(self, n)) is None else change(t) for n in _tensor_fields()}
        values["planned"] = {name: change(tensor) for name, tensor in self.planned.items()}
        return self._with(values | {"annotations": {k: annotations(v) for k, v in self.annotations.items()}})

    def select(self, rows: Tensor | Sequence[int]) -> Trajectories:
        """The given rows (int64 indices or a [B] bool mask), in that order."""
        index = torch.as_tensor(rows, device=self.mask.device)
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(-1)
        index = index.long()
        order = index.tolist() if self.annotations else []
        return self._map(lambda t: t[index], lambda items: [items[i] for i in order])

    def cut(self, parts: int) -> list[Trajectories]:
        """The rows in their order in so many parts, the first ones a row longer where they do not come out even; views of this batch."""
        fields = {name: t.tensor_split(parts) for name in _tensor_fields() if (t := getattr(self, name)) is not None}
        planned = {name: t.tensor_split(parts) for name, t in self.planned.items()}
        found, start = [], 0
        for part, mask in enumerate(fields["mask"]):
            stop = start + len(mask)
            changes: dict[str, Any] = {name: pieces[part] for name, pieces in fields.items()}
            changes["planned"] = {name: pieces[part] for name, pieces in planned.items()}
            changes["annotations"] = {name: items[start:stop] for name, items in self.annotations.items()}
            found.append(self._with(changes))
            start = stop
        return found

    def trim(self) -> Trajectories:
        """Without the columns that are padding in every row."""
        assert self.present is not None
        width = self.mask.shape[1]
        if width == 1:
            return self
        used = self.present.any(0).nonzero()
        steps = int(used.max()) + 1 if len(used) else 1
        if steps == width:
            return self
        return self._map(lambda t: t[:, :steps] if t.ndim > 1 and t.shape[1] == width else t)

    def to(self, device: torch.device | str) -> Trajectories:
        return self._map(lambda t: t.to(device))

    def replace(self, **changes: Any) -> Trajectories:
        """A shallow copy with some fields changed."""
        if not changes.keys() <= _DETAILS:
            return dataclasses.replace(self, **changes)
        changed = self._with(changes)
        changed._check(changes.keys() - _FREE)
        return changed

    def with_planned(self, **tensors: Tensor) -> Trajectories:
        """A shallow copy with more planned tensors; `__` in a keyword stands for `/`."""
        return self._with({"planned": {**self.planned, **{k.replace("__", "/"): v for k, v in tensors.items()}}})

    def as_steps(self) -> Trajectories:
        """Every policy step as a row of its own `[N,1]`: for policies without memory, whose steps may be shuffled and split freely.

        `[B]` fields are repeated for each of the row's steps; steps where `mask` is 0 are left out.
        """
        rows, steps = self.mask.shape
        keep = self.mask.reshape(-1)
        owner = torch.arange(rows, device=self.mask.device).repeat_interleave(steps)[keep]

        def flatten(tensor: Tensor) -> Tensor:
            if tensor.ndim > 1 and tensor.shape[1] == steps:
                return tensor.reshape(rows * steps, 1, *tensor.shape[2:])[keep]
            return tensor[owner]

        owners = owner.tolist() if self.annotations else []
        return self._map(flatten, lambda items: [items[i] for i in owners])

    def as_episodes(self) -> Trajectories:
        """Every episode as a row of its own: a row is cut after each step at which one ends, and steps where `mask` is 0 are left out.

        For policies without memory. `[B]` fields are repeated, but `reward`, which stays with a row's last episode, and `group`: episodes
        behind a row's first began somewhere else, so each is a group of its own. Rows without an end before their last step stay as they
        are.
        """
        ends = torch.zeros_like(self.mask)
        for flag in (self.terminated, self.truncated):
            ends = ends if flag is None else ends | (flag & self.mask)
        rows, steps = self.mask.shape
        keep = self.mask.reshape(-1)
        owner = torch.arange(rows, device=keep.device).repeat_interleave(steps)[keep]
        same = owner[1:] == owner[:-1]
        cut = ends.reshape(-1)[keep][:-1] & same
        if not bool(cut.any()):
            return self
        first = torch.cat([keep.new_ones(1), cut | ~same])
        starts = first.nonzero().squeeze(-1)
        unit = first.cumsum(0) - 1
        column = torch.arange(len(unit), device=keep.device) - starts[unit]
        count, width, owners = len(starts), int(column.max()) + 1, owner[starts]
        place = unit * width + column

        def gathered(tensor: Tensor) -> Tensor:
            if tensor.ndim < 2 or tensor.shape[1] != steps:
                return tensor[owners]
            flat = tensor.reshape(rows * steps, *tensor.shape[2:])[keep]
            return flat.new_zeros(count * width, *flat.shape[1:]).index_copy(0, place, flat).reshape(count, width, *flat.shape[1:])

        index = owners.tolist() if self.annotations else []
        found = self._map(gathered, lambda items: [items[i] for i in index])
        again = torch.cat([keep.new_zeros(1), owners[1:] == owners[:-1]])
        assert self.group is not None
        group = torch.where(again, self.group.max() + again.cumsum(0), self.group[owners])
        reward = None if found.reward is None else torch.where(torch.cat([again[1:], keep.new_zeros(1)]), 0, found.reward)
        return found._with({"group": group, "reward": reward, "present": found.mask})

    @staticmethod
    def join(batches: Iterable[Trajectories]) -> Trajectories:
        """Rows of several batches, padded to the longest. A field that some batches lack is filled with zeros for their rows."""
        parts = [b for b in batches if b is not None]
        if not parts:
            raise InputError("nothing to join: no trajectories were given")
        if len(parts) == 1:
            return parts[0]
        width = max(b.mask.shape[1] for b in parts)

        def pad(tensor: Tensor, steps: int) -> Tensor:
            if tensor.ndim < 2 or tensor.shape[1] != steps or steps == width:
                return tensor
            return torch.nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, width - steps))

        def column(tensors: list[Tensor | None]) -> Tensor | None:
            some = next((t for t in tensors if t is not None), None)
            if some is None:
                return None
            filled = []
            for batch, tensor in zip(parts, tensors, strict=True):
                steps = batch.mask.shape[1]
                if tensor is None:
                    per_step = some.ndim > 1
                    shape = (len(batch), width, *some.shape[2:]) if per_step else (len(batch),)
                    filled.append(torch.zeros(shape, dtype=some.dtype, device=some.device))
                else:
                    filled.append(pad(tensor, steps))
            return torch.cat(filled)

        values: dict[str, Any] = {n: column([getattr(b, n) for b in parts]) for n in Trajectories.tensor_fields()}
        names = dict.fromkeys(name for b in parts for name in b.planned)
        planned = {name: column([b.planned.get(name) for b in parts]) for name in names}
        keys = dict.fromkeys(key for b in parts for key in b.annotations)
        annotations = {key: [item for b in parts for item in b.annotations.get(key, [None] * len(b))] for key in keys}
        return Trajectories(**values, planned={k: v for k, v in planned.items() if v is not None}, annotations=annotations)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint; `Trajectories(**state)` restores it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


_ROW_FIELDS = frozenset({"group", "source", "reward"})
_WIDE_FIELDS = frozenset({"action", "observation", "next_observation"})
_FLAGS = frozenset({"mask", "present", "terminated", "truncated"})
_NUMBERS = frozenset({"group", "source", "episode"})
_REWARDS = frozenset({"reward", "step_reward"})
_FREE = frozenset({"planned", "annotations"})


@functools.cache
def _tensor_fields() -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(Trajectories) if f.name not in _FREE)


_DETAILS = frozenset({*_tensor_fields(), *_FREE}) - {"action", "mask", "present", "group", "source"}
"""Fields that may be exchanged by themselves: the others decide the shape, or have a default."""


def _tensor_of(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """A field's value as a tensor of its kind: flags as bool, rewards as floating-point numbers, groups and sources as whole ones."""
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value, device=device)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{name} is {_shortened(value)}; accepted: a tensor, or a list of numbers") from None
    if name in _FLAGS:
        return value if value.dtype == torch.bool else value.bool()
    if name in _NUMBERS and (value.dtype == torch.bool or value.is_floating_point() or value.is_complex()):
        raise InputError(f"{name} holds {str(value.dtype).removeprefix('torch.')}; accepted: whole numbers, one for each row")
    if name in _REWARDS and not value.is_floating_point():
        return value.to(torch.get_default_dtype())
    return value


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _float_of(*tensors: Tensor | None) -> torch.dtype:
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


@dataclass
class Evaluation:
    """What the current policy says of a batch: the only place where the graph lives."""

    log_prob: Tensor
    """[B,T] log-probability of each action, with the graph."""
    entropy: Tensor | None = None
    """[B,T] entropy of the distribution each action was drawn from, in nats."""
    value: Tensor | None = None
    """[B,T] the critic's value before each step."""
    read: dict[Any, dict[str, Tensor]] = field(default_factory=dict)
    """What each `estimator.Reading` read off the next-token distributions, [B,T] by name."""
    values: Tensor | None = None
    """[B,T,K,C] what each of K members of the critic says, where there are more than one or more than a value (C): that comes first."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Evaluation:
        """Every tensor changed."""
        some = {name: None if (t := getattr(self, name)) is None else change(t) for name in ("log_prob", "entropy", "value", "values")}
        return Evaluation(**some, read={r: {name: change(t) for name, t in found.items()} for r, found in self.read.items()})  # type: ignore[arg-type]

    def detach(self) -> Evaluation:
        return self.map(Tensor.detach)

    def where(self, mask: Tensor) -> Evaluation:
        """0 wherever `mask` is 0."""
        return self.map(lambda t: torch.where(mask if t.ndim == 2 else mask[..., None, None], t, 0))

    def reading(self, reading: Any) -> dict[str, Tensor]:
        """[B,T] by name: what `reading` found, or an error that says who needed it."""
        if reading not in self.read:
            raise InputError(
                f"{type(reading).__name__} must be read off the policy's logits, which this policy does not offer or was not asked"
            )
        return self.read[reading]

    def fresh(self, at: str, of: str = "actor") -> Evaluation:
        """This evaluation at the actions that the network `of` would take at the named observations. This and below: controllers only."""
        raise InputError("a term asks for a network by name, or for other actions than those that were taken; only controllers offer that")

    def fresh_action(self, at: str, of: str = "actor") -> Tensor:
        """[B,T,A] the real actions themselves, in the policy's units; of a policy that draws none its only ones."""
        return self.fresh(at, of).log_prob

    def several(self, at: str, count: int, of: str = "actor") -> tuple[Tensor, Tensor]:
        """[B,T,J,A] so many more actions of the network `of` at each of the named observations, and their log-probabilities [B,T,J];
        without graph."""
        return self.fresh(at).several(at, count, of)

    def evenly(self, name: str, count: int) -> Tensor:
        """[B,T,J,A] so many actions that are drawn evenly from [-1,1], by the noise of that name."""
        return self.fresh("observation").evenly(name, count)

    def values_at(self, network: str, at: str, action: Tensor) -> Tensor:
        """[K,B,T,J] what each of a network's K members says of several actions [B,T,J,A] at each of the named observations."""
        return self.fresh(at).values_at(network, at, action)

    def observed(self, at: str) -> Tensor:
        """[N,O] the named observations of the N steps that count, as the networks read them."""
        return self.fresh(at).log_prob

    def likeliest(self, at: str, of: str = "actor") -> Evaluation:
        """This evaluation at the most likely actions of the network `of` at the named observations, without graph."""
        return self.fresh(at, of)

    def every(self, at: str) -> Evaluation:
        """This evaluation at all n actions that there are: one more dimension, [B,T,n], everywhere."""
        return self.fresh(at)

    def over(self, batch: Trajectories) -> Evaluation:
        """The same networks on another batch of that shape."""
        return self.fresh("observation")

    def action_value(self, network: str, members: int | None = None) -> Tensor:
        """[K,B,T] what each of a network's K members says of the action, or the first `members` of them alone."""
        return self.fresh(network).log_prob

    def action_values(self, network: str) -> Tensor:
        """[K,B,T,C] all that each of a network's K members says of the action: its value first."""
        return self.fresh(network).log_prob

    def log_prob_of(self, network: str, each: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """[B,T] log-probability of the action under another network; `each`: what is made of that in each of the action's dimensions
        before they are summed."""
        return self.fresh(network).log_prob

    def divergence(self, of: str, other: str, at: str = "observation") -> Tensor:
        """[B,T] the exact KL(of ‖ other) in nats of two networks' distributions at the named observations."""
        return self.fresh(at).log_prob

    def state_value(self, network: str) -> Tensor:
        """[K,B,T] what each of a network's K members says of the observation."""
        return self.fresh(network).log_prob

    def number(self, network: str) -> Tensor:
        """[] a learned number."""
        return self.fresh(network).log_prob

    def log_number(self, network: str) -> Tensor:
        """[] its logarithm, which is what is learned."""
        return self.fresh(network).log_prob

    def denoised(self, network: str) -> Tensor:
        """[B,T] mean squared error of a denoising network on the stored action, at planned noise."""
        return self.fresh(network).log_prob

    def errors(self, network: str) -> dict[str, Tensor]:
        """[B,T] by name: what a model of the data is off by on the stored transition, at planned noise."""
        return {network: self.fresh(network).log_prob}

    def forecast(self, network: str, decay: float) -> Tensor:
        """[B,T] what a model of the environment makes of what came of each step; see `GaussianDynamics.error`."""
        return self.fresh(network).log_prob

    def imagined(self, network: str, of: str, steps: int, source: Any) -> Iterator[tuple[Trajectories, Evaluation]]:
        """This evaluation at each of so many steps [N,1] from the stored observations, by a model of the environment, at the most likely
        actions of the network `of`. Ends with the last of them, or once all have come to an end. `source`: a generator."""
        raise InputError("a term asks for steps in a model of the environment; accepted: a controller that has one")

    def gaussian(self, network: str) -> tuple[Tensor, Tensor]:
        """[B,T,A] mean and standard deviation of the Gaussian that a network's real actions are drawn from."""
        return self.fresh(network).log_prob, self.fresh(network).log_prob

    def components(self, at: str, mixture: bool = False) -> Evaluation:
        """This evaluation at one fresh action of each of a mixture's K components, [B,T,K] everywhere. Its log-probability is that of the
        component alone, or with `mixture` of all. This and the three below: mixtures only."""
        raise InputError("a term asks for the components of a mixture; accepted here: a controller of kind mixture or squashed_mixture")

    def component(self, at: str, index: Tensor | None = None, mixture: bool = False) -> Evaluation:
        """The same at that of one component, `index` [B,T], or that which the router draws."""
        return self.components(at)

    def winner(self, at: str, by: Callable[[Any, Evaluation], Tensor]) -> Tensor:
        """[B,T] the component whose fresh action is worth most by an advantage; asked once until the actor is stepped, detached.
        `InputError` for values that are not finite."""
        return self.components(at).log_prob

    def router(self, at: str) -> Tensor:
        """[B,T,K] logarithms of the components' weights."""
        return self.components(at).log_prob

    def entropy_of(self, who: str) -> Tensor:
        """[B,T] the entropy, or an error that says who needed it."""
        if self.entropy is None:
            raise InputError(f"{who} needs the policy's entropy, which was not evaluated")
        return self.entropy
