"""A model of an environment: what comes of an action, as K networks that each say a Gaussian and how likely it is that this is the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from unipg.networks.perceptron import Activation, Ensemble

LOG_VARIANCE = (-10.0, 0.5)
"""Of what is said, the limits at the start: they are learned."""
PULL = 0.01
"""Weight of the distance between those limits in what is learned."""


class GaussianDynamics(nn.Module):
    """p(s' − s, r | s, a) of `members` networks of a shape, and the probability that the step is terminal, by a logit.

    s [N,O] as networks read it, a [N,A] in the policy's units. Log-variances lie softly between two learned limits of each number. Source:
    arXiv 1805.12114 (probabilistic ensembles), as in the released code of arXiv 2311.03351; that knows by itself which states are terminal.
    """

    def __init__(
        self, members: int, inputs: int, actions: int, hidden: Sequence[int], activation: Activation, *, source: torch.Generator
    ) -> None:
        super().__init__()
        self.numbers = inputs + 1
        """Of what is said: those of an observation, and the reward."""
        self.ensemble = Ensemble(members, [inputs + actions, *hidden, 2 * self.numbers + 1], activation=activation, source=source)
        self.least, self.most = (nn.Parameter(torch.full((self.numbers,), limit)) for limit in LOG_VARIANCE)

    @property
    def members(self) -> int:
        return self.ensemble.members

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N,O] and [N,A], or [K,N,…] to each member its own; mean, log-variance [K,N,O+1] of change and reward, logit [K,N] of the end."""
        said = self.ensemble(torch.cat([observation, action.to(observation.dtype)], -1))
        mean, log_variance, end = said.split([self.numbers, self.numbers, 1], -1)
        log_variance = self.most - softplus(self.most - log_variance)
        return mean, self.least + softplus(log_variance - self.least), end.squeeze(-1)

    def error(self, observation: Tensor, action: Tensor, after: Tensor, reward: Tensor, ended: Tensor, decay: float) -> Tensor:
        """[N] what the members make of what came of each step, summed over them, with what holds their limits and weights:

            mean over numbers of (x − mean)² / variance + log variance,   − log p(end),   PULL · sum(most − least),   decay · |W|²

        What is observed in a terminal state [N,O] counts for nothing: no step follows there.
        """
        mean, log_variance, end = self(observation, action)
        change = torch.where(ended.unsqueeze(-1), 0, after - observation)
        known = torch.cat([~ended.unsqueeze(-1).expand_as(change), torch.ones_like(ended).unsqueeze(-1)], -1)
        off = torch.cat([change, reward.to(change.dtype).unsqueeze(-1)], -1) - mean
        each = torch.where(known, off.square() * (-log_variance).exp() + log_variance, 0)
        fit = each.sum(-1) / known.sum(-1) + binary_cross_entropy_with_logits(end, ended.to(end.dtype).expand_as(end), reduction="none")
        held = PULL * (self.most - self.least).sum()
        weights = [p.square().sum() for name, p in self.ensemble.named_parameters() if name.endswith("weight")]
        return fit.sum(0) + held + decay * torch.stack(weights).sum()

    @torch.no_grad()
    def after(self, observation: Tensor, action: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """[N,O] observations drawn from one member for each row, and [N] bool, where they are no more than its end. Rows are dealt to the
        members by chance, to each as many."""
        rows, members = len(observation), self.members
        order = torch.randperm(rows, generator=source).to(observation.device)
        dealt = order[
            torch.arange(-(-rows // members) * members, device=order.device) % rows
        ]  # some twice, where they do not come out even
        mean, log_variance, end = self(*(each[dealt].unflatten(0, (members, -1)) for each in (observation, action)))
        noise = torch.randn(rows, self.numbers - 1, generator=source).to(observation)
        said = [each.flatten(0, 1)[:rows] for each in (mean, log_variance, end)]
        change = said[0][:, :-1] + (0.5 * said[1][:, :-1]).exp() * noise
        found, over = torch.empty_like(observation), torch.empty(rows, dtype=torch.bool, device=observation.device)
        found[order], over[order] = observation[order] + change, said[2] > 0
        return found, over
