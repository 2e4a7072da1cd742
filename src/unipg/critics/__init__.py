"""How good an action was, learned: networks of values, what they regress on, their lagged copies, and the advantages that read them.

Belongs here: terms and advantages of the estimator that look at networks by name (`now.action_value("q")`), and what those networks are.
Does not belong here: layers (`networks/`), policies, loops and data.
"""

from unipg.critics.duals import ChiSquare, DualValue, Expectile, Gumbel, Level, Shape, TotalVariation, Toward
from unipg.critics.dynamics import DynamicsLoss, Imagined
from unipg.critics.lagged import Copied, Elected, Follows, Gated, Moment, Polyak, Score
from unipg.critics.models import ModelLoss
from unipg.critics.networks import (
    ActionValues,
    Another,
    Body,
    Corrector,
    Decoder,
    Dynamics,
    Lagged,
    Network,
    Number,
    StateValues,
    ValuesByStep,
)
from unipg.critics.redrawn import Apart, Redrawn
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
    "Another",
    "Apart",
    "Body",
    "Bootstrapped",
    "ChiSquare",
    "Copied",
    "Corrector",
    "Decoder",
    "Drawn",
    "DualValue",
    "Dynamics",
    "DynamicsLoss",
    "Elected",
    "Exact",
    "ExactKL",
    "Expectation",
    "Expected",
    "Expectile",
    "Exponential",
    "Follows",
    "GAEOf",
    "Gated",
    "Greedy",
    "Gumbel",
    "Imagined",
    "Lagged",
    "LatentPull",
    "Level",
    "Likeliest",
    "Likeliness",
    "ModelLoss",
    "Moment",
    "Network",
    "Number",
    "Planned",
    "Polyak",
    "Redrawn",
    "Regression",
    "Score",
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
