"""Contrastive policy gradient."""

from dataclasses import dataclass

import torch

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.preparation import check_completions, prompt_of
from unipg.algorithms.rates import PREFERRED
from unipg.errors import InputError
from unipg.estimator import PREFERENCES, Contrastive, GroupMeanTokenSum, Planning, PolicyGradient
from unipg.estimator.advantages import group_statistics
from unipg.trajectories import Source, Trajectories


@register
@dataclass(frozen=True)
class CoPG(Algorithm):
    """Maximises a score under a KL to the anchor from a fixed set of scored completions: no rollouts, no importance ratios, any score.

    Two or more completions of each prompt are needed. The fixed point is pi_0 · exp(R / beta), whatever the completions were drawn from,
    as long as they may be anything. With scores ±1/4 for chosen and rejected its gradient is −beta / 2 times that of IPO; on the policy's
    own samples it is RLOO with the KL in the reward.
    """

    name = "copg"
    title = "Contrastive policy gradient"
    paper = "arXiv 2406.19185"
    equation = "R_beta(y_i) − mean_{j≠i} R_beta(y_j),  R_beta = R − beta · rho,  rho = log pi − log pi_0;  sum over a prompt's completions"
    bias = "The completions are given, not the policy's own; the gradient is that of another objective with the same maximiser."
    claim = "benchmarks/claims/copg.py"
    uses_rollouts = False
    completions = "scored"
    learning_rate = PREFERRED

    rollouts: int = setting(0, "rollouts per prompt: none")
    beta: float = setting(0.06, "strength of the KL to the anchor, in units of the score", "arXiv 2406.19185, best of the sweep")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(advantage=Contrastive(self.beta), aggregate=GroupMeanTokenSum(), rows=PREFERENCES, name="contrast")

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        assert batch.group is not None
        given = batch.rows_from(Source.PREFERENCE)
        check_completions(batch, given)
        alone = given & (group_statistics(torch.ones(len(batch)), batch.group, given).count < 2)
        if alone.any():
            raise InputError(f"{prompt_of(batch, int(alone.nonzero()[0]))} has one scored completion; accepted: 2 or more to contrast")
        return batch
