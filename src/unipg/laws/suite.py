"""All laws as a pytest class, for a part or an algorithm of anyone's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unipg.algorithms.base import Algorithm, Setting
from unipg.errors import InputError
from unipg.estimator import (
    Advantage,
    Aggregate,
    LeaveOneOut,
    Likelihood,
    Mask,
    Objective,
    OldPolicy,
    Part,
    PolicyGradient,
    Reference,
    SequenceMeanTokenSum,
    Term,
)
from unipg.laws.search import LAWS, search
from unipg.trajectories import Source


@dataclass(frozen=True)
class _Trial(Algorithm):
    """A policy gradient with one part on trial; the others are those of an exact gradient."""

    name = "trial"
    title = "A part on trial"
    paper = "none"
    needs_group = 2

    part: Part = field(kw_only=True)

    def objective(self, setting: Setting) -> Objective | Term:
        part = self.part
        rows = (Source.ROLLOUT,) if self.uses_rollouts else (Source.DEMONSTRATION,)
        plain = PolicyGradient(rows=rows, advantage=LeaveOneOut(over=rows), aggregate=SequenceMeanTokenSum())
        match part:
            case Mask():
                return dataclasses.replace(plain, mask=part, reference=OldPolicy())
            case Reference():
                return dataclasses.replace(plain, reference=part)
            case Advantage():
                return dataclasses.replace(plain, advantage=part)
            case Likelihood():
                return dataclasses.replace(plain, likelihood=part)
            case Aggregate():
                return dataclasses.replace(plain, aggregate=part)
            case PolicyGradient():
                return part
            case Term():
                return plain + part
        raise InputError(f"{part!r} is no mask, reference, advantage, likelihood, aggregate or term")


def trial(part: Part, bias: str = "", *, demonstrations: bool = False) -> Algorithm:
    """The part in the smallest algorithm around it, for the laws to run on: rollouts, leave-one-out baseline, sums over tokens.

    `bias`: why the expected gradient is not the exact one; default: what the part's class says in an attribute `bias`, else none.
    `demonstrations`: train on demonstrations instead of rollouts; always so for a reference that is `offline`.
    """
    stated = bias or getattr(part, "bias", "")
    if demonstrations or (isinstance(part, Reference) and part.offline):
        kind = type("Trial", (_Trial,), {"bias": stated, "demonstrations": "required", "uses_rollouts": False})
        return kind(rollouts=0, part=part)
    return type("Trial", (_Trial,), {"bias": stated})(rollouts=4, part=part)


class LawSuite:
    """Every law on everything that a subclass lists; pytest collects the subclass.

        class TestMine(LawSuite):
            masks = [MyMask()]
            algorithms = [MyAlgorithm()]

    A part is put into the smallest algorithm around it (`trial`); for another one, list that algorithm. A part that is biased says so in
    a class attribute `bias`, as an algorithm does. Each law runs on `examples` generated examples, then on a larger random batch.
    """

    algorithms: Sequence[Algorithm] = ()
    masks: Sequence[Mask] = ()
    references: Sequence[Reference] = ()
    advantages: Sequence[Advantage] = ()
    likelihoods: Sequence[Likelihood] = ()
    aggregates: Sequence[Aggregate] = ()
    terms: Sequence[Term] = ()
    """Penalties, and whole terms of an objective; each with the weight it is used with."""
    leaves_out: Mapping[str, str] = {}
    """Laws that do not apply, each with the reason."""
    examples: int = 25

    @classmethod
    def subjects(cls) -> dict[str, Algorithm]:
        """What the laws run on, by name. Refuses an empty list, and things in the wrong one."""
        kinds: dict[str, type[Any]] = {
            "algorithms": Algorithm,
            "masks": Mask,
            "references": Reference,
            "advantages": Advantage,
            "likelihoods": Likelihood,
            "aggregates": Aggregate,
            "terms": Term,
        }
        found: dict[str, Algorithm] = {}
        for attribute, kind in kinds.items():
            listed: Any
            for listed in getattr(cls, attribute):
                if not isinstance(listed, kind):
                    raise InputError(f"{cls.__name__}.{attribute} lists {listed!r}; accepted: {kind.__name__} values")
                subject = listed if isinstance(listed, Algorithm) else trial(listed)
                name = listed.name if isinstance(listed, Algorithm) else listed.symbol()
                found[name if name not in found else f"{name} {len(found)}"] = subject
        if not found:
            raise InputError(f"{cls.__name__} lists nothing to check; accepted: one or more of {', '.join(kinds)}")
        unknown = set(cls.leaves_out) - set(LAWS)
        if unknown:
            raise InputError(f"{cls.__name__}.leaves_out names {sorted(unknown)}; accepted: {', '.join(LAWS)}")
        return found

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """A test for each subject and law; pytest's own hook."""
        if {"law", "subject"} <= set(metafunc.fixturenames):
            pairs = [(name, subject, law) for name, subject in self.subjects().items() for law in LAWS if law not in self.leaves_out]
            metafunc.parametrize(("subject", "law"), [pair[1:] for pair in pairs], ids=[f"{name}-{law}" for name, _, law in pairs])

    def test_law(self, subject: Algorithm, law: str) -> None:
        search(law, subject, self.examples)
        if law in _SEARCHED:
            LAWS[law](subject)


_SEARCHED = frozenset({"split", "silence", "exactness", "agreement", "emptiness", "second_opinion"})
"""Laws whose search does not already end with the law itself."""
