"""What a control policy draws, and what an environment is given for it. Mixtures are in `mixtures.py`; kinds by name in `spaces.py`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from unipg.errors import InputError
from unipg.estimator.likelihoods import (
    STD_MAX,
    STD_MIN,
    categorical_kl,
    categorical_log_prob,
    gaussian_kl,
    gaussian_log_densities,
    gaussian_log_prob,
    log_slope_of_tanh,
    log_slopes_of_tanh,
)

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
"""Between these a log_std that a network gives is held (Haarnoja et al. 2018, the authors' code)."""

BOUNDED_STD = (-5.0, 2.0)
"""Between which the log_std of bounded actions is held."""
BOUNDED_SPREAD = (-5.0, 0.0)
"""That of bounded spread actions, at the two ends of a tanh."""
Kind = Literal[
    "auto",
    "gaussian",
    "spread",
    "bounded",
    "bounded_spread",
    "squashed",
    "latent",
    "deterministic",
    "greedy",
    "mixture",
    "squashed_mixture",
]
"""What is made of a space of actions; `auto`: the distribution that has a log-probability and no bounds of its own."""


class Actions(ABC):
    """How an actor's output becomes actions. Trajectories hold actions [N] or [N,D] in the policy's units and numbering."""

    type: ClassVar[str]
    """Its name in a saved policy's description."""
    kind: ClassVar[Kind] = "auto"
    """What asks for it of a space (`actions_of`)."""
    densities: ClassVar[bool] = False
    """Whether actions are real numbers, so that probabilities and entropies are those of densities."""
    has_kl: ClassVar[bool] = True
    """Whether its distributions have an exact KL of each other."""
    has_entropy: ClassVar[bool] = True
    """Whether their entropy has a closed form."""
    has_log_std: ClassVar[bool] = False
    """Whether a log_std [A] stands beside the output, the same in every state."""
    how_evaluated: str = ""
    """What `noise_of_evaluation` comes to, where there are several ways."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Numbers that the actor gives for an observation."""

    @property
    def noises(self) -> int:
        """Planned standard normal numbers that a fresh action is drawn from."""
        return self.outputs

    @abstractmethod
    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,…] all that is random in that many draws."""

    def noise_of_evaluation(self, rows: int, source: torch.Generator) -> np.ndarray | None:
        """[rows,…] what `draw` takes where a policy is evaluated; None: the most likely actions."""
        return None

    @abstractmethod
    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        """[N] or [N,D] on the host: actions of an output [N,…]; without noise the most likely ones. `std`: what the kind reads it as."""

    @abstractmethod
    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """[N] log-probability of stored actions, in the policy's units, with the graph; and the entropy [N] in nats if asked."""

    def kl(self, output: Tensor, log_std: Tensor | None, other: Tensor, other_log_std: Tensor | None) -> Tensor:
        """[N] the exact KL in nats of the distributions of one output [N,…] from those of another, with the graph."""
        raise InputError(f"{self.type} actions have no distribution to compare; accepted: those that are drawn")

    @abstractmethod
    def likeliest(self, output: Tensor) -> Tensor:
        """[N] or [N,D] the most likely actions of an output [N,…], with the graph; as `draw` without noise."""

    @abstractmethod
    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Actions [N] or [N,D] drawn by `noise` [N,…], the same as `draw` makes of it, and their log-probability [N].

        Real actions carry the graph from output to action (reparametrised), actions that can be counted only that of the log-probability.
        Without noise the most likely actions, and what their own log-probability is.
        """

    @abstractmethod
    def random(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows] or [steps,rows,D] uniform over all actions, whatever a policy would do."""

    @abstractmethod
    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """In the environment's units, numbering, shape and dtype, inside its bounds."""

    @abstractmethod
    def given(self, action: Tensor) -> Tensor:
        """The same of tensors, in operations that can be exported, for any N."""

    @abstractmethod
    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """The inverse of `for_environment`: an environment's actions [N,…] in the policy's units and numbering."""


@dataclass(frozen=True)
class DiscreteActions(Actions):
    """`n` actions, the actor's output their logits [N,n]. Trajectories hold the index in [0, n); the environment's starts at `start`."""

    n: int
    start: int = 0
    dtype: str = "int64"

    type = "discrete"

    @property
    def outputs(self) -> int:
        return self.n

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,n] Gumbel: the argmax of logits + Gumbel noise is a draw from their softmax."""
        return _gumbel(steps, rows, self.n, source)

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        return (output if noise is None else output + noise).argmax(-1)

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        return categorical_log_prob(output, action.long(), entropy=entropy)

    def kl(self, output: Tensor, log_std: Tensor | None, other: Tensor, other_log_std: Tensor | None) -> Tensor:
        return categorical_kl(output, other)

    def likeliest(self, output: Tensor) -> Tensor:
        return output.argmax(-1)

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        action = self.likeliest(output if noise is None else output + noise)
        return action, categorical_log_prob(output, action, entropy=False)[0]

    def random(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        return torch.randint(self.n, (steps, rows), generator=source).numpy()

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """In the space's own numbering and dtype."""
        return (action + self.start if self.start else action).astype(self.dtype, copy=False)

    def given(self, action: Tensor) -> Tensor:
        return (action + self.start).to(_dtype(self.dtype))

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        return np.asarray(action, np.int64) - self.start


@dataclass(frozen=True)
class GreedyActions(DiscreteActions):
    """`n` actions, the actor's output their values [N,n]; the best one, or with probability epsilon (`draw`'s `std`) any of the n."""

    type = "greedy"
    kind = "greedy"
    has_kl = has_entropy = False

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,1+n] uniform in [0, 1): whether to explore, and a number for each action, the largest of which is then taken."""
        return torch.rand(steps, rows, 1 + self.n, generator=source).numpy()

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        best = output.argmax(-1)
        if noise is None:
            return best
        assert std is not None
        return np.where(noise[..., 0] < std, noise[..., 1:].argmax(-1), best)

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        raise InputError("greedy actions have no log-probability: the policy's output are values; accepted: terms that read values alone")

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The best action; `noise` must be None, since epsilon is the collection's alone."""
        assert noise is None
        return self.likeliest(output), None


@dataclass(frozen=True)
class MultiDiscreteActions(Actions):
    """D independent choices among `counts` [D] actions each, [N,D]; the actor's output are their logits side by side [N,ΣD n_d].

    Trajectories hold indices from 0; the environment's begin at `start` [D] and have its `shape`. A log-probability is the choices' sum.
    """

    counts: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str = "int64"

    type = "multi_discrete"

    @property
    def outputs(self) -> int:
        return sum(self.counts)

    @cached_property
    def _ends(self) -> list[tuple[int, int]]:
        ends = np.cumsum((0, *self.counts)).tolist()
        return list(pairwise(ends))

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,Σ n_d] Gumbel."""
        return _gumbel(steps, rows, self.outputs, source)

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        logits = output if noise is None else output + noise
        return np.stack([logits[..., first:end].argmax(-1) for first, end in self._ends], -1)

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        each = [
            categorical_log_prob(logits, chosen, entropy=entropy)
            for logits, chosen in zip(output.split(self.counts, -1), action.long().unbind(-1), strict=True)
        ]
        log_probs, entropies = zip(*each, strict=True)
        return torch.stack(log_probs).sum(0), torch.stack(entropies).sum(0)

    def kl(self, output: Tensor, log_std: Tensor | None, other: Tensor, other_log_std: Tensor | None) -> Tensor:
        pairs = zip(output.split(self.counts, -1), other.split(self.counts, -1), strict=True)
        return torch.stack([categorical_kl(one, two) for one, two in pairs]).sum(0)

    def likeliest(self, output: Tensor) -> Tensor:
        return torch.stack([each.argmax(-1) for each in output.split(self.counts, -1)], -1)

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        action = self.likeliest(output if noise is None else output + noise)
        return action, self.log_prob(output, None, action, False)[0]

    def random(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        return np.stack([torch.randint(n, (steps, rows), generator=source).numpy() for n in self.counts], -1)

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        return (action + np.array(self.start)).astype(self.dtype).reshape(len(action), *self.shape)

    def given(self, action: Tensor) -> Tensor:
        return (action + torch.tensor(self.start)).to(_dtype(self.dtype)).reshape(-1, *self.shape)

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        return np.asarray(action, np.int64).reshape(len(action), -1) - np.array(self.start)


@dataclass(frozen=True)
class MultiBinaryActions(Actions):
    """Independent yes or no [N,D] of `shape`, flattened; the actor's output are the logits of 1."""

    shape: tuple[int, ...]
    dtype: str = "int8"

    type = "multi_binary"

    @property
    def outputs(self) -> int:
        return math.prod(self.shape)

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,D] logistic: logit + noise is above 0 with the logit's probability."""
        return torch.rand(steps, rows, self.outputs, generator=source).logit(torch.finfo(torch.float32).tiny).numpy()

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        return ((output if noise is None else output + noise) > 0).astype(np.int64)

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        yes = action.reshape(output.shape) > 0
        log_prob = logsigmoid(torch.where(yes, output, -output)).sum(-1)
        return log_prob, -(logsigmoid(output) - output * (-output).sigmoid()).sum(-1) if entropy else None

    def kl(self, output: Tensor, log_std: Tensor | None, other: Tensor, other_log_std: Tensor | None) -> Tensor:
        yes = output.sigmoid() * (logsigmoid(output) - logsigmoid(other))
        return (yes + (-output).sigmoid() * (logsigmoid(-output) - logsigmoid(-other))).sum(-1)

    def likeliest(self, output: Tensor) -> Tensor:
        return (output > 0).long()

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        action = self.likeliest(output if noise is None else output + noise)
        return action, self.log_prob(output, None, action, False)[0]

    def random(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        return torch.randint(2, (steps, rows, self.outputs), generator=source).numpy()

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        return action.astype(self.dtype).reshape(len(action), *self.shape)

    def given(self, action: Tensor) -> Tensor:
        return action.to(_dtype(self.dtype)).reshape(-1, *self.shape)

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        return np.asarray(action, np.int64).reshape(len(action), -1)


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def _gumbel(steps: int, rows: int, n: int, source: torch.Generator) -> np.ndarray:
    wait = torch.empty(steps, rows, n).exponential_(generator=source)
    return -wait.clamp_min(torch.finfo(wait.dtype).tiny).log().numpy()


@dataclass(frozen=True)
class BoxActions(Actions):
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

    type = "box"
    densities = True
    has_log_std = True

    @property
    def size(self) -> int:
        """A: numbers of one action."""
        return math.prod(self.shape)

    @property
    def outputs(self) -> int:
        return self.size

    @property
    def noises(self) -> int:
        return self.size

    @cached_property
    def _bounded(self) -> np.ndarray:
        return np.isfinite(np.array(self.low, np.float64)) & np.isfinite(np.array(self.high, np.float64))

    @cached_property
    def _units(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Middle and half the distance [A] of the bounds, 0 and 1 where they are not finite; None where it is 0 and 1 everywhere."""
        low, high = np.where(self._bounded, np.array(self.low, np.float64), -1), np.where(self._bounded, np.array(self.high, np.float64), 1)
        middle, half = low / 2 + high / 2, high / 2 - low / 2
        return (middle, half) if middle.any() or (half != 1).any() else None

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        most = float(np.finfo(self.dtype).max)
        return np.clip(np.array(self.low, np.float64), -most, most), np.clip(np.array(self.high, np.float64), -most, most)

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,A] standard normal."""
        return torch.randn(steps, rows, self.size, generator=source).numpy()

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        if noise is None:
            return output
        assert std is not None
        return output + std * noise

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        assert log_std is not None
        return gaussian_log_prob(output, log_std.expand_as(output), action.reshape(output.shape).to(output.dtype), entropy)

    def moments(self, output: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor]:
        """[N,A] mean and log_std of what is drawn, before bounds squash it, with the graph."""
        assert log_std is not None
        return output, log_std.expand_as(output)

    def latent(self, output: Tensor, noise: Tensor, log_std: Tensor | None) -> Tensor:
        """[N,A] what `fresh` draws, before bounds squash it, with the graph."""
        mean, log_std = self.moments(output, log_std)
        return mean + log_std.exp() * noise

    def latent_of(self, action: Tensor) -> Tensor:
        """[N,A] the same of stored actions."""
        return action

    def log_densities(self, output: Tensor, log_std: Tensor | None, latent: Tensor) -> Tensor:
        """[N,A] log-density of each dimension of actions by itself, of those that were drawn by another output too."""
        assert log_std is not None
        return gaussian_log_densities(output, log_std.expand_as(output), latent)

    def kl(self, output: Tensor, log_std: Tensor | None, other: Tensor, other_log_std: Tensor | None) -> Tensor:
        assert log_std is not None
        assert other_log_std is not None
        return gaussian_kl(output, log_std.expand_as(output), other, other_log_std.expand_as(other))

    def likeliest(self, output: Tensor) -> Tensor:
        return output

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        assert log_std is not None
        action = output if noise is None else output + log_std.exp() * noise
        return action, gaussian_log_prob(output, log_std, action, entropy=False)[0]

    def random(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,A] uniform in [-1,1], which is all of the box. `InputError` where a dimension has no two finite bounds."""
        self._check_bounded("random actions need")
        return (torch.rand(steps, rows, self.size, generator=source) * 2 - 1).numpy()

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        """In the environment's units, shape and dtype, inside its bounds."""
        if self._units is not None:
            middle, half = self._units
            action = middle + half * action
        # clipped before the cast: the bounds are numbers of the dtype, so no rounding leads out of them
        return action.astype(np.float64, copy=False).clip(*self._bounds).astype(self.dtype).reshape(len(action), *self.shape)

    def given(self, action: Tensor) -> Tensor:
        action = action.double()
        if self._units is not None:
            middle, half = (torch.from_numpy(each) for each in self._units)
            action = middle + half * action
        least, most = (torch.from_numpy(each) for each in self._bounds)
        return action.maximum(least).minimum(most).to(_dtype(self.dtype)).reshape(-1, *self.shape)

    def inside(self, action: Tensor) -> Tensor:
        """[N,A] in the policy's units, held inside what bounds there are."""
        bounded = torch.from_numpy(self._bounded)
        low, high = (torch.tensor(each, dtype=torch.float64) for each in (self.low, self.high))
        return action.double().maximum(torch.where(bounded, -1, low)).minimum(torch.where(bounded, 1, high)).to(action.dtype)

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """[N,A] float32; 0 in a dimension whose bounds are one number."""
        flat = np.asarray(action, np.float64).reshape(len(action), self.size)
        if self._units is not None:
            middle, half = self._units
            flat = (flat - middle) / np.where(half > 0, half, 1)
        return flat.astype(np.float32)

    def _check_bounded(self, who: str) -> None:
        if not self._bounded.all():
            k = int(np.flatnonzero(~self._bounded)[0])
            raise InputError(
                f"{who} two finite bounds in every dimension, but those of the environment's actions are {self.low[k]} and {self.high[k]} "
                f"in dimension {k}; accepted: controller.kind: gaussian and no random actions, or an environment with bounds"
            )


@dataclass(frozen=True)
class BoundedActions(BoxActions):
    """Real actions [N,A] of a diagonal Gaussian whose mean is tanh(output), inside the bounds; draws are clipped only when they are given
    to the environment, and a log-probability is the Gaussian's own. log_std is a parameter, held between −5 and 2, beyond which its
    gradient is 0. What offline methods of weighted cloning have. Source: arXiv 2110.06169, released code.

    Errors: `InputError` where a dimension has no two finite bounds.
    """

    type = "bounded"
    kind = "bounded"

    def __post_init__(self) -> None:
        self._check_bounded(f"{self.kind} actions need")

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        held = None if std is None else np.clip(std, math.exp(BOUNDED_STD[0]), math.exp(BOUNDED_STD[1]))
        return super().draw(np.tanh(output), held, noise)

    def moments(self, output: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor]:
        assert log_std is not None
        return super().moments(output.tanh(), log_std.clamp(*BOUNDED_STD))

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        return super().log_prob(*self.moments(output, log_std), action, entropy)

    def log_densities(self, output: Tensor, log_std: Tensor | None, latent: Tensor) -> Tensor:
        return super().log_densities(*self.moments(output, log_std), latent)

    def kl(self, output: Tensor, log_std: Tensor | None, other: Tensor, other_log_std: Tensor | None) -> Tensor:
        return gaussian_kl(*self.moments(output, log_std), *self.moments(other, other_log_std))

    def likeliest(self, output: Tensor) -> Tensor:
        return output.tanh()

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        mean, log_std = self.moments(output, log_std)
        return super().fresh(mean, noise, log_std)


@dataclass(frozen=True)
class SpreadActions(BoxActions):
    """Real actions of a diagonal Gaussian whose mean and log_std are both the actor's output, [N,2A]; not bounded, as in the base class.

    Base class of those that read their spread in another way, or have bounds.
    """

    has_log_std = False
    type: ClassVar[str] = "spread"
    kind: ClassVar[Kind] = "spread"

    @property
    def outputs(self) -> int:
        return 2 * self.size

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        mean = output[..., : self.size]
        return mean if noise is None else mean + np.exp(output[..., self.size :]) * noise

    def moments(self, output: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, log_std = output.chunk(2, -1)
        return mean, log_std

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        mean, log_std = self.moments(output, None)
        return gaussian_log_prob(mean, log_std, action.reshape(mean.shape).to(mean.dtype), entropy)

    def log_densities(self, output: Tensor, log_std: Tensor | None, latent: Tensor) -> Tensor:
        return gaussian_log_densities(*self.moments(output, None), latent)

    def kl(self, output: Tensor, log_std: Tensor | None, other: Tensor, other_log_std: Tensor | None) -> Tensor:
        return gaussian_kl(*self.moments(output, None), *self.moments(other, None))

    def likeliest(self, output: Tensor) -> Tensor:
        return self.moments(output, None)[0]

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        mean, log_std = self.moments(output, None)
        action = mean if noise is None else mean + log_std.exp() * noise
        return action, gaussian_log_prob(mean, log_std, action, entropy=False)[0]


@dataclass(frozen=True)
class BoundedSpreadActions(SpreadActions):
    """Real actions [N,A] of a diagonal Gaussian, both of whose moments the actor's output [N,2A] gives through a tanh:

        mean = tanh(x),   log_std = −5 + 2.5 · (tanh(y) + 1),   between −5 and 0

    Draws are clipped only when they are given to the environment; a log-probability is the Gaussian's own. Source: arXiv 2311.03351,
    released code, whose online part squashes y twice: here there is one head.

    Errors: `InputError` where a dimension has no two finite bounds.
    """

    type = "bounded_spread"
    kind = "bounded_spread"

    def __post_init__(self) -> None:
        self._check_bounded(f"{self.kind} actions need")

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        mean, u = np.tanh(output[..., : self.size]), np.tanh(output[..., self.size :])
        return mean if noise is None else mean + np.exp(_between(u)) * noise

    def moments(self, output: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, u = output.tanh().chunk(2, -1)
        return mean, _between(u)


A = TypeVar("A", np.ndarray, Tensor)


def _between(u: A) -> A:
    """`BOUNDED_SPREAD` at u = −1 and 1, and linear between them."""
    least, most = BOUNDED_SPREAD
    return least + 0.5 * (most - least) * (u + 1)


@dataclass(frozen=True)
class SquashedActions(SpreadActions):
    """Real actions a = tanh(u) [N,A] in [-1,1], u from a diagonal Gaussian; the actor's output are its mean and log_std, [N,2A].

        log π(a) = log N(u; mean, std) − Σ 2·(log 2 − u − softplus(−2u)),  a density over [-1,1]^A

    log_std is held between −20 and 2; beyond them its gradient is 0, as in the reference. A stored action's u is atanh(a), of ±1 that of
    the next number inside, so values and gradients are finite; `fresh` knows u itself. The entropy has no closed form and is refused.
    Source: Haarnoja et al. 2018 (arXiv 1812.05905), appendix C.

    Errors: `InputError` where a dimension has no two finite bounds.
    """

    type = "squashed"
    kind = "squashed"
    has_entropy = False

    def __post_init__(self) -> None:
        self._check_bounded("squashed actions need")

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        mean = output[..., : self.size]
        if noise is None:
            return np.tanh(mean)
        return np.tanh(mean + np.exp(output[..., self.size :].clip(LOG_STD_MIN, LOG_STD_MAX)) * noise)

    def gaussian(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log_std [N,A] of u."""
        mean, log_std = output.chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def moments(self, output: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.gaussian(output)

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        if entropy:
            raise InputError("the entropy of squashed actions has no closed form; accepted: −log_prob of fresh actions in its place")
        mean, log_std = self.gaussian(output)
        u = atanh(action.reshape(mean.shape)).to(mean.dtype)
        return gaussian_log_prob(mean, log_std, u, entropy=False)[0] - log_slope_of_tanh(u), None

    def latent_of(self, action: Tensor) -> Tensor:
        return atanh(action)

    def log_densities(self, output: Tensor, log_std: Tensor | None, latent: Tensor) -> Tensor:
        mean, log_std = self.gaussian(output)
        return gaussian_log_densities(mean, log_std, latent) - log_slopes_of_tanh(latent)

    def kl(self, output: Tensor, log_std: Tensor | None, other: Tensor, other_log_std: Tensor | None) -> Tensor:
        return gaussian_kl(*self.gaussian(output), *self.gaussian(other))  # tanh is one to one: that of u

    def likeliest(self, output: Tensor) -> Tensor:
        return self.gaussian(output)[0].tanh()

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return squashed_draw(*self.gaussian(output), noise)


def squashed_draw(mean: Tensor, log_std: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """tanh of what `noise` [N,…,A] draws from a Gaussian, and its log-density [N,…]; without noise of the Gaussian's mean."""
    u = mean if noise is None else mean + log_std.exp() * noise
    # the Gaussian's z is the noise itself, and with the slope of tanh there is one sum: half the time of `log_prob`
    each = 2 * (u - logsigmoid(2 * u)) - log_std
    if noise is not None:
        each = each - 0.5 * noise.square()
    return u.tanh(), each.sum(-1) - mean.shape[-1] * (0.5 * math.log(2 * math.pi) + 2 * math.log(2))


def atanh(action: Tensor) -> Tensor:
    """Of numbers in [-1,1]; ±1 counts as its neighbour inside, in the precision that the action was stored in."""
    most = 1 - torch.finfo(action.dtype).eps / 2
    action = action.clamp(-most, most)
    return 0.5 * (action.log1p() - (-action).log1p())


@dataclass(frozen=True)
class LatentActions(SpreadActions):
    """Real actions z [N,A] of a diagonal Gaussian, unbounded: the environment is given tanh(u) in units of its bounds, u = z, or what a
    decoder makes of z (`ActorCritic`). Trajectories, log-probabilities and entropies are those of z, without any correction: given the
    decoder, environment and tanh are one environment whose actions are z.

    The actor's output are mean and x [N,2A]; std = softplus(x) + 1e-3, at most 10, where its gradient is 0. The most likely action is the
    mean. Source: arXiv 2512.02581, released code.

    Errors: `InputError` where a dimension has no two finite bounds.
    """

    type = "latent"
    kind = "latent"

    def __post_init__(self) -> None:
        self._check_bounded("latent actions need")

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        mean = output[..., : self.size]
        if noise is None:
            return mean
        return mean + (np.logaddexp(output[..., self.size :], 0) + STD_MIN).clip(STD_MIN, STD_MAX) * noise

    def moments(self, output: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, x = output.chunk(2, -1)
        return mean, (softplus(x) + STD_MIN).clamp_max(STD_MAX).log()

    def inside(self, action: Tensor) -> Tensor:
        return action  # tanh holds them

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        return super().for_environment(np.tanh(action))

    def given(self, action: Tensor) -> Tensor:
        return super().given(action.tanh())

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """[N,A] float32; a bound itself is u of the next number inside."""
        return atanh(torch.from_numpy(super().from_environment(action))).numpy()


@dataclass(frozen=True)
class DeterministicActions(BoxActions):
    """Real actions a = tanh(output) [N,A]; for exploration Gaussian noise is added in the policy's units and the sum clipped to [-1,1].

    Its standard deviation is `draw`'s `std`, or exp(log_std) in `fresh`; `exploration` where neither is given. There is no density: a
    log-probability is refused.

    Errors: `InputError` where a dimension has no two finite bounds.
    """

    exploration: float = field(default=0.1, compare=False)
    """Not compared: with another one, these are still the actions of the same space."""

    type = "deterministic"
    kind = "deterministic"
    has_kl = has_entropy = False
    has_log_std = False

    def __post_init__(self) -> None:
        self._check_bounded("deterministic actions need")
        if not (math.isfinite(self.exploration) and self.exploration >= 0):
            raise InputError(f"the exploration noise is {self.exploration}; accepted: a finite standard deviation of at least 0")

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        if noise is None:
            return np.tanh(output)
        return (np.tanh(output) + (self.exploration if std is None else std) * noise).clip(-1, 1)

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        raise InputError("deterministic actions have no log-probability; accepted: a policy that draws, or terms that read none (Pathwise)")

    def likeliest(self, output: Tensor) -> Tensor:
        return output.tanh()

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if noise is None:
            return self.likeliest(output), None
        std = self.exploration if log_std is None else log_std.exp()
        return (output.tanh() + std * noise).clamp(-1, 1), None
