"""unipg: one policy-gradient estimator, four interchangeable parts, every algorithm.

    grad J = E_data[ 1_stable · (1 / pi_ref) · Â · ∇ pi_theta ]          (arXiv 2509.04419)

`import unipg` gives the carrier (`Trajectories`), the estimator with its parts, and the algorithm registry; training, language models
and environments are imported where they are used (`unipg.training`, `unipg.policies`, …), so that the estimator stays light.
"""

from unipg.errors import InputError
from unipg.estimator import *  # noqa: F403  (the estimator's __all__ is the public list of parts)
from unipg.estimator import __all__ as _estimator_names
from unipg.trajectories import Evaluation, Source, Trajectories

__version__ = "0.1.0"
__all__ = ["Evaluation", "InputError", "Source", "Trajectories", *_estimator_names]
