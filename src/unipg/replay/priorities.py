"""Prioritised experience replay: rows are drawn in proportion to how wrong was what was last predicted of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.replay.tables import Array


class Priorities:
    """Priorities of a ring's rows, for which `append` is told of every row that the ring is given.

    P(i) = p_i / Σ_j p_j with p_i = (|error_i| + eps)^alpha. A new row has the largest priority that any row ever had, and 1 at first; one
    that has left the ring has none. Weights undo the choice in expectation: w_i = (N P(i))^(−beta) / max_j (N P(j))^(−beta), the maximum
    over the whole buffer. `beta` may be set anew before a draw: in the paper it grows to 1.

    Sums and minima are kept in trees, brought up to date before a draw. Errors: `InputError` for a negative alpha, beta outside [0, 1] and
    eps that is not above 0. Source: Schaul et al. 2016 (arXiv 1511.05952), the proportional variant.
    """

    def __init__(self, capacity: int, *, alpha: float = 0.6, beta: float = 0.4, eps: float = 1e-6) -> None:
        if capacity < 1 or not 0 <= alpha < float("inf") or not 0 <= beta <= 1 or not 0 < eps < float("inf"):
            raise InputError(
                f"priorities have capacity {capacity}, alpha {alpha}, beta {beta} and eps {eps}; accepted: at least 1, at least 0, "
                "from 0 to 1, above 0"
            )
        self.capacity, self.alpha, self.beta, self.eps = capacity, alpha, beta, eps
        self.position = 0
        """Rows ever appended, as of the ring."""
        self._largest = 1.0
        self._depth = (capacity - 1).bit_length()
        self._leaves = 1 << self._depth
        # node k has the children 2k and 2k + 1, node 1 is the root, and row p of the ring is leaf p mod capacity
        self._sum = np.zeros(2 * self._leaves)
        self._least = np.full(2 * self._leaves, np.inf)
        self._changed: list[Array] = []
        """Leaves above which the trees are not up to date."""

    def __len__(self) -> int:
        return min(self.position, self.capacity)

    def append(self, count: int = 1) -> None:
        """The ring was given `count` rows more."""
        newest = np.arange(max(self.position, self.position + count - self.capacity), self.position + count)
        self._set(newest % self.capacity, self._largest)
        self.position += count

    def draw(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """N rows for `uniforms` [N] in [0, 1), each from a share of its own of the total priority, and their weights.

        [N] int64 for `Ring.draw`, and [N] in (0, 1]. Errors: `IndexError` where there are no rows.
        """
        if not self.position:
            raise IndexError("nothing can be drawn: no rows were appended")
        self._settle()
        count = len(uniforms)
        mass = (np.arange(count) + uniforms.double().numpy()) / max(count, 1) * self._sum[1]
        node = np.ones(count, np.int64)
        for _ in range(self._depth):
            node *= 2
            left = self._sum.take(node)
            right = (mass >= left) & (self._sum.take(node + 1) > 0)  # rounding must not lead to where nothing is
            mass -= left * right
            node += right
        weight = (self._least[1] / self._sum.take(node)) ** self.beta
        index = (node - self._leaves - (self.position - len(self))) % self.capacity
        return torch.from_numpy(index), torch.from_numpy(weight).to(torch.get_default_dtype())

    def update(self, index: Tensor, error: Tensor) -> None:
        """Sets the priorities of the rows at `index` [N], counted as the ring does now, from their errors [N] of either sign.

        Errors: `InputError` for an error that is not finite; `IndexError` for an index outside.
        """
        if index.shape != error.shape or index.ndim != 1:
            raise InputError(f"{list(index.shape)} rows and {list(error.shape)} errors were given; accepted: as many, [N]")
        if not index.numel():
            return
        if int(index.min()) < 0 or int(index.max()) >= len(self):
            raise IndexError(f"rows {int(index.min())} to {int(index.max())} were given; there are {len(self)}, from 0 on")
        with np.errstate(over="ignore"):
            priority = (error.detach().double().abs().numpy() + self.eps) ** self.alpha
        bad = ~np.isfinite(priority)
        if bad.any():
            raise InputError(
                f"row {int(index[int(bad.argmax())])} has the error {float(error[int(bad.argmax())])}; accepted: finite numbers"
            )
        self._set((index.numpy() + (self.position - len(self))) % self.capacity, priority)
        self._largest = max(self._largest, float(priority.max()))

    def state_dict(self) -> dict[str, Any]:
        """Plain values and one tensor: the priorities, the oldest row's first."""
        return {"position": self.position, "largest": self._largest, "priority": torch.from_numpy(self._sum[self._leaves + self._order()])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`. Errors: `InputError` where it is of another capacity, with nothing changed."""
        position, priority = int(state["position"]), state["priority"].numpy()
        rows = min(position, self.capacity)
        if len(priority) != rows:
            raise InputError(f"the checkpoint has priorities of {len(priority)} rows; accepted: {rows}, as this run's capacity has")
        self.position, self._largest = position, float(state["largest"])
        self._sum[:], self._least[:] = 0, np.inf
        self._changed = []
        self._set(self._order(), priority)

    def _order(self) -> Array:
        """Leaves of all rows, the oldest first."""
        return np.arange(self.position - len(self), self.position) % self.capacity

    def _set(self, leaf: Array, priority: Array | float) -> None:
        self._sum[self._leaves + leaf] = self._least[self._leaves + leaf] = priority
        self._changed.append(leaf)

    def _settle(self) -> None:
        """Brings the trees up to date; a parent is always the sum of what its children are, so the order of changes does not matter."""
        if not self._changed:
            return
        node = np.concatenate(self._changed) + self._leaves
        self._changed = []
        few = node.size * self._depth < self._leaves
        first = self._leaves
        for _ in range(self._depth):
            first //= 2
            node = node // 2 if few else np.arange(first, 2 * first)
            left = 2 * node
            self._sum[node] = self._sum.take(left) + self._sum.take(left + 1)
            self._least[node] = np.minimum(self._least.take(left), self._least.take(left + 1))
