"""N-PG-IGT and (N-)HARPG (arXiv 2302.01734): the numbers of their definitions, by enumeration and through the whole loop.

That both are exact on quadratics, equal normalised REINFORCE without momentum, and step by given lengths is in
`tests/estimator/test_directions.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unipg.algorithms import Setting, algorithm_named
from unipg.errors import InputError
from unipg.estimator import Outcome, PolicyGradient, SequenceMeanTokenSum
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.rollouts.base import Interrupted
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.checkpoints import read_checkpoint
from unipg.training.surface import BatchSurface
from unipg.training.trainer import Stopped

REWARD = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
THETA = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
ALONG = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64)
NAMES = ("n_pg_igt", "harpg", "n_harpg")


# ---------------------------------------------------------------------------------------------------- a bandit


class Bandit(BigramPolicy):
    """Three arms behind one prompt: only the first row of the table is ever read."""

    def __init__(self) -> None:
        super().__init__(3)
        with torch.no_grad():
            self.logits.zero_()
            self.logits[0] = THETA


def enumerated(estimate: str, tmp_path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and B·v of the expected reward, every arm weighed by its probability."""
    problem = StringProblem(vocabulary=3, prompts=(0,), length=1, reward=lambda prompt, answer: float(REWARD[answer[0]]))
    policy = Bandit()
    algorithm = algorithm_named("harpg")(hessian=estimate)
    made = Trainer(algorithm, policy, StringExperience(problem), folder=tmp_path, optimizer=OptimizerRecipe(learning_rate=1.0)).learner
    batch = problem.batch([(0, (arm,)) for arm in range(3)], [0, 0, 0])
    batch = batch.replace(reward=3 * batch.reward * THETA.softmax(0))
    planning = made.planning()
    on = BatchSurface(made, made.objective.plan(made.objective.prepare(batch, planning), planning), planning)
    v = torch.cat([ALONG, torch.zeros(len(on.theta) - 3, dtype=torch.float64)])
    return -on.gradient()[:3], -on.expected_hessian(v, estimate)[:3]


@pytest.mark.parametrize("estimate", ["product", "dice"])
def test_a_bandit_by_enumeration(estimate, tmp_path) -> None:
    """The sign of the score's product is what a wrong one would show: (0.0108, 0.0520, −0.0629)."""
    gradient, curved = enumerated(estimate, tmp_path)
    assert gradient.tolist() == pytest.approx([0.1727, -0.1453, -0.0274], abs=5e-5)
    assert curved.tolist() == pytest.approx([-0.0144, 0.0330, -0.0186], abs=5e-5)


def test_the_hessian_along_a_path_adds_up_to_the_gradients_difference() -> None:
    """∫ ∇²J(θ + q v) v dq over q in [0, 1] = ∇J(θ + v) − ∇J(θ): why one random point carries the direction along without bias."""

    def gradient(theta: torch.Tensor) -> torch.Tensor:
        return torch.autograd.functional.jacobian(lambda t: t.softmax(0) @ REWARD, theta, create_graph=True)

    nodes, weights = np.polynomial.legendre.leggauss(12)
    total = torch.zeros(3, dtype=torch.float64)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        at = (THETA + float(node) * ALONG).requires_grad_()
        (product,) = torch.autograd.grad(gradient(at) @ ALONG, at)
        total += float(weight) * product
    torch.testing.assert_close(total, (gradient(THETA + ALONG) - gradient(THETA)).detach(), rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------------------------------- through the loop

PROBLEM = StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2)


def trainer(name: str, folder: Path, iterations: int = 4, **settings) -> Trainer:
    return Trainer(
        algorithm_named(name)(**{"step": 0.4, **settings}),
        BigramPolicy(4, seed=1),
        StringExperience(PROBLEM, prompts=6),
        folder=folder,
        training=TrainingRecipe(iterations=iterations),
        optimizer=OptimizerRecipe(learning_rate=1.0),
        seed=3,
    )


def collected_with(made: Trainer) -> list[torch.Tensor]:
    """The weights that each batch is collected with, as they come."""
    seen, collect = [], made.experience.collect

    def watched(policy, demand):
        seen.append(policy.logits.detach().clone())
        return collect(policy, demand)

    made.experience.collect = watched
    return seen


def test_every_batch_is_collected_and_differentiated_where_the_paper_says(tmp_path) -> None:
    """The recursion in plain torch, from the batches and the gradients that the loop had."""
    made = trainer("n_pg_igt", tmp_path)
    seen = collected_with(made)
    learner = made.learner
    gradients, iterates = [], [learner.flat()]
    differentiate = learner.gradient

    def watched(planned, planning):
        found = differentiate(planned, planning)
        gradients.append(found[0])
        return found

    learner.gradient = watched
    made.observer.iteration = lambda *_: iterates.append(learner.flat())
    made.train()
    assert len(seen) == len(gradients) == 4
    previous = theta = iterates[0]
    d = torch.zeros_like(theta)
    for t in range(4):
        eta, gamma = (2 / (t + 2)) ** 0.8, 0.4 * 2 / (t + 2)
        ahead = theta + (1 - eta) / eta * (theta - previous)
        torch.testing.assert_close(seen[t].reshape(-1), ahead[:16], rtol=1e-12, atol=1e-12)
        d = gradients[t] if t == 0 else (1 - eta) * d + eta * gradients[t]
        previous, theta = theta, theta - gamma * d / d.norm()
        torch.testing.assert_close(iterates[t + 1], theta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["harpg", "n_harpg"])
def test_the_second_batch_lies_on_the_last_step_and_the_first_iteration_has_none(name, tmp_path) -> None:
    made = trainer(name, tmp_path)
    seen = collected_with(made)
    iterates = [made.policy.logits.detach().clone()]
    made.observer.iteration = lambda *_: iterates.append(made.policy.logits.detach().clone())
    made.train()
    assert len(seen) == 1 + 2 * 3
    shares = []
    for t in range(1, 4):
        own, between = seen[2 * t - 1 : 2 * t + 1]
        assert torch.equal(own, iterates[t])
        last = iterates[t] - iterates[t - 1]
        share = ((between - iterates[t - 1]) * last).sum() / (last * last).sum()
        torch.testing.assert_close(between, share * iterates[t] + (1 - share) * iterates[t - 1])
        assert 0 <= share <= 1
        shares.append(float(share))
    assert len(set(shares)) == 3


def test_the_two_batches_of_a_step_are_drawn_apart(tmp_path) -> None:
    made = trainer("n_harpg", tmp_path, step=1e-9)  # the policy hardly moves: equal numbers would give equal answers
    batches, collect = [], made.experience.collect
    made.experience.collect = lambda policy, demand: batches.append(collect(policy, demand)) or batches[-1]
    made.train()
    assert not torch.equal(batches[1][0].action, batches[2][0].action)


@pytest.mark.parametrize("name", ["n_pg_igt", "n_harpg"])
def test_steps_have_their_length_whatever_the_rewards_are(name, tmp_path) -> None:
    found = []
    for scale in (1.0, 10.0):
        made = trainer(name, tmp_path / str(scale))
        made.experience.problem = StringProblem(
            4, (0, 1, 2), 2, reward=lambda prompt, answer, scale=scale: scale * (answer == (prompt, prompt))
        )
        iterates = [made.learner.flat()]
        made.observer.iteration = lambda *_, made=made, iterates=iterates: iterates.append(made.learner.flat())
        made.train()
        for t in range(4):
            assert float((iterates[t + 1] - iterates[t]).norm()) == pytest.approx(0.4 * 2 / (t + 2), rel=1e-6)
        found.append(iterates[-1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_no_signal_is_no_step_and_is_counted(tmp_path) -> None:
    made = trainer("n_pg_igt", tmp_path, iterations=3)
    collect = made.experience.collect

    def worthless(policy, demand):
        batch, metrics = collect(policy, demand)
        return batch.replace(reward=torch.zeros_like(batch.reward)), metrics

    made.experience.collect = worthless
    before = made.learner.flat()
    assert made.train()["steps/zero"] == 3
    assert torch.equal(made.learner.flat(), before)


# ---------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(name, tmp_path) -> None:
    """After every step, and while a batch is collected: between the two of a step too. The iterate, not the point, is what is saved."""
    straight = trainer(name, tmp_path / "straight")
    straight.train()
    expected = {key: value.clone() for key, value in straight.policy.module.state_dict().items()}
    collections = 4 if name == "n_pg_igt" else 7
    for kind, stop in [("step", k) for k in range(1, 4)] + [("collection", k) for k in range(1, collections)]:
        folder = tmp_path / f"{kind}{stop}"
        first = trainer(name, folder)
        if kind == "step":
            first.stop_after_steps = stop
        else:
            interrupted(first, stop)
        with pytest.raises(Stopped):
            first.train()
        saved = read_checkpoint(folder)
        assert torch.equal(saved["module"]["logits"], first.policy.logits)
        second = trainer(name, folder)
        second.resume()
        second.train()
        assert all(torch.equal(value, expected[key]) for key, value in second.policy.module.state_dict().items()), (kind, stop)


def interrupted(made: Trainer, number: int) -> None:
    """Makes a run be stopped in the middle of its collection `number` (from 0)."""
    count, collect = [0], made.experience.collect

    def watched(policy, demand):
        if count[0] == number:
            made.stop_requested = True
            raise Interrupted
        count[0] += 1
        return collect(policy, demand)

    made.experience.collect = watched


# ---------------------------------------------------------------------------------------------------- what they are


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_by_setting(name) -> None:
    algorithm = algorithm_named(name)()
    (alone,) = algorithm.learners(Setting(6))
    assert alone.terms.terms == (PolicyGradient(advantage=Outcome(), aggregate=SequenceMeanTokenSum()),)
    policy, critic = algorithm.learners(Setting(6, acts=True))
    assert (policy.trains, critic.trains) == (("actor",), ("critic",))
    assert policy.direction == alone.direction == algorithm.direction()
    assert algorithm_named(name)(estimator="outcome").learners(Setting(6, acts=True))[0].trains == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"momentum": 0.0}, "algorithm.momentum is 0.0; accepted: a finite number above 0, at most 1"),
        ({"momentum": 1.5}, "algorithm.momentum is 1.5"),
        ({"step": 0.0}, "algorithm.step is 0.0; accepted: a finite number above 0"),
        ({"critic_epochs": 0}, "algorithm.critic_epochs is 0; accepted: 1 or more"),
        ({"hessian": "exact"}, "hessian"),
        ({"estimator": "reward"}, "'reward'.*accepted: auto, gae, outcome|auto, gae, outcome.*reward"),
        ({"lam": 1.5}, r"algorithm.lam is 1.5; accepted: a number in \[0, 1\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words) -> None:
    with pytest.raises(InputError, match=words):
        algorithm_named("n_harpg")(**settings)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"epochs": 2}, "training.epochs is 2, but algorithm 'n_pg_igt' says itself how often"),
        ({"minibatches": 3}, "training.minibatches is 3, but algorithm 'n_pg_igt'"),
        ({"overlap": True}, "training.overlap is true, but algorithm 'n_pg_igt' says with which weights each batch is collected"),
    ],
)
def test_other_uses_of_a_batch_are_refused(training, words, tmp_path) -> None:
    with pytest.raises(InputError, match=words):
        Trainer(
            algorithm_named("n_pg_igt")(),
            BigramPolicy(4),
            StringExperience(PROBLEM),
            folder=tmp_path,
            training=TrainingRecipe(**training),
            optimizer=OptimizerRecipe(learning_rate=1.0),
        )


def test_metrics_of_a_step_with_two_batches_are_the_iterates(tmp_path) -> None:
    made = trainer("n_harpg", tmp_path)
    made.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"step_norm", "direction_norm", "gradient_norm", "loss"} <= rows[-1].keys()
    assert "learning_rate" not in rows[-1]
