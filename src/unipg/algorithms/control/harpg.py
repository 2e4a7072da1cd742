"""HARPG and N-HARPG: momentum that a Hessian-vector product carries along, from a second batch on the last step."""

from dataclasses import dataclass

from unipg.algorithms.base import register, setting
from unipg.algorithms.control.recursive import RecursiveGradient
from unipg.estimator.directions import Curvature, HessianAided


@register
@dataclass(frozen=True)
class HARPG(RecursiveGradient):
    """Each step collects a batch at the iterate and one at a random point of the last step, whose estimate of the Hessian turns the old
    direction into the new one. Steps have a length of their own: neither optimiser nor learning rate is read for the policy."""

    name = "harpg"
    title = "Hessian-aided recursive policy gradient"
    equation = "d_t = (1 − η_t)(d_{t−1} + B(θ̂_t)(θ_t − θ_{t−1})) + η_t Â ∇log pi,  B = ∇²Φ + ∇Φ (∇log p)ᵀ;  θ_{t+1} = θ_t + γ_t d_t"
    deviations = (
        "The released code adds the product of scores with the wrong sign and of batch means; this is the paper's B, by trajectory.",
        "The second batch is as large as the first (the code's is 32 steps), and there is none at the first step.",
        "In environments a trajectory is a window's share of an episode; the authors' linear baseline is a critic here.",
    )

    hessian: Curvature = setting("product", "product: the paper's B; dice: the same mean with less noise", "arXiv 2302.01734")

    def direction(self) -> HessianAided:
        return HessianAided(self.step, self.momentum, normalised=False, hessian=self.hessian)


@register
@dataclass(frozen=True)
class NHARPG(HARPG):
    """HARPG with steps of a given length."""

    name = "n_harpg"
    title = "Normalised Hessian-aided recursive policy gradient"
    equation = "d_t = (1 − η_t)(d_{t−1} + B(θ̂_t)(θ_t − θ_{t−1})) + η_t Â ∇log pi;  θ_{t+1} = θ_t + γ_t d_t / ‖d_t‖"

    def direction(self) -> HessianAided:
        return HessianAided(self.step, self.momentum, normalised=True, hessian=self.hessian)
