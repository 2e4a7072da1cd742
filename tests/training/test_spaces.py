"""PPO on spaces of every kind: what the environment gives arrives, what the policy chooses is what it gets, and it learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from unipg import InputError, load_run, train
from unipg.algorithms import PPO
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.base import Demand
from unipg.rollouts.environments import EnvironmentRecipe

SPACES: dict[str, tuple[spaces.Space, spaces.Space]] = {
    "Dict": (
        spaces.Dict(
            {"wanted": spaces.MultiDiscrete([3, 2], start=[1, 0]), "noise": spaces.Box(-1.0, 1.0, (2,)), "lamp": spaces.Discrete(2)}
        ),
        spaces.MultiDiscrete([3, 2], start=[0, 5]),
    ),
    "Binary": (spaces.MultiBinary(3), spaces.MultiBinary(3)),
    "Number": (spaces.Discrete(4, start=-2), spaces.Discrete(4, start=1)),
    "Image": (spaces.Box(0, 255, (6, 5, 3), np.uint8), spaces.Discrete(3)),
}


class Echo(gymnasium.Env):
    """Rewards the share of choices that are those that the observation names; the episode is cut after 4 steps."""

    given: ClassVar[list[Any]] = []

    def __init__(self, name: str) -> None:
        self.name = name
        self.observation_space, self.action_space = SPACES[name]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> Any:
        self.wanted = self.np_random.integers({"Dict": [3, 2], "Binary": [2] * 3, "Number": [4], "Image": [3]}[self.name])
        if self.name == "Dict":
            noise = self.np_random.uniform(-1, 1, 2).astype(np.float32)
            return {"wanted": self.wanted + np.array([1, 0]), "noise": noise, "lamp": self.np_random.integers(2)}
        if self.name == "Image":
            image = np.full((6, 5, 3), 20, np.uint8)
            image[..., self.wanted[0]] = 235
            return image
        return self.wanted.astype(np.int8) if self.name == "Binary" else self.wanted[0] - 2

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        first = {"Dict": [0, 5], "Binary": [0] * 3, "Number": [1], "Image": [0]}[self.name]
        reward = float((np.ravel(action) - first == self.wanted).mean())
        self.steps += 1
        return self.observe(), reward, False, self.steps >= 4, {}


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    for name in SPACES:
        gymnasium.register(f"Echo{name}-v0", Echo, kwargs={"name": name})
    yield
    for name in SPACES:
        del gymnasium.registry[f"Echo{name}-v0"]


@pytest.mark.parametrize(
    ("name", "normalize", "rate"),
    [("Dict", False, 0.01), ("Dict", True, 0.01), ("Binary", False, 0.01), ("Number", False, 0.01), ("Image", None, 0.003)],
)
def test_ppo_learns_and_its_saved_model_acts_the_same(name: str, normalize: bool | None, rate: float, tmp_path: Path) -> None:
    run = train(
        PPO(gamma=0.0),
        environment={"id": f"Echo{name}-v0", "count": 8, "steps": 32, "evaluation_episodes": 16},
        controller={"hidden": [32], "normalize_observations": normalize},
        training={"minibatches": 4},
        optimizer={"learning_rate": rate},
        iterations=12,
        output=tmp_path / "run",
        progress=False,
    )
    rewards = [row["reward/mean"] if "reward/mean" in row else row["return/mean"] / 4 for row in run.metrics]
    assert rewards[-1] > 0.85 > rewards[0], rewards
    space, _ = SPACES[name]
    space.seed(0)
    observations = [Echo(name).reset(seed=seed)[0] for seed in range(20)]
    chosen = [run.policy.act(one) for one in observations]
    again = load_run(tmp_path / "run").policy
    assert all(np.array_equal(again.act(one), action) for one, action in zip(observations, chosen, strict=True))
    assert all(SPACES[name][1].contains(action) for action in chosen)
    worth = []
    for seed, action in enumerate(chosen):
        world = Echo(name)
        world.reset(seed=seed)
        worth.append(world.step(action)[1])
    assert np.mean(worth) > 0.9


@pytest.mark.parametrize("name", list(SPACES))
def test_batches_hold_stored_observations_and_the_final_ones(name: str) -> None:
    experience = EnvironmentRecipe(f"Echo{name}-v0", 3, 9).build(0)
    policy = ActorCriticRecipe([8]).build(experience.observation_space, experience.action_space, 0)
    batch, _ = experience.collect(policy, Demand(iteration=0, value=True))
    assert batch.observation is not None
    assert batch.bootstrap_value is not None
    assert batch.old_log_prob is not None
    assert batch.observation.shape == (3, 9, *policy.encoder.stored.shape)
    assert str(batch.observation.dtype) == f"torch.{policy.encoder.stored.dtype}"
    assert batch.truncated is not None
    cut = batch.truncated.clone()
    cut[:, -1] = True
    assert torch.equal(batch.bootstrap_value != 0, cut)
    now = policy.evaluate(batch, value=True)
    torch.testing.assert_close(now.log_prob, batch.old_log_prob)
    masked = batch.replace(mask=batch.mask & (torch.arange(9) != 4))
    found = policy.evaluate(masked, entropy=True, value=True)
    assert found.entropy is not None
    assert not found.entropy[:, 4].any()
    torch.testing.assert_close(found.log_prob[:, 5:], now.log_prob[:, 5:])


def test_a_final_observation_is_that_of_its_own_episode() -> None:
    """After a cut, the value in hand is of what the step led to, not of the next episode's first observation."""
    experience = EnvironmentRecipe("EchoDict-v0", 2, 4).build(0)
    policy = ActorCriticRecipe([8]).build(experience.observation_space, experience.action_space, 0)
    batch, _ = experience.collect(policy, Demand(iteration=0, value=True))
    assert batch.bootstrap_value is not None
    rebuilt = EnvironmentRecipe("EchoDict-v0", 2, 4).build(0)
    rebuilt.collect(policy, Demand(iteration=0))
    first = rebuilt._observation
    assert first is not None
    assert not torch.allclose(policy.value(torch.from_numpy(first)), batch.bootstrap_value[:, -1])
    # the same actions, by hand
    seeds = [world.np_random_seed for world in experience._environments.envs]  # type: ignore[attr-defined]
    for row, seed in enumerate(seeds):
        world = Echo("Dict")
        world.reset(seed=seed)
        for action in policy.environment_action(batch.action[row].numpy()):
            last, *_ = world.step(action)
        value = policy.value(torch.from_numpy(policy.flatten_one(last)[None]))
        torch.testing.assert_close(value[0], batch.bootstrap_value[row, -1])


def test_what_is_not_finite_in_an_entry_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    experience = EnvironmentRecipe("EchoDict-v0", 2, 9).build(0)
    policy = ActorCriticRecipe([8]).build(experience.observation_space, experience.action_space, 0)
    observe = Echo.observe

    def broken(self: Echo) -> Any:
        observation = observe(self)
        return {**observation, "noise": observation["noise"] * (np.nan if self.steps == 2 else 1)}

    monkeypatch.setattr(Echo, "observe", broken)
    with pytest.raises(InputError, match="environment 'EchoDict-v0' gave an observation that is not finite, in row 0 at step 2"):
        experience.collect(policy, Demand(iteration=0))


def test_a_model_of_other_spaces_is_refused(tmp_path: Path) -> None:
    ActorCriticRecipe([8]).build(*SPACES["Dict"], 0).save(tmp_path)
    same = ActorCriticRecipe(model=str(tmp_path)).build(*SPACES["Dict"], 1)
    assert same.hidden == (8,)
    other = spaces.Dict({**SPACES["Dict"][0].spaces, "lamp": spaces.Discrete(3)})  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="but the environment has"):
        ActorCriticRecipe(model=str(tmp_path)).build(other, SPACES["Dict"][1], 1)


@pytest.mark.parametrize("name", ["Dict", "Image"])
def test_a_resumed_run_is_the_one_that_went_on(name: str, tmp_path: Path) -> None:
    def run(folder: str, iterations: int) -> Any:
        return train(
            PPO(),
            environment={"id": f"Echo{name}-v0", "count": 2, "steps": 6, "evaluation_episodes": 1},
            controller={"hidden": [8], "normalize_observations": name == "Dict" or None},
            iterations=iterations,
            output=tmp_path / folder,
            progress=False,
        )

    run("whole", 4)
    continued = run("cut", 2).resume(iterations=4, progress=False)
    one, other = (load_run(tmp_path / folder).policy.policy.module.state_dict() for folder in ("whole", "cut"))
    assert len(continued.metrics) == 4
    assert all(torch.equal(one[key], other[key]) for key in one)
