"""The laws that hold on any batch. Each takes an algorithm and raises `LawBroken` with one sentence: which property broke, and where."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm
from unipg.estimator import CurrentPolicy, Everything, Objective, Planning, PolicyGradient, Progress
from unipg.estimator.parts import beyond_row
from unipg.lab import gradients
from unipg.lab.strings import BigramPolicy
from unipg.laws.cases import SETTING, SPOILED, VOCABULARY, Case, LawBroken, Row, random_cases
from unipg.trajectories import Evaluation, Source, Trajectories

TOLERANCE = 1e-10
"""Largest relative difference of two float64 gradients that must be equal."""
PROGRESS = Progress(1, 4, 0.05)
"""Where training stands: the second of four steps, at a learning rate that some algorithms ask for."""


BATCHES = 4
"""Random batches, of which one at least must have a gradient."""


class BatchLaw(Protocol):
    """A law on given rows (`case`), or on a few random ones."""

    def __call__(self, algorithm: Algorithm, seed: int = 0, *, case: Case | None = None) -> None: ...


def on_cases(body: Callable[[Algorithm, Case], None]) -> BatchLaw:
    """A law written for one case, as a law for the random cases of a seed. What a part raises by itself breaks the law too, and so does a
    gradient of 0 on all of them: nothing would have been compared."""

    def law(algorithm: Algorithm, seed: int = 0, *, case: Case | None = None) -> None:
        for each in random_cases(algorithm, seed) if case is None else [case]:
            try:
                body(algorithm, each)
            except LawBroken:
                raise
            except Exception as error:
                what = f"{body.__name__}: {type(error).__name__} ({error})"
                raise LawBroken(f"{what}; example: {each.describe('columns', 'order', 'cut', 'workers')}") from error
        if case is None:
            compared(body.__name__, algorithm, seed)

    functools.update_wrapper(law, body)
    del law.__wrapped__  # type: ignore[attr-defined]  # its signature is not the law's
    return law


def compared(law: str, algorithm: Algorithm, seed: int = 0) -> None:
    """Refuses an algorithm whose gradient is exactly 0 on random batches: a law then holds because there is nothing to compare."""
    for case in (random_cases(algorithm, seed + more)[0] for more in range(BATCHES)):
        policy = case.policy()
        objective, ready = prepared(algorithm, case.batch(), policy=policy)
        if bool(gradient(objective, policy, ready).any()):
            return
    raise LawBroken(f"{law.replace('_', ' ')}: the gradient is exactly 0, so nothing was compared; example: {case.describe()}")


def step(
    objective: Objective,
    policy: BigramPolicy,
    batch: Trajectories,
    planning: Planning | None = None,
    cuts: Iterable[Tensor] | None = None,
    disturb: Callable[[Evaluation, Trajectories], Evaluation] | None = None,
) -> Tensor:
    """[1+P] loss and gradient of a prepared batch, in the given micro-batches."""
    planning = planning or Planning(PROGRESS)
    planned = _planned(objective, policy, batch, planning)
    policy.module.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for rows in cuts if cuts is not None else [torch.arange(len(batch))]:
        piece = planned.select(rows)
        now = policy.evaluate(piece, entropy=True, value=True, readings=objective.readings)
        loss = objective.loss(disturb(now, piece) if disturb else now, piece, planning)
        loss.backward()
        total += loss.detach()
    return _found(total, policy)


def _planned(objective: Objective, policy: BigramPolicy, batch: Trajectories, planning: Planning) -> Trajectories:
    """Planned for any cut: advantages that look beyond their own row are fixed from the whole batch."""
    with torch.no_grad():
        return objective.plan(batch, planning, policy.evaluate(batch) if beyond_row(objective.reach) else None)


def _found(loss: Tensor, policy: BigramPolicy) -> Tensor:
    parameters = [policy.logits, policy.value]
    return torch.cat([loss.detach().reshape(1), *((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters)])


def gradient(objective: Objective, policy: BigramPolicy, batch: Trajectories) -> Tensor:
    """[P] gradient of a prepared batch."""
    return step(objective, policy, batch)[1:]


def prepared(
    algorithm: Algorithm, batch: Trajectories, planning: Planning | None = None, policy: BigramPolicy | None = None
) -> tuple[Objective, Trajectories]:
    """The objective and the batch of an optimiser step before planning; what is selected by the policy as it is, where one is given."""
    planning = planning or Planning(PROGRESS)
    objective, ready = gradients.prepared(algorithm, batch, SETTING, planning)
    return objective, ready if policy is None else gradients.selected(algorithm, policy, ready, planning)


def _same(expected: Tensor, found: Tensor, sentence: str, case: Case, *shows: str) -> None:
    """Refuses two results of `step` that differ."""
    for what, a, b in (("gradient", expected[1:], found[1:]), ("loss", expected[:1], found[:1])):
        difference = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-3)
        if not difference <= TOLERANCE:
            size = f"the {what} differs by {difference:.2e} of its largest entry (allowed {TOLERANCE:.0e})"
            raise LawBroken(f"{sentence}: {size}; example: {case.describe(*shows)}")


# ---------------------------------------------------------------------------------------------------- 1. split


@on_cases
def split(algorithm: Algorithm, case: Case) -> None:
    """1. The gradient does not change with micro-batching, padding, row order or number of workers."""
    batch, policy = case.batch(), case.policy()
    objective, ready = prepared(algorithm, batch, policy=policy)
    whole = step(objective, policy, ready)
    _same(whole, step(*_again(algorithm, policy, batch)), "split: the same batch prepared a second time", case)
    shares = [tuple(i for i, row in enumerate(case.rows) if row.group % case.workers == rank) for rank in range(case.workers)]
    # what each worker holds must do as a micro-batch first: then only what workers sum is left to blame
    for cut in (case.cut, tuple(share for share in shares if share)):
        if len(cut) > 1:
            found = step(objective, policy, ready, cuts=[torch.tensor(piece) for piece in cut])
            _same(whole, found, f"split: {len(cut)} micro-batches instead of one", dataclasses.replace(case, cut=cut), "cut")
    if case.order and case.order != tuple(sorted(case.order)):
        other = batch.select(list(case.order))
        _same(whole, step(*_again(algorithm, policy, other)), "split: rows in another order before planning", case, "order")
    if case.columns:
        wide = _padded(batch, case.columns)
        _same(whole, step(*_again(algorithm, policy, wide)), "split: more columns of padding", case, "columns")
    if case.workers > 1:
        found = _over_workers(algorithm, policy, batch, case)
        _same(whole, found, f"split: {case.workers} workers instead of one", case, "workers")


def _again(algorithm: Algorithm, policy: BigramPolicy, batch: Trajectories) -> tuple[Objective, BigramPolicy, Trajectories]:
    objective, ready = prepared(algorithm, batch, policy=policy)
    return objective, policy, ready


def _padded(batch: Trajectories, columns: int) -> Trajectories:
    wide = torch.zeros(1, batch.mask.shape[1] + columns, dtype=torch.bool)
    filler = Trajectories(action=wide.long(), mask=wide, present=wide, reward=torch.zeros(1, dtype=torch.float64))
    return Trajectories.join([batch, filler]).select(torch.arange(len(batch)))


def _over_workers(algorithm: Algorithm, policy: BigramPolicy, batch: Trajectories, case: Case) -> Tensor:
    """The sum of losses and gradients of workers that hold whole groups and share only counts."""
    assert batch.group is not None
    groups, workers = batch.group, case.workers
    shared = _SharedSum(workers)
    found: list[Tensor | BaseException] = [torch.zeros(())] * workers

    def work(rank: int) -> None:
        try:
            mine = batch.select((groups % workers == rank).nonzero().squeeze(-1))
            reduce, gather = functools.partial(shared.sum, rank), functools.partial(shared.gather, rank)
            planning = Planning(PROGRESS, reduce, gather=gather, rank=rank)
            own = BigramPolicy(VOCABULARY)
            own.module.load_state_dict(policy.module.state_dict())
            objective, ready = prepared(algorithm, mine, planning, own)
            found[rank] = step(objective, own, ready, planning)
        except BaseException as error:
            found[rank] = error
            shared.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [part for part in found if isinstance(part, BaseException)]
    if errors:
        first = next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        raise LawBroken(f"split: a worker failed with {first!r}; example: {case.describe('workers')}") from first
    return torch.stack([part for part in found if isinstance(part, Tensor)]).sum(0)


class _SharedSum:
    """Gathers values and sums tensors over threads that all call it equally often."""

    def __init__(self, workers: int) -> None:
        self.barrier = threading.Barrier(workers, timeout=20)
        self.parts: list[Any] = [None] * workers

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.parts[rank] = value
        self.barrier.wait()
        values = list(self.parts)
        self.barrier.wait()
        return values

    def sum(self, rank: int, counts: Tensor) -> Tensor:
        return torch.stack(self.gather(rank, counts)).sum(0)


# ---------------------------------------------------------------------------------------------------- 2. silence


@on_cases
def silence(algorithm: Algorithm, case: Case) -> None:
    """2. NaN, inf and garbage where the policy did not act change nothing."""
    batch, policy, value = case.batch(), case.policy(), case.rubbish
    objective, ready = prepared(algorithm, batch, policy=policy)
    whole = step(objective, policy, ready)

    def spoil_now(now: Evaluation, piece: Trajectories) -> Evaluation:
        if "log_prob" not in case.spoiled:
            return now
        return now.map(lambda t: torch.where(piece.mask, t, value))

    silent = torch.zeros(batch.mask.shape, dtype=torch.float64)
    fields = {name: getattr(batch, name) for name in case.spoiled if name not in ("log_prob", "action")}
    dirty = {name: torch.where(batch.mask, silent if tensor is None else tensor, value) for name, tensor in fields.items()}
    if "action" in case.spoiled:
        assert batch.present is not None
        dirty["action"] = torch.where(batch.present, batch.action, VOCABULARY + 7)
    where = "" if case.spoiled == SPOILED else f" in {', '.join(case.spoiled)}"
    sentence = f"silence: {value}{where} where the mask is 0"
    try:
        objective, ready = prepared(algorithm, batch.replace(**dirty), policy=policy)
        found = step(objective, policy, ready, disturb=spoil_now)
    except Exception as error:
        raise LawBroken(f"{sentence} raises {type(error).__name__} ({error}); example: {case.describe()}") from error
    if not bool(torch.isfinite(found).all()):
        name = "gradient" if bool(torch.isfinite(found[0])) else "loss"
        raise LawBroken(f"{sentence} makes the {name} {float(found[~torch.isfinite(found)][0])}; example: {case.describe()}")
    _same(whole, found, sentence, case)


# ---------------------------------------------------------------------------------------------------- 4. agreement


@on_cases
def agreement(algorithm: Algorithm, case: Case) -> None:
    """4. Configurations that must coincide do: at pi_theta = pi_old every ratio method has the plain on-policy gradient; both surrogates
    have the same gradient everywhere."""
    batch, policy = case.batch(), case.policy()
    objective, ready = prepared(algorithm, batch, policy=policy)
    score = step(_with_surrogate(objective, "score"), policy, ready)
    ratio = step(_with_surrogate(objective, "ratio"), policy, ready)
    ratio[0] = score[0]  # the losses may differ: only their gradients are one
    _same(score, ratio, "agreement: surrogates 'score' and 'ratio'", case)
    with torch.no_grad():
        log_prob = policy.evaluate(batch).log_prob
    objective, ready = prepared(algorithm, batch.replace(old_log_prob=log_prob, behaviour_log_prob=log_prob), policy=policy)
    plain = step(_without_ratios(objective), policy, ready)
    found = step(objective, policy, ready)
    found[0] = plain[0]
    _same(plain, found, "agreement: at pi_theta = pi_old, against the on-policy gradient", case)


def _with_surrogate(objective: Objective, name: Literal["score", "ratio"]) -> Objective:
    return Objective(tuple(dataclasses.replace(t, surrogate=name) if isinstance(t, PolicyGradient) else t for t in objective.terms))


def _without_ratios(objective: Objective) -> Objective:
    """The objective with every part that compares policies taken out."""
    policies = {"old_log_prob", "behaviour_log_prob"}
    terms = []
    for term in objective.terms:
        if isinstance(term, PolicyGradient):
            ratios = term.mask.reads | {term.mask.ratio_field}
            term = dataclasses.replace(
                term,
                mask=Everything() if policies & ratios else term.mask,
                reference=CurrentPolicy() if policies & term.reference.reads else term.reference,
            )
        terms.append(term)
    return Objective(tuple(terms))


# ---------------------------------------------------------------------------------------------------- 5. emptiness


@on_cases
def emptiness(algorithm: Algorithm, case: Case) -> None:
    """5. A group, a source or a batch with nothing in it gives exactly zero and a usable graph."""
    batch, policy = case.batch(), case.policy()
    objective = algorithm.terms(SETTING)
    nothing = batch.replace(mask=torch.zeros_like(batch.mask))
    for what, empty in (("a batch whose mask is 0 everywhere", nothing), ("a batch without rows", batch.select([]))):
        found = step(objective, policy, objective.prepare(_with_gates(objective, empty)))
        if bool((found != 0).any()):
            name = "loss" if bool(found[0] != 0) else "gradient"
            size = float(found[found != 0][0])
            raise LawBroken(f"emptiness: {what} gives a {name} of {size:g}, not exactly 0; example: {case.describe()}")
    objective, ready = prepared(algorithm, batch, policy=policy)
    for source in algorithm.sources():
        found = step(objective, policy, ready.select(~ready.rows_from(source)))
        if not bool(torch.isfinite(found).all()):
            raise LawBroken(f"emptiness: without any {source.name.lower()} loss or gradient is not finite; example: {case.describe()}")
    if algorithm.demonstrations != "required":  # a group of nothing has no demonstration either
        idle = Row(group=1 + max((r.group for r in case.rows), default=0), source=Source.ROLLOUT, prompt=1, turns=(0,), reward=1.0)
        more = dataclasses.replace(case, rows=(idle,)).batch()
        found = step(*_again(algorithm, policy, Trajectories.join([batch, more])))
        _same(step(objective, policy, ready), found, "emptiness: one more group in which the policy did nothing", case)


def _with_gates(objective: Objective, batch: Trajectories) -> Trajectories:
    """Gate weights, and whatever else the algorithm plans, of 1 for a batch that it would itself refuse to prepare."""
    names = {t.row_weight for t in objective.terms if t.row_weight} | (objective.reads - set(batch.tensor_fields()))
    tokens = {t.tokens: batch.mask for t in objective.terms if t.tokens}
    return batch.replace(planned={name: torch.ones(len(batch), dtype=torch.float64) for name in names} | tokens)


# ---------------------------------------------------------------------------------------------------- 8. second opinion


@on_cases
def second_opinion(algorithm: Algorithm, case: Case) -> None:
    """8. The vectorised loss agrees with a naive one: token by token, each row alone, with plain Python sums."""
    batch, policy = case.batch(), case.policy()
    objective, ready = prepared(algorithm, batch, policy=policy)
    planning = Planning(PROGRESS)
    planned = _planned(objective, policy, ready, planning)
    fast = step(objective, policy, ready)
    policy.module.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch)):
        piece = planned.select([row])
        for name, term in objective.named():
            now = policy.evaluate(piece, entropy=True, value=True, readings=objective.readings)
            loss, _ = term.per_token(now, piece, name, planning)
            for t in range(piece.mask.shape[1]):
                if piece.mask[0, t]:
                    total = total + piece.planned[f"{name}/weight"][0, t] * loss[0, t]
    if total.requires_grad:
        total.backward()
    _same(_found(total, policy), fast, "second opinion: token by token, each row alone", case)
