"""Exact gradients by enumeration, bias and variance, side-by-side comparison of algorithms.

Belongs here: problems small enough to enumerate, and measurements on them. Does not belong here: anything training needs.

    strings.py, problems.py   what is enumerated: bandits, strings, trees
    exact.py                  objectives and their exact gradients
    gradients.py              what an algorithm's own code makes of many independent batches
    measures.py               bias, variance and signal, with intervals
    study.py, mismatch.py, grid.py   what is compared;   charts.py, page.py   how it is shown;   run.py   one call of `unipg lab`
"""

from unipg.lab.exact import ExactProblem
from unipg.lab.problems import bandit, counting, problem_named, tree
from unipg.lab.strings import BigramPolicy, StringExperience, StringProblem, TabularPolicy

__all__ = [
    "BigramPolicy",
    "ExactProblem",
    "StringExperience",
    "StringProblem",
    "TabularPolicy",
    "bandit",
    "counting",
    "problem_named",
    "tree",
]
