"""ODICE: one V, whose gradient through the next state is freed of what would undo that through the state itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unipg.algorithms.base import Algorithm, Setting, check_above_zero, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics import Lagged, Network, Polyak, StateValues
from unipg.critics.duals import DualLoss, DualWeight, Residual, StateLevel
from unipg.critics.regression import REPLAYED
from unipg.errors import InputError
from unipg.estimator import Objective, PolicyGradient
from unipg.estimator.directions import Orthogonal, Plain

ADAM = {"learning_rate": 2e-4, "clip_norm": None}


@register
@dataclass(frozen=True)
class ODICE(Algorithm):
    """V minimises (1 − lam) V(s) + lam f*(r + gamma V(s') − V(s)); the policy clones actions by their residual, where it is above 0."""

    name = "odice"
    title = "Orthogonal-gradient DICE"
    paper = "arXiv 2402.00348"
    equation = "min(max(delta, 0), most) · ∇_theta log pi(a|s),  delta = r + gamma V_lagged(s') − V(s);  V by g_l + g_f + g_b⊥"
    deviations: ClassVar[tuple[str, ...]] = (
        "The weight is max(delta, 0) as in the released code; weights: theory is the paper's max(delta/2 + 1, 0).",
        "The linear part (1 − lam) V(s) is not projected, as in the released code.",
    )
    bias = "The weights come from one learned V, and the states are those of the data."
    claim = "benchmarks/claims/odice.py"
    replays = True
    offline = True
    acts = True
    controllers: ClassVar[tuple[str, ...]] = ("gaussian", "bounded", "squashed", "auto")
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (256, 256), "activation": "relu", "init": "torch"}

    rollouts: int = setting(1, "read of prompts alone; nothing is collected")
    discount: float = setting(0.99, "discount per step", "released code")
    tau: float = setting(0.005, "share of V that its lagged copy takes over at each update", "released code")
    lam: float = setting(
        0.6, "weight of f* against V itself, between 0 and 1; what is useful depends on the rewards' scale", "released code"
    )
    eta: float = setting(1.0, "weight of the gradient through the next state, before projection", "released code")
    gradient: Literal["orthogonal", "semi", "true"] = setting(
        "orthogonal", "of V: orthogonal; semi leaves out the next state; true has both, without a copy", "arXiv 2402.00348, section 3"
    )
    divergence: Literal["chi_square", "reverse_kl"] = setting("chi_square", "f", "released code")
    weights: Literal["relu", "theory"] = setting("relu", "of an action: max(delta, 0), or (f')⁻¹", "released code")
    most: float = setting(100.0, "largest weight of an action", "released code")
    critics: int = setting(2, "members of V, of which the least stands in targets", "released code")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "discount", "tau")
        check_range(self, 0, math.inf, "eta")
        check_above_zero(self, "most")
        if not 0 < self.lam < 1:
            raise InputError(f"algorithm.lam is {self.lam}; accepted: a number between 0 and 1, without these")

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {"v": StateValues(self.critics, norm=True), "v_lagged": Lagged("v")}

    def value(self) -> Objective:
        """What V minimises, the ends of a step apart where they are combined."""
        residual, level = Residual(discount=self.discount), (1 - self.lam) * StateLevel(rows=REPLAYED, name="level")

        def part(through: Literal["forward", "backward", "whole"], weight: float) -> Objective:
            return Objective((weight * DualLoss(residual=residual, through=through, divergence=self.divergence, name=through),))

        if self.gradient == "true":
            return level + part("whole", self.lam)
        forward = level + part("forward", self.lam)
        return forward if self.gradient == "semi" or self.eta == 0 else forward + part("backward", self.lam * self.eta)

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        weight = DualWeight(Residual(discount=self.discount), self.weights, self.most)
        both = self.gradient == "orthogonal" and self.eta > 0
        follow = (Polyak("v", "v_lagged", self.tau),)
        return (
            # first: its residual is that of V before its step
            Learner("policy", ("actor",), PolicyGradient(rows=REPLAYED, advantage=weight), optimizer=ADAM),
            Learner("value", ("v",), self.value(), Orthogonal() if both else Plain(), then=follow, optimizer=ADAM),
        )
