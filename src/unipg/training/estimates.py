"""What a policy would earn, from data of other policies alone: fitted Q evaluation, and importance sampling of whole episodes.

None of it plays anything. Each estimate has an interval over the episodes at hand, which knows nothing of its own bias: fitted Q values are
as good as the network away from the data, and importance weights as good as what is known of the policy that acted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.algorithms.learners import Learner
from unipg.critics import Bootstrapped, Drawn, Exact, Expectation, Lagged, Likeliest, Network, Polyak
from unipg.critics.kinds import Critic, critic_of
from unipg.errors import InputError, spoken
from unipg.hub import saved_model
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe, is_controller
from unipg.policies.now import NOISE
from unipg.replay import Transitions, open_data
from unipg.replay.cards import Episodes
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import derived_seed, generator
from unipg.statistics import Interval
from unipg.training.evaluate import environment_of
from unipg.training.feeds.dataset import DatasetRecipe
from unipg.training.observer import Observer
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.recipe import check_threads
from unipg.training.run import wanted_of
from unipg.training.trainer import Trainer
from unipg.trajectories import Source, Trajectories

FITTED, LAGGED = "fitted", "fitted_lagged"
RESAMPLES = 2000
PIECE = 4096
MEMBERS = 5
ITERATIONS = 10


@dataclass(frozen=True)
class Estimate:
    """The policy's discounted return from the starts of the data's episodes, by one estimator."""

    estimator: str
    interval: Interval
    """Over resampled episodes, and members of a critic."""
    effective: float | None = None
    """Effective number of episodes of importance weights, (Σw)² / Σw²."""
    moved: float | None = None
    """Of fitted Q: by how much it changed in the last tenth of its updates."""

    @property
    def unsettled(self) -> bool:
        """Whether that is more than a fiftieth of the estimate."""
        return self.moved is not None and abs(self.moved) > 0.02 * abs(self.interval.value)


@dataclass(frozen=True)
class FittedQ(Algorithm):
    """Q of a policy that stays as it is: members that each regress on a target of their own, at the policy's action in the next state.

    Source: Le et al. 2019 (arXiv 1903.08738), section 4.
    """

    name = "fitted_q_evaluation"
    title = "Fitted Q evaluation"
    paper = "arXiv 1903.08738"
    replays = True
    offline = True
    acts = True
    controllers: ClassVar[tuple[str, ...]] = (
        *("bounded", "gaussian", "squashed", "deterministic", "mixture", "squashed_mixture", "greedy", "auto"),
    )

    rollouts: int = 1
    discount: float = 0.99
    tau: float = 0.005
    draws: bool = False
    """Whether the policy's actions are drawn, or its most likely ones."""

    @property
    def critic(self) -> Critic:
        return critic_of({"kind": "ensemble", "members": MEMBERS})

    def over(self, counted: bool) -> Expectation:
        if not self.draws:
            return Likeliest()
        return Exact() if counted else Drawn()

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {FITTED: self.critic.action_values(), LAGGED: Lagged(FITTED)}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        target = Bootstrapped(self.critic.target_value(LAGGED), self.discount, self.over(setting.counted))
        regression = self.critic.regression(FITTED, target)
        own = {"learning_rate": 1e-3, "clip_norm": None}
        return (Learner("critic", (FITTED,), regression, then=(Polyak(FITTED, LAGGED, self.tau),), optimizer=own),)


def estimate_return(
    model: str,
    data: str | Transitions,
    *,
    discount: float = 0.99,
    updates: int = 10_000,
    draws: bool = False,
    behaviour: str | None = None,
    recipe: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Estimate]:
    """Estimates of the discounted return of a saved controller from the first observations of the data's episodes.

        data                         mean over episodes of Σ_t gamma^t r_t, what those earned who acted
        fitted Q                     mean over first observations of Q(s_0, pi(s_0)), Q → r + gamma Q_lagged(s', pi(s'))
        importance sampling          mean of w_T Σ_t gamma^t r_t,  w_t = Π_{k≤t} pi(a_k|s_k) / b(a_k|s_k)
        per decision                 mean of Σ_t gamma^t w_t r_t
        weighted, per decision       Σ_t gamma^t Σ_i w_{i,t} r_{i,t} / Σ_i w_{i,t}
        doubly robust                mean of Σ_t gamma^t (w_t (r_t − Q(s_t, a_t)) + w_{t−1} V(s_t))

    `draws`: of the policy that draws its actions; else of its most likely ones. `behaviour`: a controller with probabilities in the place
    of whoever acted, `bc` of the same data for one: the last four need it, and a policy that draws. `recipe`: as for `evaluate`.

    Fitted Q goes on behind the end of an episode that was cut, the others end there. Sources: arXiv 1903.08738; Precup et al. 2000;
    arXiv 1511.03722; 1604.00923. Errors: `InputError` for models, data and settings that do not fit each other.
    """
    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)
    if not 0 <= discount < 1:
        raise InputError(f"{spoken('--discount', 'discount')} is {discount}; accepted: 0 or more, below 1, fitted Q has no end otherwise")
    if updates < ITERATIONS:
        raise InputError(f"{spoken('--updates', 'updates')} is {updates}; accepted: {ITERATIONS} or more")
    if behaviour is not None and not draws:
        asked = spoken("--sample", "draws=True")
        raise InputError(f"importance weights are of a policy that draws its actions; accepted: {asked}, or no behaviour")
    rows = data if isinstance(data, Transitions) else open_data(data)
    fitted = FittedQ(discount=discount, draws=draws)
    policy, environment = _policy(model, recipe, seed, fitted)
    if draws:
        policy.check_draws(f"{spoken('--sample', 'draws')} is given")
    acted = None if behaviour is None else _policy(behaviour, recipe, seed, None)[0]
    if acted is not None and not (policy.draws and acted.draws):
        raise InputError("importance weights need probabilities of both policies; accepted: controllers that draw, no behaviour")
    episodes = _Episodes(rows)
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "data") if isinstance(data, Transitions) else data
        if isinstance(data, Transitions):
            data.save(Path(place))
        before = _fit(policy, fitted, environment, rows, episodes.first, place, Path(folder) / "run", updates, seed, progress)
    said = _said(policy, rows, fitted, seed)
    starts = said["value"][:, episodes.first]
    found = [
        Estimate("data", _interval(episodes.returns(discount)[None], seed)),
        Estimate("fitted Q", _interval(starts, seed), moved=float(starts.mean()) - before),
    ]
    if acted is not None:
        log_ratio = _log_probs(policy, rows) - _log_probs(acted, rows)
        found += importance_estimates(episodes, log_ratio, discount, said["taken"].mean(0), said["value"].mean(0), seed)
    return found


# ---------------------------------------------------------------------------------------------------- the policy's Q


def _policy(model: str, recipe: str | None, seed: int, judge: FittedQ | None) -> tuple[ActorCritic, EnvironmentRecipe]:
    """A saved controller, and where it acts; with the networks that `judge` fits beside it."""
    folder = Path(saved_model(model, "last"))
    if not is_controller(folder):
        raise InputError(f"'{model}' is no controller; accepted: a run of control, or its model folder")
    environment = environment_of(folder, recipe)
    built = environment.build(seed)
    spaces = built.observation_space, built.action_space
    plain = ActorCriticRecipe(model=str(folder))
    wanted = None if judge is None else replace(wanted_of(judge), who="", kinds=(), critic=True)
    made = plain.build(*spaces, seed, normalized=built.normalized, wanted=wanted)
    if made.decoder is not None:
        raise InputError(f"'{model}' acts through a decoder, so its actions are not those of the data; accepted: another controller")
    return made, environment


def _fit(
    policy: ActorCritic,
    fitted: FittedQ,
    environment: EnvironmentRecipe,
    rows: Transitions,
    starts: np.ndarray,
    place: str,
    folder: Path,
    updates: int,
    seed: int,
    progress: Callable[[str, float], None] | None,
) -> float:
    """Trains the networks that judge the policy; the policy itself stays as it is. What they say of the starts a tenth before the end."""

    class Told(Observer):
        def phase(self, name: str, done: float) -> None:
            if progress is not None and name == "update":
                progress("fitted Q", (self.done + done) / ITERATIONS)

        def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
            self.done = done
            if done == ITERATIONS - 1:
                self.before = float(_said(policy, rows, fitted, seed)["value"][:, starts].mean())

        done, before = 0, 0.0

    told = Told()
    Trainer(
        fitted,
        policy,
        environment.build(seed),
        folder=folder,
        training=TrainingRecipe(iterations=ITERATIONS, save_every=ITERATIONS, evaluate_every=0),
        optimizer=OptimizerRecipe(),
        seed=derived_seed(seed, "fitted"),
        dataset=DatasetRecipe(place, updates=updates // ITERATIONS),
        observer=told,
    ).train()
    return told.before


@torch.no_grad()
def _said(policy: ActorCritic, rows: Transitions, fitted: FittedQ, seed: int) -> dict[str, np.ndarray]:
    """[K,N] what each member says of the actions that were taken (`taken`), and of the policy's own (`value`)."""
    found: dict[str, list[Tensor]] = {"taken": [], "value": []}
    over, source = fitted.over(policy.counts_actions), generator(seed, "estimates")
    for batch in _pieces(policy, rows):
        noise = torch.randn(len(batch), 1, policy.actions.noises, generator=source).to(policy.device)
        now = policy.now(batch.with_planned(**{NOISE.format("observation"): noise}))
        found["taken"].append(now.action_value(FITTED)[..., 0])
        found["value"].append(over(lambda point: point.action_value(FITTED), now, "observation")[..., 0])
    return {name: torch.cat(pieces, 1).double().cpu().numpy() for name, pieces in found.items()}


@torch.no_grad()
def _log_probs(policy: ActorCritic, rows: Transitions) -> np.ndarray:
    """[N] of the actions that were taken, in the policy's units."""
    found = torch.cat([policy.now(batch).log_prob[:, 0] for batch in _pieces(policy, rows)]).double().cpu().numpy()
    if not np.isfinite(found).all():
        raise InputError(f"an action of the data has log-probability {found[~np.isfinite(found)][0]} under a policy; accepted: finite ones")
    return found


def _pieces(policy: ActorCritic, rows: Transitions) -> Any:
    for first in range(0, len(rows), PIECE):
        drawn = rows.draw(torch.arange(first, min(first + PIECE, len(rows))), "observation", "action")
        action = torch.from_numpy(policy.actions.from_environment(drawn["action"].numpy())).unsqueeze(1)
        size = len(action)
        yield Trajectories(
            action=action,
            observation=drawn["observation"].unsqueeze(1),
            mask=torch.ones(size, 1, dtype=torch.bool),
            source=torch.full((size,), int(Source.REPLAY)),
        ).to(policy.device)


# ---------------------------------------------------------------------------------------------------- episodes


class _Episodes:
    """Rows as episodes [E,T], shorter ones filled up with nothing."""

    def __init__(self, rows: Transitions) -> None:
        found = Episodes.of(rows)
        self.first = found.start
        at = np.arange(found.length.max())
        self.live = at < found.length[:, None]
        self._where = np.where(self.live, self.first[:, None] + at, self.first[:, None])
        self.reward = self.padded(np.asarray(rows.column("reward"), np.float64))

    def padded(self, values: np.ndarray) -> np.ndarray:
        """[E,T] of [N]; 0 behind an episode's end."""
        return np.where(self.live, values[self._where], 0.0)

    def returns(self, discount: float) -> np.ndarray:
        """[E]"""
        found: np.ndarray = (self.reward * discount ** np.arange(self.live.shape[1])).sum(1)
        return found


def importance_estimates(
    episodes: _Episodes, log_ratio: np.ndarray, discount: float, taken: np.ndarray, value: np.ndarray, seed: int
) -> list[Estimate]:
    """Of log pi(a|s) − log b(a|s) [N], and what is said of the action that was taken and of the policy's own [N]."""
    power = discount ** np.arange(episodes.live.shape[1])
    log_weight = np.cumsum(episodes.padded(log_ratio), 1)
    with np.errstate(over="ignore"):
        weight = np.exp(np.minimum(log_weight, 700.0))
    before = np.concatenate([np.ones((len(weight), 1)), weight[:, :-1]], 1)
    reward, q, v = episodes.reward, episodes.padded(taken), episodes.padded(value)
    whole = weight[:, -1] * (reward * power).sum(1)
    decision = (power * weight * reward).sum(1)
    robust = (power * np.where(episodes.live, weight * (reward - q) + before * v, 0)).sum(1)
    draws = np.random.default_rng(seed).integers(len(weight), size=(RESAMPLES, len(weight)))

    def weighted(chosen: np.ndarray) -> float:
        w = log_weight[chosen]
        w = np.exp(w - w.max(0))
        return float((power * (w * reward[chosen]).sum(0) / w.sum(0)).sum())

    everybody = np.arange(len(weight))
    spread = np.array([weighted(chosen) for chosen in draws[: RESAMPLES // 4]])
    low, high = np.quantile(spread, [0.025, 0.975])
    last = np.exp(log_weight[:, -1] - log_weight[:, -1].max())
    effective = float(last.sum() ** 2 / (last**2).sum())
    return [
        Estimate("importance sampling", _interval(whole[None], seed), effective),
        Estimate("per decision", _interval(decision[None], seed), effective),
        Estimate("weighted, per decision", Interval(weighted(everybody), float(low), float(high), len(weight)), effective),
        Estimate("doubly robust", _interval(robust[None], seed), effective),
    ]


def _interval(values: np.ndarray, seed: int) -> Interval:
    """Of the mean of [K,E] over episodes and members, both resampled."""
    draw = np.random.default_rng(seed)
    members, count = values.shape
    episodes = draw.integers(count, size=(RESAMPLES, count))
    chosen = draw.integers(members, size=(RESAMPLES, members))
    means = np.array([values[k][:, e].mean() for k, e in zip(chosen, episodes, strict=True)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), count)
