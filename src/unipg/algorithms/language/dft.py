"""Dynamic fine-tuning, row 13 of the library's table."""

from dataclasses import dataclass

from unipg.algorithms.base import Setting, register
from unipg.algorithms.language.sft import SFT
from unipg.estimator import Constant, PolicyGradient, Uniform
from unipg.estimator.aggregation import aggregate_named
from unipg.trajectories import Source


@register
@dataclass(frozen=True)
class DFT(SFT):
    """SFT whose every token is weighted by its own probability, loss = −sg(p)·log p: gradients of ∇p instead of ∇log p."""

    name = "dft"
    title = "Dynamic fine-tuning"
    paper = "arXiv 2508.05629"
    equation = "coefficient = pi_theta;  token mean over demonstrations"
    bias = "Tokens are weighted by their own probability, so likely tokens learn faster: a biased gradient of the likelihood, by design."

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            reference=Uniform(),
            advantage=Constant(1.0),
            aggregate=aggregate_named(self.aggregate, setting.max_new_tokens),
            rows=(Source.DEMONSTRATION,),
            name="dft",
        )
