"""CDSA: any trained controller, its actions pulled back to where given transitions are dense."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from unipg.algorithms.base import Algorithm, Setting, check_above_zero, check_counts, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics import Corrector, ModelLoss, Network
from unipg.errors import InputError


@register
@dataclass(frozen=True)
class CDSA(Algorithm):
    """The policy of `controller.model` stays as it is; scores of the data's states and pairs, inverse dynamics and dynamics are learned
    beside it, and move its actions wherever it acts: `networks.Correction` has the equation. Saved, evaluated and exported with it."""

    name = "cdsa"
    title = "Conservative denoising of a trained policy's actions"
    paper = "arXiv 2406.07541"
    equation = "none: a = a_0 + k_a · sigma² ∇_a log p(s, a_0) + I(s, s_1 + k_s · sigma² ∇log p(s_1)) − I(s, s_1),  s_1 = F(s, a_0)"
    deviations: ClassVar[tuple[str, ...]] = (
        "No code was found and the paper's equations are not public: the parts are its own, formulas and constants are ours.",
        "Dynamics are always learned, in units of the data; both scores are taken at one sigma, once.",
    )
    bias = "It follows the density of the data, not the reward: on data that are mostly bad it leads to what is bad and frequent."
    replays = True
    offline = True
    imitates = True
    acts = True
    wraps = True
    controllers = ("gaussian", "spread", "bounded", "squashed", "latent", "deterministic", "mixture", "squashed_mixture")

    rollouts: int = setting(1, "read of prompts alone; nothing is collected")
    state: float = setting(0.2, "k_s: share of the way to where the next state would be dense, by way of the inverse dynamics", "ours")
    action: float = setting(0.1, "k_a: share of the way to where the action would be dense in this state", "ours")
    gate: float | None = setting(None, "share of the data at which a part does nothing, those most dense; null: it always acts", "ours")
    sigma: float = setting(
        0.1, "noise of the scores that act, in standard deviations of the data; they learn half and twice of it too", "ours"
    )
    width: int = setting(128, "of both layers of each network", "ours")
    rate: float = setting(1e-3, "learning rate", "ours")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, float("inf"), "state", "action")
        check_counts(self, "width")
        check_above_zero(self, "sigma", "rate")
        if self.gate is not None and not 0 <= self.gate < 1:
            raise InputError(f"algorithm.gate is {self.gate}; accepted: a share of the data in [0, 1), or null")

    def networks(self, counted: bool) -> Mapping[str, Network]:
        sigmas = (self.sigma / 2, self.sigma, 2 * self.sigma)
        return {"correction": Corrector((self.width, self.width), sigmas, self.state, self.action, self.gate)}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        own = {"learning_rate": self.rate, "clip_norm": None}
        return (Learner("correction", ("correction",), ModelLoss(of="correction"), optimizer=own),)
