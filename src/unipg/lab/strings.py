"""Tiny autoregressive models over short strings: every trajectory can be enumerated, so every expectation is known exactly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unipg.errors import InputError
from unipg.estimator.likelihoods import Reading, categorical_log_prob, read_off
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand, Experience
from unipg.seeding import generator
from unipg.trajectories import Evaluation, Source, Trajectories

MOST_TRAJECTORIES = 100_000


def check_count(count: int, what: str) -> None:
    """Refuses a problem that is too large to enumerate."""
    if count > MOST_TRAJECTORIES:
        shown = str(count) if count < 10**15 else f"about 10^{math.log10(count):.0f}"
        raise InputError(f"{shown} {what} are too many to enumerate; the limit is {MOST_TRAJECTORIES}")


class TabularPolicy(Policy):
    """log pi(action | state) = log softmax(W[state])[action]; value and entropy likewise. W is `[S,A]`, in float64.

    The state of each step is the observation, an int64 `[B,T]`; a subclass may say otherwise.
    """

    has_value = True

    def __init__(self, logits: Tensor) -> None:
        self.logits = nn.Parameter(logits)
        self.value = nn.Parameter(torch.zeros(len(logits), dtype=torch.float64))
        self.module = nn.ParameterDict({"logits": self.logits, "value": self.value})

    def states(self, batch: Trajectories) -> Tensor:
        """[B,T] row of W that decides each action; any valid row where the policy does not act."""
        return torch.where(batch.mask, batch.require("observation", type(self).__name__), 0)

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        assert batch.present is not None
        states, action = self.states(batch), torch.where(batch.present, batch.action, 0)
        log_prob, h = categorical_log_prob(self.logits[states], action)
        values = self.value[states] if value else None
        hidden = nn.functional.one_hot(states[batch.mask], len(self.logits)).to(self.logits.dtype) if readings else None
        read = read_off(self.logits[states], action, batch, readings, hidden, self.logits.T)
        return Evaluation(log_prob, h if entropy else None, values, read).where(batch.mask)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.module.state_dict(), folder / "tabular.pt")


class BigramPolicy(TabularPolicy):
    """log pi(token | previous token) = log softmax(W[previous])[token], W `[V,V]`: the smallest autoregressive model."""

    def __init__(self, vocabulary: int, seed: int = 0, scale: float = 0.5) -> None:
        super().__init__(scale * torch.randn(vocabulary, vocabulary, dtype=torch.float64, generator=generator(seed, "bigram")))
        self.vocabulary = vocabulary

    def states(self, batch: Trajectories) -> Tensor:
        assert batch.present is not None
        tokens = torch.where(batch.present, batch.action, 0)
        return torch.cat([tokens[:, :1], tokens[:, :-1]], 1)


def repeats_the_prompt(prompt: int, answer: tuple[int, ...]) -> float:
    """1 where every token of the answer equals the prompt."""
    return float(all(token == prompt for token in answer))


@dataclass(frozen=True)
class StringProblem:
    """Prompts of one token, answers of exactly `length` tokens, a reward for every (prompt, answer).

    `reward(prompt, answer)`: by default 1 where every answer token equals the prompt. `end`: a token after which an answer stops; answers
    then have 1 to `length` tokens.
    """

    vocabulary: int = 3
    prompts: tuple[int, ...] = (0, 1)
    length: int = 2
    reward: Callable[[int, tuple[int, ...]], float] = repeats_the_prompt
    end: int | None = None

    def __post_init__(self) -> None:
        check_count(self.count, "strings")

    @property
    def count(self) -> int:
        """Answers to one prompt."""
        if self.end is None:
            return self.vocabulary**self.length
        going = self.vocabulary - 1
        full = going**self.length
        return full + (self.length if going == 1 else (full - 1) // (going - 1))

    def answers(self) -> list[tuple[int, ...]]:
        """Every string, in lexicographic order."""
        if self.end is None:
            return list(itertools.product(range(self.vocabulary), repeat=self.length))
        answers: list[tuple[int, ...]] = []
        going: list[tuple[int, ...]] = [()]
        while going:
            longer = [(*start, token) for start in going for token in range(self.vocabulary)]
            answers += [a for a in longer if a[-1] == self.end or len(a) == self.length]
            going = [a for a in longer if a[-1] != self.end and len(a) < self.length]
        return sorted(answers)

    def batch(self, rows: list[tuple[int, tuple[int, ...]]], group: list[int], source: list[Source] | None = None) -> Trajectories:
        """Rows of (prompt, answer) as trajectories with their rewards."""
        padded = [[prompt, *answer] + [0] * (self.length - len(answer)) for prompt, answer in rows]
        action = torch.tensor(padded, dtype=torch.long).reshape(len(rows), self.length + 1)
        last = torch.tensor([len(answer) for _, answer in rows], dtype=torch.long).unsqueeze(1)
        steps = torch.arange(self.length + 1)
        mask = (steps > 0) & (steps <= last)
        return Trajectories(
            action=action,
            mask=mask,
            present=steps <= last,
            terminated=mask & (steps == last),
            group=torch.tensor(group, dtype=torch.long),
            source=None if source is None else torch.tensor([int(s) for s in source]),
            reward=torch.tensor([self.reward(p, a) for p, a in rows], dtype=torch.float64),
            annotations={"stratum": [len(answer) for _, answer in rows]},
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
    """Rollouts of a string problem; the demonstration of a prompt is its best answer, and so is the chosen of a pair."""

    def __init__(self, problem: StringProblem, prompts: int = 8) -> None:
        self.problem, self.prompts = problem, prompts
        self.max_new_tokens = problem.length

    def _completions(self, prompt: int, number: int, demand: Demand, draw: torch.Generator) -> list[tuple[int, ...]]:
        """The best answer and others drawn from the worse ones; of those that were liked or not, one of the two in turn."""
        best = self.problem.best_answer(prompt)
        worse = [a for a in self.problem.answers() if self.problem.reward(prompt, a) < self.problem.reward(prompt, best)]
        others = [worse[int(i)] for i in torch.randint(len(worse), (3,), generator=draw)]
        liked = (number + demand.iteration) % 2 == 0
        return {"none": [], "pairs": [best, others[0]], "unpaired": [best if liked else others[0]], "scored": [best, *others]}[
            demand.completions
        ]

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
                    if tokens[-1] == problem.end:
                        break
                rows.append((prompt, tuple(tokens[1:])))
            group += [first + number] * demand.rollouts
            source += [Source.ROLLOUT] * demand.rollouts
            given = [(prompt, problem.best_answer(prompt), Source.DEMONSTRATION)] if demand.demonstrations else []
            given += [(prompt, answer, Source.PREFERENCE) for answer in self._completions(prompt, number, demand, draw)]
            if demand.completions == "unpaired":
                given.append((prompt, problem.best_answer(problem.prompts[(number + 1) % len(problem.prompts)]), Source.MISMATCHED))
            rows += [(prompt, answer) for prompt, answer, _ in given]
            group += [first + number] * len(given)
            source += [kind for _, _, kind in given]
        batch = problem.batch(rows, group, source)
        with torch.no_grad():
            batch = batch.replace(behaviour_log_prob=policy.evaluate(batch).log_prob)
        return batch, {}
