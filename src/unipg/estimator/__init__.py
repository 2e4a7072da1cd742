"""THE CORE: the four parts and how they multiply.

Belongs here: pure tensor functions and small immutable parts. Does not belong here: input and output, models, tokenizers, tasks, loops;
this room imports nothing of the others but the carrier.
"""

from unipg.estimator.advantages import (
    GAE,
    ROLLOUTS,
    UNION,
    Advantage,
    BatchWhitened,
    BySuccess,
    Combination,
    Constant,
    EntropyScaled,
    GroupAdvantage,
    GroupCentered,
    GroupStandardized,
    LeaveOneOut,
    Outcome,
    Planning,
)
from unipg.estimator.aggregation import (
    Aggregate,
    ConstantLength,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    TokenMean,
)
from unipg.estimator.likelihoods import Likelihood, Stepwise
from unipg.estimator.masks import Both, Everything, Mask, MismatchMask, RatioClip, SequenceClip, SequenceMismatchMask
from unipg.estimator.parts import Part, Progress, Schedule
from unipg.estimator.penalties import EntropyBonus, KLPenalty, ValueLoss, kl_estimate, kl_in_reward
from unipg.estimator.policy_gradient import Objective, PolicyGradient, Term, coefficient, per_token_loss
from unipg.estimator.references import (
    BehaviourPolicy,
    Corrected,
    CurrentPolicy,
    OldPolicy,
    Reference,
    SequenceCorrected,
    SequenceMean,
    ShapedUniform,
    TruncatedWeight,
    Uniform,
)

__all__ = [
    "GAE",
    "ROLLOUTS",
    "UNION",
    "Advantage",
    "Aggregate",
    "BatchWhitened",
    "BehaviourPolicy",
    "Both",
    "BySuccess",
    "Combination",
    "Constant",
    "ConstantLength",
    "Corrected",
    "CurrentPolicy",
    "EntropyBonus",
    "EntropyScaled",
    "Everything",
    "GroupAdvantage",
    "GroupCentered",
    "GroupStandardized",
    "KLPenalty",
    "LeaveOneOut",
    "Likelihood",
    "Mask",
    "MismatchMask",
    "Objective",
    "OldPolicy",
    "Outcome",
    "Part",
    "Planning",
    "PolicyGradient",
    "Progress",
    "RatioClip",
    "Reference",
    "Schedule",
    "SequenceClip",
    "SequenceCorrected",
    "SequenceMean",
    "SequenceMeanTokenMean",
    "SequenceMeanTokenSum",
    "SequenceMismatchMask",
    "ShapedUniform",
    "Stepwise",
    "Term",
    "TokenMean",
    "TruncatedWeight",
    "Uniform",
    "ValueLoss",
    "coefficient",
    "kl_estimate",
    "kl_in_reward",
    "per_token_loss",
]
