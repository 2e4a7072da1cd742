"""Transitions through the whole loop: what is stored, what is drawn, how many updates there are, and which network moves at which."""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from unipg import InputError
from unipg.algorithms import DDPG, DQN, SAC, TD3
from unipg.algorithms.base import Algorithm
from unipg.critics.regression import DISCOUNT
from unipg.estimator import Objective
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.feeds.replay import WEIGHT, PrioritiesRecipe, Replay, ReplayRecipe
from unipg.training.observer import Stopped
from unipg.training.run import wanted_of
from unipg.trajectories import Trajectories

LOW, HIGH = np.array([100.0, -1.0], np.float32), np.array([200.0, 3.0], np.float32)
NUMBERS = itertools.count()


class Labelled(gymnasium.Env):
    """Shows (environment, episode, step). The reward is the first number of the action as it arrives; the episodes of an environment have
    2, 3, 4, 2, 3, … steps, the even ones terminate and the odd ones are truncated."""

    observation_space = spaces.Box(-1e6, 1e6, (3,), np.float32)
    action_space: spaces.Space = spaces.Box(LOW, HIGH)

    def __init__(self) -> None:
        self.number, self.episode = next(NUMBERS), -1
        self.resets, self.seen = 0, []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.resets += 1
        self.episode, self.time = self.episode + 1, 0
        return self.shown(), {}

    def shown(self) -> np.ndarray:
        return np.array([self.number, self.episode, self.time], np.float32)

    def reward(self, action: Any) -> float:
        assert self.action_space.contains(action)
        self.seen.append(np.array(action))
        return float(action[0])

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        ended = self.time == 2 + self.episode % 3
        return self.shown(), self.reward(action), ended and self.episode % 2 == 0, ended and self.episode % 2 == 1, {}


class Counted(Labelled):
    """The same with three actions."""

    action_space = spaces.Discrete(3)

    def reward(self, action: Any) -> float:
        return float(action)


def next_step(kind: type[gymnasium.Env]) -> Any:
    return lambda num_envs, **_: SyncVectorEnv([kind] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


gymnasium.register("Labelled-v0", entry_point=Labelled, vector_entry_point=next_step(Labelled))
gymnasium.register("Counted-v0", entry_point=Counted, vector_entry_point=next_step(Counted))


def trainer(
    folder: Path,
    algorithm: Algorithm,
    *,
    count: int = 1,
    steps: int = 16,
    iterations: int = 3,
    vectorized: bool | None = False,
    environment: str = "",
    optimizer: OptimizerRecipe | None = None,
    **replay: Any,
) -> Trainer:
    name = environment or ("Counted-v0" if isinstance(algorithm, DQN) else "Labelled-v0")
    experience = EnvironmentRecipe(name, count, steps, vectorized=vectorized, evaluation_episodes=1).build(0)
    policy = ActorCriticRecipe([8]).build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
    if not environment:
        experience.evaluate = lambda *_: []  # type: ignore[method-assign]
    recipe = ReplayRecipe(**{"batch": 8, "warmup": 8, "updates_per_step": 1.0, "capacity": 1000} | replay)
    training = TrainingRecipe(iterations=iterations)
    return Trainer(algorithm, policy, experience, folder=folder, training=training, replay=recipe, optimizer=optimizer)


def feed_of(made: Trainer) -> Replay:
    assert isinstance(made.feed, Replay)
    return made.feed


def gathered(made: Trainer) -> dict[str, np.ndarray]:
    """Everything that the ring holds after an iteration without updates."""
    feed = feed_of(made)
    feed.begin()
    for number in range(feed.rounds):
        feed.gather(number)
    return {name: rows.numpy() for name, rows in feed.ring.draw(torch.arange(len(feed.ring))).items()}


# ---------------------------------------------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("vectorized", [False, True], ids=["same step", "next step"])
def test_every_transition_is_of_one_episode_and_leads_to_its_next_step(vectorized, count, tmp_path) -> None:
    made = trainer(tmp_path, SAC(), count=count, steps=50, vectorized=vectorized)
    rows = gathered(made)
    before, after = rows["observation"], rows["next_observation"]
    assert (before[:, :2] == after[:, :2]).all()  # the environment, and the episode
    assert (after[:, 2] == before[:, 2] + 1).all()
    length = 2 + before[:, 1] % 3
    ended, even = after[:, 2] == length, before[:, 1] % 2 == 0
    assert (rows["terminated"] == (ended & even)).all()
    assert (rows["truncated"] == (ended & ~even)).all()
    assert ended.any()
    numbers = {}
    for label, number in zip(map(tuple, before[:, :2].tolist()), rows["episode"].tolist(), strict=True):
        assert numbers.setdefault(label, number) == number
    assert len(set(numbers.values())) == len(numbers)  # no two episodes have one number
    steps = feed_of(made).steps_taken
    assert len(before) == steps
    assert steps == 50 * count if not vectorized else steps < 50 * count  # steps that only reset are none
    for label in numbers:  # every step of an episode that ended is there, the last one included
        mine = before[(before[:, :2] == label).all(1)][:, 2].tolist()
        assert mine == list(range(len(mine)))
        if label[1] + 1 in [other[1] for other in numbers if other[0] == label[0]]:
            assert len(mine) == 2 + label[1] % 3


def test_both_ways_of_resetting_store_the_same_transitions(tmp_path) -> None:
    kept = []
    for vectorized in (False, True):
        rows = gathered(trainer(tmp_path / str(vectorized), DQN(), steps=40 if vectorized else 30, vectorized=vectorized))
        kept.append([rows[name][:30] for name in ("terminated", "truncated", "episode")] + [rows["observation"][:30, 1:]])
    least = min(len(kept[0][0]), len(kept[1][0]))
    assert least > 20
    for one, other in zip(*kept, strict=True):
        np.testing.assert_array_equal(one[:least], other[:least])


@pytest.mark.parametrize("algorithm", [SAC(), TD3(exploration=2.0), DDPG(exploration=0.5)], ids=lambda a: a.name)
def test_actions_are_kept_in_the_policys_units_and_given_in_the_environments(algorithm, tmp_path) -> None:
    """In the warm-up and after it; what is stored is what was taken."""
    made = trainer(tmp_path, algorithm, steps=60, warmup=30)
    rows = gathered(made)
    action = rows["action"]
    assert (np.abs(action) <= 1).all()
    np.testing.assert_allclose(rows["reward"], 150 + 50 * action[:, 0], rtol=1e-5)
    seen = np.stack(feed_of(made).experience._environments.envs[0].unwrapped.seen)
    assert ((seen >= LOW) & (seen <= HIGH)).all()
    np.testing.assert_allclose(seen, made.policy.environment_action(action), rtol=1e-6)  # type: ignore[attr-defined]
    np.testing.assert_allclose(made.policy.actions.from_environment(seen), action, atol=1e-5)  # type: ignore[attr-defined]


def test_the_first_actions_are_uniform_and_the_next_ones_are_not(tmp_path) -> None:
    made = trainer(tmp_path, TD3(exploration=0.0), steps=5100, warmup=5000, capacity=6000)
    with torch.no_grad():
        for parameter in made.policy.module.actor.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    action = gathered(made)["action"]
    first, after = action[:5000], action[5000:]
    assert (after == 0).all()
    for dimension in range(2):
        share = np.histogram(first[:, dimension], 5, (-1, 1))[0] / 5000
        assert share == pytest.approx([0.2] * 5, abs=0.03)


# ---------------------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 2.0])
def test_updates_follow_one_formula_whatever_the_environments(ratio, count, tmp_path) -> None:
    made = trainer(tmp_path, DQN(copy_every=5), count=count, steps=20, iterations=2, updates_per_step=ratio, warmup=10)
    moved = []
    before = made.weights.tensors("q_lagged")[0].clone()
    stepped = made.feed.stepped

    def watch(learning: Any) -> None:
        nonlocal before
        stepped(learning)
        now = made.weights.tensors("q_lagged")[0]
        moved.append(not torch.equal(now, before))
        before = now.clone()

    made.feed.stepped = watch  # type: ignore[method-assign]
    made.train()
    updates = math.floor((40 * count - 10) * ratio)
    assert made.step == feed_of(made).done == len(moved) == updates
    assert sum(moved) == updates // 5
    assert [k + 1 for k, it_moved in enumerate(moved) if it_moved] == list(range(5, updates + 1, 5))


def test_which_network_moves_at_which_update(tmp_path) -> None:
    """TD3 with a delay of 3: the critics at every update; policy and lagged copies at the third, sixth …"""
    made = trainer(tmp_path, TD3(delay=3, tau=0.1), steps=12, iterations=1, warmup=2)
    names = ("q", "actor", "q_lagged", "actor_lagged")
    kept = {name: made.weights.tensors(name)[0].clone() for name in names}
    table = []
    step = made._step

    def watch(feed: Any) -> None:
        step(feed)
        moved = {name for name in names if not torch.equal(made.weights.tensors(name)[0], kept[name])}
        table.append(moved)
        if "q_lagged" in moved:
            for name in ("q", "actor"):  # after the policy's step, from where the others stood
                expected = kept[f"{name}_lagged"].lerp(made.weights.tensors(name)[0], 0.1)
                torch.testing.assert_close(made.weights.tensors(f"{name}_lagged")[0], expected)
        kept.update({name: made.weights.tensors(name)[0].clone() for name in names})

    made._step = watch  # type: ignore[method-assign]
    made.train()
    assert table == [{"q"}, {"q"}, set(names)] * 3 + [{"q"}]


def test_the_policys_step_leaves_the_critics_alone(tmp_path) -> None:
    made = trainer(tmp_path, TD3(delay=1), iterations=1, warmup=2)
    seen = []
    critic, policy = made.learners
    optimise = policy.optimise

    def watch(*given: Any) -> Any:
        before, gradient = made.weights.tensors("q")[0].clone(), [p.grad for p in made.policy.networks["q"]]
        told = optimise(*given)
        seen.append(torch.equal(before, made.weights.tensors("q")[0]))
        for one, other in zip(gradient, made.policy.networks["q"], strict=True):
            assert one is other.grad
        return told

    policy.optimise = watch  # type: ignore[method-assign]
    made.train()
    assert seen
    assert all(seen)
    trained = [{id(p) for group in learner.optimizer.param_groups for p in group["params"]} for learner in (critic, policy)]
    assert not trained[0] & trained[1]


def test_a_learner_may_have_settings_of_its_own(tmp_path) -> None:
    """Plain gradient steps: the critic's are as long as its own rate says, the policy's as the recipe's."""
    own = {"critic": {"learning_rate": 0.5, "clip_norm": 1e-3}}
    settings = OptimizerRecipe(0.25, kind="sgd", clip_norm=1e-2, learners=own)
    made = trainer(tmp_path, TD3(delay=1), iterations=1, warmup=2, optimizer=settings, environment="Pendulum-v1")
    longest = {"q": 0.0, "actor": 0.0}
    for learner, name in zip(made.learners, longest, strict=True):
        optimise = learner.optimise

        def watch(*given: Any, optimise: Any = optimise, name: str = name) -> Any:
            before = made.weights.tensors(name)[0].detach().clone()
            told = optimise(*given)
            longest[name] = max(longest[name], float((made.weights.tensors(name)[0].detach() - before).norm()))
            return told

        learner.optimise = watch  # type: ignore[method-assign]
    made.train()
    assert longest == pytest.approx({"q": 0.5 * 1e-3, "actor": 0.25 * 1e-2}, rel=1e-3)


def test_lagged_copies_share_nothing_and_close_in_geometrically(tmp_path) -> None:
    made = trainer(tmp_path, TD3(tau=0.1))
    weights = made.weights.tensors
    with torch.no_grad():
        weights("q")[0].fill_(1)
        weights("q_lagged")[0].fill_(0)
    follow = made.learned[1].then[0]
    for k in range(1, 8):
        follow(weights, k)
        assert weights("q_lagged")[0].unique().tolist() == pytest.approx([1 - 0.9**k])
    assert weights("q")[0].unique().tolist() == [1.0]


# ---------------------------------------------------------------------------------------------------------------- several steps


def brute(rows: dict[str, np.ndarray], start: int, n: int, discount: float) -> tuple[float, float, np.ndarray]:
    """Sum, factor of what follows, and the observation that follows, of one environment's rows."""
    total, at = 0.0, start
    for k in range(n):
        total += discount**k * float(rows["reward"][at])
        last = k + 1 == n or rows["terminated"][at] or rows["truncated"][at] or at + 1 == len(rows["reward"])
        if last:
            return total, 0.0 if rows["terminated"][at] else discount ** (k + 1), rows["next_observation"][at]
        at += 1
    raise AssertionError


@pytest.mark.parametrize("kind", [SAC, TD3, DDPG, DQN])
@pytest.mark.parametrize("vectorized", [False, True], ids=["same step", "next step"])
def test_returns_over_several_steps_are_those_of_brute_force(kind, vectorized, tmp_path) -> None:
    made = trainer(tmp_path, kind(n_step=3, discount=0.9), steps=40, vectorized=vectorized, batch=64, capacity=64)
    rows, feed = gathered(made), feed_of(made)
    batch = feed.draw(0, 0)
    assert batch.step_reward is not None
    assert batch.next_observation is not None
    for k, start in enumerate(feed._index.tolist()):  # type: ignore[union-attr]
        total, factor, following = brute(rows, start, 3, 0.9)
        assert batch.step_reward[k, 0].item() == pytest.approx(total, rel=1e-5)
        assert batch.planned[DISCOUNT][k, 0].item() == pytest.approx(factor)
        assert batch.next_observation[k, 0].tolist() == following.tolist()
        assert bool(batch.terminated[k, 0]) == (factor == 0)  # type: ignore[index]
        assert batch.observation[k, 0].tolist() == rows["observation"][start].tolist()  # type: ignore[index]


def test_one_step_is_the_default_and_plans_nothing(tmp_path) -> None:
    made = trainer(tmp_path, TD3())
    gathered(made)
    assert DISCOUNT not in feed_of(made).draw(0, 0).planned


def test_the_critic_regresses_on_the_sum(tmp_path) -> None:
    made = trainer(tmp_path, DQN(n_step=4, discount=0.8), steps=40)
    gathered(made)
    batch = feed_of(made).draw(0, 0)
    target = made.learned[0].terms.terms[0].target  # type: ignore[attr-defined]
    after = made.policy.network("q_lagged")(batch.next_observation[:, 0])[0].amax(-1)  # type: ignore[attr-defined, index]
    expected = batch.step_reward[:, 0] + torch.where(batch.terminated[:, 0], 0, batch.planned[DISCOUNT][:, 0] * after)  # type: ignore[index]
    torch.testing.assert_close(target(made.policy.now(batch), batch, None)[:, 0], expected)


# ---------------------------------------------------------------------------------------------------------------- priorities


def test_rows_are_drawn_by_the_errors_that_the_critic_had(tmp_path) -> None:
    made = trainer(tmp_path, DQN(), steps=40, priorities=PrioritiesRecipe(alpha=1.0, beta=0.5))
    rows, feed = gathered(made), feed_of(made)
    assert len(feed.priorities) == len(rows["reward"])  # type: ignore[arg-type]
    batch = feed.draw(0, 0)
    index = feed._index
    assert index is not None
    now = made.policy.now(batch)
    (learning,) = made.learners
    term = made.learned[0].terms.terms[0]
    expected = (now.action_value("q")[0] - term.target(now, batch, None)).abs()[:, 0].detach()  # type: ignore[attr-defined]
    learning.optimise(batch, (0, 0), now)
    feed.stepped(learning)
    priority = feed.priorities.state_dict()["priority"]  # type: ignore[union-attr]
    latest = dict(zip(index.tolist(), expected.tolist(), strict=True))  # a row drawn twice has one error
    for row in range(len(priority)):
        assert priority[row].item() == pytest.approx(latest[row] + 1e-6 if row in latest else 1.0, rel=1e-5)


def test_the_errors_of_several_critics_are_their_mean(tmp_path) -> None:
    made = trainer(tmp_path, TD3(delay=5), steps=40, priorities=PrioritiesRecipe(alpha=1.0))
    gathered(made)
    feed = feed_of(made)
    batch = feed.draw(0, 0)
    now = made.policy.now(batch)
    term = made.learned[0].terms.terms[0]
    error = (now.action_value("q") - term.target(now, batch, None)).abs().mean(0)[:, 0].detach()  # type: ignore[attr-defined]
    made.learners[0].optimise(batch, (0, 0), now)
    feed.stepped(made.learners[0])
    priority = feed.priorities.state_dict()["priority"]  # type: ignore[union-attr]
    torch.testing.assert_close(priority[feed._index].float(), error + 1e-6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [SAC, TD3, DQN])
def test_every_term_of_replayed_rows_is_weighed(kind, tmp_path) -> None:
    """The gradient is the mean over the batch of weight times the row's own."""
    made = trainer(tmp_path, kind(), steps=40, priorities=PrioritiesRecipe())
    gathered(made)
    batch = feed_of(made).draw(0, 0)
    weight = torch.linspace(0.1, 1, len(batch))
    batch = batch.with_planned(**{WEIGHT: weight})
    for learning in made.learners:
        own = list(made.policy.networks[learning.spec.trains[0]])

        def gradient(rows: Trajectories, objective: Any) -> list[torch.Tensor]:
            now = made.policy.now(rows, objective.differentiates)
            return list(torch.autograd.grad(objective.loss(now, objective.plan(rows)), own))  # noqa: B023

        plain = next(made_ for made_ in made.algorithm.learned(made.setting) if made_.name == learning.name).terms
        each = [gradient(batch.select([k]), plain) for k in range(len(batch))]
        for place, found in enumerate(gradient(batch, learning.objective)):
            expected = sum(weight[k] * each[k][place] for k in range(len(batch))) / len(batch)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_beta_grows_to_one_over_the_run(tmp_path) -> None:
    made = trainer(tmp_path, DQN(), steps=20, iterations=2, warmup=0, priorities=PrioritiesRecipe(beta=0.4))
    seen = []
    draw = made.feed.draw

    def watch(round: int, number: int) -> Trajectories:
        batch = draw(round, number)
        seen.append((feed_of(made).steps_taken, feed_of(made).priorities.beta))  # type: ignore[union-attr]
        return batch

    made.feed.draw = watch  # type: ignore[method-assign]
    made.train()
    assert [beta for _, beta in seen] == pytest.approx([0.4 + 0.6 * steps / 40 for steps, _ in seen])
    assert seen[-1] == (40, 1.0)


def test_without_priorities_the_plan_of_a_batch_is_made_once(tmp_path, monkeypatch) -> None:
    made = trainer(tmp_path, TD3(), iterations=1)
    planned = []
    plan = Objective.plan

    def watch(self: Objective, *given: Any) -> Trajectories:
        planned.append(self)
        return plan(self, *given)

    monkeypatch.setattr(Objective, "plan", watch)
    made.train()
    assert made.step > 5
    assert len(planned) == len(made.learners)


# ---------------------------------------------------------------------------------------------------------------- runs


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.policy.module.state_dict().items()}


def told(made: Trainer) -> list[dict[str, Any]]:
    assert made.tracker is not None
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "seconds"))} for row in made.tracker.rows()]


def assert_equal(one: Trainer, other: Trainer) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert told(one) == told(other)


RUNS = [
    (SAC(), {}),
    (TD3(n_step=3), {"priorities": PrioritiesRecipe()}),
    (DQN(copy_every=7, double=True), {"priorities": PrioritiesRecipe(), "updates_per_step": 0.5}),
]


@pytest.mark.parametrize(("algorithm", "replay"), RUNS, ids=["sac", "td3", "dqn"])
@pytest.mark.parametrize("stop", [None, 5, 13, 17])
def test_a_run_that_is_stopped_and_continued_is_the_uninterrupted_one(algorithm, replay, stop, tmp_path) -> None:
    """Bit for bit, metrics included; between iterations, within one, and after the ring has wrapped."""
    environment = "CartPole-v1" if isinstance(algorithm, DQN) else "Pendulum-v1"
    options = {"environment": environment, "capacity": 20, "vectorized": None, **replay}
    whole = trainer(tmp_path / "whole", algorithm, **options)
    whole.train()
    first = trainer(tmp_path / "halves", algorithm, **options)
    if stop is None:
        train_until(first, 2)
    else:
        first.stop_after_steps = stop
        with pytest.raises(Stopped):
            first.train()
    second = trainer(tmp_path / "halves", algorithm, **options)
    second.resume()
    assert second.iteration < 3
    second.train()
    assert_equal(whole, second)


def train_until(made: Trainer, iteration: int) -> None:
    """Ends the process's part of a run after an iteration, with its checkpoint."""
    save = made.save_checkpoint

    class Ended(Exception):
        pass

    def stop() -> None:
        save()
        if made.iteration == iteration:
            raise Ended

    made.save_checkpoint = stop  # type: ignore[method-assign]
    with pytest.raises(Ended):
        made.train()


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_replay import RUNS, trainer
torch.set_num_threads(1)
algorithm, replay = RUNS[1]
made = trainer(Path(sys.argv[2]), algorithm, environment="Pendulum-v1", vectorized=None, capacity=20, **replay)
step = made._step
def killed(feed):
    step(feed)
    if made.step == 35:
        os.kill(os.getpid(), signal.SIGKILL)
made._step = killed
made.train()
"""


def test_a_kill_after_the_ring_has_wrapped_changes_nothing(tmp_path) -> None:
    """Begun in another process, warm-up, priorities and all, which was killed within an iteration; continued here."""
    algorithm, replay = RUNS[1]
    killed = subprocess.run([sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "killed")], check=False)
    assert killed.returncode == -signal.SIGKILL
    options = {"environment": "Pendulum-v1", "vectorized": None, "capacity": 20, **replay}
    again = trainer(tmp_path / "killed", algorithm, **options)
    again.resume()
    assert 0 < again.step < 35
    assert feed_of(again).ring.position > 20
    again.train()
    whole = trainer(tmp_path / "whole", algorithm, **options)
    whole.train()
    assert_equal(whole, again)


def test_evaluation_leaves_training_as_it_is(tmp_path) -> None:
    runs = []
    for every in (0, 1):
        made = trainer(tmp_path / str(every), TD3(), environment="Pendulum-v1", vectorized=None)
        made.training = dataclasses.replace(made.training, evaluate_every=every)
        made.train()
        runs.append(made)
    assert_equal(*runs)


# ---------------------------------------------------------------------------------------------------------------- what is refused


def test_shapes_that_would_broadcast_are_refused(tmp_path) -> None:
    made = trainer(tmp_path, DQN())
    gathered(made)
    batch = feed_of(made).draw(0, 0)
    objective = made.learned[0].terms
    flat = batch._with({"step_reward": batch.step_reward[:, 0]})  # type: ignore[index]
    with pytest.raises(InputError, match=r"'q' gives \[8, 1\] but its targets are \[8, 8\]; they must be equal"):
        objective.loss(made.policy.now(flat), objective.plan(flat))
