"""The properties every part and algorithm must have, as checks that anyone's own part can import and run.

    from unipg.laws import LawSuite, check, search
    check(MyAlgorithm())             # raises LawBroken with one sentence, or returns
    search("split", MyAlgorithm())   # the same on generated examples; the sentence ends with the smallest one that fails
    class TestMine(LawSuite): masks = [MyMask()]

Belongs here: checks. Does not belong here: tests of one system (`tests/oracles/`).

    cases.py          what a law is tried on
    checks.py, expectations.py, runs.py   the laws: on a batch, in expectation, in the loop
    search.py         generated examples;   suite.py   the pytest class
"""

from unipg.laws.cases import Case, LawBroken, Row
from unipg.laws.checks import agreement, emptiness, second_opinion, silence, split
from unipg.laws.expectations import SmallProblem, exactness
from unipg.laws.runs import learning, resume
from unipg.laws.search import LAWS, cases, check, search
from unipg.laws.suite import LawSuite, trial

__all__ = [
    "LAWS",
    "Case",
    "LawBroken",
    "LawSuite",
    "Row",
    "SmallProblem",
    "agreement",
    "cases",
    "check",
    "emptiness",
    "exactness",
    "learning",
    "resume",
    "search",
    "second_opinion",
    "silence",
    "split",
    "trial",
]
