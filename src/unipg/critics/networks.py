"""What an algorithm's own networks are: said by the algorithm, built for a policy's observations and actions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unipg.errors import InputError
from unipg.networks.corrections import Correction
from unipg.networks.denoisers import Denoiser, Process
from unipg.networks.dynamics import GaussianDynamics
from unipg.networks.perceptron import Activation, Ensemble, HostFunction, Stepped


@dataclass(frozen=True)
class Body:
    """What networks of one policy have in common."""

    inputs: int
    """Numbers of an observation as networks read it."""
    actions: int
    """How many actions there are, or how many numbers one has."""
    discrete: bool
    """Whether actions can be counted."""
    hidden: tuple[int, ...]
    activation: Activation
    init: Literal["torch", "orthogonal"] = "torch"
    encoder: Callable[[torch.Generator], nn.Module] | None = None
    """Makes what turns images into `inputs` numbers, one for each network; None where networks read the numbers as they are."""
    actor: Callable[[torch.Generator], nn.Module] | None = None
    """Makes one more network of the actor's shape; None where nothing of that shape is an actor."""

    def ensemble(
        self, members: int, inputs: int, outputs: int, source: torch.Generator, channels: int = 1, norm: bool = False
    ) -> nn.Module:
        """`members` perceptrons as one batched product, behind an encoder of their own where there is one; `outputs` of each channel."""
        sizes = [inputs, *self.hidden, outputs * channels]
        made = Ensemble(members, sizes, activation=self.activation, init=self.init, gain=1.0, channels=channels, norm=norm, source=source)
        return made if self.encoder is None else Behind(self.encoder(source), made)


class Behind(nn.Module):
    """An ensemble of perceptrons behind an encoder that learns with them."""

    def __init__(self, encoder: nn.Module, network: Ensemble) -> None:
        super().__init__()
        self.encoder, self.network = encoder, network
        self.channels, self.mean_value = network.channels, network.mean_value

    def forward(self, observation: Tensor, action: Tensor | None = None, members: int | None = None) -> Tensor:
        """[N,C,H,W], and real actions [N,A] where it reads them, to [K,N,…]; see `Ensemble.forward`."""
        seen = self.encoder(observation)
        return self.network(seen if action is None else torch.cat([seen, action.to(seen.dtype)], 1), members=members)

    def on_the_host(self, *, live: bool = False) -> HostFunction:
        """`Ensemble.on_the_host`. The encoder's weights are copies."""
        see, rest = self.encoder.on_the_host(), self.network.on_the_host(live=live)  # type: ignore[operator]
        return lambda x: rest(see(x))


@dataclass(frozen=True)
class Network:
    """Base class: a network by its name in `Algorithm.networks`."""

    def build(self, body: Body, source: torch.Generator) -> nn.Module:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class ActionValues(Network):
    """`members` values of an action: q_k(s, a), or q_k(s, ·) of every action where these can be counted. `channels`: numbers that are said
    of each action, of which the first is the value."""

    members: int = 1
    channels: int = 1

    def build(self, body: Body, source: torch.Generator) -> nn.Module:
        if body.discrete:
            return body.ensemble(self.members, body.inputs, body.actions, source, self.channels)
        return body.ensemble(self.members, body.inputs + body.actions, 1, source, self.channels)


@dataclass(frozen=True)
class ValuesByStep(Network):
    """q_h(s, a) of real actions, a network for each of so many `steps` of an episode (`networks.Stepped`), called `<name>_0`, `<name>_1` …

    Their last layers start at a tenth of the usual size (the code of arXiv 2311.08384).
    """

    steps: int
    hidden: tuple[int, ...] = (64, 64)

    def build(self, body: Body, source: torch.Generator) -> nn.Module:
        if body.discrete or body.encoder is not None:
            raise InputError("values by step are of real actions and of observations that are vectors; accepted: such an environment")
        sizes = [body.inputs - 1 + body.actions, *self.hidden, 1]
        made = (Ensemble(1, sizes, activation=body.activation, init=body.init, shrunk=0.1, source=source) for _ in range(self.steps))
        return Stepped(list(made))


@dataclass(frozen=True)
class StateValues(Network):
    """`members` values of a state, v_k(s). `norm`: with layer normalisation."""

    members: int = 1
    norm: bool = False

    def build(self, body: Body, source: torch.Generator) -> nn.Module:
        return body.ensemble(self.members, body.inputs, 1, source, norm=self.norm)


class PositiveNumber(nn.Module):
    """exp(log_value): what is learned is the logarithm."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.log_value = nn.Parameter(torch.tensor(math.log(value)))

    def forward(self) -> Tensor:
        return self.log_value.exp()


@dataclass(frozen=True)
class Number(Network):
    """A number above 0 that is learned by its logarithm, such as a temperature."""

    value: float = 1.0

    def __post_init__(self) -> None:
        if not (self.value > 0 and math.isfinite(self.value)):
            raise InputError(f"a learned number starts at {self.value}; accepted: a finite number above 0")

    def build(self, body: Body, source: torch.Generator) -> nn.Module:
        return PositiveNumber(self.value)


@dataclass(frozen=True)
class Lagged(Network):
    """A copy of another network, which no learner trains: it follows (`Polyak`, `Copied`)."""

    of: str

    def copy(self, module: nn.Module) -> nn.Module:
        """The copy, with weights of its own."""
        return copy.deepcopy(module).requires_grad_(False)


@dataclass(frozen=True)
class Another(Network):
    """One more policy, of the actor's shape and with weights of its own: a member of an ensemble."""

    def build(self, body: Body, source: torch.Generator) -> nn.Module:
        if body.actor is None:
            raise InputError(
                "an ensemble of policies is of networks like the actor, which is a mixture or greedy here; accepted: another kind"
            )
        return body.actor(source)


@dataclass(frozen=True)
class Dynamics(Network):
    """A model of the environment, `networks.GaussianDynamics`: what comes of real actions, by `members` networks of `hidden` layers.

    `hidden`: None for the policy's own.
    """

    members: int = 7
    hidden: tuple[int, ...] | None = None
    activation: Activation = "silu"

    def build(self, body: Body, source: torch.Generator) -> nn.Module:
        if body.discrete or body.encoder is not None:
            given = "can be counted" if body.discrete else "are of images"
            raise InputError(f"a model of the environment is of vectors and real actions, but these {given}; accepted: another algorithm")
        hidden = body.hidden if self.hidden is None else self.hidden
        return GaussianDynamics(self.members, body.inputs, body.actions, hidden, self.activation, source=source)


@dataclass(frozen=True)
class Decoder(Network):
    """g(s, z): what a policy's actor draws, z [A], to what it means, u [A], by a denoising network (`networks.Denoiser`) that reads s too.

    At the start it is the identity but for a factor, 1 of a flow and about 1.05 of a diffusion. `steps`: of the sampler; levels of noise of
    a diffusion.
    """

    process: Process = "flow"
    hidden: tuple[int, ...] = (64, 64, 64, 64)
    steps: int = 10

    def build(self, body: Body, source: torch.Generator) -> nn.Module:
        if body.discrete:
            raise InputError("actions that can be counted have nothing that a decoder could change; accepted: real ones")
        if body.encoder is not None:
            raise InputError("a decoder reads observations that are vectors, but these are images; accepted: an environment without images")
        return Denoiser(self.process, body.inputs, body.actions, self.hidden, self.steps)


@dataclass(frozen=True)
class Corrector(Network):
    """What a policy's actions are corrected by, `networks.Correction`, of these settings."""

    hidden: tuple[int, ...] = (128, 128)
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.2)
    k_state: float = 0.2
    k_action: float = 0.1
    gate: float | None = None

    def build(self, body: Body, source: torch.Generator) -> nn.Module:
        if body.discrete:
            raise InputError("a correction needs a continuous action space; accepted: real actions")
        if body.encoder is not None:
            raise InputError(
                "a correction reads observations that are vectors, but these are images; accepted: an environment without images"
            )
        return Correction(body.inputs, body.actions, **vars(self), source=source)
