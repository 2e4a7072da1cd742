"""Stable-Baselines3 and its contrib package beside ours, on the same rollouts and weights. What is found is written down in docs/peers.md.

Their `train` runs as it is, on a rollout buffer that their own collection has filled.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unipg import Trajectories
from unipg.algorithms import Setting, algorithm_named
from unipg.policies.actions import BoxActions, DiscreteActions
from unipg.policies.actor_critic import ActorCritic
from unipg.training.diagnostics import UpdateDiagnostics
from unipg.training.distribution import Workers
from unipg.training.learner import Learning
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.weights import Weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sb3 = pytest.importorskip("stable_baselines3")
    contrib = pytest.importorskip("sb3_contrib")
    from stable_baselines3.common import policies
    from stable_baselines3.common.logger import Logger

ENVIRONMENTS = {"CartPole-v1": DiscreteActions(2), "Pendulum-v1": BoxActions((1,), (-2.0,), (2.0,))}


def filled(kind, name: str, steps: int, **settings):
    """Their algorithm with a buffer of one collection, before it trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind("MlpPolicy", name, n_steps=steps, seed=3, device="cpu", **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    _, callback = model._setup_learn(10**6)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=steps)
    return model


def parameters(policy) -> list[Tensor]:
    """Theirs in our order: actor, log_std where there is one; critic."""
    extractor = policy.mlp_extractor
    actor = [*extractor.policy_net.parameters(), *policy.action_net.parameters()]
    actor += [policy.log_std] if hasattr(policy, "log_std") else []
    return [*actor, *extractor.value_net.parameters(), *policy.value_net.parameters()]


def ours(policy: ActorCritic) -> list[Tensor]:
    log_std = [] if policy.log_std is None else [policy.log_std]
    return [*policy.module.actor.parameters(), *log_std, *policy.module.critic.parameters()]


def twin(model, name: str) -> ActorCritic:
    """Our policy with their weights."""
    policy = ActorCritic(model.observation_space.shape, ENVIRONMENTS[name])
    policy.module.to(parameters(model.policy)[0].dtype)
    with torch.no_grad():
        for mine, theirs in zip(ours(policy), parameters(model.policy), strict=True):
            mine.copy_(theirs)
    return policy


def batch_of(model, *, whitened: bool) -> Trajectories:
    """Their buffer [T,1] as one row of each environment, with their advantages and returns as they are."""
    buffer = model.rollout_buffer

    def rows(array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array.swapaxes(0, 1)))

    action = rows(buffer.actions)
    advantage, value, returns = rows(buffer.advantages), rows(buffer.values), rows(buffer.returns)
    if whitened:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    discrete = np.issubdtype(model.action_space.dtype, np.integer)
    return Trajectories(
        action=action.squeeze(-1).long() if discrete else action,
        mask=torch.ones(advantage.shape, dtype=torch.bool),
        observation=rows(buffer.observations),
        step_reward=rows(buffer.rewards),
        value=value,
        old_log_prob=rows(buffer.log_probs),
        planned={"policy_gradient/advantage": advantage, "value_loss/target": returns},
    )


def learning(name: str, policy: ActorCritic, folder: Path, **settings) -> Learning:
    """Our algorithm's first learner, at its own settings."""
    algorithm = algorithm_named(name)(**settings)
    made = algorithm.learned(Setting(acts=True))[0]
    recipe = OptimizerRecipe().settled(algorithm, policy, controller=True, own=made.optimizer)
    weights, told = Weights(policy), UpdateDiagnostics()
    return Learning(
        made,
        algorithm,
        policy,
        weights,
        training=TrainingRecipe(),
        recipe=recipe,
        workers=Workers(),
        seed=0,
        folder=folder,
        steps=10,
        memory={},
        diagnostics=told,
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_trpo_step(name, tmp_path, monkeypatch) -> None:
    """All that their step changes of the actor, to 1e-5 of its largest change; both in float64, since conjugate gradients amplify rounding.
    Four products: theirs ends at an absolute residual of 1e-5, ours at a relative one. Theirs starts at noise of 1e-4, ours at 0."""
    model = filled(contrib.TRPO, name, 256, batch_size=256, n_critic_updates=1, cg_max_steps=4)
    monkeypatch.setattr(policies, "preprocess_obs", lambda obs, *_, **__: obs.double())
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    model.policy.double()
    policy, batch = twin(model, name), batch_of(model, whitened=True)
    batch = batch.replace(observation=batch.observation.double())
    made = learning("trpo", policy, tmp_path, cg_iterations=4)
    before = made.flat()
    told = made.optimise(batch, (0, 0))
    step = made.flat() - before
    model.train()
    after = torch.cat([p.detach().reshape(-1) for p in parameters(model.policy)])[: len(before)]
    assert told["trust_region/backtracks"] == 0
    assert float(step.abs().max()) > 1e-3
    torch.testing.assert_close(step, after - before, rtol=0, atol=1e-5 * float(step.abs().max()))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_a2c_gradient_and_step(name, tmp_path) -> None:
    """Gradients to 1e-6, and the weights after five steps of RMSprop on the same buffer."""
    model = filled(sb3.A2C, name, 64, gae_lambda=0.9)
    policy, batch = twin(model, name), batch_of(model, whitened=False)
    made = learning("a2c", policy, tmp_path, lam=0.9)
    for number in range(5):
        planned = made.objective.plan(batch, made.planning())
        gradient, _, _ = made.gradient(planned, made.planning())
        seen, step = {}, model.policy.optimizer.step

        def watched(*args, seen=seen, step=step, **kwargs):
            seen["clipped"] = torch.cat([p.grad.reshape(-1) for p in parameters(model.policy)])
            return step(*args, **kwargs)

        model.policy.optimizer.step = watched
        model.train()
        model.policy.optimizer.step = step
        mine = in_their_order(policy, made, gradient)
        clipped = mine * min(1.0, 0.5 / float(mine.norm()))
        torch.testing.assert_close(clipped, seen["clipped"], rtol=0, atol=1e-6, msg=f"gradient {number}")
        made.optimise(batch, (0, number))
    for mine, theirs in zip(ours(policy), parameters(model.policy), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)


def in_their_order(policy: ActorCritic, made: Learning, flat: Tensor) -> Tensor:
    pieces = dict(zip(map(id, made.moved), flat.split([p.numel() for p in made.moved]), strict=True))
    return torch.cat([pieces[id(p)] for p in ours(policy)])
