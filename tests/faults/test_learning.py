"""Targets, optimisers, temperatures, statistics, evaluation and what is saved, where other libraries have gone wrong: groups B, C, E, F."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file

from unipg import InputError, Source, Trajectories
from unipg.algorithms import DDPG, DQN, PPO, SAC, TD3, OffPolicyMDPO, Setting
from unipg.algorithms.base import Algorithm
from unipg.critics import Polyak
from unipg.policies.actions import DiscreteActions
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.feeds.replay import Replay, ReplayRecipe
from unipg.training.observer import Stopped
from unipg.training.recipe import load_recipe
from unipg.training.run import wanted_of
from unipg.training.weights import Weights


class Arms(gymnasium.Env):
    """One step an episode: the second of two arms pays 1."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space: spaces.Space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.ones(1, np.float32), float(action), True, False, {}


class Scales(gymnasium.Env):
    """Observations of scale 1 and 1000, and one that never changes."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: spaces.Space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self.shown(), {}

    def shown(self) -> np.ndarray:
        return (np.append(self.np_random.standard_normal(2), 1) * [1, 1000, 0.1]).astype(np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return self.shown(), 0.0, self.time == 10, False, {}


gymnasium.register("FaultArms-v0", entry_point=Arms)
gymnasium.register("FaultScales-v0", entry_point=Scales)


def trainer(folder: Path, algorithm: Algorithm, environment: str, *, steps: int = 40, iterations: int = 2, **more: Any) -> Trainer:
    experience = EnvironmentRecipe(environment, 1, steps, vectorized=False, evaluation_episodes=3).build(0)
    controller = ActorCriticRecipe(more.pop("hidden", [8]), normalize_observations=more.pop("normalize", False))
    policy = controller.build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
    optimizer = more.pop("optimizer", OptimizerRecipe())
    recipe = ReplayRecipe(**{"batch": 8, "warmup": 8, "updates_per_step": 1.0, "capacity": 2000} | more)
    training = TrainingRecipe(iterations=iterations)
    return Trainer(algorithm, policy, experience, folder=folder, training=training, optimizer=optimizer, replay=recipe)


def weights(made: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in made.policy.module.state_dict().values()])


# ---------------------------------------------------------------------------------------------------------------- B


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", ["values of actions", "values of states"])
def test_each_row_learns_its_own_value(rows: int, kind: str) -> None:
    """One-hot inputs worth 10 and 0; a shape that broadcasts makes both 5. One row and one step too."""
    algorithm: Algorithm = DQN() if kind == "values of actions" else PPO(value_weight=1.0)
    kept = algorithm.replays
    networks = algorithm.networks(True)
    actions = DiscreteActions(2)
    made = ActorCritic((2,), actions, hidden=(), critic=not kept, networks=networks)
    truth = torch.tensor([[10.0], [0.0]])[:rows]
    ones = torch.ones(rows, 1, dtype=torch.bool)
    batch = Trajectories(
        action=torch.zeros(rows, 1, dtype=torch.long), mask=ones, observation=torch.eye(2)[:rows].unsqueeze(1),
        next_observation=torch.zeros(rows, 1, 2), step_reward=truth, terminated=ones, truncated=~ones,
        source=torch.full((rows,), int(Source.REPLAY if kept else Source.ROLLOUT)),
    )  # fmt: skip
    if not kept:
        batch = batch.replace(value=torch.zeros(rows, 1), old_log_prob=torch.zeros(rows, 1), bootstrap_value=torch.zeros(rows, 1))
    [learner] = algorithm.learned(Setting(1, True, 2, acts=True))
    network = made.network("q" if kept else "critic")
    optimizer = torch.optim.Adam(network.parameters(), 0.3)
    planned = learner.terms.plan(learner.terms.prepare(batch))
    for _ in range(200):
        optimizer.zero_grad()
        learner.terms.loss(made.now(planned), planned).backward()
        optimizer.step()
    found = network(torch.eye(2)[:rows]).detach().reshape(rows, -1)[:, :1]
    torch.testing.assert_close(found, truth, atol=0.1, rtol=0)


@pytest.mark.parametrize("algorithm", [SAC(), TD3(delay=1), OffPolicyMDPO(every=3)], ids=lambda a: a.name)
def test_the_policy_climbs_the_critic_that_was_just_stepped(algorithm: Algorithm, tmp_path: Path, monkeypatch: Any) -> None:
    """What learners share of an update is what each of them would find by itself."""
    shared = trainer(tmp_path / "shared", algorithm, "Pendulum-v1")
    shared.train()
    monkeypatch.setattr(Replay, "now", lambda *_: None)
    fresh = trainer(tmp_path / "fresh", algorithm, "Pendulum-v1")
    fresh.train()
    torch.testing.assert_close(weights(fresh), weights(shared), rtol=1e-5, atol=1e-7)


def test_a_copy_takes_over_the_encoder_too_and_shares_nothing() -> None:
    """Of images, with tau = 1."""
    algorithm = DQN()
    made = ActorCritic(
        {"type": "image", "shape": [1, 36, 36], "channels": "first"}, DiscreteActions(2), critic=False, networks=algorithm.networks(True)
    )
    with torch.no_grad():
        for parameter in made.weights_of("q"):
            parameter.add_(1.0)
    Polyak("q", "q_lagged", 1.0)(Weights(made).tensors, 1)
    own, copied = made.weights_of("q"), made.weights_of("q_lagged")
    assert len(own) == len(copied) > 4  # layers of the encoder among them
    for one, other in zip([*own, *made.buffers_of("q")], [*copied, *made.buffers_of("q_lagged")], strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


def test_loading_again_and_again_changes_no_setting(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "algorithm: {name: dqn, copy_every: 128}\nenvironment: {id: CartPole-v1, count: 3, steps: 50}\n"
        "replay: {updates_per_step: 0.25, warmup: 10}\noutput: x\n",
        encoding="utf-8",
    )
    first = kept = load_recipe(tmp_path / "recipe.yaml", [])
    given = first.algorithm
    for _ in range(5):
        (tmp_path / "recipe.yaml").write_text(kept.as_yaml(), encoding="utf-8")
        kept = load_recipe(tmp_path / "recipe.yaml", [])
    assert isinstance(kept.algorithm, dict)
    assert given.items() <= kept.algorithm.items()  # type: ignore[union-attr]
    assert dataclasses.replace(kept, algorithm=given) == first


# ---------------------------------------------------------------------------------------------------------------- C


@pytest.mark.parametrize("first", [0.4, 1.0])
def test_the_temperature_of_a_bandit_settles_where_the_entropy_has_its_target(first: float, tmp_path: Path) -> None:
    """Two arms, of which one pays 1: pi ∝ exp(reward / alpha) has 0.5 nats at alpha = 0.7204; from below and from above."""
    algorithm = SAC(target_entropy=0.5, initial_temperature=first)
    optimizer = OptimizerRecipe(0.02)
    made = trainer(tmp_path, algorithm, "FaultArms-v0", hidden=[], steps=700, iterations=1, optimizer=optimizer, batch=32)
    made.train()
    probability = made.policy.log_probs(torch.ones(1, 1), "actor").exp().detach()  # type: ignore[attr-defined]
    assert float(-(probability * probability.log()).sum()) == pytest.approx(0.5, abs=0.01)
    assert float(made.policy.network("temperature")().detach()) == pytest.approx(0.7204, abs=0.02)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------------- E


def test_kept_observations_are_read_by_the_statistics_of_the_moment(tmp_path: Path) -> None:
    """The buffer holds what the environment gave; every number comes to unit variance, one that never changes to 0."""
    made = trainer(tmp_path, SAC(), "FaultScales-v0", steps=300, iterations=1, normalize=True)
    told = made.train()
    feed, policy = made.feed, made.policy
    assert isinstance(feed, Replay)
    assert isinstance(policy, ActorCritic)
    normalizer = policy.module.normalizer
    assert normalizer is not None
    assert normalizer.count == told["environment/steps"] == 300
    feed.open()
    raw = feed.ring.draw(torch.arange(300))["observation"]
    assert 500 < raw[:, 1].std() < 2000
    torch.testing.assert_close(normalizer.mean, raw.double().mean(0), rtol=1e-6, atol=1e-6)
    read = policy.read(raw)
    assert read.std(0)[:2].tolist() == pytest.approx([1, 1], abs=0.05)
    assert read[:, 2].abs().max() < 1e-3
    normalizer.mean += 5.0
    torch.testing.assert_close(policy.read(raw)[:, 0], read[:, 0] - 5 / raw[:, 0].double().std(correction=0).float(), rtol=1e-3, atol=1e-3)


def test_what_acts_reads_the_same_statistics_within_an_iteration(tmp_path: Path) -> None:
    made = trainer(tmp_path, DDPG(exploration=0.0), "FaultScales-v0", steps=30, iterations=1, normalize=True, warmup=5)
    feed, policy = made.feed, made.policy
    assert isinstance(feed, Replay)
    assert isinstance(policy, ActorCritic)
    feed.begin()
    for number in range(30):
        standing = feed._stepper.observation.copy()
        expected = policy.actor()(standing, None)
        feed.gather(number)
        if number >= 5:
            taken = feed.ring.draw(torch.tensor([number]))["action"].numpy()
            np.testing.assert_allclose(taken, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop", [13, 50])
def test_statistics_of_kept_steps_go_on_after_a_resume(stop: int, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", SAC(), "Pendulum-v1", normalize=True)
    whole.train()
    first = trainer(tmp_path / "parts", SAC(), "Pendulum-v1", normalize=True)
    first.stop_after_steps = stop
    with pytest.raises(Stopped):
        first.train()
    second = trainer(tmp_path / "parts", SAC(), "Pendulum-v1", normalize=True)
    second.resume()
    before = float(second.policy.network("temperature")().detach())  # type: ignore[attr-defined]
    second.train()
    assert torch.equal(weights(whole), weights(second))
    assert float(second.policy.network("temperature")().detach()) != before  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------------- F


@pytest.mark.parametrize("algorithm", [SAC(), TD3(), DQN(), PPO()], ids=lambda a: a.name)
def test_evaluation_knows_no_exploration(algorithm: Algorithm) -> None:
    """However much there is in training: the same episodes twice, and of most likely actions alone."""
    experience = EnvironmentRecipe("CartPole-v1" if isinstance(algorithm, DQN | PPO) else "Pendulum-v1", 2, 8, evaluation_episodes=4).build(
        0
    )
    policy = ActorCriticRecipe([8]).build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
    found = []
    for policy.exploration in (None, 1.0, 0.5):
        [result] = experience.evaluate(policy, 0)
        found.append(result.metrics["return"])
    assert all(one == other for one, other in itertools.pairwise(found))


@pytest.mark.parametrize("harm", ["renamed", "misshapen", "left out"])
@pytest.mark.parametrize("file", ["model/model.safetensors", "critic/networks.safetensors"])
def test_weights_that_do_not_fit_are_refused(harm: str, file: str, tmp_path: Path) -> None:
    space, actions = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,))
    wanted = wanted_of(SAC())
    made = ActorCriticRecipe([4]).build(space, actions, 0, wanted=wanted)
    made.save(tmp_path / "model")
    made.save_critic(tmp_path / "critic")
    again = ActorCriticRecipe(model=str(tmp_path)).build(space, actions, 1, wanted=wanted)
    for name, tensor in made.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name])
    kept = load_file(tmp_path / file)
    name = min(kept)
    tensor = kept.pop(name)
    if harm != "left out":
        kept |= {f"{name}s": tensor} if harm == "renamed" else {name: torch.zeros(2, 9)}
    save_file(kept, tmp_path / file)
    with pytest.raises(InputError, match=r"cannot be (read|taken over)"):
        ActorCriticRecipe(model=str(tmp_path)).build(space, actions, 1, wanted=wanted)


def test_a_controller_may_go_on_under_another_algorithm(tmp_path: Path) -> None:
    """Networks that only one of the two has are no misfit."""
    space, actions = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,))
    made = ActorCriticRecipe([4]).build(space, actions, 0, wanted=wanted_of(SAC()))
    made.save(tmp_path / "model")
    made.save_critic(tmp_path / "critic")
    fixed = dataclasses.replace(SAC(), temperature=0.1)
    again = ActorCriticRecipe(model=str(tmp_path)).build(space, actions, 1, wanted=wanted_of(fixed))
    assert all(torch.equal(a, b) for a, b in zip(made.weights_of("q"), again.weights_of("q"), strict=True))
