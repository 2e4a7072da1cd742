"""What a law is tried on: a batch small enough to be named in one line, and what is done to it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.lab.strings import BigramPolicy
from unipg.seeding import generator
from unipg.trajectories import Source, Trajectories

VOCABULARY = 5
SETTING = Setting(max_new_tokens=6)
RUBBISH = (float("nan"), float("inf"), -float("inf"), 1e30)
SPOILED = (
    "log_prob",
    "old_log_prob",
    "behaviour_log_prob",
    "anchor_log_prob",
    "value",
    "step_reward",
    "bootstrap_value",
    "action",
    "old_entropy",
)
"""What may hold anything where the policy did not act; `log_prob` is all that the current policy says."""


class LawBroken(AssertionError):
    """A law does not hold; the message says which one, how, and on which example."""


@dataclass(frozen=True)
class Row:
    """One trajectory of a case."""

    group: int
    source: Source
    prompt: int
    """Tokens before the policy's first turn, at least 1."""
    turns: tuple[int, ...]
    """After the prompt: 1 for a token of the policy, 0 for one of the environment."""
    reward: float

    @property
    def length(self) -> int:
        """Tokens of the policy."""
        return sum(self.turns)


@dataclass(frozen=True)
class Case:
    """Rows, and what a law does to them. `seed` decides tokens, log-probabilities and values."""

    rows: tuple[Row, ...]
    seed: int = 0
    columns: int = 0
    """Columns of padding to add."""
    order: tuple[int, ...] = ()
    """Another order of the rows."""
    cut: tuple[tuple[int, ...], ...] = ()
    """Row numbers of each micro-batch."""
    workers: int = 1
    """Workers that share the groups: group g belongs to worker g mod workers."""
    rubbish: float = float("nan")
    spoiled: tuple[str, ...] = SPOILED

    def policy(self) -> BigramPolicy:
        return BigramPolicy(VOCABULARY, self.seed)

    def batch(self) -> Trajectories:
        """The rows with everything an algorithm may read; log-probabilities of the other policies are near the current ones."""
        draw = generator(self.seed, "law batch")
        shape = (len(self.rows), max((r.prompt + len(r.turns) for r in self.rows), default=1))
        mask = torch.zeros(shape, dtype=torch.bool)
        present = torch.zeros(shape, dtype=torch.bool)
        for number, row in enumerate(self.rows):
            end = row.prompt + len(row.turns)
            mask[number, row.prompt : end] = torch.tensor(row.turns, dtype=torch.bool)
            present[number, :end] = True
        steps = torch.arange(shape[1])
        batch = Trajectories(
            action=torch.randint(0, VOCABULARY, shape, generator=draw),
            mask=mask,
            present=present,
            group=torch.tensor([r.group for r in self.rows], dtype=torch.long),
            source=torch.tensor([int(r.source) for r in self.rows], dtype=torch.long),
            reward=torch.tensor([r.reward for r in self.rows], dtype=torch.float64),
            terminated=mask & (steps == torch.where(mask, steps, -1).amax(1, keepdim=True)),
            annotations={"stratum": [int(row.reward) ^ len(row.turns) % 2 for row in self.rows]},
        )
        with torch.no_grad():
            log_prob = self.policy().evaluate(batch).log_prob

        def near(center: Tensor | float, spread: float) -> Tensor:
            return torch.where(mask, center + spread * torch.randn(shape, dtype=torch.float64, generator=draw), 0)

        return batch.replace(
            behaviour_log_prob=near(log_prob, 0.3),
            old_log_prob=near(log_prob, 0.3),
            anchor_log_prob=near(log_prob, 0.3),
            value=near(0.0, 1.0),
            old_entropy=near(1.0, 0.1),
        )

    def describe(self, *shows: str) -> str:
        """The case in one line; of what a law does to it, the fields named in `shows` where there is anything to say."""
        groups = len({r.group for r in self.rows})
        counts = [f"{_plural(groups, 'group')}"]
        for source in Source:
            of_groups = [sum(r.group == g and r.source is source for r in self.rows) for g in sorted({r.group for r in self.rows})]
            if any(of_groups):
                same = len(set(of_groups)) == 1
                what = source.name.lower()
                counts.append(f"x {_plural(of_groups[0], what)}" if same else f"x {of_groups} {what}s")
        facts = [" ".join(counts), f"lengths {[r.length for r in self.rows]}"]
        if any(0 in r.turns for r in self.rows):
            facts.append(f"turns {[''.join(map(str, r.turns)) for r in self.rows]}")
        facts.append("rewards [" + ", ".join(f"{r.reward:g}" for r in self.rows) + "]")
        facts += [f"seed {self.seed}"] if self.seed else []
        said = {
            "columns": f"{_plural(self.columns, 'more column')} of padding",
            "order": f"order {list(self.order)}",
            "cut": f"cut {[list(c) for c in self.cut]}",
            "workers": f"{_plural(self.workers, 'worker')}",
        }
        return ", ".join(facts + [said[name] for name in shows if getattr(self, name) != getattr(Case, name)])


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def random_cases(algorithm: Algorithm, seed: int = 0, groups: int = 4) -> list[Case]:
    """Cases with the same rows: both sources, several turns, rows of any length, an empty row; cut, ordered and spoiled differently."""
    draw = generator(seed, "law case")

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    rollouts = min(max(algorithm.rollouts, algorithm.needs_group, 2), 4) if algorithm.uses_rollouts else 0
    rows: list[Row] = []
    for group in range(groups):
        prompt = integer(1, 3)
        for _ in range(rollouts):
            turns = tuple(int(integer(0, 4) > 0) for _ in range(integer(1, 6)))
            rows.append(Row(group, Source.ROLLOUT, prompt, turns, float(integer(0, 1))))
        if algorithm.demonstrations != "none":
            rows.append(Row(group, Source.DEMONSTRATION, prompt, (1,) * integer(1, 6), 1.0))
        scores = {"none": [], "pairs": [1.0, 0.0], "unpaired": [float(group % 2)], "scored": [0.3 * integer(0, 3) for _ in range(3)]}
        rows += [Row(group, Source.PREFERENCE, prompt, (1,) * integer(1, 6), score) for score in scores[algorithm.completions]]
        if algorithm.completions == "unpaired":
            rows.append(Row(group, Source.MISMATCHED, prompt, (1,) * integer(1, 6), 0.0))
    if rollouts:
        rows[0] = dataclasses.replace(rows[0], turns=(0,))  # a row in which the policy did nothing
    cases = []
    for pieces, workers, rubbish in zip((2, 3, len(rows), 2), (1, 2, 3, 1), RUBBISH, strict=True):
        order = torch.randperm(len(rows), generator=draw).tolist()
        share = -(-len(rows) // pieces)
        cut = tuple(tuple(order[start : start + share]) for start in range(0, len(rows), share))
        cases.append(Case(tuple(rows), seed, 3, tuple(reversed(order)), cut, workers, rubbish))
    return cases


def random_batch(algorithm: Algorithm, seed: int = 0, groups: int = 4) -> Trajectories:
    """The batch of the random cases."""
    return random_cases(algorithm, seed, groups)[0].batch()
