"""A controller's networks by name: what terms ask of them, and how fresh actions are drawn from one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from unipg.critics.networks import Another, Body, Lagged, Network
from unipg.errors import InputError, nearest
from unipg.networks.corrections import Correction
from unipg.networks.perceptron import Routed, Stepped
from unipg.policies.actions import Actions, BoxActions
from unipg.policies.mixtures import MixtureNow
from unipg.policies.now import Now
from unipg.seeding import generator
from unipg.trajectories import Evaluation, Trajectories

ACTOR, VALUES, ROUTER, DECODER, CORRECTION = "actor", "q", "router", "decoder", "correction"
"""Names that a controller's own networks have beside `CRITIC`: what acts, values of actions where these are what acts, what chooses among
the components of a mixture, what lies between its actions and the environment's, and what corrects them there."""
LOG_STD = "log_std"


def build_networks(
    networks: Mapping[str, Network], own: Mapping[str, nn.Module | None], body: Body, seed: int, log_std: Tensor | None = None
) -> dict[str, nn.Module]:
    """The networks that an algorithm asks for beside the policy's `own`, each from a seed of its own; copies are made last.

    `log_std`: the [A] that stands beside the actor, where there is one: a copy of the actor has its own.
    """
    made: dict[str, nn.Module] = {}
    for name, network in networks.items():
        if not isinstance(network, Lagged) and own.get(name) is None:
            made[name] = network.build(body, generator(seed, name))
            if isinstance(network, Another) and log_std is not None:
                made[name].register_parameter(LOG_STD, nn.Parameter(log_std.detach().clone()))
    for name, network in networks.items():
        if isinstance(network, Lagged):
            source = made.get(network.of) or own.get(network.of)
            if source is None:
                raise InputError(f"network '{name}' lags behind '{network.of}', which does not exist; {nearest(network.of, [*made, *own])}")
            if isinstance(source, Routed):
                raise InputError(f"network '{name}' is a copy of the actor, which is a mixture here; accepted: another controller.kind")
            made[name] = network.copy(source)
            if network.of == ACTOR and log_std is not None:
                made[name].register_parameter(LOG_STD, nn.Parameter(log_std.detach().clone(), requires_grad=False))
    return made


class NamedNetworks:
    """What `Now` asks of a policy whose networks have names: a mixin of `ActorCritic`."""

    actions: Actions
    inputs: int
    counts_actions: bool
    actions_per_step: int
    heads: tuple[int, int]
    """(members, numbers of each) of the critic of states."""
    modules: dict[str, nn.Module]
    """Every network by name."""
    lags: dict[str, str]
    """Which network each copy lags behind."""
    _first: dict[str, list[nn.Parameter]]
    """A parameter of each, or of each of its steps: modules are slow to ask."""

    if TYPE_CHECKING:
        module: nn.Module

        def read(self, observation: Tensor) -> Tensor:
            """[N,O] observations, flattened, as networks read them."""

        def condition(self, observation: Tensor) -> Tensor:
            """[N,O] stored observations as networks with statistics of their own read them."""

        def members_values(self, observation: Tensor) -> Tensor:
            """[N,K,C] all that the critic of states says of observations as networks read them."""

        @property
        def log_std(self) -> Tensor | None:
            """[A] of the actor's Gaussian, where it is the same in every state."""

    @property
    def names_networks(self) -> bool:
        return True

    def noises(self, at: str) -> int:
        """Planned standard normal numbers of what is drawn there: a fresh action at observations, or errors of a network."""
        module = self.modules.get(at)
        return module.noises if isinstance(module, Correction) else self.actions.noises

    def network(self, name: str) -> nn.Module:
        """A network by its name; `InputError` for one that there is not."""
        if name not in self.modules:
            raise InputError(f"the policy has no network '{name}'; {nearest(name, self.modules)}")
        return self.modules[name]

    def log_std_of(self, name: str) -> Tensor | None:
        """[A] that stands beside a network's output: the actor's, or a copy's own."""
        return self.log_std if name == ACTOR else getattr(self.network(name), LOG_STD, None)

    def weights_of(self, name: str) -> list[nn.Parameter]:
        """A network's parameters, the log_std beside it last: in a copy's order as in the original's."""
        log_std = self.log_std_of(name)
        module = self.network(name)
        inside = [p for p in (module.network if isinstance(module, Routed) else module).parameters() if p is not log_std]
        return inside if log_std is None else [*inside, cast("nn.Parameter", log_std)]

    @torch.no_grad()
    def copy_lagged(self, but: Collection[str] = ()) -> None:
        """Every copy made again of what it lags behind, but for those named."""
        for name, of in self.lags.items():
            if name not in but:
                theirs = [*self.weights_of(of), *self.buffers_of(of)]
                for own, their in zip([*self.weights_of(name), *self.buffers_of(name)], theirs, strict=True):
                    own.copy_(their)

    def version(self, name: str) -> int:
        """A number that grows with every step of a network's weights."""
        if name not in self._first:
            module = self.network(name)
            self._first[name] = [next(each.parameters()) for each in (module.networks if isinstance(module, Stepped) else (module,))]
        first = self._first[name]
        return first[0]._version if len(first) == 1 else sum(each._version for each in first)

    def buffers_of(self, network: str) -> list[Tensor]:
        return list(self.network(network).buffers())

    def now(self, batch: Trajectories, graphs: frozenset[str] = frozenset()) -> Evaluation:
        return MixtureNow(self, batch, graphs) if ROUTER in self.modules else Now(self, batch, graphs)

    def distribution(self, observation: Tensor, of: str, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """[N] log-probability of actions at observations as read, and their distributions' entropy if asked."""
        return self.actions.log_prob(self.network(of)(observation), self.log_std_of(of), action, entropy)

    def divergence(self, observation: Tensor, of: str, other: str) -> Tensor:
        """[N] the exact KL(of ‖ other) in nats of two networks' distributions at observations as read."""
        outputs = (self.network(of)(observation), self.log_std_of(of), self.network(other)(observation), self.log_std_of(other))
        return self.actions.kl(*outputs)

    def gaussian(self, observation: Tensor, of: str) -> tuple[Tensor, Tensor]:
        """[N,A] mean and log_std of a network's real actions, before bounds squash them, at observations as read."""
        if not self.draws or not isinstance(self.actions, BoxActions):
            raise InputError(f"{self.actions.type} actions are drawn from no Gaussian; accepted here: real actions that are drawn")
        return self.actions.moments(self.network(of)(observation), self.log_std_of(of))

    def log_prob_of(self, output: Tensor, of: str, latent: Tensor, each: Callable[[Tensor], Tensor] | None) -> Tensor:
        """[N] log-probability, by a network's output, of real actions `latent` [N,A], as they are before bounds squash them."""
        if not self.draws or not isinstance(self.actions, BoxActions):
            raise InputError(f"{self.actions.type} actions have no log-density; accepted here: real actions that are drawn")
        densities = self.actions.log_densities(output, self.log_std_of(of), latent)
        return (densities if each is None else each(densities)).sum(-1)

    def log_probs(self, observation: Tensor, of: str) -> Tensor:
        """[N,n] of all actions."""
        if not self.counts_actions:
            raise InputError("a term looks at all actions, but these are real numbers; accepted here: actions that can be counted")
        return torch.log_softmax(self.network(of)(observation), -1)

    def fresh(
        self, observation: Tensor, of: str, noise: Tensor, smoothing: float | None = None, limit: float | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """[N,A] an action of the network `of`, its log-probability [N] where it has one, and the output [N,…] that it was drawn from.
        `smoothing`, `limit`: see `critics.Drawn`."""
        output, log_std = self.network(of)(observation), self.log_std_of(of)
        if not self.draws:
            action, log_prob = self.actions.fresh(output, None, log_std)
            if smoothing:
                extra = noise * smoothing
                action = (action + (extra if limit is None else extra.clamp(-limit, limit))).clamp(-1, 1)
            return action, log_prob, output
        if self.counts_actions:
            raise InputError("a fresh action of a distribution that can be counted has no path to differentiate; accepted: Enumerated")
        return *self.actions.fresh(output, noise.to(output.dtype), log_std), output

    def latent(self, output: Tensor, of: str, noise: Tensor) -> Tensor:
        """[N,A] the real action that `noise` draws from an output of the network `of`, before bounds squash it."""
        return cast("BoxActions", self.actions).latent(output, noise.to(output.dtype), self.log_std_of(of))

    @property
    def draws(self) -> bool:
        """Whether its actions are drawn from a distribution, and not noise on one of them."""
        return self.actions.type not in ("deterministic", "greedy")
