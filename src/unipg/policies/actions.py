"""What a control policy draws, and what an environment is given for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.likelihoods import categorical_log_prob, gaussian_log_prob

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class DiscreteActions:
    """`n` actions, the actor's output their logits [N,n]. Trajectories hold the index in [0, n); the environment's starts at `start`."""

    n: int
    start: int = 0
    dtype: str = "int64"

    @property
    def outputs(self) -> int:
        return self.n

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,n] Gumbel: the argmax of logits + Gumbel noise is a draw from their softmax."""
        wait = torch.empty(steps, rows, self.n).exponential_(generator=source)
        return -wait.clamp_min(torch.finfo(wait.dtype).tiny).log().numpy()

    def draw(self, logits: np.ndarray, std: np.ndarray | None, noise: np.ndarray | None) -> np.ndarray:
        return (logits if noise is None else logits + noise).argmax(-1)

    def log_prob(self, logits: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        return categorical_log_prob(logits, action.long(), entropy=entropy)

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """In the space's own numbering and dtype."""
        return (action + self.start if self.start else action).astype(self.dtype, copy=False)


@dataclass(frozen=True)
class BoxActions:
    """Real actions of `shape`, flattened to [N,A]; the actor's output is the mean of a diagonal Gaussian whose log_std is a parameter.

    In a dimension with two finite bounds (`low`, `high`, `[A]` flattened) the policy's 0 is the middle between them and its 1 half their
    distance: −1 is `low`, 1 is `high`. In the others it acts in the environment's own units. Trajectories, log-probabilities and entropies
    are in the policy's units.

    The Gaussian is not bounded: an action is clipped only when it is given to the environment, in the space's own `dtype`, and its
    log-probability is that of the unclipped one.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str = "float32"

    @property
    def outputs(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def _units(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Middle and half the distance [A] of the bounds, 0 and 1 where they are not finite; None where it is 0 and 1 everywhere."""
        low, high = np.array(self.low, np.float64), np.array(self.high, np.float64)
        bounded = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
        middle, half = low / 2 + high / 2, high / 2 - low / 2
        return (middle, half) if middle.any() or (half != 1).any() else None

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        most = float(np.finfo(self.dtype).max)
        return np.clip(np.array(self.low, np.float64), -most, most), np.clip(np.array(self.high, np.float64), -most, most)

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,A] standard normal."""
        return torch.randn(steps, rows, self.outputs, generator=source).numpy()

    def draw(self, mean: np.ndarray, std: np.ndarray | None, noise: np.ndarray | None) -> np.ndarray:
        assert std is not None
        return mean if noise is None else mean + std * noise

    def log_prob(self, mean: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        assert log_std is not None
        return gaussian_log_prob(mean, log_std.expand_as(mean), action.reshape(mean.shape).to(mean.dtype))

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """In the environment's units, shape and dtype, inside its bounds."""
        if self._units is not None:
            middle, half = self._units
            action = middle + half * action
        # clipped before the cast: the bounds are numbers of the dtype, so no rounding leads out of them
        return action.astype(np.float64, copy=False).clip(*self._bounds).astype(self.dtype).reshape(len(action), *self.shape)


Actions = DiscreteActions | BoxActions


def actions_of(space: gymnasium.Space) -> Actions:
    """The actions of ONE environment's space: Discrete, or a Box of real numbers. Anything else is an `InputError`.

    A bound that is the largest number of the space's dtype, or its negative, is no bound.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return DiscreteActions(int(space.n), int(space.start), str(space.dtype))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        most = float(np.finfo(space.dtype).max)
        low, high = (
            tuple(math.copysign(math.inf, b) if abs(b) >= most else b for b in map(float, bound.reshape(-1)))
            for bound in (space.low, space.high)
        )
        return BoxActions(tuple(space.shape), low, high, str(space.dtype))
    raise InputError(f"the environment's actions are {space}; accepted: Discrete, or a Box of real numbers")


def described(actions: Actions) -> dict[str, Any]:
    """Plain values that `actions_from` reads; a bound that is infinite, which JSON has no word for, is null."""
    if isinstance(actions, DiscreteActions):
        return {"type": "discrete", "n": actions.n, "start": actions.start, "dtype": actions.dtype}
    low, high = ([b if math.isfinite(b) else None for b in bounds] for bounds in (actions.low, actions.high))
    return {"type": "box", "shape": list(actions.shape), "low": low, "high": high, "dtype": actions.dtype}


def actions_from(type: str, **values: Any) -> Actions:
    """What `described` wrote. Raises KeyError or TypeError for anything else."""
    if type == "discrete":
        return DiscreteActions(values["n"], values["start"], values.get("dtype", "int64"))
    low, high = (tuple(limit if b is None else b for b in values[side]) for side, limit in (("low", -math.inf), ("high", math.inf)))
    return BoxActions(tuple(values["shape"]), low, high, values["dtype"])
