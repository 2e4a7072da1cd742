"""TD3+BC and behaviour cloning in closed form (arXiv 2106.06860)."""

import math

import torch
from offline import SIZE, policy_of, rows

from unipg.algorithms.base import Setting, algorithm_named
from unipg.estimator import Objective, Planning
from unipg.policies.actor_critic import ActorCritic
from unipg.trajectories import Trajectories

TD3_BC, BC = algorithm_named("td3_bc"), algorithm_named("bc")


def gradient(algorithm, made: ActorCritic, batch: Trajectories) -> torch.Tensor:
    objective: Objective = algorithm.terms(Setting(1, False, SIZE, acts=True))
    planned = objective.plan(objective.prepare(batch), Planning())
    loss = objective.loss(made.now(planned, objective.differentiates), planned, Planning())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, made.networks["actor"])])


def by_hand(made: ActorCritic, batch: Trajectories, alpha: float, scale: float = 1.0) -> torch.Tensor:
    """−alpha / mean|Q_1| · mean Q_1(s, pi(s)) + mean over rows and dimensions of (pi(s) − a)²."""
    seen, given = batch.observation[:, 0], batch.action[:, 0]
    action = made.network("actor")(seen).tanh()
    value = scale * made.network("q")(torch.cat([seen, action], 1))[0, :, 0]
    loss = -alpha / value.abs().mean().detach() * value.mean() + ((action - given) ** 2).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, made.networks["actor"])])


def test_the_actors_gradient_is_that_of_the_equation() -> None:
    algorithm = TD3_BC(alpha=2.5)
    made = policy_of(algorithm, "deterministic")
    torch.testing.assert_close(gradient(algorithm, made, rows()), by_hand(made, rows(), 2.5), rtol=1e-10, atol=1e-12)


def test_without_a_critic_it_clones() -> None:
    algorithm = TD3_BC(alpha=0.0)
    made = policy_of(algorithm, "deterministic")
    found = gradient(algorithm, made, rows())
    seen = rows()
    action = made.network("actor")(seen.observation[:, 0]).tanh()
    expected = torch.autograd.grad(((action - seen.action[:, 0]) ** 2).mean(), made.networks["actor"])
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]), rtol=1e-10, atol=1e-12)


def test_the_size_of_the_values_counts_for_nothing() -> None:
    algorithm = TD3_BC()
    made = policy_of(algorithm, "deterministic")
    before = gradient(algorithm, made, rows())
    with torch.no_grad():
        for parameter in list(made.network("q").parameters())[-2:]:  # of the last layer: the values themselves
            parameter.mul_(1000)
    torch.testing.assert_close(gradient(algorithm, made, rows()), before, rtol=1e-9, atol=1e-12)


def test_cloning_is_maximum_likelihood() -> None:
    """Of a Gaussian whose std is 1 the gradient is that of half the squared distance."""
    algorithm = BC()
    made, batch = policy_of(algorithm, "gaussian"), rows()
    found = gradient(algorithm, made, batch)
    mean = made.network("actor")(batch.observation[:, 0])
    log_std = made.log_std
    assert log_std is not None
    z = (batch.action[:, 0] - mean) / log_std.exp()
    loss = (0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi)).sum(-1).mean()
    expected = torch.autograd.grad(loss, made.networks["actor"])
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]), rtol=1e-10, atol=1e-12)
