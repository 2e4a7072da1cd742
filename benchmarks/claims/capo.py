"""The claim of CAPO (arXiv 2510.00819): what its model of the last layer predicts, and whether masking by it stops a collapse.

    python benchmarks/claims/capo.py            the whole claim, written to benchmarks/results/capo.{json,md,png}
    python benchmarks/claims/capo.py --quick    does it run? The numbers mean nothing

Asserted: on the digits toy m_F ranks the real KL divergence of single-token steps, the exact model better than its one-sample estimate, and
has the right size where only the head moves; on exact bandits kept tokens never lower the expected reward beyond the bound. Reported:
training at aggressive learning rates on the digits toy, on a linear softmax policy (where the model is exact) and on a small transformer.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import digits
import string_operations as strings
import torch
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, gains, main, number
from torch import Tensor, nn

from unipg.algorithms import Setting, algorithm_named
from unipg.algorithms.base import Algorithm
from unipg.algorithms.language.capo import CAPO
from unipg.estimator import Planning, Progress
from unipg.estimator.curvature import ADVANTAGE, LastLayerStep
from unipg.estimator.likelihoods import Reading, categorical_log_prob, position_keys, read_off
from unipg.lab import BigramPolicy, StringProblem
from unipg.lab.gradients import selected
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand, EvaluationResult, Experience
from unipg.seeding import generator
from unipg.training.observer import Observer
from unipg.training.optimization import OptimizerRecipe
from unipg.training.trainer import Trainer, TrainingRecipe
from unipg.trajectories import Evaluation, Trajectories

GRPO = algorithm_named("grpo")
SINGLE_STEP = 0.02
"""Learning rate of the single-token steps."""

# ---------------------------------------------------------------------------------------------------------------------- A, B: the model


class Readable(digits.DigitPolicy):
    """The digits policy with its last hidden states."""

    def __init__(self, network: digits.Network) -> None:
        self.module = network

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        now = super().evaluate(batch, entropy=entropy, value=value)
        if not readings:
            return now
        seen: list[Tensor] = []
        head = self.module.layers[-1]
        watching = head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
        logits = nn.functional.pad(self.module(batch.action[:, :3], batch.action[:, 3:5]), (0, 0, 3, 0))
        watching.remove()
        hidden = seen[0][batch.mask[:, 3:]]
        return dataclasses.replace(now, read=read_off(logits, batch.action, batch, readings, hidden, head.weight))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def divergences(policy: Readable, batch: Trajectories, advantage: Tensor, places: list[tuple[int, int]], head_only: bool) -> Tensor:
    """[N] KL(pi || pi after) at each place, after one step of plain gradient ascent on that token alone."""
    head = policy.module.layers[-1].weight
    parameters = [head] if head_only else list(policy.module.parameters())
    found = []
    for row, step in places:
        prompt, before = batch.action[row : row + 1, :3], batch.action[row : row + 1, 3:5]
        log_p = policy.module(prompt, before)[0, step - 3].log_softmax(-1)
        slopes = torch.autograd.grad(advantage[row, step] * log_p[batch.action[row, step]], parameters)
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.add_(slope, alpha=SINGLE_STEP)
            moved = policy.module(prompt, before)[0, step - 3].log_softmax(-1)
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.sub_(slope, alpha=SINGLE_STEP)
        found.append((log_p.exp() * (log_p - moved)).sum().detach())
    return torch.stack(found)


def diagnose(toy: digits.Toy, seed: int, told: Told, tokens: int) -> dict[str, Any]:
    """Predicted against real divergences of single-token steps of the warmed-up policy, in float64."""
    policy = Readable(copy.deepcopy(warm(toy, seed)).double())
    batch, _ = digits.Digits(digits.UniformSampler(1000, seed), 4 * toy.prompts).collect(policy, Demand(0, rollouts=8, seed=seed))
    batch = GRPO().terms(Setting(3)).prepare(batch.replace(reward=batch.total_reward().double()))
    reading, advantage = LastLayerStep(SINGLE_STEP), batch.planned[ADVANTAGE]
    with torch.no_grad():
        ready = batch.with_planned(position_key=position_keys(batch, 0))
        found = policy.evaluate(ready, readings=[reading]).reading(reading)
    candidates = (batch.mask & (advantage != 0)).nonzero()
    order = torch.randperm(len(candidates), generator=generator(seed, "tokens"))[:tokens]
    places = [(int(row), int(step)) for row, step in candidates[order]]
    index = tuple(torch.tensor(places).T)
    shift, expected = found["predicted_shift"][index], found["expected_shift"][index]
    head = divergences(policy, batch, advantage, places, head_only=True)
    told(0.5)
    everything = divergences(policy, batch, advantage, places, head_only=False)
    return {
        "score": rank_correlation(shift, everything),
        "head": rank_correlation(shift, head),
        "exact": rank_correlation(expected, everything),
        "exact_head": rank_correlation(expected, head),
        "ratio_head": float((head / expected).median()),
        "ratio_all": float((everything / expected).median()),
        "start": policy.accuracy(),
        "tokens": len(places),
    }


def thresholds(toy: digits.Toy, seed: int) -> dict[str, Any]:
    """One batch under many thresholds: the rejected share of each, and by how much the largest kept m_F is below it."""
    policy = Readable(copy.deepcopy(warm(toy, seed)))
    batch, _ = digits.Digits(digits.UniformSampler(1000, seed), toy.prompts).collect(policy, Demand(0, rollouts=8, seed=seed))
    ready = GRPO().terms(Setting(3)).prepare(batch)
    shares, below = [], []
    for power in range(-9, 0):
        planning = Planning(Progress(0, 1, toy.learning_rate * 10))
        capo = CAPO(model="sgd", delta_f=10.0**power, delta_h=0.0)
        selected(capo, policy, ready, planning)
        said = planning.memory["capo"]["told"][0]
        shares.append(said["rejected"])
        below.append(said.get("shift_kept_max", 0.0) < 10.0**power)
    return {"shares": shares, "falls": float(shares == sorted(shares, reverse=True)), "below": float(all(below))}


# ---------------------------------------------------------------------------------------------------------------------- exact steps


def bandits(seed: int, told: Told, count: int) -> dict[str, Any]:
    """Single steps of plain gradient ascent from 8 rollouts on bandits with 5 arms: changes of the exact expected reward over the bound
    range(R) · sqrt(delta / 2), with CAPO's kept tokens and with all of them."""
    rate, delta = 4.0, 0.005
    methods = {"capo": CAPO(model="sgd", delta_f=delta, delta_h=0.0), "grpo": GRPO()}
    changes: dict[str, list[float]] = {name: [] for name in methods}
    for bandit in range(count):
        draw = generator(seed, "bandit", bandit)
        worth = torch.rand(5, generator=draw, dtype=torch.float64)
        problem = StringProblem(vocabulary=5, prompts=(0,), length=1, reward=lambda prompt, answer, worth=worth: float(worth[answer[0]]))
        policy = BigramPolicy(5, 1000 * seed + bandit, scale=1.0)
        taken = torch.multinomial(policy.logits[0].detach().softmax(0), 8, replacement=True, generator=draw)
        batch = problem.batch([(0, (int(arm),)) for arm in taken], [0] * 8)
        bound = float(worth.max() - worth.min()) * math.sqrt(delta / 2)
        for name, algorithm in methods.items():
            objective, planning = algorithm.terms(Setting(1)), Planning(Progress(0, 1, rate))
            ready = objective.prepare(algorithm.prepare(batch, Setting(1), planning), planning)
            planned = objective.plan(selected(algorithm, policy, ready, planning), planning)
            loss = objective.loss(policy.evaluate(planned), planned, planning)
            moved = policy.twin()
            with torch.no_grad():
                moved.logits.sub_(torch.autograd.grad(loss, policy.logits)[0], alpha=rate)
                change = problem.expected_reward(moved) - problem.expected_reward(policy)
            changes[name].append(float(change) / bound)
        told((bandit + 1) / count)
    return {
        "score": min(changes["capo"]),
        "worst_grpo": min(changes["grpo"]),
        "broken_grpo": sum(change < -1 for change in changes["grpo"]) / count,
        "moved_capo": sum(change != 0 for change in changes["capo"]) / count,
        "gained_capo": sum(change > 0 for change in changes["capo"]) / count,
    }


# ---------------------------------------------------------------------------------------------------------------------- linear softmax


class LinearPolicy(Policy):
    """log pi(action | state) = log softmax(W x(state)), with fixed features x [60,48] and W [20,48], in float64."""

    def __init__(self, seed: int) -> None:
        self.features = torch.randn(60, 48, generator=generator(seed, "features"), dtype=torch.float64)
        self.right = torch.randint(20, (60,), generator=generator(seed, "right"))
        self.weight = nn.Parameter(torch.zeros(20, 48, dtype=torch.float64))
        self.module = nn.ParameterDict({"weight": self.weight})
        optimizer = torch.optim.SGD([self.weight], lr=0.1)
        while self.expected_reward() < 0.2:
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.features @ self.weight.T, self.right).backward()
            optimizer.step()

    def expected_reward(self) -> float:
        with torch.no_grad():
            return float((self.features @ self.weight.T).softmax(-1)[torch.arange(60), self.right].mean())

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        states = self.features[batch.require("observation", "LinearPolicy")]
        logits = states @ self.weight.T
        log_prob, h = categorical_log_prob(logits, batch.action, entropy=entropy)
        read = read_off(logits, batch.action, batch, readings, states[batch.mask], self.weight)
        return Evaluation(log_prob, h if entropy else None, None, read).where(batch.mask)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


class States(Experience):
    """16 states a batch, one step each; 1 for the right action."""

    max_new_tokens = 1

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        assert isinstance(policy, LinearPolicy)
        draw = generator(demand.seed, "states", demand.iteration)
        state = torch.randperm(60, generator=draw)[:16].repeat_interleave(demand.rollouts)
        with torch.no_grad():
            chances = (policy.features[state] @ policy.weight.T).softmax(-1)
        action = torch.multinomial(chances, 1, generator=draw)
        batch = Trajectories(
            action=action,
            mask=torch.ones_like(action, dtype=torch.bool),
            observation=state.unsqueeze(1),
            group=torch.arange(16).repeat_interleave(demand.rollouts),
            reward=(action[:, 0] == policy.right[state]).double(),
        )
        return batch, {}

    def evaluate(self, policy: Policy, seed: int, progress: Any = None) -> list[EvaluationResult]:
        return []


class Exact(Observer):
    """Keeps the exact expected reward and the metrics after each update."""

    def __init__(self, policy: LinearPolicy, told: Told) -> None:
        self.policy, self.told, self.rows = policy, told, list[dict[str, Any]]()
        self.rewards = [policy.expected_reward()]

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self.rows.append(metrics)
        self.rewards.append(self.policy.expected_reward())
        self.told(done / total)


def linear(algorithm: Algorithm, share: float, recipe: OptimizerRecipe, updates: int, seed: int, told: Told) -> dict[str, Any]:
    """Training of the linear policy. `share`: a fixed delta_F that rejects this share of the first batch's tokens with an advantage; 0
    for the algorithm's own thresholds."""
    policy = LinearPolicy(seed)
    if share:
        batch, _ = States().collect(policy, Demand(0, rollouts=8, seed=seed))
        planning = Planning(Progress(0, updates, recipe.learning_rate))
        ready = GRPO().terms(Setting(1)).prepare(batch)
        selected(CAPO(model="sgd", reject=share), policy, ready, planning)
        algorithm = dataclasses.replace(algorithm, delta_f=planning.memory["capo"]["told"][0]["delta_f"])  # type: ignore[call-arg]
    watch = Exact(policy, told)
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingRecipe(updates, save_every=updates)
        Trainer(algorithm, policy, States(), folder=Path(folder), training=training, optimizer=recipe, seed=seed, observer=watch).train()
    drops = [after - before for before, after in itertools.pairwise(watch.rewards)]
    return {
        "score": watch.rewards[-1],
        "curve": {str(step): watch.rewards[step] for step in range(0, updates + 1, max(1, updates // 10))},
        "worst": min(drops),
        "rejected": sum(row.get("curvature/rejected", 0.0) for row in watch.rows) / updates,
    }


# ---------------------------------------------------------------------------------------------------------------------- larger policies

_WARM: dict[int, digits.Network] = {}
_BASES: dict[int, Any] = {}


def warm(toy: digits.Toy, seed: int) -> digits.Network:
    """The digits network of a seed after its warm start."""
    if seed not in _WARM:
        module = digits.warm_policy(toy, seed).module
        assert isinstance(module, digits.Network)
        _WARM[seed] = module
    return _WARM[seed]


def on_digits(toy: digits.Toy, algorithm: Algorithm, seed: int, told: Told) -> dict[str, Any]:
    policy = Readable(copy.deepcopy(warm(toy, seed)))
    watch = digits.trained(toy, algorithm, policy, toy.updates, toy.learning_rate, seed, told)
    return {"score": policy.accuracy(), "curve": watch.scores, "rejected": watch.mean("curvature/rejected")}


def on_strings(toy: strings.Toy, algorithm: Algorithm, rate: float, seed: int, told: Told) -> dict[str, Any]:
    """A small transformer, cosine schedule with a tenth of warm-up, as published."""
    if seed not in _BASES:
        _BASES[seed] = strings.train_base(toy, seed, lambda share: None)[0]
    policy = copy.deepcopy(_BASES[seed])
    task, held_out = strings.post_training_tasks(toy, seed)
    began, curve = time.process_time(), strings.Curve(told, [1.0] * toy.steps)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            algorithm,
            policy,
            strings.experience_of(toy, task, toy.prompts, held_out, seed),
            folder=Path(folder),
            training=TrainingRecipe(toy.steps, toy.prompts, save_every=toy.steps, evaluate_every=toy.window),
            optimizer=OptimizerRecipe(learning_rate=rate, schedule="cosine", warmup=toy.steps // 10),
            seed=seed,
            observer=curve,
        ).train()
    scores = {
        str(step): sum(of[strings.SAMPLED] for of in by_operation.values()) / len(by_operation)
        for step, by_operation in curve.scores.items()
    }
    rejected = [row.get("curvature/rejected", 0.0) for row in curve.rows]
    return {
        "score": scores[str(toy.steps)],
        "curve": scores,
        "rejected": sum(rejected) / len(rejected),
        "rejected_peak": max(rejected),
        "cpu_seconds": time.process_time() - began,
    }


# ---------------------------------------------------------------------------------------------------------------------- the claim


def build(chosen: argparse.Namespace) -> Claim:
    quick = chosen.quick
    toy = digits.Toy(learning_rate=5e-3, **(digits.QUICK if quick else {"updates": 40, "window": 5}))
    sizes = {"steps": 4, "base_steps": 4, "items": 60, "held_out": 4} if quick else {"steps": 100, "base_steps": 150, "held_out": 100}
    small = strings.Toy(prompts=8, window=2 if quick else 20, base_frequencies=strings.COMPETENT, **sizes)
    updates = 5 if quick else 300
    sgd = OptimizerRecipe(kind="sgd", learning_rate=20.0, clip_norm=None)
    adam = OptimizerRecipe(learning_rate=0.2, clip_norm=None)
    plain, follow = GRPO(), CAPO()
    ascent = partial(CAPO, model="sgd", delta_h=0.0, patience=10**6)

    methods: dict[str, tuple[Method, Any]] = {}

    def add(name: str, title: str, run: Any, cost: float, algorithm: Algorithm | None = None, note: str = "") -> None:
        settings = None if algorithm is None else {"algorithm": algorithm.name, "settings": dataclasses.asdict(algorithm)}
        methods[name] = Method(title, settings, note, cost), run

    add(
        "model",
        "A, B: the model of the last layer, on digits",
        lambda seed, told: diagnose(toy, seed, told, 20 if quick else 120) | thresholds(toy, seed),
        6,
        note="score: rank correlation of m_F with the KL divergence of the same token's step in all layers",
    )
    add(
        "bandits",
        "exact bandits, single steps",
        lambda seed, told: bandits(seed, told, 10 if quick else 300),
        6,
        note="score: CAPO's worst change of the expected reward, in units of the bound",
    )
    for name, title, algorithm, share, recipe in (
        ("linear/grpo", "linear softmax, SGD 20: GRPO", plain, 0.0, sgd),
        ("linear/capo", "linear softmax, SGD 20: CAPO, thresholds follow", ascent(reject=0.05), 0.0, sgd),
        ("linear/capo_5", "linear softmax, SGD 20: CAPO, delta_F rejects 5 % of the first batch", ascent(), 0.05, sgd),
        ("linear/capo_20", "linear softmax, SGD 20: CAPO, delta_F rejects 20 % of the first batch", ascent(), 0.2, sgd),
        ("linear/capo_50", "linear softmax, SGD 20: CAPO, delta_F rejects 50 % of the first batch", ascent(), 0.5, sgd),
        ("linear/adam_grpo", "linear softmax, Adam 0.2: GRPO", plain, 0.0, adam),
        ("linear/adam_capo", "linear softmax, Adam 0.2: CAPO, thresholds follow", CAPO(reject=0.05), 0.0, adam),
    ):
        add(name, title, partial(linear, algorithm, share, recipe, updates), 3, algorithm)
    for name, title, algorithm in (
        ("digits/grpo", "digits, 5e-3: GRPO", plain),
        ("digits/capo", "digits, 5e-3: CAPO, thresholds follow", follow),
        ("digits/capo_tail", "digits, 5e-3: CAPO, a tenth by each test", CAPO(reject=0.1)),
    ):
        add(name, title, lambda seed, told, algorithm=algorithm: on_digits(toy, algorithm, seed, told), 3, algorithm)
    for name, title, algorithm, rate in (
        ("strings/slow", "transformer, 1e-3: GRPO", plain, 1e-3),
        ("strings/grpo", "transformer, 2e-3: GRPO", plain, 2e-3),
        ("strings/capo", "transformer, 2e-3: CAPO, thresholds follow", follow, 2e-3),
        ("strings/capo_fixed", "transformer, 2e-3: CAPO, delta_F 1e-3", CAPO(delta_f=1e-3, delta_h=0.0, patience=10**6), 2e-3),
    ):
        add(name, title, lambda seed, told, algorithm=algorithm, rate=rate: on_strings(small, algorithm, rate, seed, told), 10, algorithm)

    return Claim(
        name="capo",
        title="CAPO: curvature of the last layer, and collapse",
        source="arXiv 2510.00819",
        methods={name: method for name, (method, _) in methods.items()},
        run=lambda name, seed, told: methods[name][1](seed, told),
        checks=checks,
        columns=COLUMNS,
        about=ABOUT,
        setup={"digits": dataclasses.asdict(toy), "strings": dataclasses.asdict(small), "updates": updates},
        told=told,
    )


COLUMNS = {"score": "score", "rejected": "tokens rejected", "worst": "worst update", "cpu_seconds": "seconds"}
ABOUT = (
    "Score of the trained policies: exact expected reward or accuracy, for the transformer the share of right answers on fresh prompts. "
    "Worst update: the largest fall of the exact expected reward in one update. Sizes and learning rates are far from the published ones "
    "(a 7B model): whether the collapse is prevented is reported, not asserted."
)


def checks(runs: Runs) -> list[Check | None]:
    def of(name: str, method: str = "model") -> dict[int, float]:
        return by_seed(runs, method, name)

    return [
        check("rank correlation of m_F with the KL of a step in all layers > 0.5", of("score"), lambda value: value > 0.5),
        check("the same of m_F with the KL of a step in the head > 0.5", of("head"), lambda value: value > 0.5),
        check("in the head the exact uᵀFu ranks better than its sample m_F", gains(of("exact_head"), of("head")), lambda gain: gain > 0),
        check("KL of a step in the head / predicted, median, within 10 % of 1", of("ratio_head"), lambda ratio: abs(ratio - 1) < 0.1),
        check("the largest kept m_F is below every threshold", of("below"), lambda holds: holds == 1),
        check("a larger threshold never rejects more", of("falls"), lambda holds: holds == 1),
        check("exact bandits: worst change with kept tokens / bound ≥ −1", of("score", "bandits"), lambda change: change >= -1),
        check("exact bandits: worst change of GRPO / bound < −1", of("worst_grpo", "bandits"), lambda change: change < -1),
    ]


def told(runs: Runs) -> dict[str, list[str]]:
    def mean(method: str, name: str) -> str:
        values = list(by_seed(runs, method, name).values())
        return f"{sum(values) / len(values):.3g}" if values else "none"

    def shown(ours: str, theirs: str) -> str:
        return ", ".join(f"{gain:+.3f}" for gain in difference(runs, ours, theirs).values())

    def listed(some: Runs, name: str) -> str:
        return ", ".join(f"{number(run, name):.3g}" for run in some)

    pairs = {
        "linear/capo": "linear/grpo",
        "linear/capo_5": "linear/grpo",
        "linear/capo_20": "linear/grpo",
        "linear/capo_50": "linear/grpo",
        "linear/adam_capo": "linear/adam_grpo",
        "digits/capo": "digits/grpo",
        "digits/capo_tail": "digits/grpo",
        "strings/capo": "strings/grpo",
        "strings/capo_fixed": "strings/grpo",
    }
    size = [run for run in runs if run["method"] == "model"]
    return {
        "The size of the model's predictions": [
            f"KL of a step in all layers / predicted, median, by seed: {listed(size, 'ratio_all')}; in the head alone: "
            f"{listed(size, 'ratio_head')}. It ranks steps, and underestimates their size",
        ],
        "Exact bandits": [
            f"CAPO moved the policy in {mean('bandits', 'moved_capo')} of the updates and raised the reward in "
            f"{mean('bandits', 'gained_capo')}; GRPO broke the bound in {mean('bandits', 'broken_grpo')}",
        ],
        "Reported, not asserted": [f"{ours}, minus {theirs}, by seed: {shown(ours, theirs)}" for ours, theirs in pairs.items()],
    }


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], seeds=3))
