"""Multilayer perceptrons: one, or several of one shape at once."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

from unipg.errors import InputError, nearest

Activation = Literal["tanh", "relu", "silu"]
Initialisation = Literal["torch", "orthogonal"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "silu": silu}
_OVER: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh_, "relu": torch.relu_, "silu": silu}
"""The same, written over what they are given where their derivative does not need that: of a product that nobody else sees."""
_ON_THE_HOST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: 0.5 * x * (1 + np.tanh(0.5 * x)),  # x · sigmoid(x), without an exp that overflows
}


COPIES = 4
"""Of a network's weights in memory while it is trained: they themselves, their gradient and two moments."""


def free_memory() -> int | None:
    """Bytes that this machine has left for programs, or has at all where the system says no more; None where it says nothing."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check_memory(weights: int, what: str, copies: int = COPIES) -> None:
    """Refuses float32 networks that the memory cannot hold while they are trained, before it is asked for: a system may promise more than
    it has, and end the process instead. `copies`: of the weights, still to be made."""
    need, free = 4 * copies * weights, free_memory()
    if free is not None and need > free:
        raise InputError(
            f"{what}: training {weights:.3g} weights takes {need / 1e9:.3g} GB of memory more, but this machine has {free / 1e9:.3g} GB "
            "left; accepted: fewer or narrower networks"
        )


def weights_of(sizes: Sequence[int]) -> int:
    """Numbers of a perceptron, biases too."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))


def initialise(layer: nn.Linear | nn.Conv2d, init: Initialisation, gain: float, source: torch.Generator) -> None:
    """Draws a layer's weights and biases from `source`, as `Perceptron` says; `gain` is read by `orthogonal` alone."""
    assert layer.bias is not None
    if init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain, generator=source)
        nn.init.zeros_(layer.bias)
    else:
        bound = layer.weight[0].numel() ** -0.5
        for parameter in (layer.weight, layer.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=source)


class Perceptron(nn.Module):
    """Linear layers with an activation between them; `sizes` [I, hidden …, O].

    `init`: `torch` draws weights and biases uniformly from ±1/sqrt(inputs of the layer), as `nn.Linear` does; `orthogonal` makes orthogonal
    weights of gain sqrt(2) (the last layer: `gain`) and biases 0. All of it from `source`: the global generator is not touched. `shrunk`:
    what the last layer's weights are multiplied by then, its biases being 0.

    Errors: `InputError` for sizes that are no layer or more than the memory holds, and for an unknown activation or initialisation.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Activation = "relu",
        init: Initialisation = "torch",
        gain: float = 1.0,
        shrunk: float | None = None,
        source: torch.Generator,
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(f"a perceptron's sizes are {list(sizes)}; accepted: inputs, hidden layers if any, outputs, each at least 1")
        if activation not in ACTIVATIONS:
            raise InputError(f"activation '{activation}' does not exist; {nearest(activation, ACTIVATIONS)}")
        if init not in get_args(Initialisation):
            raise InputError(f"initialisation '{init}' does not exist; {nearest(init, get_args(Initialisation))}")
        check_memory(weights_of(sizes), f"a network of {list(sizes)}")
        self.sizes = tuple(sizes)
        self.activation = activation
        # skip_init: torch's own initialisation would draw from the global generator
        layers = [nn.utils.skip_init(nn.Linear, *size) for size in pairwise(sizes)]
        for layer in layers:
            initialise(layer, init, gain if layer is layers[-1] else math.sqrt(2), source)
        if shrunk is not None:
            with torch.no_grad():
                layers[-1].weight.mul_(shrunk)
                layers[-1].bias.zero_()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N,I] to [N,O]."""
        last = cast("nn.Linear", self.layers[-1])
        return linear(self.last_hidden(x), last.weight, last.bias)

    def last_hidden(self, x: Tensor) -> Tensor:
        """[N,H] what the last layer sees."""
        # plain functions: at these sizes a call of each layer's module costs as much as its product
        *hidden, last = cast("Iterable[nn.Linear]", self.layers)
        x, activation = x.to(last.weight.dtype), _OVER[self.activation]
        for layer in hidden:
            x = activation(linear(x, layer.weight, layer.bias))
        return x

    def on_the_host(self, *, live: bool = False, beside: Perceptron | None = None) -> HostFunction:
        """A copy of the layers in NumPy, float32: a few rows at a time cost a quarter of what they do through torch.

        `live`: not a copy but the weights themselves, as whoever steps them leaves them; float32 on the CPU alone. `beside`: one more last
        layer, whose outputs come behind those of the own.
        """
        layers = [*self.layers, *(() if beside is None else beside.layers)]
        weights = [(_array(layer.weight).T, _array(layer.bias)) for layer in cast("Iterable[nn.Linear]", layers)]
        return _forward(weights, self.activation, live, 1 if beside is None else 2)


class Routed(nn.Module):
    """A network and, behind its outputs, those of a linear `router`: [N,I] to [N,O+K].

    `reads`: whether the router sees the network's inputs, or what its last layer sees (`trunk`); no gradient leads through it into that.
    """

    def __init__(self, network: Perceptron, router: Perceptron, reads: Literal["trunk", "input"]) -> None:
        super().__init__()
        self.network, self.router, self.reads = network, router, reads

    def forward(self, x: Tensor) -> Tensor:
        """[N,O+K]"""
        return self.routed(*self.apart(x))

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N,O] of the network, and what the router is given."""
        if self.reads == "input":
            return self.network(x), x
        hidden, last = self.network.last_hidden(x), cast("nn.Linear", self.network.layers[-1])
        return linear(hidden, last.weight, last.bias), hidden.detach()

    def routed(self, output: Tensor, read: Tensor) -> Tensor:
        """[N,O+K] with the router as it is."""
        return torch.cat([output, self.router(read)], -1)

    def on_the_host(self, *, live: bool = False) -> HostFunction:
        """See `Perceptron.on_the_host`."""
        if self.reads == "trunk":
            return self.network.on_the_host(live=live, beside=self.router)
        first, second = self.network.on_the_host(live=live), self.router.on_the_host(live=live)
        return lambda x: np.concatenate([first(x), second(x)], -1)


class WithSpread(nn.Module):
    """A network and, behind its outputs, as many numbers of its own that read nothing: [N,I] to [N,2O]."""

    def __init__(self, network: Perceptron, start: float) -> None:
        super().__init__()
        self.network = network
        self.log_std = nn.Parameter(torch.full((network.sizes[-1],), start))

    def forward(self, x: Tensor) -> Tensor:
        """[N,2O]"""
        found = self.network(x)
        return torch.cat([found, self.log_std.expand_as(found)], -1)

    def on_the_host(self, *, live: bool = False) -> HostFunction:
        """See `Perceptron.on_the_host`."""
        found, own = self.network.on_the_host(live=live), _array(self.log_std)
        log_std = own if live else own.copy()

        def both(x: np.ndarray) -> np.ndarray:
            y = found(x)
            return np.concatenate([y, np.broadcast_to(log_std, y.shape)], -1)

        return both


class Stepped(nn.Module):
    """One network for each step of an episode; the last number of an observation is the step, as Gymnasium's TimeAwareObservation has it,
    and is not seen by the network. What is observed after the last step is left to its network."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.channels = 1

    def forward(self, observation: Tensor, action: Tensor | None = None, **settings: Any) -> Tensor:
        """[N,I+1], and actions [N,A] where the networks read them, to what they make of them, its last dimensions [N,O]."""
        seen = observation[:, :-1]
        x = seen if action is None else torch.cat([seen, action.to(seen.dtype)], 1)
        step = observation[:, -1].nan_to_num(0).clamp(0, len(self.networks) - 1).long()
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # no choice by numbers: every network sees every row
            found = torch.stack([network(x, **settings) for network in self.networks])
            return found.gather(0, step.unsqueeze(-1).expand(found.shape[1:]).unsqueeze(0)).squeeze(0)
        first, last = (int(each) for each in step.aminmax()) if len(step) else (0, 0)
        if first == last:
            return cast("Tensor", self.networks[first](x, **settings))
        order = step.argsort(stable=True)
        parts = x[order].split(torch.bincount(step, minlength=len(self.networks)).tolist())
        pieces = [network(part, **settings) for network, part in zip(self.networks, parts, strict=True) if len(part)]
        return torch.cat(pieces, -2).index_select(-2, order.argsort())

    def on_the_host(self, *, live: bool = False) -> HostFunction:
        """See `Perceptron.on_the_host`."""
        hosts = [network.on_the_host(live=live) for network in cast("Iterable[Perceptron]", self.networks)]

        def forward(observation: np.ndarray) -> np.ndarray:
            seen, step = observation[:, :-1], np.clip(observation[:, -1], 0, len(hosts) - 1).astype(np.int64)
            if (step == step[0]).all():
                return hosts[step[0]](seen)
            order = step.argsort(kind="stable")
            pieces = np.split(seen[order], np.bincount(step, minlength=len(hosts)).cumsum()[:-1])
            found = np.concatenate([host(piece) for host, piece in zip(hosts, pieces, strict=True) if len(piece)])
            return found[order.argsort()]

        return forward


HostFunction = Callable[[np.ndarray], np.ndarray]
"""[N,I] to [N,O], float32."""


def _forward(weights: list[tuple[np.ndarray, np.ndarray]], activation: Activation, live: bool, lasts: int = 1) -> HostFunction:
    """Layers [I,O] with biases [O] as a function in NumPy; of copies of them, unless `live`. `lasts`: how many are last ones, side by
    side."""
    (*hidden, last) = weights if live else [(w.copy(), b.copy()) for w, b in weights]
    between = _ON_THE_HOST[activation]

    if lasts == 2:
        *hidden, first = hidden

        def side_by_side(x: np.ndarray) -> np.ndarray:
            for weight, bias in hidden:
                x = between(x @ weight + bias)
            return np.concatenate([x @ first[0] + first[1], x @ last[0] + last[1]], -1)

        return side_by_side

    def forward(x: np.ndarray) -> np.ndarray:
        for weight, bias in hidden:
            x = between(x @ weight + bias)
        return x @ last[0] + last[1]

    return forward


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


class _Layer(nn.Module):
    """The K members' layer as one: `weight` [K,I,O], `bias` [K,1,O]; of one member alone [I,O] and [O], a plain product's."""

    def __init__(self, layers: Iterable[nn.Linear]) -> None:
        super().__init__()
        layers = list(layers)
        weights, biases = [layer.weight.detach().T for layer in layers], [layer.bias.detach() for layer in layers]
        single = len(layers) == 1
        self.weight = nn.Parameter(weights[0].contiguous() if single else torch.stack(weights).contiguous())
        self.bias = nn.Parameter(biases[0].clone() if single else torch.stack(biases).unsqueeze(1))

    def of(self, k: int) -> tuple[Tensor, Tensor]:
        """Weight [I,O] and bias [O] of member k."""
        return (self.weight, self.bias) if self.weight.ndim == 2 else (self.weight[k], self.bias[k, 0])


class _Norm(nn.Module):
    """What the K members' normalised numbers are multiplied by, and what is added: [K,1,H] each."""

    def __init__(self, members: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, size))
        self.bias = nn.Parameter(torch.zeros(members, 1, size))


class Ensemble(nn.Module):
    """K perceptrons of one shape as one batched product a layer: small members cost little more than one.

    Each is initialised by itself, in order: member k is the k-th `Perceptron` that would be made from the same `source`.

    `channels`: how many kinds of numbers the outputs O are, all of one kind together; the first O / channels are values. `norm`: layer
    normalisation (arXiv 1607.06450), each member's own, between a hidden layer and its activation.
    """

    def __init__(
        self,
        members: int,
        sizes: Sequence[int],
        *,
        activation: Activation = "relu",
        init: Initialisation = "torch",
        gain: float = 1.0,
        shrunk: float | None = None,
        channels: int = 1,
        norm: bool = False,
        source: torch.Generator,
    ) -> None:
        super().__init__()
        if members < 1:
            raise InputError(f"an ensemble has {members} members; accepted: 1 or more")
        check_memory(members * weights_of(sizes), f"{members} networks of {list(sizes)}")
        settings: dict[str, Any] = {"activation": activation, "init": init, "gain": gain, "shrunk": shrunk, "source": source}
        singles = [Perceptron(sizes, **settings) for _ in range(members)]
        self.members, self.channels = members, channels
        self.sizes = tuple(sizes)
        self.activation: Activation = activation
        self.layers = nn.ModuleList(_Layer(cast("Iterable[nn.Linear]", each)) for each in zip(*(s.layers for s in singles), strict=True))
        self.norms = nn.ModuleList(_Norm(members, size) for size in sizes[1:-1]) if norm else None

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        """[N,I], the same for all members, or [K,N,I], to each its own; to [K,N,O]. `members`: of the first so many alone."""
        layers, count = cast("Iterable[_Layer]", self.layers), self.members if members is None else min(members, self.members)
        activation = _OVER[self.activation]
        if count == 1:  # a plain product costs less than a batch of one
            *hidden, (weight, bias) = [layer.of(0) for layer in layers]
            x = (x if x.ndim == 2 else x[0]).to(weight.dtype)
            for at, (within, shift) in enumerate(hidden):
                x = activation(self._normed(torch.addmm(shift, x, within), at, 1))
            return torch.addmm(bias, x, weight).unsqueeze(0)
        *hidden, (weight, bias) = [
            (layer.weight[:count], layer.bias[:count]) if members else (layer.weight, layer.bias) for layer in layers
        ]
        x = x.to(weight.dtype)
        if x.ndim == 2:
            x = x.expand(count, *x.shape)
        for at, (within, shift) in enumerate(hidden):
            x = activation(self._normed(torch.baddbmm(shift, x, within), at, count))
        return torch.baddbmm(bias, x, weight)

    def _normed(self, x: Tensor, at: int, members: int) -> Tensor:
        """[N,H] or [K,N,H] of the first so many members, normalised where they are."""
        if self.norms is None:
            return x
        norm = cast("_Norm", self.norms[at])
        if x.ndim == 2:
            return layer_norm(x, x.shape[-1:], norm.weight[0, 0], norm.bias[0, 0])
        return torch.addcmul(norm.bias[:members], layer_norm(x, x.shape[-1:]), norm.weight[:members])

    def mean_value(self, found: Tensor) -> Tensor:
        """[K,N,O] to [N,O/channels]: the mean of the members' values."""
        return found[0] if self.members == 1 == self.channels else found[..., : self.sizes[-1] // self.channels].mean(0)

    def on_the_host(self, *, live: bool = False) -> HostFunction:
        """`mean_value` in NumPy; see `Perceptron.on_the_host`."""
        if self.norms is not None:
            own = self if live else copy.deepcopy(self)
            return lambda x: _array(own.mean_value(own(torch.from_numpy(x))))
        layers = cast("Iterable[_Layer]", self.layers)
        found = _forward([(_array(layer.weight), _array(layer.bias)) for layer in layers], self.activation, live)
        if self.members == 1 == self.channels:
            return found
        values = self.sizes[-1] // self.channels
        if self.members == 1:
            return lambda x: found(x)[..., :values]
        return lambda x: found(x)[..., :values].mean(0)

    @torch.no_grad()
    def member(self, k: int) -> Perceptron:
        """The k-th member alone, with copies of its weights."""
        single = Perceptron(self.sizes, activation=self.activation, source=torch.Generator())
        for own, layer in zip(cast("Iterable[nn.Linear]", single.layers), cast("Iterable[_Layer]", self.layers), strict=True):
            weight, bias = layer.of(k)
            own.weight = nn.Parameter(weight.T.clone(memory_format=torch.contiguous_format))
            own.bias = nn.Parameter(bias.clone())
        return single
