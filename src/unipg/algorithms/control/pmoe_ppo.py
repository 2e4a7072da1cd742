"""Probabilistic mixture of experts in PPO: the ratio is of the whole mixture; a critic of actions ranks the components."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from unipg.algorithms.base import Setting, check_range, register, setting
from unipg.algorithms.control.ppo import PPO
from unipg.algorithms.learners import Learner
from unipg.critics import ActionValues, Network, Value
from unipg.critics.mixtures import Frequencies, ReturnOfActions
from unipg.errors import InputError
from unipg.estimator import GAE, Objective, PolicyGradient

ADAM = {"learning_rate": 3e-4, "eps": 1e-5, "clip_norm": 0.5}


@register
@dataclass(frozen=True)
class PMOEPPO(PPO):
    """PPO whose policy is a mixture of Gaussians, its log-density a logsumexp over the components, of which all and the router learn.

    `ranker` is a critic q(s, a) of the actions that were taken; it only tells whose fresh action is best, for the router's second loss.
    `controller.components` says how many components there are.
    """

    name = "pmoe_ppo"
    title = "Probabilistic mixture of experts, PPO"
    paper = "arXiv 2104.09122"
    equation = (
        "coefficient = 1_Clip · Â_GAE · r,  r = pi_theta / pi_old of the mixture;  w → P(i = j),  j = argmax_i q(s, a_i),  by "
        "(1/K) · Σ_i (1_{i = j} − w_i)²;  + value loss;  q(s, a) → Â_GAE + V_old"
    )
    deviations = (
        "After a co-author's second implementation; the paper's own PPO code is not released.",
        "Its density is logsumexp(log w + log N), where that code takes the logarithm of a sum, which underflows.",
        "Advantages are whitened over the batch, not over each minibatch.",
        "The fresh actions by which components are ranked are drawn once for each batch, not once for each pass.",
        "Running norms of observations and rewards are not part of it: controller.normalize_observations, environment.normalize_rewards.",
    )
    claim = "benchmarks/claims/pmoe.py"
    acts = True
    controllers = ("mixture",)
    controller: ClassVar[Mapping[str, Any]] = {"components": 5}

    gamma: float = setting(0.99, "discount per step", "co-author's code")
    value_weight: float = setting(1.0, "weight of the critic's loss, in units of ½ (V − target)²", "co-author's code: 0.5 of the square")
    value_clip: float | None = setting(0.2, "how far the value may move from the old one; null for no clipping", "co-author's code")
    ranker_weight: float = setting(2.0, "weight of the loss of q, in units of ½ (q − target)²", "co-author's code: 1 of the square")
    router_weight: float = setting(1.0, "weight of the router's own loss", "co-author's code")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, float("inf"), "ranker_weight", "router_weight")
        if self.entropy:
            raise InputError(f"algorithm.entropy is {self.entropy}, but that of a mixture has no closed form; accepted: 0")

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {"ranker": ActionValues()}

    def objective(self, setting: Setting) -> Objective:
        terms = (replace(t, surrogate="ratio") if isinstance(t, PolicyGradient) else t for t in super().objective(setting).terms)
        ranker = ReturnOfActions(of="ranker", gae=GAE(gamma=self.gamma, lam=self.lam), name="ranker")
        router = Frequencies(by=Value("ranker"), name="router")
        return Objective(tuple(terms)) + self.ranker_weight * ranker + self.router_weight * router

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        trains = ("actor", "router", "critic", "ranker")
        return (Learner("policy", trains, self.objective(setting), optimizer=ADAM),)
