"""The properties every part and algorithm must have, as checks that anyone's own part can import and run.

    from unipg.laws import check
    check(MyAlgorithm())          # raises LawBroken with one sentence, or returns

Belongs here: checks. Does not belong here: tests of one system (`tests/oracles/`).
"""

from unipg.laws.checks import LAWS, LawBroken, agreement, check, emptiness, exactness, learning, resume, second_opinion, silence, split

__all__ = ["LAWS", "LawBroken", "agreement", "check", "emptiness", "exactness", "learning", "resume", "second_opinion", "silence", "split"]
