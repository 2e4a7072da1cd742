"""Soft actor-critic against its equations written out in plain torch, in float64: losses, gradients, targets at ends, discrete actions."""

import math

import pytest
import torch
from torch import Tensor

from unipg import InputError, Source, Trajectories
from unipg.algorithms import SAC, Setting
from unipg.algorithms.learners import Learner
from unipg.estimator.policy_gradient import Record
from unipg.policies.actions import DiscreteActions, SquashedActions
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.now import NOISE

ROWS, OBSERVATION, ACTION, COUNT = 7, 3, 2, 4


def policy(algorithm: SAC, counted: bool = False) -> ActorCritic:
    actions = DiscreteActions(COUNT) if counted else SquashedActions((ACTION,), (-2.0, 0.0), (2.0, 5.0))
    made = ActorCritic(
        (OBSERVATION,), actions, hidden=(8, 8), activation="relu", init="torch", critic=False, networks=algorithm.networks(counted), seed=5
    )
    made.module.double()
    with torch.no_grad():  # lagged copies that lag
        for parameter in made.network("q_lagged").parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return made


def transitions(counted: bool = False) -> Trajectories:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(ROWS, 1, *shape, generator=draw, dtype=torch.float64)

    return Trajectories(
        action=torch.randint(COUNT, (ROWS, 1), generator=draw) if counted else normal(ACTION).tanh(),
        mask=torch.ones(ROWS, 1, dtype=torch.bool),
        observation=normal(OBSERVATION),
        next_observation=normal(OBSERVATION),
        step_reward=normal(),
        terminated=torch.tensor([[True]] + [[False]] * (ROWS - 1)),
        truncated=torch.tensor([[False]] * (ROWS - 1) + [[True]]),
        source=torch.full((ROWS,), int(Source.REPLAY)),
        planned={NOISE.format(at): normal(ACTION) for at in ("observation", "next_observation")},
    )


def setting(counted: bool = False) -> Setting:
    return Setting(1, counted, COUNT if counted else ACTION)


def loss_of(learner: Learner, made: ActorCritic, batch: Trajectories) -> Tensor:
    objective = learner.terms
    return objective.loss(made.now(batch, frozenset({"observation"})), objective.plan(batch))


def perceptron(module: torch.nn.Module, x: Tensor) -> Tensor:
    layers = list(module.layers)
    for layer in layers[:-1]:
        x = torch.relu(x @ layer.weight.T + layer.bias)
    return x @ layers[-1].weight.T + layers[-1].bias


def members(module: torch.nn.Module, x: Tensor) -> Tensor:
    return torch.stack([perceptron(module.member(k), x) for k in range(module.members)])


def drawn(made: ActorCritic, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(u) and log pi(a), by the change of variables."""
    mean, log_std = perceptron(made.module.actor, observation).chunk(2, -1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    u = mean + log_std.exp() * noise
    return u.tanh(), (normal.log_prob(u) - torch.log1p(-(u.tanh() ** 2))).sum(-1)


def expected_losses(algorithm: SAC, made: ActorCritic, batch: Trajectories) -> dict[str, Tensor]:
    """By the equations of arXiv 1812.05905, the critics as their members; the temperature as it is."""
    alpha = (
        made.network("temperature").log_value.exp()
        if algorithm.temperature is None
        else torch.tensor(algorithm.temperature, dtype=torch.float64)
    )
    observation, following = batch.observation[:, 0], batch.next_observation[:, 0]
    with torch.no_grad():
        after, log_after = drawn(made, following, batch.planned[NOISE.format("next_observation")][:, 0])
        q_after = members(made.network("q_lagged"), torch.cat([following, after], 1)).squeeze(-1).amin(0) - alpha * log_after
        target = batch.step_reward[:, 0] + algorithm.discount * (~batch.terminated[:, 0]).double() * q_after
    q = made.network("q")(torch.cat([observation, batch.action[:, 0]], 1)).squeeze(-1)
    action, log_prob = drawn(made, observation, batch.planned[NOISE.format("observation")][:, 0])
    q_fresh = made.network("q")(torch.cat([observation, action], 1)).squeeze(-1).amin(0)
    found = {
        "critic": 0.5 * ((q - target) ** 2).mean(1).sum(),
        "policy": (alpha.detach() * log_prob - q_fresh).mean(),
    }
    if algorithm.temperature is None:
        found["temperature"] = -(alpha.log() * (log_prob.detach() - ACTION)).mean()
    return found


@pytest.mark.parametrize(
    "algorithm", [SAC(), SAC(temperature=0.2), SAC(critics=1), SAC(critics=5)], ids=["learned", "fixed", "one", "five"]
)
def test_losses_and_gradients_are_those_of_the_equations(algorithm) -> None:
    made, batch = policy(algorithm), transitions()
    expected = expected_losses(algorithm, made, batch)
    trained = {"critic": "q", "policy": "actor", "temperature": "temperature"}
    learners = algorithm.learned(setting())
    assert {learner.name for learner in learners} == expected.keys()
    for learner in learners:
        own = list(made.network(trained[learner.name]).parameters())
        loss = loss_of(learner, made, batch)
        torch.testing.assert_close(loss, expected[learner.name], rtol=1e-12, atol=1e-12)
        gradients = torch.autograd.grad(loss, own, retain_graph=True)
        references = torch.autograd.grad(expected[learner.name], own, retain_graph=True)
        for gradient, reference in zip(gradients, references, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-12)


def test_a_terminal_state_is_worth_its_reward_whatever_the_temperature() -> None:
    for alpha in (0.0, 1.0, 1e6):
        algorithm = SAC(temperature=alpha)
        made, batch = policy(algorithm), transitions()
        spoilt = batch.replace(next_observation=torch.where(batch.terminated[..., None], math.nan, batch.next_observation))
        target = next(x for x in algorithm.learned(setting()) if x.name == "critic").terms.terms[0].target
        values = target(made.now(spoilt), spoilt, None)
        assert values[0] == batch.step_reward[0]
        assert values.isfinite().all()
        bootstrapped = values[-1] - batch.step_reward[-1]
        assert bootstrapped.abs() > 0  # a limit is no end


def test_gradients_are_finite_and_unchanged_where_a_terminal_state_is_not_a_number() -> None:
    algorithm = SAC()
    made, batch = policy(algorithm), transitions()
    spoilt = batch.replace(next_observation=torch.where(batch.terminated[..., None], math.nan, batch.next_observation))
    critic = next(x for x in algorithm.learned(setting()) if x.name == "critic")
    own = list(made.network("q").parameters())
    clean, dirty = (torch.autograd.grad(loss_of(critic, made, b), own) for b in (batch, spoilt))
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


def test_discrete_actions_are_summed_over() -> None:
    algorithm = SAC(temperature=0.3)
    made, batch = policy(algorithm, counted=True), transitions(counted=True)
    observation, following = batch.observation[:, 0], batch.next_observation[:, 0]
    learners = {x.name: x for x in algorithm.learned(setting(True))}
    log_pi = torch.log_softmax(perceptron(made.module.actor, observation), -1)
    q = made.network("q")(observation)
    loss = (log_pi.exp() * (0.3 * log_pi - q.amin(0))).sum(-1).mean()
    own = list(made.module.actor.parameters())
    references = torch.autograd.grad(loss, own)
    for gradient, reference in zip(torch.autograd.grad(loss_of(learners["policy"], made, batch), own), references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        log_after = torch.log_softmax(perceptron(made.module.actor, following), -1)
        value = (log_after.exp() * (made.network("q_lagged")(following).amin(0) - 0.3 * log_after)).sum(-1)
        target = batch.step_reward[:, 0] + 0.99 * (~batch.terminated[:, 0]).double() * value
        taken = torch.stack([q[k, torch.arange(ROWS), batch.action[:, 0]] for k in range(2)])
        expected = 0.5 * ((taken - target) ** 2).mean(1).sum()
    torch.testing.assert_close(loss_of(learners["critic"], made, batch).detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("counted", [False, True])
def test_the_entropy_is_told_where_the_temperature_is_fixed(counted: bool) -> None:
    """Where it is learned its own loss tells it: no second time."""
    made, batch = policy(SAC(), counted=counted), transitions(counted=counted)
    observation = batch.observation[:, 0]
    with torch.no_grad():
        if counted:
            log_pi = torch.log_softmax(perceptron(made.module.actor, observation), -1)
            entropy = -(log_pi.exp() * log_pi).sum(-1)
        else:
            entropy = -drawn(made, observation, batch.planned[NOISE.format("observation")][:, 0])[1]
    told = {}
    for temperature in (0.2, None):
        for learner in SAC(temperature=temperature).learned(setting(counted)):
            records: list[Record] = []
            planned = learner.terms.plan(batch)
            learner.terms.loss(made.now(planned, learner.terms.differentiates), planned, records=records)
            for record in records:
                if "entropy" in record.facts:
                    told[temperature, record.term] = record.facts["entropy"]
    assert list(told) == [(0.2, "policy_gradient"), (None, "temperature_loss")]
    for found in told.values():
        assert not found.requires_grad
        torch.testing.assert_close(found, entropy, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("aim", [-100.0, -2.0, 1.3])
def test_the_temperature_rises_where_the_entropy_is_below_its_target(aim) -> None:
    algorithm = SAC(target_entropy=aim)
    made, batch = policy(algorithm), transitions()
    learner = next(x for x in algorithm.learned(setting()) if x.name == "temperature")
    gradient = torch.autograd.grad(loss_of(learner, made, batch), made.network("temperature").parameters())[0]
    entropy = -drawn(made, batch.observation[:, 0], batch.planned[NOISE.format("observation")][:, 0])[1].mean()
    assert (gradient < 0) == (entropy < aim)
    torch.testing.assert_close(gradient, entropy - aim, rtol=1e-12, atol=1e-12)


def test_the_default_target_and_one_that_cannot_be_reached() -> None:
    assert SAC()._target(setting()) == -ACTION
    assert SAC()._target(setting(True)) == pytest.approx(0.98 * math.log(COUNT))
    with pytest.raises(InputError, match=r"target_entropy is 2.0; accepted: below 1.386"):
        SAC(target_entropy=2.0).learned(setting(True))
