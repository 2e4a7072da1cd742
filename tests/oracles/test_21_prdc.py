"""PRDC in closed form (arXiv 2306.06569): the nearest pair, what it pulls to, and what it becomes at the ends of beta."""

from pathlib import Path

import numpy as np
import pytest
import torch
from offline import SIZE, policy_of, rows

from unipg.algorithms.base import Setting, algorithm_named
from unipg.errors import InputError
from unipg.estimator import NearestAction, Objective, Planning
from unipg.front import train
from unipg.policies.actor_critic import ActorCritic
from unipg.replay import Pairs
from unipg.trajectories import Evaluation, Source, Trajectories

TD3_BC, PRDC = algorithm_named("td3_bc"), algorithm_named("prdc")
REPLAYED = (Source.REPLAY,)
THREE = Pairs(torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), torch.tensor([[-1.0], [1.0], [0.0]], dtype=torch.float64))


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


class Acting(Evaluation):
    """A policy that does `action` [N,1,A] at `seen` [N,O]."""

    def __init__(self, seen: torch.Tensor, action: torch.Tensor) -> None:
        self.seen, self.action = seen, action

    def observed(self, at: str) -> torch.Tensor:
        return self.seen

    def fresh_action(self, at: str, of: str = "actor") -> torch.Tensor:
        return self.action

    def where(self, mask: torch.Tensor) -> Evaluation:
        return self


def constraint(pairs: Pairs, seen: torch.Tensor, action: torch.Tensor, term: NearestAction) -> torch.Tensor:
    """The term's loss of an action [N,A]."""
    rows = len(seen)
    batch = Trajectories(
        action=torch.zeros(rows, 1),
        mask=torch.ones(rows, 1, dtype=torch.bool),
        observation=seen.unsqueeze(1),
        source=torch.full((rows,), int(Source.REPLAY)),
    )
    objective, planning = Objective((term,)), Planning(neighbours=lambda: pairs)
    return objective.loss(Acting(seen, action.unsqueeze(1)), objective.plan(batch, planning), planning)


def pairs_of(batch: Trajectories) -> Pairs:
    assert batch.observation is not None
    return Pairs(batch.observation[:, 0], batch.action[:, 0])


def gradient(algorithm, made: ActorCritic, batch: Trajectories, pairs: Pairs) -> torch.Tensor:
    objective, planning = algorithm.terms(Setting(1, False, SIZE, acts=True)), Planning(neighbours=lambda: pairs)
    planned = objective.plan(objective.prepare(batch), planning)
    loss = objective.loss(made.now(planned, objective.differentiates), planned, planning)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, made.networks["actor"])])


@pytest.mark.parametrize("search", ["tree", "all"])
def test_the_nearest_pair_by_hand(search) -> None:
    """Squared distances 3.88, 1.48, 27.68 at beta 2; 19.24, 36.04 at beta 10."""
    seen, action = column(0.4), column(0.8).requires_grad_()
    assert THREE.nearest(seen, action, 2.0, search=search).tolist() == [[1.0]]
    assert THREE.nearest(seen, action, 10.0, search=search).tolist() == [[-1.0]]
    loss = constraint(THREE, seen, action, NearestAction(rows=REPLAYED, beta=2.0, search=search))
    assert float(loss.detach()) == pytest.approx(0.04, abs=1e-12)
    assert float(torch.autograd.grad(loss, action)[0]) == pytest.approx(-0.4, abs=1e-12)


@pytest.mark.parametrize("search", ["tree", "all"])
def test_of_several_pairs_the_mean_action_counts(search) -> None:
    assert THREE.nearest(column(0.4), column(0.8), 2.0, 2, search).tolist() == [[0.0]]
    assert THREE.nearest(column(0.4), column(0.8), 2.0, 3, search).tolist() == [[0.0]]
    assert THREE.nearest(column(2.9), column(0.8), 2.0, 2, search).tolist() == [[0.5]]


def test_a_large_beta_is_behaviour_cloning_to_the_last_bit() -> None:
    batch, cloning, constrained = rows(), TD3_BC(), PRDC(beta=1e6)
    expected = gradient(cloning, policy_of(cloning, "deterministic"), batch, pairs_of(batch))
    assert torch.equal(gradient(constrained, policy_of(constrained, "deterministic"), batch, pairs_of(batch)), expected)


def test_without_a_critic_the_nearest_actions_are_copied() -> None:
    algorithm, batch = PRDC(alpha=0.0, beta=0.5), rows()
    made, others = policy_of(algorithm, "deterministic"), pairs_of(rows())
    action = made.network("actor")(batch.observation[:, 0]).tanh()
    distance = (0.25 * (batch.observation - others.observation).square().sum(-1)) + (action.unsqueeze(1) - others.action).square().sum(-1)
    found = others.action[distance.argmin(1)]
    assert not torch.equal(found, batch.action[:, 0])  # or this were behaviour cloning
    expected = torch.autograd.grad((action - found).square().mean(), made.networks["actor"])
    torch.testing.assert_close(gradient(algorithm, made, batch, others), torch.cat([g.flatten() for g in expected]), rtol=1e-10, atol=1e-12)


def test_the_search_has_no_gradient() -> None:
    """What autograd finds is the gradient with the found actions held still, and that of finite differences."""
    draw = torch.Generator().manual_seed(1)
    pairs = Pairs(*(torch.randn(30, 2, generator=draw, dtype=torch.float64) for _ in range(2)))
    seen = torch.randn(5, 2, generator=draw, dtype=torch.float64)
    action, term = torch.randn(5, 2, generator=draw, dtype=torch.float64).requires_grad_(), NearestAction(rows=REPLAYED)
    found = pairs.nearest(seen, action, 2.0)
    slope = torch.autograd.grad(constraint(pairs, seen, action, term), action)[0]
    torch.testing.assert_close(slope, 2 * (action.detach() - found) / action.numel(), rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda a: constraint(pairs, seen, a, term), (action,))


def test_the_size_of_the_values_counts_for_nothing() -> None:
    algorithm, batch = PRDC(), rows()
    made = policy_of(algorithm, "deterministic")
    before = gradient(algorithm, made, batch, pairs_of(batch))
    with torch.no_grad():
        for parameter in list(made.network("q").parameters())[-2:]:  # of the last layer: the values themselves
            parameter.mul_(1000)
    torch.testing.assert_close(gradient(algorithm, made, batch, pairs_of(batch)), before, rtol=1e-9, atol=1e-12)


def test_values_that_are_all_zero_leave_the_constraint() -> None:
    algorithm, batch = PRDC(), rows()
    made = policy_of(algorithm, "deterministic")
    with torch.no_grad():
        for parameter in list(made.network("q").parameters())[-2:]:
            parameter.zero_()
    expected = gradient(PRDC(alpha=0.0), made, batch, pairs_of(batch))
    torch.testing.assert_close(gradient(algorithm, made, batch, pairs_of(batch)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 4])
def test_a_tree_finds_what_comparing_all_finds(count: int) -> None:
    draw = torch.Generator().manual_seed(2)
    pairs = Pairs(torch.randn(500, 5, generator=draw), torch.randn(500, 3, generator=draw))
    seen, action = torch.randn(200, 5, generator=draw), torch.randn(200, 3, generator=draw)
    assert torch.equal(pairs.nearest(seen, action, 2.0, count, "tree"), pairs.nearest(seen, action, 2.0, count, "all"))


def test_a_large_beta_is_behaviour_cloning_in_a_run_too(tmp_path: Path) -> None:
    """States in the policy's own units, actions in the environment's: [−2, 2]."""
    draw = np.random.default_rng(0)
    seen = draw.standard_normal((60, 3)).astype(np.float32) * [1, 100, 0.01] + [0, 50, 0]
    np.savez(
        tmp_path / "data.npz",
        observation=seen,
        next_observation=seen[::-1],
        action=draw.uniform(-2, 2, (60, 1)).astype(np.float32),
        reward=draw.standard_normal(60).astype(np.float32),
        terminated=np.zeros(60, bool),
    )
    weights = []
    for name, algorithm in (("cloning", TD3_BC()), ("constrained", PRDC(beta=1e6)), ("near", PRDC(beta=0.0))):
        train(
            algorithm,
            output=str(tmp_path / name),
            threads=1,
            environment={"id": "Pendulum-v1", "evaluation_episodes": 1},
            dataset={"path": str(tmp_path / "data.npz"), "batch": 16, "updates": 6},
            controller={"hidden": [8]},
            training={"iterations": 1, "evaluate_every": 0},
        )
        weights.append(ActorCritic.load(tmp_path / name / "model").module.actor.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][key]) for key, value in weights[0].items())


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (lambda: PRDC(beta=-1.0), "beta is -1.0"),
        (lambda: PRDC(neighbours=0), "neighbours is 0"),
        (lambda: PRDC(search="forest"), "tree"),
        (lambda: THREE.nearest(column(0.0), column(0.0), 2.0, 4), "1 to 3"),
        (lambda: Pairs(torch.zeros(2, 1), torch.tensor([[0.0], [np.nan]])), "'action' is not finite in row 1"),
        (lambda: Pairs(torch.tensor([[np.inf], [0.0]]), torch.zeros(2, 1)), "'observation' is not finite in row 0"),
        (lambda: Pairs(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1)), "vectors"),
        (lambda: Planning().neighbours(), "dataset"),
    ],
)
def test_what_makes_no_sense_is_refused(refused, told: str) -> None:
    with pytest.raises(InputError, match=told):
        refused()
