"""A policy's networks by name, each kept as one vector where that can be."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unipg.errors import InputError, nearest
from unipg.policies.base import Policy
from unipg.training.vectors import ParameterVector


class Weights:
    """The networks that a policy names, and what a learner of some of them moves."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._tensors: dict[str, list[Tensor]] = {}
        # a parameter that something refers to weakly (a compiled module) cannot change its memory: its network is stepped as it is
        self._vectors = {
            name: ParameterVector(network)
            for name, network in policy.networks.items()
            if network and not any(weakref.getweakrefs(parameter) for parameter in network)
        }

    def vectors(self, names: Iterable[str] = ()) -> list[ParameterVector]:
        """Those of the named networks, in their order; of all that are trained where none is named."""
        named = list(names)
        return (
            [self._vectors[name] for name in named if name in self._vectors] if named else [v for v in self._vectors.values() if v.trained]
        )

    def parameters(self, names: Iterable[str]) -> list[nn.Parameter]:
        """Of the named networks, in their order."""
        networks = self.policy.networks
        for name in names:
            if name not in networks:
                raise InputError(f"the policy has no network '{name}' to train; {nearest(name, networks)}")
        return [p for name in names for p in networks[name]]

    def tensors(self, name: str) -> list[Tensor]:
        """The weights of a network, as few tensors as they are kept in, and its buffers behind them."""
        if name not in self._tensors:
            held = [self._vectors[name].vector] if name in self._vectors else list(self.policy.networks[name])
            self._tensors[name] = [*held, *self.policy.buffers_of(name)]
        return self._tensors[name]

    def flat(self, names: Iterable[str]) -> Tensor:
        """[D] a copy of the named networks' weights; of everything that is trained where none is named."""
        return torch.cat([p.detach().reshape(-1) for p in self.moved(names)])

    @torch.no_grad()
    def put(self, names: Iterable[str], theta: Tensor) -> None:
        """Writes weights [D] into the named networks, as `flat` gives them."""
        start = 0
        for parameter in self.moved(names):
            parameter.copy_(theta[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()

    def moved(self, names: Iterable[str]) -> list[nn.Parameter]:
        """The parameters of `flat`, in its order."""
        named = list(names)
        return self.parameters(named) if named else [p for p in self.policy.module.parameters() if p.requires_grad]
