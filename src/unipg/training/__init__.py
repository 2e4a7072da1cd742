"""The one loop, optimisation, checkpoints and resume, distribution, tracking.

Belongs here: everything between a recipe and a trained policy that is the same for every method. Does not belong here: anything an
algorithm, a policy or a task could say itself.
"""

from unipg.training.observer import Observer, Stopped
from unipg.training.observers import BestModel, EarlyStopping, Track
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.trainer import Trainer

__all__ = ["BestModel", "EarlyStopping", "Observer", "OptimizerRecipe", "Stopped", "Track", "Trainer", "TrainingRecipe"]
