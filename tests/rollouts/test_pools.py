"""EnvPool's environments, against Gymnasium's own of the same equations."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts.base import Demand
from unipg.rollouts.environments import EnvironmentRecipe, EnvironmentRollouts, evaluate_controller
from unipg.trajectories import Trajectories

pytest.importorskip("envpool")
from unipg.rollouts.pools import Pool

LIMIT = 24
"""Steps of an episode: about half of those with random actions fall before."""


def pool(seed: int = 0, **settings: Any) -> tuple[EnvironmentRollouts, ActorCritic]:
    options = {"max_episode_steps": LIMIT, "num_threads": 1} | settings.pop("options", {})
    recipe = EnvironmentRecipe(**{"id": "CartPole-v1", "count": 3, "steps": 60, "backend": "envpool", "options": options} | settings)
    environments = recipe.build(seed)
    policy = ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)
    return environments, policy


def truth(observation: np.ndarray, action: int) -> tuple[np.ndarray, float, bool]:
    """What CartPole's equations say follows."""
    environment = gymnasium.make("CartPole-v1").unwrapped
    environment.reset()
    environment.state = tuple(observation.astype(np.float64))  # type: ignore[attr-defined]
    after, reward, terminated, _, _ = environment.step(action)
    return after, float(reward), terminated


def test_windows_tell_every_step_and_every_end_as_it_was() -> None:
    environments, policy = pool()
    lengths = np.zeros(3, int)
    seen = {"terminated": 0, "truncated": 0, "resets": 0}
    for iteration in range(3):
        batch, metrics = environments.collect(policy, Demand(iteration=iteration, value=True))
        for row in range(3):
            for t in range(60):
                if not batch.mask[row, t]:
                    seen["resets"] += 1
                    lengths[row] = 0
                    continue
                lengths[row] += 1
                assert batch.observation is not None
                assert batch.step_reward is not None
                assert batch.bootstrap_value is not None
                after, reward, terminated = truth(batch.observation[row, t].numpy(), int(batch.action[row, t]))
                truncated = lengths[row] == LIMIT and not terminated
                assert bool(batch.terminated[row, t]) == terminated  # type: ignore[index]
                assert bool(batch.truncated[row, t]) == truncated  # type: ignore[index]
                assert float(batch.step_reward[row, t]) == reward
                cut = truncated or (t == 59 and not terminated)
                value = float(policy.value(torch.from_numpy(after[None]))) if cut else 0.0
                assert float(batch.bootstrap_value[row, t]) == pytest.approx(value, abs=1e-5)
                if t < 59:  # also where an episode ended: what is shown then is its true last observation
                    np.testing.assert_allclose(batch.observation[row, t + 1].numpy(), after, atol=1e-5)
                seen["terminated"] += terminated
                seen["truncated"] += truncated
        assert metrics["return/last_100"] <= LIMIT
    assert min(seen.values()) >= 3, seen


def test_transitions_have_true_ends_and_no_resets_among_them() -> None:
    environments, policy = pool()
    stepper = environments.stepper(policy)
    source = np.random.default_rng(0)
    lengths: dict[int, int] = {}
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(120):
        given = source.integers(0, 2, 3)
        step = stepper.step(given)
        actions = given if step.live is None else given[step.live]
        assert len(step.reward) == len(actions)
        for row, action in enumerate(actions):
            after, reward, terminated = truth(step.observation[row], int(action))
            episode = int(step.episode[row])
            lengths[episode] = lengths.get(episode, 0) + 1
            np.testing.assert_allclose(step.next_observation[row], after, atol=1e-5)
            assert (step.reward[row], step.terminated[row]) == (reward, terminated)
            assert step.truncated[row] == (lengths[episode] == LIMIT and not terminated)
            ends["terminated"] += bool(step.terminated[row])
            ends["truncated"] += bool(step.truncated[row])
    assert min(ends.values()) >= 2, ends


def test_an_end_at_the_limit_is_an_end_and_other_rows_go_on() -> None:
    def ends(limit: int) -> tuple[int, bool, bool]:
        """Of row 0, always pushed to one side: the step, and which end it was."""
        found = Pool("CartPole-v1", 2, {"max_episode_steps": limit, "num_threads": 1})
        found.reset(seed=3)
        for step in range(1, 40):
            observation, _, terminated, truncated, _ = found.step(np.array([0, step % 2]))
            if terminated[0] or truncated[0]:
                after = found.step(np.array([0, (step + 1) % 2]))
                assert np.abs(after[0][0]).max() <= 0.05  # it has only reset itself
                assert (after[1][0], after[2][0], after[3][0]) == (0, False, False)
                if truncated[1]:  # both at once
                    assert np.abs(after[0][1]).max() <= 0.05
                else:
                    np.testing.assert_allclose(after[0][1], truth(observation[1], (step + 1) % 2)[0], atol=1e-5)
                return step, bool(terminated[0]), bool(truncated[0])
        raise AssertionError("no end")

    step, *end = ends(500)
    assert end == [True, False]
    assert ends(step) == (step, True, False)
    assert ends(step - 1) == (step - 1, False, True)


def test_seeds_decide_the_numbers_and_threads_do_not() -> None:
    def first(seed: int, threads: int = 1, worker: int = 0) -> Trajectories:
        environments, policy = pool(seed, options={"num_threads": threads})
        return environments.collect(policy, Demand(iteration=0, worker=worker, workers=2))[0]

    one = first(0)
    for same in (first(0), first(0, threads=2)):
        assert torch.equal(one.observation, same.observation)  # type: ignore[arg-type]
        assert torch.equal(one.action, same.action)
    for other in (first(1), first(0, worker=1)):
        assert not torch.equal(one.observation[:, 0], other.observation[:, 0])  # type: ignore[index]


def test_they_cannot_be_saved_which_is_said_once_and_start_afresh() -> None:
    environments, policy = pool()
    environments.collect(policy, Demand(iteration=0))
    with pytest.warns(UserWarning, match=r"'CartPole-v1' cannot be saved \(EnvPool .*\); after a resume its episodes start afresh") as told:
        state = environments.state_dict()
    assert len(told) == 1
    assert environments.state_dict()["environments"] is None
    resumed, _ = pool()
    resumed.load_state_dict(state)
    batch, metrics = resumed.collect(policy, Demand(iteration=1))
    assert batch.observation is not None
    assert float(batch.observation[:, 0].abs().max()) <= 0.05
    assert metrics["environment/steps"] > state["steps"]


def test_evaluations_are_of_whole_episodes() -> None:
    environments, policy = pool(evaluation_episodes=5)
    (result,) = environments.evaluate(policy, 0)
    assert result.metrics["length"]["n"] == 5
    assert 8 <= result.metrics["length"]["value"] <= LIMIT
    assert result.metrics["return"]["value"] == result.metrics["length"]["value"]
    assert evaluate_controller(policy, environments.recipe, 0).metrics == result.metrics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "CartPool-v1"}, r"EnvPool has no environment 'CartPool-v1'; did you mean 'CartPole-v1'"),
        ({"options": {"lenght": 3}}, r"environment\.options\.lenght: this key does not exist; accepted: .*max_episode_steps"),
        ({"options": {"batch_size": 1}}, r"environment\.options\.batch_size: this key does not exist"),
        ({"options": {"max_episode_steps": "long"}}, r"'CartPole-v1' of EnvPool with options .* cannot be made"),
        ({"vectorized": False}, r"environment\.vectorized is false, but EnvPool has arrays alone; accepted: true, null"),
        (
            {"processes": 2},
            r"environment\.processes is 2, but EnvPool's have threads \(environment\.options\.num_threads\); accepted: null",
        ),
        ({"backend": "envpole"}, r"backend 'envpole' does not exist; did you mean 'envpool'"),
    ],
)
def test_impossible_pools_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pool(**settings)


def test_without_envpool_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "envpool", None)
    with pytest.raises(InputError, match=r"needs the package 'envpool'; install it with: pip install 'unipg\[envpool\]'"):
        pool()
