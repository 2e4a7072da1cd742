"""CoPG's bandit: three arms, pairs of arms that were drawn far from the optimum, and what each method makes of them.

The optimum of E_pi[R] − beta · KL(pi || uniform) is pi* = uniform · exp(R / beta), normalised. CoPG reaches it from scores, whatever the
pairs were drawn from; a policy gradient on the same arms does not, and its baseline is part of what it converges to.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, main
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting, algorithm_named
from unipg.algorithms.preferences.copg import CoPG
from unipg.estimator import PREFERENCES, GroupMeanTokenSum, Planning, PolicyGradient
from unipg.estimator.advantages import Advantage, spread
from unipg.estimator.likelihoods import Positions, Reading
from unipg.estimator.preferences import ANCHOR, log_ratio_to_anchor
from unipg.lab.strings import TabularPolicy
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand, EvaluationResult, Experience
from unipg.seeding import generator
from unipg.training.diagnostics import Histogram
from unipg.training.optimization import OptimizerRecipe
from unipg.training.tracking import Tracker
from unipg.training.trainer import Observer, Trainer, TrainingRecipe
from unipg.trajectories import Evaluation, Source, Trajectories

# ---------------------------------------------------------------------------------------------------------------------- pairs of arms


class ArmPairs(Experience):
    """Fixed pairs of arms of bandits, in batches of whole pairs.

    `pairs` [N,2] arms and their scores or labels `scores` [N,2]; `anchor` [S,K] log-probabilities of each bandit's arms, and `bandit` [N]
    which of them each pair belongs to. `watch` is asked about the policy before every `every`-th batch; its answers are kept in `seen` by
    step.
    """

    max_new_tokens = 1
    anchored = True

    def __init__(
        self,
        pairs: Tensor,
        scores: Tensor,
        bandit: Tensor,
        anchor: Tensor,
        batch: int,
        seed: int,
        watch: Callable[[Policy], Any],
        every: int,
    ) -> None:
        self.pairs, self.scores, self.bandit, self.anchor = pairs, scores, bandit, anchor
        self.batch, self.seed, self.watch, self.every = batch, seed, watch, every
        self.seen: dict[str, Any] = {}

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        if demand.iteration % self.every == 0:
            self.seen[str(demand.iteration)] = self.watch(policy)
        chosen = self._numbers(demand.iteration)
        arm, bandit = self.pairs[chosen].flatten(), self.bandit[chosen].repeat_interleave(2)
        return Trajectories(
            action=arm.unsqueeze(1),
            mask=torch.ones(len(arm), 1, dtype=torch.bool),
            observation=bandit.unsqueeze(1),
            group=torch.arange(len(chosen)).repeat_interleave(2),
            source=torch.full((len(arm),), int(Source.PREFERENCE)),
            reward=self.scores[chosen].flatten(),
            anchor_log_prob=self.anchor[bandit, arm].unsqueeze(1),
        ), {}

    def _numbers(self, iteration: int) -> Tensor:
        """The pairs of a batch: a new order in each epoch, whose last batch may be smaller."""
        epoch, place = divmod(iteration, math.ceil(len(self.pairs) / self.batch))
        order = torch.randperm(len(self.pairs), generator=generator(self.seed, "pairs", epoch))
        return order[place * self.batch : (place + 1) * self.batch]

    def evaluate(self, policy: Policy, seed: int, progress: Callable[[float], None] | None = None) -> list[EvaluationResult]:
        return []


@dataclass
class Share(Observer):
    """An observer that passes on how much is done."""

    told: Told

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self.told(done / total)


class Unkept(Tracker):
    """Writes nothing down: a bandit's step is shorter than its line in a file."""

    def metrics(self, row: dict[str, Any]) -> None: ...

    def histograms(self, iteration: int, histograms: Sequence[Histogram]) -> None: ...


def train_arms(algorithm: Algorithm, policy: TabularPolicy, arms: ArmPairs, steps: int, learning_rate: float, told: Told) -> dict[str, Any]:
    """Trains with the library's loop, by Adam without clipping; what `watch` saw by step."""
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            algorithm,
            policy,
            arms,
            folder=Path(folder),
            training=TrainingRecipe(steps, save_every=steps),
            optimizer=OptimizerRecipe(learning_rate, clip_norm=None),
            seed=arms.seed,
            tracker=Unkept(Path(folder)),
            observer=Share(told),
        ).train()
    return {**arms.seen, str(steps): arms.watch(policy)}


# ---------------------------------------------------------------------------------------------------------------------- naive gradients


@dataclass(frozen=True)
class ValueOfPolicy(Reading):
    """E_pi[R] and KL(pi || uniform) of a bandit, exactly, from its logits."""

    rewards: tuple[float, ...]

    def __call__(self, at: Positions) -> dict[str, Tensor]:
        log_pi = torch.log_softmax(at.logits.detach(), -1)
        reward = torch.tensor(self.rewards, dtype=log_pi.dtype)
        kl = (log_pi.exp() * (log_pi + math.log(len(self.rewards)))).sum(-1)
        return {"reward": (log_pi.exp() * reward).sum(-1), "kl": kl}


Baseline = Literal["none", "reward", "regularised"]


@dataclass(frozen=True)
class NaiveAdvantage(Advantage):
    """Â = R_beta(y) − b on given completions, with b = 0, E_pi[R] or E_pi[R_beta], R_beta = R − beta · log(pi / pi_0)."""

    dynamic: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({ANCHOR})
    rewards: tuple[float, ...] = ()
    beta: float = 0.5
    baseline: Baseline = "none"

    @property
    def readings(self) -> tuple[Reading, ...]:
        return () if self.baseline == "none" else (ValueOfPolicy(self.rewards),)

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        assert now is not None
        regularised = batch.total_reward() - self.beta * log_ratio_to_anchor(batch, now, "NaiveAdvantage")
        if self.baseline == "none":
            return spread(regularised, batch)
        value = now.reading(ValueOfPolicy(self.rewards))
        baseline = value["reward"] - (self.beta * value["kl"] if self.baseline == "regularised" else 0)
        return regularised.unsqueeze(1) - baseline


@dataclass(frozen=True)
class NaivePolicyGradient(CoPG):
    """A policy gradient that takes given completions for the policy's own. Not registered: it is what not to do."""

    rewards: tuple[float, ...] = ()
    baseline: Baseline = "none"

    def objective(self, setting: Setting) -> PolicyGradient:
        advantage = NaiveAdvantage(self.rewards, self.beta, self.baseline)
        return PolicyGradient(advantage=advantage, aggregate=GroupMeanTokenSum(), rows=PREFERENCES, name="naive")


# ---------------------------------------------------------------------------------------------------------------------- the claim


@dataclass(frozen=True)
class Bandit:
    """The paper's bandit; the learning rate is not the paper's."""

    rewards: tuple[float, ...] = (2.5, 2.0, 1.0)
    first: tuple[float, ...] = (0.1, 0.2, 0.7)
    """What the first of a pair is drawn from."""
    second: tuple[float, ...] = (0.05, 0.05, 0.9)
    pairs: int = 10_000
    beta: float = 0.5
    batch: int = 512
    steps: int = 2000
    learning_rate: float = 1e-2
    every: int = 50
    """Steps between points of the curves."""

    @property
    def reward(self) -> Tensor:
        return torch.tensor(self.rewards, dtype=torch.float64)

    @property
    def anchor(self) -> Tensor:
        """Log-probabilities: uniform."""
        return torch.full((len(self.rewards),), -math.log(len(self.rewards)), dtype=torch.float64)

    def regret(self, log_pi: Tensor) -> float:
        """How far E_pi[R] − beta · KL(pi || uniform) is below its maximum."""
        best = self.beta * torch.logsumexp(self.anchor + self.reward / self.beta, 0)
        return float(best - (log_pi.exp() * (self.reward - self.beta * (log_pi - self.anchor))).sum())

    def data(self, seed: int) -> tuple[Tensor, Tensor]:
        """[N,2] arms, and [N,2] labels: which of the two was preferred, drawn from sigmoid(R − R')."""
        draw = generator(seed, "bandit")
        arms = torch.stack([torch.multinomial(torch.tensor(p), self.pairs, True, generator=draw) for p in (self.first, self.second)], 1)
        reward = self.reward[arms]
        won = torch.rand(self.pairs, generator=draw, dtype=torch.float64) < torch.sigmoid(reward[:, 0] - reward[:, 1])
        return arms, torch.stack([won, ~won], 1).double()


ALGORITHMS: dict[str, tuple[str, Callable[[Bandit], Algorithm]]] = {
    "copg": ("CoPG", lambda b: algorithm_named("copg")(beta=b.beta)),
    "dpo": ("DPO", lambda b: algorithm_named("dpo")(beta=b.beta)),
    "ipo": ("IPO", lambda b: algorithm_named("ipo")(beta=b.beta)),
    "pg": ("policy gradient, b = 0", lambda b: NaivePolicyGradient(beta=b.beta, rewards=b.rewards)),
    "pg-value": ("policy gradient, b = E_pi[R]", lambda b: NaivePolicyGradient(beta=b.beta, rewards=b.rewards, baseline="reward")),
    "pg-regularised": (
        "policy gradient, b = E_pi[R_beta]",
        lambda b: NaivePolicyGradient(beta=b.beta, rewards=b.rewards, baseline="regularised"),
    ),
}
NOTES = {
    "dpo": "preferences of the same pairs, drawn once from sigmoid(R − R')",
    "ipo": "the same preferences",
    "pg-value": "the baseline of the paper's comparison",
    "pg-regularised": "not in the paper: at pi* R_beta is the same for every arm, so this baseline leaves pi* where it is",
}


def claim(bandit: Bandit) -> Claim:
    arms = range(len(bandit.rewards))

    def run(name: str, seed: int, told: Told) -> dict[str, Any]:
        pairs, labels = bandit.data(seed)
        algorithm = ALGORITHMS[name][1](bandit)
        scores = labels if algorithm.completions == "pairs" else bandit.reward[pairs]
        policy = TabularPolicy(torch.zeros(1, len(bandit.rewards), dtype=torch.float64))

        def watch(now: Policy) -> Tensor:
            return torch.log_softmax(now.logits.detach()[0], -1)  # type: ignore[attr-defined]

        alone = torch.zeros(len(pairs), dtype=torch.long)
        experience = ArmPairs(pairs, scores, alone, bandit.anchor.unsqueeze(0), bandit.batch, seed, watch, bandit.every)
        seen = train_arms(algorithm, policy, experience, bandit.steps, bandit.learning_rate, told)
        last = seen[str(bandit.steps)]
        return {
            "regret": bandit.regret(last),
            "arms": {str(arm + 1): float(last[arm].exp()) for arm in arms},
            "curve": {step: bandit.regret(log_pi) for step, log_pi in seen.items()},
        }

    uniform = bandit.regret(bandit.anchor)

    def checks(runs: Runs) -> list[Check | None]:
        above = {seed: uniform - regret for seed, regret in by_seed(runs, "ipo", "regret").items()}
        return [
            check("regret of CoPG < 0.001", by_seed(runs, "copg", "regret"), lambda r: r < 1e-3),
            check("regret of PG, b = E_pi[R] > 0.001", by_seed(runs, "pg-value", "regret"), lambda r: r > 1e-3),
            check("regret: IPO > PG, b = E_pi[R]", difference(runs, "ipo", "pg-value", "regret"), lambda d: d > 0),
            check("regret: uniform > IPO", above, lambda d: d > 0),
            check(f"regret of PG, b = 0 > {uniform:.5f}, the uniform policy's", by_seed(runs, "pg", "regret"), lambda r: r > uniform),
        ]

    def draw(axes: Any, runs: Runs) -> None:
        for place, name in enumerate(dict.fromkeys(run["method"] for run in runs)):
            curves = [run["curve"] for run in runs if run["method"] == name]
            means = [sum(curve[step] for curve in curves) / len(curves) for step in curves[0]]
            axes.semilogy([int(step) for step in curves[0]], [max(m, 1e-6) for m in means], color=f"C{place}", label=name)
        axes.axhline(uniform, color="black", linewidth=0.8, linestyle=":")
        axes.set(xlabel="optimiser steps", title="regret, logarithmic, from 1e-6; dotted: the uniform policy")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    best = (bandit.anchor + bandit.reward / bandit.beta).softmax(0)
    return Claim(
        name="copg",
        title="CoPG on the three-armed bandit" + ("" if bandit == Bandit() else ", settings changed"),
        source="arXiv 2406.19185",
        methods={
            name: Method(title, {"algorithm": repr(build(bandit))}, NOTES.get(name, "")) for name, (title, build) in ALGORITHMS.items()
        },
        run=run,
        checks=checks,
        columns={"regret": "regret", **{f"arms.{arm + 1}": f"pi(arm {arm + 1})" for arm in arms}},
        about=(
            f"Regret: how far E_pi[R] − beta · KL(pi || uniform) is below its maximum; {uniform:.5f} at the start. "
            f"The optimum is ({', '.join(f'{p:.5f}' for p in best)})."
        ),
        setup={name: getattr(bandit, name) for name in bandit.__dataclass_fields__},
        panels=[draw],
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--learning-rate", type=float, default=Bandit.learning_rate, help="of Adam (default %(default)s)")


def build(chosen: argparse.Namespace) -> Claim:
    sizes = {"pairs": 1000, "steps": 20, "every": 10} if chosen.quick else {}
    return claim(Bandit(**sizes, learning_rate=chosen.learning_rate))


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options, seeds=5))
