"""The preference methods that are compared with, against autograd of their published losses."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from unipg import Evaluation, Planning, Source, Trajectories
from unipg.algorithms import Setting, registered
from unipg.errors import InputError
from unipg.estimator import Logistic

LENGTHS = (3, 5, 4, 2)
SETTING = Setting(5)


def batch(source: Source = Source.PREFERENCE) -> Trajectories:
    """Two pairs of completions of several lengths, with an anchor."""
    mask = torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)
    draw = torch.Generator().manual_seed(0)
    return Trajectories(
        action=torch.zeros(4, 5, dtype=torch.long),
        mask=mask,
        group=torch.tensor([0, 0, 1, 1]),
        source=torch.full((4,), int(source)),
        reward=torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64),
        anchor_log_prob=torch.where(mask, -torch.rand(4, 5, dtype=torch.float64, generator=draw), 0),
    )


def slope(name: str, given: Trajectories, log_prob: torch.Tensor, **settings) -> torch.Tensor:
    """[B,T] gradient of the algorithm's loss."""
    algorithm = registered()[name](**settings)
    leaf = log_prob.clone().requires_grad_()
    loss = algorithm.terms(SETTING)(Evaluation(leaf), algorithm.prepare(given, SETTING, Planning()))
    return torch.autograd.grad(loss, leaf)[0]


def sums(log_prob: torch.Tensor, given: Trajectories, anchored: bool = True, average: bool = False) -> torch.Tensor:
    """[B] log-ratios, or log-probabilities."""
    values = log_prob - given.anchor_log_prob if anchored else log_prob
    total = torch.where(given.mask, values, 0).sum(1)
    return total / given.mask.sum(1) if average else total


def dpo(log_prob, given, beta=0.1, e=0.0):
    z = beta * (sums(log_prob, given)[0::2] - sums(log_prob, given)[1::2])
    return (-(1 - e) * logsigmoid(z) - e * logsigmoid(-z)).mean()


def ipo(log_prob, given, beta=0.01, average=False):
    rho = sums(log_prob, given, average=average)
    return ((rho[0::2] - rho[1::2] - 1 / (2 * beta)) ** 2).mean()


def simpo(log_prob, given, beta=2.0, gamma=1.0):
    mean = sums(log_prob, given, anchored=False, average=True)
    return -logsigmoid(beta * (mean[0::2] - mean[1::2]) - gamma).mean()


def orpo(log_prob, given, weight=0.1):
    mean = sums(log_prob, given, anchored=False, average=True)
    odds = mean - torch.log1p(-mean.exp())
    return -mean[0::2].mean() - weight * logsigmoid(odds[0::2] - odds[1::2]).mean()


def bradley_terry(log_prob, given):
    score = sums(log_prob, given, anchored=False)
    return -logsigmoid(score[0::2] - score[1::2]).mean()


@pytest.mark.parametrize(
    ("name", "loss", "settings", "arguments"),
    [
        ("dpo", dpo, {}, {}),
        ("dpo", dpo, {"beta": 2.0}, {"beta": 2.0}),
        ("cdpo", dpo, {}, {"e": 0.1}),
        ("ipo", ipo, {}, {}),
        ("ipo", ipo, {"average": True, "beta": 0.3}, {"average": True, "beta": 0.3}),
        ("simpo", simpo, {}, {}),
        ("simpo", simpo, {"gamma": 0.0, "beta": 10.0}, {"gamma": 0.0, "beta": 10.0}),
        ("orpo", orpo, {}, {}),
        ("orpo", orpo, {"weight": 1.0}, {"weight": 1.0}),
        ("bradley_terry", bradley_terry, {}, {}),
    ],
)
def test_pairs(name, loss, settings, arguments) -> None:
    given = batch()
    log_prob = -torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.05
    leaf = log_prob.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, given, **arguments), leaf)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(slope(name, given, log_prob, **settings), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shift", [-0.5, 0.5], ids=["reference point at 0", "reference point above 0"])
def test_kto(shift: float) -> None:
    """The reference point is a mean over mismatched completions that gets no gradient, and never below 0."""
    given = Trajectories.join([batch(), batch(Source.MISMATCHED).replace(reward=torch.zeros(4, dtype=torch.float64))])
    log_prob = given.anchor_log_prob + shift * torch.rand(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    leaf = log_prob.clone().requires_grad_()
    rho = sums(leaf, given)
    reference = rho[4:].mean().clamp_min(0).detach()
    assert (reference > 0) == (shift > 0)
    liked, disliked = rho[[0, 2]], rho[[1, 3]]
    values = torch.cat([1.5 * (1 - torch.sigmoid(0.2 * (liked - reference))), 0.5 * (1 - torch.sigmoid(0.2 * (reference - disliked)))])
    (expected,) = torch.autograd.grad(values.mean(), leaf)
    found = slope("kto", given, log_prob, beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert (found[4:] == 0).all()


def test_orpo_is_finite_where_a_completion_is_certain() -> None:
    given = batch()
    assert torch.isfinite(slope("orpo", given, torch.zeros(4, 5, dtype=torch.float64))).all()


@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0])
def test_bad_label_smoothing(share: float) -> None:
    with pytest.raises(InputError, match="label smoothing"):
        Logistic(share)
