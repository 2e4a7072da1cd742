"""Parts that look at whole rows see the episodes of a controller, though its steps could be cut; where none does, steps are cut."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unipg import InputError
from unipg.algorithms import registered
from unipg.algorithms.base import Algorithm, Setting
from unipg.algorithms.control.ppo import PPO
from unipg.algorithms.control.reinforce import Reinforce
from unipg.estimator import GAE, GroupCentered, OldPolicy, PolicyGradient, RatioClip, SequenceClip, SequenceMean, TokenMean
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.base import Demand, Experience
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.learner import Learning
from unipg.trajectories import Trajectories

pytest.importorskip("gymnasium")
WINDOW = 40


def trainer(algorithm: Algorithm, folder: Path, *, count: int = 3, rate: float = 1.0, **training: Any) -> Trainer:
    """On CartPole, by plain gradient descent without clipping, so that a step shows the gradient."""
    experience = EnvironmentRecipe("CartPole-v1", count, WINDOW, vectorized=False).build(0)
    experience.evaluate = lambda *_: []  # type: ignore[method-assign]
    policy = ActorCriticRecipe([8]).build(experience.observation_space, experience.action_space, 0)
    policy.module.double()
    return Trainer(
        algorithm,
        policy,
        experience,
        folder=folder,
        training=TrainingRecipe(iterations=1, **training),
        optimizer=OptimizerRecipe(kind="sgd", learning_rate=rate, clip_norm=None),
    )


def weights(made: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in made.policy.module.parameters()])


def windows(made: Trainer) -> Trajectories:
    """The batch that the trainer will collect first."""
    experience = EnvironmentRecipe("CartPole-v1", made.experience.recipe.count, WINDOW, vectorized=False).build(0)  # type: ignore[attr-defined]
    batch, _ = experience.collect(made.policy, Demand(iteration=0, value=True))
    return batch


def episodes(batch: Trajectories) -> list[tuple[int, slice]]:
    """Row and steps of each episode in windows without masked steps, by a plain loop."""
    found = []
    assert batch.terminated is not None
    assert batch.truncated is not None
    for row in range(len(batch)):
        start = 0
        for step in range(batch.mask.shape[1]):
            if batch.terminated[row, step] or batch.truncated[row, step] or step == batch.mask.shape[1] - 1:
                found.append((row, slice(start, step + 1)))
                start = step + 1
    return found


def step_by_hand(made: Trainer, batch: Trajectories, loss_of_episode: Any) -> Tensor:
    """Minus the gradient of the mean over episodes of `loss_of_episode(log_prob, advantage, error)`."""
    gae = GAE(0.9, 0.8, normalize=False)
    advantage = gae(batch)
    assert batch.value is not None
    target = advantage + batch.value
    now = made.policy.evaluate(batch, value=True)
    assert now.value is not None
    error = 0.5 * 0.5 * (now.value - target) ** 2
    losses = [loss_of_episode(now.log_prob[row, s], advantage[row, s], error[row, s]) for row, s in episodes(batch)]
    loss = torch.stack(losses).mean()
    gradient = torch.autograd.grad(loss, list(made.policy.module.parameters()))
    return -torch.cat([g.flatten() for g in gradient])


BY_ROW = {
    "sequence_mean_token_mean": lambda x: x.mean(),
    "sequence_mean_token_sum": lambda x: x.sum(),
    "constant_length": lambda x: x.sum() / WINDOW,
}


@pytest.mark.parametrize("budget", [4096, 7])
@pytest.mark.parametrize("aggregate", BY_ROW)
def test_aggregates_by_row_count_episodes(aggregate: str, budget: int, tmp_path: Path) -> None:
    """One step of PPO against the mean over episodes written by hand, whole and in micro-batches of about one episode."""
    made = trainer(PPO(gamma=0.9, lam=0.8, normalize_advantage=False, aggregate=aggregate), tmp_path, micro_batch_tokens=budget)  # type: ignore[arg-type]
    batch = windows(made)
    assert len(episodes(batch)) > len(batch)
    mean = BY_ROW[aggregate]
    expected = step_by_hand(made, batch, lambda lp, a, e: mean(-a * lp + e))
    before = weights(made)
    made.train()
    torch.testing.assert_close(weights(made) - before, expected, rtol=0, atol=1e-12)


def test_aggregates_differ_over_a_run(tmp_path: Path) -> None:
    found = []
    for aggregate in ("token_mean", *BY_ROW):
        made = trainer(PPO(aggregate=aggregate), tmp_path / aggregate, rate=0.01, epochs=2, minibatches=2)  # type: ignore[arg-type]
        made.train()
        found.append(weights(made))
    for number, one in enumerate(found):
        assert all(not torch.allclose(one, other, rtol=0, atol=1e-9) for other in found[:number])


@dataclass(frozen=True)
class SequencePPO(PPO):
    """GSPO's ratio and clip against a critic's advantage."""

    name = "sequence_ppo"

    def objective(self, setting: Setting) -> Any:
        gradient = PolicyGradient(mask=SequenceClip(0.05, 0.05), reference=SequenceMean(), advantage=GAE(0.9, 0.8, normalize=False))
        return gradient + PPO(gamma=0.9, lam=0.8, normalize_advantage=False).objective(setting).terms[1] * 0.5


def test_a_sequence_ratio_is_that_of_an_episode(tmp_path: Path) -> None:
    """The second step on a batch: the weight s = exp(mean_t log r), and its clip, are one number for each episode."""
    made = trainer(SequencePPO(), tmp_path, epochs=2)
    batch = windows(made)
    first = made.policy.twin()
    gae = GAE(0.9, 0.8, normalize=False)
    advantage = gae(batch)
    assert batch.value is not None
    states = []
    for _ in range(2):
        now = first.evaluate(batch, value=True)
        assert now.value is not None
        loss = torch.tensor(0.0, dtype=torch.float64)
        for row, s in episodes(batch):
            a, lp = advantage[row, s], now.log_prob[row, s]
            ratio = (lp.detach() - batch.old_log_prob[row, s]).mean().exp()  # type: ignore[index]
            states.append(float(ratio))
            blocked = ((a > 0) & (ratio > 1.05)) | ((a < 0) & (ratio < 0.95))
            error = 0.5 * 0.5 * 0.5 * (now.value[row, s] - (a + batch.value[row, s])) ** 2
            loss = loss + (torch.where(blocked, 0, -a * ratio * lp) + error).sum()
        parameters = list(first.module.parameters())
        for parameter, slope in zip(parameters, torch.autograd.grad(loss / batch.mask.sum(), parameters), strict=True):
            with torch.no_grad():
                parameter -= slope
    assert any(abs(ratio - 1) > 0.05 for ratio in states)
    made.train()
    torch.testing.assert_close(weights(made), torch.cat([p.detach().flatten() for p in first.module.parameters()]), rtol=0, atol=1e-9)


def test_an_outcome_is_what_an_episode_earned(tmp_path: Path) -> None:
    made = trainer(Reinforce(signed=False), tmp_path)
    batch = windows(made)
    now = made.policy.evaluate(batch)
    assert batch.step_reward is not None
    losses = [-batch.step_reward[row, s].sum() * now.log_prob[row, s].sum() for row, s in episodes(batch)]
    actor = list(made.policy.module.actor.parameters())  # type: ignore[operator, union-attr]
    expected = torch.autograd.grad(torch.stack(losses).mean(), actor)
    before = [p.detach().clone() for p in actor]
    made.train()
    for parameter, old, slope in zip(actor, before, expected, strict=True):
        torch.testing.assert_close(old - parameter.detach(), slope, rtol=0, atol=1e-12)


def minibatches(made: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[Trajectories]:
    seen: list[Trajectories] = []
    optimise = Learning.optimise

    def kept(self: Learning, batch: Trajectories, *rest: Any) -> dict[str, Any]:
        seen.append(batch)
        return optimise(self, batch, *rest)

    monkeypatch.setattr(Learning, "optimise", kept)
    made.train()
    return seen


def test_steps_are_cut_where_no_part_looks_at_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(PPO(), tmp_path, minibatches=4)
    seen = minibatches(made, monkeypatch)
    assert [tuple(batch.mask.shape) for batch in seen] == [(3 * WINDOW // 4, 1)] * 4


def test_minibatches_hold_whole_episodes_where_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(PPO(aggregate="sequence_mean_token_mean"), tmp_path, minibatches=2)
    expected = sorted(s.stop - s.start for _, s in episodes(windows(made)))
    seen = minibatches(made, monkeypatch)
    assert abs(len(seen[0]) - len(seen[1])) <= 1
    lengths = sorted(int(length) for batch in seen for length in batch.mask.sum(1))
    assert lengths == expected


def test_every_part_says_how_far_it_looks() -> None:
    reaches = {name: kind().terms(Setting(4)).reach for name, kind in registered().items() if not kind.replays}
    assert [name for name, reach in reaches.items() if reach == "step"] == [
        "a2c",
        "dft",
        "gorl",
        "hnpg",
        "mdpo",
        "pmoe_ppo",
        "polychromic_ppo",
        "ppo",
        "reinforce_plus_plus",
        "sft",
        "tppo",
        "trpo",
    ]
    assert PPO(aggregate="constant_length").terms(Setting(4)).reach == "row"

    @dataclass(frozen=True)
    class Mine(RatioClip.__base__):  # type: ignore[misc, name-defined]
        """A mask that says nothing of itself."""

    objective = PolicyGradient(mask=Mine(), reference=OldPolicy(), advantage=GAE(), aggregate=TokenMean())
    assert objective.reach == "row"
    assert dataclasses.replace(objective, mask=RatioClip()).reach == "step"
    assert dataclasses.replace(objective, mask=RatioClip() & SequenceClip()).reach == "row"


def test_algorithms_that_need_prompts_are_refused(tmp_path: Path) -> None:
    accepted = {"a2c", "harpg", "mdpo", "n_harpg", "n_pg_igt", "ppo", "reinforce", "reinforce_plus_plus", "tppo", "trpo"}
    particular = {"gorl", "hnpg", "pmoe_ppo", "polychromic_ppo"}  # about actions, environments or data; tested with their oracles
    for name, kind in registered().items():
        if kind.replays or name in particular:
            continue
        if name in accepted:
            trainer(kind(), tmp_path)
        else:
            with pytest.raises(InputError, match=rf"algorithm '{name}' .*; accepted for environments: a2c, "):
                trainer(kind(), tmp_path)


@dataclass(frozen=True)
class Mixed(PPO):
    """Half a comparison within a group, hidden in a sum."""

    name = "mixed"

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(advantage=0.5 * GAE() + 0.5 * GroupCentered())


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Mixed(), "'mixed' compares several rollouts of one prompt, but each episode of an environment starts by itself: a group of one"),
        (PPO(kl_in_reward=0.1), "'ppo' measures a KL against an anchor.* accepted for environments: its default settings, or a2c, "),
        (registered()["tppo"](window=8), "'tppo' has a window of 8 tokens, but rows of environments are windows already"),
    ],
)
def test_why_an_algorithm_is_refused(algorithm: Algorithm, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        trainer(algorithm, tmp_path)


class Grouped(Experience):
    """Rows in groups for a controller: whoever can start several episodes from one state may compare them."""

    max_new_tokens = 4

    def collect(self, policy: Any, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        source = torch.Generator().manual_seed(0)
        batch = Trajectories(
            action=torch.randint(2, (6, 4), generator=source),
            mask=torch.ones(6, 4),
            observation=torch.randn(6, 4, 4, generator=source),
            group=torch.tensor([0, 0, 0, 1, 1, 1]),
            reward=torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]),
        )
        return batch.replace(old_log_prob=policy.evaluate(batch).log_prob.detach()), {}


def test_more_minibatches_than_there_are_rows(tmp_path: Path) -> None:
    from unipg.training.recipe import load_recipe
    from unipg.training.run import build

    path = tmp_path / "recipe.yaml"
    path.write_text("algorithm: ppo\nenvironment: {id: CartPole-v1, count: 2, steps: 4}\ntraining: {minibatches: 8}\n", encoding="utf-8")

    def built(*changes: str) -> None:
        recipe = load_recipe(path, list(changes))
        build(recipe, recipe.build_algorithm(), torch.device("cpu"))

    built()
    with pytest.warns(UserWarning, match=r"no more than 2 episodes .* rows of 'ppo' here: optimiser steps without any are left out"):
        built("algorithm.aggregate=constant_length")


def test_groups_of_one_are_refused_whoever_gives_them(tmp_path: Path) -> None:
    class Single(Grouped):
        def collect(self, policy: Any, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
            batch, metrics = super().collect(policy, demand)
            return dataclasses.replace(batch, group=None), metrics

    environments = EnvironmentRecipe("CartPole-v1").build(0)
    policy = ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)
    for name in ("grpo", "gspo", "rloo"):
        made = Trainer(registered()[name](), policy, Single(), folder=tmp_path / name, training=TrainingRecipe(iterations=1))
        with pytest.raises(InputError, match=f"'{name}' compares the rows of a group, but each row of this batch is one by itself"):
            made.train()


def test_an_experience_with_groups_of_its_own_may_compare_them(tmp_path: Path) -> None:
    environments = EnvironmentRecipe("CartPole-v1").build(0)
    policy = ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)
    optimizer = OptimizerRecipe(kind="sgd", learning_rate=1.0, clip_norm=None)
    policy.module.double()
    batch, _ = Grouped().collect(policy, Demand(iteration=0))
    assert batch.reward is not None
    rewards = batch.reward.reshape(2, 3)
    advantage = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)).reshape(6)
    loss = -(advantage * policy.evaluate(batch).log_prob.mean(1)).mean()
    parameters = list(policy.module.actor.parameters())
    expected = [p.detach() - g for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True)]
    Trainer(registered()["gspo"](), policy, Grouped(), folder=tmp_path, training=TrainingRecipe(iterations=1), optimizer=optimizer).train()
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=0, atol=1e-6)
