"""Kinds of critics: what their networks give, what these are trained on, and which value actor and targets read.

Belongs here: one class for each kind, found by its name (`algorithm.critic.kind`), whose hooks algorithms ask for their terms.
Does not belong here: which algorithm trains a critic, how often and on which rows.
"""

from unipg.critics.kinds.base import Critic, Squared, critic_of, kind_in, kinds, register_kind
from unipg.critics.kinds.ensembles import Ensemble, Gaussian, GeneralizedGaussian
from unipg.critics.kinds.martingale import CTD0, GMM, MSTDE, CTDLambda, Martingale

__all__ = [
    "CTD0",
    "GMM",
    "MSTDE",
    "CTDLambda",
    "Critic",
    "Ensemble",
    "Gaussian",
    "GeneralizedGaussian",
    "Martingale",
    "Squared",
    "critic_of",
    "kind_in",
    "kinds",
    "register_kind",
]
