"""Perceptrons: how they begin, on the host, and several at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from unipg.errors import InputError
from unipg.networks import Activation, Ensemble, Initialisation, Perceptron
from unipg.seeding import generator

SIZES = (5, 16, 8, 3)


def test_torchs_initialisation_is_that_of_linear_layers_from_a_generator_of_its_own() -> None:
    before = torch.random.get_rng_state()
    network = Perceptron([400, 300, 1], source=generator(0))
    again, other = Perceptron([400, 300, 1], source=generator(0)), Perceptron([400, 300, 1], source=generator(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert not torch.equal(network.layers[0].weight, other.layers[0].weight)
    assert [name for name, _ in network.named_parameters()] == [f"layers.{k}.{kind}" for k in (0, 1) for kind in ("weight", "bias")]
    for layer, inputs in ((network.layers[0], 400), (network.layers[1], 300)):
        own = nn.Linear(inputs, 10_000)
        for parameter, torchs in ((layer.weight, own.weight), (layer.bias, own.bias)):
            bound = inputs**-0.5
            assert torchs.abs().max().item() == pytest.approx(bound, rel=1e-3)  # what torch does itself
            assert parameter.abs().max() <= bound
            if parameter.numel() >= 300:
                assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(parameter.numel()))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("init", ["torch", "orthogonal"])
def test_an_ensemble_is_its_members(activation: Activation, init: Initialisation) -> None:
    source = generator(3)
    singles = [Perceptron(SIZES, activation=activation, init=init, gain=0.5, source=source) for _ in range(4)]
    ensemble = Ensemble(4, SIZES, activation=activation, init=init, gain=0.5, source=generator(3))
    x, each = torch.randn(7, 5, generator=generator(4)), torch.randn(4, 7, 5, generator=generator(5))
    for network in (*singles, ensemble):
        network.double()
    torch.testing.assert_close(ensemble(x), torch.stack([single(x) for single in singles]))
    torch.testing.assert_close(ensemble(each), torch.stack([single(own) for single, own in zip(singles, each, strict=True)]))
    ensemble(x).square().sum().backward()
    for k, single in enumerate(singles):
        single(x).square().sum().backward()
        member = ensemble.member(k)
        for layer, own, copy in zip(ensemble.layers, single.layers, member.layers, strict=True):
            assert torch.equal(copy.weight, own.weight)
            assert torch.equal(copy.bias, own.bias)
            torch.testing.assert_close(layer.weight.grad[k].T, own.weight.grad)
            torch.testing.assert_close(layer.bias.grad[k, 0], own.bias.grad)
        with torch.no_grad():
            member.layers[0].weight.zero_()
    assert ensemble.layers[0].weight.any()


def test_members_differ_and_one_moves_no_other() -> None:
    ensemble = Ensemble(2, SIZES, source=generator(0))
    out = ensemble(torch.ones(1, 5))
    assert not torch.equal(out[0], out[1])
    out[0].sum().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[1].any()
    assert ensemble.layers[0].weight.grad[0].any()


def test_the_first_members_alone() -> None:
    ensemble = Ensemble(3, SIZES, source=generator(0))
    x = torch.randn(4, 5, generator=generator(1))
    whole, some = ensemble(x), ensemble(x, members=2)
    assert torch.equal(whole[:2], some)
    weight = ensemble.layers[0].weight
    for one, other in zip(*(torch.autograd.grad(out[:2].square().sum(), weight) for out in (whole, some)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_host_computes_the_same_and_keeps_what_was() -> None:
    network = Perceptron(SIZES, activation="tanh", source=generator(0))
    x = torch.randn(6, 5, generator=generator(1))
    host, expected = network.on_the_host(), network(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    torch.testing.assert_close(torch.from_numpy(host(x.numpy())), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: Perceptron([3], source=s), r"sizes are \[3\]; accepted: inputs"),
        (lambda s: Perceptron([3, 0, 1], source=s), r"sizes are \[3, 0, 1\]"),
        (lambda s: Perceptron([3, 1], activation="rleu", source=s), "did you mean 'relu'"),
        (lambda s: Ensemble(2, [3, 1], init="orthogonl", source=s), "did you mean 'orthogonal'"),
        (lambda s: Ensemble(0, [3, 1], source=s), "an ensemble has 0 members"),
    ],
)
def test_what_is_no_network_is_named(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(generator(0))  # type: ignore[operator]


@pytest.mark.parametrize("make", [lambda: Perceptron([9, 9, 10], source=generator(0)), lambda: Ensemble(2, [9, 5, 8], source=generator(0))])
def test_what_the_memory_cannot_hold_in_training_is_not_made(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """(9 + 1) 9 + (9 + 1) 10 = 190 weights, 2 ((9 + 1) 5 + (5 + 1) 8) = 196; four float32 of each."""
    weights = sum(parameter.numel() for parameter in make().parameters())
    monkeypatch.setattr("unipg.networks.perceptron.free_memory", lambda: 16 * weights)
    make()
    monkeypatch.setattr("unipg.networks.perceptron.free_memory", lambda: 16 * weights - 1)
    said = rf"^(a network|2 networks) of \[9, .*\]: training {weights} weights takes .* accepted: fewer or narrower networks$"
    with pytest.raises(InputError, match=said):
        make()
    monkeypatch.setattr("unipg.networks.perceptron.free_memory", lambda: None)
    make()
