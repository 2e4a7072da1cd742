"""A learner's loss around its weights, as directions ask for it: flat vectors in, flat vectors out, micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unipg.estimator import Objective, Planning
from unipg.estimator.directions import Curvature, Surface
from unipg.trajectories import Evaluation, Trajectories

if TYPE_CHECKING:
    from unipg.training.learner import Learning


@dataclass
class Displaced:
    """A prepared batch, and the weights [D] that it was collected with; None for the iterate."""

    batch: Trajectories
    point: Tensor | None = None


class Unfit(Exception):
    """A gradient that must not be applied; it has been counted."""


class BatchSurface(Surface):
    """The loss of a `Learning` on one planned batch, at the weights that the batch was collected with.

    Other weights are written into the networks and the iterate put back, to the last bit. All sums run over micro-batches and workers.
    """

    def __init__(self, learning: Learning, batch: Trajectories, planning: Planning, point: Tensor | None = None) -> None:
        self.learning, self.batch, self.planning, self.point = learning, batch, planning, point
        self.theta = learning.flat()
        self.told = {}
        self.losses: list[Tensor] = []
        """Of its micro-batches, and the tokens of these, once the gradient has been asked for."""
        self.tokens = 0
        self._parameters = learning.moved
        self._slope: Tensor | None = None

    def _at(self, theta: Tensor | None) -> AbstractContextManager[None]:
        """With other weights in the networks; None for those that the batch is of."""
        theta = self.point if theta is None else theta
        if theta is not None:
            self._slope = None  # its graph is of the weights as they are
        return self.learning.at(theta)

    def _sum(self, total: Tensor) -> Tensor:
        return self.learning.workers.sum(total)

    def _flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(gradients, self._parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])

    def _gradient(self, of: Tensor, *, create_graph: bool = False, retain_graph: bool | None = None) -> Tensor:
        """[D]; 0 of weights that it does not depend on."""
        keep = create_graph if retain_graph is None else retain_graph
        return self._flat(torch.autograd.grad(of, self._parameters, retain_graph=keep, create_graph=create_graph, allow_unused=True))

    def _zero(self) -> Tensor:
        return torch.zeros_like(self.theta)

    # ------------------------------------------------------------------------------------------------ the loss

    def gradient(self) -> Tensor:
        """Raises `Unfit` where it must not be applied, and `NonFinite` where that is to stop the run."""
        with self._at(None):
            own, self.losses, self.tokens = self.learning.gradient(self.batch, self.planning)
        found = self._sum(own)
        self.told["gradient_norm"] = norm = float(torch.linalg.vector_norm(found))
        if not self.learning.fit(norm, "", self.batch):
            raise Unfit
        return found

    def named(self) -> dict[str, Tensor]:
        terms = {name: Objective((dataclasses.replace(term, name=name),)) for name, term in self.learning.objective.named()}
        found = {name: self._zero() for name in terms}
        self.losses, self.tokens = [], len(self.batch)
        with self._at(None):
            for piece in self.learning.pieces(self.batch):
                said = self.learning.said(piece)
                for name, alone in terms.items():
                    loss = alone.loss(said, piece, self.planning)
                    found[name] += self._gradient(loss, retain_graph=True)
                    self.losses.append(loss.detach())
        return {name: self._sum(total) for name, total in found.items()}

    @torch.no_grad()
    def loss(self, theta: Tensor | None = None) -> float:
        """Infinite where the policy has come to say what is no number."""
        total = self.theta.new_zeros((), dtype=torch.float64)
        with self._at(theta):
            for piece in self.learning.pieces(self.batch):
                said = self.learning.said(piece)
                if self.learning.objective.reads_log_prob and not bool(torch.isfinite(said.log_prob).all()):
                    total += math.inf
                    break
                total += self.learning.objective.loss(said, piece, self.planning).double()
        return float(self._sum(total))

    # ------------------------------------------------------------------------------------------------ the policy

    def _steps(self) -> float:
        """Of the policy, in the batch."""
        return max(1.0, float(self._sum(self.batch.mask.sum().double())))

    @torch.no_grad()
    def divergence(self, theta: Tensor) -> float:
        policy, total = self.learning.policy, self.theta.new_zeros((), dtype=torch.float64)
        pieces = list(self.learning.pieces(self.batch))
        with self._at(None):
            now = [policy.distributions(piece) for piece in pieces]
            now = [tuple(tensor.clone() for tensor in each) for each in now]  # some are the weights themselves
        with self._at(theta):
            for piece, before in zip(pieces, now, strict=True):
                total += policy.kl(before, policy.distributions(piece)).sum().double()
        return float(self._sum(total)) / self._steps()

    def fisher(self, vector: Tensor) -> Tensor:
        total = self._zero()
        with self._at(None):
            if self._slope is not None:  # the only micro-batch: its graph is kept for all products
                total += self._along(self._slope, vector, keep=True)
            else:
                pieces = list(self.learning.pieces(self.batch))
                steps = self._steps()
                for piece in pieces:
                    slope = self._kl_slope(piece, steps)
                    if len(pieces) == 1 and self.point is None:
                        self._slope = slope
                    total += self._along(slope, vector, keep=len(pieces) == 1)
        return self._sum(total)

    def _kl_slope(self, piece: Trajectories, steps: float) -> Tensor:
        """[D] the gradient of KL(now ‖ theta) at now, which is 0, with its graph, which is not."""
        policy = self.learning.policy
        said = policy.distributions(piece)
        kl = policy.kl(tuple(tensor.detach() for tensor in said), said).sum() / steps
        return self._gradient(kl, create_graph=True)

    def _along(self, slope: Tensor, vector: Tensor, *, keep: bool = False) -> Tensor:
        """[D] the gradient of slope · vector."""
        if not slope.requires_grad:
            return self._zero()
        along = torch.dot(slope, vector)
        return self._gradient(along, retain_graph=keep)

    # ------------------------------------------------------------------------------------------------ second derivatives

    def hessian(self, vector: Tensor) -> Tensor:
        total = self._zero()
        with self._at(None):
            for piece in self.learning.pieces(self.batch):
                loss = self.learning.objective.loss(self.learning.said(piece), piece, self.planning)
                slope = self._gradient(loss, create_graph=True)
                total += self._along(slope, vector)
        return self._sum(total)

    def expected_hessian(self, vector: Tensor, estimate: Curvature) -> Tensor:
        """Of terms that are weighted log-probabilities, of rows that are trajectories; see `directions.HessianAided`."""
        total = self._zero()
        with self._at(None):
            for piece in self.learning.pieces(self.batch):
                log_prob = self.learning.policy.evaluate(piece).log_prob
                weight = self._weights(log_prob, piece)
                if estimate == "product":
                    along = self._scores(log_prob, vector)  # [B] Σ_t ∇log pi · vector
                    total += self._gradient((along * (weight * log_prob).sum(1)).sum(), retain_graph=True)
                    surrogate = (weight * log_prob).sum()
                else:
                    so_far = log_prob.cumsum(1)
                    before = so_far - log_prob
                    surrogate = (weight * ((so_far - so_far.detach()).exp() - (before - before.detach()).exp())).sum()
                slope = self._gradient(surrogate, create_graph=True)
                total += self._along(slope, vector)
        found = self._sum(total)
        if not math.isfinite(norm := float(torch.linalg.vector_norm(found))):
            self.learning.fit(norm, "", self.batch)
            raise Unfit
        return found

    def _weights(self, log_prob: Tensor, piece: Trajectories) -> Tensor:
        """[B,T] what the loss multiplies each log-probability by, detached."""
        leaf = log_prob.detach().requires_grad_()
        loss = self.learning.objective.loss(Evaluation(leaf), piece, self.planning)
        (weight,) = torch.autograd.grad(loss, leaf)
        return weight.masked_fill(~piece.mask, 0)

    def _scores(self, log_prob: Tensor, vector: Tensor) -> Tensor:
        """[B] the derivative of each row's log-probability along `vector`, by differentiating twice."""
        share = torch.ones(len(log_prob), dtype=log_prob.dtype, device=log_prob.device, requires_grad=True)
        slope = self._gradient((share * log_prob.sum(1)).sum(), create_graph=True)
        (found,) = torch.autograd.grad(torch.dot(slope, vector), share, retain_graph=True)
        return found.detach()
