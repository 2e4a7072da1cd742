"""The digits toy: three digits are given, and the three decimal digits of their product are asked for.

The prompt (a, b, c), each 0 to 9, makes 1000 prompts; the answer is the 3 decimal digits of a · b · (c + 1), and the reward is 1 where all
three are right. The policy sees embeddings of the prompt's digits and of the last two answer digits, and which digit comes next; two tanh
layers and a bias-free head. It is warmed up by supervision on random prompts, then trained by reinforcement with the library's loop. The
score is exact: the probability of a right answer at temperature 1, averaged over all prompts.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Claim, Method, Told
from torch import Tensor, nn

from unipg.algorithms import algorithm_named
from unipg.algorithms.base import Algorithm
from unipg.estimator.likelihoods import Reading, categorical_log_prob
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand, EvaluationResult, Experience
from unipg.samplers import Sampler, UniformSampler
from unipg.seeding import generator, seed_everything
from unipg.training.observer import Observer
from unipg.training.optimization import OptimizerRecipe
from unipg.training.trainer import Trainer, TrainingRecipe
from unipg.trajectories import Evaluation, Source, Trajectories

PROMPTS = torch.cartesian_prod(*[torch.arange(10)] * 3)
PRODUCTS = PROMPTS[:, 0] * PROMPTS[:, 1] * (PROMPTS[:, 2] + 1)
ANSWERS = torch.stack([PRODUCTS // 100, PRODUCTS // 10 % 10, PRODUCTS % 10], 1)
START = 10
"""Stands for an answer digit that is not there yet."""
BASE = "base"


@dataclass(frozen=True)
class Toy:
    """Sizes."""

    warm_steps: int = 220
    updates: int = 160
    prompts: int = 16
    """Per update of a method with groups; `rows` / rollouts of it."""
    rows: int = 128
    """Responses per update."""
    learning_rate: float = 2e-3
    warm_learning_rate: float = 1e-3
    window: int = 20
    """Updates between scores."""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 24)
        self.layers = nn.Sequential(nn.Linear(5 * 24 + 3, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10, bias=False))

    def forward(self, prompt: Tensor, before: Tensor) -> Tensor:
        """[B,n,10] logits of the first n answer digits; `before` [B,n−1] are those that came before."""
        count = before.shape[1] + 1
        padded = torch.cat([torch.full((len(prompt), 2), START), before], 1)
        last = torch.stack([padded[:, :count], padded[:, 1 : count + 1]], 2)
        seen = torch.cat([prompt.unsqueeze(1).expand(-1, count, -1), last], 2)
        place = torch.eye(3)[:count].expand(len(prompt), -1, -1)
        return self.layers(torch.cat([self.embed(seen).flatten(2), place], 2))


class DigitPolicy(Policy):
    """Rows of 6 tokens: prompt, then answer."""

    def __init__(self) -> None:
        self.module = Network()

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        logits = self.module(batch.action[:, :3], batch.action[:, 3:5])
        log_prob, h = categorical_log_prob(logits, batch.action[:, 3:], entropy=entropy)
        wide = torch.nn.functional.pad
        return Evaluation(wide(log_prob, (3, 0)), wide(h, (3, 0)) if entropy else None).where(batch.mask)

    def accuracy(self) -> float:
        """The exact probability of a right answer, over all prompts."""
        with torch.no_grad():
            log_prob, _ = categorical_log_prob(self.module(PROMPTS, ANSWERS[:, :2]), ANSWERS, entropy=False)
        return float(log_prob.sum(1).double().exp().mean())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


class Digits(Experience):
    """Rollouts, or demonstrations, of the prompts that a sampler chooses."""

    max_new_tokens = 3

    def __init__(self, sampler: Sampler, prompts: int) -> None:
        self.sampler, self.prompts = sampler, prompts

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        assert isinstance(policy, DigitPolicy)
        chosen = torch.tensor(self.sampler.choose(self.prompts))
        items = chosen.repeat_interleave(max(1, demand.rollouts))
        answer = torch.zeros(len(items), 0, dtype=torch.long) if demand.rollouts else ANSWERS[items]
        draw = generator(demand.seed, "digits", demand.iteration, demand.round)
        with torch.no_grad():
            while answer.shape[1] < 3:
                probability = policy.module(PROMPTS[items], answer)[:, -1].softmax(-1)
                answer = torch.cat([answer, torch.multinomial(probability, 1, generator=draw)], 1)
        mask = torch.tensor([False] * 3 + [True] * 3).expand(len(items), 6)
        batch = Trajectories(
            action=torch.cat([PROMPTS[items], answer], 1),
            mask=mask,
            terminated=mask & (torch.arange(6) == 5),
            group=torch.arange(len(chosen)).repeat_interleave(max(1, demand.rollouts)),
            source=torch.full((len(items),), int(Source.ROLLOUT if demand.rollouts else Source.DEMONSTRATION)),
            reward=(answer == ANSWERS[items]).all(1).float(),
            annotations={"item": items.tolist(), "answer": ["".join(map(str, row)) for row in answer.tolist()]},
        )
        return batch, {}

    def update(self, batch: Trajectories, memory: Mapping[str, Any]) -> None:
        self.sampler.update(batch, memory)

    def evaluate(self, policy: Policy, seed: int, progress: Callable[[float], None] | None = None) -> list[EvaluationResult]:
        assert isinstance(policy, DigitPolicy)
        value = policy.accuracy()
        return [EvaluationResult("digits", {"accuracy": {"value": value, "low": value, "high": value, "n": len(PROMPTS)}})]


class Watch(Observer):
    """Keeps metrics and scores, and tells how far a run is."""

    def __init__(self, told: Told) -> None:
        self.told, self.rows, self.scores = told, list[dict[str, Any]](), dict[str, float]()

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self.rows.append(metrics)
        self.told(done / total)

    def evaluation(self, results: list[EvaluationResult]) -> None:
        self.scores[str(len(self.rows))] = results[0].metrics["accuracy"]["value"]

    def mean(self, name: str, default: float = 0.0) -> float:
        return sum(row.get(name, default) for row in self.rows) / max(1, len(self.rows))


def trained(toy: Toy, algorithm: Algorithm, policy: DigitPolicy, steps: int, rate: float, seed: int, told: Told) -> Watch:
    """Trains the policy with the library's loop: AdamW without decay, no limit on the gradient's norm, one update per batch."""
    watch = Watch(told)
    prompts = toy.rows // max(1, algorithm.rollouts)
    experience = Digits(algorithm.build_sampler(len(PROMPTS), seed), prompts)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            algorithm,
            policy,
            experience,
            folder=Path(folder),
            training=TrainingRecipe(steps, prompts, save_every=steps, evaluate_every=toy.window),
            optimizer=OptimizerRecipe(rate, clip_norm=None),
            seed=seed,
            observer=watch,
        ).train()
    return watch


def warm_policy(toy: Toy, seed: int) -> DigitPolicy:
    """The start of a seed: random weights after cross-entropy on random prompts."""
    seed_everything(seed, "digits")
    policy = DigitPolicy()
    trained(toy, algorithm_named("sft")(), policy, toy.warm_steps, toy.warm_learning_rate, seed, lambda share: None)
    return policy


def result(toy: Toy, algorithm: Algorithm, policy: DigitPolicy, seed: int, told: Told) -> dict[str, Any]:
    """Numbers of one run of reinforcement learning from a copy of the start."""
    began, policy = time.process_time(), copy.deepcopy(policy)
    watch = trained(toy, algorithm, policy, toy.updates, toy.learning_rate, seed, told)
    return {
        "score": policy.accuracy(),
        "curve": watch.scores,
        "tokens": sum(row.get("selection/tokens", 3.0 * toy.rows) for row in watch.rows),
        "degenerate": watch.mean("groups/no_signal_fraction"),
        "reward": watch.mean("reward/mean"),
        "cpu_seconds": time.process_time() - began,
    }


ABOUT = (
    "Score: the exact probability of a right answer at temperature 1 over all 1000 prompts. Tokens: answer tokens that updates were "
    "computed on. Degenerate: share of prompts in a batch whose responses all have the same reward. Seconds: processor time."
)
COLUMNS = {"score": "score", "tokens": "tokens", "degenerate": "degenerate groups", "reward": "mean reward", "cpu_seconds": "seconds"}


def claim_on(
    toy: Toy,
    algorithms: Mapping[str, tuple[str, Algorithm]],
    *,
    start: Callable[[Toy, DigitPolicy, int], dict[str, Any]] = lambda toy, policy, seed: {},
    **claim: Any,
) -> Claim:
    """The claim with each algorithm (a title and its settings) from the same start. `start`: further numbers of the start itself."""
    warm: dict[int, DigitPolicy] = {}

    def run(name: str, seed: int, told: Told) -> dict[str, Any]:
        policy = warm[seed] if seed in warm else warm.setdefault(seed, warm_policy(toy, seed))
        if name == BASE:
            return {"score": policy.accuracy(), **start(toy, policy, seed)}
        return result(toy, algorithms[name][1], policy, seed, told)

    methods = {BASE: Method("start", cost=0.5, always=True)}
    for name, (title, algorithm) in algorithms.items():
        methods[name] = Method(title, {"algorithm": algorithm.name, "settings": dataclasses.asdict(algorithm)})
    shared: dict[str, Any] = {"about": ABOUT, "columns": COLUMNS, "setup": dataclasses.asdict(toy)}
    return Claim(**(shared | {"methods": methods, "run": run} | claim))


QUICK: dict[str, Any] = {"warm_steps": 10, "updates": 4, "window": 2}

__all__ = ["ABOUT", "BASE", "COLUMNS", "QUICK", "DigitPolicy", "Digits", "Toy", "UniformSampler", "claim_on", "result", "warm_policy"]
