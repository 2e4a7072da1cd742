"""Hybrid actor-critic (HAC) on tables: softmax policies of enumerable actions, critics of offline and online rows, both in closed form.

The exact relative of `hnpg`: with one number for each step, state and action, the natural gradient step is a multiplication by
exp(eta · f), and the critics' regression a weighted mean. Source: arXiv 2311.08384, algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.shapes import Float, Int


def mirror_step(log_prob: Float[Tensor, "*N A"], value: Float[Tensor, "*N A"], eta: float) -> Float[Tensor, "*N A"]:
    """log pi'(a|s), pi' ∝ pi · exp(eta · f(s, a)). Of a softmax policy the natural gradient step of length eta."""
    return torch.log_softmax(log_prob + eta * value, -1)


def hybrid_fit(
    cells: int,
    offline: tuple[Int[Tensor, " N"], Float[Tensor, " N"]],
    online: tuple[Int[Tensor, " M"], Float[Tensor, " M"]],
    mix: float = 1.0,
) -> Float[Tensor, " cells"]:
    """argmin_f mean_off (f − y)² + mix · mean_on (f − G)², one number for each cell; rows are (cell, what is aimed at). 0 where there is no
    row. Errors: `InputError` for a negative `mix`."""
    if mix < 0:
        raise InputError(f"mix is {mix}; accepted: a number of 0 or more")
    weight, total = torch.zeros(cells, dtype=torch.float64), torch.zeros(cells, dtype=torch.float64)
    for share, (cell, aim) in ((1.0, offline), (mix, online)):
        if len(cell):
            weight.index_add_(0, cell, torch.full(cell.shape, share / len(cell), dtype=torch.float64))
            total.index_add_(0, cell, share / len(cell) * aim.double())
    return torch.where(weight > 0, total / weight.where(weight > 0, 1), 0)


@dataclass(frozen=True)
class Rows:
    """Transitions of tables [N]: the step, the state, the action, the reward, the next state; `to_go` the return from there on, of fresh
    ones."""

    step: Tensor
    state: Tensor
    action: Tensor
    reward: Tensor
    following: Tensor
    to_go: Tensor | None = None


def hac(
    shape: tuple[int, int, int],
    offline: Rows,
    roll: Callable[[Float[Tensor, "H S A"]], Rows],
    *,
    iterations: int,
    eta: float = 1.0,
    mix: float = 1.0,
) -> Float[Tensor, "H S A"]:
    """Policies pi_h(a|s) [H,S,A] of the last iteration; `roll` plays episodes with given ones. The paper's output is the uniform mixture of
    all iterations' policies; its average over critics' iterates is not needed where each of them is exact.

    Backwards, f_h is fitted to G of fresh rows and to r + E_{a' ~ pi_{h+1}} f_{h+1}(s', a') of offline ones; then all pi_h take a step.
    """
    steps, states, actions = shape
    log_prob = torch.zeros(shape, dtype=torch.float64).log_softmax(-1)
    for _ in range(iterations):
        fresh, value = roll(log_prob.exp()), torch.zeros(steps + 1, states, actions, dtype=torch.float64)
        assert fresh.to_go is not None
        follow = torch.cat([log_prob.exp(), torch.zeros_like(log_prob[:1])])
        for h in reversed(range(steps)):
            known, seen = offline.step == h, fresh.step == h
            aim = offline.reward[known] + (follow[h + 1] * value[h + 1]).sum(-1)[offline.following[known]]
            cells = tuple(rows.state[mine] * actions + rows.action[mine] for rows, mine in ((offline, known), (fresh, seen)))
            value[h] = hybrid_fit(states * actions, (cells[0], aim), (cells[1], fresh.to_go[seen]), mix).reshape(states, actions)
        log_prob = mirror_step(log_prob, value[:-1], eta)
    return log_prob.exp()
