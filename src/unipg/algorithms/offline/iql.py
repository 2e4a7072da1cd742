"""Implicit Q-learning: V is an expectile of Q over the data's actions, near their best, and no other action is ever asked for."""

from dataclasses import dataclass
from typing import ClassVar

from unipg.algorithms.base import register, setting
from unipg.algorithms.offline.in_sample import InSample
from unipg.critics import Expectile, Shape


@register
@dataclass(frozen=True)
class IQL(InSample):
    """The data's actions are made likely by how much better than V they are; V is the expectile of what actions there are worth."""

    name = "iql"
    title = "Implicit Q-learning"
    paper = "arXiv 2110.06169"
    equation = (
        "min(exp(temperature · (min Q_lagged(s, a) − V(s))), most) · ∇_theta log pi(a|s),  V → expectile of min Q_lagged,  "
        "Q → r + gamma V(s')"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "The squared errors of Q are halved, which Adam does not see.",
        "Every network keeps its learning rate; the code lowers the policy's along a cosine (optimizer.learners.policy.schedule: cosine).",
    )
    bias = "The critics' values stand for returns, and the states are those of the data."

    expectile: float = setting(0.7, "tau of the expectile: ½ is the mean, near 1 the best of the data", "arXiv 2110.06169, appendix B")

    def shape(self) -> Shape:
        return Expectile(self.expectile)
