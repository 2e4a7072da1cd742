"""What critics promised against what came of it, on transitions whose returns can be worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from unipg.algorithms import DDPG, SAC, TD3, OffPolicyMDPO
from unipg.critics import Bootstrapped, Greedy, Regression, Surprise, Value
from unipg.critics.values import bonus_of
from unipg.estimator import GAE, Planning
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.replay import Ring, transition_columns
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import generator
from unipg.training import Trainer, TrainingRecipe
from unipg.training.diagnostics import value_metrics
from unipg.training.feeds.promises import promised
from unipg.training.feeds.replay import ReplayRecipe
from unipg.training.run import wanted_of
from unipg.training.tracking import Tracker
from unipg.trajectories import Evaluation, Trajectories

VALUES = torch.tensor([3.0, 5.0])


class Said(Evaluation):
    """Two actions, worth 3 and 5 everywhere, each of which the policy takes with probability ½."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__(torch.full(values.shape, -float(np.log(2))))
        self.values = values

    def every(self, at: str) -> Evaluation:
        return Said(VALUES.expand(*self.values.shape, 2))

    def action_value(self, network: str, members: int | None = None) -> torch.Tensor:
        return self.values.unsqueeze(0)


class Constant:
    counts_actions, actions_per_step, device = True, 1, torch.device("cpu")

    def now(self, batch: Trajectories) -> Evaluation:
        return Said(VALUES[batch.action.long()])


def ring_of(*episodes: tuple[list[float], str]) -> Ring:
    """Episodes one after the other: rewards, and how each ends (`terminated`, `truncated`, or neither)."""
    ring = Ring(None, transition_columns((1,), "float32", (), "int64"), 100)
    for number, (rewards, end) in enumerate(episodes):
        n = len(rewards)
        last = np.arange(n) == n - 1
        ring.append(
            observation=np.zeros((n, 1), np.float32), next_observation=np.zeros((n, 1), np.float32), action=np.ones(n, np.int64),
            reward=np.array(rewards, np.float32), terminated=last & (end == "terminated"), truncated=last & (end == "truncated"),
            episode=np.full(n, number),
        )  # fmt: skip
    return ring


def found(ring: Ring, value=Value("q"), *, discount: float = 0.5, newest: int = 100, ahead: int = 1) -> dict[str, float]:
    regression = Regression(of="q", target=Bootstrapped(value, discount, Greedy("q")))
    return promised(ring, Constant(), regression, Planning(), generator(0, "promises", 0), newest=newest, ahead=ahead)


def test_a_terminal_episode_is_its_discounted_rewards() -> None:
    """Rewards 4, 2, 8 at discount ½: returns 4 + 1 + 2 = 7, 2 + 4 = 6, 8; mean 7. The critic said 5 of each action that was taken."""
    assert found(ring_of(([4, 2, 8], "terminated"))) == {"values/predicted": 5.0, "values/observed": 7.0, "values/steps": 3.0}


def test_a_limit_is_bootstrapped_and_unfinished_episodes_say_nothing() -> None:
    """After the limit max(3, 5) = 5 follows: 8 + 2.5 = 10.5, whose bootstrap weighs ½; 2 + 5.25, 4 + 3.625."""
    told = found(ring_of(([4, 2, 8], "truncated"), ([100, 100], "")))
    assert told["values/steps"] == 3
    assert told["values/observed"] == pytest.approx((10.5 + 7.25 + 7.625) / 3)


def test_steps_that_the_critic_itself_must_answer_for_are_left_out() -> None:
    """At discount 0.8 the weight behind the limit is 0.8, 0.64, 0.512, 0.41 from the last step backwards: the first step alone counts."""
    told = found(ring_of(([1, 1, 1, 1], "truncated")), discount=0.8)
    assert told["values/steps"] == 1
    assert told["values/observed"] == pytest.approx(1 + 0.8 + 0.64 + 0.512 + 0.4096 * 5, rel=1e-6)
    assert found(ring_of(([1, 1], "truncated")), discount=1.0) == {}


def test_episodes_that_ended_before_are_not_told_again() -> None:
    ring = ring_of(([7], "terminated"), ([4, 2, 8], "terminated"))
    assert found(ring, newest=2)["values/observed"] == 7.0
    assert found(ring, newest=2)["values/steps"] == 3
    assert found(ring_of(([7], "terminated"), ([1, 1], "")), newest=2) == {}


@pytest.mark.parametrize(("ahead", "extra"), [(1, [0.5 + 0.25, 0.5, 0]), (2, [0.25, 0, 0])])
def test_an_entropy_bonus_counts_where_the_target_has_it(ahead: int, extra: list[float]) -> None:
    """−alpha · log ½ = alpha · log 2 at each later step; of returns over two steps at every second one alone."""
    alpha = 1 / float(np.log(2))
    told = found(ring_of(([4, 2, 8], "terminated")), Value("q") + Surprise(alpha), ahead=ahead)
    assert told["values/observed"] == pytest.approx(7 + sum(extra) / 3)


def test_what_is_added_to_values() -> None:
    assert bonus_of(Value("q")) is None
    assert bonus_of(Value("q") + Surprise(0.2)).symbol() == Surprise(0.2).symbol()


@pytest.mark.parametrize("algorithm", [SAC(), TD3(), DDPG(n_step=3), OffPolicyMDPO()], ids=lambda a: a.name)
def test_looking_back_changes_nothing(algorithm, tmp_path: Path, monkeypatch) -> None:
    """The same weights with and without; and what is told is there once episodes have ended."""
    left = []
    for looks in (True, False):
        experience = EnvironmentRecipe("Pendulum-v1", 1, 30, options={"max_episode_steps": 20}, evaluation_episodes=1).build(0)
        policy = ActorCriticRecipe([8]).build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
        if not looks:
            monkeypatch.setattr("unipg.training.feeds.replay.promised", lambda *_, **__: {})
        recipe = ReplayRecipe(batch=8, warmup=8, capacity=100)
        run = Trainer(
            dataclasses.replace(algorithm, discount=0.9), policy, experience, folder=tmp_path / str(looks),
            training=TrainingRecipe(iterations=3), replay=recipe, tracker=Tracker(tmp_path / str(looks)),
        )  # fmt: skip
        run.train()
        rows = run.tracker.rows()
        assert ["values/observed" in row for row in rows] == [looks] * 3
        assert all(row["values/observed"] < 0 for row in rows if looks)  # Pendulum's rewards are costs
        left.append(torch.cat([p.detach().reshape(-1) for p in policy.module.parameters()]))
    assert torch.equal(*left)


def test_a_critic_of_states_is_told_beside_its_targets() -> None:
    """One row of three steps, V = 1, 2, 3, rewards 1, terminal, gamma = lambda = 1: G = 3, 2, 1, so G − V = 2, 0, −2, four times var G."""
    steps = torch.ones(1, 3)
    batch = Trajectories(
        action=torch.zeros(1, 3), mask=torch.ones(1, 3, dtype=torch.bool), step_reward=steps, value=torch.tensor([[1.0, 2.0, 3.0]]),
        terminated=torch.tensor([[False, False, True]]), truncated=torch.zeros(1, 3, dtype=torch.bool),
    )  # fmt: skip
    found = value_metrics(batch, GAE(gamma=1.0, lam=1.0))
    assert found == pytest.approx({"values/predicted": 2.0, "values/lambda_return": 2.0, "values/explained_variance": 1 - 4.0})
