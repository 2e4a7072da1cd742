"""Probabilistic mixture of experts in soft actor-critic: the best of K fresh actions is followed, and the router counts who wins."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unipg.algorithms.base import Setting, register, setting
from unipg.algorithms.control.sac import ADAM, SAC
from unipg.algorithms.learners import Learner
from unipg.critics import Expectation
from unipg.critics.mixtures import Components, Frequencies, Routed, Through, Update
from unipg.critics.regression import REPLAYED
from unipg.estimator import Likelihood


@register
@dataclass(frozen=True)
class PMOESAC(SAC):
    """SAC whose policy is a mixture of Gaussians. At each state every component draws an action; j is that of which min Q is largest.

    The policy maximises E[min Q(s, a_j) − alpha · log N_j(a_j|s)], of component j alone. The router's weights go to how often each
    component wins: the draw of a component is never differentiated. Acting and targets take the component that the router draws. With one
    component it is SAC, to the bit. `controller.components` says how many there are.
    """

    name = "pmoe_sac"
    title = "Probabilistic mixture of experts, soft actor-critic"
    paper = "arXiv 2104.09122"
    equation = (
        "∇_theta E[min_k Q_k(s, a_j) − alpha · log N_j(a_j|s)],  j = argmax_i min_k Q_k(s, a_i);  "
        "w → P(i = j) by (1/K) · Σ_i (1_{i = j} − w_i)²;  Q_k and alpha as in sac"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "The temperature is stepped before critic and policy, which read the new one; the released code's critic reads that of before.",
        "The policy follows the critics after their step, as in sac, but winners are those of before it, as in the released code.",
        "The router is stepped first, by an optimiser of its own; the released code adds its loss to the policy's. One Adam or two: equal.",
        "Weights start as torch makes linear layers, so that K = 1 is sac; the released heads start in ±0.001.",
        "update: all is the mean over components; it is in the paper, not in the released code, and its weighting there is not known.",
    )
    bias = f"{SAC.bias} Winners are chosen by drawn actions, and the entropy is that of one component, which is below the mixture's."
    claim = "benchmarks/claims/pmoe.py"
    controllers: ClassVar[tuple[str, ...]] = ("squashed_mixture",)
    controller: ClassVar[Mapping[str, Any]] = {**SAC.controller, "components": 4}

    update: Update = setting("max", "components that a state moves: max, the one whose action is worth most; all", "released code")
    entropy: Literal["component", "mixture"] = setting(
        "component",
        "whose log-density the entropy is of: component, or the whole mixture, another algorithm; w then passes no gradient to the trunk",
        "released code",
    )

    def actions(self, setting: Setting) -> tuple[Expectation, Expectation, Likelihood]:
        mixture = self.entropy == "mixture"
        components = Components(self.critic_of_actions().value("q"), self.update, mixture)
        return components, Routed(mixture), Through(components)

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        router = Frequencies(rows=REPLAYED, by=self.critic_of_actions().value("q"), name="router")
        return (Learner("router", ("router",), router, optimizer=ADAM), *super().learners(setting))
