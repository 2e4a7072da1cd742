"""Many independent batches of one exact problem, and the gradient that an objective gives on each of them.

Every batch is prepared and planned on its own, through the algorithm's own code; only the last step, a sum over rows, is done for all
batches at once: each has its own copy of the policy's parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.estimator import Objective, Planning, PolicyGradient, Progress, coefficient
from unipg.estimator.likelihoods import POSITION_KEY, Reading, position_keys
from unipg.estimator.parts import beyond_row
from unipg.estimator.policy_gradient import Record, silence
from unipg.lab.exact import ExactProblem
from unipg.lab.strings import TabularPolicy
from unipg.policies.base import Policy
from unipg.trajectories import Evaluation, Source, Trajectories

CHUNK = 64
"""Batches whose gradients are taken together."""
COPY = "lab/copy"
LEARNING_RATE = 0.05
"""What algorithms are told that ask how large the next step will be."""


@dataclass(frozen=True)
class Sampler:
    """How trajectories come about: which policy the trainer calls old, and what the engine really sampled from."""

    old_log_prob: Tensor
    """[N,T] log-probability of every action under pi_old, as the trainer computes it."""
    behaviour_log_prob: Tensor
    """[N,T] the same under the engine's policy, which draws; −inf for an action that it never takes."""
    value: Tensor
    """[N,T] the critic's values: exact ones under pi_old."""
    anchor_log_prob: Tensor
    old_entropy: Tensor | None = None
    """[N,T] of pi_old at every action."""

    @classmethod
    def of(cls, problem: ExactProblem, old: TabularPolicy | None = None, behaviour_log_prob: Tensor | None = None) -> Sampler:
        """pi_old is `old` (default: the policy itself); the engine agrees with it unless it has log-probabilities of its own."""
        with torch.no_grad():
            log_prob = problem.log_prob(old)
            anchor = problem.log_prob(problem.anchor)
            entropy = (old or problem.policy).evaluate(problem.rows, entropy=True).entropy
        behaviour = log_prob if behaviour_log_prob is None else behaviour_log_prob
        return cls(log_prob, behaviour, problem.values(log_prob), anchor, entropy)


@dataclass(frozen=True)
class Draw:
    """What a batch is made of."""

    groups: int
    rollouts: int
    demonstrations: bool
    noise: float = 0.0
    """Probability that a trajectory is scored 1 − R instead of R."""

    def __call__(
        self, problem: ExactProblem, sampler: Sampler, batches: int, random: torch.Generator, first_group: int = 0
    ) -> list[Trajectories]:
        """`batches` independent batches. Group g answers context (first_group + g) mod contexts, so that contexts come equally often."""
        contexts = (torch.arange(self.groups) + first_group) % problem.contexts
        parts, groups, sources = [], [], []
        if self.rollouts:
            weights = problem.probability_of(sampler.behaviour_log_prob)
            parts.append(_pick(problem, weights, contexts, batches, self.rollouts, random).flatten(1))
            groups.append(torch.arange(self.groups).repeat_interleave(self.rollouts))
            sources.append(torch.full_like(groups[-1], int(Source.ROLLOUT)))
        if self.demonstrations:
            parts.append(_pick(problem, problem.demonstrator, contexts, batches, 1, random).flatten(1))
            groups.append(torch.arange(self.groups))
            sources.append(torch.full_like(groups[-1], int(Source.DEMONSTRATION)))
        chosen, group, source = torch.cat(parts, 1), torch.cat(groups), torch.cat(sources)
        assert problem.rows.reward is not None
        reward = problem.rows.reward[chosen]
        if self.noise:
            reward = torch.where(torch.rand(reward.shape, dtype=torch.float64, generator=random) < self.noise, 1 - reward, reward)
        table = problem.rows.replace(
            old_log_prob=sampler.old_log_prob,
            behaviour_log_prob=sampler.behaviour_log_prob,
            old_entropy=sampler.old_entropy,
            anchor_log_prob=sampler.anchor_log_prob,
            value=sampler.value,
        )
        return [table.select(chosen[i]).replace(group=group, source=source, reward=reward[i]) for i in range(batches)]


def _pick(problem: ExactProblem, weights: Tensor, contexts: Tensor, batches: int, count: int, random: torch.Generator) -> Tensor:
    """[batches, groups, count] indices of trajectories, drawn for each group from the `weights [N]` of its context."""
    picked = torch.zeros(batches, len(contexts), count, dtype=torch.long)
    for context in contexts.unique():
        where = (contexts == context).nonzero().squeeze(-1)
        mine = (problem.context == context).nonzero().squeeze(-1)
        drawn = torch.multinomial(weights[mine].detach(), batches * len(where) * count, replacement=True, generator=random)
        picked[:, where] = mine[drawn].reshape(batches, len(where), count)
    return picked


def kept(algorithm: Algorithm, draw: Callable[[int, int], Trajectories], groups: int) -> Trajectories:
    """One batch after dynamic sampling: as in training, groups that `keep` drops are sampled anew for as long as the algorithm allows.

    `draw(round, missing)` gives a fresh batch with that many groups.
    """
    if algorithm.most_sampling_rounds == 1:
        return draw(0, groups)
    found: list[Trajectories] = []
    missing = groups
    for number in range(algorithm.most_sampling_rounds):
        fresh = algorithm.keep(draw(number, missing))
        assert fresh.group is not None
        found.append(fresh.replace(group=fresh.group + number * groups))
        missing -= len(fresh.group.unique())
        if missing <= 0:
            break
    return Trajectories.join([batch for batch in found if len(batch)] or found[:1])


def prepared(
    algorithm: Algorithm, batch: Trajectories, setting: Setting, planning: Planning, objective: Objective | None = None
) -> tuple[Objective, Trajectories]:
    """The algorithm's objective (or another in its place) and the batch after all whole-batch work."""
    objective = objective or algorithm.terms(setting)
    return objective, objective.prepare(algorithm.prepare(batch, setting, planning), planning)


def selected(algorithm: Algorithm, policy: Policy, batch: Trajectories, planning: Planning) -> Trajectories:
    """A prepared batch of one optimiser step after what the algorithm selects by the policy as it is."""

    def evaluate(batch: Trajectories, *, readings: Sequence[Reading] = ()) -> Evaluation:
        if readings:
            batch = batch.with_planned(**{POSITION_KEY: position_keys(batch, planning.seed + planning.progress.step)})
        with torch.no_grad():
            return policy.evaluate(batch, readings=readings)

    return algorithm.select(batch, planning, evaluate)


class Copies(TabularPolicy):
    """As many copies of a tabular policy as there are batches, each row of a batch looking up its own."""

    def __init__(self, policy: TabularPolicy, copies: int) -> None:
        super().__init__(policy.logits.detach().repeat(copies, 1))
        self.one, self.copies = policy, copies
        with torch.no_grad():
            self.value.copy_(policy.value.repeat(copies))

    def states(self, batch: Trajectories) -> Tensor:
        return self.one.states(batch) + len(self.one.logits) * batch.planned[COPY].unsqueeze(1)


@dataclass(frozen=True)
class Weights:
    """What the first policy gradient of an objective did to its own n tokens, `[n]` each."""

    advantage: Tensor
    stable: Tensor
    """1 where the stabilisation mask let the token through."""
    weight: Tensor
    """1_stable · pi_theta / pi_ref."""


def ascent_directions(
    objective: Objective, policy: TabularPolicy, planned: Sequence[Trajectories], *, seen: list[Weights] | None = None
) -> Tensor:
    """[N,S·A] what each planned batch would add to the policy's logits: minus the gradient of the objective's loss."""
    found = []
    for start in range(0, len(planned), CHUNK):
        chunk = planned[start : start + CHUNK]
        found.append(directions_of_copies(objective, Copies(policy, len(chunk)), join_copies(chunk), seen=seen))
    return torch.cat(found)


def join_copies(batches: Sequence[Trajectories]) -> Trajectories:
    """The rows of several batches, each knowing the number of its batch: what `Copies` looks up."""
    return Trajectories.join([batch.with_planned(**{COPY: torch.full((len(batch),), i)}) for i, batch in enumerate(batches)])


def directions_of_copies(objective: Objective, copies: Copies, joined: Trajectories, *, seen: list[Weights] | None = None) -> Tensor:
    """[N,S·A] the same for planned batches that are joined already, each against its own copy of the policy."""
    now = copies.evaluate(joined, entropy=objective.reads_entropy, value=objective.reads_value, readings=objective.readings)
    records: list[Record] = []
    loss = objective.loss(now, joined, records=records)
    if seen is not None:
        seen += _first_weights(objective, now.log_prob.detach(), joined, records)
    (slope,) = torch.autograd.grad(loss, copies.logits)
    return -slope.reshape(copies.copies, -1)


def _first_weights(objective: Objective, log_prob: Tensor, batch: Trajectories, records: Sequence[Record]) -> list[Weights]:
    found = [(term, r) for name, term in objective.named() if isinstance(term, PolicyGradient) for r in records if r.term == name]
    if not found:
        return []
    term, record = found[0]
    mine = term.taken(batch) & batch.rows_from(*term.rows).unsqueeze(1)
    reference = term.reference(log_prob, silence(batch))
    one = torch.ones_like(record.advantage)
    weight = coefficient(log_prob[mine][None], reference[mine][None], one[None], record.stable[None])[0]
    return [Weights(record.advantage, record.stable, weight)]


def study_batches(
    algorithm: Algorithm,
    problem: ExactProblem,
    sampler: Sampler,
    draw: Draw,
    batches: int,
    random: torch.Generator,
    objective: Objective | None = None,
) -> tuple[Objective, list[Trajectories]]:
    """`batches` independent batches, sampled, prepared and planned as training would."""
    setting = Setting(max_new_tokens=problem.horizon)

    def redraw(number: int, missing: int) -> Trajectories:
        start = int(torch.randint(problem.contexts, (), generator=random)) if number else 0
        return dataclasses.replace(draw, groups=missing)(problem, sampler, 1, random, start)[0]

    if algorithm.most_sampling_rounds > 1:
        raw = [kept(algorithm, redraw, draw.groups) for _ in range(batches)]
    else:
        raw = draw(problem, sampler, batches, random)
    planned = []
    objective = objective or algorithm.terms(setting)
    for number, batch in enumerate(raw):
        planning = Planning(Progress(learning_rate=LEARNING_RATE), seed=number)
        _, ready = prepared(algorithm, batch, setting, planning, objective)
        ready = selected(algorithm, problem.policy, ready, planning)
        now = problem.policy.evaluate(ready) if beyond_row(objective.reach) else None
        planned.append(objective.plan(ready, planning, now))
    return objective, planned
