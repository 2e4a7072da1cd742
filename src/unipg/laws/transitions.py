"""The laws for algorithms that train networks by name: on rows of a controller, kept ones or rollouts, learner by learner.

Each takes an algorithm and raises `LawBroken` with one sentence. Rows are windows [B,T] with steps that do not count, in float64; every
kind of actions that the algorithm can train is tried.
"""

from __future__ import annotations

import copy
import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unipg.algorithms.base import REDRAWN, Algorithm, KindOfCritic, Setting
from unipg.algorithms.learners import Learner
from unipg.critics.kinds import Squared
from unipg.critics.members import MEMBERS, MEMBERS_AFTER
from unipg.estimator import Objective, Pathwise, Planning, PolicyGradient
from unipg.laws.cases import LawBroken
from unipg.networks.perceptron import Ensemble
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.named import DECODER
from unipg.policies.now import CRITIC, NOISE
from unipg.replay import Pairs, Transitions
from unipg.seeding import generator
from unipg.training.feeds.dataset import DatasetRecipe
from unipg.training.feeds.kept import winners
from unipg.training.feeds.replay import ReplayRecipe
from unipg.training.observer import Observer
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.run import wanted_of
from unipg.trajectories import Evaluation, Trajectories

if TYPE_CHECKING:
    pass

TOLERANCE = 1e-10
"""Largest relative difference of two float64 gradients that must be equal."""
STEP = 1e-6
"""Of finite differences."""
ROUGH = 1e-5
"""Largest relative difference to what finite differences and quadrature give."""
RATE = 0.1
"""Of steps on which more gradients depend."""
CUTS = (torch.tensor([0, 3]), torch.tensor([1, 2, 4, 5]))
"""Rows of the micro-batches that are tried."""
NODES, FAR = 141, 9.0
"""Of the quadrature over an action's noise, and how far it goes, in standard deviations."""
SPOILED = ("action", "observation", "next_observation", "step_reward", "old_log_prob", "behaviour_log_prob", "value", "bootstrap_value")
RUBBISH = (math.nan, math.inf, -math.inf, 1e30)
ARMS = 3
MOST_SEEDS = 5
"""That a search tries."""


@functools.cache
def _pairs() -> Pairs:
    """What stands for a dataset."""
    source = generator(0, "law pairs")
    return Pairs(*(torch.randn(40, 2, generator=source, dtype=torch.float64) for _ in range(2)))


GIVEN = Planning(neighbours=_pairs)


@dataclass(frozen=True)
class Rows:
    """What a law is tried on. `seed` decides weights and numbers."""

    algorithm: Algorithm
    kind: str
    seed: int = 0
    rows: int = 6
    steps: int = 3
    size: int = 2
    """Numbers of a real action."""

    @property
    def counted(self) -> bool:
        return self.kind in ("auto", "greedy")

    @property
    def setting(self) -> Setting:
        return Setting(1, self.counted, ARMS if self.counted else self.size, acts=True)

    def policy(self) -> ActorCritic:
        """With smooth networks, so that derivatives are what finite differences find, and lagged copies that lag."""
        from gymnasium import spaces

        actions = spaces.Discrete(ARMS) if self.counted else spaces.Box(-1.0, 1.0, (self.size,))
        recipe = ActorCriticRecipe(hidden=[5], activation="tanh", kind=self.kind)  # type: ignore[arg-type]
        made = recipe.build(spaces.Box(-9.0, 9.0, (2,)), actions, self.seed, wanted=wanted_of(self.algorithm))
        if made.decoder is not None:  # at 0 it would have no gradient but in its last layer
            made.decoder.draw(generator(self.seed, "decoder"))
        made.module.double()
        source = generator(self.seed, "lag")
        with torch.no_grad():
            for name, network in self.algorithm.networks(self.counted).items():
                for parameter in made.network(name).parameters() if hasattr(network, "of") else ():
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
        return made

    def batch(self) -> Trajectories:
        draw = generator(self.seed, "law transitions")
        shape = (self.rows, self.steps)

        def normal(*more: int) -> Tensor:
            return torch.randn(*shape, *more, generator=draw, dtype=torch.float64)

        mask = torch.rand(shape, generator=draw) < 0.8
        mask[0] = False  # a row in which nothing counts
        mask[1] = True
        algorithm, kept, policy = self.algorithm, self.algorithm.replays, self.policy()
        batch = Trajectories(
            action=torch.randint(ARMS, shape, generator=draw) if self.counted else normal(self.size).tanh(),
            mask=mask,
            observation=normal(2),
            next_observation=normal(2),
            step_reward=normal(),
            terminated=torch.rand(shape, generator=draw) < 0.3,
            truncated=torch.rand(shape, generator=draw) < 0.2,
            source=self._sources(),
            planned={NOISE.format(at): normal(policy.noises(at)) for at in ("observation", "next_observation")},
        )
        more = {at for learner in self.learners() for at in learner.terms.noise} - {"observation", "next_observation", DECODER}
        batch = batch.with_planned(**{NOISE.format(at): normal(policy.noises(at)) for at in sorted(more)})
        if algorithm.by_step is not None:  # episodes of one step each
            batch = batch.replace(observation=_at_step(batch.observation, 0), next_observation=_at_step(batch.next_observation, 1))
            batch = batch.replace(truncated=~batch.require("terminated", "a law"))
        if algorithm.mixes:
            batch = batch.with_planned(**{REDRAWN: batch.mask & (torch.arange(self.rows) == 3).unsqueeze(1)})
        if (decoder := policy.decoder) is not None:
            batch = batch.with_planned(**{NOISE.format(DECODER): decoder.noise((*shape, 3), draw).double()})
        if kept:
            return batch
        with torch.no_grad():
            old = self.policy().now(batch).log_prob + 0.3 * normal()
        members = {name: normal(self.algorithm.heads[0]) for name in (MEMBERS, MEMBERS_AFTER)}
        batch = batch.replace(old_log_prob=old, behaviour_log_prob=old, value=normal(), bootstrap_value=normal()).with_planned(**members)
        if self.algorithm.unit_rewards:
            batch = batch.replace(step_reward=torch.rand(shape, generator=draw, dtype=torch.float64) / self.steps)
        if self.algorithm.vines is not None:  # rows of one state
            batch = batch.replace(group=torch.zeros(self.rows, dtype=torch.long))
        return self.algorithm.prepare(batch, self.setting, replace(GIVEN, seed=self.seed))

    def _sources(self) -> Tensor:
        """[rows] those that it is made for, in turn."""
        of = torch.tensor([int(source) for source in self.algorithm.sources()])
        return of[torch.arange(self.rows) % len(of)]

    def learners(self) -> tuple[Learner, ...]:
        return self.algorithm.learned(self.setting)

    def describe(self, learner: Learner) -> str:
        actions = f"{ARMS} actions" if self.counted else f"{self.size} numbers ({self.kind})"
        return f"learner '{learner.name}', {self.rows} rows x {self.steps} steps, {actions}, seed {self.seed}"


def _at_step(observation: Tensor | None, step: int) -> Tensor:
    """[B,T,O] with its last number a step's."""
    assert observation is not None
    return torch.cat([observation[..., :-1], torch.full_like(observation[..., -1:], step)], -1)


def applies(algorithm: Algorithm) -> bool:
    """Whether it asks a controller for networks by name, beside actor and critic; else rows of answers will do."""
    kind = algorithm.critic.kind if isinstance(algorithm, KindOfCritic) else Squared().kind
    return algorithm.replays or any(map(algorithm.networks, (True, False))) or kind != Squared().kind


def cases_of(algorithm: Algorithm, seed: int = 0) -> list[Rows]:
    return [Rows(algorithm, kind, seed) for kind in kinds_of(algorithm)]


def kinds_of(algorithm: Algorithm) -> tuple[str, ...]:
    """Kinds of actions that it can train."""
    return algorithm.controllers or ("gaussian", "auto")


def planned(made: ActorCritic, objective: Objective, batch: Trajectories, *, as_steps: bool = False) -> Trajectories:
    """The batch of an optimiser step as the loop plans it; `as_steps`: each step as a row of its own."""
    ready = objective.prepare(batch)
    ready = objective.hold(ready, Planning(), made.now(ready)) if objective.holds else ready
    ready = ready.as_steps() if as_steps else ready
    with torch.no_grad():
        return objective.plan(ready, GIVEN, made.now(ready) if objective.spans else None)


def trained(made: ActorCritic, learner: Learner) -> list[torch.nn.Parameter]:
    """The parameters that a learner moves."""
    return [p for name in learner.trains or made.networks for p in made.networks[name]]


def step(
    made: ActorCritic, learner: Learner, batch: Trajectories, cuts: Iterable[Tensor] | None = None, *, as_steps: bool = False
) -> Tensor:
    """[1+P] loss and gradient of a learner's networks, in the given micro-batches; see `planned`."""
    return _gradient(made, learner, planned(made, learner.terms, batch, as_steps=as_steps), cuts)


def _gradient(
    made: ActorCritic, learner: Learner, batch: Trajectories, cuts: Iterable[Tensor] | None = None, now: Evaluation | None = None
) -> Tensor:
    """The same of a planned batch; `now`: the policy on all of it, where it is known."""
    objective, own = learner.terms, trained(made, learner)
    total, found = torch.zeros((), dtype=torch.float64), [torch.zeros_like(p) for p in own]
    for rows in cuts if cuts is not None else [torch.arange(len(batch))]:
        piece = batch.select(rows) if now is None else batch
        loss = objective.loss(made.now(piece, objective.differentiates) if now is None else now, piece, GIVEN)
        if loss.requires_grad:
            found = [a + b for a, b in zip(found, torch.autograd.grad(loss, own), strict=True)]
        total = total + loss.detach()
    return torch.cat([total.reshape(1), *(g.flatten() for g in found)])


def _same(expected: Tensor, found: Tensor, sentence: str, example: str, most: float = TOLERANCE) -> None:
    if not bool(torch.isfinite(found).all()):
        raise LawBroken(f"{sentence}: it is {float(found[~torch.isfinite(found)][0])}; example: {example}")
    difference = float((expected - found).abs().max()) / max(float(expected.abs().max()), 1e-3)
    if not difference <= most:
        raise LawBroken(f"{sentence}: it differs by {difference:.2e} of its largest entry (allowed {most:.0e}); example: {example}")


Law = Callable[[Rows, Learner, ActorCritic, Trajectories], None]


def on_learners(body: Law) -> Callable[..., None]:
    """A law on one learner, as a law on an algorithm: all its learners, on every kind of actions. A gradient of 0 breaks it: nothing would
    have been compared."""

    def law(algorithm: Algorithm, seed: int = 0) -> None:
        name = body.__name__.strip("_").replace("_", " ")
        for case in cases_of(algorithm, seed):
            for learner in case.learners():
                made, batch = case.policy(), case.batch()
                try:
                    if not bool(step(made, learner, batch)[1:].any()):
                        raise LawBroken(f"{name}: the gradient is exactly 0, so nothing was compared; example: {case.describe(learner)}")
                    body(case, learner, made, batch)
                except LawBroken:
                    raise
                except Exception as error:
                    raise LawBroken(f"{name}: {type(error).__name__} ({error}); example: {case.describe(learner)}") from error

    return law


def split(algorithm: Algorithm, seed: int = 0) -> None:
    """1. The gradient does not change with micro-batching, padding, row order, or steps as rows of their own where none looks at others.
    Of rows that are kept, neither do the weights after a step of every learner in turn on the same ones."""
    _split(algorithm, seed)
    if algorithm.replays:
        for case in cases_of(algorithm, seed):
            last = case.learners()[-1]
            _same(_updated(case), _updated(case, CUTS), "split: 2 micro-batches, all learners in turn", case.describe(last))


def _updated(case: Rows, cuts: Sequence[Tensor] | None = None) -> Tensor:
    """[P] the weights after a step of each learner; a batch that is not cut is shared by all of them, as in the loop."""
    made, batch = case.policy(), case.batch()
    every = Objective(tuple(term for learner in case.learners() for term in learner.terms.terms))
    if cuts is not None:
        batch = batch.with_planned(**winners(made, batch, every.ranks, cuts))
    now = made.now(batch, every.differentiates) if cuts is None else None
    for learner in case.learners():
        own = trained(made, learner)
        found = _gradient(made, learner, planned(made, learner.terms, batch), cuts, now)[1:]
        with torch.no_grad():
            for parameter, gradient in zip(own, found.split([p.numel() for p in own]), strict=True):
                parameter.sub_(RATE * gradient.view_as(parameter))
    return torch.cat([p.detach().flatten() for p in made.module.parameters()])


@on_learners
def _split(case: Rows, learner: Learner, made: ActorCritic, batch: Trajectories) -> None:
    whole, example = step(made, learner, batch), case.describe(learner)
    _same(whole, step(made, learner, batch, CUTS), "split: 2 micro-batches", example)
    _same(whole, step(made, learner, batch.select([5, 3, 0, 1, 4, 2])), "split: rows in another order", example)
    wide = torch.zeros(1, case.steps + 2, dtype=torch.bool)
    action = wide.long() if case.counted else wide.double().unsqueeze(-1).expand(1, case.steps + 2, case.size)
    assert batch.source is not None
    filler = Trajectories(action=action, mask=wide, present=wide, source=batch.source[:1])
    _same(whole, step(made, learner, Trajectories.join([batch, filler])), "split: more columns of padding", example)
    if learner.terms.reach == "step":
        _same(whole, step(made, learner, batch, as_steps=True), "split: steps as rows of their own", example)


@on_learners
def silence(case: Rows, learner: Learner, made: ActorCritic, batch: Trajectories) -> None:
    """2. NaN, inf and garbage in steps that do not count change nothing; nor does what is observed in a terminal state."""
    whole, example = step(made, learner, batch), case.describe(learner)
    for value in RUBBISH:

        def spoil(tensor: Tensor, live: Tensor = batch.mask, value: float = value) -> Tensor:
            shape = live.reshape(*live.shape, *([1] * (tensor.ndim - 2)))
            return torch.where(shape, tensor, value) if tensor.is_floating_point() else torch.where(shape, tensor, ARMS + 7)

        fields = {name: spoil(tensor) for name in SPOILED if (tensor := getattr(batch, name)) is not None}
        planned = {k: spoil(v) if v.ndim > 1 and v.is_floating_point() else v for k, v in batch.planned.items()}
        dirty = batch.replace(**{k: v for k, v in fields.items() if k != "action"}, planned=planned)
        dirty = dirty._with({"action": fields["action"]})
        _same(whole, step(made, learner, dirty), f"silence: {value} where the mask is 0", example)
        assert batch.terminated is not None
        assert batch.next_observation is not None
        if any(term.reads_ends for term in learner.terms.terms):
            continue
        ended = batch.replace(next_observation=spoil(batch.next_observation, ~batch.terminated))
        _same(whole, step(made, learner, ended), f"silence: {value} observed in terminal states", example)


@on_learners
def exactness(case: Rows, learner: Learner, made: ActorCritic, batch: Trajectories) -> None:
    """3. The gradient is the derivative of the learner's loss, targets aside; in expectation over an action's noise, that of the score."""
    example, own = case.describe(learner), trained(made, learner)
    scores = [t for t in learner.terms.terms if isinstance(t, PolicyGradient) and t.surrogate == "score" and not t.likelihood.substitutes]
    if scores and len(scores) < len(learner.terms.terms):  # the loss of a score has the right slope, but its value is no antiderivative
        rest = Objective(tuple(t for t in learner.terms.terms if t not in scores))
        learner = replace(learner, objective=rest, trains=learner.trains or (CRITIC,))
        own = trained(made, learner)
    ready = planned(made, learner.terms, batch)  # once: what is planned of the current policy is no part of the derivative
    whole, source = _gradient(made, learner, ready), generator(case.seed, "direction")
    for _ in range(3):
        along = [torch.randn(p.shape, generator=source, dtype=torch.float64) for p in own]
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(own, along, strict=True):
                    p.add_(sign * STEP * d)
            ends.append(_gradient(made, learner, ready)[0])
            with torch.no_grad():
                for p, d in zip(own, along, strict=True):
                    p.sub_(sign * STEP * d)
        slope = (whole[1:] @ torch.cat([d.flatten() for d in along])).reshape(1)
        _same(((ends[0] - ends[1]) / (2 * STEP)).reshape(1), slope, "exactness: the derivative along a direction", example, ROUGH)
    for term in learner.terms.terms:
        if isinstance(term, PolicyGradient) and isinstance(term.likelihood, Pathwise) and made.draws:
            _same_in_expectation(replace(case, size=1), replace(learner, objective=Objective((term,))), term)


def _same_in_expectation(case: Rows, learner: Learner, term: PolicyGradient) -> None:
    """Through the action, and by the score of the action as it is: one gradient, by quadrature over the noise of one real action."""
    made, batch = case.policy(), case.batch().select([1])
    with torch.no_grad():  # members that are one: the least of several has a kink, on which quadrature is slow
        for network in made.modules.values():
            for parameter in network.parameters() if isinstance(network, Ensemble) and network.members > 1 else ():
                parameter.copy_(parameter[:1].expand_as(parameter))
    nodes = torch.linspace(-FAR, FAR, NODES, dtype=torch.float64)  # even ones: of an analytic integrand their error falls exponentially
    shares = torch.softmax(-0.5 * nodes**2, 0)
    name, own = NOISE.format("observation"), [p for part in learner.trains for p in made.networks[part]]
    through, score = torch.zeros(()), torch.zeros(())
    for node, share in zip(nodes.tolist(), shares.tolist(), strict=True):
        here = batch.replace(planned={**batch.planned, name: torch.full_like(batch.planned[name], node)})
        through = through + share * step(made, learner, here)[1:]
        now = made.now(here, frozenset({"observation"}))
        with torch.no_grad():
            point = now.fresh("observation")
            value, action = term.advantage(here, point, GIVEN), point.action.detach()  # type: ignore[attr-defined]
        log_prob = made.distribution(now.observed("observation"), "actor", action, False)[0]
        loss = -(value.flatten() * log_prob).mean()
        score = score + share * torch.cat([g.flatten() for g in torch.autograd.grad(loss, own)])
    _same(score, through, "exactness: the expected gradient through the action, against that of the score", case.describe(learner), ROUGH)


@on_learners
def agreement(case: Rows, learner: Learner, made: ActorCritic, batch: Trajectories) -> None:
    """4. A learner's gradient is of the networks that it names: nothing is left in any other, whose weights stay as they are."""
    others = {name: network for name, network in made.networks.items() if learner.trains and name not in learner.trains}
    before = {name: [p.detach().clone() for p in network] for name, network in others.items()}
    step(made, learner, batch)
    for name, network in others.items():
        for parameter, old in zip(network, before[name], strict=True):
            if parameter.grad is not None or not torch.equal(parameter, old):
                raise LawBroken(f"agreement: a gradient is left in network '{name}'; example: {case.describe(learner)}")


@on_learners
def emptiness(case: Rows, learner: Learner, made: ActorCritic, batch: Trajectories) -> None:
    """5. A batch with nothing in it gives exactly zero."""
    nothing = batch._with({"mask": torch.zeros_like(batch.mask)})
    for what, empty in (("a batch whose mask is 0 everywhere", nothing), ("a batch without rows", batch.select([]))):
        found = step(made, learner, empty)
        if bool((found != 0).any()):
            raise LawBroken(f"emptiness: {what} gives {float(found[found != 0][0]):g}, not 0; example: {case.describe(learner)}")


@on_learners
def second_opinion(case: Rows, learner: Learner, made: ActorCritic, batch: Trajectories) -> None:
    """8. The vectorised loss agrees with a naive one: step by step, each alone (or within its row), with plain Python sums."""
    objective = learner.terms
    ready = planned(made, objective, batch)
    own = trained(made, learner)
    ready = ready.as_steps() if objective.reach == "step" else ready
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(ready)):
        piece = ready.select([row])
        now = made.now(piece, objective.differentiates)
        for name, term in objective.named():
            loss, _ = term.per_token(now, piece, name, GIVEN)
            for t in piece.mask[0].nonzero()[:, 0].tolist():
                total = total + piece.planned[f"{name}/weight"][0, t] * loss[0, t]
    found = torch.cat([total.detach().reshape(1), *(g.flatten() for g in torch.autograd.grad(total, own))])
    _same(found, step(made, learner, batch), "second opinion: step by step, each alone", case.describe(learner))


# ---------------------------------------------------------------------------------------------------- in the loop


def _trainer(
    algorithm: Algorithm, kind: str, folder: Path, iterations: int, steps: int = 32, rate: float = 3e-3, every: int = 1, epochs: int = 1
) -> Any:
    from unipg.rollouts.environments import EnvironmentRecipe
    from unipg.training.trainer import Trainer

    options: dict[str, Any] = {"arms": ARMS, "best": 2} if kind in ("auto", "greedy") else {"best": 0.5}
    timed: list[Any] = [] if algorithm.by_step is None else ["gymnasium.wrappers.TimeAwareObservation"]
    options |= {"max_episode_steps": 1} if timed else {}
    collects = algorithm.replays and not algorithm.offline
    count, bandit = 2 if algorithm.replays else 16, "unipg.environments:unipg/Bandit-v0"
    recipe = EnvironmentRecipe(bandit, count, steps, options, evaluation_episodes=16, wrappers=timed)
    experience = recipe.build(3)
    controller = ActorCriticRecipe(hidden=[16], kind=kind)  # type: ignore[arg-type]
    given = _given(algorithm, kind, folder) if algorithm.offline or algorithm.mixes else None
    policy = controller.build(experience.observation_space, experience.action_space, 3, wanted=wanted_of(algorithm))
    return Trainer(
        copy.deepcopy(algorithm),
        policy,
        experience,
        folder=folder,
        training=TrainingRecipe(iterations=iterations, save_every=every, epochs=epochs),
        optimizer=OptimizerRecipe(learning_rate=rate),
        seed=3,
        replay=ReplayRecipe(64 if every == 1 else 4096, batch=16, warmup=16, updates_per_step=1.0) if collects else None,
        dataset=given,
    )


def _given(algorithm: Algorithm, kind: str, folder: Path) -> DatasetRecipe:
    """What is known of the bandit where nothing may be tried: actions of all kinds, or where an algorithm follows them, good ones."""
    source = np.random.default_rng(3)

    def write(name: str, good: bool) -> str:
        if kind in ("auto", "greedy"):
            action = np.where(source.random(256) < 0.9, 2, source.integers(ARMS, size=256)) if good else source.integers(ARMS, size=256)
            reward = (action == 2).astype(np.float32)
        else:
            action = (0.5 + 0.1 * source.standard_normal((256, 1)) if good else source.uniform(-1, 1, (256, 1))).astype(np.float32)
            reward = -((action[:, 0] - 0.5) ** 2)
        state, after = (np.ones((256, 1), np.float32) if algorithm.by_step is None else np.tile([1.0, step], (256, 1)) for step in (0, 1))
        rows = {"observation": state, "next_observation": after, "action": action, "reward": reward, "terminated": np.ones(256, bool)}
        place = folder.with_name(f"{folder.name}-{name}")
        Transitions.of(rows).save(place)
        return str(place)

    expert = write("expert", True) if algorithm.demonstrations != "none" else None
    return DatasetRecipe(write("data", algorithm.imitates), expert, batch=None if algorithm.mixes else 16, updates=64, reward_scale=4.0)


class _UntilSolved(Observer):
    """Ends a run once enough of what is best is reached."""

    def __init__(self, run: Any, kind: str, goal: float) -> None:
        self.run, self.kind, self.goal = run, kind, goal

    @property
    def share(self) -> float:
        """1 − |a − best| of the most likely real action; whether the best of several is taken."""
        policy, state = self.run.policy, np.ones((1, 1), np.float32)
        if policy.steps is not None:
            state = np.array([[1.0, 0.0]], np.float32)
        found = policy.outward()(state, policy.actor()(state, None))[0]
        return float(found == 2) if self.kind in ("auto", "greedy") else 1 - abs(float(found[0]) - 0.5)

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        if self.share >= self.goal:
            self.run.finish("solved")


def learning(algorithm: Algorithm, iterations: int = 24, goal: float = 0.9) -> float:
    """6. The algorithm solves a trivial task in seconds: a bandit, of each kind of actions. Returns the least of the shares reached.

    Of real actions the share is 1 − |a − best|, of counted ones whether the best is taken.
    """
    shares, case = [], cases_of(algorithm)[0]
    whose = not algorithm.replays and all(learner.epochs is None for learner in case.learners())
    epochs = 4 if whose else 1  # passes over each batch where the recipe says how many
    rate = 1e-3 if algorithm.offline else 3e-3  # nothing new is tried where a first guess went too far
    for kind in kinds_of(algorithm):
        with tempfile.TemporaryDirectory() as folder:
            run = _trainer(algorithm, kind, Path(folder) / "run", iterations, steps=64, rate=rate, every=iterations, epochs=epochs)
            run.observer = solved = _UntilSolved(run, kind, goal)
            before = solved.share
            try:
                run.train()
            except Exception as error:
                raise LawBroken(f"learning: {type(error).__name__} ({error}); example: a bandit, actions '{kind}'") from error
            shares.append(solved.share)
            if algorithm.wraps:  # it is no learner of what is best, but what the policy does must come nearer to what was done
                if not shares[-1] > before:
                    raise LawBroken(
                        f"learning: it leads from {before:.3f} of what is best to {shares[-1]:.3f}; example: a bandit, actions '{kind}'"
                    )
            elif not shares[-1] >= goal:
                raise LawBroken(f"learning: the share of what is best is {shares[-1]:.3f}, not {goal}; example: a bandit, actions '{kind}'")
    return min(shares)


def resume(algorithm: Algorithm, steps: tuple[int, ...] = (1, 30, 71)) -> None:
    """7. Stopping and continuing anywhere, also between two updates and after the buffer has wrapped, gives bit-identical weights.

    `steps`: the updates after which to stop, of about 80; those that a run does not get to are left out.
    """
    from unipg.training.observer import Stopped

    kind = kinds_of(algorithm)[0]

    def weights(run: Any) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in run.policy.module.state_dict().items()}

    with tempfile.TemporaryDirectory() as folder:
        straight = _trainer(algorithm, kind, Path(folder) / "straight", 3, steps=16)
        start = weights(straight)
        straight.train()
        expected = weights(straight)
        if all(value.equal(expected[name]) for name, value in start.items()):
            raise LawBroken(f"resume: no weight moved in {straight.step} updates, so nothing was compared; example: a bandit")
        for stop in (stop for stop in steps if stop < straight.step):
            example = f"stopped after update {stop} of {straight.step}"
            first = _trainer(algorithm, kind, Path(folder) / f"stop{stop}", 3, steps=16)
            first.stop_after_steps = stop
            try:
                first.train()
            except Stopped:
                pass
            else:
                raise LawBroken(f"resume: the run did not stop; example: {example}")
            second = _trainer(algorithm, kind, Path(folder) / f"stop{stop}", 3, steps=16)
            second.resume()
            second.train()
            for name, value in weights(second).items():
                if not value.equal(expected[name]):
                    raise LawBroken(f"resume: '{name}' is not bit-identical to that of an uninterrupted run; example: {example}")


def search(law: str, algorithm: Algorithm, examples: int) -> None:
    """A law on several seeds; `LawBroken` names the one on which it breaks."""
    if law == "resume":
        resume(algorithm, (2, 45))
        return
    for seed in range(min(examples, MOST_SEEDS)):
        LAWS[law](algorithm, seed)


LAWS: dict[str, Callable[..., Any]] = {
    "split": split,
    "silence": silence,
    "exactness": exactness,
    "agreement": agreement,
    "emptiness": emptiness,
    "learning": learning,
    "resume": resume,
    "second_opinion": second_opinion,
}
