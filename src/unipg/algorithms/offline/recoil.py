"""ReCOIL: imitation of a few expert transitions with many others of any kind, by a dual of the same program; no discriminator."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unipg.algorithms.base import register, setting
from unipg.algorithms.offline.in_sample import InSample
from unipg.critics import Bootstrapped, Gumbel, Level, Shape, StateValue, Toward, Unacted
from unipg.errors import InputError
from unipg.estimator import DEMONSTRATIONS


@register
@dataclass(frozen=True)
class ReCOIL(InSample):
    """Q is pushed up on the expert's transitions and kept consistent on all others, without rewards; V and policy are XQL's on these."""

    name = "recoil"
    title = "Relaxed coverage for off-policy imitation (ReCOIL)"
    paper = "arXiv 2302.08560"
    equation = (
        "min(exp(temperature · (min Q_lagged(s, a) − V(s))), most) · ∇_theta log pi(a|s) of the offline rows,  "
        "Q: −E_expert[Q] + small · E_offline[Q] + ½ E_offline[(Q − gamma V(s'))²]"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "The critic's default is the un-stabilised loss of the authors' follow-up; loss: ls is the released one, ±q_max (r = −2).",
        "The terminal value of ls is a setting: the code's −q_max is wrong where an expert ends on success.",
    )
    bias = "It follows the expert, not the reward."
    claim = "benchmarks/claims/dual_rl.py"
    demonstrations = "required"
    imitates = True

    loss: Literal["unstabilised", "ls"] = setting("unstabilised", "the critic's: unstabilised, or the released ls", "authors' follow-up")
    scale: float = setting(5.0, "temperature of the soft maximum", "released README: raised until Q does not diverge")
    clip: float | None = setting(7.0, "most of an exponent (Q − V) / scale; null: no limit", "released code")
    small: float = setting(1e-4, "weight by which Q of other transitions is pushed down (unstabilised)", "authors' follow-up")
    reward: float = setting(-2.0, "what each transition earns (ls); q_max is |reward| / (1 − discount)", "released code")
    terminal: float | None = setting(None, "value after a terminal step (ls); null: −q_max", "released code")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "ls" and not self.discount < 1:
            raise InputError(f"algorithm.discount is {self.discount}; accepted with loss ls: below 1, q_max would have no end")

    def shape(self) -> Shape:
        return Gumbel(self.scale, self.clip)

    def critic(self) -> Any:
        if self.loss == "unstabilised":
            consistent = self.regression(Bootstrapped(StateValue("v"), self.discount, Unacted(), reward=0.0))
            return -1.0 * Level(rows=DEMONSTRATIONS) + self.small * Level(rows=consistent.rows) + consistent
        most = abs(self.reward) / (1 - self.discount)
        terminal = -most if self.terminal is None else self.terminal
        target = Bootstrapped(StateValue("v"), self.discount, Unacted(), reward=self.reward, terminal=terminal)
        return Toward(rows=DEMONSTRATIONS, value=most) + self.regression(target)
