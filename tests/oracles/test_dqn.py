"""Deep Q-learning against its equations in plain torch, in float64; a fixed point that a table gives; epsilon."""

import pytest
import torch
from torch import Tensor

from unipg import InputError, Source, Trajectories
from unipg.algorithms import DQN, Setting
from unipg.critics.regression import DISCOUNT
from unipg.estimator import Progress
from unipg.policies.actions import GreedyActions
from unipg.policies.actor_critic import ActorCritic

ROWS, OBSERVATION, COUNT = 12, 3, 4
SETTING = Setting(1, True, COUNT)


def policy(algorithm: DQN, hidden: tuple[int, ...] = (8, 8), inputs: int = OBSERVATION, count: int = COUNT) -> ActorCritic:
    made = ActorCritic(
        (inputs,),
        GreedyActions(count),
        hidden=hidden,
        activation="relu",
        init="torch",
        critic=False,
        networks=algorithm.networks(True),
        seed=5,
    )
    made.module.double()
    with torch.no_grad():  # a copy that lags
        for parameter in made.network("q_lagged").parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return made


def transitions() -> Trajectories:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(ROWS, 1, *shape, generator=draw, dtype=torch.float64)

    return Trajectories(
        action=torch.randint(COUNT, (ROWS, 1), generator=draw),
        mask=torch.ones(ROWS, 1, dtype=torch.bool),
        observation=normal(OBSERVATION),
        next_observation=normal(OBSERVATION),
        step_reward=3 * normal(),
        terminated=torch.tensor([[True]] + [[False]] * (ROWS - 1)),
        truncated=torch.tensor([[False]] * (ROWS - 1) + [[True]]),
        source=torch.full((ROWS,), int(Source.REPLAY)),
    )


def values(made: ActorCritic, name: str, x: Tensor) -> Tensor:
    layers = list(made.network(name).layers)
    for layer in layers[:-1]:
        x = torch.relu(torch.addmm(layer.bias, x, layer.weight))
    return torch.addmm(layers[-1].bias, x, layers[-1].weight)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_losses_and_gradients_are_those_of_the_equations(double, several) -> None:
    algorithm = DQN(double=double, discount=0.9)
    made, batch = policy(algorithm), transitions()
    factor = torch.full((ROWS,), 0.9, dtype=torch.float64)
    if several:
        factor = 0.9 ** torch.arange(1.0, ROWS + 1, dtype=torch.float64)
        batch = batch.with_planned(**{DISCOUNT: factor.unsqueeze(1)})
    observation, following = batch.observation[:, 0], batch.next_observation[:, 0]
    with torch.no_grad():
        best = values(made, "q" if double else "q_lagged", following).argmax(-1)
        after = values(made, "q_lagged", following)[torch.arange(ROWS), best]
        target = batch.step_reward[:, 0] + factor * torch.where(batch.terminated[:, 0], 0, after)
    error = values(made, "q", observation)[torch.arange(ROWS), batch.action[:, 0]] - target
    assert (error.abs() > 1).any()
    assert (error.abs() < 1).any()
    expected = torch.where(error.abs() <= 1, 0.5 * error**2, error.abs() - 0.5).mean()
    (learner,) = algorithm.learned(SETTING)
    own = list(made.network("q").parameters())
    loss = learner.terms.loss(made.now(batch), learner.terms.plan(batch))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for gradient, reference in zip(torch.autograd.grad(loss, own), torch.autograd.grad(expected, own), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-12)


def test_the_network_of_values_is_what_acts() -> None:
    made = policy(DQN())
    assert made.network("q") is made.network("actor")
    assert made.networks.keys() == {"q", "q_lagged"}
    observation = torch.randn(50, OBSERVATION, dtype=torch.float64)
    assert made.actor()(observation.float().numpy(), None).tolist() == values(made, "q", observation).argmax(-1).tolist()


@pytest.mark.parametrize(("ends", "fixed"), [("truncated", 10.0), ("terminated", 1 + 0.9 + 0.81 + 0.729 + 0.6561)])
def test_a_limit_is_no_end(ends, fixed) -> None:
    """One state and reward 1, discount 0.9; episodes of five steps. Values of the steps are in a table: an input each. A limit leaves the
    state what it was, which is worth 10; five steps that terminate are worth 4.0951."""
    algorithm = DQN(discount=0.9)
    made = policy(algorithm, (), 5, 1)
    steps = torch.eye(5, dtype=torch.float64)
    last = torch.tensor([False] * 4 + [True])
    batch = Trajectories(
        action=torch.zeros(5, 1, dtype=torch.long),
        mask=torch.ones(5, 1, dtype=torch.bool),
        observation=steps.unsqueeze(1),
        next_observation=steps[[1, 2, 3, 4, 4]].unsqueeze(1),
        step_reward=torch.ones(5, 1, dtype=torch.float64),
        terminated=(last if ends == "terminated" else ~last & last).unsqueeze(1),
        truncated=(last if ends == "truncated" else ~last & last).unsqueeze(1),
        source=torch.full((5,), int(Source.REPLAY)),
    )
    (learner,) = algorithm.learned(SETTING)
    target = learner.terms.terms[0].target
    lagged = made.network("q_lagged").layers[0]
    for _ in range(250):
        found = target(made.now(batch), batch, None)
        with torch.no_grad():
            lagged.weight.copy_(found.reshape(5, 1))
            lagged.bias.zero_()
    assert found[0].item() == pytest.approx(fixed, abs=1e-9)


def test_epsilon_falls_over_its_share_of_the_run() -> None:
    algorithm = DQN(epsilon=1.0, final_epsilon=0.1, exploration=0.5)
    assert [algorithm.explores(Progress(step, 1000)) for step in (0, 250, 500, 1000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_settings() -> None:
    for wrong, said in (
        ({"copy_every": 0}, "algorithm.copy_every is 0; accepted: 1 or more"),
        ({"exploration": 0.0}, "algorithm.exploration is 0; accepted: above 0, at most 1"),
        ({"epsilon": 1.5}, r"algorithm.epsilon is 1.5; accepted: a number in \[0, 1\]"),
        ({"discount": -0.1}, "algorithm.discount is -0.1"),
        ({"n_step": -3}, "algorithm.n_step is -3; accepted: 1 or more"),
    ):
        with pytest.raises(InputError, match=said):
            DQN(**wrong)
