"""The eight laws. Each takes an algorithm and raises `LawBroken` with one sentence that says which property broke, and where."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.estimator import CurrentPolicy, Everything, Objective, Planning, PolicyGradient, Progress
from unipg.lab import gradients
from unipg.lab.strings import BigramPolicy, StringExperience, StringProblem
from unipg.seeding import generator
from unipg.training.optimization import OptimizerRecipe
from unipg.training.trainer import Stopped, Trainer, TrainingRecipe
from unipg.trajectories import Evaluation, Source, Trajectories

TOLERANCE = 1e-10
"""Largest relative difference of two float64 gradients that must be equal."""
VOCABULARY = 5
SETTING = Setting(max_new_tokens=6)


class LawBroken(AssertionError):
    """A law does not hold; the message says which one and how."""


# ---------------------------------------------------------------------------------------------------- what the laws run on


def random_batch(algorithm: Algorithm, seed: int = 0, groups: int = 4) -> Trajectories:
    """A batch with everything an algorithm may read: groups, both sources, several turns, rows of any length, an empty row."""
    draw = generator(seed, "law batch")

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    rollouts = min(max(algorithm.rollouts, algorithm.needs_group), 4) if algorithm.uses_rollouts else 0
    rows: list[tuple[int, Source, int, list[int]]] = []
    for group in range(groups):
        prompt = integer(1, 3)
        rows += [(group, Source.ROLLOUT, prompt, [int(integer(0, 4) > 0) for _ in range(integer(1, 6))]) for _ in range(rollouts)]
        if algorithm.demonstrations != "none":
            rows.append((group, Source.DEMONSTRATION, prompt, [1] * integer(1, 6)))
    if rollouts:
        rows[0] = (*rows[0][:3], [0])  # a row in which the policy did nothing
    width = max(prompt + len(turns) for _, _, prompt, turns in rows)
    shape = (len(rows), width)
    action = torch.randint(0, VOCABULARY, shape, generator=draw)
    mask = torch.zeros(shape, dtype=torch.bool)
    present = torch.zeros(shape, dtype=torch.bool)
    for row, (_, _, prompt, turns) in enumerate(rows):
        mask[row, prompt : prompt + len(turns)] = torch.tensor(turns, dtype=torch.bool)
        present[row, : prompt + len(turns)] = True
    steps = torch.arange(width)
    last = torch.where(mask, steps, -1).amax(1, keepdim=True)
    policy = BigramPolicy(VOCABULARY, seed)
    source = torch.tensor([int(s) for _, s, _, _ in rows])
    reward = torch.randint(0, 2, (len(rows),), generator=draw).double()
    reward[source == int(Source.DEMONSTRATION)] = 1.0
    batch = Trajectories(
        action=action,
        mask=mask,
        present=present,
        group=torch.tensor([g for g, _, _, _ in rows]),
        source=source,
        reward=reward,
        terminated=steps == last,
    )
    with torch.no_grad():
        log_prob = policy.evaluate(batch).log_prob

    def near() -> Tensor:
        return torch.where(mask, log_prob + 0.3 * torch.randn(shape, dtype=torch.float64, generator=draw), 0)

    return batch.replace(
        behaviour_log_prob=near(),
        old_log_prob=near(),
        anchor_log_prob=near(),
        value=torch.where(mask, torch.randn(shape, dtype=torch.float64, generator=draw), 0),
    )


def gradient(
    objective: Objective,
    policy: BigramPolicy,
    batch: Trajectories,
    planning: Planning | None = None,
    cuts: list[Tensor] | None = None,
    disturb: Callable[[Evaluation, Trajectories], Evaluation] | None = None,
) -> Tensor:
    """[P] gradient of a prepared batch, in the given micro-batches."""
    planning = planning or Planning(Progress(1, 4))
    planned = objective.plan(batch, planning)
    policy.module.zero_grad(set_to_none=True)
    for rows in cuts if cuts is not None else [torch.arange(len(batch))]:
        piece = planned.select(rows)
        now = policy.evaluate(piece, entropy=True, value=True)
        objective.loss(disturb(now, piece) if disturb else now, piece, planning).backward()
    parameters = [policy.logits, policy.value]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def prepared(algorithm: Algorithm, batch: Trajectories, planning: Planning | None = None) -> tuple[Objective, Trajectories]:
    return gradients.prepared(algorithm, batch, SETTING, planning or Planning(Progress(1, 4)))


def _same(expected: Tensor, found: Tensor, sentence: str) -> None:
    scale = max(float(expected.abs().max()), 1e-3)
    difference = float((expected - found).abs().max()) / scale
    if not difference <= TOLERANCE:
        raise LawBroken(f"{sentence}: the gradient differs by {difference:.2e} of its largest entry (allowed {TOLERANCE:.0e})")


# ---------------------------------------------------------------------------------------------------- the laws


def split(algorithm: Algorithm, seed: int = 0) -> None:
    """1. The gradient does not change with micro-batching, padding, row order or number of workers."""
    batch = random_batch(algorithm, seed)
    policy = BigramPolicy(VOCABULARY, seed)
    objective, ready = prepared(algorithm, batch)
    whole = gradient(objective, policy, ready)
    draw = generator(seed, "cuts")
    for parts in (2, 3, len(batch)):
        order = torch.randperm(len(batch), generator=draw)
        cuts = [c for c in order.tensor_split(parts) if len(c)]
        _same(whole, gradient(objective, policy, ready, cuts=cuts), f"split: {parts} micro-batches of {len(batch)} rows in another order")
    shuffled = torch.randperm(len(batch), generator=draw)
    objective, ready = prepared(algorithm, batch.select(shuffled))
    _same(whole, gradient(objective, policy, ready), "split: rows in another order before planning")
    objective, ready = prepared(algorithm, _padded(batch, 3))
    _same(whole, gradient(objective, policy, ready), "split: three more columns of padding")
    for workers in (2, 3):
        _same(whole, _over_workers(algorithm, policy, batch, workers), f"split: {workers} workers")


def _padded(batch: Trajectories, columns: int) -> Trajectories:
    wide = torch.zeros(1, batch.mask.shape[1] + columns, dtype=torch.bool)
    filler = Trajectories(action=wide.long(), mask=wide, present=wide, reward=torch.zeros(1, dtype=torch.float64))
    return Trajectories.join([batch, filler]).select(torch.arange(len(batch)))


def _over_workers(algorithm: Algorithm, policy: BigramPolicy, batch: Trajectories, workers: int) -> Tensor:
    """The sum of the gradients of workers that hold whole groups and share only counts."""
    assert batch.group is not None
    groups = batch.group
    shared = _SharedSum(workers)
    found: list[Tensor | BaseException] = [torch.zeros(())] * workers

    def work(rank: int) -> None:
        try:
            mine = batch.select((groups % workers == rank).nonzero().squeeze(-1))
            planning = Planning(Progress(1, 4), lambda counts: shared.sum(rank, counts))
            objective, ready = prepared(algorithm, mine, planning)
            own = BigramPolicy(VOCABULARY)
            own.module.load_state_dict(policy.module.state_dict())
            found[rank] = gradient(objective, own, ready, planning)
        except BaseException as error:
            found[rank] = error
            shared.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = torch.zeros_like(torch.cat([p.detach().flatten() for p in (policy.logits, policy.value)]))
    for part in found:
        if isinstance(part, BaseException):
            raise LawBroken(f"split: a worker among {workers} failed: {part!r}") from part
        total = total + part
    return total


class _SharedSum:
    """Sums tensors over threads that all call it equally often."""

    def __init__(self, workers: int) -> None:
        self.barrier, self.parts = threading.Barrier(workers, timeout=20), [torch.zeros(())] * workers

    def sum(self, rank: int, counts: Tensor) -> Tensor:
        self.parts[rank] = counts
        self.barrier.wait()
        total = torch.stack(list(self.parts)).sum(0)
        self.barrier.wait()
        return total


def silence(algorithm: Algorithm, seed: int = 0) -> None:
    """2. NaN, inf and garbage where the policy did not act change nothing."""
    batch = random_batch(algorithm, seed)
    policy = BigramPolicy(VOCABULARY, seed)
    objective, ready = prepared(algorithm, batch)
    whole = gradient(objective, policy, ready)
    for value in (float("nan"), float("inf"), -float("inf"), 1e30):

        def spoil(tensor: Tensor | None, value: float = value) -> Tensor | None:
            return None if tensor is None else torch.where(batch.mask, tensor, value)

        def spoil_now(now: Evaluation, piece: Trajectories, value: float = value) -> Evaluation:
            return Evaluation(*(None if t is None else torch.where(piece.mask, t, value) for t in (now.log_prob, now.entropy, now.value)))  # type: ignore[arg-type]

        names = ("behaviour_log_prob", "old_log_prob", "anchor_log_prob", "value")
        dirty = batch.replace(
            **{n: spoil(getattr(batch, n)) for n in names},
            step_reward=torch.where(batch.mask, 0.0, value).double(),
            bootstrap_value=torch.where(batch.mask, 0.0, value).double(),
            action=torch.where(batch.present, batch.action, VOCABULARY + 7),  # type: ignore[arg-type]
        )
        objective, ready = prepared(algorithm, dirty)
        found = gradient(objective, policy, ready, disturb=spoil_now)
        if not bool(torch.isfinite(found).all()):
            raise LawBroken(f"silence: {value} where the mask is 0 makes the gradient {float(found[~torch.isfinite(found)][0])}")
        _same(whole, found, f"silence: {value} where the mask is 0")


def exactness(algorithm: Algorithm, seed: int = 0) -> float:
    """3. On a problem that can be enumerated, the expected gradient points exactly along the gradient of the expected reward; an
    algorithm that states a bias (`Algorithm.bias`) must have one. Returns the cosine."""
    problem = StringProblem(
        vocabulary=2, prompts=(0,), length=2, reward=lambda prompt, answer: float((0, 0.2, 0.5, 1)[2 * answer[0] + answer[1]])
    )
    if algorithm.counts_successes:
        problem = dataclasses.replace(problem, reward=lambda prompt, answer: float(answer[0] == answer[1]))
    policy = BigramPolicy(2, seed)
    answers = problem.answers()
    size = max(2, algorithm.needs_group) if algorithm.uses_rollouts else 0
    if size:
        algorithm = dataclasses.replace(algorithm, rollouts=size)
    demonstrations = [problem.best_answer(0)] if algorithm.demonstrations != "none" else []
    with torch.no_grad():
        p = problem.probabilities(policy, 0)
    total = torch.zeros(6, dtype=torch.float64)
    for chosen in itertools.product(range(len(answers)), repeat=size):
        rows = [(0, answers[i]) for i in chosen] + [(0, d) for d in demonstrations]
        source = [Source.ROLLOUT] * size + [Source.DEMONSTRATION] * len(demonstrations)
        batch = problem.batch(rows, [0] * len(rows), source)
        with torch.no_grad():
            log_prob = policy.evaluate(batch).log_prob
        batch = batch.replace(
            old_log_prob=log_prob, behaviour_log_prob=log_prob, anchor_log_prob=log_prob, value=torch.zeros_like(log_prob)
        )
        objective, ready = prepared(algorithm, batch)
        total += float(p[list(chosen)].prod()) * gradient(objective, policy, ready)
    policy.module.zero_grad(set_to_none=True)
    if size:
        (-problem.expected_reward(policy)).backward()
    else:
        (-problem.probabilities(policy, 0)[answers.index(demonstrations[0])].log()).backward()
    exact = policy.logits.grad
    assert exact is not None
    found = total[:4]
    cosine = float(torch.nn.functional.cosine_similarity(found, exact.flatten(), dim=0))
    if not algorithm.bias and not cosine > 1 - TOLERANCE:
        raise LawBroken(f"exactness: the expected gradient has cosine {cosine:.12f} to the exact one, and no bias is stated")
    if algorithm.bias and cosine > 1 - TOLERANCE:
        raise LawBroken("exactness: a bias is stated, but the expected gradient points exactly along the exact one")
    return cosine


def agreement(algorithm: Algorithm, seed: int = 0) -> None:
    """4. Configurations that must coincide do: at pi_theta = pi_old every ratio method has the plain on-policy gradient; both surrogates
    have the same gradient everywhere."""
    batch = random_batch(algorithm, seed)
    policy = BigramPolicy(VOCABULARY, seed)
    objective, ready = prepared(algorithm, batch)
    for surrogate in ("score", "ratio"):
        other = Objective(
            tuple(dataclasses.replace(t, surrogate=surrogate) if isinstance(t, PolicyGradient) else t for t in objective.terms)
        )
        _same(gradient(objective, policy, ready), gradient(other, policy, ready), f"agreement: surrogate '{surrogate}'")
    with torch.no_grad():
        on_policy = batch.replace(old_log_prob=policy.evaluate(batch).log_prob)
    objective, ready = prepared(algorithm, on_policy)
    plain = Objective(
        tuple(
            dataclasses.replace(t, mask=Everything(), reference=CurrentPolicy())
            if isinstance(t, PolicyGradient) and "old_log_prob" in t.reads
            else t
            for t in objective.terms
        )
    )
    _same(
        gradient(plain, policy, ready),
        gradient(objective, policy, ready),
        "agreement: at pi_theta = pi_old, against the on-policy gradient",
    )


def emptiness(algorithm: Algorithm, seed: int = 0) -> None:
    """5. A group, a source or a batch with nothing in it gives exactly zero and a usable graph."""
    batch = random_batch(algorithm, seed)
    policy = BigramPolicy(VOCABULARY, seed)
    nothing = batch.replace(mask=torch.zeros_like(batch.mask))
    objective = algorithm.terms(SETTING)
    for what, empty in (("a batch whose mask is 0 everywhere", nothing), ("a batch without rows", batch.select([]))):
        found = gradient(objective, policy, objective.prepare(_with_gates(objective, empty)))
        if bool((found != 0).any()) or not bool(torch.isfinite(found).all()):
            raise LawBroken(f"emptiness: {what} gives a gradient of {float(found.abs().max())}, not exactly 0")
    for source in (Source.ROLLOUT, Source.DEMONSTRATION):
        objective, ready = prepared(algorithm, batch)
        rest = ready.select(~ready.rows_from(source))
        found = gradient(objective, policy, rest)
        if not bool(torch.isfinite(found).all()):
            raise LawBroken(f"emptiness: without any row from {source.name.lower()} the gradient is not finite")


def _with_gates(objective: Objective, batch: Trajectories) -> Trajectories:
    """Gate weights of 1 for a batch that the algorithm itself would refuse to prepare."""
    names = {t.row_weight for t in objective.terms if t.row_weight}
    return batch.replace(planned={name: torch.ones(len(batch), dtype=torch.float64) for name in names})


def _trainer(algorithm: Algorithm, folder: Path, iterations: int, rate: float, epochs: int = 1, minibatches: int = 1) -> Trainer:
    policy = BigramPolicy(4, seed=1)
    anchor = BigramPolicy(4, seed=1)
    anchor.module.requires_grad_(False)
    return Trainer(
        algorithm,
        policy,
        StringExperience(StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2), prompts=6),
        folder=folder,
        training=TrainingRecipe(iterations=iterations, epochs=epochs, minibatches=minibatches, micro_batch_tokens=64),
        optimizer=OptimizerRecipe(learning_rate=rate),
        anchor=anchor,
        seed=3,
    )


def learning(algorithm: Algorithm, iterations: int = 60, rate: float = 0.15, goal: float = 0.9) -> float:
    """6. The algorithm solves a trivial task in seconds: repeat the prompt's token twice. Returns the exact expected reward reached."""
    if algorithm.uses_rollouts:  # the same budget for all
        algorithm = dataclasses.replace(algorithm, rollouts=max(algorithm.rollouts, 8))
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(algorithm, Path(folder), iterations, rate)
        assert isinstance(trainer.experience, StringExperience)
        assert isinstance(trainer.policy, BigramPolicy)
        problem = trainer.experience.problem
        before = float(problem.expected_reward(trainer.policy).detach())
        trainer.train()
        after = float(problem.expected_reward(trainer.policy).detach())
    if not after >= goal:
        raise LawBroken(f"learning: the expected reward went from {before:.3f} to {after:.3f}, not to {goal}")
    return after


def resume(algorithm: Algorithm, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """7. Stopping and continuing anywhere, also in the middle of re-using a batch, gives bit-identical weights."""

    def weights(trainer: Trainer) -> dict[str, Any]:
        return {k: v.clone() for k, v in trainer.policy.module.state_dict().items()}

    with tempfile.TemporaryDirectory() as folder:
        straight = _trainer(algorithm, Path(folder) / "straight", 3, 0.05, epochs=2, minibatches=2)
        straight.train()
        expected = weights(straight)
        for stop in steps:
            place = Path(folder) / f"stop{stop}"
            first = _trainer(algorithm, place, 3, 0.05, epochs=2, minibatches=2)
            first.stop_after_steps = stop
            try:
                first.train()
            except Stopped:
                pass
            else:
                raise LawBroken(f"resume: the run did not stop after {stop} optimiser steps")
            second = _trainer(algorithm, place, 3, 0.05, epochs=2, minibatches=2)
            second.resume()
            second.train()
            for name, value in weights(second).items():
                if not torch.equal(value, expected[name]):
                    raise LawBroken(f"resume: after a stop at optimiser step {stop}, '{name}' is not bit-identical")


def second_opinion(algorithm: Algorithm, seed: int = 0) -> None:
    """8. The vectorised loss agrees with a naive one: token by token, each row alone, with plain Python sums."""
    batch = random_batch(algorithm, seed)
    policy = BigramPolicy(VOCABULARY, seed)
    objective, ready = prepared(algorithm, batch)
    planning = Planning(Progress(1, 4))
    planned = objective.plan(ready, planning)
    fast = gradient(objective, policy, ready)
    policy.module.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch)):
        piece = planned.select([row])
        for name, term in objective.named():
            now = policy.evaluate(piece, entropy=True, value=True)
            loss, _ = term.per_token(now, piece, name, planning)
            for step in range(piece.mask.shape[1]):
                if piece.mask[0, step]:
                    total = total + piece.planned[f"{name}/weight"][0, step] * loss[0, step]
    if total.requires_grad:
        total.backward()
    parameters = [policy.logits, policy.value]
    slow = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    _same(slow, fast, "second opinion: token by token")


LAWS: dict[str, Callable[[Algorithm], Any]] = {
    "split": split,
    "silence": silence,
    "exactness": exactness,
    "agreement": agreement,
    "emptiness": emptiness,
    "learning": learning,
    "resume": resume,
    "second_opinion": second_opinion,
}


def check(algorithm: Algorithm) -> None:
    """Runs every law; raises `LawBroken` at the first that does not hold."""
    for law in LAWS.values():
        law(algorithm)
