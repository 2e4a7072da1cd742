"""Advantages that ask networks for the value of an action, and expectations of them over the actions of a state.

Such an advantage is a function of an `Evaluation`, which is one at some action: that which was taken, a fresh one (`Pathwise`), all of them
(`Enumerated`), or that of the next state in a target. It keeps its graph; who must not differentiate it detaches it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.advantages import Advantage, Combination, Planning, generalized_advantage, rewards_per_step
from unipg.estimator.likelihoods import Ranks, Valued, nth
from unipg.estimator.parts import Joint, Part
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Trajectories

Reduction = Literal["min", "mean", "first"]


def reduced(values: Float[Tensor, "K ..."], how: Reduction) -> Float[Tensor, "..."]:
    """One value of those of K members."""
    if how == "first" or values.shape[0] == 1:  # len() of a tensor costs as much as an operation
        return values[0]
    return values.min(0).values if how == "min" else values.mean(0)


def largest(values: Tensor, planning: Planning) -> float:
    """The largest value of all workers' rows, detached; −inf of none."""
    own = float(values.detach().max()) if values.numel() else -math.inf
    return max(planning.gather(own))


@dataclass(frozen=True)
class Value(Advantage):
    """Q(s, a) of the network `of`: the least of its critics' values, their mean, or the first critic's; `members`: networks of one critic,
    side by side, whose mean is its value."""

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    minor: ClassVar[frozenset[str]] = frozenset({"members"})
    of: str
    reduction: Reduction = "min"
    members: int = 1

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        assert now is not None
        found = now.action_value(self.of, self.members if self.reduction == "first" else None)
        return reduced(found if self.members == 1 else found.unflatten(0, (-1, self.members)).mean(1), self.reduction)


@dataclass(frozen=True)
class ValueOfEach(Value):
    """[K,B,T] the same of each of K members, reduced over critics alone: what members with targets of their own regress on."""

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        assert now is not None
        found = now.action_value(self.of, self.members if self.reduction == "first" else None)
        return reduced(found.unflatten(0, (-1, self.members)), self.reduction)


@dataclass(frozen=True)
class StateValue(Advantage):
    """V(s) of the network `of`, the mean of its members' values: with weight −1 a baseline."""

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    of: str

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        assert now is not None
        return reduced(now.state_value(self.of), "mean")


@dataclass(frozen=True)
class Exponential(Advantage):
    """min(exp(temperature · A), most): never negative weights for the actions of the data, by how good an advantage finds them.

    `normalised`: divided by their mean over the steps of an optimiser step, before the limit (a softmax times the number of steps).
    Source: arXiv 1910.00177; 2006.09359; 2110.06169.
    """

    dynamic: ClassVar[bool] = True
    minor: ClassVar[frozenset[str]] = frozenset({"normalised"})
    of: Advantage
    temperature: float
    most: float | None = None
    normalised: bool = False

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"the temperature of exponential weights is {self.temperature}; accepted: a finite number of 0 or more")
        if self.most is not None and not self.most > 0:
            raise InputError(f"the largest of exponential weights is {self.most}; accepted: above 0")

    @property
    def reach(self) -> Joint:
        return self.of.reach

    @property
    def spans(self) -> bool:
        return self.normalised

    @property
    def reads(self) -> frozenset[str]:
        return self.of.reads

    @property
    def noise(self) -> frozenset[str]:
        return self.of.noise

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        power = self.temperature * self.of(batch, now, planning)
        if not self.normalised:
            return self._limited(power.exp())
        assert planning is not None
        power = power.masked_fill(~batch.mask, -math.inf)
        top = largest(power, planning)
        sums = planning.reduce(torch.stack([(power - top).exp().sum(), batch.mask.sum().to(power.dtype)]))
        return self._limited((power - top).exp() * (sums[1] / sums[0]))

    def _limited(self, weight: Tensor) -> Tensor:
        return weight if self.most is None else weight.clamp_max(self.most)


@dataclass(frozen=True)
class Surprise(Advantage):
    """−alpha · log pi(a | s), alpha a number or that of a network: in expectation an entropy bonus. alpha is never differentiated."""

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    alpha: float | str

    @property
    def weighs_entropy(self) -> bool:
        return not isinstance(self.alpha, str)

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        assert now is not None
        alpha = now.number(self.alpha).detach() if isinstance(self.alpha, str) else self.alpha
        return -alpha * now.log_prob


@dataclass(frozen=True)
class Likeliness(Advantage):
    """log pi_of(a | s) of the network `of`, with the graph through a; in expectation, negated, the cross-entropy to it.

        log_q(x) = (x^(q_T − 1) − 1) / (q_T − 1),   q = 2 − q_T,   summed over the action's dimensions

    `tsallis`: q_T, of which 1 is the logarithm itself. `floor`: densities below it count as it, in log_q alone.
    """

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    minor: ClassVar[frozenset[str]] = frozenset({"tsallis", "floor"})
    of: str
    tsallis: float = 1.0
    floor: float = 0.0

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        assert now is not None
        return now.log_prob_of(self.of, None if self.tsallis == 1 else self._deformed)

    def _deformed(self, log_x: Tensor) -> Tensor:
        log_x = log_x.clamp_min(math.log(self.floor)) if self.floor > 0 else log_x
        return torch.expm1((self.tsallis - 1) * log_x) / (self.tsallis - 1)


def bonus_of(value: Advantage) -> Advantage | None:
    """What a combination adds to the values of actions, such as an entropy's weight; None where it adds nothing."""
    terms = value.terms if isinstance(value, Combination) else ((1.0, value),)
    rest = tuple((weight, term) for weight, term in terms if not isinstance(term, Value))
    return Combination(rest) if rest else None


@dataclass(frozen=True)
class Expectation(Part):
    """Base class: E[f(s, a)] over a policy's actions at the named observations, for targets; without graph."""

    joint: ClassVar[Joint] = "step"
    draws: ClassVar[bool] = False
    """Whether it needs planned noise."""

    def noise(self, at: str) -> frozenset[str]:
        """What planned noise it needs, at the named observations."""
        return frozenset({at}) if self.draws else frozenset()

    def ranks(self, at: str) -> Ranks:
        """See `Term.ranks`."""
        return frozenset()

    def __call__(self, value: Valued, now: Evaluation, at: str) -> Float[Tensor, "B T"]:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Drawn(Expectation):
    """f at one fresh action of the network `of`; the mean of it at `count` of them.

    `smoothing`: standard deviation, in the policy's units, of noise added to an action that has none of its own, at most `limit` either
    way; the sum is clipped to the bounds (target policy smoothing, arXiv 1802.09477).
    """

    draws: ClassVar[bool] = True
    minor: ClassVar[frozenset[str]] = frozenset({"of", "count"})
    of: str = "actor"
    smoothing: float | None = None
    limit: float | None = None
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"Drawn.count is {self.count}; accepted: 1 or more")
        for name in ("smoothing", "limit"):
            if (number := getattr(self, name)) is not None and not number >= 0:
                raise InputError(f"{name} is {number}; accepted: 0 or more, or null for none")

    def noise(self, at: str) -> frozenset[str]:
        return frozenset(nth(at, draw) for draw in range(self.count))

    def __call__(self, value: Valued, now: Evaluation, at: str) -> Float[Tensor, "B T"]:
        first: Tensor = value(now.fresh(at, self.of, self.smoothing, self.limit))  # type: ignore[call-arg]
        if self.count == 1:
            return first
        more = (value(now.fresh(at, self.of, self.smoothing, self.limit, draw)) for draw in range(1, self.count))  # type: ignore[call-arg]
        return (first + sum(more)) / self.count


@dataclass(frozen=True)
class GAEOf(Advantage):
    """Generalised advantage estimation against `value`, V(s), of networks as they are, over whole episodes: nothing follows their end.

    Not whitened. The episodes must be whole when it is called (`Held`).
    """

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    value: Advantage
    gamma: float = 1.0
    lam: float = 0.95

    @property
    def noise(self) -> frozenset[str]:
        return self.value.noise

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        value = torch.where(batch.mask, self.value(batch, now, planning), 0)
        reward = rewards_per_step(batch).to(value.dtype)
        ended = None if batch.terminated is None or batch.truncated is None else batch.terminated | batch.truncated
        return generalized_advantage(reward, value, batch.mask, self.gamma, self.lam, terminated=ended)


@dataclass(frozen=True)
class Unacted(Expectation):
    """f of the state itself, for values that look at no action."""

    def __call__(self, value: Valued, now: Evaluation, at: str) -> Float[Tensor, "B T"]:
        return value(now.every(at))


@dataclass(frozen=True)
class Likeliest(Expectation):
    """f at the most likely action of the network `of`: that of a policy which is evaluated without chance."""

    minor: ClassVar[frozenset[str]] = frozenset({"of"})
    of: str = "actor"

    def __call__(self, value: Valued, now: Evaluation, at: str) -> Float[Tensor, "B T"]:
        return value(now.likeliest(at, self.of))


@dataclass(frozen=True)
class Exact(Expectation):
    """sum_a pi(a|s) · f(s, a) over all actions."""

    def __call__(self, value: Valued, now: Evaluation, at: str) -> Float[Tensor, "B T"]:
        point = now.every(at)
        return (point.log_prob.exp() * value(point)).sum(-1)


@dataclass(frozen=True)
class Greedy(Expectation):
    """f at the action that the network `by` finds best: with the network of `f` itself the usual maximum, with another double Q-learning
    (arXiv 1509.06461). `each`: that which each member finds best, for f [K,B,T,n] of each."""

    minor: ClassVar[frozenset[str]] = frozenset({"each"})
    by: str
    each: bool = False

    def __call__(self, value: Valued, now: Evaluation, at: str) -> Tensor:
        point = now.every(at)
        found = point.action_value(self.by)
        best = (found if self.each else reduced(found, "mean")).argmax(-1, keepdim=True)
        return torch.gather(value(point), -1, best).squeeze(-1)


@dataclass(frozen=True)
class Expected(Advantage):
    """E[value(s, a')] over the policy's own actions a' at the stored observation, detached: with weight −1 a baseline."""

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    value: Advantage
    over: Expectation = Drawn()

    @property
    def noise(self) -> frozenset[str]:
        return self.over.noise("observation")

    @torch.no_grad()
    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        assert now is not None
        return self.over(lambda point: self.value(batch, point, planning), now, "observation")
