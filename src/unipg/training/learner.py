"""A learner at work: the models that an objective moves, with their optimiser, and one guarded step on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm
from unipg.algorithms.learners import Learner
from unipg.critics.lagged import Moment
from unipg.errors import InputError
from unipg.estimator import Planning, PolicyGradient, Progress
from unipg.estimator.directions import Plain
from unipg.estimator.likelihoods import Reading, position_keys
from unipg.estimator.parts import Neighbours, beyond_row, no_neighbours
from unipg.estimator.policy_gradient import Record
from unipg.files import write_file
from unipg.policies.base import Policy
from unipg.policies.spaces import kinds_with
from unipg.policies.weights import all_finite, nonfinite
from unipg.seeding import generator, seed_torch
from unipg.training.diagnostics import UpdateDiagnostics
from unipg.training.distribution import Workers
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe, gradient_norm, take_step
from unipg.training.passes import said_of
from unipg.training.surface import BatchSurface, Displaced, Unfit
from unipg.training.vectors import gradients_of
from unipg.training.weights import Weights
from unipg.trajectories import Evaluation, Trajectories

LARGE = 1e3
"""An observation of which networks, as they are made, may make more than a step can bear."""


class NonFinite(InputError):
    """A NaN or infinite gradient, whose batch was dumped; or such weights."""


class Learning:
    """The models that a learner's objective moves, and one optimiser step on them: plan, drop rows that cannot move anything, cut,
    accumulate, guard.

    `steps`: how many steps it is going to take. `memory`, `diagnostics`: shared by all learners of a run. `folder`: where a batch is dumped
    whose gradient is not finite. `keeps_records`: whether every step is recorded.
    `neighbours`: see `Planning`.
    """

    def __init__(
        self,
        learner: Learner,
        algorithm: Algorithm,
        policy: Policy,
        weights: Weights,
        *,
        training: TrainingRecipe,
        recipe: OptimizerRecipe,
        workers: Workers,
        seed: int,
        folder: Path,
        steps: int,
        memory: dict[str, Any],
        diagnostics: UpdateDiagnostics,
        keeps_records: bool = False,
        neighbours: Callable[[], Neighbours] = no_neighbours,
    ) -> None:
        self.spec, self.algorithm, self.policy, self.weights = learner, algorithm, policy, weights
        self.objective = learner.terms
        self.training, self.recipe, self.workers, self.seed, self.folder = training, recipe, workers, seed, folder
        self.name = learner.name
        self.prefix = "" if learner.role == "policy" else f"{learner.role}/"
        """What its metrics begin with."""
        self._vectors = weights.vectors(learner.trains)
        held = {id(p) for vector in self._vectors for p in vector.parameters}
        if learner.trains:
            self._parameters = weights.parameters(learner.trains)
            critic = []
        else:
            self._parameters = [p for p in policy.module.parameters() if p.requires_grad]
            critic = policy.critic_parameters
        elsewhere = held | {id(p) for p in critic}
        single = [p for p in self._parameters if id(p) not in elsewhere]
        self._models = {"": [*single, *(vector.vector for vector in self._vectors)]}
        """What a step guards and clips by itself, by what its metrics begin with."""
        if critic:
            self._models["critic/"] = critic
        self._kept = [p for p in self._parameters if not self.spec.trains or id(p) not in held] + [v.vector for v in self._vectors]
        """Whatever has a gradient after a step."""
        self.optimizer = recipe.build(*self._models.values())
        self.direction = learner.direction
        self.moved = weights.moved(learner.trains)
        """What a direction moves, in the order of its flat vectors."""
        self.state: dict[str, Any] = {}
        """What its direction keeps."""
        if not isinstance(self.direction, Plain):
            self._check_direction()
            self.state = self.direction.start(self.flat())
        self.step, self.total = 0, steps
        self.skipped = {"empty": 0, "large": 0, "nonfinite": 0}
        self.still = 0
        """Steps up to the last one whose gradient was 0 throughout."""
        self.memory = memory
        self.diagnostics = diagnostics
        self.place = (0, 0)
        self.keeps_records = keeps_records
        self.neighbours = neighbours
        self.records: list[Record] = []
        """What the terms saw of the last step, where it was recorded."""
        self._plan: tuple[tuple[Tensor | None, ...], dict[str, Tensor]] | None = None

    def _check_direction(self) -> None:
        """Refuses a policy, or an objective, that its direction can make nothing of."""
        policy, direction, who = self.policy, self.direction, f"algorithm '{self.algorithm.name}'"
        if direction.reads_kl and not policy.has_kl:
            raise InputError(
                f"{who} needs the exact KL of two policies, which {policy.called} does not offer; accepted: controller.kind "
                f"{kinds_with('has_kl')}, or actions that can be counted"
            )
        if direction.reads_hessian:
            if not policy.twice_differentiable:
                raise InputError(f"{who} needs second derivatives, which {policy.called} does not offer; accepted: a controller")
            for name, term in self.objective.named():
                if not isinstance(term, PolicyGradient) or term.likelihood.substitutes:
                    raise InputError(
                        f"{who} needs the score of whole trajectories, but its term '{name}' is {term.symbol()}; accepted: policy "
                        "gradients of the actions that were taken"
                    )
        if direction.displaces:
            saved = policy.module.state_dict()
            kept = [name for name, _ in policy.module.named_buffers() if name in saved]
            if kept:
                raise InputError(
                    f"{who} collects with other weights than the policy's, but '{kept[0]}' is kept beside the weights and follows the "
                    "batches; accepted: controller.normalize_observations: false, a policy that keeps parameters alone"
                )
            if not self.spec.trains and policy.has_value and "value" in self.objective.reads:
                raise InputError(f"{who} moves the policy alone, which shares parameters with the critic here; accepted: networks by name")

    @property
    def cuts_steps(self) -> bool:
        """Whether the steps of a batch may be shuffled and split freely: neither the policy nor any part looks beyond one."""
        return self.policy.memoryless and self.objective.reach == "step" and self.direction.reach == "step"

    def flat(self) -> Tensor:
        """[D] a copy of the weights that it moves."""
        return self.weights.flat(self.spec.trains)

    def put(self, theta: Tensor) -> None:
        """Writes weights [D] into what it moves."""
        self.weights.put(self.spec.trains, theta)

    @contextmanager
    def at(self, theta: Tensor | None) -> Iterator[None]:
        """With weights [D] in the place of its own, which are put back to the last bit whatever happens; None for with its own."""
        if theta is None:
            yield
            return
        own = self.flat()
        self.put(theta)
        try:
            yield
        finally:
            self.put(own)

    def forget(self) -> None:
        """What its optimiser has gathered."""
        self.optimizer.state.clear()

    def points(self) -> tuple[Tensor | None, ...]:
        """Where the batches of its next step are collected; None for with the weights as they are."""
        return self.direction.points(self.flat(), self.state, generator(self.seed, "points", self.name, self.step))

    def is_on(self, iteration: int) -> bool:
        """Whether it is trained in an iteration."""
        return self.spec.span[0] <= iteration < self.spec.span[1]

    def planning(self) -> Planning:
        workers = self.workers
        progress = Progress(self.step, self.total, self.recipe.learning_rate_at(self.step, self.total))
        return Planning(progress, workers.sum, self.seed, self.memory, workers.gather, workers.rank, vars(self.recipe), self.neighbours)

    def state_dict(self) -> dict[str, Any]:
        counts = {"step": self.step, "skipped": dict(self.skipped), "still": self.still}
        return {**counts, "optimizer": self.optimizer.state_dict(), "direction": dict(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.skipped, self.state = state["step"], dict(state["skipped"]), dict(state["direction"])
        self.still = state.get("still", 0)  # checkpoints of before do not know it
        self.optimizer.load_state_dict(state["optimizer"])

    # ------------------------------------------------------------------------------------------------ without gradient

    def evaluate(self, batch: Trajectories, *, readings: Sequence[Reading] = ()) -> Evaluation:
        """What algorithms may ask of the current policy; see `algorithms.base.Evaluate`."""
        return self.frozen(self.policy, batch, readings=readings)

    def frozen(
        self,
        policy: Policy,
        batch: Trajectories,
        rows: Tensor | None = None,
        value: bool = False,
        entropy: bool = False,
        readings: Sequence[Reading] = (),
    ) -> Evaluation:
        """[B,T] under a frozen policy, micro-batch by micro-batch; 0 in rows that are left out."""
        if readings:
            batch = batch.with_planned(position_key=position_keys(batch, self.seed + self.step))
        return said_of(policy, batch, self.training.micro_batch_tokens, rows, value=value, entropy=entropy, readings=readings)

    # ------------------------------------------------------------------------------------------------ one step

    def optimise(
        self, batch: Trajectories, place: tuple[int, int], now: Evaluation | None = None, displaced: Sequence[Displaced] = ()
    ) -> dict[str, Any]:
        """One optimiser step on a batch; returns what there is to tell of it.

        `place`: the iteration, and the position among the updates of that iteration. `now`: the policy on this very batch, where several
        learners share it. `displaced`: the batches of a direction that wants them from other points; the first is `batch`.
        """
        self.place, self.records = place, []
        planning = self.planning()
        if not isinstance(self.direction, Plain):
            return self._directed(displaced if displaced else [Displaced(batch)], planning)
        if now is None:
            seed_torch(self.seed, "update", *place, self.workers.rank)
            batch = self.algorithm.select(batch, planning, self.evaluate)
        planned = self._planned(batch, planning)
        if self._plan is None:
            touched = self.objective.touched_rows(planned)
            if not bool(touched.all()):
                planned, now = planned.select(touched), None
        rows = len(planned) if self.workers.world == 1 else int(self.workers.sum(torch.tensor(len(planned))))
        row: dict[str, Any] = {f"{self.prefix}rows/active_fraction": len(planned) / max(1, len(batch))}
        if rows == 0:
            self.skipped["empty"] += 1
            self.step += 1
            return row
        self.forget_gradients()
        if self.names_networks:
            losses, found = self._differentiate(planned, planning, now)
            self._place(found)
            tokens = len(planned)
        else:
            losses, tokens = self._accumulate(planned, planning, place)
        if self.workers.world > 1:
            self.workers.sum_gradients([p for model in self._models.values() for p in model])
        row |= self.guarded_step(planned)
        self._end_step(row, losses, tokens, planned, planning)
        return row

    def _end_step(self, row: dict[str, Any], losses: Sequence[Tensor], tokens: int, batch: Trajectories, planning: Planning) -> None:
        """What follows a step; tells of it."""
        moment = Moment(batch, lambda: self.policy.now(batch), planning)
        self.step += 1
        for follows in self.spec.then:
            told = follows(self.weights.tensors, self.step, moment)
            if told:
                row |= {f"{self.prefix}{name}": value for name, value in told.items()}
        row[f"{self.prefix}tokens/update"] = float(tokens)
        if self.diagnostics.recording:
            row[f"{self.prefix}loss"] = sum(float(loss) for loss in losses)

    def _directed(self, displaced: Sequence[Displaced], planning: Planning) -> dict[str, Any]:
        """One step of a direction that is not the gradient alone. All rows are kept: those that cannot move anything count in a KL."""
        row: dict[str, Any] = {}
        if not any(bool(each.batch.mask.any()) for each in displaced):
            self.skipped["empty"] += 1
            self.step += 1
            return row
        surfaces = []
        for number, (batch, point) in enumerate((each.batch, each.point) for each in displaced):
            seed_torch(self.seed, "update", *self.place, self.workers.rank, *([number] if number else []))
            with self.at(point):
                planned = self._planned(self.algorithm.select(batch, planning, self.evaluate), planning)
            surfaces.append(BatchSurface(self, planned, planning, point))
        first = surfaces[0]
        try:
            found = self.direction(surfaces, self.state, planning.progress)
            length = float(torch.linalg.vector_norm(found))
            if not math.isfinite(length) and not self.fit(length, "", first.batch):
                raise Unfit
            if self.direction.owns_step:
                if length > 0:
                    self.put(first.theta + found)
                row[f"{self.prefix}step_norm"] = length
            else:
                self._hand_over(found)
                row |= self.guarded_step(first.batch)
        except Unfit:
            pass
        self.forget_gradients()
        row |= {f"{self.prefix}{name}": value for name, value in first.told.items()}
        self._end_step(row, first.losses, first.tokens, first.batch, planning)
        return row

    def _hand_over(self, gradient: Tensor) -> None:
        """A flat vector as the gradient that the optimiser sees."""
        pieces = [piece.view_as(p) for p, piece in zip(self.moved, gradient.split([p.numel() for p in self.moved]), strict=True)]
        if self.names_networks:
            self._place(pieces)
            return
        for parameter, piece in zip(self.moved, pieces, strict=True):
            parameter.grad = piece
        for vector in self._vectors:
            vector.gather()

    @property
    def names_networks(self) -> bool:
        """Whether it trains networks that its policy has by name."""
        return bool(self.spec.trains) and self.policy.names_networks

    def said(self, piece: Trajectories) -> Evaluation:
        """The policy on a micro-batch as its objective reads it, with the graph."""
        if self.names_networks:
            return self.policy.now(piece, self.objective.differentiates)
        value = self.objective.reads_value
        return self.policy.evaluate(piece, entropy=self.objective.reads_entropy, value=value, readings=self.objective.readings)

    def gradient(self, planned: Trajectories, planning: Planning) -> tuple[Tensor, list[Tensor], int]:
        """[D] the gradient of a planned batch, of this worker's rows; the losses of its micro-batches, and the tokens."""
        if self.names_networks:
            losses, found = self._differentiate(planned, planning, None)
            return torch.cat([gradient.reshape(-1) for gradient in found]), losses, len(planned)
        self.forget_gradients()
        losses, tokens = self._accumulate(planned, planning, self.place)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self.moved])
        self.forget_gradients()
        return flat, losses, tokens

    def _differentiate(self, planned: Trajectories, planning: Planning, now: Evaluation | None) -> tuple[list[Tensor], list[Tensor]]:
        """The losses of a planned batch, and the gradient with respect to each parameter of this learner's networks alone."""
        losses: list[Tensor] = []
        found: list[Tensor] = []
        records: list[Record] | None = [] if self.keeps_records or self.diagnostics.recording else None
        for piece in self.pieces(planned):
            said = now if now is not None and piece is planned else self.policy.now(piece, self.objective.differentiates)
            loss = self.objective.loss(said, piece, planning, records=records)
            gradients = gradients_of(loss, self._parameters)
            found = [a + b for a, b in zip(found, gradients, strict=True)] if found else list(gradients)
            losses.append(loss.detach())
        self.records = records or []
        if self.diagnostics.recording:
            self.diagnostics.records += self.records
        return losses, found

    def _place(self, gradients: list[Tensor]) -> None:
        """The gradient of each parameter of its networks, into the models' `grad`."""
        start = 0
        for vector in self._vectors:
            vector.take(gradients[start : start + len(vector.parameters)])
            start += len(vector.parameters)
        for parameter, gradient in zip(self._parameters[start:], gradients[start:], strict=True):
            parameter.grad = gradient

    def _accumulate(self, planned: Trajectories, planning: Planning, place: tuple[int, int]) -> tuple[list[Tensor], int]:
        """The gradient of a planned batch, micro-batch by micro-batch, into the models' `grad`; the losses, and the tokens."""
        losses: list[Tensor] = []
        tokens = 0
        records = self.diagnostics.records if self.diagnostics.recording else None
        value = self._trains(planned, critic=True)
        critic_alone = value and not self._trains(planned, critic=False)
        # to be shown: of the first pass, where it can be had
        entropy = self.objective.reads_entropy or (self.policy.has_entropy and place[1] < self.training.minibatches)
        for piece in self.pieces(planned):
            now = self.policy.evaluate(piece, entropy=entropy, value=value, readings=self.objective.readings)
            counted = replace(now.detach(), value=now.value, values=now.values) if critic_alone else now
            loss = self.objective.loss(counted, piece, planning, records=records)
            loss.backward()
            self.diagnostics.add_entropy(now.entropy, piece.mask)
            if place[1] == 0:
                self.diagnostics.add_mismatch(now.log_prob, piece)
            losses.append(loss.detach())
            tokens += len(piece) if self.cuts_steps else int(self.policy.cost(piece).sum())
        for vector in self._vectors:
            vector.gather()
        return losses, tokens

    def _whole(self, batch: Trajectories) -> bool:
        """Whether a batch of controllers is one micro-batch."""
        return self.policy.memoryless and batch.mask.numel() <= self.training.micro_batch_tokens

    def pieces(self, batch: Trajectories) -> Iterator[Trajectories]:
        """The micro-batches of an optimiser step."""
        if self._whole(batch):
            yield batch
            return
        together = self.objective.reach == "group" and self._groups_fit(batch)
        for index in self.policy.cuts(batch, self.training.micro_batch_tokens, together):
            yield (batch if len(index) == len(batch) else batch.select(index)).trim()

    def forget_gradients(self) -> None:
        """Frees them: a copy of the model that rollouts have no use for."""
        for parameter in self._kept:
            parameter.grad = None

    def _trains(self, planned: Trajectories, *, critic: bool) -> bool:
        """Whether any token counts in a term that reads the critic, or in one that does not. A step in which none does must not move the
        critic, or the policy: it then gets no gradient at all, not one of 0, which an optimiser with momentum would still step on."""
        read = (name for name, term in self.objective.named() if term.reads_value == critic)
        return any(bool(planned.require(f"{name}/weight", name).any()) for name in read)

    def _planned(self, batch: Trajectories, planning: Planning) -> Trajectories:
        """The planned batch; as the last one, where nothing that its plan depends on has changed. Advantages that look beyond their own row
        are fixed here, from one more pass without gradient; it is spared where whole groups are all they look at and micro-batches can hold
        them."""
        decides = (batch.mask, batch.source, batch.group)
        if self._plan is not None and all(a is b for a, b in zip(self._plan[0], decides, strict=True)):
            return batch.with_planned(**self._plan[1])
        self._plan = None
        reach = self.objective.reach
        apart = self.workers.world > 1 or not self._whole(batch)
        if self.objective.spans and apart:
            with torch.no_grad():
                return self.objective.plan(batch, planning, self.said(batch))
        if not beyond_row(reach) or (reach == "group" and self._groups_fit(batch)):
            planned = self.objective.plan(batch, planning)
        else:
            planned = self.objective.plan(batch, planning, self.frozen(self.policy, batch))
        if self.objective.is_settled and batch.full and bool(self.objective.touched_rows(planned).all()):
            weights = {f"{name}/weight": planned.planned[f"{name}/weight"] for name, _ in self.objective.named()}
            kind = self._parameters[0].dtype
            self._plan = decides, {name: weight.to(kind) for name, weight in weights.items()}
        return planned

    def _groups_fit(self, batch: Trajectories) -> bool:
        """Whether every group is within the token budget of a micro-batch."""
        assert batch.group is not None
        units, unit = batch.group.unique(return_inverse=True)
        return not len(batch) or int(self.policy.cost_together(batch, unit, len(units)).max()) <= self.training.micro_batch_tokens

    def guarded_step(self, batch: Trajectories) -> dict[str, float]:
        """One optimiser step; returns each model's learning rate and gradient norm, before clipping.

        A model whose gradient is not fit to be applied stays as it is, which says nothing about the other.
        """
        row: dict[str, float] = {}
        longest = self.recipe.longest
        for group, (name, model) in zip(self.optimizer.param_groups, self._models.items(), strict=True):
            rate = self.recipe.learning_rate_at(self.step, self.total, critic=bool(name))
            row[f"{self.prefix}{name}learning_rate"] = group["lr"] = rate
            moved = [p for p in model if p.grad is not None]
            gradients = [p.grad for p in moved if p.grad is not None]
            row[f"{self.prefix}{name}gradient_norm"] = length = gradient_norm(gradients)
            if not name:
                self.still = self.still + 1 if length == 0 else 0
            if not self.fit(length, name, batch):
                for parameter in moved:
                    parameter.grad = None
            elif longest is not None and length > longest:
                torch._foreach_mul_(gradients, longest / length)
        if self.still:
            row[f"{self.prefix}steps/still"] = float(self.still)
        take_step(self.optimizer)
        return row

    def check_weights(self) -> None:
        """Raises NonFinite where a step has made weights that are no numbers; for before they are sampled from, or saved."""
        if not all_finite([p for model in self._models.values() for p in model]):
            found = nonfinite((name, p) for name, p in self.policy.module.named_parameters() if p.requires_grad)
            raise NonFinite(
                f"the weights are no numbers any more after optimiser step {self.step - 1} (iteration {self.place[0]}): {found}; the last "
                f"checkpoint is from before; optimizer.learning_rate, {self.recipe.rate:g}, may be too large"
            )

    def _remedy(self, batch: Trajectories) -> str:
        """What to try against gradients without end; empty where nothing is known."""
        if batch.step_reward is not None and (most := float(batch.step_reward.abs().max())) >= LARGE**2:
            return f"; rewards are as large as {most:.3g}: dataset.reward_scale brings those of given transitions to size"
        seen = batch.observation
        if seen is None or getattr(self.policy, "normalizes", True) or not seen.is_floating_point():
            return ""
        most = float(seen.abs().max())
        return "" if most < LARGE else f"; observations are as large as {most:.3g}: controller.normalize_observations brings them to size"

    def fit(self, length: float, name: str, batch: Trajectories) -> bool:
        """Whether the gradient of a model, of norm `length`, may be applied. `name`: what its metrics begin with."""
        recipe = self.recipe
        if not math.isfinite(length):
            self.check_weights()  # also where such steps are skipped: none would ever be taken again
            if recipe.on_nonfinite == "stop":
                path = self.folder / f"nonfinite-batch-step{self.step}.pt"
                kept = batch.select(torch.arange(len(batch))).to("cpu").state_dict()  # copies: it may be a view of a larger one
                write_file(path, lambda place: torch.save(kept, place))
                raise NonFinite(
                    f"the {'critic' if name else 'policy'}'s gradient at optimiser step {self.step} (iteration {self.place[0]}) is "
                    f"{length}; the batch is in '{path}'; set optimizer.on_nonfinite to skip to leave out such steps{self._remedy(batch)}"
                )
            self.skipped["nonfinite"] += 1
            return False
        if recipe.skip_norm is not None and length > recipe.skip_norm:
            self.skipped["large"] += 1
            return False
        return True
