"""What a policy makes itself as data for its decoder: collected in one iteration, passed over until nothing is learned any more."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unipg.algorithms.learners import Learner
from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.now import NOISE
from unipg.seeding import derived_seed, generator
from unipg.training.collection import collect
from unipg.training.diagnostics import Histogram
from unipg.training.feeds.base import Feed
from unipg.training.feeds.rollouts import Rollouts
from unipg.training.feeds.staged import Staged
from unipg.training.learner import Learning
from unipg.training.stages import renew
from unipg.trajectories import Trajectories

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer

BINS, SHOWN, MOST_SHOWN = 40, 2048, 8
"""Of the histograms that are kept of data and samples: bins, pairs, dimensions."""
STATE = ("observation", "decoded", "held_observation", "held_decoded", "best", "best_error", "errors", "since", "row")


class Pairs(Feed):
    """(s, u) of the policy as it is, collected with its draws; a round is a pass. The decoder is drawn anew once they are collected.

    Between two passes the validation error decides which weights are kept (those with the least) and whether there are more passes.
    """

    def __init__(self, run: Trainer, rollouts: Rollouts) -> None:
        super().__init__(run)
        if not isinstance(run.policy, ActorCritic) or run.policy.decoder is None:
            raise InputError(f"algorithm '{run.algorithm.name}' trains a decoder; accepted: a controller that has one")
        if run.workers.world > 1:
            raise InputError(f"algorithm '{run.algorithm.name}' keeps what it generates in one place; accepted: one worker")
        if run.training.overlap:
            raise InputError(f"training.overlap is true, but algorithm '{run.algorithm.name}' goes through stages; accepted: false")
        self.policy, self.rollouts = run.policy, rollouts
        self._forget()

    def _forget(self) -> None:
        self.observation: Tensor | None = None
        """[N,…] of the pairs to learn from, as stored; `decoded` [N,A] beside it, and `held_…` of those that are for validation."""
        self.decoded: Tensor | None = None
        self.held_observation: Tensor | None = None
        self.held_decoded: Tensor | None = None
        self.best: list[Tensor] = []
        self.best_error = float("inf")
        self.errors: list[float] = []
        """On the held-out pairs, after each pass."""
        self.since = 0
        self.row: dict[str, Any] = {}
        self._order: tuple[int, Tensor] | None = None

    @property
    def learning(self) -> Learning:
        """Whose turn it is."""
        return next(found for found in self.run.learners if found.spec.data is not None and found.is_on(self.run.iteration))

    @property
    def begun(self) -> bool:
        return self.observation is not None

    def steps(self, learner: Learner) -> int:
        assert learner.data is not None
        return learner.data.epochs  # as far as is known: how many pairs there will be is not

    def begin(self) -> None:
        run, learning = self.run, self.learning
        data = learning.spec.data
        assert data is not None
        began = time.perf_counter()
        observed, latent, demand = [], [], self.rollouts.demand(run.iteration)
        for number in range(data.batches):
            seed = derived_seed(run.seed, "pairs", number)
            found = collect(run.algorithm, run.experience, self.policy, dataclasses.replace(demand, seed=seed), run.workers.sum)
            live = found.batch.mask
            observed.append(found.batch.require("observation", "a decoder")[live])
            latent.append(found.batch.action[live])
            self.row = found.metrics
        self.row["time/rollout"] = time.perf_counter() - began
        observation, decoded = torch.cat(observed), self._decoded(torch.cat(observed), torch.cat(latent))
        if not bool(torch.isfinite(decoded).all()):
            raise InputError(f"the decoder gives actions that are not finite (iteration {run.iteration})")
        order = torch.randperm(len(decoded), generator=generator(run.seed, "pairs", run.iteration))[: data.most].to(decoded.device)
        held = max(1, round(data.held_out * len(order)))
        if len(order) < 2:
            raise InputError(f"{len(order)} pairs were collected for the decoder; accepted: 2 or more, one of them for validation")
        self.held_observation, self.held_decoded = observation[order[:held]], decoded[order[:held]]
        self.observation, self.decoded = observation[order[held:]], decoded[order[held:]]
        self.row |= {"decoder/pairs": float(len(self.decoded)), "decoder/saturated": float((decoded.tanh().abs() > 0.99).float().mean())}
        renew(run, learning)
        assert self.policy.decoder is not None
        self.policy.decoder.fit(self.policy.condition(self.observation))
        run.row, self.rounds = {}, data.epochs

    @torch.no_grad()
    def _decoded(self, observation: Tensor, latent: Tensor) -> Tensor:
        """[N,A] in pieces."""
        assert self.policy.decoder is not None
        size = self.run.training.micro_batch_tokens
        pieces = zip(self.policy.condition(observation).split(size), latent.split(size), strict=True)
        return torch.cat([self.policy.decoder.decode(condition.float(), z) for condition, z in pieces])

    def gather(self, round: int) -> None:
        if round > 0 and not self._over:
            self._judge(round)

    @property
    def _over(self) -> bool:
        data = self.learning.spec.data
        assert data is not None
        return self.since >= data.patience

    @torch.no_grad()
    def _judge(self, passes: int) -> None:
        """The validation error after so many passes, at the same noise each time."""
        assert self.held_observation is not None
        assert self.held_decoded is not None
        rows, total = self._rows(self.held_observation, self.held_decoded, ("held",)), 0.0
        size = self.run.training.micro_batch_tokens
        for index in torch.arange(len(rows), device=rows.mask.device).split(size):
            total += float(self.policy.now(rows.select(index)).denoised("decoder").sum())
        error = total / len(rows)
        self.errors.append(error)
        self.since += 1
        if error < self.best_error:
            self.best_error, self.since = error, 0
            self.best = [p.detach().clone() for p in self.policy.networks["decoder"]]

    def updates(self, round: int) -> int:
        assert self.decoded is not None
        assert self.learning.spec.data is not None
        return 0 if self._over else -(-len(self.decoded) // self.learning.spec.data.batch)

    def draw(self, round: int, number: int) -> Trajectories:
        assert self.observation is not None
        assert self.decoded is not None
        assert self.learning.spec.data is not None
        run, batch = self.run, self.learning.spec.data.batch
        if self._order is None or self._order[0] != round:
            order = torch.randperm(len(self.decoded), generator=generator(run.seed, "pairs", run.iteration, round))
            self._order = round, order.to(self.decoded.device)
        mine = self._order[1][number * batch : (number + 1) * batch]
        rows = self._rows(self.observation[mine], self.decoded[mine], ("pass", round, number))
        return self.learning.objective.prepare(rows, self.learning.planning())

    def _rows(self, observation: Tensor, decoded: Tensor, turn: tuple[Any, ...]) -> Trajectories:
        """[N,1] pairs with the noise that they are tried at."""
        assert self.policy.decoder is not None
        assert self.learning.spec.data is not None
        source = generator(self.run.seed, "denoise", self.run.iteration, *turn)
        noise = self.policy.decoder.noise((len(decoded), 1, self.learning.spec.data.draws), source)
        mask = torch.ones(len(decoded), 1, dtype=torch.bool, device=decoded.device)
        rows = Trajectories(action=decoded.unsqueeze(1), mask=mask, observation=observation.unsqueeze(1))
        return rows.with_planned(**{NOISE.format("decoder"): noise.to(decoded.device)})

    def due(self, round: int, number: int) -> list[Learning]:
        return [self.learning]

    @torch.no_grad()
    def finish(self) -> dict[str, Any]:
        if not self._over:
            self._judge(self.rounds)
        for own, best in zip(self.policy.networks["decoder"], self.best, strict=True):
            own.copy_(best)
        told = {"decoder/validation": self.best_error, "decoder/passes": float(len(self.errors))}
        if self.run.tracker:
            self.run.tracker.histograms(self.run.iteration, self._shown())
        return self.row | told

    @torch.no_grad()
    def _shown(self) -> list[Histogram]:
        """What the environment was given in each dimension, beside what the new decoder makes of N(0, I) in the same states, in (−1, 1)."""
        assert self.observation is not None
        assert self.decoded is not None
        observation, decoded = self.observation[:SHOWN], self.decoded[:SHOWN]
        latent = torch.randn(decoded.shape, generator=generator(self.run.seed, "shown", self.run.iteration)).to(decoded)
        both = {"data": decoded, "samples": self._decoded(observation, latent)}
        edges = torch.linspace(-1, 1, BINS + 1).tolist()
        return [
            Histogram(f"decoder/{what}/{k}", edges, [int(n) for n in torch.histc(u[:, k].tanh().float().cpu(), BINS, -1, 1)])
            for what, u in both.items()
            for k in range(min(decoded.shape[1], MOST_SHOWN))
        ]

    def learnt(self) -> None:
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._forget()
        for name in STATE:
            setattr(self, name, state[name])
        if self.begun:
            assert self.learning.spec.data is not None
            self.rounds = self.learning.spec.data.epochs


class Generating(Staged):
    """Batches of rollouts for most learners, and `Pairs` in the iterations of those that have `data`."""

    def __init__(self, run: Trainer) -> None:
        rollouts = Rollouts(run)
        super().__init__(run, pairs=Pairs(run, rollouts), rollouts=rollouts)

    def of(self, learner: Learner) -> Feed:
        return self.feeds["rollouts" if learner.data is None else "pairs"]
