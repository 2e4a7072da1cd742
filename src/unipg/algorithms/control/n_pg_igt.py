"""N-PG-IGT: normalised momentum whose gradients are sampled at a look-ahead point; for control and for language."""

from dataclasses import dataclass

from unipg.algorithms.base import register
from unipg.algorithms.control.recursive import RecursiveGradient
from unipg.estimator.directions import Transported


@register
@dataclass(frozen=True)
class NPGIGT(RecursiveGradient):
    """Rollouts come from beyond the iterate, where momentum would lead; the direction is then free of the momentum's lag, to first order.

    Steps have a length of their own: neither optimiser nor learning rate, clipping or weight decay is read for the policy.
    """

    name = "n_pg_igt"
    title = "Normalised policy gradient with implicit gradient transport"
    equation = "d_t = (1 − η_t) d_{t−1} + η_t Â ∇log pi at θ_t + (1 − η_t)/η_t · (θ_t − θ_{t−1});  θ_{t+1} = θ_t + γ_t d_t / ‖d_t‖"
    deviations = (
        "The released code looks ahead by the eta of the step before; this is the paper's, which is exact on quadratics.",
        "The authors' linear baseline is a critic here, and an iteration is a window of every environment, not whole episodes.",
        "returns are those of the policy that samples, ahead of the one that is kept; evaluations are of the one that is kept.",
    )

    def direction(self) -> Transported:
        return Transported(self.step, self.momentum)
