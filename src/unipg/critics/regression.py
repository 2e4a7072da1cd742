"""What critics and temperatures are trained on, as terms of the estimator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.critics.values import Drawn, Expectation
from unipg.errors import InputError
from unipg.estimator.advantages import Advantage, Planning
from unipg.estimator.likelihoods import STD_MAX, STD_MIN, Ranks
from unipg.estimator.parts import Joint, Part, furthest
from unipg.estimator.policy_gradient import Record, Term
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Source, Trajectories

Loss = Literal["squared", "huber"]
REPLAYED = (Source.REPLAY,)
DISCOUNT = "discount"
"""Planned [B,T]: the factor of what follows a row, where the feed knows it (returns over several steps); else `Bootstrapped.discount`."""


def beyond_ends(now: Evaluation, batch: Trajectories) -> tuple[Evaluation, Trajectories]:
    """Both with the state itself in the place of a terminal one, of which nothing is known: 0 times the gradient of NaN is NaN."""
    ended = batch.require("terminated", "what follows a step")
    if not bool(ended.any()):
        return now, batch
    seen, after = (batch.require(name, "what follows a step") for name in ("observation", "next_observation"))
    batch = batch.replace(next_observation=torch.where(ended.view(*ended.shape, *[1] * (seen.ndim - 2)), seen, after))
    return now.over(batch), batch


@dataclass(frozen=True)
class Target(Part):
    """Base class: what a regression of values aims at, [B,T]; detached."""

    joint: ClassVar[Joint] = "step"

    @property
    def reads(self) -> frozenset[str]:
        """Fields of the batch that must be there."""
        return self.needs

    @property
    def noise(self) -> frozenset[str]:
        """Observations at which it draws actions, by field."""
        return frozenset()

    @property
    def ranks(self) -> Ranks:
        """See `Term.ranks`."""
        return frozenset()

    def __call__(self, now: Evaluation, batch: Trajectories, planning: Planning) -> Tensor:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Planned(Target):
    """y = a planned tensor by its name, such as the return that was observed; without any value."""

    name: str

    def symbol(self) -> str:
        return self.name.replace("_", " ")

    def __call__(self, now: Evaluation, batch: Trajectories, planning: Planning) -> Tensor:
        return batch.require(self.name, "a regression")


@dataclass(frozen=True)
class Bootstrapped(Target):
    """y = r + discount · E[value(s', a')], a' ~ policy at s', and `terminal` in its place where the step terminated; detached. A limit is
    no end: `truncated` bootstraps.

    `value` is an advantage of networks, `Value("q_lagged") + Surprise("temperature")` for a soft target; `over` how a' is chosen.
    What `value` says of a terminal state, NaN included, counts for nothing.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"next_observation", "step_reward", "terminated"})
    minor: ClassVar[frozenset[str]] = frozenset({"reward", "terminal"})
    value: Advantage
    discount: float = 0.99
    over: Expectation = Drawn()
    reward: float | None = None
    """What every step earns, in the place of the data's rewards; None: those."""
    terminal: float = 0.0
    """What there is to come after a terminal step."""

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise InputError(f"discount is {self.discount}; accepted: a number in [0, 1]")

    @property
    def reads(self) -> frozenset[str]:
        return self.needs if self.reward is None else self.needs - {"step_reward"}

    @property
    def noise(self) -> frozenset[str]:
        return self.over.noise("next_observation")

    @property
    def ranks(self) -> Ranks:
        return self.over.ranks("next_observation")

    @property
    def reach(self) -> Joint:
        return furthest((super().reach, self.value.reach))

    def symbol(self) -> str:
        return f"r + {self.discount:g} · ({self.value.symbol()}) at {self.over.symbol()}"

    @torch.no_grad()
    def __call__(self, now: Evaluation, batch: Trajectories, planning: Planning) -> Tensor:
        """[B,T]; [K,B,T] where `value` says something of each of K members."""
        return self.with_graph(now, batch, planning)

    def with_graph(self, now: Evaluation, batch: Trajectories, planning: Planning) -> Tensor:
        """The same, for whoever differentiates it."""
        after = self.over(lambda point: self.value(batch, point, planning), now, "next_observation")
        ended = batch.require("terminated", "Bootstrapped")
        factor = batch.planned.get(DISCOUNT, self.discount)
        reward = batch.require("step_reward", "Bootstrapped") if self.reward is None else self.reward
        return reward + factor * after.masked_fill(ended, self.terminal)


@dataclass(frozen=True)
class Regression(Term):
    """sum_k loss(q_k(s, a) − y) of the members of a network of action values, y the target: `squared` ½ d², `huber` of a `width`."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    rows: tuple[Source, ...] = REPLAYED
    of: str = field(kw_only=True)
    target: Target = field(kw_only=True)
    loss: Loss = field(default="squared", kw_only=True)
    width: float = field(default=1.0, kw_only=True)

    @property
    def reads(self) -> frozenset[str]:
        return self.needs | self.target.reads

    @property
    def noise(self) -> frozenset[str]:
        return self.target.noise

    @property
    def ranks(self) -> Ranks:
        return self.target.ranks

    @property
    def reach(self) -> Joint:
        return furthest((super().reach, self.target.reach))

    def symbol(self) -> str:
        return f"{self.of} → {self.target.symbol()}"

    def aim(self, now: Evaluation, batch: Trajectories, planning: Planning) -> Float[Tensor, "B T"]:
        """What the mean of its members aims at."""
        target = self.target(now, batch, planning)
        return target if target.ndim == 2 else target.mean(0)

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        target = self.target(now, batch, planning)
        values = now.action_value(self.of)
        if values.shape[1:] != target.shape:
            raise InputError(f"'{self.of}' gives {list(values.shape[1:])} but its targets are {list(target.shape)}; they must be equal")
        if self.loss == "huber":
            loss = torch.nn.functional.huber_loss(values, target.expand_as(values), reduction="none", delta=self.width).sum(0)
        else:
            error = values - target
            loss = 0.5 * (error * error).sum(0)
        return loss, Record.of(name, value=values, target=target, loss=loss)


@dataclass(frozen=True)
class ExactKL(Term):
    """weight · KL(pi_of(·|s) ‖ pi_to(·|s)) of two networks at the stored observations, in closed form: sums over dimensions, no sample.

    Its gradient is 0 where the two are equal. Source: arXiv 2005.09814, eq. 4 (the new policy from the old one).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    of: str = field(default="actor", kw_only=True)
    to: str = field(kw_only=True)

    def symbol(self) -> str:
        return f"KL({self.of} ‖ {self.to})"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        divergence = now.divergence(self.of, self.to)
        return divergence, Record.of(name, divergence=divergence)


@dataclass(frozen=True)
class LatentPull(Term):
    """weight · (mean over dimensions of mu² + sigma²) of the Gaussian that latent actions are drawn from: pulls both towards 0.

    It is on the distribution's parameters, not on draws: not a KL to N(0, I). An entropy bonus keeps sigma up. Source: arXiv 2512.02581,
    released code.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    of: str = field(default="actor", kw_only=True)

    def symbol(self) -> str:
        return f"mu² + sigma² of {self.of}"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        mean, std = now.gaussian(self.of)
        at_limit = ((std < 1.1 * STD_MIN) | (std >= STD_MAX)).to(std.dtype)
        return (mean.square() + std.square()).mean(-1), Record.of(name, mean=mean, std=std, at_limit=at_limit)


@dataclass(frozen=True)
class TemperatureLoss(Term):
    """−log(alpha) · (E[log pi(a|s)] + target_entropy), the expectation detached: alpha rises where the policy's entropy is too low.

    Source: arXiv 1812.05905, section 5, in the form of its released code (the logarithm instead of alpha: same sign, same fixed point).
    """

    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    rows: tuple[Source, ...] = REPLAYED
    of: str = field(kw_only=True)
    target_entropy: float = field(kw_only=True)
    over: Expectation = field(default=Drawn(), kw_only=True)

    @property
    def noise(self) -> frozenset[str]:
        return frozenset({"observation"}) if self.over.draws else frozenset()

    @property
    def ranks(self) -> Ranks:
        return self.over.ranks("observation")

    def symbol(self) -> str:
        return f"{self.of} by which the entropy → {self.target_entropy:g}"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        surprise = -self.over(lambda point: point.log_prob, now, "observation").detach()
        log_alpha = now.log_number(self.of)
        return log_alpha * (surprise - self.target_entropy), Record.of(name, temperature=log_alpha.exp(), entropy=surprise)
