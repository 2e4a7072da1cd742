"""Extreme Q-learning: V is the soft maximum of Q over the data's actions, by Gumbel regression."""

from dataclasses import dataclass
from typing import ClassVar

from unipg.algorithms.base import register, setting
from unipg.algorithms.offline.in_sample import InSample
from unipg.critics import Bootstrapped, Gumbel, Regression, Shape


@register
@dataclass(frozen=True)
class XQL(InSample):
    """Implicit Q-learning whose V is scale · log E exp(Q / scale) over the data's actions: the reverse-KL member of f-DVL."""

    name = "xql"
    title = "Extreme Q-learning"
    paper = "arXiv 2301.02328"
    equation = (
        "min(exp(temperature · (min Q_lagged(s, a) − V(s))), most) · ∇_theta log pi(a|s),  V → scale · log E exp(min Q_lagged / scale),  "
        "Q → r + gamma V(s')"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "Q follows its target by a Huber loss of width 20, as in the released code.",
        "The largest exponent of a batch, by which the loss is scaled, is detached, as in the released code.",
    )
    bias = "The critics' values stand for returns, and the states are those of the data."
    norm = True

    scale: float = setting(1.0, "temperature of the soft maximum, in units of returns", "arXiv 2301.02328, appendix D")
    clip: float | None = setting(7.0, "most of an exponent (Q − V) / scale; null: no limit", "arXiv 2301.02328, released code")

    def shape(self) -> Shape:
        return Gumbel(self.scale, self.clip)

    def regression(self, target: Bootstrapped) -> Regression:
        return Regression(of="q", target=target, loss="huber", width=20.0)
