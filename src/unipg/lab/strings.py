"""Tiny autoregressive models over short strings: every trajectory can be enumerated, so every expectation is known exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from unipg.errors import InputError
from unipg.estimator.likelihoods import categorical_log_prob
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand, Experience
from unipg.seeding import generator
from unipg.trajectories import Evaluation, Source, Trajectories

MOST_STRINGS = 100_000


class BigramPolicy(Policy):
    """log pi(token | previous token) = log softmax(W[previous])[token]; value and entropy likewise. W is `[V,V]`, in float64."""

    has_value = True

    def __init__(self, vocabulary: int, seed: int = 0, scale: float = 0.5) -> None:
        logits = scale * torch.randn(vocabulary, vocabulary, dtype=torch.float64, generator=generator(seed, "bigram"))
        self.logits = nn.Parameter(logits)
        self.value = nn.Parameter(torch.zeros(vocabulary, dtype=torch.float64))
        self.module = nn.ParameterDict({"logits": self.logits, "value": self.value})
        self.vocabulary = vocabulary

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False) -> Evaluation:
        assert batch.present is not None
        tokens = torch.where(batch.present, batch.action, 0)
        previous = torch.cat([tokens[:, :1], tokens[:, :-1]], 1)
        log_prob, h = categorical_log_prob(self.logits[previous], tokens)
        values = self.value[previous] if value else None
        quiet = [None if t is None else torch.where(batch.mask, t, 0) for t in (log_prob, h if entropy else None, values)]
        return Evaluation(*quiet)  # type: ignore[arg-type]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.module.state_dict(), folder / "bigram.pt")


@dataclass(frozen=True)
class StringProblem:
    """Prompts of one token, answers of exactly `length` tokens, a reward for every (prompt, answer).

    `reward(prompt, answer)`: by default 1 where every answer token equals the prompt.
    """

    vocabulary: int = 3
    prompts: tuple[int, ...] = (0, 1)
    length: int = 2
    reward: Callable[[int, tuple[int, ...]], float] = field(default=lambda prompt, answer: float(all(t == prompt for t in answer)))

    def __post_init__(self) -> None:
        count = self.vocabulary**self.length
        if count > MOST_STRINGS:
            raise InputError(f"{count} strings are too many to enumerate; the limit is {MOST_STRINGS}")

    def answers(self) -> list[tuple[int, ...]]:
        """Every string, in lexicographic order."""
        return list(itertools.product(range(self.vocabulary), repeat=self.length))

    def batch(self, rows: list[tuple[int, tuple[int, ...]]], group: list[int], source: list[Source] | None = None) -> Trajectories:
        """Rows of (prompt, answer) as trajectories with their rewards."""
        action = torch.tensor([[prompt, *answer] for prompt, answer in rows], dtype=torch.long).reshape(len(rows), self.length + 1)
        mask = torch.ones_like(action, dtype=torch.bool)
        mask[:, 0] = False
        terminated = torch.zeros_like(mask)
        terminated[:, -1] = True
        return Trajectories(
            action=action,
            mask=mask,
            terminated=terminated,
            group=torch.tensor(group, dtype=torch.long),
            source=None if source is None else torch.tensor([int(s) for s in source]),
            reward=torch.tensor([self.reward(p, a) for p, a in rows], dtype=torch.float64),
        )

    def probabilities(self, policy: Policy, prompt: int) -> Tensor:
        """[N] probability of every answer under the policy, with the graph."""
        answers = self.answers()
        batch = self.batch([(prompt, a) for a in answers], [0] * len(answers))
        return policy.evaluate(batch).log_prob.sum(1).exp()

    def expected_reward(self, policy: Policy) -> Tensor:
        """The exact expected reward, averaged over prompts, with the graph."""
        totals = [
            (self.probabilities(policy, p) * torch.tensor([self.reward(p, a) for a in self.answers()], dtype=torch.float64)).sum()
            for p in self.prompts
        ]
        return torch.stack(totals).mean()

    def best_answer(self, prompt: int) -> tuple[int, ...]:
        return max(self.answers(), key=lambda answer: self.reward(prompt, answer))


class StringExperience(Experience):
    """Rollouts of a string problem; the demonstration of a prompt is its best answer."""

    def __init__(self, problem: StringProblem, prompts: int = 8) -> None:
        self.problem, self.prompts = problem, prompts
        self.max_new_tokens = problem.length

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        assert isinstance(policy, BigramPolicy)
        problem = self.problem
        count = max(1, round(self.prompts * demand.share))
        numbers = range(count)[demand.worker :: demand.workers]
        first = demand.iteration * 1000 + demand.round * 100
        rows: list[tuple[int, tuple[int, ...]]] = []
        group: list[int] = []
        source: list[Source] = []
        draw = generator(demand.seed, "strings", demand.iteration, demand.round, demand.worker)
        logits = policy.logits.detach()
        for number in numbers:
            prompt = problem.prompts[(demand.iteration * count + number) % len(problem.prompts)]
            for _ in range(demand.rollouts):
                tokens = [prompt]
                for _ in range(problem.length):
                    tokens.append(int(torch.multinomial(logits[tokens[-1]].softmax(-1), 1, generator=draw)))
                rows.append((prompt, tuple(tokens[1:])))
            group += [first + number] * demand.rollouts
            source += [Source.ROLLOUT] * demand.rollouts
            if demand.demonstrations:
                rows.append((prompt, problem.best_answer(prompt)))
                group.append(first + number)
                source.append(Source.DEMONSTRATION)
        batch = problem.batch(rows, group, source)
        with torch.no_grad():
            batch = batch.replace(behaviour_log_prob=policy.evaluate(batch).log_prob)
        return batch, {}
