"""PRDC: the deterministic policy gradient, held to the nearest pair of state and action in the whole dataset."""

from dataclasses import dataclass
from typing import ClassVar

from unipg.algorithms.base import check_counts, check_range, register, setting
from unipg.algorithms.offline.td3_bc import TD3BC
from unipg.critics.regression import REPLAYED
from unipg.estimator import NearestAction
from unipg.estimator.parts import Search


@register
@dataclass(frozen=True)
class PRDC(TD3BC):
    """As TD3+BC, but the policy may do what was recorded at other states near by, and need not follow a bad action because it alone was
    recorded at this one."""

    name = "prdc"
    title = "Policy regularisation with dataset constraint"
    paper = "arXiv 2306.06569"
    equation = (
        "alpha / mean|Q_1(s, a_theta)| · ∇_theta Q_1(s, a_theta(s)) − ∇_theta mean_d (a_theta(s) − â)²,  "
        "(ŝ, â) the pair of the data with the least |[beta·s ; a_theta(s)] − [beta·ŝ ; â]|"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        *TD3BC.deviations,
        "The released code takes the k-th nearest pair where it is asked for k of them; here several give their mean action.",
    )

    beta: float = setting(2.0, "weight of the state in the distance of pairs: large, the recorded action; 0, any action", "released code")
    neighbours: int = setting(1, "nearest pairs, whose mean action counts", "released code: 1")
    search: Search = setting("tree", "how they are found: a k-d tree, or all pairs compared, for states of more than about 20 numbers")

    def constraint(self) -> NearestAction:
        return NearestAction(rows=REPLAYED, beta=self.beta, count=self.neighbours, search=self.search)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, float("inf"), "beta")
        check_counts(self, "neighbours")
