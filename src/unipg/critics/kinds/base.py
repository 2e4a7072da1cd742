"""What a kind of critic is, the kind that everybody has, and the registry that finds them by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from unipg.arguments import CheckedArguments
from unipg.critics.networks import ActionValues
from unipg.critics.regression import Bootstrapped, Loss, Regression
from unipg.critics.values import Greedy, Reduction, Value
from unipg.errors import InputError, nearest, shown
from unipg.estimator import GAE, Advantage, Term, ValueLoss
from unipg.estimator.aggregation import Aggregate, TokenMean
from unipg.trajectories import Trajectories

Judged = Literal["states", "actions"]


@dataclass(frozen=True)
class Critic(CheckedArguments):
    """Base class: how a critic of states or of actions is trained, and what is read of it. An algorithm asks for terms and networks; each
    hook here is what everybody does, a regression on one value by the squared error."""

    judges: ClassVar[tuple[Judged, ...]] = ("states", "actions")
    """What it can be a critic of. Hooks for the other are never asked."""
    kind: str = field(default="", kw_only=True, repr=False)
    """Its name in recipes."""

    def __str__(self) -> str:
        return self.kind

    @property
    def heads(self) -> tuple[int, int]:
        """(K, C): a critic's members, and what each says: a value first, then what the kind makes of the rest."""
        return 1, 1

    def check(self, judged: Judged, who: str) -> None:
        """Refuses to be a critic of what it cannot judge; `who`: the algorithm that asks."""
        if judged not in self.judges:
            fitting = ", ".join(name for name, kind in kinds().items() if judged in kind.judges)
            raise InputError(
                f"algorithm.critic.kind is '{self.kind}', which judges {' and '.join(self.judges)}, but '{who}' has a critic of {judged}; "
                f"accepted: {fitting}"
            )

    def discount(self, gamma: float) -> float:
        """Its discount per step, of the algorithm's."""
        return gamma

    def metrics(self, batch: Trajectories, gamma: float) -> dict[str, float]:
        """What is worth plotting of it on a prepared batch; `gamma`: the algorithm's discount per step."""
        return {}

    # ------------------------------------------------------------------------------------------------ of states, on rollouts

    def advantage(self, gae: GAE) -> Advantage:
        """What the actor reads: of the mean of the members' values."""
        return gae

    def state_loss(self, gae: GAE, *, clip: float | None = None, aggregate: Aggregate = TokenMean()) -> Term:
        """What a critic of states is trained on, in the scale of ½ (V − target)²; the target is that of `gae`."""
        return ValueLoss(gae=gae, clip=clip, aggregate=aggregate)

    # ------------------------------------------------------------------------------------------------ of actions, on kept transitions

    def action_values(self, critics: int = 1) -> ActionValues:
        """The network `q` of so many critics, each of K members."""
        return ActionValues(critics)

    def value(self, of: str, reduction: Reduction = "min") -> Value:
        """What the actor reads: the least (mean, first) of the critics' values, each the mean of its members."""
        return Value(of, reduction)

    def target_value(self, of: str, reduction: Reduction = "min") -> Value:
        """What targets read: the least over critics, where each member has a target of its own."""
        return self.value(of, reduction)

    def greedy(self, by: str) -> Greedy:
        """The best action in a target, by the values of the network `by`."""
        return Greedy(by)

    def regression(self, of: str, target: Bootstrapped, loss: Loss = "squared") -> Regression:
        """What a critic of actions is trained on, in the scale of ½ (Q − target)². `loss`: the algorithm's own, of a kind that has none."""
        return Regression(of=of, target=target, loss=loss)


K = TypeVar("K", bound=type[Critic])
_KINDS: dict[str, type[Critic]] = {}


def register_kind(kind: K) -> K:
    """Class decorator: finds it by the default of its field `kind`. Refuses a second one under a name that is taken."""
    name = str(kind.__dataclass_fields__["kind"].default)
    if name in _KINDS and _KINDS[name].__qualname__ != kind.__qualname__:
        raise InputError(f"a critic of the kind '{name}' is already registered by {_KINDS[name].__module__}")
    _KINDS[name] = kind
    return kind


def kinds() -> Mapping[str, type[Critic]]:
    """Every kind by name."""
    return _KINDS


def kind_in(value: Any, where: str = "algorithm.critic") -> tuple[type[Critic], dict[str, Any]]:
    """The class that a name, or a mapping with `kind`, asks for, and its settings. Errors: `InputError` for a kind that does not exist."""
    section = {"kind": value} if isinstance(value, str) else value
    if not isinstance(section, Mapping) or not isinstance(section.get("kind"), str):
        raise InputError(f"{where} is {shown(value)}; accepted: a kind ({', '.join(_KINDS)}), or a section with `kind` and its settings")
    name = section["kind"]
    if name not in _KINDS:
        raise InputError(f"{where}.kind '{name}' does not exist; {nearest(name, _KINDS)}")
    return _KINDS[name], {key: setting for key, setting in section.items() if key != "kind"}


def critic_of(value: str | Mapping[str, Any] | Critic | None) -> Critic:
    """A critic as it is, by its kind, or from a mapping; None for the squared error. Errors: `InputError` for anything else."""
    if value is None or isinstance(value, Critic):
        return Squared() if value is None else value
    kind, settings = kind_in(value)
    return kind(**settings)


@register_kind
@dataclass(frozen=True)
class Squared(Critic):
    """½ (V − target)², which takes errors for Gaussian ones of one variance everywhere."""

    kind: Literal["squared"] = field(default="squared", kw_only=True, repr=False)
