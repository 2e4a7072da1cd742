"""A law on examples that hypothesis generates, and the smallest example on which it breaks.

hypothesis is imported when something is searched for, so that `import unipg.laws` needs nothing beyond the library.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from unipg.algorithms.base import Algorithm
from unipg.errors import InputError, nearest
from unipg.laws import transitions
from unipg.laws.cases import RUBBISH, SPOILED, Case, LawBroken, Row
from unipg.laws.checks import agreement, compared, emptiness, second_opinion, silence, split
from unipg.laws.expectations import SmallProblem, exactness
from unipg.laws.runs import learning, resume
from unipg.trajectories import Source

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

ON_ANSWERS: dict[str, Callable[..., Any]] = {
    "split": split,
    "silence": silence,
    "exactness": exactness,
    "agreement": agreement,
    "emptiness": emptiness,
    "learning": learning,
    "resume": resume,
    "second_opinion": second_opinion,
}


def _law(name: str) -> Callable[..., Any]:
    """A law on rows of what an algorithm learns from: answers to prompts, or kept transitions."""

    @functools.wraps(ON_ANSWERS[name])
    def law(algorithm: Algorithm, *values: Any, **named: Any) -> Any:
        return (transitions.LAWS if transitions.applies(algorithm) else ON_ANSWERS)[name](algorithm, *values, **named)

    return law


LAWS: dict[str, Callable[..., Any]] = {name: _law(name) for name in ON_ANSWERS}
MOST_RUNS = 3
"""Whole training runs that a search may start: they are slow."""


def check(algorithm: Algorithm) -> None:
    """Runs every law; raises `LawBroken` at the first that does not hold."""
    for law in LAWS.values():
        law(algorithm)


def cases(algorithm: Algorithm, law: str = "") -> SearchStrategy[Case]:
    """hypothesis strategy: batches that the algorithm may meet, and what the law may do to them.

    1 to 3 groups, each of 1 to 3 rollouts with 0 to 4 tokens after the prompt, the policy's or the environment's; a demonstration per
    group where the algorithm uses them. For `split`: any row order, any cut into micro-batches, 0 to 3 columns of padding, 1 to 4 workers.
    For `silence`: any rubbish in any field.
    """
    st = _hypothesis().strategies
    rewards = _rewards(algorithm)
    turns = st.lists(st.sampled_from((1, 1, 1, 0)), max_size=4).map(tuple)

    @st.composite
    def draw_case(draw: DrawFn) -> Case:
        rows: list[Row] = []
        for group in range(draw(st.integers(1, 3))):
            prompt = draw(st.integers(1, 3))
            rollouts = draw(st.integers(1, 3)) if algorithm.uses_rollouts else 0
            rows += [Row(group, Source.ROLLOUT, prompt, draw(turns), draw(rewards)) for _ in range(rollouts)]
            if algorithm.demonstrations != "none":
                rows.append(Row(group, Source.DEMONSTRATION, prompt, (1,) * draw(st.integers(1, 4)), 1.0))
            scores: list[float] = []
            if algorithm.completions == "pairs":
                scores = [1.0, 0.0]
            elif algorithm.completions == "unpaired":
                scores = [draw(st.sampled_from((0.0, 1.0)))]
            elif algorithm.completions == "scored":
                scores = draw(st.lists(rewards, min_size=2, max_size=3))
            rows += [Row(group, Source.PREFERENCE, prompt, (1,) * draw(st.integers(1, 4)), score) for score in scores]
            if algorithm.completions == "unpaired":
                rows.append(Row(group, Source.MISMATCHED, prompt, (1,) * draw(st.integers(1, 4)), 0.0))
        numbers = range(len(rows))
        case = Case(tuple(rows), draw(st.integers(0, 3)))
        if law == "silence":
            spoiled = draw(st.sampled_from([(name,) for name in SPOILED] + [SPOILED]))
            return dataclasses.replace(case, rubbish=draw(st.sampled_from(RUBBISH)), spoiled=spoiled)
        if law != "split":
            return case
        labels = draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
        pieces = [tuple(i for i in numbers if labels[i] == label) for label in range(4)]
        return dataclasses.replace(
            case,
            columns=draw(st.integers(0, 3)),
            order=tuple(draw(st.permutations(numbers))),
            cut=tuple(piece for piece in pieces if piece),
            workers=draw(st.integers(1, 4)),
        )

    return draw_case()


def _rewards(algorithm: Algorithm) -> SearchStrategy[float]:
    st = _hypothesis().strategies
    if algorithm.counts_successes:
        return st.sampled_from((0.0, 1.0))
    return st.sampled_from((0.0, 1.0, 0.5) if algorithm.unit_rewards else (0.0, 1.0, 0.5, -1.0))


def small_problems(algorithm: Algorithm) -> SearchStrategy[SmallProblem]:
    """hypothesis strategy: enumerable problems with any rewards, answers of one length or of two."""
    st = _hypothesis().strategies
    rewards = _rewards(algorithm)

    def with_rewards(ends: bool) -> SearchStrategy[SmallProblem]:
        count = 3 if ends else 4
        return st.lists(rewards, min_size=count, max_size=count).map(lambda r: SmallProblem(tuple(r), ends))

    return st.booleans().flatmap(with_rewards)


def search(law: str, algorithm: Algorithm, examples: int = 50) -> None:
    """Tries a law on `examples` generated examples; raises `LawBroken` with the smallest that breaks it. Always the same examples.

    `learning` is one run and has no examples; `exactness` has some only where no bias is stated; `resume` tries a few stops. Of algorithms
    that ask for networks by name the examples are seeds, and there is no smallest one.
    """
    if law not in LAWS:
        raise InputError(f"law '{law}' does not exist; {nearest(law, LAWS)}")
    hypothesis = _hypothesis()
    st = hypothesis.strategies
    arguments: SearchStrategy[dict[str, Any]]
    if law == "learning" or (law == "exactness" and algorithm.bias and not transitions.applies(algorithm)):
        LAWS[law](algorithm)
        return
    if transitions.applies(algorithm):
        transitions.search(law, algorithm, examples)
        return
    if law == "exactness":
        arguments = st.fixed_dictionaries({"seed": st.integers(0, 3), "problem": small_problems(algorithm)})
    elif law == "resume":
        shapes = st.tuples(st.integers(1, 3), st.integers(1, 3))
        arguments = shapes.flatmap(
            lambda s: st.integers(1, 3 * s[0] * s[1] - 1).map(lambda stop: {"steps": (stop,), "epochs": s[0], "minibatches": s[1]})
        )
        examples = min(examples, MOST_RUNS)
    else:
        arguments = st.fixed_dictionaries({"case": cases(algorithm, law)})

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(arguments)
    def tried(found: dict[str, Any]) -> None:
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(0)
        try:
            LAWS[law](copy.deepcopy(algorithm), **found)
        finally:
            torch.set_rng_state(before)

    try:
        tried()
    except LawBroken as broken:
        raise LawBroken(str(broken)) from broken.__cause__  # without hypothesis' own notes
    except hypothesis.errors.Flaky:
        raise LawBroken(f"{law}: the same example broke the law once and kept it once, so something outlives a batch") from None
    if law not in ("exactness", "resume"):
        compared(law, copy.deepcopy(algorithm))


def _hypothesis() -> Any:
    try:
        import hypothesis
        import hypothesis.strategies
    except ModuleNotFoundError:
        raise InputError("searching for examples needs hypothesis: pip install 'unipg[dev]', or run the laws of LAWS as they are") from None
    return hypothesis
