"""Mixtures of Gaussians as actions: components and a router in one actor's output, and what terms may ask of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.likelihoods import gaussian_log_densities, gaussian_log_prob, log_slope_of_tanh
from unipg.policies.actions import LOG_STD_MAX, LOG_STD_MIN, BoxActions, Kind, atanh, squashed_draw
from unipg.policies.now import WINNER, Elsewhere, Now

if TYPE_CHECKING:
    from unipg.networks.perceptron import Routed
    from unipg.trajectories import Evaluation

Evaluated = Literal["best", "drawn"]
"""Whose mean an evaluation plays: that of the router's best component, or of one that the router draws."""
COMPONENTS = 4


@dataclass(frozen=True)
class MixtureActions(BoxActions):
    """Real actions [N,A] of a mixture of K diagonal Gaussians; the actor's output are their means [N,K·A], then the router's logits [N,K].

        log π(a) = logsumexp_i( log w_i + log N(a; mean_i, std_i) ),   w = softmax(logits)

    log_std [K·A] is the same in every state. Router and components share no weights: the router is linear in the observation. An action
    is drawn from the component that the router draws; the most likely one is the mean of the component of largest w, which need not be
    where the density is largest. There is no closed form of its entropy, nor of a KL. Source: arXiv 2104.09122.

    Errors: `InputError` for fewer than one component.
    """

    components: int = COMPONENTS
    evaluated: Evaluated = field(default="best", compare=False)
    """Not compared: the distribution is the same."""

    type = "mixture"
    kind: ClassVar[Kind] = "mixture"
    has_kl = has_entropy = False
    router_reads: ClassVar[Literal["trunk", "input"]] = "input"
    """What the router is linear in: the observation, or the actor's last hidden layer, without gradient into it."""
    numbers: ClassVar[int] = 1
    """Of the actor's output for each number of a component's action."""

    def __post_init__(self) -> None:
        if not (isinstance(self.components, int) and self.components >= 1):
            raise InputError(f"a mixture has {self.components} components; accepted: 1 or more")

    @property
    def outputs(self) -> int:
        """Of the components alone; the router's K come behind them."""
        return self.numbers * self.components * self.size

    @property
    def noises(self) -> int:
        """K·A, and one that decides what the router draws, where there is a choice."""
        return self.components * self.size + (self.components > 1)

    def noise(self, steps: int, rows: int, source: torch.Generator) -> np.ndarray:
        """[steps,rows,noises] standard normal."""
        return torch.randn(steps, rows, self.noises, generator=source).numpy()

    @property
    def how_evaluated(self) -> str:  # type: ignore[override]
        return "the router's best component" if self.evaluated == "best" else "components that the router draws"

    def noise_of_evaluation(self, rows: int, source: torch.Generator) -> np.ndarray | None:
        """[rows,noises] by which the router draws, and no component does; None where the best one is played."""
        if self.evaluated == "best":
            return None
        noise = self.noise(1, rows, source)[0]
        noise[:, : self.components * self.size] = 0
        return noise

    # ------------------------------------------------------------------------------------------------ the distribution

    def logits(self, output: Tensor) -> Tensor:
        """[N,K] of the router."""
        return output[..., self.outputs :]

    def gaussians(self, output: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log_std [N,K,A] of the components, before bounds squash them."""
        assert log_std is not None
        mean = output[..., : self.outputs].unflatten(-1, (self.components, self.size))
        return mean, log_std.view(self.components, self.size).expand_as(mean)

    def drawn(self, output: Tensor, noise: Tensor | None) -> Tensor:
        """[N] the component that the router draws by the last number of `noise`; without noise its best."""
        if noise is None or self.components == 1:
            return self.logits(output).argmax(-1)
        below = self.logits(output).softmax(-1).cumsum(-1)
        return (below <= torch.special.ndtr(noise[..., -1:]) * below[..., -1:]).sum(-1).clamp_max(self.components - 1)

    def chosen(self, output: Tensor, log_std: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log_std [N,A] of one component of each row."""
        mean, log_std = self.gaussians(output, log_std)
        return _of(mean, index), _of(log_std, index)

    def log_mixture(self, output: Tensor, log_std: Tensor | None, latent: Tensor) -> Tensor:
        """[N,…] log-density of actions `latent` [N,…,A], as they are before bounds squash them."""
        mean, log_std = self.gaussians(output, log_std)
        log_w = self.logits(output).log_softmax(-1)
        for _ in range(latent.ndim - output.ndim):
            mean, log_std, log_w = mean.unsqueeze(-3), log_std.unsqueeze(-3), log_w.unsqueeze(-2)
        each = gaussian_log_densities(*torch.broadcast_tensors(mean, log_std, latent.unsqueeze(-2))).sum(-1)
        return (log_w + each).logsumexp(-1) - self.log_slope(latent)

    def log_slope(self, latent: Tensor) -> Tensor:
        """[N,…] log |da/du| of what bounds make of u."""
        return latent.new_zeros(())

    def bounded(self, latent: Tensor) -> Tensor:
        """What bounds make of u."""
        return latent

    def own_draw(self, mean: Tensor, log_std: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions [N,…,A] of single components, and their log-density [N,…] under the component alone."""
        action = mean if noise is None else mean + log_std.exp() * noise
        return action, gaussian_log_prob(mean, log_std, action, entropy=False)[0]

    def component(
        self, output: Tensor, noise: Tensor | None, log_std: Tensor | None, index: Tensor | None, mixture: bool
    ) -> tuple[Tensor, Tensor]:
        """Actions [N,A] of the components `index` [N], by default those that the router draws; and their log-density [N], that of the
        component alone or, with `mixture`, of all."""
        at = self.drawn(output, noise) if index is None else index
        mean, own = self.chosen(output, log_std, at)
        return self._judged(output, log_std, mean, own, None if noise is None else _of(self._normal(noise), at), mixture)

    def every(self, output: Tensor, noise: Tensor, log_std: Tensor | None, mixture: bool) -> tuple[Tensor, Tensor]:
        """[N,K,A] an action of each component, and [N,K] their log-densities as above."""
        mean, own = self.gaussians(output, log_std)
        return self._judged(output, log_std, mean, own, self._normal(noise), mixture)

    def _normal(self, noise: Tensor) -> Tensor:
        """[N,K,A] what the components' actions are drawn by."""
        return noise[..., : self.components * self.size].unflatten(-1, (self.components, self.size))

    def _judged(
        self, output: Tensor, log_std: Tensor | None, mean: Tensor, own: Tensor, noise: Tensor | None, mixture: bool
    ) -> tuple[Tensor, Tensor]:
        action, log_prob = self.own_draw(mean, own, noise)
        if not mixture:
            return action, log_prob
        return action, self.log_mixture(output, log_std, mean if noise is None else mean + own.exp() * noise)

    # ------------------------------------------------------------------------------------------------ as any other actions

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        shape = (*output.shape[:-1], self.components, self.size)
        logits = output[..., self.outputs :]
        if noise is None or self.components == 1:
            index = logits.argmax(-1)
        else:
            below = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
            level = torch.special.ndtr(torch.from_numpy(noise[..., -1:])).numpy() * below[..., -1:]
            index = (below <= level).sum(-1).clip(max=self.components - 1)

        def mine(numbers: np.ndarray) -> np.ndarray:
            return np.take_along_axis(numbers.reshape(shape), index[..., None, None], -2)[..., 0, :]

        mean = mine(output[..., : self.components * self.size])
        if noise is None:
            return mean
        return mean + mine(self._stds(output, std)) * mine(noise[..., : self.components * self.size])

    def _stds(self, output: np.ndarray, std: np.ndarray | float | None) -> np.ndarray:
        """[N,K·A]"""
        assert std is not None
        return np.broadcast_to(std, (*output.shape[:-1], self.outputs))

    def log_prob(self, output: Tensor, log_std: Tensor | None, action: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        if entropy:
            raise InputError("the entropy of a mixture has no closed form; accepted: −log_prob of fresh actions in its place")
        latent = self.latent_of(action.reshape(len(output), self.size)).to(output.dtype)
        return self.log_mixture(output, log_std, latent), None

    def moments(self, output: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor]:
        raise InputError("a mixture is drawn from several Gaussians; accepted here: real actions that are drawn from one")

    def latent(self, output: Tensor, noise: Tensor, log_std: Tensor | None) -> Tensor:
        index = self.drawn(output, noise)
        mean, own = self.chosen(output, log_std, index)
        return mean + own.exp() * _of(self._normal(noise), index)

    def log_densities(self, output: Tensor, log_std: Tensor | None, latent: Tensor) -> Tensor:
        raise InputError("a mixture has no density of each of an action's dimensions by itself; accepted here: gaussian, squashed")

    def kl(self, output: Tensor, log_std: Tensor | None, other: Tensor, other_log_std: Tensor | None) -> Tensor:
        raise InputError("the KL of two mixtures has no closed form; accepted here: gaussian, squashed, or actions that can be counted")

    def likeliest(self, output: Tensor) -> Tensor:
        mean = output[..., : self.components * self.size].unflatten(-1, (self.components, self.size))
        return self.bounded(_of(mean, self.logits(output).argmax(-1)))

    def fresh(self, output: Tensor, noise: Tensor | None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.component(output, noise, log_std, None, True)


@dataclass(frozen=True)
class SquashedMixtureActions(MixtureActions):
    """The same through tanh, in [-1,1]; the actor's output are means and log_std, [N,2·K·A], then the router's logits [N,K].

        log π(a) = logsumexp_i( log w_i + log N(u; mean_i, std_i) ) − Σ log(1 − a²),   a = tanh(u)

    log_std is held between −20 and 2, as in `SquashedActions`, which this is with one component. The router is linear in the actor's last
    hidden layer, and no gradient leads through it into that.

    Errors: `InputError` for fewer than one component, and where a dimension has no two finite bounds.
    """

    type = "squashed_mixture"
    kind = "squashed_mixture"
    has_log_std = False
    router_reads = "trunk"
    numbers = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_bounded("squashed actions need")

    def gaussians(self, output: Tensor, log_std: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, log_std = (
            each.unflatten(-1, (self.components, self.size)) for each in output[..., : self.outputs].split(self.components * self.size, -1)
        )
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def log_slope(self, latent: Tensor) -> Tensor:
        return log_slope_of_tanh(latent)

    def bounded(self, latent: Tensor) -> Tensor:
        return latent.tanh()

    def own_draw(self, mean: Tensor, log_std: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        return squashed_draw(mean, log_std, noise)

    def latent_of(self, action: Tensor) -> Tensor:
        return atanh(action)

    def draw(self, output: np.ndarray, std: np.ndarray | float | None, noise: np.ndarray | None) -> np.ndarray:
        return np.tanh(super().draw(output, std, noise))

    def _stds(self, output: np.ndarray, std: np.ndarray | float | None) -> np.ndarray:
        found: np.ndarray = np.exp(output[..., self.components * self.size : self.outputs].clip(LOG_STD_MIN, LOG_STD_MAX))
        return found


def _of(values: Tensor, index: Tensor) -> Tensor:
    """[N,K,A] and [N] to [N,A]."""
    return values.gather(-2, index[..., None, None].expand(*index.shape, 1, values.shape[-1])).squeeze(-2)


class MixtureNow(Now):
    """What a policy's networks say of a batch where its actions are a mixture; see `Evaluation` for what is asked of components."""

    @property
    def _mixture(self) -> MixtureActions:
        return cast("MixtureActions", self.policy.actions)

    def _found(self, key: tuple[Any, ...], at: str, routed: bool, find: Callable[[Tensor, Tensor, Tensor | None], Any]) -> Any:
        """What `find` makes of output, noise and log_std, once, with its graph where somebody in this step will differentiate it. `routed`:
        whether it looks at the router, so that a step of that counts."""

        def drawn() -> Any:
            output = self.output(at)
            return find(output, self.noise(at).to(output.dtype), self.policy.log_std)

        return self.graphed((*key, at), at, drawn, "actor", *(["router"] if routed else []))

    def output(self, at: str) -> Tensor:
        """[N,…] of the actor at the named observations; a step of the router alone leaves what the components' network says."""
        actor = cast("Routed", self.policy.network("actor"))

        def routed() -> Tensor:
            return actor.routed(*self.graphed(("apart", at), at, lambda: actor.apart(self.observed(at))))

        found: Tensor = self.graphed(("output", at), at, routed, "actor", "router")
        return found

    def router(self, at: str) -> Tensor:
        return self.placed(self._mixture.logits(self.output(at)).log_softmax(-1))

    def components(self, at: str, mixture: bool = False) -> Evaluation:
        found = self._found(
            ("components", mixture), at, mixture, lambda output, noise, own: self._mixture.every(output, noise, own, mixture)
        )
        return AtComponents(self, at, (*found, self.output(at)))

    def component(self, at: str, index: Tensor | None = None, mixture: bool = False) -> Evaluation:
        def find(output: Tensor, noise: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
            return self._mixture.component(output, noise, own, None if index is None else self.flat(index), mixture)

        found = self._found(("component", index is None, mixture), at, mixture or index is None, find)
        return AtComponents(self, at, (*found, self.output(at)))

    def winner(self, at: str, by: Callable[[Any, Evaluation], Tensor]) -> Tensor:
        if self._mixture.components == 1:
            return torch.zeros(self.shape, dtype=torch.long, device=self.batch.mask.device)
        if (decided := self.batch.planned.get(WINNER.format(at))) is not None:
            return decided

        def find() -> Tensor:
            with torch.no_grad():
                value = by(self.batch, self.components(at))
            if not math.isfinite(float(value.sum())):
                row, step, component = (int(i) for i in (~torch.isfinite(value)).nonzero()[0])
                raise InputError(
                    f"the value of a fresh action is {float(value[row, step, component])} (row {row}, position {step}, component "
                    f"{component}), so that no component is best; the critic may have diverged: lower optimizer.learning_rate"
                )
            return value.argmax(-1)

        found: Tensor = self.once(("winner", at), ("actor",), find)
        return found

    def values_of(self, network: str, at: str, action: Tensor | None, members: int | None = None) -> Tensor:
        """See `Now.values_of`; of actions [N,K,A] of all components [M,B,T,K], one after another: what layers say stays in caches."""
        if action is None or action.ndim < 3:
            return super().values_of(network, at, action, members)
        return torch.stack([super(MixtureNow, self).values_of(network, at, each, members) for each in action.unbind(1)], -1)


class AtComponents(Elsewhere):
    """The same at fresh actions of single components, or of all of them: then with one more dimension everywhere."""

    def log_prob_of(self, network: str, each: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        raise InputError("the log-probability of a component's action under another network is not known; accepted: of the policy's own")
