"""The claim of T-PPO (arXiv 2506.15050) on a counting toy: updates from unfinished responses need fewer sequential decode steps than PPO's.

    python benchmarks/claims/tppo.py            the whole claim, written to benchmarks/results/tppo.{json,md,png}
    python benchmarks/claims/tppo.py --quick    does it run? The numbers mean nothing

A prompt is a number N; an answer succeeds where it ends after exactly N tokens. What a step costs is the number of tokens that the slowest
of the responses sampled together adds: all of it for PPO, at most the window for T-PPO. Nothing is claimed of EGAE against the critic's
true value at the cut: the gain is that no one waits, and EGAE only has to avoid the bug of a bootstrap of 0, which is shown too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, main
from torch import Tensor

from unipg.algorithms.base import Setting
from unipg.algorithms.language.tppo import CRITIC, POLICY, TPPO
from unipg.estimator import GAE, Objective, Planning, PolicyGradient
from unipg.lab.strings import TabularPolicy
from unipg.policies.base import Policy
from unipg.rollouts.base import FRESH, Demand, Experience
from unipg.seeding import generator
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.observer import Observer
from unipg.training.tracking import Tracker
from unipg.training.trainer import Stopped
from unipg.trajectories import Trajectories

GO_ON, END = 0, 1


@dataclass(frozen=True)
class Toy:
    """Sizes of the counting toy."""

    smallest: int = 4
    largest: int = 24
    limit: int = 32
    """Most tokens of an answer."""
    slots: int = 64
    window: int = 8
    end_logit: float = -2.2
    rate: float = 2.0
    """Of a policy entry: its gradients' sum over the square root of their number."""
    value_rate: float = 0.3
    """Of a value entry: towards the mean of its targets."""
    budget: int = 20000
    """Sequential decode steps of a run."""
    marks: tuple[int, ...] = (2000, 5000)
    lengths: int = 400
    """Batches from which the utilisation of slots is worked out."""

    @property
    def prompts(self) -> int:
        return self.largest - self.smallest + 1


class Counter(TabularPolicy):
    """A probability of ending for each prompt and each number of tokens so far."""

    def __init__(self, toy: Toy) -> None:
        logits = torch.zeros(toy.prompts * toy.limit, 2, dtype=torch.float64)
        logits[:, END] = toy.end_logit
        super().__init__(logits)
        self.toy = toy

    def ending(self) -> Tensor:
        """[prompts, limit] probability of ending here."""
        return self.logits.detach().softmax(-1)[:, END].reshape(self.toy.prompts, self.toy.limit)

    def success(self) -> float:
        """The exact probability of success, averaged over prompts."""
        ending = self.ending()
        going = torch.cat([torch.ones(len(ending), 1, dtype=ending.dtype), (1 - ending).cumprod(1)], 1)
        row = torch.arange(self.toy.prompts)
        length = row + self.toy.smallest
        return float((going[row, length] * ending[row, length]).mean())


class Counting(Experience):
    """Slots in which answers grow by at most a window each time; finished ones make room for new prompts."""

    def __init__(self, toy: Toy) -> None:
        self.toy, self.max_new_tokens = toy, toy.limit
        self.prompt = torch.zeros(toy.slots, dtype=torch.long)
        self.length = torch.zeros(toy.slots, dtype=torch.long)
        self.finished = torch.ones(toy.slots, dtype=torch.bool)

    @property
    def keeps_unfinished(self) -> bool:
        return True

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        assert isinstance(policy, Counter)
        toy, draw = self.toy, generator(demand.seed, "count", demand.iteration)
        new = torch.randint(toy.prompts, self.prompt.shape, generator=draw)
        prompt, length = torch.where(self.finished, new, self.prompt), torch.where(self.finished, 0, self.length)
        start, ending = length, policy.ending()
        ended = torch.zeros_like(self.finished)
        steps = 0
        while steps < (demand.window or toy.limit) and not bool((done := ended | (length == toy.limit)).all()):
            drawn = torch.rand(length.shape, dtype=torch.float64, generator=draw)
            ends = ~done & (drawn < ending[prompt, length.clamp_max(toy.limit - 1)])
            length, ended, steps = torch.where(done, length, length + 1), ended | ends, steps + 1
        limited = ~ended & (length == toy.limit)
        self.prompt, self.length, self.finished = prompt, length, ended | limited
        step = torch.arange(toy.limit)
        mask = step < length.unsqueeze(1)
        last = step == length.unsqueeze(1) - 1
        cut = ~self.finished
        after = policy.value.detach()[prompt * toy.limit + length.clamp_max(toy.limit - 1)]
        batch = Trajectories(
            action=(last & ended.unsqueeze(1)).long(),
            mask=mask,
            present=mask,
            observation=prompt.unsqueeze(1) * toy.limit + step,
            reward=(ended & (length == prompt + toy.smallest + 1)).double(),
            terminated=last & ended.unsqueeze(1),
            truncated=last & limited.unsqueeze(1),
            bootstrap_value=torch.where(last & cut.unsqueeze(1), after.unsqueeze(1), 0),
            planned={FRESH: mask & (step >= start.unsqueeze(1))},
        )
        return batch.trim(), {"decode/steps": float(steps), "decode/utilization": float((length - start).sum()) / (steps * toy.slots)}


@dataclass(frozen=True)
class TrueBootstrap(TPPO):
    """T-PPO with the critic's value of the state behind the cut."""

    def objective(self, setting: Setting) -> Objective:
        first, *others = super().objective(setting).terms
        assert isinstance(first, PolicyGradient)
        gae = GAE(self.gamma, self.lam, normalize=False)
        return Objective((dataclasses.replace(first, advantage=gae), *others))


@dataclass(frozen=True)
class ZeroBootstrap(TrueBootstrap):
    """The bug: a cut treated as an end."""

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        return super().prepare(batch.replace(bootstrap_value=None), setting, planning)


@dataclass(frozen=True)
class AllTokens(TPPO):
    """T-PPO that trains the policy on the tokens of earlier windows too."""

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        return super().prepare(batch.with_planned(**{FRESH: batch.mask}), setting, planning)


@dataclass(frozen=True)
class FinishedOnly(TPPO):
    """The same slots, but nothing is learned from a response before it has finished."""

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        ready = super().prepare(batch, setting, planning)
        return replace_planned(ready, POLICY, ready.planned[CRITIC])


def replace_planned(batch: Trajectories, name: str, tensor: Tensor) -> Trajectories:
    return batch.replace(planned={**batch.planned, name: tensor})


METHODS: dict[str, tuple[str, type[TPPO], bool]] = {
    "ppo": ("PPO, full synchronous rollouts", TPPO, False),
    "tppo": ("T-PPO (EGAE, the window's tokens)", TPPO, True),
    "true_bootstrap": ("the same, true bootstrap V(s_n)", TrueBootstrap, True),
    "all_tokens": ("the same, policy on all tokens so far", AllTokens, True),
    "finished_only": ("same slots, policy only on finished responses", FinishedOnly, True),
    "zero_bootstrap": ("same, bootstrap 0 at the cut", ZeroBootstrap, True),
}


class PerEntry(torch.optim.Optimizer):
    """The toy's update: each entry by what its own tokens say, however many others there are."""

    trainer: Trainer

    def __init__(self, policy: Counter) -> None:
        super().__init__([policy.logits, policy.value], {})
        self.policy = policy

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        policy, toy, batch = self.policy, self.policy.toy, self.trainer.feed.batch
        assert batch is not None
        assert batch.observation is not None

        def visits(name: str) -> Tensor:
            return batch.observation[batch.planned[name]].bincount(minlength=len(policy.logits)).double()

        if policy.logits.grad is not None:  # a token mean times the number of tokens is the sum
            count = visits(POLICY)
            policy.logits[:, END] -= toy.rate * policy.logits.grad[:, END] * count.sum() / count.clamp_min(1).sqrt()
        if policy.value.grad is not None:
            count = visits(CRITIC)
            policy.value -= toy.value_rate * policy.value.grad * count.sum() / count.clamp_min(1)


@dataclass(frozen=True)
class PerEntryRecipe(OptimizerRecipe):
    """Builds it for one policy."""

    policy: Counter | None = None

    def build(self, parameters: Any) -> torch.optim.Optimizer:
        assert self.policy is not None
        return PerEntry(self.policy)


class Quiet(Tracker):
    """Writes nothing."""

    def _append(self, file: str, row: dict[str, Any]) -> None: ...


class Watch(Observer):
    """Counts decode steps, asks for the exact success, and stops the run when its budget is spent."""

    def __init__(self, trainer: Trainer, policy: Counter, told: Told) -> None:
        self.trainer, self.policy, self.toy, self.told = trainer, policy, policy.toy, told
        self.cost, self.curve = 0, {0: policy.success()}
        self.half: int | None = None

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        before, self.cost = self.cost, self.cost + int(metrics["decode/steps"])
        success = self.policy.success()
        if self.half is None and success >= 0.5:
            self.half = self.cost
        every = self.toy.budget // 200
        if self.cost // every > before // every:
            self.curve[self.cost] = success
            self.told(self.cost / self.toy.budget)
        if self.cost >= self.toy.budget:
            self.trainer.stop_requested = True

    def at(self, cost: int) -> float:
        """Success when so many decode steps were spent."""
        return self.curve[max(spent for spent in self.curve if spent <= cost)]


def trained(toy: Toy, method: str, seed: int, told: Told) -> dict[str, Any]:
    _, kind, windowed = METHODS[method]
    policy = Counter(toy)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            kind(rollouts=1, window=toy.window if windowed else None, value_weight=1.0),
            policy,
            Counting(toy),
            folder=Path(folder),
            training=TrainingRecipe(iterations=toy.budget, save_every=toy.budget),
            optimizer=PerEntryRecipe(learning_rate=1.0, clip_norm=None, policy=policy),
            seed=seed,
            tracker=Quiet(Path(folder)),
        )
        trainer.optimizer.trainer = trainer
        trainer.observer = watch = Watch(trainer, policy, told)
        with contextlib.suppress(Stopped):
            trainer.train()
    return {
        "score": policy.success(),
        "to_half": watch.half,
        **{f"at_{mark}": watch.at(mark) for mark in toy.marks if mark <= toy.budget},
        "iterations": trainer.iteration,
        "success": {str(cost): success for cost, success in watch.curve.items()},
        **({"utilization": utilization(toy.lengths, 8000 if windowed else 24000, seed)} if method in ("ppo", "tppo") else {}),
    }


def utilization(batches: int, window: int, seed: int, slots: int = 512, longest: int = 24000) -> float:
    """Share of slot-steps that give a token, for responses of log-normal length (log-mean 7.6, sigma 0.8, capped) in `slots` slots."""
    draw = generator(seed, "lengths")

    def lengths() -> Tensor:
        return torch.exp(7.6 + 0.8 * torch.randn(slots, dtype=torch.float64, generator=draw)).round().clamp(1, longest).long()

    left, tokens, steps = torch.zeros(slots, dtype=torch.long), 0, 0
    for _ in range(batches):
        left = torch.where(left > 0, left, lengths())
        new = left.clamp_max(window)
        tokens, steps = tokens + int(new.sum()), steps + int(new.max())
        left = left - new
    return tokens / (slots * steps)


def ratio(runs: Runs, name: str, method: str, other: str) -> dict[int, float]:
    """A number of `method` over that of `other`, by seed."""
    ours, theirs = by_seed(runs, method, name), by_seed(runs, other, name)
    return {seed: round(ours[seed] / theirs[seed], 6) for seed in ours if seed in theirs}


def checks(runs: Runs) -> list[Check | None]:
    final = {seed: round(abs(gain), 6) for seed, gain in difference(runs, "tppo", "ppo").items()}
    return [
        check("T-PPO's decode steps to a success of 0.5 ≤ 0.65 x PPO's", ratio(runs, "to_half", "tppo", "ppo"), lambda r: r <= 0.65),
        check("final success of T-PPO within 0.02 of PPO's", final, lambda gap: gap <= 0.02),
        check("final success with bootstrap 0 < 0.7", by_seed(runs, "zero_bootstrap"), lambda score: score < 0.7),
        check("slot utilisation with windows ≥ 2 x the synchronous one", ratio(runs, "utilization", "tppo", "ppo"), lambda r: r >= 2),
    ]


def draw_success(axes: Any, runs: Runs) -> None:
    for place, name in enumerate(METHODS):
        for number, run in enumerate(run for run in runs if run["method"] == name):
            curve: Mapping[str, float] = run["success"]
            label = {"label": name} if number == 0 else {}
            axes.plot([max(1, int(cost)) for cost in curve], list(curve.values()), color=f"C{place}", linewidth=0.9, **label)
    axes.set(xscale="log", xlim=(100, None), ylim=(0, 1), xlabel="sequential decode steps", title="exact success probability, each seed")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def build(chosen: argparse.Namespace) -> Claim:
    toy = Toy(budget=200, marks=(100,), lengths=3) if chosen.quick else Toy()
    return Claim(
        "tppo",
        "T-PPO on a counting toy",
        "arXiv 2506.15050",
        {name: Method(title) for name, (title, _, _) in METHODS.items()},
        lambda method, seed, told: trained(toy, method, seed, told),
        checks,
        columns={
            "score": f"success after {toy.budget} decode steps",
            "to_half": "decode steps to 0.5 (seeds that reach it)",
            **{f"at_{mark}": f"success at {mark}" for mark in toy.marks},
            "iterations": "updates",
            "utilization": "utilisation of slots, log-normal lengths",
        },
        about=__doc__.partition("\n\n")[2].rpartition("\n\n")[2].strip().replace("\n", " "),
        setup=dataclasses.asdict(toy),
        panels=[draw_success],
        limits=(0, 1),
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], seeds=5))
