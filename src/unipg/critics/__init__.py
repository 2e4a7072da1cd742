"""How good an action was, learned: networks of values, what they regress on, their lagged copies, and the advantages that read them.

Belongs here: terms and advantages of the estimator that look at networks by name (`now.action_value("q")`), and what those networks are.
Does not belong here: layers (`networks/`), policies, loops and data.
"""

from unipg.critics.duals import ChiSquare, DualValue, Expectile, Gumbel, Level, Shape, TotalVariation, Toward
from unipg.critics.lagged import Copied, Follows, Polyak
from unipg.critics.models import ModelLoss
from unipg.critics.networks import ActionValues, Body, Corrector, Decoder, Lagged, Network, Number, StateValues, ValuesByStep
from unipg.critics.regression import Bootstrapped, ExactKL, LatentPull, Planned, Regression, Target, TemperatureLoss
from unipg.critics.values import (
    Drawn,
    Exact,
    Expectation,
    Expected,
    Exponential,
    GAEOf,
    Greedy,
    Likeliest,
    Likeliness,
    StateValue,
    Surprise,
    Unacted,
    Value,
)

__all__ = [
    "ActionValues",
    "Body",
    "Bootstrapped",
    "ChiSquare",
    "Copied",
    "Corrector",
    "Decoder",
    "Drawn",
    "DualValue",
    "Exact",
    "ExactKL",
    "Expectation",
    "Expected",
    "Expectile",
    "Exponential",
    "Follows",
    "GAEOf",
    "Greedy",
    "Gumbel",
    "Lagged",
    "LatentPull",
    "Level",
    "Likeliest",
    "Likeliness",
    "ModelLoss",
    "Network",
    "Number",
    "Planned",
    "Polyak",
    "Regression",
    "Shape",
    "StateValue",
    "StateValues",
    "Surprise",
    "Target",
    "TemperatureLoss",
    "TotalVariation",
    "Toward",
    "Unacted",
    "Value",
    "ValuesByStep",
]
