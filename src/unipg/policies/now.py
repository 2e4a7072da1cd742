"""What a policy's named networks say of a batch as they are now: asked for lazily, and each thing once until its network is stepped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from unipg.critics.networks import Behind
from unipg.errors import InputError
from unipg.estimator.likelihoods import nth, placed
from unipg.networks.perceptron import Stepped
from unipg.policies.actions import BoxActions
from unipg.trajectories import Evaluation, Trajectories

if TYPE_CHECKING:
    from unipg.critics.networks import PositiveNumber
    from unipg.networks.corrections import Correction
    from unipg.networks.denoisers import Denoiser
    from unipg.networks.dynamics import GaussianDynamics
    from unipg.policies.named import NamedNetworks

CRITIC = "critic"
"""A controller's network of values of states."""
NOISE = "noise/{}"
"""Planned [B,T,…] standard normal numbers (`Actions.noises`), what fresh actions at the named observations are drawn from; of a denoising
network [B,T,K,A+1], see `Denoiser.noise`."""


WINNER = "winner/{}"
"""Planned [B,T] int64: the best of a mixture's components at the named observations, where that was decided before a batch was cut."""


class Now(Evaluation):
    """An `Evaluation` whose parts are evaluated when somebody asks, at the actions that were taken.

    `graphs`: observations (by field) whose fresh actions somebody will differentiate in this step; those at others come without graph.
    """

    def __init__(self, policy: NamedNetworks, batch: Trajectories, graphs: frozenset[str] = frozenset()) -> None:
        self.policy, self.batch, self.graphs = policy, batch, graphs
        self.shape = batch.mask.shape
        self.everywhere = batch.full
        self._live = None if self.everywhere else batch.mask.reshape(-1)
        self._kept: dict[Any, tuple[int, Any]] = {}
        self._entropy = False
        self._read: dict[str, Tensor] = {}

    def flat(self, tensor: Tensor) -> Tensor:
        """[B,T,…] to [N,…] of the steps that count: before any network sees it, since 0 · NaN is NaN."""
        steps = tensor.reshape(self.shape[0] * self.shape[1], *tensor.shape[2:])
        return steps if self._live is None else steps[self._live]

    def placed(self, values: Tensor) -> Tensor:
        """[N,…] of the steps that count, back as [B,T,…]; 0 elsewhere."""
        more = values.shape[1:]
        if self.everywhere:
            return values.reshape(*self.shape, *more)
        if not more:
            return placed(values, self.batch.mask)
        return values.new_zeros(*self.shape, *more).index_put((self.batch.mask,), values)

    def once(self, key: Any, networks: tuple[str, ...], find: Callable[[], Any]) -> Any:
        """What `find` makes of the named networks, found again only when one of them has been stepped."""
        version = self.policy.version(networks[0]) if len(networks) == 1 else sum(map(self.policy.version, networks))
        kept = self._kept.get(key)
        if kept is None or kept[0] != version:
            self._kept[key] = kept = (version, find())
        return kept[1]

    def shared(self, key: Any, network: str, find: Callable[[], Any]) -> Any:
        """`once`, where no graph is built: a graph is not shared, since whoever uses it first may free it."""
        return find() if torch.is_grad_enabled() else self.once(key, (network,), find)

    def observed(self, at: str) -> Tensor:
        """[N,O] observations of a field as the networks read them."""
        if at not in self._read:
            self._read[at] = self.policy.read(self.flat(self.batch.require(at, "a network")))
        return self._read[at]

    def over(self, batch: Trajectories) -> Now:
        return Now(self.policy, batch, self.graphs)

    def detach(self) -> Evaluation:
        return self

    def where(self, mask: Tensor) -> Evaluation:
        return self

    # ------------------------------------------------------------------------------------------------ the actions that were taken

    @property
    def action(self) -> Tensor:
        """[N,…]"""
        return self.flat(self.batch.action)

    @property
    def log_prob(self) -> Tensor:  # type: ignore[override]
        return self._taken(self._entropy)[0]

    @property
    def entropy(self) -> Tensor | None:  # type: ignore[override]
        self._entropy = True  # from here on one pass gives both
        return self._taken(True)[1]

    @property
    def value(self) -> Tensor | None:  # type: ignore[override]
        """[B,T] of the critic of states, where there is one."""
        if CRITIC not in self.policy.modules:
            return None
        if (values := self.values) is not None:
            return values[..., 0].mean(-1)
        return self.once(CRITIC, (CRITIC,), lambda: self.placed(self.policy.network(CRITIC)(self.observed("observation")).squeeze(-1)))

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        if CRITIC not in self.policy.modules or self.policy.heads == (1, 1):
            return None
        return self.once((CRITIC, "members"), (CRITIC,), lambda: self.placed(self.policy.members_values(self.observed("observation"))))

    def _taken(self, entropy: bool) -> tuple[Tensor, Tensor | None]:
        def find() -> tuple[Tensor, Tensor | None]:
            log_prob, entropies = self.policy.distribution(self.observed("observation"), "actor", self.action, entropy)
            return self.placed(log_prob), None if entropies is None else self.placed(entropies)

        return self.once(("taken", entropy), ("actor",), find)

    def action_value(self, network: str, members: int | None = None) -> Tensor:
        """[K,B,T]"""
        return self.shared(("value", network, members), network, lambda: self.values_of(network, "observation", self.action, members))

    def action_values(self, network: str) -> Tensor:
        return self.all_of(network, "observation", self.action)

    def log_prob_of(self, network: str, each: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        observation, policy = self.observed("observation"), self.policy
        if each is not None and isinstance(policy.actions, BoxActions):
            latent = policy.actions.latent_of(self.action).to(observation.dtype)
            return self.placed(policy.log_prob_of(policy.network(network)(observation), network, latent, each))
        log_prob = policy.distribution(observation, network, self.action, False)[0]
        return self.placed(log_prob if each is None else each(log_prob))

    def divergence(self, of: str, other: str, at: str = "observation") -> Tensor:
        return self.placed(self.policy.divergence(self.observed(at), of, other))

    def state_value(self, network: str) -> Tensor:
        """[K,B,T]"""
        return self.states_of(network, "observation")

    def denoised(self, network: str) -> Tensor:
        condition = self.policy.condition(self.flat(self.batch.require("observation", "a denoising network")))
        error = cast("Denoiser", self.policy.network(network)).error
        return self.placed(error(condition, self.action.to(condition.dtype), self.noise(network)))

    def errors(self, network: str) -> dict[str, Tensor]:
        fields = (self.batch.require(name, "a model of the data") for name in ("observation", "next_observation"))
        seen, following = (self.policy.condition(self.flat(field)) for field in fields)
        ended = self.flat(self.batch.require("terminated", "a model of the data"))
        model = cast("Correction", self.policy.network(network))
        found = model.errors(seen, self.action.to(seen.dtype), following, ended, self.noise(network))
        return {name: self.placed(error) for name, error in found.items()}

    def forecast(self, network: str, decay: float) -> Tensor:
        ended, reward = (self.flat(self.batch.require(name, "a model of the environment")) for name in ("terminated", "step_reward"))
        seen, after = self.observed("observation"), self.observed("next_observation")
        return self.placed(cast("GaussianDynamics", self.policy.network(network)).error(seen, self.action, after, reward, ended, decay))

    def imagined(self, network: str, of: str, steps: int, source: torch.Generator) -> Iterator[tuple[Trajectories, Evaluation]]:
        model, seen = cast("GaussianDynamics", self.policy.network(network)), self.observed("observation").detach()
        for _ in range(steps):
            action = self.policy.actions.likeliest(self.policy.network(of)(seen))
            mask = torch.ones(len(seen), 1, dtype=torch.bool, device=seen.device)
            rows = Trajectories(action=action.unsqueeze(1), mask=mask, observation=seen.unsqueeze(1))
            point = Now(self.policy, rows)
            point._read["observation"] = seen
            yield rows, point
            seen, over = model.after(seen, action, source)
            seen = seen[~over]
            if not len(seen):
                return

    def gaussian(self, network: str) -> tuple[Tensor, Tensor]:
        def find() -> tuple[Tensor, Tensor]:
            mean, log_std = self.policy.gaussian(self.observed("observation"), network)
            return self.placed(mean), self.placed(log_std.exp())

        found: tuple[Tensor, Tensor] = self.shared(("gaussian", network), network, find)
        return found

    def number(self, network: str) -> Tensor:
        return self.policy.network(network)()

    def log_number(self, network: str) -> Tensor:
        return cast("PositiveNumber", self.policy.network(network)).log_value

    # ------------------------------------------------------------------------------------------------ other actions

    def fresh(self, at: str, of: str = "actor", smoothing: float | None = None, limit: float | None = None, draw: int = 0) -> Elsewhere:
        """The point at one action of the network `of` at each of the named observations, its draw number `draw`. See `critics.Drawn` for
        the others."""

        def find() -> tuple[Tensor, Tensor | None, Tensor]:
            return self.policy.fresh(self.observed(at), of, self.noise(nth(at, draw)), smoothing, limit)

        return Elsewhere(self, at, self.graphed(("fresh", at, of, smoothing, limit, draw), at, find, of), of)

    def fresh_action(self, at: str, of: str = "actor") -> Tensor:
        action = self.fresh(at, of).action
        assert action is not None
        return self.placed(action)

    def several(self, at: str, count: int, of: str = "actor") -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            output = self.once(("output", at, of), (of,), lambda: self.policy.network(of)(self.observed(at)))
            action, log_prob = self.policy.actions.fresh(output.unsqueeze(1), self._noises(at, count), self.policy.log_std_of(of))
        assert log_prob is not None
        return self.placed(action), self.placed(log_prob)

    def evenly(self, name: str, count: int) -> Tensor:
        return self.placed(torch.erf(self._noises(name, count) * math.sqrt(0.5)))  # the distribution function of a normal number is even

    def _noises(self, at: str, count: int) -> Tensor:
        """[N,J,…] planned noise of draws after the first."""
        return torch.stack([self.noise(nth(at, draw)) for draw in range(1, count + 1)], 1)

    def values_at(self, network: str, at: str, action: Tensor) -> Tensor:
        each, values, observation = self.flat(action), self.policy.network(network), self.observed(at)
        rows = observation.unsqueeze(1).expand(-1, each.shape[1], *observation.shape[1:]).flatten(0, 1)
        both = _read_by(values, rows, each.flatten(0, 1).to(observation.dtype))
        return self._members(values(*both)[..., 0].unflatten(1, each.shape[:2]))

    def likeliest(self, at: str, of: str = "actor") -> Elsewhere:
        def find() -> tuple[Tensor, None, Tensor]:
            with torch.no_grad():
                output = self.policy.network(of)(self.observed(at))
                return self.policy.actions.likeliest(output), None, output

        return Elsewhere(self, at, self.once(("likeliest", at, of), (of,), find), of)

    def graphed(self, key: tuple[Any, ...], at: str, find: Callable[[], Any], of: str = "actor", *more: str) -> Any:
        """`once`, of the network `of`, and `more`, at the named observations: with its graph if somebody in this step will differentiate
        that."""
        graph = at in self.graphs and of == "actor"
        if graph == torch.is_grad_enabled():
            return self.once(key, (of, *more), find)
        with torch.set_grad_enabled(graph):
            return self.once(key, (of, *more), find)

    def noise(self, at: str) -> Tensor:
        """[N,…] what fresh actions at the named observations are drawn from, or what a denoising network is tried at."""
        noise = self.batch.planned.get(NOISE.format(at))
        if noise is None:
            raise InputError(f"'{at}' needs planned noise, '{NOISE.format(at)}', which this batch does not carry")
        return self.flat(noise)

    def every(self, at: str, of: str = "actor") -> Elsewhere:
        """The point at all n actions at each of the named observations: one more dimension everywhere."""
        return Elsewhere(self, at, None, of)

    def values_of(self, network: str, at: str, action: Tensor | None, members: int | None = None) -> Tensor:
        """[K,B,T] values of an action [N,…], or [K,B,T,n] of all of them; K is all members, or the first so many."""
        values = self.policy.network(network)
        observation = self.observed(at)
        if not self.policy.counts_actions:
            assert action is not None
            found = values(*_read_by(values, observation, action), members=members)
            found = found.squeeze(-1) if values.channels == 1 else found[..., 0]
        else:
            found = self.shared(("all", network, at, members), network, lambda: values(observation, members=members))
            if values.channels != 1:
                found = found[..., : self.policy.actions_per_step]
            if action is not None:
                taken = action.long()
                found = found.gather(-1, taken.expand(found.shape[0], *taken.shape).unsqueeze(-1))
                if self.everywhere:
                    return found.reshape(found.shape[0], *self.shape)
                found = found.squeeze(-1)
        return self._members(found)

    def all_of(self, network: str, at: str, action: Tensor) -> Tensor:
        """[K,B,T,C] all that a network says of an action [N,…]."""
        values, observation = self.policy.network(network), self.observed(at)
        if self.policy.counts_actions:
            said = values(observation).unflatten(-1, (values.channels, -1))
            found = said.gather(-1, action.long().reshape(1, -1, 1, 1).expand(*said.shape[:3], 1)).squeeze(-1)
        else:
            found = values(*_read_by(values, observation, action))
        return self._members(found)

    def states_of(self, network: str, at: str) -> Tensor:
        """[K,B,T] values of the named observations."""
        if network == CRITIC:
            return self._members(self.policy.members_values(self.observed(at))[..., 0].T)
        found = self.shared(("states", network, at), network, lambda: self.policy.network(network)(self.observed(at)))
        return self._members(found.squeeze(-1))

    def _members(self, found: Tensor) -> Tensor:
        """[K,N,…] back as [K,B,T,…]."""
        if self.everywhere:
            return found.reshape(found.shape[0], *self.shape, *found.shape[2:])
        return torch.stack([self.placed(values) for values in found])


def _read_by(values: nn.Module, observation: Tensor, action: Tensor) -> tuple[Tensor, ...]:
    """Both apart, for networks that look at the observation first; else as one vector."""
    apart = isinstance(values, Behind | Stepped)
    return (observation, action) if apart else (torch.cat([observation, action.to(observation.dtype)], 1),)


class Elsewhere(Evaluation):
    """The same at other actions: fresh ones, or all that there are."""

    def __init__(self, now: Now, at: str, drawn: tuple[Tensor, Tensor | None, Tensor] | None, of: str = "actor") -> None:
        """`drawn`: what the policy's `fresh` gave; None for all actions."""
        self._now, self._at, self._of = now, at, of
        nothing: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
        self.action, self._log_prob, self._output = drawn or nothing
        """[N,A]; None at all of them."""

    @property
    def log_prob(self) -> Tensor:  # type: ignore[override]
        """[B,T] of the fresh action, [B,T,n] of all of them."""
        now = self._now
        if self.action is None:
            return now.once(
                ("every", self._at, self._of), (self._of,), lambda: now.placed(now.policy.log_probs(now.observed(self._at), self._of))
            )
        if self._log_prob is None:
            raise InputError("a deterministic action has no log-probability; accepted here: a policy that draws its actions")
        return now.placed(self._log_prob)

    def action_value(self, network: str, members: int | None = None) -> Tensor:
        return self._now.values_of(network, self._at, self.action, members)

    def state_value(self, network: str) -> Tensor:
        return self._now.states_of(network, self._at)

    def log_prob_of(self, network: str, each: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        now, policy = self._now, self._now.policy
        if self.action is None:
            log_probs = now.placed(policy.log_probs(now.observed(self._at), network))
            return log_probs if each is None else each(log_probs)
        assert self._output is not None
        own = self._output
        output = own if network == self._of else policy.network(network)(now.observed(self._at))
        return now.placed(policy.log_prob_of(output, network, policy.latent(own, self._of, now.noise(self._at)), each))

    def divergence(self, of: str, other: str, at: str = "observation") -> Tensor:
        return self._now.divergence(of, other, at)

    def number(self, network: str) -> Tensor:
        return self._now.number(network)

    def log_number(self, network: str) -> Tensor:
        return self._now.log_number(network)
