"""What pulls an action back to where data are dense: the score of the data, and what turns a change of state into a change of action."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unipg.errors import InputError
from unipg.networks.perceptron import Perceptron

FLOOR, STILL = 1e-3, 1e-6
"""Least standard deviation that a number is measured in; and, relative to its mean, one below which an observed number stands still."""
LEVELS = 101
"""Quantiles 0, 1 % … 100 % that are kept of how far the data lie from what denoises them."""


def denoising_error(said: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """[N] sum over dimensions of (e(x + sigma·noise, log sigma) + noise)², whose minimum is e = sigma · ∇log p_sigma: denoising score
    matching weighted by sigma² (Vincent 2011). x, noise [N,D], sigma [N,1]; `said` is e. D in expectation of e = 0."""
    return (said(x + sigma * noise, sigma.log()) + noise).square().sum(-1)


class Correction(nn.Module):
    """d(s, a): what is added to an action so that it, and the state that it leads to, lie where data are dense. No gradient of a policy.

        d = action · sigma² ∇_a log p_sigma(s, a) + I(s, F(s, a) + m) − I(s, F(s, a)),  m = state · sigma² ∇log p_sigma(F(s, a))

    sigma² ∇log p_sigma(x) is E[x0 | x] − x, to the denoised point (Tweedie), so strengths of 1 go there. p: of the data's next states, and
    of its pairs; I the inverse dynamics, F the dynamics, all networks of SiLU layers; of I a difference, in which its bias cancels. m is no
    longer than the longest step of the data, d no longer than the data's actions are apart. Each number is in units of its standard
    deviation over the data (`fit`), as sigma is; the middle one of `sigmas` acts. `gate`: the share of the data at which a part does
    nothing, those nearest to their denoised point (`settle`); None: it always acts.

    After arXiv 2406.07541, whose equations and constants are not public: the method in outline is theirs, the formulas are ours.

    Errors: `InputError` for a sigma of 0 or less, a negative strength, a gate outside [0, 1), and where it acts before `fit`.
    """

    def __init__(
        self,
        observation: int,
        action: int,
        *,
        hidden: Sequence[int] = (128, 128),
        sigmas: Sequence[float] = (0.05, 0.1, 0.2),
        k_state: float = 0.2,
        k_action: float = 0.1,
        gate: float | None = None,
        source: torch.Generator,
    ) -> None:
        super().__init__()
        if not sigmas or not all(each > 0 and math.isfinite(each) for each in sigmas):
            raise InputError(f"a correction's sigmas are {list(sigmas)}; accepted: one or more finite numbers above 0")
        for name, value in (("state", k_state), ("action", k_action)):
            if not (value >= 0 and math.isfinite(value)):
                raise InputError(f"a correction's strength of the {name} part is {value}; accepted: a finite number of 0 or more")
        if gate is not None and not 0 <= gate < 1:
            raise InputError(f"a correction's gate is {gate}; accepted: a share of the data in [0, 1), or none")
        self.sizes, self.hidden, self.sigmas = (observation, action), tuple(hidden), tuple(sorted(sigmas))
        self.k_state, self.k_action, self.gate = k_state, k_action, gate
        self.given_up = 0
        """Actions that it left as they were because what it would have added is not finite."""

        def network(inputs: int, outputs: int) -> Perceptron:
            return Perceptron([inputs, *hidden, outputs], activation="silu", source=source)

        both = observation + action
        self.states, self.pairs = network(observation + 1, observation), network(both + 1, both)
        self.inverse, self.dynamics = network(2 * observation, action), network(both, observation)
        for name, size, value in (
            ("mean", observation, 0.0),
            ("std", observation, 1.0),
            ("action_mean", action, 0.0),
            ("action_std", action, 1.0),
            ("step", observation, 1.0),
        ):
            self.register_buffer(name, torch.full((size,), value, dtype=torch.float64))
        self.register_buffer("moving", torch.ones(observation, dtype=torch.bool))
        self.register_buffer("reach", torch.full((2,), math.inf, dtype=torch.float64))
        """The longest step of the data, in units of `step`, and how far its actions are apart at most, in their own."""
        self.register_buffer("levels", torch.zeros(2, LEVELS, dtype=torch.float64))
        """Quantiles over the data of |sigma · score| of next states, and of the action's part of pairs."""
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    mean: Tensor
    std: Tensor
    action_mean: Tensor
    action_std: Tensor
    step: Tensor
    moving: Tensor
    reach: Tensor
    levels: Tensor
    fitted: Tensor

    @property
    def settings(self) -> dict[str, Any]:
        """What it is made from again, in plain values."""
        own = {name: getattr(self, name) for name in ("k_state", "k_action", "gate")}
        return {"hidden": list(self.hidden), "sigmas": list(self.sigmas), **own}

    @property
    def noises(self) -> int:
        """Standard normal numbers that `errors` takes of a row."""
        observation, action = self.sizes
        return 2 * observation + action + 2

    # ------------------------------------------------------------------------------------------------ of the data

    @torch.no_grad()
    def fit(self, observation: Tensor, action: Tensor, following: Tensor, ended: Tensor) -> list[int]:
        """Takes the units of transitions, [N,O], [N,A], [N,O] and whether they end an episode [N]; returns the observed numbers that stand
        still."""
        s, a, change = observation.double(), action.double(), (following - observation).double()[~ended]
        spread = s.std(0, correction=0)
        self.moving.copy_(spread > STILL * s.mean(0).abs().clamp_min(STILL))
        self.mean.copy_(s.mean(0))
        self.std.copy_(spread.clamp_min(FLOOR))
        self.action_mean.copy_(a.mean(0))
        self.action_std.copy_(a.std(0, correction=0).clamp_min(FLOOR))
        self.reach.zero_()
        if len(change):
            self.step.copy_(change.std(0, correction=0).maximum(FLOOR * self.std))
            self.reach[0] = torch.linalg.vector_norm(torch.where(self.moving, change / self.step, 0), dim=1).max()
        self.reach[1] = 2 * torch.linalg.vector_norm(a - self.action_mean, dim=1).max()
        self.fitted.fill_(True)
        return (~self.moving).nonzero()[:, 0].tolist()

    @torch.no_grad()
    def settle(self, observation: Tensor, action: Tensor, following: Tensor, ended: Tensor) -> float:
        """Takes the gate's quantiles of transitions; returns the share of the variance of steps that the dynamics leave open."""
        s, a, live = self.units(observation), self.action_units(action), ~ended
        for level, length in zip(self.levels, (self.of_states(following)[1], self.of_pairs(s, a)[1]), strict=True):
            level.copy_(torch.quantile(length.double(), torch.linspace(0, 1, LEVELS, dtype=torch.float64, device=length.device)))
        change = self.change(observation, following)[live]
        wrong = torch.where(self.moving, self.dynamics(torch.cat([s, a], 1))[live] - change, 0).double().square().sum()
        spread = (change - change.mean(0)).double().square().sum()
        return float(wrong / spread) if bool(spread > 0) else 0.0

    def units(self, observation: Tensor) -> Tensor:
        """[N,O] in units of the data; 0 where it stands still."""
        return torch.where(self.moving, (observation - self.mean) / self.std, 0).to(observation.dtype)

    def action_units(self, action: Tensor) -> Tensor:
        """[N,A]"""
        return ((action - self.action_mean) / self.action_std).to(action.dtype)

    def change(self, observation: Tensor, following: Tensor) -> Tensor:
        """[N,O] steps in units of those of the data."""
        return torch.where(self.moving, (following - observation) / self.step, 0).to(observation.dtype)

    # ------------------------------------------------------------------------------------------------ training

    def errors(self, observation: Tensor, action: Tensor, following: Tensor, ended: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """[N] by name: the denoising errors of next states and of pairs (`denoising_error`), and the mean squared ones of I and F,
        which steps that `ended` an episode say nothing of: what they led to may not be known.

        `noise` [N,noises] standard normal; its last two numbers choose a sigma each.
        """
        n, m = self.sizes
        e_state, e_pair, picks = noise.to(observation.dtype).split([n, n + m, 2], 1)
        ladder = torch.tensor(self.sigmas, dtype=observation.dtype, device=observation.device)
        rung = (torch.special.ndtr(picks) * len(ladder)).long().clamp_max(len(ladder) - 1)
        s, a, change = self.units(observation), self.action_units(action), self.change(observation, following)
        one, other = ladder[rung].split(1, 1)
        found = {
            "states": denoising_error(self._said_of_states, self.units(following), one, torch.where(self.moving, e_state, 0)),
            "pairs": denoising_error(self._said_of_pairs, torch.cat([s, a], 1), other, self._live(e_pair)),
            "inverse": (self.inverse(torch.cat([s, change], 1)) - a).square().mean(-1),
            "dynamics": torch.where(self.moving, self.dynamics(torch.cat([s, a], 1)) - change, 0).square().mean(-1),
        }
        return found | {name: torch.where(ended, 0, found[name]) for name in ("inverse", "dynamics")}

    def _live(self, pair: Tensor) -> Tensor:
        """[N,O+A] with 0 in the numbers that stand still."""
        return torch.cat([torch.where(self.moving, pair[:, : self.sizes[0]], 0), pair[:, self.sizes[0] :]], 1)

    def _said_of_states(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        return torch.where(self.moving, self.states(torch.cat([x, log_sigma], 1)), 0)

    def _said_of_pairs(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        return self._live(self.pairs(torch.cat([x, log_sigma], 1)))

    # ------------------------------------------------------------------------------------------------ acting

    @property
    def sigma(self) -> float:
        """At which it acts."""
        return self.sigmas[len(self.sigmas) // 2]

    def of_states(self, following: Tensor) -> tuple[Tensor, Tensor]:
        """[N,O] sigma² · score of next states in units of the data, and [N] the length of sigma · score."""
        x = self.units(following)
        e = self._said_of_states(x, torch.full_like(x[:, :1], math.log(self.sigma)))
        return self.sigma * e, torch.linalg.vector_norm(e, dim=1)

    def of_pairs(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """[N,A] and [N]: the same of the action's part of pairs, both in units of the data."""
        e = self._said_of_pairs(torch.cat([s, a], 1), torch.full_like(s[:, :1], math.log(self.sigma)))[:, self.sizes[0] :]
        return self.sigma * e, torch.linalg.vector_norm(e, dim=1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """[N,A] what is added to actions [N,A], in their units, at observations [N,O]; 0 where a gate is closed."""
        if not bool(self.fitted):
            raise InputError("a correction acts before it has seen any data; accepted: one that was trained (algorithm cdsa)")
        return self.added(observation, action)

    def added(self, observation: Tensor, action: Tensor) -> Tensor:
        """The same, of one that has seen data: free of branches on tensors."""
        s, a = self.units(observation), self.action_units(action)
        added = torch.zeros_like(action)
        if self.k_action:
            pull, length = self.of_pairs(s, a)
            added = added + self._open(1, length) * self.k_action * pull * self.action_std.to(pull.dtype)
        if self.k_state:
            change = self.dynamics(torch.cat([s, a], 1))
            pull, length = self.of_states(observation + change * self.step.to(change.dtype))
            wanted = _capped(self.k_state * pull * (self.std / self.step).to(pull.dtype), self.reach[0])
            apart = self.inverse(torch.cat([s, change + wanted], 1)) - self.inverse(torch.cat([s, change], 1))
            added = added + self._open(0, length) * apart * self.action_std.to(apart.dtype)
        return _capped(added, self.reach[1])

    def _open(self, part: int, length: Tensor) -> Tensor:
        """[N,1] 1 where a part acts, else 0."""
        if self.gate is None:
            return torch.ones_like(length).unsqueeze(1)
        return (length > self.levels[part, round(self.gate * (LEVELS - 1))]).to(length.dtype).unsqueeze(1)


def _capped(x: Tensor, most: Tensor) -> Tensor:
    """[N,D] shortened to a length of `most`."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x * (most.to(x.dtype) / length.clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1.0)
