"""What the likelihood is taken of: causal language models, categorical and Gaussian controllers …

Belongs here: networks and how they give log-probabilities, entropies and values of a batch (`Policy.evaluate`). Does not belong here: how
trajectories are drawn (`rollouts/`), what is done with the log-probabilities (`estimator/`).
"""

from unipg.policies.base import Policy

__all__ = ["Policy"]
