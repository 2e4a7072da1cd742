"""The claim of Stratified GRPO (arXiv 2510.06214) on a key look-up: who keeps searching until searching pays?

    python benchmarks/claims/stratified_grpo.py            the whole claim, written to benchmarks/results/stratified_grpo.{json,md,png}
    python benchmarks/claims/stratified_grpo.py --quick    does it run? The numbers mean nothing

First the policy chooses to answer, which pays 1 for two prompts in five whatever is said, or to search. Searching shows one of eight keys,
and naming it pays 1: one time in eight at first, always once the look-up is learned.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from copg import Share, Unkept
from harness import Check, Claim, Method, Runs, Told, by_seed, check, main
from torch import Tensor, nn

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.estimator.likelihoods import Reading, categorical_log_prob, read_off
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand, EvaluationResult, Experience
from unipg.seeding import generator
from unipg.training.optimization import OptimizerRecipe
from unipg.training.trainer import Trainer, TrainingRecipe
from unipg.trajectories import Evaluation, Trajectories

KEYS, GUESS, PROMPTS, LEARNING_RATE, LOOK_UP_SPEED = 8, 0.4, 16, 0.5, 2.0
ANSWER, SEARCH = 0, 1


class LookUp(Policy):
    """P(search) = sigmoid(sqrt(speed) · a), P(name | key) = softmax(sqrt(2) · W[key])[name]: the roots make a step of plain gradient ascent
    move each logit by learning rate · speed · its gradient."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.search = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.names = nn.Parameter(torch.zeros(KEYS, KEYS, dtype=torch.float64))
        self.module = nn.ParameterDict({"search": self.search, "names": self.names})

    def table(self) -> Tensor:
        """[1 + keys, keys] logits: what to do first, then what to name after each key."""
        impossible = self.search.new_full((KEYS - 2,), -math.inf)
        first = torch.cat([torch.zeros_like(self.search).reshape(1), math.sqrt(self.speed) * self.search.reshape(1), impossible])
        return torch.cat([first.unsqueeze(0), math.sqrt(LOOK_UP_SPEED) * self.names])

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        logits = self.table()[batch.require("observation", "the look-up")]
        log_prob, h = categorical_log_prob(logits, batch.action, entropy=entropy)
        return Evaluation(log_prob, h if entropy else None, None, read_off(logits, batch.action, batch, readings)).where(batch.mask)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.module.state_dict(), folder / "look-up.pt")


class KeyLookUp(Experience):
    """Prompts with a hidden luck and a key each; `seen` keeps reward and share of searches by iteration."""

    max_new_tokens = 2

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        assert isinstance(policy, LookUp)
        draw = generator(demand.seed, "look-up", demand.iteration)
        lucky = torch.rand(PROMPTS, dtype=torch.float64, generator=draw) < GUESS
        key = torch.randint(KEYS, (PROMPTS,), generator=draw)
        group = torch.arange(PROMPTS).repeat_interleave(demand.rollouts)
        table = policy.table().detach().softmax(-1)
        searched = torch.rand(len(group), dtype=torch.float64, generator=draw) < table[0, SEARCH]
        named = torch.multinomial(table[1 + key[group]], 1, generator=draw).squeeze(1)
        reward = torch.where(searched, named == key[group], lucky[group]).double()
        self.seen.append((float(reward.mean()), float(searched.double().mean())))
        return Trajectories(
            action=torch.stack([searched.long(), named], 1),
            observation=torch.stack([torch.zeros_like(group), 1 + key[group]], 1),
            mask=torch.stack([torch.ones_like(searched), searched], 1),
            group=group,
            reward=reward,
            annotations={"stratum": searched.long().tolist()},
        ), {}

    def evaluate(self, policy: Policy, seed: int, progress: Callable[[float], None] | None = None) -> list[EvaluationResult]:
        return []


def blended(alpha: float) -> Algorithm:
    """Policy gradient without clipping, in effect: one update per batch."""
    return algorithm_named("stratified_grpo")(alpha=alpha, aggregate="sequence_mean_token_sum")


CASES: dict[str, tuple[float, float]] = {
    f"{name}_{str(speed).replace('.', '_')}": (alpha, speed)
    for speed, alphas in ((0.5, (0.0, 0.8)), (1.0, (0.0, 0.5, 0.8)), (2.0, (0.0, 0.6, 0.8, 0.95, 1.0)), (4.0, (0.0, 0.6, 0.8, 0.95)))
    for alpha in alphas
    for name in [f"alpha{round(100 * alpha):03d}_speed"]
}


def of(alpha: float, speed: float) -> str:
    return next(name for name, case in CASES.items() if case == (alpha, speed))


def build(options: argparse.Namespace) -> Claim:
    updates = 20 if options.quick else 800

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        alpha, speed = CASES[method]
        experience = KeyLookUp()
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                blended(alpha),
                LookUp(speed),
                experience,
                folder=Path(folder),
                training=TrainingRecipe(updates, save_every=updates),
                optimizer=OptimizerRecipe(LEARNING_RATE, kind="sgd", clip_norm=None),
                seed=seed,
                tracker=Unkept(Path(folder)),
                observer=Share(told),
            ).train()
        reward, searched = (sum(column) / len(column) for column in zip(*experience.seen[-50:], strict=True))
        curve = {str(i): experience.seen[i][0] for i in range(0, updates, max(1, updates // 40))}
        return {"score": reward, "searched": searched, "curve": curve}

    def checks(runs: Runs) -> list[Check | None]:
        grpo, good, pure = of(0.0, 2.0), of(0.8, 2.0), of(1.0, 2.0)
        return [
            check("speed 2: GRPO's reward < 0.45", by_seed(runs, grpo), lambda reward: reward < 0.45),
            check("speed 2: reward of alpha 0.8 > 0.9", by_seed(runs, good), lambda reward: reward > 0.9),
            check(
                "speed 2: alpha 1 searches as often as at the start (0.5)", by_seed(runs, pure, "searched"), lambda s: abs(s - 0.5) <= 0.05
            ),
        ]

    def told_of(runs: Runs) -> dict[str, list[str]]:
        lines = [
            f"speed {CASES[name][1]:g}, alpha {CASES[name][0]:g}: reward {by_seed(runs, name)}" for name in CASES if by_seed(runs, name)
        ]
        return {"Reward of each run, by seed": lines}

    return Claim(
        "stratified_grpo",
        "Stratified GRPO on a key look-up",
        "arXiv 2510.06214",
        {
            name: Method(
                f"{'GRPO' if alpha == 0 else f'alpha {alpha:g}'}, search learned at speed {speed:g}", {"alpha": alpha, "speed": speed}
            )
            for name, (alpha, speed) in CASES.items()
        },
        run,
        checks,
        columns={"score": "reward", "searched": "share of searches"},
        about="Means over the last 50 updates.",
        setup={"updates": updates, "prompts": PROMPTS, "rollouts": 8, "learning_rate": LEARNING_RATE, "look_up_speed": LOOK_UP_SPEED},
        told=told_of,
        limits=(0.0, 1.0),
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], seeds=5))
