"""Small networks as one vector: the same steps, and nothing moves that has no gradient."""

import sys
from pathlib import Path

import pytest
import torch

from unipg.algorithms.control.ppo import PPO
from unipg.algorithms.control.reinforce import Reinforce
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.optimization import take_step
from unipg.training.vectors import ParameterVector, gradients_of, joined


def trained(folder: Path, algorithm, environment: str = "CartPole-v1") -> tuple[dict[str, torch.Tensor], Trainer]:
    experience = EnvironmentRecipe(environment, 2, 16, evaluation_episodes=2).build(0)
    policy = ActorCriticRecipe(hidden=[8]).build(experience.observation_space, experience.action_space, 0)
    training = TrainingRecipe(iterations=3, epochs=2, minibatches=2)
    trainer = Trainer(algorithm, policy, experience, folder=folder, training=training, optimizer=OptimizerRecipe(clip_norm=0.5))
    trainer.train()
    return {name: value.clone() for name, value in policy.module.state_dict().items()}, trainer


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_steps_on_vectors_are_those_on_parameters(tmp_path, monkeypatch, environment) -> None:
    vectors, trainer = trained(tmp_path / "vectors", PPO(), environment)
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] == [2]
    monkeypatch.setattr(ActorCritic, "networks", {})
    single, trainer = trained(tmp_path / "single", PPO(), environment)
    assert len(trainer.optimizer.param_groups[0]["params"]) == len(list(trainer.policy.module.parameters()))
    assert vectors.keys() == single.keys()
    for name, value in single.items():
        torch.testing.assert_close(vectors[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "rmsprop"])
def test_a_step_is_torchs_own_to_the_bit(kind) -> None:
    """Over two groups, of which one has a parameter without a gradient and then none at all."""

    def stepped(step) -> list[torch.Tensor]:
        source = torch.Generator().manual_seed(0)
        groups = [[torch.nn.Parameter(torch.randn(n, 3, generator=source)) for n in sizes] for sizes in ((2, 5, 1), (4,))]
        optimizer = OptimizerRecipe(learning_rate=0.1, eps=1e-5, weight_decay=0.01, kind=kind).build(*groups)
        for number in range(4):
            optimizer.param_groups[1]["lr"] = 0.1 / (number + 1)
            for parameter in (p for group in groups for p in group):
                parameter.grad = torch.randn(parameter.shape, generator=source)
            groups[0][1].grad = None if number % 2 else groups[0][1].grad
            groups[1][0].grad = None if number == 2 else groups[1][0].grad
            versions = [p._version for group in groups for p in group if p.grad is not None]
            step(optimizer)
            moved = [p._version for group in groups for p in group if p.grad is not None]
            assert all(after > before for before, after in zip(versions, moved, strict=True))
        return [p.detach() for group in groups for p in group]

    for ours, theirs in zip(stepped(take_step), stepped(lambda optimizer: optimizer.step()), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_are_torchs_own_to_the_bit() -> None:
    source = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(size, generator=source, dtype=torch.float64)) for size in ((3, 4), (4,), (4, 2))]
    rows = torch.randn(7, 3, generator=source, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return ((torch.addmm(weights[1], rows, weights[0]).relu() @ weights[2]) ** 2).sum()

    ours, theirs = gradients_of(loss(), weights), torch.autograd.grad(loss(), weights)
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(weight.grad is None for weight in weights)
    assert torch.equal(joined(ours), torch.cat([gradient.reshape(-1) for gradient in theirs]))
    with pytest.raises(RuntimeError, match="not have been used"):
        gradients_of(loss(), [*weights, torch.nn.Parameter(rows)])


@pytest.mark.parametrize("on", [False, True])
def test_moments_that_vanish_are_zero_and_arithmetic_stays_as_it_was(on) -> None:
    """Of a weight whose gradient is 0: its moment falls below what float32 holds in full, and does not move the weight any more."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = OptimizerRecipe(learning_rate=0.1).build([weight])
    weight.grad = torch.tensor([1e-37, 1.0])
    optimizer.step()
    torch.set_flush_denormal(on)
    try:
        for _ in range(30):
            weight.grad = torch.tensor([0.0, 1.0])
            take_step(optimizer)
        vanished = sys.float_info.min * 0.5 == 0
    finally:
        torch.set_flush_denormal(False)
    moment = optimizer.state[weight]["exp_avg"]
    assert moment[0] == 0 < moment[1]
    assert weight[0] == 1
    assert vanished == on


def test_a_network_without_gradient_stays(tmp_path) -> None:
    _, trainer = trained(tmp_path / "run", Reinforce())
    start = ActorCriticRecipe(hidden=[8]).build(trainer.experience.observation_space, trainer.experience.action_space, 0)
    now = trainer.policy.module.state_dict()
    for name, value in start.module.state_dict().items():
        assert torch.equal(now[name], value) == name.startswith("critic"), name


def test_a_frozen_critic_is_no_vector(tmp_path) -> None:
    experience = EnvironmentRecipe("CartPole-v1", 2, 8, evaluation_episodes=2).build(0)
    policy = ActorCriticRecipe(hidden=[8]).build(experience.observation_space, experience.action_space, 0)
    policy.module.critic.requires_grad_(False)
    before = {name: value.clone() for name, value in policy.module.critic.state_dict().items()}
    trainer = Trainer(Reinforce(), policy, experience, folder=tmp_path, training=TrainingRecipe(iterations=1))
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] == [1]
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in policy.module.critic.state_dict().items())


def test_views_and_gradients() -> None:
    parameters = [torch.nn.Parameter(torch.randn(2, 3)), torch.nn.Parameter(torch.randn(3))]
    whole = ParameterVector(parameters)
    whole.vector.data.mul_(2)
    assert torch.equal(torch.cat([p.detach().flatten() for p in parameters]), whole.vector.detach())
    (parameters[0] @ parameters[1]).sum().backward()
    whole.gather()
    assert torch.equal(whole.vector.grad, torch.cat([p.grad.flatten() for p in parameters]))
    parameters[0].grad = None
    whole.gather()
    assert whole.vector.grad is None


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


MODIFIED = "has been modified by an inplace operation"


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_step_between_forward_and_backward_raises(kind, joined) -> None:
    """A gradient through weights that have changed since is wrong; torch's own fused step says nothing of it."""
    net = network()
    whole = ParameterVector(list(net.parameters())) if joined else None
    stepped = [whole.vector] if whole else list(net.parameters())
    optimizer = OptimizerRecipe(kind=kind, learning_rate=0.1).build(stepped)
    for parameter in stepped:
        parameter.grad = torch.ones_like(parameter)
    loss = net(torch.ones(1, 3)).pow(2).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()
    net(torch.ones(1, 3)).pow(2).sum().backward()


def test_any_write_to_the_vector_is_seen_and_parameters_stay_the_same_objects() -> None:
    net = network()
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in net.named_parameters()}
    whole = ParameterVector(list(net.parameters()))
    for name, parameter in net.named_parameters():
        assert parameter is before[name][0]
        assert isinstance(parameter, torch.nn.Parameter)
        assert parameter.is_leaf
        assert torch.equal(parameter, before[name][1])
    for write in (lambda: whole.vector.add_(1), lambda: net[2].weight.add_(1), lambda: net.load_state_dict(net.state_dict())):
        loss = net(torch.ones(1, 3)).pow(2).sum()
        with torch.no_grad():
            write()
        with pytest.raises(RuntimeError, match=MODIFIED):
            loss.backward()


def test_a_controllers_step_between_forward_and_backward_raises(tmp_path) -> None:
    _, trainer = trained(tmp_path / "run", PPO())
    batch = trainer.experience.collect(trainer.policy, trainer.feed.demand(9))[0]
    now = trainer.policy.evaluate(batch, value=True)
    for parameter in trainer.policy.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    for vector in trainer.learner._vectors:
        vector.gather()
    trainer.optimizer.step()
    for part in (now.log_prob, now.value):
        with pytest.raises(RuntimeError, match=MODIFIED):
            part.sum().backward()


def test_a_parameter_with_weak_references_is_stepped_as_it_is(tmp_path) -> None:
    import weakref

    experience = EnvironmentRecipe("CartPole-v1", 2, 8, evaluation_episodes=2).build(0)
    policy = ActorCriticRecipe(hidden=[8]).build(experience.observation_space, experience.action_space, 0)
    watched = weakref.ref(next(policy.module.actor.parameters()))
    trainer = Trainer(PPO(), policy, experience, folder=tmp_path, training=TrainingRecipe(iterations=1))
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] == [1 + len(list(policy.module.actor.parameters()))]
    before = watched().detach().clone()
    trainer.train()
    assert not torch.equal(watched(), before)
