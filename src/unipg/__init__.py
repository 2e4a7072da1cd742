"""unipg: one policy-gradient estimator, four interchangeable parts, every algorithm.

    grad J = E_data[ 1_stable · (1 / pi_ref) · Â · ∇ pi_theta ]          (arXiv 2509.04419)

`import unipg` gives `train` and `load_run`, the carrier (`Trajectories`) and the estimator with its parts, loaded when first asked for, so
that the command line answers before torch is there; algorithms, training, language models and environments are imported where they are
used (`unipg.algorithms`, `unipg.training`, `unipg.policies`, …).
"""

import importlib
from typing import TYPE_CHECKING, Any

from unipg.errors import InputError as InputError

if TYPE_CHECKING:
    from unipg.estimator import *  # noqa: F403  (the estimator's __all__ is the public list of parts)
    from unipg.front import Run as Run
    from unipg.front import load_run as load_run
    from unipg.front import train as train
    from unipg.trajectories import Evaluation as Evaluation
    from unipg.trajectories import Source as Source
    from unipg.trajectories import Trajectories as Trajectories

__version__ = "0.1.0"
_FRONT = ("Run", "load_run", "train")
_CARRIER = ("Evaluation", "Source", "Trajectories")


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'unipg' has no attribute '{name}'")
    if name in _FRONT:
        return getattr(importlib.import_module("unipg.front"), name)
    estimator = importlib.import_module("unipg.estimator")
    if name == "__all__":
        return [*_FRONT, *_CARRIER, "InputError", *estimator.__all__]
    if name in _CARRIER:
        return getattr(importlib.import_module("unipg.trajectories"), name)
    if name in estimator.__all__:
        return getattr(estimator, name)
    raise AttributeError(f"module 'unipg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
