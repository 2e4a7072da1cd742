"""Normalised rewards: the formula, what counts for it and what does not, and that a resumed run goes on to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unipg.cli import main
from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.base import Demand
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.rollouts.rewards import RewardScale


def by_hand(reward: np.ndarray, ended: np.ndarray, mask: np.ndarray, discount: float) -> np.ndarray:
    """Of all returns so far, one by one."""
    seen: list[float] = []
    found, now = np.array(reward, float), np.zeros(reward.shape[1])
    for t in range(len(reward)):
        for row in range(reward.shape[1]):
            if mask[t, row]:
                now[row] = discount * now[row] + reward[t, row]
                seen.append(now[row])
        unit = np.sqrt(np.var(seen) + 1e-8)
        for row in range(reward.shape[1]):
            if mask[t, row]:
                found[t, row] = np.clip(reward[t, row] / unit, -10, 10)
            if ended[t, row]:
                now[row] = 0
    return found


@pytest.mark.parametrize("split", [0, 1, 13])
def test_the_formula_over_windows(split: int) -> None:
    """Cut anywhere; rewards of steps that only reset count for nothing."""
    source = np.random.default_rng(0)
    reward = source.normal(3, 40, (30, 4))
    ended = source.random((30, 4)) < 0.2
    mask = np.concatenate([np.ones((1, 4), bool), ~ended[:-1]])
    reward[~mask] = 1e6
    ended &= mask
    scale = RewardScale(4, 0.9)
    parts = [scale(reward[part], ended[part], mask[part]) for part in (slice(0, split), slice(split, None))]
    np.testing.assert_allclose(np.concatenate(parts)[mask], by_hand(reward, ended, mask, 0.9)[mask], rtol=1e-5)


def test_two_equal_episodes_have_the_same_returns() -> None:
    scale = RewardScale(1, 0.5)
    ended = np.array([[False], [False], [True]])
    paths = []
    for _ in range(2):
        path = []
        for t, reward in enumerate((1.0, 2.0, 4.0)):
            before = scale.returns.copy()
            scale(np.array([[reward]]), ended[t : t + 1], np.ones((1, 1), bool))
            path.append((before.item(), scale.returns.item()))
        paths.append(path)
    assert paths[0] == paths[1] == [(0, 1), (1, 2.5), (2.5, 0)]


def test_rewards_that_never_differ_stay_as_they_are() -> None:
    scale = RewardScale(3, 0.0)
    assert (scale(np.full((5, 3), 7.0), np.zeros((5, 3), bool), np.ones((5, 3), bool)) == 7).all()


def test_it_is_cut_off() -> None:
    """99 returns of 0 and one of 1: sqrt(var) is 0.0995, a reward of 1 about 10.05 of it."""
    reward = np.zeros((1, 100))
    reward[0, 0] = 1
    assert RewardScale(100, 0.9)(reward, reward > 0, reward == reward)[0, 0] == 10


def collected(environments: Any, policy: Any, iteration: int) -> Any:
    return environments.collect(policy, Demand(iteration, 1, value=False, seed=0))


def test_what_is_learned_from_is_scaled_and_what_is_told_is_not() -> None:
    recipe = EnvironmentRecipe("Pendulum-v1", count=3, steps=250, evaluation_episodes=2)
    plain, scaled = recipe.build(0), EnvironmentRecipe(**{**vars(recipe), "normalize_rewards": True}).build(0)
    policy = ActorCriticRecipe([8]).build(plain.observation_space, plain.action_space, 0)
    (one, told), (two, also) = collected(plain, policy, 0), collected(scaled, policy, 0)
    unit = also.pop("environment/reward_unit")
    assert told == also
    assert unit > 5
    torch.testing.assert_close(two.step_reward[:, -1] * unit, one.step_reward[:, -1])
    assert plain.evaluate(policy, 0) == scaled.evaluate(policy, 0)
    assert scaled._scale.unit == unit  # evaluations move nothing


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_resumed_run_continues_bit_for_bit(vectorized: bool, tmp_path: Path) -> None:
    recipe = EnvironmentRecipe("CartPole-v1", count=3, steps=40, vectorized=vectorized, normalize_rewards=True, reward_discount=0.9)
    environments = recipe.build(0)
    policy = ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)
    collected(environments, policy, 0)
    torch.save(environments.state_dict(), tmp_path / "state.pt")
    expected = collected(environments, policy, 1)
    resumed = recipe.build(1)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=False))
    again = collected(resumed, policy, 1)
    assert torch.equal(expected[0].step_reward, again[0].step_reward)
    assert expected[1] == again[1]


def test_a_stopped_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "algorithm: {name: ppo, gamma: 0.9}\nthreads: 1\ntraining: {iterations: 4}\n"
        "environment: {id: Pendulum-v1, count: 2, steps: 60, evaluation_episodes: 1, normalize_rewards: true, reward_discount: 0.9}\n",
        encoding="utf-8",
    )
    for folder, stages in (("straight", [[]]), ("stopped", [["training.iterations=2"], ["--resume"]])):
        for stage in stages:
            assert main(["train", str(path), f"output={tmp_path / folder}", *stage]) == 0
    weights = [(tmp_path / folder / "model" / "model.safetensors").read_bytes() for folder in ("straight", "stopped")]
    assert weights[0] == weights[1]


def test_replay_and_several_workers_refuse_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("algorithm: sac\nenvironment: {id: Pendulum-v1, normalize_rewards: true}\n", encoding="utf-8")
    assert main(["train", str(path), f"output={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("unipg: environment.normalize_rewards is true, but algorithm 'sac' keeps rewards")
    assert "\n" not in told
    assert not (tmp_path / "run").exists()
    environments = EnvironmentRecipe("CartPole-v1", normalize_rewards=True).build(0)
    policy = ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)
    with pytest.raises(InputError, match="each worker would have a unit of its own; accepted: one worker, false"):
        environments.collect(policy, Demand(0, 1, value=False, seed=0, workers=2))
    with pytest.raises(InputError, match=r"^environment\.reward_discount is 1\.5; accepted: a number in \[0, 1\]"):
        EnvironmentRecipe("CartPole-v1", reward_discount=1.5)
