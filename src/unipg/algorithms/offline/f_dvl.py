"""f-DVL: V from the dual of a regularised program over visitations, whose conjugate is bounded where Gumbel regression explodes."""

from dataclasses import dataclass
from typing import ClassVar

from unipg.algorithms.base import register, setting
from unipg.algorithms.offline.in_sample import InSample
from unipg.critics import Bootstrapped, ChiSquare, Gumbel, Regression, Shape, TotalVariation
from unipg.errors import InputError, nearest

DIVERGENCES = ("total_variation", "chi_square", "reverse_kl")


@register
@dataclass(frozen=True)
class FDVL(InSample):
    """Implicit Q-learning whose V minimises (1 − lam) · V + lam · f*(Q − V), f* the conjugate of a divergence from the data's visits."""

    name = "f_dvl"
    title = "Dual V-learning (f-DVL)"
    paper = "arXiv 2302.08560"
    equation = (
        "min(exp(temperature · (min Q_lagged(s, a) − V(s))), most) · ∇_theta log pi(a|s),  V → argmin (1 − lam) V + lam f*(Q_lagged − V),  "
        "Q → r + gamma V(s')"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "lam is the weight between the two parts alone; the authors' examples pass XQL's temperature in its place.",
        "No uniform actions are added to a batch, no dropout, and every network keeps its learning rate.",
        "The conjugate of chi-square is max(y + y²/4, 0), which rises again below −4, as in the released code.",
    )
    bias = "The critics' values stand for returns, and the states are those of the data."
    claim = "benchmarks/claims/dual_rl.py"
    norm = True

    divergence: str = setting("chi_square", f"f: {', '.join(DIVERGENCES)}", "arXiv 2302.08560, section 5")
    lam: float = setting(0.8, "weight of the conjugate, between 0 and 1: towards 1 V rises to the best action's value", "released code")
    scale: float = setting(1.0, "temperature of reverse_kl", "released code")
    clip: float | None = setting(7.0, "most of an exponent of reverse_kl; null: no limit", "released code")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "divergence", self.divergence.lower().replace("-", "_"))
        if self.divergence not in DIVERGENCES:
            raise InputError(f"algorithm.divergence '{self.divergence}' does not exist; {nearest(self.divergence, DIVERGENCES)}")
        least = 0.5 if self.divergence == "total_variation" else 0.0
        if not least < self.lam < 1:
            raise InputError(f"algorithm.lam is {self.lam}; accepted for {self.divergence}: between {least:g} and 1, without these")

    def shape(self) -> Shape:
        if self.divergence == "reverse_kl":
            return Gumbel(self.scale, self.clip)
        return TotalVariation(self.lam) if self.divergence == "total_variation" else ChiSquare(self.lam)

    def regression(self, target: Bootstrapped) -> Regression:
        return Regression(of="q", target=target, loss="huber", width=20.0)
