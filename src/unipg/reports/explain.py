"""One algorithm in words: equation, parts, hyper-parameters with their sources, deviations, tests. `unipg explain` and the reference in
`docs/` are both made from this, so nothing is written twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from unipg.algorithms.base import Algorithm, Setting, documentation, hyper_parameters
from unipg.algorithms.rates import LARGE, SMALL
from unipg.estimator import PolicyGradient
from unipg.estimator.directions import Plain
from unipg.estimator.parts import shown_weight

REPOSITORY = Path(__file__).parents[3]
"""The checkout this package runs from, where it is one."""


def explanation(algorithm: type[Algorithm]) -> str:
    """Markdown about one algorithm."""
    lines = [f"# {algorithm.name}: {algorithm.title}", "", documentation(algorithm), "", f"Source: {algorithm.paper}", ""]
    if algorithm.equation:
        lines += ["## Equation", "", "Coefficient on ∇log pi, and how it is summed:", "", f"    {algorithm.equation}", ""]
    lines += ["## Parts", "", "Shown at the defaults, with a limit of 64 new tokens.", ""]
    terms = [(made, *named) for made in algorithm().learned(Setting(max_new_tokens=64)) for named in made.terms.named()]
    for learner, name, term in terms:
        rows = " and ".join(f"{s.name.lower()}s" for s in term.rows)
        gate = f", weighted per row by `{term.row_weight}`" if term.row_weight else ""
        trains = f", moves `{'`, `'.join(learner.trains)}`" if learner.trains else ""
        often = f", at one update in {learner.every}" if learner.every > 1 else ""
        along = "" if isinstance(learner.direction, Plain) else f", by `{learner.direction.symbol()}`"
        lines.append(f"- **{name}** on {rows}{gate}{trains}{often}{along}")
        if isinstance(term, PolicyGradient):
            lines += [
                f"    - mask: `{term.shown('mask')}`",
                f"    - reference: `{term.shown('reference')}`",
                f"    - advantage: `{term.advantage.symbol()}`",
                f"    - likelihood: `{term.likelihood.symbol()}`",
            ]
        elif learner.trains:
            lines += [f"    - `{term.symbol()}`"]
        weight = shown_weight(term.weight)
        lines += [f"    - aggregate: `{term.aggregate.symbol()}`, weight {weight}"]
    lines += ["", "## Learning rate", "", *_rates(algorithm)]
    lines += ["", "## Hyper-parameters", "", "| key | default | meaning | source |", "|---|---|---|---|"]
    for parameter in hyper_parameters(algorithm):
        lines.append("| `algorithm.{name}` | `{default}` | {help} | {source} |".format(**_escaped(parameter)))
    for section, own in (("controller", algorithm.controller), ("replay", algorithm.replay)):
        lines += [f"| `{section}.{key}` | `{value}` | where the recipe says null |  |" for key, value in own.items()]
    if algorithm.deviations:
        lines += ["", "## Where paper and code differ", "", *(f"- {text}" for text in algorithm.deviations)]
    lines += ["", "## Exactness", ""]
    lines.append(f"Biased on purpose: {algorithm.bias}" if algorithm.bias else "The expected gradient points exactly along the true one.")
    lines += ["", "Every law of `unipg.laws` is tested on it in `tests/test_laws.py`."]
    if oracles := _oracles(algorithm.name):
        lines += ["", "Closed forms: " + ", ".join(f"`{path}`" for path in oracles) + "."]
    if algorithm.claim:
        lines += ["", "## Claim", "", f"`{algorithm.claim}`", "", *_last_results(algorithm.claim)]
    return "\n".join(lines) + "\n"


def _rates(algorithm: type[Algorithm]) -> list[str]:
    """Of each learner: its own settings of the optimiser, a direction that needs none, or what fits the size of the model."""
    found: dict[str, str] = {}
    plain = False
    learners = algorithm().learners(Setting(max_new_tokens=64, acts=algorithm.acts))
    for learner in learners:
        if learner.direction.owns_step:
            said = "its result is added to the weights as it is, and neither learning rate, clipping nor weight decay is read"
            found[learner.role] = f"- `{learner.role}` steps by `{learner.direction.symbol()}`: {said}."
        elif "learning_rate" in learner.optimizer:
            settings = ", ".join(f"`{key}` {'null' if value is None else value}" for key, value in learner.optimizer.items())
            found[learner.role] = f"- `{learner.role}`: where the recipe says `auto`, {settings}."
        else:
            plain = True
    own = list(found.values())
    if len(roles := dict.fromkeys(learner.role for learner in learners)) > 1:
        own.append(f"- `optimizer.learners` has settings of each: `{'`, `'.join(roles)}`.")
    if not plain:
        return own
    rate = algorithm.learning_rate
    return [
        *own,
        f"`optimizer.learning_rate: auto` is {rate.at(SMALL):g} for models of up to 10 M parameters and {rate.at(LARGE):g} from 300 M on, "
        f"along a straight line in logarithms between them; {rate.at(LARGE, adapters=True):g} for adapters (`policy.lora`) of models from "
        f"300 M on. {rate.why}",
    ]


def _oracles(name: str) -> list[str]:
    """Oracle tests of this checkout that name the algorithm; none where only the package is installed."""
    files = sorted((REPOSITORY / "tests" / "oracles").glob("test_*.py"))
    return [str(f.relative_to(REPOSITORY)) for f in files if f'"{name}"' in f.read_text(encoding="utf-8")]


def _last_results(claim: str) -> list[str]:
    """What the claim's kept result files say (`name.json`, `name-variant.json`), piece by piece."""
    folder, stem = REPOSITORY / "benchmarks" / "results", Path(claim).stem
    lines: list[str] = []
    for kept in sorted({*folder.glob(f"{stem}.json"), *folder.glob(f"{stem}-*.json")}):
        found = json.loads(kept.read_text(encoding="utf-8"))
        lines += [""] if lines else []
        when = f"{found['date'][:10]}, {found['machine']['cpu']}, one thread"
        lines += [f"{found['claim']}, last results ({when}), mean over seeds with 95 % interval:", ""]
        for piece in found["assertions"]:
            verdict = "holds" if piece["passed"] else "DOES NOT HOLD"
            lines.append(f"- {piece['claim']}: {piece['value']:.3f} [{piece['low']:.3f}, {piece['high']:.3f}], n = {piece['n']}: {verdict}")
    return lines


def _escaped(values: Mapping[str, str]) -> dict[str, str]:
    return {key: value.replace("|", "\\|") for key, value in values.items()}


def reference(algorithms: Mapping[str, type[Algorithm]]) -> str:
    """The algorithm reference: every explanation, one after the other."""
    head = "<!-- Generated by `make docs` from the algorithms themselves; do not edit. -->\n\n"
    return head + "\n".join(explanation(a) for a in algorithms.values())
