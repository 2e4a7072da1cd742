"""A controller's networks by name: what terms ask of them, and how fresh actions are drawn from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unipg.critics.networks import Body, Lagged, Network
from unipg.errors import InputError, nearest
from unipg.policies.actions import Actions
from unipg.policies.now import Now
from unipg.seeding import generator
from unipg.trajectories import Evaluation, Trajectories

ACTOR, VALUES = "actor", "q"
"""Names that a controller's own networks have beside `CRITIC`: what acts, and values of actions where these are what acts."""


def build_networks(networks: Mapping[str, Network], own: Mapping[str, nn.Module | None], body: Body, seed: int) -> dict[str, nn.Module]:
    """The networks that an algorithm asks for beside the policy's `own`, each from a seed of its own; copies are made last."""
    made: dict[str, nn.Module] = {}
    for name, network in networks.items():
        if not isinstance(network, Lagged) and own.get(name) is None:
            made[name] = network.build(body, generator(seed, name))
    for name, network in networks.items():
        if isinstance(network, Lagged):
            source = made.get(network.of) or own.get(network.of)
            if source is None:
                raise InputError(f"network '{name}' lags behind '{network.of}', which does not exist; {nearest(network.of, [*made, *own])}")
            made[name] = network.copy(source)
    return made


class NamedNetworks:
    """What `Now` asks of a policy whose networks have names: a mixin of `ActorCritic`."""

    actions: Actions
    inputs: int
    counts_actions: bool
    actions_per_step: int
    modules: dict[str, nn.Module]
    """Every network by name."""
    _first: dict[str, nn.Parameter]
    """A parameter of each: modules are slow to ask."""

    if TYPE_CHECKING:
        module: nn.Module

        def read(self, observation: Tensor) -> Tensor:
            """[N,O] observations, flattened, as networks read them."""

        @property
        def log_std(self) -> Tensor | None:
            """[A] of a Gaussian that is the same in every state."""

    @property
    def names_networks(self) -> bool:
        return True

    def network(self, name: str) -> nn.Module:
        """A network by its name; `InputError` for one that there is not."""
        if name not in self.modules:
            raise InputError(f"the policy has no network '{name}'; {nearest(name, self.modules)}")
        return self.modules[name]

    def version(self, name: str) -> int:
        """A number that grows with every step of a network's weights."""
        if name not in self._first:
            self._first[name] = next(self.network(name).parameters())
        return self._first[name]._version

    def buffers_of(self, network: str) -> list[Tensor]:
        return list(self.network(network).buffers())

    def now(self, batch: Trajectories, graphs: frozenset[str] = frozenset()) -> Evaluation:
        return Now(self, batch, graphs)

    def distribution(self, observation: Tensor, of: str, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """[N] log-probability of actions at observations as read, and their distributions' entropy if asked."""
        return self.actions.log_prob(self.network(of)(observation), self.log_std, action, entropy)

    def log_probs(self, observation: Tensor, of: str) -> Tensor:
        """[N,n] of all actions."""
        if not self.counts_actions:
            raise InputError("a term looks at all actions, but these are real numbers; accepted here: actions that can be counted")
        return torch.log_softmax(self.network(of)(observation), -1)

    def fresh(
        self, observation: Tensor, of: str, noise: Tensor, smoothing: float | None = None, limit: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[N,A] an action of the network `of`, and its log-probability [N] where it has one; `smoothing`, `limit`: see `critics.Drawn`."""
        output = self.network(of)(observation)
        if not self.draws:
            action, log_prob = self.actions.fresh(output, None, self.log_std)
            if smoothing:
                extra = noise * smoothing
                action = (action + (extra if limit is None else extra.clamp(-limit, limit))).clamp(-1, 1)
            return action, log_prob
        if self.counts_actions:
            raise InputError("a fresh action of a distribution that can be counted has no path to differentiate; accepted: Enumerated")
        return self.actions.fresh(output, noise.to(output.dtype), self.log_std)

    @property
    def draws(self) -> bool:
        """Whether its actions are drawn from a distribution, and not noise on one of them."""
        return self.actions.type not in ("deterministic", "greedy")
