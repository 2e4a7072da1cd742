"""The claims of f-DPG (arXiv 2302.08215) on two toys: what each f-divergence makes of the same target.

One dimension, mis-specified: the target over 0 … 20 has two modes, 0.65 N(5, 1) + 0.35 N(15, 1), the policy softmax(−((x − m) / s)² / 2)
one. Forward KL must cover both modes, reverse KL takes the larger one. The target is exact, so every divergence is too.

A tiny language model: strings of up to eight of eight letters. The base model a is trained from scratch on a random Markov chain; the
target is that of RLHF, a(x) exp(r(x) / beta), with r the larger of the shares of the letters a and b: again two modes.

    python benchmarks/claims/fdpg.py                       both, written to benchmarks/results/fdpg.{json,md,png}
    python benchmarks/claims/fdpg.py --quick               a minute: does it run? The numbers mean nothing
    python benchmarks/claims/fdpg.py --methods line/kl     some of the methods

Every run goes through the library's own loop and the registered algorithm `fdpg`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, main
from string_operations import LETTERS, StringTask, algorithm, word_tokenizer
from torch import Tensor, nn

from unipg.algorithms.base import Algorithm
from unipg.estimator.likelihoods import Reading, categorical_log_prob
from unipg.policies.base import Policy
from unipg.policies.causal_lm import CausalLanguageModel, ScratchModel, build_model
from unipg.rollouts.base import Demand, Experience
from unipg.rollouts.prompts import PromptRollouts
from unipg.rollouts.text import SamplingRecipe
from unipg.samplers.base import UniformSampler
from unipg.seeding import generator, seed_everything
from unipg.tasks.base import Item
from unipg.training.observer import Observer
from unipg.training.optimization import OptimizerRecipe
from unipg.training.trainer import Trainer, TrainingRecipe
from unipg.trajectories import Evaluation, Trajectories

TITLES = {"kl": "forward KL", "js": "Jensen-Shannon", "tv": "total variation", "reverse_kl": "reverse KL"}
BASE = "model/base"
ESTIMATED = "-estimated-z"
PROMPT, LENGTH = "<bos>", 8


@dataclass(frozen=True)
class Sizes:
    """Of both toys; the defaults are those of the claim."""

    line_steps: int = 1000
    line_samples: int = 512
    line_rate: float = 0.02
    start: tuple[float, float] = (7.0, 2.0)
    """m and s at the start."""
    model_steps: int = 200
    model_samples: int = 256
    model_rate: float = 1e-3
    beta: float = 0.05
    base_steps: int = 300
    base_samples: int = 128
    base_rate: float = 3e-3
    measured: int = 4096
    """Fresh samples that the final numbers of a model are taken on."""
    model: ScratchModel = ScratchModel("llama", hidden_size=32, layers=2, heads=2, intermediate_size=128, max_positions=16)


QUICK = {"line_steps": 20, "model_steps": 4, "base_steps": 10, "measured": 256}


class Course(Observer):
    """Tells how far a run is, keeps a number of its metrics, and looks at the policy after a quarter of the steps."""

    def __init__(self, told: Told, metric: str, look: Callable[[], dict[str, Any]] = dict) -> None:
        self.told, self.metric, self.look = told, metric, look
        self.values: list[float] = []
        self.early: dict[str, Any] = {}

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self.values.append(metrics.get(self.metric, math.nan))
        if done == total // 4:
            self.early = self.look()
        self.told(done / total)

    def curve(self, points: int = 20) -> dict[str, float]:
        """Means over equal windows of steps, by the step at which each ends."""
        size = max(1, len(self.values) // points)
        windows = range(0, len(self.values) - size + 1, size)
        return {str(first + size): sum(self.values[first : first + size]) / size for first in windows}


def trained(
    method: Algorithm, policy: Policy, experience: Experience, steps: int, prompts: int, rate: float, seed: int, course: Course
) -> None:
    """Trains in the library's loop; the optimiser is plain Adam."""
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            method,
            policy,
            experience,
            folder=Path(folder),
            training=TrainingRecipe(steps, prompts, save_every=steps),
            optimizer=OptimizerRecipe(rate, clip_norm=None),
            anchor=policy.frozen_copy(),
            seed=seed,
            observer=course,
        ).train()


# ---------------------------------------------------------------------------------------------------------------------- one dimension

POINTS = torch.arange(21, dtype=torch.float64)


def two_modes() -> Tensor:
    """[21] log p."""
    weights = 0.65 * torch.exp(-0.5 * (POINTS - 5) ** 2) + 0.35 * torch.exp(-0.5 * (POINTS - 15) ** 2)
    return (weights / weights.sum()).log()


class Line(Policy):
    """log pi(x) = log softmax(−((x − m) / s)² / 2), with m and log s learnt."""

    def __init__(self, mean: float, scale: float) -> None:
        start = torch.tensor([mean, math.log(scale)], dtype=torch.float64)
        self.module = nn.ParameterDict({"mean": nn.Parameter(start[0]), "log_scale": nn.Parameter(start[1])})

    def logits(self) -> Tensor:
        return -0.5 * ((POINTS - self.module["mean"]) / self.module["log_scale"].exp()) ** 2

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        log_prob, h = categorical_log_prob(self.logits().expand(*batch.action.shape, -1), batch.action)
        return Evaluation(log_prob, h if entropy else None)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


class Points(Experience):
    """Samples of a `Line`; what they are anchored to is the target itself, so with a reward of 0 it is P."""

    max_new_tokens = 1
    anchored = True

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        assert isinstance(policy, Line)
        log_pi = policy.logits().detach().log_softmax(0)
        action = torch.multinomial(log_pi.exp(), demand.rollouts, True, generator=generator(demand.seed, "points", demand.iteration))
        batch = Trajectories(
            action=action.unsqueeze(1),
            mask=torch.ones(len(action), 1, dtype=torch.bool),
            group=torch.zeros(len(action), dtype=torch.long),
            reward=torch.zeros(len(action), dtype=torch.float64),
            behaviour_log_prob=log_pi[action].unsqueeze(1),
            anchor_log_prob=two_modes()[action].unsqueeze(1),
        )
        return batch, {}


def on_the_line(divergence: str, known: bool, sizes: Sizes, seed: int, told: Told) -> dict[str, Any]:
    policy, log_p, course = Line(*sizes.start), two_modes(), Course(told, "entropy")
    log_z = 0.0 if known else None
    method = algorithm("fdpg", divergence=divergence, beta=1.0, conditional=False, log_z=log_z, rollouts=sizes.line_samples)
    trained(method, policy, Points(), sizes.line_steps, 1, sizes.line_rate, seed, course)
    log_pi = policy.logits().detach().log_softmax(0)
    pi, p = log_pi.exp(), log_p.exp()
    return {
        "entropy": -float((pi * log_pi).sum()),
        "mean": float(policy.module["mean"].detach()),
        "scale": float(policy.module["log_scale"].detach().exp()),
        "kl_target_policy": float((p * (log_p - log_pi)).sum()),
        "kl_policy_target": float((pi * (log_pi - log_p)).sum()),
        "curve": course.curve(),
    }


# ---------------------------------------------------------------------------------------------------------------------- a tiny model


def larger_share(answer: str, item: Item) -> float:
    """The larger of the shares of the letters a and b, of all places."""
    letters = answer.split()
    return max(letters.count("a"), letters.count("b")) / LENGTH


def corpus(sizes: Sizes, seed: int) -> StringTask:
    """Strings of a random Markov chain; all answer the same prompt."""
    draw = generator(seed, "corpus")
    chain = torch.randn(len(LETTERS) + 1, len(LETTERS), generator=draw).mul(0.7).softmax(1)
    count = sizes.base_steps * sizes.base_samples
    letters = [torch.multinomial(chain[-1], count, True, generator=draw)]
    for _ in range(LENGTH - 1):
        letters.append(torch.multinomial(chain[letters[-1]], 1, generator=draw).squeeze(1))
    texts = [" ".join(LETTERS[i] for i in row) for row in torch.stack(letters, 1).tolist()]
    return StringTask("corpus", [Item(i, PROMPT, demonstrations=(text,)) for i, text in enumerate(texts)], larger_share)


def experience_of(task: StringTask, sizes: Sizes, prompts: int, seed: int) -> PromptRollouts:
    sampling = SamplingRecipe(max_new_tokens=LENGTH + 1, batch_rows=512)
    return PromptRollouts(task, UniformSampler(len(task.items), seed), prompts=prompts, sampling=sampling)


def base_model(sizes: Sizes, seed: int, told: Told) -> CausalLanguageModel:
    seed_everything(seed, "base")
    tokenizer = word_tokenizer()
    policy = CausalLanguageModel(build_model(sizes.model, tokenizer), tokenizer)
    experience = experience_of(corpus(sizes, seed), sizes, sizes.base_samples, seed)
    course = Course(told, "entropy")
    trained(algorithm("sft"), policy, experience, sizes.base_steps, sizes.base_samples, sizes.base_rate, seed, course)
    return policy


def measured(policy: CausalLanguageModel, base: CausalLanguageModel, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Reward, entropy of whole strings and KL(pi||a) in nats, on fresh samples."""
    experience = experience_of(StringTask("strings", [Item(0, PROMPT)], larger_share), sizes, 1, seed)
    batch, _ = experience.collect(policy, Demand(iteration=10**6, rollouts=sizes.measured, seed=seed))
    assert batch.reward is not None
    with torch.no_grad():
        now, then = policy.evaluate(batch, entropy=True), base.evaluate(batch)
    reward, kl = batch.reward.double(), (now.log_prob - then.log_prob).double().sum(1)
    return {
        "entropy": float(now.entropy_of("the claim").double().sum(1).mean()),
        "reward": float(reward.mean()),
        "kl_policy_base": float(kl.mean()),
        "objective": float((reward / sizes.beta - kl).mean()),
    }


def on_the_model(divergence: str, base: CausalLanguageModel, sizes: Sizes, seed: int, told: Told) -> dict[str, Any]:
    policy = copy.deepcopy(base)
    course = Course(told, "reward/mean", lambda: measured(policy, base, sizes, seed))
    method = algorithm("fdpg", divergence=divergence, beta=sizes.beta, rollouts=sizes.model_samples)
    experience = experience_of(StringTask("strings", [Item(0, PROMPT)], larger_share), sizes, 1, seed)
    trained(method, policy, experience, sizes.model_steps, 1, sizes.model_rate, seed, course)
    return {**measured(policy, base, sizes, seed), "early": course.early, "rewards": course.curve()}


# ---------------------------------------------------------------------------------------------------------------------- the claim

KNOWN_Z = "log Z = 0 is given, for the target is normalised; an estimate of Z sees only the modes that the policy still samples"
COLUMNS = {
    "entropy": "entropy (nats)",
    "mean": "m",
    "scale": "s",
    "kl_target_policy": "KL(p, pi)",
    "kl_policy_target": "KL(pi, p)",
    "reward": "reward",
    "kl_policy_base": "KL(pi, a)",
    "objective": "reward / beta − KL(pi, a)",
    "early.reward": "reward, early",
    "early.entropy": "entropy, early",
}
ABOUT = (
    "One dimension: m and s of the policy, exact entropy and divergences at the end of training. Language model: entropy of whole strings, "
    "mean reward and KL to the base model a, on fresh samples, at the end and, early, after a quarter of the steps; reward / beta − "
    "KL(pi, a) is log Z − KL(pi, p), what reverse KL maximises. The model can represent the target, so what the divergences differ in is "
    "the way there."
)


def near(claim: str, runs: Runs, method: str, name: str, value: float, tolerance: float) -> Check | None:
    """Whether a number is the one that was found before."""
    return check(f"{claim} = {value:g} ± {tolerance:g}", by_seed(runs, method, name), lambda found: abs(found - value) <= tolerance)


def more(claim: str, runs: Runs, method: str, other: str, name: str, least: float = 0.0) -> Check | None:
    return check(claim, difference(runs, method, other, name), lambda gap: gap >= least)


def checks(runs: Runs) -> list[Check | None]:
    """The claims, piece by piece."""
    kl, reverse = "line/kl", "line/reverse_kl"
    found = [
        near("line, forward KL: m", runs, kl, "mean", 7.7, 0.3),
        near("line, forward KL: s", runs, kl, "scale", 6.1, 0.3),
        near("line, forward KL: entropy", runs, kl, "entropy", 2.94, 0.03),
        near("line, forward KL: KL(p, pi)", runs, kl, "kl_target_policy", 0.88, 0.03),
        near("line, forward KL: KL(pi, p)", runs, kl, "kl_policy_target", 2.86, 0.15),
        near("line, reverse KL: m", runs, reverse, "mean", 5.0, 0.05),
        near("line, reverse KL: s", runs, reverse, "scale", 1.0, 0.05),
        near("line, reverse KL: entropy", runs, reverse, "entropy", 1.42, 0.03),
        near("line, reverse KL: KL(pi, p)", runs, reverse, "kl_policy_target", math.log(1 / 0.65), 0.01),
        near("line, reverse KL: KL(p, pi)", runs, reverse, "kl_target_policy", 16.85, 0.6),
        near("line, total variation: entropy", runs, "line/tv", "entropy", 1.7, 0.15),
        more("line: entropy of forward KL > total variation", runs, kl, "line/tv", "entropy"),
        more("line: entropy of total variation > reverse KL", runs, "line/tv", reverse, "entropy"),
    ]
    names = {name: f"model/{name}" for name in TITLES}
    for text, first, second, number in (
        ("reward of reverse KL ≥ JS", "reverse_kl", "js", "reward"),
        ("reward of JS > forward KL", "js", "kl", "reward"),
        ("entropy of forward KL > JS", "kl", "js", "entropy"),
        ("entropy of JS > reverse KL", "js", "reverse_kl", "entropy"),
    ):
        found.append(more(f"model, a quarter of the steps: {text}", runs, names[first], names[second], f"early.{number}"))
        found.append(more(f"model, at the end: {text}", runs, names[first], names[second], number))
    return found


def draw_frontier(axes: Any, runs: Runs) -> None:
    """Mean reward against entropy, from the base model over a quarter of the steps to the end."""
    start = {run["seed"]: run for run in runs if run["method"] == BASE}
    for place, name in enumerate(TITLES):
        for run in (run for run in runs if run["method"] == f"model/{name}"):
            points = [start[run["seed"]], run["early"], run]
            label = TITLES[name] if run["seed"] == min(start) else None
            axes.plot([p["entropy"] for p in points], [p["reward"] for p in points], marker="o", color=f"C{place}", label=label)
    axes.set(xlabel="entropy, nats", ylabel="mean reward", title="model: base, a quarter, end; each seed")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)


def claim(sizes: Sizes) -> Claim:
    bases: dict[int, CausalLanguageModel] = {}

    def run(name: str, seed: int, told: Told) -> dict[str, Any]:
        toy, _, divergence = name.partition("/")
        if toy == "line":
            return on_the_line(divergence.removesuffix(ESTIMATED), not divergence.endswith(ESTIMATED), sizes, seed, told)
        if seed not in bases:
            bases[seed] = base_model(sizes, seed, told)
        if name == BASE:
            return measured(bases[seed], bases[seed], sizes, seed)
        return on_the_model(divergence, bases[seed], sizes, seed, told)

    methods: Mapping[str, Method] = {
        **{f"line/{name}": Method(f"one dimension, {title}", note=KNOWN_Z, cost=0.7) for name, title in TITLES.items()},
        **{f"line/{name}{ESTIMATED}": Method(f"one dimension, {TITLES[name]}, Z estimated", cost=0.7) for name in ("js", "tv")},
        BASE: Method("language model, base a", cost=0.3, always=True),
        **{f"model/{name}": Method(f"language model, {title}") for name, title in TITLES.items()},
    }
    return Claim(
        name="fdpg",
        title="f-DPG: what each f-divergence makes of the same target",
        source="arXiv 2302.08215",
        methods=methods,
        run=run,
        checks=checks,
        columns=COLUMNS,
        about=ABOUT,
        setup=dataclasses.asdict(sizes),
        panels=[draw_frontier],
    )


def build(chosen: argparse.Namespace) -> Claim:
    return claim(Sizes(**QUICK) if chosen.quick else Sizes())


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:]))
