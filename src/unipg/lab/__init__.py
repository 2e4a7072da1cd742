"""Exact gradients by enumeration, bias and variance, side-by-side comparison of algorithms.

Belongs here: problems small enough to enumerate, and measurements on them. Does not belong here: anything training needs.
"""

from unipg.lab.strings import BigramPolicy, StringExperience, StringProblem

__all__ = ["BigramPolicy", "StringExperience", "StringProblem"]
