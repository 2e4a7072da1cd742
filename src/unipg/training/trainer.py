"""The one loop: collect, prepare, cut, step; for every method, for text and for control."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.errors import InputError
from unipg.estimator import Objective, Planning, Progress
from unipg.estimator.likelihoods import Reading, position_keys
from unipg.estimator.policy_gradient import check_log_probs, corrected
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand, EvaluationResult, Experience, Interrupted
from unipg.seeding import generator, seed_torch
from unipg.training.checkpoints import random_states, read_checkpoint, restore_random_states, write_checkpoint
from unipg.training.collection import Collected, CollectionProcess, collect
from unipg.training.diagnostics import UpdateDiagnostics
from unipg.training.distribution import Workers
from unipg.training.optimization import OptimizerRecipe
from unipg.training.tracking import Tracker
from unipg.training.vectors import ParameterVector
from unipg.trajectories import Evaluation, Trajectories


@dataclass(frozen=True)
class TrainingRecipe:
    """How long, how much at once, how often."""

    iterations: int = 100
    """Collect-and-update rounds."""
    prompts: int = 32
    """Prompts per iteration (language)."""
    epochs: int = 1
    """Passes over each iteration's batch."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    micro_batch_tokens: int = 16384
    """Most tokens in one forward pass; a memory limit that does not change the gradient."""
    save_every: int = 1
    """Iterations between checkpoints: what a kill can lose."""
    evaluate_every: int = 0
    """Iterations between held-out evaluations; 0 for before and after only."""
    overlap: bool = False
    """Collect the next batch in a process of its own while this one is trained on: it is then one iteration old, and corrected for."""
    overlap_limit: float | None = 2.0
    """Largest weight pi_old / pi_behaviour of a token in that correction; null for none."""

    def __post_init__(self) -> None:
        for name in ("iterations", "prompts", "epochs", "minibatches", "micro_batch_tokens", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name} is {getattr(self, name)}; accepted: 1 or more")
        if self.overlap_limit is not None and not self.overlap_limit >= 1:
            raise InputError(f"training.overlap_limit is {self.overlap_limit}; accepted: a weight of 1 or more, or null for no truncation")


class Observer(Protocol):
    """What is told of progress (the terminal's display)."""

    def phase(self, name: str, done: float) -> None: ...

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None: ...

    def evaluation(self, results: list[EvaluationResult]) -> None: ...


class Silent:
    """An observer that says nothing."""

    def phase(self, name: str, done: float) -> None: ...

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None: ...

    def evaluation(self, results: list[EvaluationResult]) -> None: ...


class Stopped(Exception):
    """Training was stopped on request; the checkpoint is written and `--resume` continues."""


class NonFinite(InputError):
    """A NaN or infinite gradient; the offending batch was dumped."""


class Trainer:
    """Trains `policy` with `algorithm` on `experience`.

        Trainer(GRPO(), policy, experience, folder=Path("runs/mine")).train()

    The folder receives metrics, checkpoints and the final model; see `Tracker` and `write_checkpoint`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        policy: Policy,
        experience: Experience,
        *,
        folder: Path,
        training: TrainingRecipe | None = None,
        optimizer: OptimizerRecipe | None = None,
        anchor: Policy | None = None,
        seed: int = 0,
        tracker: Tracker | None = None,
        observer: Observer | None = None,
        workers: Workers | None = None,
        identity: str = "",
    ) -> None:
        self.algorithm, self.policy, self.experience, self.anchor = algorithm, policy, experience, anchor
        self.training, self.optimizer_recipe = training or TrainingRecipe(), optimizer or OptimizerRecipe()
        self.folder, self.seed, self.identity = folder, seed, identity
        self.observer: Observer = observer or Silent()
        self.workers = workers or Workers()
        self.tracker = tracker
        if self.workers.leads:
            folder.mkdir(parents=True, exist_ok=True)
            self.tracker = tracker or Tracker(folder)
        self.setting = Setting(max_new_tokens=experience.max_new_tokens)
        self.objective: Objective = algorithm.terms(self.setting)
        if self.training.overlap:
            self._check_overlap()
            self.objective = corrected(self.objective, self.training.overlap_limit)
        self._check_needs()
        self.workers.share([*policy.module.parameters(), *policy.module.buffers()])
        self._parameters = [p for p in policy.module.parameters() if p.requires_grad]
        self._vectors = [ParameterVector(network) for network in policy.networks if network]
        critic = policy.critic_parameters
        elsewhere = {id(p) for p in (*critic, *(p for vector in self._vectors for p in vector.parameters))}
        single = [p for p in self._parameters if id(p) not in elsewhere]
        self._models = {"": [*single, *(vector.vector for vector in self._vectors)]}
        """What a step guards and clips by itself, by what its metrics begin with."""
        if critic:
            self._models["critic/"] = critic
        self.optimizer = self.optimizer_recipe.build(*self._models.values())
        self.iteration = self.step = self.position = 0
        self.seconds = 0.0
        self.skipped = {"empty": 0, "large": 0, "nonfinite": 0}
        self.batch: Trajectories | None = None
        self._shuffled: tuple[int, Trajectories, Trajectories] | None = None
        self.memory: dict[str, Any] = {}
        self.proposal: Policy | None = None
        if algorithm.proposes or self.training.overlap:
            self.proposal = policy.proposal()
            self.proposal.module.eval().requires_grad_(False)
        self.proposed_at = 0
        self.ahead: CollectionProcess | None = None
        self.unlearned: Trajectories | None = None  # what samplers have yet to learn from, while a batch is collected ahead
        self.row: dict[str, Any] = {}
        self.evaluated_at = -1
        self.stop_requested = False
        self.stop_after_steps: int | None = None
        self._diagnostics = UpdateDiagnostics()

    # ------------------------------------------------------------------------------------------------ what the parts need

    def _check_needs(self) -> None:
        reads = self.objective.reads | self.algorithm.reads
        who = f"algorithm '{self.algorithm.name}'"
        if "anchor_log_prob" in reads and self.anchor is None and not self.experience.anchored:
            raise InputError(f"{who} measures a KL and needs an anchor policy")
        if ("value" in reads or self.objective.reads_value) and not self.policy.has_value:
            raise InputError(f"{who} needs a critic: build the policy with one")
        if "value" in reads and self.optimizer_recipe.critic_learning_rate is not None and not self.policy.critic_parameters:
            raise InputError(
                "optimizer.critic_learning_rate is set, but the critic is no model of its own; accepted: null, or a language policy whose "
                "critic is detached or separate"
            )
        if self.algorithm.window is not None:
            given = self.algorithm.demonstrations != "none" or self.algorithm.completions != "none"
            if given or self.algorithm.most_sampling_rounds > 1 or not self.experience.keeps_unfinished:
                raise InputError(
                    f"algorithm.window is {self.algorithm.window}: only rollouts of a language model, without tools, given completions and "
                    "dynamic sampling, go on from one iteration to the next; accepted here: null"
                )

    def _check_overlap(self) -> None:
        algorithm = self.algorithm
        if not algorithm.uses_rollouts or algorithm.proposes:
            why = "keeps a proposal of its own to sample from" if algorithm.proposes else "does not sample"
            raise InputError(f"training.overlap is true, but algorithm '{algorithm.name}' {why}; accepted here: false")
        if algorithm.most_sampling_rounds > 1 and self.workers.world > 1:
            raise InputError("training.overlap cannot top up batches over several workers; accepted with dynamic sampling: one worker")

    @property
    def steps_per_batch(self) -> int:
        return self.training.epochs * self.training.minibatches

    @property
    def total_steps(self) -> int:
        return self.training.iterations * self.steps_per_batch

    def planning(self) -> Planning:
        rate = self.optimizer_recipe.learning_rate_at(self.step, self.total_steps)
        progress, workers = Progress(self.step, self.total_steps, rate), self.workers
        return Planning(progress, workers.sum, self.seed, self.memory, workers.gather, workers.rank, vars(self.optimizer_recipe))

    # ------------------------------------------------------------------------------------------------ the loop

    def train(self) -> dict[str, Any]:
        """Runs to the end, or raises Stopped after writing a checkpoint when `stop_requested` was set. Returns the last metrics row."""
        try:
            return self._train()
        finally:
            if self.ahead is not None:
                self.ahead.close()
                self.ahead = None

    def _train(self) -> dict[str, Any]:
        last: dict[str, Any] = {}
        while self.iteration < self.training.iterations:
            began = time.perf_counter()
            if self.batch is None:
                self._evaluate_if_due()
                state = self._state()  # where this iteration can be repeated from, should its collection be stopped
                try:
                    self._collect()
                except Interrupted:
                    self._write(state)
                    raise Stopped from None
            self._update()
            last = self._finish_iteration(time.perf_counter() - began)
            if self._stopping():
                self.save_checkpoint()
                raise Stopped
        self._evaluate_if_due()
        self.save_checkpoint()
        if self.tracker:
            self.tracker.close()
        if self.workers.leads:
            self.policy.save(self.folder / "model")
            self.policy.save_critic(self.folder / "critic")
        self.workers.wait()
        return last

    def _collect(self) -> None:
        collected = self._rollouts()
        metrics = collected.metrics
        if self.tracker:
            self.tracker.histograms(self.iteration, collected.histograms)
        batch = self._prepare(collected.batch.to(self.policy.device))
        metrics |= self.algorithm.metrics(batch)
        if self.algorithm.proposes and self.algorithm.adopts(batch, self.planning()):
            self._renew_proposal()
            metrics["proposal/adopted"] = 1.0
        self.row = metrics
        live = batch.mask.any(1)
        if not bool(live.all()):  # nothing is left in them to learn from, and no aggregate counts them
            batch = batch.select(live)
        self.batch = batch.as_steps() if self.policy.memoryless else batch
        self.position = 0

    def _rollouts(self) -> Collected:
        """The fresh batch of this iteration; with `overlap` that of the process that collected it during the last one."""
        if not self.training.overlap:
            return collect(self.algorithm, self.experience, self.proposal or self.policy, self._demand(self.iteration), self.workers.sum)
        if self.ahead is None:
            assert self.proposal is not None
            self.ahead = CollectionProcess(self.algorithm, self.experience, self.proposal)
            self.proposal = self.ahead.policy
        if not self.ahead.busy:  # the first iteration, or the first after a resume
            self.ahead.start(self._demand(self.iteration), self.experience.state_dict())
        began = time.perf_counter()
        collected, state = self.ahead.result(lambda: self.stop_requested and self.workers.world == 1)
        waited = {"time/waited_for_rollouts": time.perf_counter() - began, "staleness/steps": float(self.step - self.proposed_at)}
        collected.metrics |= waited
        self.experience.load_state_dict(state)
        if self.unlearned is not None:
            self.experience.update(self.unlearned, self.memory)
        if self.iteration + 1 < self.training.iterations:
            self._renew_proposal()
            self.ahead.start(self._demand(self.iteration + 1), self.experience.state_dict())
        return collected

    def _demand(self, iteration: int) -> Demand:
        return Demand(
            iteration=iteration,
            rollouts=self.algorithm.rollouts if self.algorithm.uses_rollouts else 0,
            demonstrations=self.algorithm.demonstrations != "none",
            score_demonstrations=self.algorithm.scores_demonstrations,
            completions=self.algorithm.completions,
            value=self.policy.has_value,
            window=self.algorithm.window,
            seed=self.seed,
            worker=self.workers.rank,
            workers=self.workers.world,
            should_stop=lambda: self.stop_requested and self.workers.world == 1,
        )

    def _renew_proposal(self) -> None:
        assert self.proposal is not None
        self.proposal.follow(self.policy)
        self.proposed_at = self.step

    def _prepare(self, batch: Trajectories) -> Trajectories:
        """Whole-batch work: what planning reads, the algorithm's own, advantages, then log-probabilities under frozen policies."""
        planning = self.planning()
        reads = self.objective.reads | self.algorithm.reads
        first = self.algorithm.reads | (reads & {"value"})
        if first & {"old_entropy", "value"} and self.steps_per_batch > 1:
            first |= reads & {"old_log_prob"}  # of the same pass
        batch = self._frozen(batch, first)
        batch = self.objective.prepare(self.algorithm.prepare(batch, self.setting, planning), planning)
        if self.steps_per_batch == 1:
            reads = reads - {"old_log_prob"}  # the policy has not moved: the ratio is 1 to the last bit
        return self._frozen(batch, reads, None if self.objective.reach == "batch" else self.objective.touched_rows(batch))

    def _frozen(self, batch: Trajectories, fields: frozenset[str], rows: Tensor | None = None) -> Trajectories:
        """The batch with the named log-probabilities, entropies and values, taken without gradient by old policy, critic and anchor.

        `rows [B]`: only those are evaluated; the others cannot move the policy.
        """
        sources = {"old_log_prob": "log_prob", "old_entropy": "entropy", "value": "value"}
        missing = [name for name in sources if name in fields and getattr(batch, name) is None]
        if missing:
            now = self._evaluate(self.policy, batch, rows, value="value" in missing, entropy="old_entropy" in missing)
            batch = batch.replace(**{name: getattr(now, sources[name]) for name in missing})
        if "anchor_log_prob" in fields and batch.anchor_log_prob is None:
            assert self.anchor is not None
            batch = batch.replace(anchor_log_prob=self._evaluate(self.anchor, batch, rows).log_prob)
            check_log_probs(batch.require("anchor_log_prob", "the anchor"), batch, "anchor_log_prob")
        return batch

    def _evaluate_now(self, batch: Trajectories, *, readings: Sequence[Reading] = ()) -> Evaluation:
        """What algorithms may ask of the current policy; see `algorithms.base.Evaluate`."""
        return self._evaluate(self.policy, batch, readings=readings)

    def _evaluate(
        self,
        policy: Policy,
        batch: Trajectories,
        rows: Tensor | None = None,
        value: bool = False,
        entropy: bool = False,
        readings: Sequence[Reading] = (),
    ) -> Evaluation:
        """[B,T] under a frozen policy, micro-batch by micro-batch, in evaluation mode; 0 in rows that are left out."""
        if readings:
            batch = batch.with_planned(position_key=position_keys(batch, self.seed + self.step))
        chosen = torch.arange(len(batch), device=batch.mask.device) if rows is None else rows.nonzero().squeeze(-1)
        batch, size = batch.select(chosen), batch.mask.shape
        whole = Evaluation(*(torch.zeros(size, device=batch.mask.device) if asked else None for asked in (True, entropy, value)))  # type: ignore[arg-type]
        was_training = policy.module.training
        policy.module.eval()

        def put(all_rows: Tensor | None, piece: Tensor, index: Tensor) -> Tensor:
            all_rows = torch.zeros(size, dtype=piece.dtype, device=piece.device) if all_rows is None else all_rows.to(piece.dtype)
            all_rows[chosen[index], : piece.shape[1]] = piece
            return all_rows

        with torch.no_grad():
            for index in policy.cuts(batch, self.training.micro_batch_tokens):
                now = policy.evaluate(batch.select(index).trim(), value=value, entropy=entropy, readings=readings)
                for name in ("log_prob", "entropy", "value"):
                    if (read := getattr(now, name)) is not None:
                        setattr(whole, name, put(getattr(whole, name), read, index))
                for reading, named in now.read.items():
                    kept = whole.read.setdefault(reading, {})
                    kept |= {name: put(kept.get(name), read, index) for name, read in named.items()}
        policy.module.train(was_training)
        return whole

    def _pieces(self, batch: Trajectories) -> Iterator[Trajectories]:
        """The micro-batches of an optimiser step."""
        if self.policy.memoryless and len(batch) <= self.training.micro_batch_tokens:
            yield batch
            return
        together = self.objective.reach == "group" and self._groups_fit(batch)
        for index in self.policy.cuts(batch, self.training.micro_batch_tokens, together):
            yield (batch if len(index) == len(batch) else batch.select(index)).trim()

    # ------------------------------------------------------------------------------------------------ updates

    def _update(self) -> None:
        assert self.batch is not None
        began = time.perf_counter()
        if self.position == 0:
            self._diagnostics = UpdateDiagnostics()
        while self.position < self.steps_per_batch:
            self._optimise(self._minibatch(self.batch))
            self.position += 1
            if self.stop_after_steps is not None and self.step >= self.stop_after_steps:
                self.stop_requested = True
            self.observer.phase("update", self.position / self.steps_per_batch)
            if self.position < self.steps_per_batch and self._stopping():
                self.save_checkpoint()
                raise Stopped
        self._forget_gradients()  # a copy of the model that rollouts have no use for
        self.row["time/update"] = self.row.get("time/update", 0.0) + time.perf_counter() - began

    def _stopping(self) -> bool:
        """Whether any worker was asked to stop: all of them must agree, or they would wait for each other for ever."""
        if self.workers.world == 1:
            return self.stop_requested
        return bool(self.workers.sum(torch.tensor(float(self.stop_requested))) > 0)

    def _minibatch(self, batch: Trajectories) -> Trajectories:
        """The rows of the current optimiser step: a share of a permutation that seed, iteration and epoch decide.

        Of rows, or of whole groups where an advantage looks at them.
        """
        parts = self.training.minibatches
        if parts == 1:
            return batch
        epoch, part = divmod(self.position, parts)
        if self.objective.reach == "group":  # a pair that is torn apart would be compared with nothing
            assert batch.group is not None
            groups, unit = batch.group.unique(return_inverse=True)
            order = torch.randperm(len(groups), generator=generator(self.seed, "order", self.iteration, epoch))
            return batch.select(torch.isin(unit, order.to(unit.device).tensor_split(parts)[part]))
        if self._shuffled is None or self._shuffled[0] != epoch or self._shuffled[1] is not batch:
            order = torch.randperm(len(batch), generator=generator(self.seed, "order", self.iteration, epoch))
            self._shuffled = epoch, batch, batch.select(order.to(batch.mask.device))
        size, larger = divmod(len(batch), parts)  # the first `larger` parts have one row more
        start = part * size + min(part, larger)
        return self._shuffled[2].window(start, start + size + (part < larger))

    def _optimise(self, batch: Trajectories) -> None:
        """One optimiser step on a batch: plan, drop rows that cannot move the policy, cut, accumulate, guard, step."""
        seed_torch(self.seed, "update", self.iteration, self.position, self.workers.rank)
        planning = self.planning()
        planned = self._planned(self.algorithm.select(batch, planning, self._evaluate_now), planning)
        touched = self.objective.touched_rows(planned)
        if not bool(touched.all()):
            planned = planned.select(touched)
        rows = len(planned) if self.workers.world == 1 else int(self.workers.sum(torch.tensor(len(planned))))
        self.row["rows/active_fraction"] = len(planned) / max(1, len(batch))
        if rows == 0:
            self.skipped["empty"] += 1
            self.step += 1
            return
        if not self.policy.module.training:
            self.policy.module.train()
        self._forget_gradients()
        losses: list[Tensor] = []
        tokens = 0
        value = self._trains(planned, critic=True)
        critic_alone = value and not self._trains(planned, critic=False)
        entropy = self.objective.reads_entropy or self.position < self.training.minibatches  # to be shown: of the first pass
        for piece in self._pieces(planned):
            now = self.policy.evaluate(piece, entropy=entropy, value=value, readings=self.objective.readings)
            counted = replace(now.detach(), value=now.value) if critic_alone else now
            loss = self.objective.loss(counted, piece, planning, records=self._diagnostics.records)
            loss.backward()
            self._diagnostics.add_entropy(now.entropy, piece.mask)
            if self.position == 0:
                self._diagnostics.add_mismatch(now.log_prob, piece)
            losses.append(loss.detach())
            tokens += len(piece) if self.policy.memoryless else int(self.policy.cost(piece).sum())
        for vector in self._vectors:
            vector.gather()
        self.workers.sum_gradients([p for model in self._models.values() for p in model])
        self._guarded_step(planned)
        self.row["loss"] = sum(float(loss) for loss in losses)
        self.row["tokens/update"] = self.row.get("tokens/update", 0.0) + tokens
        self.step += 1

    def _forget_gradients(self) -> None:
        for parameter in (*self._parameters, *(vector.vector for vector in self._vectors)):
            parameter.grad = None

    def _trains(self, planned: Trajectories, *, critic: bool) -> bool:
        """Whether any token counts in a term that reads the critic, or in one that does not. A step in which none does must not move the
        critic, or the policy: it then gets no gradient at all, not one of 0, which an optimiser with momentum would still step on."""
        read = (name for name, term in self.objective.named() if term.reads_value == critic)
        return any(bool(planned.require(f"{name}/weight", name).any()) for name in read)

    def _planned(self, batch: Trajectories, planning: Planning) -> Trajectories:
        """The planned batch. Advantages that look beyond their own row are fixed here, from one more pass without gradient; it is spared
        where whole groups are all they look at and micro-batches can hold them."""
        reach = self.objective.reach
        if reach == "row" or (reach == "group" and self._groups_fit(batch)):
            return self.objective.plan(batch, planning)
        return self.objective.plan(batch, planning, self._evaluate(self.policy, batch))

    def _groups_fit(self, batch: Trajectories) -> bool:
        """Whether every group is within the token budget of a micro-batch."""
        assert batch.group is not None
        units, unit = batch.group.unique(return_inverse=True)
        return not len(batch) or int(self.policy.cost_together(batch, unit, len(units)).max()) <= self.training.micro_batch_tokens

    def _guarded_step(self, batch: Trajectories) -> None:
        """One optimiser step. A model whose gradient is not fit to be applied stays as it is, which says nothing about the other."""
        for group, (name, model) in zip(self.optimizer.param_groups, self._models.items(), strict=True):
            self.row[f"{name}learning_rate"] = group["lr"] = self.optimizer_recipe.learning_rate_at(
                self.step, self.total_steps, critic=bool(name)
            )
            moved = [p for p in model if p.grad is not None]
            if not self._guarded(moved, name, batch):
                for parameter in moved:
                    parameter.grad = None
        self.optimizer.step()

    def _guarded(self, moved: list[torch.nn.Parameter], name: str, batch: Trajectories) -> bool:
        """Clips the gradient of a model, and tells whether it may be applied. `name`: what its metrics begin with."""
        recipe = self.optimizer_recipe
        gradients = [p.grad for p in moved if p.grad is not None]
        length = gradient_norm(gradients)
        self.row[f"{name}gradient_norm"] = length
        if not math.isfinite(length):
            if recipe.on_nonfinite == "stop":
                path = self.folder / f"nonfinite-batch-step{self.step}.pt"
                torch.save(batch.select(torch.arange(len(batch))).to("cpu").state_dict(), path)  # copies: it may be a view of a larger one
                raise NonFinite(
                    f"the {'critic' if name else 'policy'}'s gradient at optimiser step {self.step} (iteration {self.iteration}) is "
                    f"{length}; the batch is in '{path}'; set optimizer.on_nonfinite to skip to leave out such steps"
                )
            self.skipped["nonfinite"] += 1
            return False
        if recipe.skip_norm is not None and length > recipe.skip_norm:
            self.skipped["large"] += 1
            return False
        if recipe.clip_norm is not None and length > recipe.clip_norm:
            torch._foreach_mul_(gradients, recipe.clip_norm / length)
        return True

    def _finish_iteration(self, seconds: float) -> dict[str, Any]:
        assert self.batch is not None
        self.seconds += seconds
        self.row |= self._diagnostics.metrics()
        self.row |= self.algorithm.learn(self.batch, self.planning(), self._evaluate_now)
        skipped = {f"steps/skipped_{why}": count for why, count in self.skipped.items() if count}
        row = {"iteration": self.iteration, "step": self.step, "seconds": self.seconds, **self.row, **skipped}
        if self.tracker:
            self.tracker.metrics(row)
            self.tracker.histograms(self.iteration, self._diagnostics.histograms())
        if not self.training.overlap:
            self.experience.update(self.batch, self.memory)
        elif self.experience.learns:
            self.unlearned = self.batch
        self.batch, self._shuffled, self.row = None, None, {}
        self.iteration += 1
        self.observer.iteration(self.iteration, self.training.iterations, row)
        if self.iteration % self.training.save_every == 0:
            self.save_checkpoint()
        return row

    # ------------------------------------------------------------------------------------------------ evaluation

    def _evaluate_if_due(self) -> None:
        ends = self.iteration in (0, self.training.iterations)
        due = ends or (self.training.evaluate_every > 0 and self.iteration % self.training.evaluate_every == 0)
        if not due or self.evaluated_at == self.iteration or not self.workers.leads:
            return
        began = time.perf_counter()
        try:
            results = self.experience.evaluate(self.policy, self.seed, self._evaluation_progress)
        except Interrupted:
            self.save_checkpoint()
            raise Stopped from None
        self.seconds += time.perf_counter() - began
        self.evaluated_at = self.iteration
        if results and self.tracker:
            self.tracker.evaluation(self.iteration, self.step, time.perf_counter() - began, results)
            self.observer.evaluation(results)

    def _evaluation_progress(self, done: float) -> None:
        self.observer.phase("evaluate", done)
        if self.stop_requested and self.workers.world == 1:
            raise Interrupted

    # ------------------------------------------------------------------------------------------------ state

    def _state(self) -> dict[str, Any]:
        """Everything that a bit-identical continuation needs, the batch being re-used included. Holds references, not copies."""
        return {
            "identity": self.identity,
            "iteration": self.iteration,
            "step": self.step,
            "position": self.position,
            "seconds": self.seconds,
            "skipped": dict(self.skipped),
            "evaluated_at": self.evaluated_at,
            "row": dict(self.row),
            "batch": None if self.batch is None else self.batch.to("cpu").state_dict(),
            "diagnostics": None if self.batch is None else self._diagnostics,
            "unlearned": None if self.unlearned is None else self.unlearned.to("cpu").state_dict(),
            "proposed_at": self.proposed_at,
            "module": self.policy.module.state_dict(),
            "proposal": None if self.proposal is None else self.proposal.module.state_dict(),
            "memory": self.workers.gather(dict(self.memory)),
            "optimizer": self.optimizer.state_dict(),
            "experience": self.workers.gather(self.experience.state_dict()),
            "random": random_states(),
            "world": self.workers.world,
        }

    def save_checkpoint(self) -> None:
        self._write(self._state())

    def _write(self, state: dict[str, Any]) -> None:
        if self.workers.leads:
            write_checkpoint(self.folder, state)
        self.workers.wait()

    def resume(self) -> None:
        """Continues from the folder's checkpoint; raises InputError when it belongs to another recipe."""
        state = read_checkpoint(self.folder)
        if state["identity"] != self.identity:
            raise InputError(
                f"the checkpoint in '{self.folder}' belongs to another recipe: {_difference(state['identity'], self.identity)}"
            )
        if state["world"] != self.workers.world:
            raise InputError(f"the checkpoint was written by {state['world']} workers, but this run has {self.workers.world}")
        self.policy.module.load_state_dict(state["module"])
        if self.proposal is not None:
            self.proposal.module.load_state_dict(state["proposal"])
        self.memory = dict(state["memory"][self.workers.rank])
        self.optimizer.load_state_dict(state["optimizer"])
        self.experience.load_state_dict(state["experience"][self.workers.rank])
        restore_random_states(state["random"])
        for name in ("iteration", "step", "position", "seconds", "evaluated_at", "proposed_at"):
            setattr(self, name, state[name])
        self.skipped, self.row = dict(state["skipped"]), dict(state["row"])
        if state["diagnostics"] is not None:
            self._diagnostics = state["diagnostics"].to(self.policy.device)
        for name in ("batch", "unlearned"):
            setattr(self, name, None if state[name] is None else Trajectories(**state[name]).to(self.policy.device))
        if self.tracker and self.workers.leads:
            self.tracker.rewind(self.iteration, self.evaluated_at)


def gradient_norm(gradients: list[Tensor]) -> float:
    """The norm of all of them together. torch's own helpers for it, and for clipping, cost as much as a small controller's forward pass."""
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    return float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])))


def _difference(old: str, new: str) -> str:
    """The first line in which two recipes differ."""
    before, after = old.splitlines(), new.splitlines()
    for a, b in zip(before, after, strict=False):
        if a != b:
            return f"it has '{a.strip()}' where this one has '{b.strip()}'"
    return "their lengths differ"
