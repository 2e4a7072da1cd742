"""Closed-form oracles of hybrid natural policy gradient (arXiv 2311.08384): switched off, on tables, its critics, its steps, bad input."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from unipg import InputError, Planning, Trajectories
from unipg.algorithms import Setting
from unipg.algorithms.base import REDRAWN
from unipg.algorithms.control.trpo import TRPO
from unipg.algorithms.offline.hnpg import HNPG
from unipg.critics import Drawn, Expected, Value
from unipg.environments import lock
from unipg.estimator.directions import Natural, Surface, conjugate_gradients
from unipg.estimator.parts import Progress
from unipg.lab.hybrid import Rows, hac, hybrid_fit, mirror_step
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.now import NOISE
from unipg.replay import Transitions
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import generator
from unipg.training.diagnostics import UpdateDiagnostics
from unipg.training.distribution import Workers
from unipg.training.feeds.dataset import DatasetRecipe
from unipg.training.learner import Learning
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.run import wanted_of
from unipg.training.surface import BatchSurface
from unipg.training.trainer import Trainer
from unipg.training.weights import Weights
from unipg.trajectories import Source

LOCK = "unipg.environments:unipg/Lock-v0"
COLLECT = "unipg.environments.lock:collect"


def policy_of(algorithm: HNPG, *, size: int = 3, seed: int = 2) -> ActorCritic:
    made = ActorCriticRecipe(hidden=[6]).build(
        spaces.Box(-9.0, 9.0, (size + 1,)), spaces.Box(-np.inf, np.inf, (2,)), seed, wanted=wanted_of(algorithm)
    )
    made.module.double()
    with torch.no_grad():  # heads are almost 0
        for name, parameter in made.module.named_parameters():
            parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator(1, name))
    return made


def episodes(algorithm: HNPG, policy: ActorCritic, rows: int = 12, size: int = 3, mixed: bool = True) -> Trajectories:
    """Random episodes of H steps with actions that the policy drew; with `mixed` a third of them of a dataset, a third redrawn."""
    horizon, source = algorithm.horizon, generator(0, "episodes")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(rows, horizon, *shape, generator=source, dtype=torch.float64)

    step = torch.arange(horizon, dtype=torch.float64).expand(rows, horizon).unsqueeze(-1)
    observation, following = (torch.cat([normal(size), step + late], -1) for late in (0, 1))
    with torch.no_grad():
        action = policy.fresh(observation.flatten(0, 1), "actor", normal(2).flatten(0, 1))[0].reshape(rows, horizon, 2)
    last = torch.arange(horizon).expand(rows, horizon) == horizon - 1
    of_data = torch.arange(rows) % 3 > 0 if mixed else torch.zeros(rows, dtype=torch.bool)
    batch = Trajectories(
        action=action,
        mask=torch.ones(rows, horizon, dtype=torch.bool),
        observation=observation,
        next_observation=following,
        step_reward=normal(),
        terminated=last,
        truncated=torch.zeros_like(last),
        source=torch.where(of_data, int(Source.REPLAY), int(Source.ROLLOUT)),
        planned={REDRAWN: (torch.arange(rows) % 3 == 2).unsqueeze(1).expand(rows, horizon) & mixed},
    )
    names = sorted({at for learner in algorithm.learned(Setting(acts=True)) for at in learner.terms.noise})
    batch = batch.with_planned(**{NOISE.format(at): normal(2) for at in names})
    with torch.no_grad():
        return batch.replace(old_log_prob=policy.evaluate(batch).log_prob)


def learning(algorithm, learner, policy: ActorCritic, folder) -> Learning:
    return Learning(
        learner, algorithm, policy, Weights(policy), training=TrainingRecipe(),
        recipe=OptimizerRecipe(1e-3, eps=1e-8, kind="adamw", clip_norm=1.0), workers=Workers(), seed=0, folder=folder, steps=10, memory={},
        diagnostics=UpdateDiagnostics(),
    )  # fmt: skip


def ready_for(made: Learning, batch: Trajectories) -> Trajectories:
    """A prepared batch as the feed hands it to a learner, and as that plans it."""
    objective, planning = made.objective, Planning()
    batch = objective.prepare(batch, planning)
    batch = objective.hold(batch, planning, made.said(batch)) if objective.holds else batch
    return objective.plan(batch.replace(mask=objective.taken(batch)).as_steps(), planning)


# ---------------------------------------------------------------------------------------------------- switched off


@pytest.mark.parametrize("h", [0, 1, 2])
def test_without_data_it_is_a_step_of_trpo(tmp_path, h: int) -> None:
    """The same gradient, the same solution, the same step, to the last bit: of the rows of step h, by the same values of states."""
    hybrid = HNPG(horizon=3, hybrid=False, bound_kl=True, cg_iterations=15)
    policy = policy_of(hybrid)
    batch = hybrid.prepare(episodes(hybrid, policy, mixed=False), Setting(acts=True), Planning())
    own = next(learner for learner in hybrid.learned(Setting(acts=True)) if learner.name == f"policy_{h}")
    ours = learning(hybrid, own, policy, tmp_path)
    value = Expected(Value("q"), Drawn(count=10))
    with torch.no_grad():
        batch = batch.replace(value=value(batch, policy.now(batch)))
    trpo = TRPO(gamma=1.0, lam=0.97, normalize_advantage=False, shrink=0.5)
    theirs = next(learner for learner in trpo.learned(Setting(acts=True)) if learner.name == "policy")
    term = dataclasses.replace(theirs.terms.terms[0], tokens=f"improve/{h}")
    other = learning(trpo, dataclasses.replace(theirs, objective=term, trains=own.trains), policy, tmp_path)
    found = []
    for made in (ours, other):
        surface = BatchSurface(made, ready_for(made, batch), Planning())
        gradient = surface.gradient()
        x = conjugate_gradients(lambda v, s=surface: s.fisher(v) + 0.1 * v, -gradient, 15)
        found.append((gradient, x, made.direction([surface], {}, made.planning().progress)))
    for one, two in zip(*found, strict=True):
        assert one.any()
        assert torch.equal(one, two)


def test_the_networks_of_other_steps_stay_as_they_are(tmp_path) -> None:
    """A learner of step h moves what is of step h alone, and what other steps hold changes nothing of it."""
    algorithm = HNPG(horizon=3)
    policy = policy_of(algorithm)
    batch = algorithm.prepare(episodes(algorithm, policy), Setting(acts=True), Planning())
    made = {learner.name: learning(algorithm, learner, policy, tmp_path) for learner in algorithm.learned(Setting(acts=True))}
    one = ready_for(made["policy_1"], batch)
    assert len(one) == 8  # of twelve rows a third is fresh, a third drawn anew; the data's own actions are the critics'
    assert {len(ready_for(made[f"critic_{h}"], batch)) for h in range(3)} == {8}
    before = {name: torch.cat([p.detach().reshape(-1) for p in parameters]) for name, parameters in policy.networks.items()}
    made["policy_1"].optimise(one, (0, 0))
    after = {name: torch.cat([p.detach().reshape(-1) for p in parameters]) for name, parameters in policy.networks.items()}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"actor_1"}


# ---------------------------------------------------------------------------------------------------- tables


def test_a_mirror_step_on_a_bandit() -> None:
    """Three arms, uniform, f = (1, 0, −1), eta = 1: softmax(f)."""
    log_prob = torch.full((3,), -math.log(3), dtype=torch.float64)
    stepped = mirror_step(log_prob, torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), 1.0).exp()
    torch.testing.assert_close(stepped, torch.tensor([0.66524, 0.24473, 0.09003], dtype=torch.float64), rtol=0, atol=5e-6)


def test_the_regression_on_scores_is_the_natural_gradient() -> None:
    """F w = E[phi f̄]; with w, a softmax policy's weights grow by eta · (f − mean) but for a constant: the mirror step."""
    theta = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64)
    f = torch.tensor([0.7, -1.3, 0.2], dtype=torch.float64)
    pi = theta.softmax(0)
    phi = torch.eye(3, dtype=torch.float64) - pi  # row a: ∇log pi(a)
    centred = f - pi @ f
    w = torch.linalg.lstsq(pi.sqrt()[:, None] * phi, (pi.sqrt() * centred)[:, None], driver="gelsd").solution[:, 0]
    fisher = phi.T @ (pi[:, None] * phi)
    torch.testing.assert_close(fisher @ w, phi.T @ (pi * centred), rtol=0, atol=1e-12)
    torch.testing.assert_close((theta + w).softmax(0), mirror_step(theta.log_softmax(0), f, 1.0).exp(), rtol=0, atol=1e-12)


def test_a_cell_with_offline_and_online_rows() -> None:
    """One of two offline rows aims at 0, one of four online rows at 1: (¼ · 1) / (½ + ¼) = 1/3."""
    offline = (torch.tensor([0, 1]), torch.tensor([0.0, 5.0]))
    online = (torch.tensor([0, 2, 2, 2]), torch.tensor([1.0, 7.0, 8.0, 9.0]))
    found = hybrid_fit(4, offline, online)
    torch.testing.assert_close(found, torch.tensor([1 / 3, 5, 8, 0], dtype=torch.float64), rtol=0, atol=1e-15)
    with pytest.raises(InputError, match=r"mix is -1; accepted"):
        hybrid_fit(4, offline, online, mix=-1)


@pytest.mark.parametrize("mix", [0.0, 0.5, 2.0])
def test_the_critics_loss_is_that_of_the_closed_form(tmp_path, mix: float) -> None:
    """The gradient in the last bias, which every output f has in it, is that of mean_off (f − y)² + mix · mean_on (f − G)²."""
    algorithm = HNPG(horizon=2, mix=mix)
    policy = policy_of(algorithm)
    batch = algorithm.prepare(episodes(algorithm, policy), Setting(acts=True), Planning())
    learners = {learner.name: learning(algorithm, learner, policy, tmp_path) for learner in algorithm.learned(Setting(acts=True))}
    for h in (0, 1):
        made = learners[f"critic_{h}"]
        ready = ready_for(made, batch)
        (bias,) = [p for name, p in policy.network(f"q_{h}").named_parameters() if name == "layers.2.bias"]
        loss = made.objective.loss(made.said(ready), ready, Planning())
        (slope,) = torch.autograd.grad(loss, bias)
        now = policy.now(batch)
        with torch.no_grad():
            f = now.action_value("q")[0][:, h]
            after = now.fresh("next_observation").action_value("q")[0][:, h]
        y = batch.step_reward[:, h] + (after if h == 0 else 0)
        known, fresh = torch.arange(12) % 3 == 1, torch.arange(12) % 3 == 0
        to_go = batch.step_reward[:, h:].sum(1)
        expected = (2 * (f - y))[known].mean() + mix * (2 * (f - to_go))[fresh].mean()
        torch.testing.assert_close(slope[0], expected, rtol=1e-12, atol=1e-12)


def test_advantages_of_both_kinds_of_rows() -> None:
    """GAE against the mean of ten values of fresh actions where episodes are fresh, f(s, a) minus that mean where only states are known."""
    algorithm = HNPG(horizon=3, lam=0.5, value_draws=4)
    policy = policy_of(algorithm)
    batch = algorithm.prepare(episodes(algorithm, policy), Setting(acts=True), Planning())
    objective = algorithm.learned(Setting(acts=True))[-1].terms
    now = policy.now(batch)
    held = objective.hold(batch, Planning(), now)
    fresh, known = (held.planned[name] for name in objective.held)
    with torch.no_grad():
        value = sum(now.fresh("observation", draw=k).action_value("q")[0] for k in range(4)) / 4
        q = now.action_value("q")[0]
    torch.testing.assert_close(known, q - value)
    delta = batch.step_reward + torch.cat([value[:, 1:], torch.zeros(12, 1)], 1) - value
    by_hand = torch.stack([delta[:, 0] + 0.5 * delta[:, 1] + 0.25 * delta[:, 2], delta[:, 1] + 0.5 * delta[:, 2], delta[:, 2]], 1)
    torch.testing.assert_close(fresh, by_hand)


def test_hac_opens_a_lock() -> None:
    """On the lock's latent states: with the data of one who lapses the mixture's last policy is optimal but for chance; without, lost."""
    world, source = lock.Lock(4, secret=3), np.random.default_rng(0)
    right = torch.from_numpy(world.right)

    def rows(policy: torch.Tensor, count: int) -> Rows:
        state, found = torch.from_numpy(source.integers(2, size=count)), []
        for h in range(4):
            action = torch.multinomial(policy[h][state], 1, generator=draws)[:, 0]
            good = (state < 2) & (action == right[state.clamp(max=1), h])
            luck = torch.rand(count, generator=draws, dtype=torch.float64) < 0.5
            reward = (good * 1.0).where(good | ~luck, 0.1) if h == 3 else torch.zeros(count, dtype=torch.float64)
            following = torch.from_numpy(source.integers(2, size=count)).where(good, 2)
            found.append((torch.full_like(state, h), state, action, reward, following))
            state = following
        to_go = found[-1][3].repeat(4)
        return Rows(*(torch.cat(each) for each in zip(*found, strict=True)), to_go)

    draws = generator(0, "hac")
    knows = torch.full((4, 3, 10), 0.025, dtype=torch.float64)
    for state in range(3):
        for h in range(4):
            knows[h, state, right[min(state, 1), h]] += 0.75
    offline = rows(knows, 2000)
    nothing = Rows(*(tensor[:0] for tensor in (offline.step, offline.state, offline.action, offline.reward, offline.following)))
    shares = []
    for data in (offline, nothing):
        policy = hac((4, 3, 10), data, lambda pi: rows(pi, 50), iterations=15, eta=5.0)
        played = rows(policy, 2000)
        shares.append(float((played.reward[played.step == 3] == 1).double().mean()))
    assert shares[0] > 0.95
    assert shares[1] < 0.01


# ---------------------------------------------------------------------------------------------------- the trust region


def test_at_the_old_policy_the_surrogates_gradient_is_that_of_the_score(tmp_path) -> None:
    """mean over fresh and redrawn rows of −Â ∇log pi."""
    algorithm = HNPG(horizon=2)
    policy = policy_of(algorithm)
    batch = algorithm.prepare(episodes(algorithm, policy), Setting(acts=True), Planning())
    made = learning(algorithm, algorithm.learned(Setting(acts=True))[-1], policy, tmp_path)
    ready = ready_for(made, batch)
    surface = BatchSurface(made, ready, Planning())
    fresh, known = (ready.planned[name][:, 0] for name in made.objective.held)
    advantage = torch.where(ready.source == int(Source.ROLLOUT), fresh, known)
    log_prob = policy.evaluate(ready).log_prob[:, 0]
    expected = torch.autograd.grad(-(advantage * log_prob).mean(), policy.networks["actor_1"])
    torch.testing.assert_close(surface.gradient(), torch.cat([g.reshape(-1) for g in expected]), rtol=1e-10, atol=1e-12)


def test_an_accepted_full_step_is_about_as_far_as_it_may_go(tmp_path) -> None:
    """Without a bound on the KL: at most 1.5 · max_kl, and not next to nothing."""
    algorithm = HNPG(horizon=2)
    policy = policy_of(algorithm)
    batch = algorithm.prepare(episodes(algorithm, policy, rows=600), Setting(acts=True), Planning())
    for learner in algorithm.learned(Setting(acts=True))[-2:]:
        made = learning(algorithm, learner, policy, tmp_path)
        told = made.optimise(ready_for(made, batch), (0, 0))
        assert told["trust_region/backtracks"] == 0
        assert 0.005 < told["trust_region/kl"] <= 0.015


class Bent(Surface):
    """A quadratic loss in one number, as a surface whose Fisher matrix is 1 and whose KL is ½ d²."""

    def __init__(self, curvature: float) -> None:
        self.theta, self.told, self.curvature = torch.zeros(1, dtype=torch.float64), {}, curvature

    def gradient(self) -> torch.Tensor:
        return torch.tensor([-1.0], dtype=torch.float64)

    def loss(self, theta: torch.Tensor | None = None) -> float:
        d = 0.0 if theta is None else float(theta)
        return -d + 0.5 * self.curvature * d * d

    def divergence(self, theta: torch.Tensor) -> float:
        return 0.5 * float(theta) ** 2

    def fisher(self, vector: torch.Tensor) -> torch.Tensor:
        return vector

    def _nobody_asks(self, *given):
        raise NotImplementedError

    named = hessian = expected_hessian = _nobody_asks


@pytest.mark.parametrize(
    ("curvature", "promised", "tries"), [(0.0, 0.1, 0), (1.0, 0.6, 1), (1.0, 0.4, 0), (1.9, 0.1, 1), (1.9, 0.0, 0), (8.0, 0.1, 3)]
)
def test_a_step_is_taken_where_the_loss_keeps_its_promise(curvature: float, promised: float, tries: int) -> None:
    """max_kl ½: the full step is 1, and after 2^−k of it the share that is kept is 1 − curvature · 2^−k / 2."""
    surface = Bent(curvature)
    step = Natural(0.5, 0.0, 5, 0.5, 10, promised)([surface], {}, Progress())
    assert surface.told["trust_region/backtracks"] == tries
    torch.testing.assert_close(step, torch.tensor([0.5**tries], dtype=torch.float64))


def test_without_any_advantage_there_is_no_step(tmp_path) -> None:
    algorithm = HNPG(horizon=2)
    policy = policy_of(algorithm)
    batch = episodes(algorithm, policy)
    with torch.no_grad():
        for name in ("q_0", "q_1"):
            for parameter in policy.networks[name]:
                parameter.zero_()
    batch = algorithm.prepare(batch.replace(step_reward=torch.zeros_like(batch.step_reward)), Setting(acts=True), Planning())
    made = learning(algorithm, algorithm.learned(Setting(acts=True))[-1], policy, tmp_path)
    before = made.flat()
    told = made.optimise(ready_for(made, batch), (0, 0))
    assert told["step_norm"] == 0
    assert torch.equal(made.flat(), before)


# ---------------------------------------------------------------------------------------------------- in the loop


def trainer(folder, algorithm: HNPG, steps: int = 3, count: int = 8, data: dict | None = None, **dataset) -> Trainer:
    experience = EnvironmentRecipe(LOCK, count, steps, {"steps": 3}, evaluation_episodes=4).build(0)
    policy = ActorCriticRecipe().build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
    recipe = DatasetRecipe(**{"path": COLLECT, "options": {"episodes": 50, "steps": 3}} | dataset) if algorithm.mixes else None
    if data is not None:
        Transitions.of(data).save(folder.with_name("data"))
        recipe = DatasetRecipe(str(folder.with_name("data")))
    return Trainer(algorithm, policy, experience, folder=folder, training=TrainingRecipe(iterations=2), dataset=recipe)


def test_a_batch_has_as_many_rows_of_each_step_of_the_data(tmp_path) -> None:
    run = trainer(tmp_path / "run", HNPG(horizon=3, critic_steps=2))
    run.feed.begin()
    batch = run.feed.batch
    source, redrawn = batch.source.unsqueeze(1).expand_as(batch.mask), batch.planned[REDRAWN]
    step = batch.observation[..., -1]
    for h in range(3):
        at = step == h
        assert (at & (source == int(Source.ROLLOUT))).sum() == 8
        assert (at & (source == int(Source.REPLAY)) & ~redrawn).sum() == 8
        assert (at & redrawn).sum() == 8
    known, drawn = (batch.select(batch.source == int(Source.REPLAY)).select(rows) for rows in (range(8), range(8, 16)))
    torch.testing.assert_close(known.observation, drawn.observation)
    recorded = lock.collect(50, steps=3)
    rows = {tuple(np.round(row, 5)) for row in np.concatenate([recorded["observation"], recorded["action"]], 1)}
    both = torch.cat([known.observation, known.action], -1).flatten(0, 1).numpy()
    assert {tuple(np.round(row, 5)) for row in both} <= rows
    assert (known.action - drawn.action).abs().max() > 0.5
    torch.testing.assert_close(batch.old_log_prob, run.policy.evaluate(batch).log_prob)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: {n: v[d["observation"][:, -1] != 1] for n, v in d.items()},
            r"the dataset has no step 1; accepted: whole",
        ),
        (lambda d: d | {"terminated": d["observation"][:, -1] >= 1}, r"the dataset has an episode that ends at step 1; accepted"),
        (
            lambda d: d | {"terminated": np.zeros(len(d["terminated"]), bool)},
            r"an episode that goes on after step 2; acc",
        ),
        (lambda d: d | {"observation": d["observation"] + 0.5}, r"the dataset has a step 0\.5; accepted"),
        (lambda d: {n: v for n, v in d.items() if n != "reward"}, r"has no rewards, which algorithm 'hnpg' learns from; accepted: rewards"),
    ],
    ids=["a step is missing", "too short", "too long", "no steps", "no rewards"],
)
def test_data_of_other_episodes_is_refused_by_the_step(tmp_path, change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path / "run", HNPG(horizon=3), data=change(lock.collect(50, steps=3)))


@pytest.mark.parametrize(
    ("horizon", "steps", "message"),
    [
        (4, 3, r"what was collected has an episode that ends at step 2; accepted: whole episodes of 4 steps"),
        (3, 4, r"what was collected has 16 steps 0 and 8 steps 1; accepted: whole episodes of 3 steps .*environment\.steps"),
        (3, 2, r"what was collected has no step 2; accepted"),
    ],
)
def test_windows_that_do_not_hold_whole_episodes_are_refused(tmp_path, horizon: int, steps: int, message: str) -> None:
    run = trainer(tmp_path / "run", HNPG(horizon=horizon, hybrid=False), steps=steps)
    with pytest.raises(InputError, match=message):
        run.feed.begin()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": -1.0}, r"algorithm\.mix is -1\.0; accepted: 0 or more"),
        ({"offline_actions": "expert"}, r"offline_actions 'expert' does not exist; accepted: data, policy"),
        ({"horizon": 0}, r"algorithm\.horizon is 0; accepted: 1 or more"),
        ({"max_kl": 0.0}, r"algorithm\.max_kl is 0\.0; accepted"),
    ],
)
def test_settings_that_mean_nothing(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HNPG(**settings)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"batch": 8}, r"draws as many rows of a dataset as there are fresh steps, and imitates nobody; accepted: dataset\.batch: null"),
        (
            {"options": {"episode": 3}},
            r"dataset\.options do not fit '.*lock:collect': got an unexpected keyword argument",
        ),
        ({"path": "unipg.environments.lock:gather"}, r"'unipg\.environments\.lock' has no 'gather'"),
        (
            {"options": {"episodes": 50, "steps": 9}},
            r"the observations of .* have shape \[17\]; accepted for .*Lock-v0': \[9\]",
        ),
    ],
)
def test_datasets_that_do_not_fit(tmp_path, dataset: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path / "run", HNPG(horizon=3), **dataset)


def test_without_data_a_dataset_is_asked_for(tmp_path) -> None:
    experience = EnvironmentRecipe(LOCK, 4, 3, {"steps": 3}).build(0)
    algorithm = HNPG(horizon=3)
    policy = ActorCriticRecipe().build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
    with pytest.raises(InputError, match=r"'hnpg' adds rows of a dataset to what it collects; accepted: `dataset: \{path: FILE\}`"):
        Trainer(algorithm, policy, experience, folder=tmp_path / "run")
