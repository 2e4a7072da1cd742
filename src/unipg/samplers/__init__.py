"""Which task comes next: uniform, difficulty posteriors, variance promotion, curricula, level design.

Belongs here: `Sampler.choose`, `update` and `state_dict`. Does not belong here: what an item is or how it is scored (`tasks/`).
"""

from unipg.samplers.base import Sampler, UniformSampler
from unipg.samplers.priority import PrioritizedSampler

__all__ = ["PrioritizedSampler", "Sampler", "UniformSampler"]
