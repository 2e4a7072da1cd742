"""Batches of fresh trajectories: collected, prepared as a whole, and used for some passes by each learner. On policy, in one word."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unipg.algorithms.learners import Learner
from unipg.errors import InputError
from unipg.estimator import GAE, Advantage, ValueLoss
from unipg.estimator.directions import Plain
from unipg.estimator.policy_gradient import check_log_probs
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.base import Policy
from unipg.policies.now import NOISE
from unipg.rollouts.base import Demand
from unipg.seeding import derived_seed, generator
from unipg.training.collection import Collected, CollectionProcess, check_sent, collect
from unipg.training.diagnostics import value_metrics
from unipg.training.feeds.base import Feed
from unipg.training.learner import Learning
from unipg.training.surface import Displaced
from unipg.trajectories import Trajectories

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer

COUNTED = ("environment/steps", "return/last_100")
"""Metrics that go on from batch to batch: of an iteration's last one."""


class Rollouts(Feed):
    """One round: a batch is collected and prepared, then every learner in its turn makes its passes over it."""

    def __init__(self, run: Trainer) -> None:
        super().__init__(run)
        self.batch: Trajectories | None = None
        self._shuffled: tuple[tuple[str, int], Trajectories, list[Trajectories]] | None = None
        self._mine: tuple[str, Trajectories, Trajectories] | None = None
        self.proposal: Policy | None = None
        if run.algorithm.proposes or run.training.overlap:
            self.proposal = run.policy.proposal()
            self.proposal.module.eval().requires_grad_(False)
        self.proposed_at = 0
        self.ahead: CollectionProcess | None = None
        self.unlearned: Trajectories | None = None  # what samplers have yet to learn from, while a batch is collected ahead
        self._schedules: dict[tuple[str, ...], list[tuple[Learning, int, int, int]]] = {}
        self._check_passes()
        run.experience.check(run.policy, self.demand(0))
        if run.training.overlap:
            run.experience.check_ahead()
            check_sent(run.algorithm, run.experience)

    def _check_passes(self) -> None:
        """Refuses numbers of passes that nobody reads, or that a direction cannot make."""
        run, who = self.run, f"algorithm '{self.run.algorithm.name}'"
        for name in ("epochs", "minibatches"):
            given = getattr(run.training, name)
            own = [getattr(learner, name) for learner in run.learned]
            if given != 1 and None not in own:
                raise InputError(f"training.{name} is {given}, but {who} says itself how often its learners use a batch; accepted: 1")
            for learner in run.learned:
                if learner.direction.once and (getattr(learner, name) or given) != 1:
                    raise InputError(f"training.{name} is {given}, but {who} uses every batch for exactly one step; accepted: 1")
        displacing = [learner for learner in run.learned if learner.direction.displaces]
        if len(displacing) > 1:
            raise InputError(f"{who} has several learners that say where batches are collected; accepted: one")
        if displacing and (run.training.overlap or run.algorithm.proposes):
            why = "training.overlap is true" if run.training.overlap else "a proposal of its own samples"
            raise InputError(f"{why}, but {who} says with which weights each batch is collected; accepted: training.overlap: false")

    @property
    def critic(self) -> GAE | None:
        """What a controller's critic of states is trained on."""
        regressions = (term.gae for term in self.objective.terms if isinstance(term, ValueLoss))
        return next(regressions, None) if self.run.policy.memoryless else None

    @property
    def schedule(self) -> list[tuple[Learning, int, int, int]]:
        """The updates on a batch: the learner, its pass, the part of that pass, and how many parts one has."""
        on, training = self.on, self.run.training
        names = tuple(learner.name for learner in on)
        if names not in self._schedules:
            passes = [(a, a.spec.epochs or training.epochs, a.spec.minibatches or training.minibatches) for a in on]
            self._schedules[names] = [
                (a, epoch, part, parts) for a, epochs, parts in passes for epoch in range(epochs) for part in range(parts)
            ]
        return self._schedules[names]

    def steps(self, learner: Learner) -> int:
        training = self.run.training
        return self.iterations_of(learner) * (learner.epochs or training.epochs) * (learner.minibatches or training.minibatches)

    @property
    def begun(self) -> bool:
        return self.batch is not None

    def updates(self, round: int) -> int:
        return len(self.schedule)

    def due(self, round: int, number: int) -> list[Learning]:
        return [self.schedule[number][0]]

    def finish(self) -> dict[str, Any]:
        run, batch = self.run, self.batch
        assert batch is not None
        row = run.algorithm.learn(batch, run.learner.planning(), run.learner.evaluate)
        self._observe(batch)
        if run.iteration == 0:
            self.tell_still("the first iteration's")
        return row

    def _observe(self, batch: Trajectories) -> None:
        """What a policy must know of its inputs follows the batches."""
        self.run.policy.observe(batch, self.run.workers.sum)

    def learnt(self) -> None:
        """After the row of the iteration has been told: samplers learn from its batch, and it is done."""
        assert self.batch is not None
        if not self.run.training.overlap:
            self.run.experience.update(self.batch, self.run.learner.memory)
        elif self.run.experience.learns:
            self.unlearned = self.batch
        self.batch, self._shuffled, self._mine, self.displaced = None, None, None, ()

    def close(self) -> None:
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        return {
            "batch": None if self.batch is None else self.batch.to("cpu").state_dict(),
            "displaced": [(each.batch.to("cpu").state_dict(), each.point) for each in self.displaced],
            "unlearned": None if self.unlearned is None else self.unlearned.to("cpu").state_dict(),
            "proposed_at": self.proposed_at,
            "proposal": None if self.proposal is None else self.proposal.module.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.proposal is not None:
            self.proposal.module.load_state_dict(state["proposal"])
        self.proposed_at = state["proposed_at"]
        for name in ("batch", "unlearned"):
            setattr(self, name, None if state[name] is None else Trajectories(**state[name]).to(self.run.policy.device))
        device = self.run.policy.device
        self.displaced = [Displaced(Trajectories(**batch).to(device), point) for batch, point in state["displaced"]]
        if self.displaced:
            self.batch = self.displaced[0].batch

    # ------------------------------------------------------------------------------------------------ collecting

    def _look(self) -> None:
        """A batch that nothing is learned from but what the policy must know of its inputs first."""
        looked = collect(self.run.algorithm, self.run.experience, self.run.policy, self.demand(-1), self.run.workers.sum)
        self.run.policy.observe(looked.batch.to(self.run.policy.device), self.run.workers.sum)
        if self.proposal is not None:
            self._renew_proposal()

    def begin(self) -> None:
        if self.run.policy.must_observe:
            self._look()
        mover = next((learner for learner in self.run.learners if learner.direction.displaces), None)
        if mover is None:
            self.batch, self.run.row = self._collected()
            return
        found, rows = [], []
        for number, point in enumerate(mover.points()):
            with mover.at(point):  # not longer, also where collecting is interrupted: what is then saved refers to the iterate's weights
                batch, row = self._collected(number)
            found.append(Displaced(batch, point))
            rows.append(row)
        self.displaced, self.batch = found, found[0].batch
        self.run.row = rows[-1] | rows[0] | {name: rows[-1][name] for name in COUNTED if name in rows[-1]}
        self.run.row["time/rollout"] = sum(row["time/rollout"] for row in rows)

    def _collected(self, number: int = 0) -> tuple[Trajectories, dict[str, Any]]:
        """Batch `number` of an iteration, prepared; and metrics of it."""
        collected = self._fresh(number)
        metrics = collected.metrics
        if self.run.tracker:
            self.run.tracker.histograms(self.run.iteration, collected.histograms)
        if collected.trouble:
            broken = self.run.iteration == 0 and metrics.get("verifier/raised_fraction") == 1
            self.run.tell_trouble(collected.trouble, "every rollout" if broken else "", "the rollouts")
        batch = collected.batch.to(self.run.policy.device)
        if self.run.policy.memoryless and not self._cuts_steps:
            batch = batch.as_episodes()  # its rows may be windows with several of them
            self._check_groups(batch)
        batch = self._prepare(self._with_noise(self._joined(batch, number), number))
        metrics |= self.run.algorithm.metrics(batch)
        if self.critic is not None and bool(batch.mask.any()):
            metrics |= value_metrics(batch, self.critic)
        if self.run.algorithm.proposes and self.run.algorithm.adopts(batch, self.run.learner.planning()):
            self._renew_proposal()
            metrics["proposal/adopted"] = 1.0
        live = batch.mask.any(1)
        if not bool(live.all()):  # nothing is left in them to learn from, and no aggregate counts them
            batch = batch.select(live)
        return batch.as_steps() if self._cuts_steps else batch, metrics

    def _joined(self, batch: Trajectories, number: int) -> Trajectories:
        """Fresh batch `number` with what is added to it."""
        return batch

    @property
    def _cuts_steps(self) -> bool:
        """Whether the whole batch is cut into steps: not where a learner is yet to look at whole rows (`Advantage.held`)."""
        return all(learner.cuts_steps and not learner.objective.holds for learner in self.on)

    def _fresh(self, number: int) -> Collected:
        """Fresh batch `number` of this iteration; with `overlap` that of the process that collected it during the last one."""
        if not self.run.training.overlap:
            demand = self.demand(self.run.iteration)
            if number:  # each draws by a seed of its own
                demand = dataclasses.replace(demand, seed=derived_seed(self.run.seed, "batch", number))
            return collect(self.run.algorithm, self.run.experience, self.proposal or self.run.policy, demand, self.run.workers.sum)
        if self.ahead is None:
            assert self.proposal is not None
            self.ahead = CollectionProcess(self.run.algorithm, self.run.experience, self.proposal)
            self.proposal = self.ahead.policy
        if not self.ahead.busy:  # the first iteration, or the first after a resume
            self.ahead.start(self.demand(self.run.iteration), self.run.experience.state_dict())
        began = time.perf_counter()
        collected, state = self.ahead.result(lambda: self.run.stop_requested and self.run.workers.world == 1)
        waited = {"time/waited_for_rollouts": time.perf_counter() - began, "staleness/steps": float(self.run.step - self.proposed_at)}
        collected.metrics |= waited
        self.run.experience.load_state_dict(state)
        if self.unlearned is not None:
            self.run.experience.update(self.unlearned, self.run.learner.memory)
        self._renew_proposal()  # also in the last iteration: the run may be continued with more of them
        if self.run.iteration + 1 < self.run.training.iterations:
            self.ahead.start(self.demand(self.run.iteration + 1), self.run.experience.state_dict())
        return collected

    def demand(self, iteration: int) -> Demand:
        return Demand(
            iteration=iteration,
            rollouts=self.run.algorithm.rollouts if self.run.algorithm.uses_rollouts else 0,
            demonstrations=self.run.algorithm.demonstrations != "none",
            score_demonstrations=self.run.algorithm.scores_demonstrations,
            completions=self.run.algorithm.completions,
            value=self.run.policy.has_value,
            window=self.run.algorithm.window,
            vines=self.run.algorithm.vines,
            seed=self.run.seed,
            worker=self.run.workers.rank,
            workers=self.run.workers.world,
            should_stop=lambda: self.run.stop_requested and self.run.workers.world == 1 and not self.run.brief,
        )

    def _with_noise(self, batch: Trajectories, number: int) -> Trajectories:
        """The batch with what fresh actions are drawn from, the same in all passes over it."""
        if not self.objective.noise:
            return batch
        policy, run = self.run.policy, self.run
        assert isinstance(policy, ActorCritic)
        source = generator(run.seed, "noise", run.iteration, number, run.workers.rank)
        size = (*batch.mask.shape, policy.actions.noises)
        noise = {NOISE.format(at): torch.randn(size, generator=source) for at in sorted(self.objective.noise)}
        return batch.with_planned(**{name: values.to(policy.device) for name, values in noise.items()})

    def _renew_proposal(self) -> None:
        assert self.proposal is not None
        self.proposal.follow(self.run.policy)
        self.proposed_at = self.run.step

    def _prepare(self, batch: Trajectories) -> Trajectories:
        """Whole-batch work: what planning reads, the algorithm's own, advantages, then log-probabilities under frozen policies."""
        planning = self.run.learner.planning()
        reads = self.objective.reads | self.run.algorithm.reads
        first = self.run.algorithm.reads | (reads & {"value"})
        if first & {"old_entropy", "value"} and len(self.schedule) > 1:
            first |= reads & {"old_log_prob"}  # of the same pass
        batch = self._frozen(batch, first)
        batch = self.objective.prepare(self.run.algorithm.prepare(batch, self.run.setting, planning), planning)
        if len(self.schedule) == 1 and isinstance(self.run.learner.direction, Plain):
            reads = reads - {"old_log_prob"}  # the policy has not moved: the ratio is 1 to the last bit
        return self._frozen(batch, reads, None if self.objective.reach == "batch" else self.objective.touched_rows(batch))

    def _frozen(self, batch: Trajectories, fields: frozenset[str], rows: Tensor | None = None) -> Trajectories:
        """The batch with the named log-probabilities, entropies and values, taken without gradient by old policy, critic and anchor.

        `rows [B]`: only those are evaluated; the others cannot move the policy.
        """
        sources = {"old_log_prob": "log_prob", "old_entropy": "entropy", "value": "value"}
        missing = [name for name in sources if name in fields and getattr(batch, name) is None]
        if missing:
            now = self.run.learner.frozen(self.run.policy, batch, rows, value="value" in missing, entropy="old_entropy" in missing)
            batch = batch.replace(**{name: getattr(now, sources[name]) for name in missing})
        if "anchor_log_prob" in fields and batch.anchor_log_prob is None:
            assert self.run.anchor is not None
            batch = batch.replace(anchor_log_prob=self.run.learner.frozen(self.run.anchor, batch, rows).log_prob)
            check_log_probs(batch.require("anchor_log_prob", "the anchor"), batch, "anchor_log_prob")
        return batch

    def _check_groups(self, batch: Trajectories) -> None:
        """Of rows that came without prompts that they answer: whether there is anything to compare where something is compared."""
        assert batch.group is not None
        compares = self.run.algorithm.needs_group > 1 or self.objective.compares
        if compares and len(batch.group.unique()) == len(batch):
            raise InputError(
                f"algorithm '{self.run.algorithm.name}' compares the rows of a group, but each row of this batch is one by itself"
            )

    # ------------------------------------------------------------------------------------------------ drawing

    def draw(self, round: int, number: int) -> Trajectories:
        """The rows of an update: a share of a permutation that seed, iteration and pass decide.

        Of rows, or of whole groups where an advantage looks at them.
        """
        assert self.batch is not None
        learner, epoch, part, parts = self.schedule[number]
        if learner.spec.afresh and (epoch, part) == (0, 0):
            learner.forget()
        batch = self._own(learner)
        if parts == 1:
            return batch
        turn = ("order", self.run.iteration, epoch) if learner.name == "policy" else ("order", learner.name, self.run.iteration, epoch)
        if learner.objective.reach == "group":  # a pair that is torn apart would be compared with nothing
            assert batch.group is not None
            groups, unit = batch.group.unique(return_inverse=True)
            order = torch.randperm(len(groups), generator=generator(self.run.seed, *turn))
            return batch.select(torch.isin(unit, order.to(unit.device).tensor_split(parts)[part]))
        key = learner.name, epoch
        if self._shuffled is None or self._shuffled[0] != key or self._shuffled[1] is not batch:
            order = torch.randperm(len(batch), generator=generator(self.run.seed, *turn))
            self._shuffled = key, batch, batch.select(order.to(batch.mask.device)).cut(parts)
        return self._shuffled[2][part]

    def _own(self, learner: Learning) -> Trajectories:
        """The batch as a learner has it: with what its terms hold, and, of steps that may be cut, those alone that any of them takes."""
        assert self.batch is not None
        if learner.objective.holds and next(iter(learner.objective.held)) not in self.batch.planned:
            self.batch = self._held(learner.spec.role, self.batch)
        batch = self.batch
        if self._cuts_steps or not learner.cuts_steps:
            return batch
        if self._mine is None or self._mine[0] != learner.name or self._mine[1] is not batch:
            self._mine = learner.name, batch, batch.replace(mask=learner.objective.taken(batch)).as_steps()
        return self._mine[2]

    def _held(self, role: str, batch: Trajectories) -> Trajectories:
        """With the advantages that all learners of a role hold, each of them taken once: of the networks as they are now."""
        found: dict[Advantage, Tensor] = {}
        with torch.no_grad():
            for learner in self.on:
                if learner.spec.role == role:
                    batch = learner.objective.hold(batch, learner.planning(), learner.said(batch), found)
        return batch
