"""One-token rollout: one step of REINFORCE at every position of a demonstration."""

from __future__ import annotations

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.rates import DEMONSTRATED
from unipg.errors import InputError
from unipg.estimator import Constant, CurrentPolicy, Objective, PolicyGradient
from unipg.estimator.advantages import ReadAdvantage
from unipg.estimator.aggregation import AggregateName, aggregate_named
from unipg.estimator.likelihoods import OneTokenRollout, ReadLikelihood
from unipg.trajectories import Source


@register
@dataclass(frozen=True)
class OTR(Algorithm):
    """At every position of a demonstration, K next tokens are drawn from the policy; those that are the demonstrated one earn 1, all others
    beta. The states are off-policy, the one-token actions on-policy; there is one forward pass, and nothing is generated.

    Drawing at `temperature` kappa = 1 its expectation is (1 − beta) times DFT, so there beta is only a step size. Logits are those of the
    run's own sampling temperature, which kappa multiplies. A token that the policy never draws teaches nothing.
    """

    name = "otr"
    title = "One-token rollout"
    paper = "arXiv 2509.26313"
    equation = "(n_t/K) · ∇log pi(y*_t) + (beta/K) · sum over draws a ≠ y*_t of ∇log pi(a);  n_t of K draws from pi^(1/kappa) are y*_t"
    bias = "Tokens are weighted by how often the policy draws them, at another temperature and without an importance ratio."
    deviations = (
        "No released code was found, and the paper's text was not at hand: the loss follows what its public reviews say of the equations.",
        "K = 256 is the reviews'; kappa = 1.3, beta = −0.1 and the mean per sequence are unverified.",
    )
    claim = "benchmarks/claims/otr.py"
    demonstrations = "required"
    uses_rollouts = False
    learning_rate = DEMONSTRATED

    rollouts: int = setting(0, "rollouts per prompt: none")
    draws: int | None = setting(256, "K, tokens drawn at each position; null for the exact expectation", "reviews of arXiv 2509.26313")
    temperature: float = setting(1.3, "kappa, of the draws alone: above 1 explores", "unverified")
    beta: float = setting(-0.1, "reward of a draw that is not the demonstrated token, below 1", "unverified")
    aggregate: AggregateName = setting("sequence_mean_token_mean", "how tokens are averaged", "unverified; token_mean is the other choice")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta < 1:
            raise InputError(f"algorithm.beta is {self.beta}; accepted: below 1, the reward of the demonstrated token")
        if self.draws is not None and self.draws < 1:
            raise InputError(f"algorithm.draws is {self.draws}; accepted: 1 or more, or null for the exact expectation")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"algorithm.temperature is {self.temperature}; accepted: a finite number above 0")

    def objective(self, setting: Setting) -> PolicyGradient | Objective:
        reading = OneTokenRollout(self.draws, self.temperature)
        aggregate = aggregate_named(self.aggregate, setting.max_new_tokens)
        rows = (Source.DEMONSTRATION,)
        hits = PolicyGradient(
            reference=CurrentPolicy(), advantage=ReadAdvantage(reading, "hit"), aggregate=aggregate, rows=rows, name="hits"
        )
        if not self.beta:
            return hits
        misses = PolicyGradient(
            reference=CurrentPolicy(),
            advantage=Constant(1.0),
            likelihood=ReadLikelihood(reading, "miss_log_prob"),
            aggregate=aggregate,
            rows=rows,
            name="misses",
        )
        return hits + self.beta * misses
