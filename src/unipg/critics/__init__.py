"""How good an action was, learned: networks of values, what they regress on, their lagged copies, and the advantages that read them.

Belongs here: terms and advantages of the estimator that look at networks by name (`now.action_value("q")`), and what those networks are.
Does not belong here: layers (`networks/`), policies, loops and data.
"""

from unipg.critics.lagged import Copied, Follows, Polyak
from unipg.critics.networks import ActionValues, Body, Decoder, Lagged, Network, Number, StateValues
from unipg.critics.regression import Bootstrapped, ExactKL, LatentPull, Regression, TemperatureLoss
from unipg.critics.values import Drawn, Exact, Expectation, Greedy, Likeliness, StateValue, Surprise, Value

__all__ = [
    "ActionValues",
    "Body",
    "Bootstrapped",
    "Copied",
    "Decoder",
    "Drawn",
    "Exact",
    "ExactKL",
    "Expectation",
    "Follows",
    "Greedy",
    "Lagged",
    "LatentPull",
    "Likeliness",
    "Network",
    "Number",
    "Polyak",
    "Regression",
    "StateValue",
    "StateValues",
    "Surprise",
    "TemperatureLoss",
    "Value",
]
