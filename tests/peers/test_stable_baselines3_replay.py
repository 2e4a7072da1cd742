"""Stable-Baselines3's own `train` of SAC, TD3 and DQN beside our learners, on the same weights, transitions and noise, in float64.

Its optimisers are replaced by plain gradient descent, so that what a network has moved by is its gradient. What differs is written down in
docs/peers.md.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from unipg import Source, Trajectories
from unipg.algorithms import DQN, SAC, TD3, Setting
from unipg.algorithms.base import Algorithm
from unipg.critics.regression import DISCOUNT
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.now import NOISE
from unipg.training.run import wanted_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

ROWS, OBSERVATION, ACTION, COUNT, HIDDEN, RATE = 32, 3, 2, 4, [16, 12], 0.01
SEEN = spaces.Box(-10, 10, (OBSERVATION,), np.float32)


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observations are cast to float32 otherwise."""
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", lambda observation, *_, **__: observation)


class Space:
    """What a peer's constructor asks of an environment."""

    def __new__(cls, actions: spaces.Space) -> Any:
        import gymnasium

        class Still(gymnasium.Env):
            observation_space, action_space = SEEN, actions

            def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
                return np.zeros(OBSERVATION, np.float32), {}

        return Still()


def peer(kind: Any, actions: spaces.Space, **settings: Any) -> Any:
    made = kind("MlpPolicy", Space(actions), policy_kwargs={"net_arch": HIDDEN}, seed=0, device="cpu", buffer_size=10, **settings)
    made.policy.double()
    made._logger = Logger(None, [])
    made._current_progress_remaining = 1.0
    for owner in (made.policy, getattr(made, "actor", None), getattr(made, "critic", None)):
        if owner is not None and getattr(owner, "optimizer", None) is not None:
            own = [p for group in owner.optimizer.param_groups for p in group["params"]]
            owner.optimizer = torch.optim.SGD(own, lr=RATE)
    if getattr(made, "ent_coef_optimizer", None) is not None:
        made.log_ent_coef = made.log_ent_coef.detach().double().requires_grad_()
        made.ent_coef_optimizer = torch.optim.SGD([made.log_ent_coef], lr=RATE)
    made._update_learning_rate = lambda optimizers: None
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():  # copies that lag
        for name in ("critic_target", "actor_target", "q_net_target"):
            for parameter in getattr(made, name, nn.Module()).parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return made


def ours(algorithm: Algorithm, actions: spaces.Space) -> ActorCritic:
    made = ActorCriticRecipe(HIDDEN).build(SEEN, actions, 0, wanted=wanted_of(algorithm))
    made.module.double()
    return made


def samples(actions: spaces.Space, several: bool) -> ReplayBufferSamples:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(ROWS, *shape, generator=draw, dtype=torch.float64)

    discrete = isinstance(actions, spaces.Discrete)
    return ReplayBufferSamples(
        normal(OBSERVATION),
        torch.randint(COUNT, (ROWS, 1), generator=draw) if discrete else normal(ACTION).tanh(),
        normal(OBSERVATION),
        (torch.arange(ROWS) % 5 == 0).double().unsqueeze(1),
        2 * normal(1),
        0.9 ** torch.randint(1, 4, (ROWS, 1), generator=draw).double() if several else None,
    )


def as_trajectories(given: ReplayBufferSamples, noise: dict[str, Tensor]) -> Trajectories:
    planned = {NOISE.format(at): values.unsqueeze(1) for at, values in noise.items()}
    if given.discounts is not None:
        planned[DISCOUNT] = given.discounts
    discrete = not given.actions.is_floating_point()
    return Trajectories(
        action=given.actions if discrete else given.actions.unsqueeze(1),
        mask=torch.ones(ROWS, 1, dtype=torch.bool),
        observation=given.observations.unsqueeze(1),
        next_observation=given.next_observations.unsqueeze(1),
        step_reward=given.rewards,
        terminated=given.dones.bool(),
        source=torch.full((ROWS,), int(Source.REPLAY)),
        planned=planned,
    )


def linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def take(mine: nn.Module, theirs: list[list[tuple[Tensor, Tensor]]]) -> None:
    """Their weights, a list of (weight, bias) for each member, into our perceptron or ensemble."""
    for number, layer in enumerate(mine.layers):  # type: ignore[arg-type]
        weights, biases = zip(*(member[number] for member in theirs), strict=True)
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(weights[0])
            layer.bias.copy_(biases[0])
        else:
            layer.weight.copy_(torch.stack([weight.T for weight in weights]))
            layer.bias.copy_(torch.stack([bias.unsqueeze(0) for bias in biases]))


def said(*members: list[nn.Linear]) -> list[list[tuple[Tensor, Tensor]]]:
    return [[(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in layers] for layers in members]


def of_critic(critic: Any) -> list[list[tuple[Tensor, Tensor]]]:
    return said(*(linears(q) for q in critic.q_networks))


def of_gaussian(actor: Any) -> list[list[tuple[Tensor, Tensor]]]:
    """The heads of mean and log_std side by side, as one last layer."""
    (body,) = said(linears(actor.latent_pi))
    head = [(torch.cat([actor.mu.weight, actor.log_std.weight]).detach(), torch.cat([actor.mu.bias, actor.log_std.bias]).detach())]
    return [[*body, *head]]


def stepped(made: ActorCritic, learner: Any, network: str, batch: Trajectories) -> float:
    """One step of plain gradient descent; the loss before it."""
    objective, own = learner.terms, list(made.network(network).parameters())
    loss = objective.loss(made.now(batch, objective.differentiates), objective.plan(batch))
    with torch.no_grad():
        for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
            parameter.sub_(RATE * gradient)
    for follows in learner.then:
        follows(lambda name: list(made.network(name).parameters()), 1)
    return loss.item()


def assert_equal(made: ActorCritic, network: str, theirs: list[list[tuple[Tensor, Tensor]]], before: Tensor) -> None:
    """Networks that have moved by the same, to 1e-6 of the longest entry and of each."""
    mine = torch.cat([p.detach().reshape(-1) for p in made.network(network).parameters()])
    take(made.network(network), theirs)
    other = torch.cat([p.detach().reshape(-1) for p in made.network(network).parameters()])
    assert (other - before).abs().max() > 1e-5
    torch.testing.assert_close(mine - before, other - before, rtol=1e-6, atol=1e-12)


def flat(made: ActorCritic, network: str) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in made.network(network).parameters()])


@pytest.mark.parametrize("several", [False, True], ids=["one step", "several"])
def test_td3(several) -> None:
    actions, algorithm = spaces.Box(-2, 2, (ACTION,)), TD3(delay=1)
    model, made = peer(sb3.TD3, actions, policy_delay=1), ours(algorithm, actions)
    given = samples(actions, several)
    take(made.network("q"), of_critic(model.critic))
    take(made.network("q_lagged"), of_critic(model.critic_target))
    take(made.network("actor"), said(linears(model.actor)))
    take(made.network("actor_lagged"), said(linears(model.actor_target)))
    before = {name: flat(made, name) for name in ("q", "actor", "q_lagged", "actor_lagged")}
    torch.manual_seed(1)
    noise = torch.empty_like(given.actions).normal_(0, 0.2) / 0.2
    model.replay_buffer.sample = lambda *_, **__: given
    torch.manual_seed(1)
    model.train(1, ROWS)
    batch = as_trajectories(given, {"observation": noise, "next_observation": noise})
    critic, policy = algorithm.learned(Setting(1, False, ACTION))
    told = model.logger.name_to_value
    assert stepped(made, critic, "q", batch) == pytest.approx(told["train/critic_loss"], rel=1e-6)
    assert stepped(made, policy, "actor", batch) == pytest.approx(told["train/actor_loss"], rel=1e-6)
    for name, theirs in (
        ("q", of_critic(model.critic)),
        ("actor", said(linears(model.actor))),
        ("q_lagged", of_critic(model.critic_target)),
        ("actor_lagged", said(linears(model.actor_target))),
    ):
        assert_equal(made, name, theirs, before[name])


@pytest.mark.parametrize("several", [False, True], ids=["one step", "several"])
@pytest.mark.parametrize("temperature", [None, 0.25], ids=["learned", "fixed"])
def test_sac(temperature, several) -> None:
    """Theirs reads the temperature of before its step: ours is put back to it here."""
    actions, algorithm = spaces.Box(-2, 2, (ACTION,)), SAC(temperature=temperature)
    model, made = peer(sb3.SAC, actions, ent_coef="auto" if temperature is None else temperature), ours(algorithm, actions)
    model.actor.action_dist.epsilon = 0.0  # 1e-6 that theirs adds to the slope of tanh
    given = samples(actions, several)
    take(made.network("q"), of_critic(model.critic))
    take(made.network("q_lagged"), of_critic(model.critic_target))
    take(made.network("actor"), of_gaussian(model.actor))
    before = {name: flat(made, name) for name in ("q", "actor", "q_lagged")}
    torch.manual_seed(1)
    noise = {
        at: torch.normal(torch.zeros_like(given.actions), torch.ones_like(given.actions)) for at in ("observation", "next_observation")
    }
    model.replay_buffer.sample = lambda *_, **__: given
    torch.manual_seed(1)
    model.train(1, ROWS)
    batch = as_trajectories(given, noise)
    learners = {learner.name: learner for learner in algorithm.learned(Setting(1, False, ACTION))}
    told = model.logger.name_to_value
    if temperature is None:
        loss = stepped(made, learners["temperature"], "temperature", batch)
        assert loss == pytest.approx(told["train/ent_coef_loss"], rel=1e-6, abs=1e-9)
        log_alpha = made.network("temperature").log_value
        torch.testing.assert_close(log_alpha.detach(), model.log_ent_coef.detach()[0], rtol=1e-6, atol=1e-9)
        with torch.no_grad():
            log_alpha.zero_()
    assert stepped(made, learners["critic"], "q", batch) == pytest.approx(told["train/critic_loss"], rel=1e-6)
    assert stepped(made, learners["policy"], "actor", batch) == pytest.approx(told["train/actor_loss"], rel=1e-6)
    for name, theirs in (("q", of_critic(model.critic)), ("actor", of_gaussian(model.actor)), ("q_lagged", of_critic(model.critic_target))):
        assert_equal(made, name, theirs, before[name])


@pytest.mark.parametrize("several", [False, True], ids=["one step", "several"])
def test_dqn(several) -> None:
    actions, algorithm = spaces.Discrete(COUNT), DQN()
    model, made = peer(sb3.DQN, actions, max_grad_norm=1e9), ours(algorithm, actions)
    given = samples(actions, several)
    take(made.network("q"), said(linears(model.q_net)))
    take(made.network("q_lagged"), said(linears(model.q_net_target)))
    before = flat(made, "q")
    model.replay_buffer.sample = lambda *_, **__: given
    model.train(1, ROWS)
    (critic,) = algorithm.learned(Setting(1, True, COUNT))
    assert stepped(made, critic, "q", as_trajectories(given, {})) == pytest.approx(model.logger.name_to_value["train/loss"], rel=1e-6)
    assert_equal(made, "q", said(linears(model.q_net)), before)


def test_defaults() -> None:
    """What is said to be theirs."""
    continuous, counted = Space(spaces.Box(-2, 2, (ACTION,))), Space(spaces.Discrete(COUNT))
    td3, dqn = sb3.TD3("MlpPolicy", continuous, buffer_size=10), sb3.DQN("MlpPolicy", counted, buffer_size=10)
    mine = TD3()
    assert (td3.gamma, td3.tau, td3.policy_delay) == (mine.discount, mine.tau, mine.delay)
    assert (td3.target_policy_noise, td3.target_noise_clip) == (mine.smoothing, mine.limit)
    assert (td3.batch_size, td3.learning_starts) == (256, mine.replay["warmup"])
    assert [layer.out_features for layer in linears(td3.actor)[:-1]] == list(mine.controller["hidden"])
    assert {learner.optimizer["learning_rate"] for learner in mine.learned(Setting(1, False, ACTION))} == {td3.learning_rate}
    other = DQN()
    assert (dqn.gamma, dqn.batch_size, dqn.learning_starts) == (other.discount, other.replay["batch"], other.replay["warmup"])
    assert other.replay["updates_per_step"] == dqn.gradient_steps / dqn.train_freq.frequency
    assert other.copy_every == dqn.target_update_interval * other.replay["updates_per_step"]
    assert (dqn.exploration_initial_eps, dqn.exploration_final_eps) == (other.epsilon, other.final_epsilon)
    assert dqn.exploration_fraction == other.exploration
    (learner,) = other.learned(Setting(1, True, COUNT))
    assert (learner.optimizer["learning_rate"], learner.optimizer["clip_norm"]) == (dqn.learning_rate, dqn.max_grad_norm)
    assert [layer.out_features for layer in linears(dqn.q_net)[:-1]] == list(other.controller["hidden"])
