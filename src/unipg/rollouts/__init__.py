"""Engines that draw trajectories from a policy: transformers, vectorised environments …

Belongs here: `Experience`, from choosing what is asked to scored `Trajectories`. Does not belong here: advantages and gates (they belong to
the algorithm), scoring rules (`tasks/`).
"""

from unipg.rollouts.base import Demand, EvaluationResult, Experience, Interrupted

__all__ = ["Demand", "EvaluationResult", "Experience", "Interrupted"]
