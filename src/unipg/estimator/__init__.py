"""THE CORE: the four parts and how they multiply.

Belongs here: pure tensor functions and small immutable parts. Does not belong here: input and output, models, tokenizers, tasks, loops;
this room imports nothing of the others but the carrier.
"""

from unipg.estimator import (
    advantages,
    aggregation,
    baselines,
    curvature,
    divergences,
    likelihoods,
    masks,
    parts,
    penalties,
    preferences,
    references,
)
from unipg.estimator.advantages import (
    DEMONSTRATIONS,
    GAE,
    PREFERENCES,
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
    ReadAdvantage,
    TokenProbability,
)
from unipg.estimator.aggregation import (
    Aggregate,
    ConstantLength,
    GroupMeanTokenSum,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    TokenMean,
)
from unipg.estimator.divergences import DIVERGENCES, Divergence, FDivergence, alpha, divergence_named
from unipg.estimator.likelihoods import Likelihood, OneTokenRollout, Positions, Reading, ReadLikelihood, Stepwise, uniforms
from unipg.estimator.masks import Both, Everything, Mask, MismatchMask, RatioClip, SequenceClip, SequenceMismatchMask
from unipg.estimator.parts import Complement, Linear, Part, Progress, Schedule, WarmupCosine
from unipg.estimator.penalties import EntropyBonus, KLPenalty, ValueLoss, kl_estimate, kl_in_reward
from unipg.estimator.policy_gradient import Objective, PolicyGradient, Term, coefficient, per_token_loss
from unipg.estimator.preferences import (
    Contrastive,
    KahnemanTversky,
    Logistic,
    LogOdds,
    LogRatio,
    PairPreference,
    Squared,
)
from unipg.estimator.references import (
    BehaviourPolicy,
    Corrected,
    CurrentPolicy,
    OldPolicy,
    Reference,
    SequenceCorrected,
    SequenceMean,
    SequenceRatio,
    ShapedUniform,
    TruncatedWeight,
    Uniform,
)

__all__ = [
    "DEMONSTRATIONS",
    "DIVERGENCES",
    "GAE",
    "PREFERENCES",
    "ROLLOUTS",
    "UNION",
    "Advantage",
    "Aggregate",
    "BatchWhitened",
    "BehaviourPolicy",
    "Both",
    "BySuccess",
    "Combination",
    "Complement",
    "Constant",
    "ConstantLength",
    "Contrastive",
    "Corrected",
    "CurrentPolicy",
    "Divergence",
    "EntropyBonus",
    "EntropyScaled",
    "Everything",
    "FDivergence",
    "GroupAdvantage",
    "GroupCentered",
    "GroupMeanTokenSum",
    "GroupStandardized",
    "KLPenalty",
    "KahnemanTversky",
    "LeaveOneOut",
    "Likelihood",
    "Linear",
    "LogOdds",
    "LogRatio",
    "Logistic",
    "Mask",
    "MismatchMask",
    "Objective",
    "OldPolicy",
    "OneTokenRollout",
    "Outcome",
    "PairPreference",
    "Part",
    "Planning",
    "PolicyGradient",
    "Positions",
    "Progress",
    "RatioClip",
    "ReadAdvantage",
    "ReadLikelihood",
    "Reading",
    "Reference",
    "Schedule",
    "SequenceClip",
    "SequenceCorrected",
    "SequenceMean",
    "SequenceMeanTokenMean",
    "SequenceMeanTokenSum",
    "SequenceMismatchMask",
    "SequenceRatio",
    "ShapedUniform",
    "Squared",
    "Stepwise",
    "Term",
    "TokenMean",
    "TokenProbability",
    "TruncatedWeight",
    "Uniform",
    "ValueLoss",
    "WarmupCosine",
    "alpha",
    "coefficient",
    "divergence_named",
    "kl_estimate",
    "kl_in_reward",
    "per_token_loss",
    "uniforms",
]

for _module in (advantages, aggregation, baselines, curvature, divergences, likelihoods, masks, parts, penalties, preferences, references):
    for _name, _part in vars(_module).items():  # a new part needs no line here
        if isinstance(_part, type) and issubclass(_part, Part) and _part.__module__ == _module.__name__ and not _name.startswith("_"):
            globals().setdefault(_name, _part)
            if _name not in __all__:
                __all__ += [_name]
