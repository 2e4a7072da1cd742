"""DDPG: the deterministic policy gradient, which TD3 is without its three remedies."""

from dataclasses import dataclass

from unipg.algorithms.base import register, setting
from unipg.algorithms.control.td3 import TD3


@register
@dataclass(frozen=True)
class DDPG(TD3):
    """The policy climbs its only critic through its own action; both, and what the critic regresses on, move at every update."""

    name = "ddpg"
    title = "Deep deterministic policy gradient"
    paper = "arXiv 1509.02971"
    equation = "∇_theta Q(s, a_theta(s)),  Q → r + gamma · Q_lagged(s', a_lagged(s'))"
    deviations = (
        "One module with TD3, whose critic loss it has: the squared error without the factor ½.",
        "Exploration is Gaussian noise; the paper's is an Ornstein-Uhlenbeck process, whose correlation later work found no use for.",
        "No batch normalisation and no weight decay; learning rates, tau and batch are those of Stable-Baselines3.",
    )

    critics: int = setting(1, "critics, of whose values the least counts in the target", "arXiv 1509.02971, algorithm 1")
    delay: int = setting(1, "updates of the critic for one of the policy and of all lagged copies", "arXiv 1509.02971, algorithm 1")
    smoothing: float | None = setting(None, "std of noise on the target's action; null: none", "arXiv 1509.02971, algorithm 1")
    limit: float | None = setting(None, "most that this noise may be either way; null: no limit")
