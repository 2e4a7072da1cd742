"""The design space: masks × references × advantages × aggregates over rollouts, ranked on an exact problem."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unipg.algorithms.base import Setting, registered
from unipg.errors import InputError, nearest
from unipg.estimator import ROLLOUTS, Advantage, Aggregate, Mask, Objective, Planning, PolicyGradient, Reference
from unipg.estimator.parts import Part
from unipg.lab.exact import ExactProblem
from unipg.lab.gradients import Copies, Draw, Sampler, directions_of_copies, join_copies
from unipg.lab.measures import Measurement, measure
from unipg.lab.strings import TabularPolicy
from unipg.lab.study import GROUPS_PER_CONTEXT, LAG_STEP, Told
from unipg.seeding import derived_seed, generator
from unipg.trajectories import Trajectories

TERM = "grid"
KINDS = ("mask", "reference", "advantage", "aggregate")


@dataclass(frozen=True)
class Learning:
    """The short training run behind the column `learnt`: every batch is used for several updates of fixed length."""

    iterations: int = 6
    updates: int = 4
    step: float = 0.1
    """Length of every update in the policy's logits, so that methods differ in direction alone."""
    seeds: int = 4


@dataclass(frozen=True)
class Combination:
    """One point of the design space."""

    mask: Mask
    reference: Reference
    advantage: Advantage
    aggregate: Aggregate

    def objective(self) -> Objective:
        """Raises `InputError` where the parts refuse each other."""
        if self.reference.offline:
            raise InputError(f"{self.reference.symbol()} is for data whose sampling policy is unknown, not for rollouts")
        term = PolicyGradient(
            mask=self.mask, reference=self.reference, advantage=self.advantage, aggregate=self.aggregate, name=TERM, rows=ROLLOUTS
        )
        return Objective((term,))

    def symbols(self) -> dict[str, str]:
        return {kind: getattr(self, kind).symbol() for kind in KINDS}


@dataclass(frozen=True)
class GridResult:
    """One combination that makes sense, measured."""

    combination: Combination
    published: tuple[str, ...]
    """Algorithms that have exactly these parts."""
    measured: Measurement
    learnt: float
    """Exact expected reward after the short training run, mean over seeds."""
    learnt_error: float
    """Its standard error."""
    rank: int = 0
    """By the sum of the ranks in bias, variance and learning, from 1."""

    def as_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"rank": self.rank, **self.combination.symbols(), "published": list(self.published)}
        plain |= {"learnt": self.learnt, "learnt_error": self.learnt_error}
        for f in dataclasses.fields(self.measured):
            value = getattr(self.measured, f.name)
            plain[f.name] = value._asdict() if hasattr(value, "_asdict") else value
        return plain


@dataclass(frozen=True)
class Grid:
    """Every combination that was measured, best first, and those that parts refused with the reason."""

    results: list[GridResult]
    refused: dict[str, int]
    """Reason to number of combinations."""
    start: float
    """Exact expected reward before learning."""


def default_parts(problem: ExactProblem) -> dict[str, list[Any]]:
    """Every part that a registered algorithm over rollouts alone is made of, and the references of all algorithms."""
    parts: dict[str, dict[Any, None]] = {kind: {} for kind in KINDS}
    for algorithm in registered(answers=True).values():
        if algorithm.completions != "none":
            continue
        for term in algorithm().terms(Setting(max_new_tokens=problem.horizon)).terms:
            if isinstance(term, PolicyGradient):
                parts["reference"][term.reference] = None
                if algorithm.demonstrations == "none":
                    parts["mask"][term.mask], parts["advantage"][term.advantage], parts["aggregate"][term.aggregate] = (None,) * 3
    return {kind: sorted(filter(_stands_alone, found), key=lambda part: part.symbol()) for kind, found in parts.items()}


def _stands_alone(part: Any) -> bool:
    """Whether a part reads nothing that only its algorithm's own preparation writes (`target/log_prob`)."""
    return not any("/" in name for name in getattr(part, "reads", ()))


def chosen_parts(problem: ExactProblem, names: dict[str, Sequence[str]]) -> dict[str, list[Any]]:
    """The default parts, or of each kind in `names` only those of the named classes (or with the very symbol, settings included)."""
    pool = default_parts(problem)
    for kind, wanted in names.items():
        available = pool[kind]
        accepted = {type(part).__name__ for part in available} | {part.symbol() for part in available}
        for name in wanted:
            if name not in accepted:
                raise InputError(f"{kind} '{name}' does not exist; {nearest(name, accepted)}")
        if wanted:
            pool[kind] = [part for part in available if {type(part).__name__, part.symbol()} & set(wanted)]
    return pool


def published(problem: ExactProblem) -> dict[Combination, list[str]]:
    """The parts of every registered algorithm that is one policy gradient over rollouts (other terms and preparation left aside)."""
    found: dict[Combination, list[str]] = {}
    for name, algorithm in registered(answers=True).items():
        terms = algorithm().terms(Setting(max_new_tokens=problem.horizon)).terms
        gradients = [term for term in terms if isinstance(term, PolicyGradient)]
        if len(gradients) == 1 and gradients[0].rows == ROLLOUTS:
            found.setdefault(Combination(*(getattr(gradients[0], kind) for kind in KINDS)), []).append(name)
    return found


def run_grid(
    problem: ExactProblem,
    parts: dict[str, list[Any]] | None = None,
    *,
    group_size: int = 8,
    lag: int = 4,
    noise: float = 0.0,
    batches: int = 200,
    learning: Learning = Learning(),
    seed: int = 0,
    progress: Told | None = None,
) -> Grid:
    """Every combination of `parts` (lists by kind; default: `default_parts`) that parts do not refuse, ranked.

    Bias and variance against the exact gradient of the expected reward, with pi_old `lag` exact gradient steps behind; then a short
    training run. Errors: `InputError` where parts refuse every combination.
    """
    parts = parts or default_parts(problem)
    marks = published(problem)
    sampler = Sampler.of(problem, problem.lagged(lag, LAG_STEP))
    draw = Draw(GROUPS_PER_CONTEXT * problem.contexts, group_size, demonstrations=False, noise=noise)
    raw = draw(problem, sampler, batches, generator(seed, "grid"))
    shared = _Shared(problem, raw)
    reward = problem.gradient(problem.expected_reward)
    results: list[GridResult] = []
    refused: dict[str, int] = {}
    everything = [Combination(*some) for some in itertools.product(*(parts[kind] for kind in KINDS))]
    for number, combination in enumerate(everything):
        try:
            objective = combination.objective()
            _check_fields(objective, raw[0])
        except InputError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
            continue
        measured = measure(shared.directions(combination, objective), [reward], derived_seed(seed, "grid bootstrap"))
        final = _learn(problem, objective, draw, learning, seed)
        error_of_mean = statistics.stdev(final) / len(final) ** 0.5 if len(final) > 1 else 0.0
        results.append(GridResult(combination, tuple(marks.get(combination, ())), measured, statistics.fmean(final), error_of_mean))
        if progress:
            progress((number + 1) / len(everything))
    if not results:
        raise InputError(f"the parts refuse every combination: {next(iter(refused), 'no part was given')}")
    return Grid(_ranked(results), refused, float(problem.expected_reward().detach()))


def _check_fields(objective: Objective, batch: Trajectories) -> None:
    missing = sorted(name for name in objective.reads if getattr(batch, name, None) is None)
    if missing:
        raise InputError(f"the batch does not carry {', '.join(missing)}")


class _Shared:
    """The same batches for every combination; each advantage and each aggregate is worked out once."""

    def __init__(self, problem: ExactProblem, raw: list[Trajectories]) -> None:
        self.raw, self.joined = raw, join_copies(raw)
        self.policy = problem.policy
        self.known: dict[Part, torch.Tensor] = {}

    def directions(self, combination: Combination, objective: Objective) -> torch.Tensor:
        if combination.aggregate not in self.known:
            planned = [objective.plan(batch, Planning()).planned[f"{TERM}/weight"] for batch in self.raw]
            self.known[combination.aggregate] = torch.cat(planned)
        tensors = {f"{TERM}/weight": self.known[combination.aggregate]}
        if not combination.advantage.is_dynamic:
            if combination.advantage not in self.known:
                ready = [objective.prepare(batch, Planning()).planned[f"{TERM}/advantage"] for batch in self.raw]
                self.known[combination.advantage] = torch.cat(ready)
            tensors[f"{TERM}/advantage"] = self.known[combination.advantage]
        return directions_of_copies(objective, Copies(self.policy, len(self.raw)), self.joined.with_planned(**tensors))


def _learn(problem: ExactProblem, objective: Objective, draw: Draw, learning: Learning, seed: int) -> list[float]:
    """Exact expected reward of each seed's policy after the short training run; all seeds move at once, each on its own data."""
    copies = Copies(problem.policy, learning.seeds)
    random = [generator(seed, "grid learning", number) for number in range(learning.seeds)]
    size = len(problem.policy.logits)

    def one(number: int) -> TabularPolicy:
        policy = problem.policy.twin()
        with torch.no_grad():
            policy.logits.copy_(copies.logits[number * size : (number + 1) * size])
        return policy

    for _ in range(learning.iterations):
        planned = []
        for number in range(learning.seeds):
            sampler = Sampler.of(problem, one(number))
            batch = draw(problem, sampler, 1, random[number])[0]
            planning = Planning()
            planned.append(objective.plan(objective.prepare(batch, planning), planning))
        joined = join_copies(planned)
        for _ in range(learning.updates):
            step = directions_of_copies(objective, copies, joined)
            length = step.norm(dim=1, keepdim=True)
            step = torch.where(length > 0, step / length.clamp_min(1e-300), 0)
            with torch.no_grad():
                copies.logits.add_(step.reshape(copies.logits.shape), alpha=learning.step)
    with torch.no_grad():
        return [float(problem.expected_reward(one(number))) for number in range(learning.seeds)]


def _ranked(results: list[GridResult]) -> list[GridResult]:
    def ranks(values: list[float]) -> list[float]:
        ordered = sorted(values)
        return [ordered.index(value) for value in values]

    bias = ranks([round(r.measured.bias.value, 3) for r in results])
    noise = ranks([r.measured.variance.value for r in results])
    learnt = ranks([-r.learnt for r in results])
    order = sorted(range(len(results)), key=lambda i: (bias[i] + noise[i] + learnt[i], bias[i], -results[i].learnt))
    return [dataclasses.replace(results[i], rank=place) for place, i in enumerate(order, 1)]
