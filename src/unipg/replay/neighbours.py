"""Which stored pair of observation and action is nearest to another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipg.errors import InputError, missing_package
from unipg.estimator.parts import Search
from unipg.replay.tables import Array

CHUNK = 4_000_000
"""Most differences that are held at once where all pairs are compared."""


class Pairs:
    """All N pairs of a dataset, observations [N,O] as the networks read them and actions [N,A] in the policy's units, both finite.

    Distances are Euclidean, between keys [beta · s ; a] in float64. For each beta a k-d tree is built once, when it is first asked; a
    tree looks at nearly all pairs beyond about 20 numbers a key, where `all` (brute force) is no slower.
    """

    def __init__(self, observation: Tensor, action: Tensor) -> None:
        self.action = action.reshape(len(action), -1)
        self.observation = observation
        if observation.ndim != 2:
            raise InputError(f"nearest pairs are of observations that are vectors; these have shape {list(observation.shape[1:])}")
        for name, values in (("observation", self.observation), ("action", self.action)):
            if not bool((finite := torch.isfinite(values).all(1)).all()):
                row = int((~finite).nonzero()[0])
                raise InputError(f"column '{name}' is not finite in row {row}; accepted: finite numbers")
        self._trees: dict[float, Any] = {}

    def __len__(self) -> int:
        return len(self.action)

    def keys(self, observation: Tensor, action: Tensor, beta: float) -> Array:
        """[M,O+A] float64 on the host."""
        both = torch.cat([beta * observation.detach().double(), action.detach().double()], 1)
        return np.ascontiguousarray(both.cpu().numpy())

    def nearest(self, observation: Tensor, action: Tensor, beta: float, count: int = 1, search: Search = "tree") -> Tensor:
        """[M,A] the action of the pair that is nearest to each of M others; of several (`count`) the mean action, on their device.

        Errors: `InputError` for more neighbours than there are pairs.
        """
        if not 1 <= count <= len(self):
            raise InputError(f"{count} nearest pairs were asked for; accepted: 1 to {len(self)}, as many as the dataset has")
        asked = self.keys(observation, action, beta)
        index = self._among_all(asked, beta, count) if search == "all" else self._in_tree(asked, beta, count)
        found = self.action[torch.from_numpy(index)]
        return (found[:, 0] if count == 1 else found.mean(1)).to(action)

    def _in_tree(self, asked: Array, beta: float, count: int) -> Array:
        """[M,count] rows, the nearest first."""
        if beta not in self._trees:
            try:
                from scipy.spatial import cKDTree
            except ImportError:
                raise missing_package("scipy", "offline", "a search in a k-d tree") from None
            # of split midpoints and larger leaves: a fifth less time where pairs are far, of 14 numbers
            self._trees[beta] = cKDTree(self.keys(self.observation, self.action, beta), leafsize=32, balanced_tree=False)
        _, index = self._trees[beta].query(asked, k=count, workers=torch.get_num_threads())
        return np.asarray(index, np.int64).reshape(len(asked), count)

    def _among_all(self, asked: Array, beta: float, count: int) -> Array:
        keys = torch.from_numpy(self.keys(self.observation, self.action, beta))
        rows = max(1, CHUNK // len(keys))
        pieces = torch.from_numpy(asked).split(rows)
        # not by products of matrices: where beta is large they lose what the actions differ by
        distances = (torch.cdist(piece, keys, compute_mode="donot_use_mm_for_euclid_dist") for piece in pieces)
        return torch.cat([each.topk(count, largest=False, sorted=True).indices for each in distances]).numpy()
