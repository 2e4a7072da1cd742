"""TRPO and A2C: one update beside independent code in plain torch and float64, and runs that are stopped.

Products, line search and what is refused: `tests/training/test_surface.py`, `tests/estimator/test_directions.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from unipg import InputError, Trajectories
from unipg.algorithms import Setting, algorithm_named
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.policies.actions import BoxActions, DiscreteActions
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import generator
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.checkpoints import read_checkpoint
from unipg.training.diagnostics import UpdateDiagnostics
from unipg.training.distribution import Workers
from unipg.training.learner import Learning
from unipg.training.trainer import Stopped
from unipg.training.weights import Weights

KINDS = {"gaussian": BoxActions((2,), (-1.0, -1.0), (1.0, 1.0)), "discrete": DiscreteActions(3)}


def policy_of(kind: str) -> ActorCritic:
    policy = ActorCritic((3,), KINDS[kind], hidden=(4,), log_std=-0.4, seed=1)
    policy.module.double()
    return policy


def window(policy: ActorCritic, rows: int = 5, steps: int = 4) -> Trajectories:
    source = generator(0, "window")
    observation = torch.randn(rows, steps, 3, dtype=torch.float64, generator=source)
    noise = torch.as_tensor(policy.noise(steps, rows, source)).transpose(0, 1).double()
    with torch.no_grad():
        output = policy.module.actor(observation)
        action, _ = policy.actions.fresh(output.reshape(rows * steps, -1), noise.reshape(rows * steps, -1), policy.log_std)
    terminated = torch.zeros(rows, steps, dtype=torch.bool)
    terminated[1, 1] = True
    batch = Trajectories(
        action=action.reshape(rows, steps, *action.shape[1:]),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        observation=observation,
        step_reward=torch.randn(rows, steps, dtype=torch.float64, generator=source),
        terminated=terminated,
        bootstrap_value=torch.zeros(rows, steps, dtype=torch.float64).index_fill(1, torch.tensor([steps - 1]), 7.0),
    )
    with torch.no_grad():
        said = policy.evaluate(batch, value=True)
    return batch.replace(old_log_prob=said.log_prob, value=said.value)


def learners(name: str, policy: ActorCritic, folder: Path, **settings) -> list[Learning]:
    algorithm = algorithm_named(name)(**settings)
    weights, found = Weights(policy), []
    for made in algorithm.learned(Setting(acts=True)):
        recipe = OptimizerRecipe().settled(algorithm, policy, controller=True, own=made.optimizer)
        shared = {"training": TrainingRecipe(), "recipe": recipe, "workers": Workers(), "seed": 0, "folder": folder, "steps": 10}
        found.append(Learning(made, algorithm, policy, weights, memory={}, diagnostics=UpdateDiagnostics(), **shared))
    return found


def returns(batch: Trajectories, gamma: float) -> torch.Tensor:
    """[B,T] rewards to the window's end, and 7 behind it where no episode has ended."""
    found = torch.zeros_like(batch.step_reward)
    for row in range(len(batch)):
        after = 7.0
        for t in reversed(range(batch.mask.shape[1])):
            after = 0.0 if batch.terminated[row, t] else after
            found[row, t] = after = batch.step_reward[row, t] + gamma * after
    return found


# ---------------------------------------------------------------------------------------------------- TRPO


@pytest.mark.parametrize("kind", KINDS)
def test_a_trpo_update_is_that_of_its_paper(kind, tmp_path) -> None:
    """F from per-sample scores, E[∇log pi ∇log piᵀ] over ALL actions (by quadrature of the KL for Gaussians), solved exactly."""
    policy = policy_of(kind)
    batch, settings = window(policy), {"max_kl": 1e-4, "damping": 0.1, "lam": 1.0, "gamma": 0.9, "cg_iterations": 100}
    learner = learners("trpo", policy, tmp_path, **settings)[0]
    ready = learner.objective.prepare(batch, learner.planning())
    actor = [*policy.module.actor.parameters(), *([] if policy.log_std is None else [policy.log_std])]
    advantage = returns(batch, 0.9) - batch.value
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    log_prob = policy.evaluate(batch).log_prob
    gradient = flat(torch.autograd.grad((advantage * log_prob).mean(), actor))
    fisher = exact_fisher(policy, batch, actor) + 0.1 * torch.eye(len(gradient), dtype=torch.float64)
    x = torch.linalg.solve(fisher, gradient)
    expected = flat(actor).detach() + math.sqrt(2 * 1e-4 / float(x @ fisher @ x)) * x
    told = learner.optimise(ready, (0, 0))
    assert told["trust_region/backtracks"] == 0
    assert 0 < told["trust_region/kl"] <= 1e-4
    torch.testing.assert_close(flat(actor).detach(), expected, rtol=1e-5, atol=2e-6)  # conjugate gradients end at a residual of 1e-5


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def exact_fisher(policy: ActorCritic, batch: Trajectories, actor: list[torch.Tensor]) -> torch.Tensor:
    total = 0
    for observation in batch.observation.reshape(-1, 3):
        output = policy.module.actor(observation)
        if policy.log_std is None:
            probability = output.softmax(-1).detach()
            scores = [flat(torch.autograd.grad(lp, actor, retain_graph=True)) for lp in output.log_softmax(-1)]
            total = total + sum(p * torch.outer(s, s) for p, s in zip(probability, scores, strict=True))
        else:
            rows = [flat(torch.autograd.grad(mean, actor, retain_graph=True, allow_unused=True, materialize_grads=True)) for mean in output]
            for row, log_std in zip(rows, policy.log_std.detach(), strict=True):
                total = total + torch.outer(row, row) * math.exp(-2 * float(log_std))
            own = torch.zeros(len(rows[0]), dtype=torch.float64)
            own[-2:] = 2.0
            total = total + torch.diag(own)
    return total / batch.mask.numel()


def test_the_critic_makes_its_passes_behind_the_step_and_nobody_elses(tmp_path) -> None:
    policy = policy_of("gaussian")
    batch = window(policy)
    step, critic = learners("trpo", policy, tmp_path)
    assert (critic.spec.epochs, critic.spec.minibatches, step.spec.epochs, step.spec.minibatches) == (10, 16, 1, 1)
    ready = critic.objective.prepare(batch, critic.planning())
    before = [p.detach().clone() for p in policy.module.parameters()]
    target = returns(batch, 0.99) if critic.objective.terms[0].gae.lam == 1 else ready.planned["value_loss/target"]
    told = critic.optimise(ready, (0, 1))
    assert told["critic/loss"] == pytest.approx(float(0.5 * ((batch.value - target) ** 2).mean()))
    moved = [not torch.equal(p, b) for p, b in zip(policy.module.parameters(), before, strict=True)]
    names = [name for name, _ in policy.module.named_parameters()]
    assert [name for name, m in zip(names, moved, strict=True) if m] == [name for name in names if name.startswith("critic")]


# ---------------------------------------------------------------------------------------------------- A2C


def test_an_a2c_gradient_is_that_of_its_paper(tmp_path) -> None:
    """n-step returns to the window's end, V(end) = 7 counted once."""
    policy = policy_of("gaussian")
    batch = window(policy)
    (learner,) = learners("a2c", policy, tmp_path, gamma=0.9, entropy=0.01)
    planned = learner.objective.plan(learner.objective.prepare(batch, learner.planning()), learner.planning())
    found, _, _ = learner.gradient(planned, learner.planning())
    target = returns(batch, 0.9)
    said = policy.evaluate(batch, value=True, entropy=True)
    loss = -((target - said.value.detach()) * said.log_prob).mean() + 0.5 * ((said.value - target) ** 2).mean() - 0.01 * said.entropy.mean()
    torch.testing.assert_close(found, flat(torch.autograd.grad(loss, learner.moved)), rtol=1e-6, atol=1e-9)


def test_epsilon_stands_outside_the_root(tmp_path) -> None:
    """The first step from an average of 0 with g = 1e-3: 9.09 learning rates; inside the root it would be 0.316."""
    policy = policy_of("gaussian")
    (learner,) = learners("a2c", policy, tmp_path)
    recipe = learner.recipe
    assert (recipe.kind, recipe.eps, recipe.rate, recipe.longest) == ("rmsprop", 1e-5, 7e-4, 0.5)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.full((1,), 1e-3)
    recipe.build([weight]).step()
    assert float(weight.detach()) == pytest.approx(-9.09 * 7e-4, rel=1e-3)


def test_settings_are_those_of_stable_baselines3() -> None:
    a2c, trpo = algorithm_named("a2c")(), algorithm_named("trpo")()
    assert (a2c.gamma, a2c.lam, a2c.normalize_advantage, a2c.entropy) == (0.99, 1.0, False, 0.0)
    assert (trpo.max_kl, trpo.damping, trpo.cg_iterations, trpo.shrink, trpo.tries, trpo.lam) == (0.01, 0.1, 15, 0.8, 10, 0.95)


# ---------------------------------------------------------------------------------------------------- runs


def run(name: str, folder: Path, iterations: int = 3, **settings) -> Trainer:
    environments = EnvironmentRecipe("CartPole-v1", count=2, steps=24, evaluation_episodes=1).build(0)
    policy = ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)
    training = TrainingRecipe(iterations=iterations, save_every=100)
    return Trainer(algorithm_named(name)(**settings), policy, environments, folder=folder, training=training, seed=2)


SMALL = {
    "trpo": {"critic_epochs": 2, "critic_minibatches": 2},
    "a2c": {},
    "n_pg_igt": {"critic_epochs": 2, "critic_minibatches": 1},
    "n_harpg": {"critic_epochs": 2, "critic_minibatches": 1},
    "harpg": {"critic_epochs": 1, "critic_minibatches": 2, "hessian": "dice"},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_run_that_is_stopped_after_any_step_goes_on_to_the_same_weights(name, tmp_path) -> None:
    straight = run(name, tmp_path / "straight", **SMALL[name])
    straight.train()
    expected = {key: value.clone() for key, value in straight.policy.module.state_dict().items()}
    assert straight.step == 3 * len(straight.feed.schedule)
    for stop in range(1, straight.step):
        first = run(name, tmp_path / str(stop), **SMALL[name])
        first.stop_after_steps = stop
        with pytest.raises(Stopped):
            first.train()
        second = run(name, tmp_path / str(stop), **SMALL[name])
        second.resume()
        second.train()
        assert all(torch.equal(value, expected[key]) for key, value in second.policy.module.state_dict().items()), stop


def test_a_stop_in_the_middle_of_a_second_collection_saves_the_iterate(tmp_path, monkeypatch) -> None:
    """The environments, half-way through a window at another point, begin the iteration again."""
    monkeypatch.setattr("unipg.training.trainer.BRIEF", 0.0)  # no window is so short that it is waited for
    straight = run("n_harpg", tmp_path / "straight")
    straight.train()
    first = run("n_harpg", tmp_path / "run")
    steps, given = [0], first.policy.environment_action

    def counted(action):
        steps[0] += 1
        if steps[0] == 24 * 2 + 10:  # ten steps into the second window of the second iteration
            first.stop_requested = True
        return given(action)

    first.policy.environment_action = counted
    iterates = []
    first.observer.iteration = lambda *_: iterates.append({k: v.clone() for k, v in first.policy.module.state_dict().items()})
    with pytest.raises(Stopped):
        first.train()
    saved = read_checkpoint(tmp_path / "run")
    assert saved["iteration"] == 1
    assert all(torch.equal(value, iterates[0][name]) for name, value in saved["module"].items())
    second = run("n_harpg", tmp_path / "run")
    second.resume()
    second.train()
    assert all(torch.equal(value, straight.policy.module.state_dict()[key]) for key, value in second.policy.module.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_kl": 0.0}, "algorithm.max_kl is 0.0; accepted: a finite number above 0"),
        ({"damping": -1.0}, "algorithm.damping is -1.0; accepted: 0 or more"),
        ({"shrink": 1.0}, "algorithm.shrink is 1.0; accepted: a number between 0 and 1"),
        ({"tries": 0}, "algorithm.tries is 0; accepted: 1 or more"),
        ({"critic_minibatches": 0}, "algorithm.critic_minibatches is 0"),
        ({"lam": -0.1}, "algorithm.lam is -0.1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words) -> None:
    with pytest.raises(InputError, match=words):
        algorithm_named("trpo")(**settings)


def test_language_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="algorithm 'trpo' trains controllers; accepted: an environment"):
        Trainer(algorithm_named("trpo")(), BigramPolicy(3), StringExperience(StringProblem()), folder=Path("never"))
