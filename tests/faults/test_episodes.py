"""Ends of episodes, resets and kept transitions, where other libraries have gone wrong: group A, and what counts steps (D)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from unipg.algorithms import DDPG, DQN, MDPO, PPO, SAC, TD3, OffPolicyMDPO
from unipg.algorithms.base import Algorithm
from unipg.estimator.advantages import generalized_advantage
from unipg.laws.transitions import Rows, cases_of, step
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.base import Demand
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.feeds.replay import Replay, ReplayRecipe
from unipg.training.run import wanted_of


class Counting(gymnasium.Env):
    """Shows (episode, step); 1 a step; episodes of three steps, the even ones terminate and the odd ones are cut."""

    observation_space = spaces.Box(0.0, 1e6, (2,), np.float32)
    action_space: spaces.Space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self.shown(), {}

    def shown(self) -> np.ndarray:
        return np.array([self.episode, self.time], np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        ended = self.time == 3
        return self.shown(), 1.0, ended and self.episode % 2 == 0, ended and self.episode % 2 == 1, {}


class Endless(gymnasium.Env):
    """One state, one reward, and never an end of its own."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.ones(1, np.float32), 1.0, False, False, {}


def arrays(num_envs: int = 1, **_: Any) -> SyncVectorEnv:
    return SyncVectorEnv([Counting] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


gymnasium.register("FaultCounting-v0", entry_point=Counting, vector_entry_point=arrays)
gymnasium.register("FaultEndless-v0", entry_point=Endless, max_episode_steps=5)
MODES = pytest.mark.parametrize("vectorized", [False, True], ids=["same step", "next step"])


def trainer(folder: Path, algorithm: Algorithm, environment: EnvironmentRecipe, *, hidden: list[int], **training: Any) -> Trainer:
    experience = environment.build(0)
    controller = ActorCriticRecipe(hidden, normalize_observations=training.pop("normalize", False))
    policy = controller.build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
    optimizer, replay = training.pop("optimizer", OptimizerRecipe()), training.pop("replay", None)
    recipe = TrainingRecipe(**training)
    return Trainer(algorithm, policy, experience, folder=folder, training=recipe, optimizer=optimizer, replay=replay)


def test_a_time_limit_is_no_end_of_the_world_for_replay(tmp_path: Path) -> None:
    """Reward 1 for ever at discount 0.9 is worth 10; with the limit of 5 steps as an end it would be 3.57 on average."""
    made = trainer(
        tmp_path,
        DQN(discount=0.9, copy_every=5),
        EnvironmentRecipe("FaultEndless-v0", 1, 600, vectorized=False, evaluation_episodes=1),
        hidden=[],
        iterations=1,
        optimizer=OptimizerRecipe(0.1),
        replay=ReplayRecipe(batch=16, warmup=10, updates_per_step=1.0, capacity=1000),
    )
    made.train()
    values = made.policy.network("q")(torch.ones(1, 1)).detach()  # type: ignore[attr-defined]
    assert values.flatten().tolist() == pytest.approx([10, 10], abs=0.3)


def test_a_time_limit_is_no_end_of_the_world_for_rollouts(tmp_path: Path) -> None:
    made = trainer(
        tmp_path,
        PPO(gamma=0.9, lam=0.5, value_weight=1.0),
        EnvironmentRecipe("FaultEndless-v0", 2, 20, vectorized=False, evaluation_episodes=1),
        hidden=[],
        iterations=150,
        epochs=4,
        optimizer=OptimizerRecipe(0.1, clip_norm=None),
        save_every=150,
    )
    made.train()
    assert made.policy.value(torch.ones(1, 1)).item() == pytest.approx(10, abs=0.3)  # type: ignore[attr-defined]


def test_what_follows_a_step_by_its_kind() -> None:
    """Discount 1, lambda 0, V = 0: A is what stands for V(s'). A step that goes on, a terminal one, a cut one, the window's edge."""
    value = torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0]])
    ends = {
        "terminated": torch.tensor([[False, True, False, False, False]]),
        "truncated": torch.tensor([[False, False, True, False, False]]),
    }
    bootstrap = torch.tensor([[0.0, 50.0, 7.0, 0.0, 9.0]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    found = generalized_advantage(torch.zeros(1, 5), value, mask, 1.0, 0.0, **ends, bootstrap_value=bootstrap)
    assert found.tolist() == [[3.0, -3.0, 7.0, 0.0, 9.0]]


def test_values_of_the_next_episode_stay_there() -> None:
    """V = 1 in one episode and 100 in the next, no rewards, discount and lambda 1: 0 at the cut, not 99; each as it is alone."""
    value, boot = torch.tensor([[1.0, 1.0, 100.0, 100.0]]), torch.tensor([[0.0, 1.0, 0.0, 100.0]])
    cut = torch.tensor([[False, True, False, True]])
    mask, zero = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4)
    none = torch.zeros_like(cut)
    both = generalized_advantage(zero, value, mask, 1.0, 1.0, terminated=none, truncated=cut, bootstrap_value=boot)
    assert both.tolist() == [[0.0] * 4]
    for part in (slice(0, 2), slice(2, 4)):
        alone = generalized_advantage(
            zero[:, part], value[:, part], mask[:, part], 1.0, 1.0, terminated=none[:, part], truncated=cut[:, part],
            bootstrap_value=boot[:, part],
        )  # fmt: skip
        assert torch.equal(alone, both[:, part])


def test_the_windows_last_value_is_counted_once() -> None:
    """V(end) = 7, rewards 1, 2, discount ½: lambda 1 gives G − V, lambda 0 the errors of single steps."""
    value, reward = torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 2.0]])
    mask, boot = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0.0, 7.0]])
    no = torch.zeros_like(mask)
    whole, single = (
        generalized_advantage(reward, value, mask, 0.5, lam, terminated=no, truncated=no, bootstrap_value=boot) for lam in (1.0, 0.0)
    )
    assert whole.tolist() == [[1 + 0.5 * (2 + 3.5) - 3, 2 + 3.5 - 5]]
    assert single.tolist() == [[1 + 2.5 - 3, 2 + 3.5 - 5]]


@MODES
def test_three_steps_are_three_however_the_environment_resets(vectorized: bool, tmp_path: Path) -> None:
    """Returns and lengths of rollouts, of kept transitions and of evaluations; statistics count steps and no resets."""
    recipe = EnvironmentRecipe("FaultCounting-v0", 2, 25, vectorized=vectorized, evaluation_episodes=5)
    experience = recipe.build(0)
    controller = ActorCriticRecipe([4], normalize_observations=True)
    policy = controller.build(experience.observation_space, experience.action_space, 0)
    batch, metrics = experience.collect(policy, Demand(iteration=0))
    assert metrics["return/mean"] == metrics["length/mean"] == 3
    policy.observe(batch, lambda counts: counts)
    assert policy.module.normalizer is not None
    assert policy.module.normalizer.count == batch.mask.sum() == metrics["environment/steps"]
    [result] = experience.evaluate(policy, 0)
    assert {name: metric["value"] for name, metric in result.metrics.items()} == {"return": 3, "length": 3}

    kept = ReplayRecipe(batch=4, warmup=30, capacity=40)
    made = trainer(tmp_path, DQN(), recipe, hidden=[4], iterations=1, replay=kept, normalize=True)
    told = made.train()
    assert told["return/mean"] == told["length/mean"] == 3
    assert made.policy.module.normalizer.count == told["environment/steps"] == made.feed.ring.position  # type: ignore[attr-defined]


def test_an_environment_is_reset_once_an_episode(tmp_path: Path) -> None:
    recipe = EnvironmentRecipe("FaultCounting-v0", 1, 30, vectorized=False)
    made = trainer(tmp_path, DQN(), recipe, hidden=[4], iterations=1, replay=ReplayRecipe(warmup=100, capacity=100, batch=4))
    made.experience.evaluate = lambda *_: []  # type: ignore[method-assign]
    assert made.train()["return/episodes"] == 10
    [environment] = made.experience._environments.envs  # type: ignore[attr-defined]
    assert environment.unwrapped.episode == 10  # of the eleventh, which has begun


@MODES
@pytest.mark.parametrize("steps", [1, 12, 13, 29])
def test_rows_are_of_one_episode_at_every_fill(vectorized: bool, steps: int, tmp_path: Path) -> None:
    """Capacity 13, so that the buffer has wrapped twice at the end: every row leads to the next step of its own episode, and the rows that
    updates draw are all that there are."""
    recipe = EnvironmentRecipe("FaultCounting-v0", 1, steps, vectorized=vectorized, evaluation_episodes=1)
    made = trainer(tmp_path, DQN(), recipe, hidden=[4], iterations=1, replay=ReplayRecipe(batch=13, warmup=0, capacity=13))
    feed = made.feed
    assert isinstance(feed, Replay)
    feed.begin()
    for number in range(feed.rounds):
        feed.gather(number)
    rows = feed.ring.draw(torch.arange(len(feed.ring)))
    before, after = rows["observation"].numpy(), rows["next_observation"].numpy()
    assert (before[:, 0] == after[:, 0]).all()
    assert (after[:, 1] == before[:, 1] + 1).all()
    drawn = set()
    for number in range(40):
        batch = feed.draw(feed.rounds - 1, number)
        assert batch.observation is not None
        drawn |= {tuple(row) for row in batch.observation[:, 0].tolist()}
    assert drawn == {tuple(row) for row in before.tolist()}  # the last step of an episode and the newest row among them


ALL = [SAC(), TD3(), DDPG(), DQN(), OffPolicyMDPO()]


@pytest.mark.parametrize("case", [case for algorithm in ALL for case in cases_of(algorithm)], ids=lambda c: f"{c.algorithm.name} {c.kind}")
def test_nobody_looks_behind_a_terminal_state(case: Rows) -> None:
    """Whatever stands there, no number included, changes neither losses nor gradients."""
    batch = case.batch()
    assert batch.terminated is not None
    assert batch.next_observation is not None
    spoilt = batch.replace(next_observation=torch.where(batch.terminated[..., None], torch.nan, batch.next_observation))
    for learner in case.learners():
        clean, dirty = (step(case.policy(), learner, rows) for rows in (batch, spoilt))
        assert dirty.isfinite().all()
        torch.testing.assert_close(dirty, clean, rtol=1e-12, atol=1e-14)


def test_starts_are_spread_over_environments_and_episodes_and_follow_the_seed() -> None:
    """CartPole's first observations: no two alike, in any environment or episode; the same again with the same seed alone."""
    recipe = EnvironmentRecipe("CartPole-v1", 4, 120, vectorized=False)
    starts = []
    for seed in (0, 0, 1):
        experience = recipe.build(seed)
        policy = ActorCriticRecipe([4]).build(experience.observation_space, experience.action_space, 0)
        batch, _ = experience.collect(policy, Demand(iteration=0, seed=seed))
        assert batch.observation is not None
        assert batch.terminated is not None
        begins = torch.cat([torch.ones(4, 1, dtype=torch.bool), batch.terminated[:, :-1]], 1)
        starts.append(batch.observation[begins])
    assert len(starts[0]) > 8
    assert len(starts[0].unique(dim=0)) == len(starts[0])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0][:4], starts[2][:4])


@pytest.mark.parametrize("algorithm", [PPO(), MDPO()], ids=lambda a: a.name)
def test_evaluating_changes_nothing_of_training(algorithm: Algorithm, tmp_path: Path) -> None:
    left = []
    for every in (0, 1):
        recipe = EnvironmentRecipe("CartPole-v1", 2, 16, vectorized=False, evaluation_episodes=2)
        made = trainer(tmp_path / str(every), algorithm, recipe, hidden=[4], iterations=3)
        made.training = dataclasses.replace(made.training, evaluate_every=every)
        made.train()
        left.append(torch.cat([p.detach().reshape(-1) for p in made.policy.module.parameters()]))
    assert torch.equal(*left)
