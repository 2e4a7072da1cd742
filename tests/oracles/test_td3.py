"""TD3 and DDPG against their equations in plain torch, in float64; what moves at which update; noise on the target's action."""

import math

import pytest
import torch
from torch import Tensor

from unipg import InputError, Source, Trajectories
from unipg.algorithms import DDPG, TD3, Setting
from unipg.estimator import Progress
from unipg.policies.actions import DeterministicActions
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.now import NOISE

ROWS, OBSERVATION, ACTION = 9, 3, 2
SETTING = Setting(1, False, ACTION)


def policy(algorithm: TD3, seed: int = 5) -> ActorCritic:
    made = ActorCritic(
        (OBSERVATION,),
        DeterministicActions((ACTION,), (-2.0, 0.0), (2.0, 50.0)),
        hidden=(8, 8),
        activation="relu",
        init="torch",
        critic=False,
        networks=algorithm.networks(False),
        seed=seed,
    )
    made.module.double()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():  # lagged copies that lag
        for name in ("q_lagged", "actor_lagged"):
            for parameter in made.network(name).parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return made


def transitions(rows: int = ROWS) -> Trajectories:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, 1, *shape, generator=draw, dtype=torch.float64)

    return Trajectories(
        action=normal(ACTION).tanh(),
        mask=torch.ones(rows, 1, dtype=torch.bool),
        observation=normal(OBSERVATION),
        next_observation=normal(OBSERVATION),
        step_reward=normal(),
        terminated=torch.tensor([[True]] + [[False]] * (rows - 1)),
        truncated=torch.tensor([[False]] * (rows - 1) + [[True]]),
        source=torch.full((rows,), int(Source.REPLAY)),
        planned={NOISE.format(at): normal(ACTION) for at in ("observation", "next_observation")},
    )


def perceptron(module: torch.nn.Module, x: Tensor) -> Tensor:
    layers = list(module.layers)
    for layer in layers[:-1]:
        x = torch.relu(x @ layer.weight.T + layer.bias)
    return x @ layers[-1].weight.T + layers[-1].bias


def values(made: ActorCritic, name: str, observation: Tensor, action: Tensor) -> Tensor:
    """[K,N]"""
    weights = made.network(name)
    x = torch.cat([observation, action], 1)
    found = []
    for k in range(weights.members):
        h = x
        *hidden, (last, shift) = [layer.of(k) for layer in weights.layers]
        for weight, bias in hidden:
            h = torch.relu(h @ weight + bias)
        found.append((h @ last + shift).squeeze(-1))
    return torch.stack(found)


def losses(algorithm: TD3, made: ActorCritic, batch: Trajectories) -> dict[str, Tensor]:
    """Fujimoto et al. 2018, algorithm 1."""
    observation, following = batch.observation[:, 0], batch.next_observation[:, 0]
    with torch.no_grad():
        after = perceptron(made.network("actor_lagged"), following).tanh()
        if algorithm.smoothing:
            noise = (batch.planned[NOISE.format("next_observation")][:, 0] * algorithm.smoothing).clamp(-algorithm.limit, algorithm.limit)
            after = (after + noise).clamp(-1, 1)
        going_on = (~batch.terminated[:, 0]).double()
        target = batch.step_reward[:, 0] + algorithm.discount * going_on * values(made, "q_lagged", following, after).amin(0)
    q = values(made, "q", observation, batch.action[:, 0])
    action = perceptron(made.module.actor, observation).tanh()
    return {"critic": ((q - target) ** 2).mean(1).sum(), "policy": -values(made, "q", observation, action)[0].mean()}


TRAINED = {"critic": "q", "policy": "actor"}


@pytest.mark.parametrize("algorithm", [TD3(), DDPG(), TD3(critics=4, smoothing=1.0, limit=0.1), TD3(smoothing=None)])
def test_losses_and_gradients_are_those_of_the_equations(algorithm) -> None:
    made, batch = policy(algorithm), transitions()
    expected = losses(algorithm, made, batch)
    for learner in algorithm.learned(SETTING):
        own = list(made.network(TRAINED[learner.name]).parameters())
        objective = learner.terms
        loss = objective.loss(made.now(batch, objective.differentiates), objective.plan(batch))
        torch.testing.assert_close(loss, expected[learner.name], rtol=1e-12, atol=1e-12)
        gradients = torch.autograd.grad(loss, own)
        references = torch.autograd.grad(expected[learner.name], own)
        for gradient, reference in zip(gradients, references, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-12)


def test_ddpg_is_td3_without_its_remedies() -> None:
    plain, stripped = DDPG(), TD3(critics=1, delay=1, smoothing=None, limit=None)
    assert plain.networks(False) == stripped.networks(False)
    assert plain.learned(SETTING) == stripped.learned(SETTING)
    assert TD3().learned(SETTING) != plain.learned(SETTING)


def test_the_noise_of_a_target_is_of_each_row_and_dimension_within_its_limit_and_the_box() -> None:
    algorithm = TD3(smoothing=0.2, limit=0.5)
    made, batch = policy(algorithm), transitions(4000)
    with torch.no_grad():  # an actor far inside the box, so that nothing is clipped there
        for parameter in made.network("actor_lagged").parameters():
            parameter.zero_()
    noise = torch.randn(4000, 1, ACTION, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = batch.with_planned(**{NOISE.format("next_observation"): noise})
    added = made.now(batch).fresh("next_observation", "actor_lagged", 0.2, 0.5).action
    torch.testing.assert_close(added, (0.2 * noise[:, 0]).clamp(-0.5, 0.5))
    assert added.std(0) == pytest.approx([0.2, 0.2], rel=0.05)  # in units of half the distance of bounds, in each dimension
    assert len(added.unique()) > 7000
    wide = made.now(batch).fresh("next_observation", "actor_lagged", 5.0, None).action
    assert wide.abs().max() == 1
    assert ((made.environment_action(wide.numpy()) >= [-2, 0]) & (made.environment_action(wide.numpy()) <= [2, 50])).all()


def test_constant_critics_are_reduced_as_documented() -> None:
    """Of +3 and −3 the target takes the least, the policy the first."""
    algorithm = TD3()
    made, batch = policy(algorithm), transitions()
    with torch.no_grad():
        for name in ("q", "q_lagged"):
            for parameter in made.network(name).parameters():
                parameter.zero_()
            made.network(name).layers[-1].bias.copy_(torch.tensor([3.0, -3.0]).reshape(2, 1, 1))
    learners = {learner.name: learner for learner in algorithm.learned(SETTING)}
    term = learners["critic"].terms.terms[0]
    target = term.target(made.now(batch), batch, None)
    torch.testing.assert_close(target[1:], batch.step_reward[1:] - 3 * 0.99)
    assert target[0] == batch.step_reward[0]
    objective = learners["policy"].terms
    assert objective.loss(made.now(batch, objective.differentiates), objective.plan(batch)).item() == pytest.approx(-3)


def test_a_terminal_state_that_is_not_a_number_changes_nothing() -> None:
    algorithm = TD3()
    made, batch = policy(algorithm), transitions()
    spoilt = batch.replace(next_observation=torch.where(batch.terminated[..., None], math.nan, batch.next_observation))
    objective = algorithm.learned(SETTING)[0].terms
    own = list(made.network("q").parameters())
    clean, dirty = (torch.autograd.grad(objective.loss(made.now(b), objective.plan(b)), own) for b in (batch, spoilt))
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


@pytest.mark.parametrize("kind", [TD3, DDPG])
def test_settings(kind) -> None:
    assert kind(exploration=0.3).explores(Progress(0, 10)) == 0.3
    for wrong, said in (
        ({"delay": 0}, "algorithm.delay is 0; accepted: 1 or more"),
        ({"n_step": 0}, "algorithm.n_step is 0; accepted: 1 or more"),
        ({"tau": 1.5}, "algorithm.tau is 1.5"),
        ({"exploration": -0.1}, "algorithm.exploration is -0.1; accepted: 0 or more"),
    ):
        with pytest.raises(InputError, match=said):
            kind(**wrong)
    for wrong in ({"smoothing": -1.0}, {"limit": -1.0}, {"tau": 0.0}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is "):
            kind(**wrong).learned(SETTING)
    with pytest.raises(InputError, match=r"algorithm.critics is 0; accepted: 1 or more"):
        kind(critics=0)
