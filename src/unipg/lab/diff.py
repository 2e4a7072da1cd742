"""What changes if the algorithm is switched: which parts differ, and how far apart two gradients are on the same batch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting, check_without_prompts
from unipg.algorithms.learners import Learner
from unipg.errors import InputError
from unipg.estimator import Objective, Planning, PolicyGradient, Progress
from unipg.estimator.directions import Plain
from unipg.estimator.parts import shown_weight
from unipg.estimator.policy_gradient import Term
from unipg.lab.gradients import LEARNING_RATE, prepared, selected
from unipg.lab.strings import BigramPolicy, StringExperience, StringProblem
from unipg.policies.actor_critic import is_controller
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand, Experience
from unipg.trajectories import Evaluation, Source, Trajectories

if TYPE_CHECKING:
    from unipg.training.recipe import Recipe

COEFFICIENTS = "what multiplies ∇log pi, summed over the row"
PARTS = ("mask", "reference", "advantage", "likelihood", "aggregate")


@dataclass(frozen=True)
class GroupDifference:
    """Two gradients of one group of parameters."""

    name: str
    parameters: int
    cosine: float
    """NaN where one of them is zero."""
    norm_ratio: float
    """|g_B| / |g_A|; NaN where both are zero."""


@dataclass(frozen=True)
class RowDifference:
    """A trajectory on which the two algorithms push differently."""

    source: str
    reward: float
    first: float
    """Sum over tokens of what multiplies ∇log pi, aggregate included, under A."""
    second: float
    share: float
    """Its share of the whole difference, sum over tokens of |c_A − c_B|, in [0, 1]."""
    prompt: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Difference:
    """Everything `unipg diff` shows."""

    first: str
    second: str
    parts: list[dict[str, str]]
    """Per part: `part`, the two values, and whether they are the `same`."""
    total: GroupDifference
    groups: list[GroupDifference]
    rows: list[RowDifference]
    positions: list[float]
    """Share of the difference by tenth of the answer, from its beginning to its end."""
    by_sign: dict[str, float]
    """Share of the difference on tokens that A pushes up, pushes down, or leaves alone."""
    batch: dict[str, float] = field(default_factory=dict)
    rows_are: str = COEFFICIENTS
    """What a row's two numbers are."""
    notes: list[str] = field(default_factory=list)
    """What was not compared, and what a reader has to know."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_parts(first: Algorithm, second: Algorithm, setting: Setting) -> list[dict[str, str]]:
    """The parts of two algorithms side by side: one row per part, and per further term."""

    def describe(algorithm: Algorithm) -> dict[str, str]:
        learners = algorithm.learned(setting)
        terms = [named for learner in learners for named in learner.terms.named()]
        gradients = [t for _, t in terms if isinstance(t, PolicyGradient)]
        values = {part: " | ".join(dict.fromkeys(t.shown(part) for t in gradients)) for part in PARTS}
        values["data"] = " | ".join(dict.fromkeys("+".join(s.name.lower() for s in t.rows) for t in gradients))
        values["gates"] = ", ".join(t.row_weight for _, t in terms if t.row_weight) or "none"
        further = [(learner, n, t) for learner in learners for n, t in learner.terms.named() if not isinstance(t, PolicyGradient)]
        values["further terms"] = ", ".join(_further(*each) for each in further) or "none"
        values["learners"] = "; ".join(map(_schedule, learners))
        values["coefficient"] = algorithm.equation
        return values

    a, b = describe(first), describe(second)
    return [{"part": part, "first": a[part], "second": b[part], "same": "yes" if a[part] == b[part] else "no"} for part in a]


def _further(learner: Learner, name: str, term: Term) -> str:
    """A term beside the policy gradients; of networks that a learner trains by name with what it does to them."""
    said = f": {term.symbol()}" if learner.trains and type(term).symbol is not Term.symbol else ""
    return f"{shown_weight(term.weight)} {name}{said}"


def _schedule(learner: Learner) -> str:
    trains = f" moves {', '.join(learner.trains)}" if learner.trains else ""
    often = f" at one update in {learner.every}" if learner.every > 1 else ""
    direction = "" if isinstance(learner.direction, Plain) else f" along {learner.direction.symbol()}"
    return f"{learner.name}{trains}{often}{direction}{''.join(f', then {then}' for then in learner.then)}"


def shared_batch(
    first: Algorithm, second: Algorithm, policy: Policy, experience: Experience, seed: int = 0, anchor: Policy | None = None
) -> Trajectories:
    """One batch with everything either algorithm reads: the larger group, demonstrations where one of them needs any."""
    both = (first, second)
    rollouts = max(a.rollouts if a.uses_rollouts else 0 for a in both)
    demand = Demand(
        iteration=0,
        rollouts=rollouts,
        demonstrations=any(a.demonstrations != "none" for a in both),
        completions=next((a.completions for a in both if a.completions != "none"), "none"),
        score_demonstrations=any(a.scores_demonstrations for a in both),
        value=policy.has_value,
        vines=first.vines or second.vines,
        seed=seed,
    )
    batch, _ = experience.collect(policy, demand)
    if policy.memoryless:
        batch = batch.as_episodes()
        batch = batch.replace(annotations={**batch.annotations, "answer": [f"{steps} steps" for steps in batch.mask.sum(1).tolist()]})
    with torch.no_grad():
        now = policy.evaluate(batch, entropy=True, value=policy.has_value)
        anchored = (anchor or policy).evaluate(batch).log_prob
    value = now.value if now.value is not None else torch.zeros_like(now.log_prob)
    return batch.replace(old_log_prob=now.log_prob, old_entropy=now.entropy, anchor_log_prob=anchored, value=value)


def prepare(algorithm: Algorithm, batch: Trajectories, setting: Setting, policy: Policy) -> tuple[Objective, Trajectories]:
    """The objective and the planned batch, with the rows the algorithm is made for."""
    objective, planning = algorithm.terms(setting), Planning(Progress(learning_rate=LEARNING_RATE))
    foreign = ~batch.rows_from(*algorithm.sources())
    batch = batch.replace(mask=batch.mask & ~foreign.unsqueeze(1))  # the row stays, so that both algorithms number rows alike
    _, ready = prepared(algorithm, batch, setting, planning, objective)
    return objective, objective.plan(selected(algorithm, policy, ready, planning), planning)


def token_coefficients(objective: Objective, planned: Trajectories, now: Evaluation) -> Tensor:
    """[B,T] what multiplies ∇log pi of each token, aggregate and weight included: −∂loss/∂log_prob."""
    leaf = now.log_prob.detach().requires_grad_()
    loss = objective.loss(dataclasses.replace(now, log_prob=leaf), planned)
    (found,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else -found


def layer_group(name: str) -> str:
    """Which group of layers a parameter belongs to: `layers.3`, `embed_tokens`, `lm_head` …"""
    if name.startswith("critic."):  # a trunk of its own, whose layers are called like the policy's
        return "critic"
    pieces = [p for p in name.split(".") if p not in ("model", "base_model", "module", "transformer")]
    for index, piece in enumerate(pieces[:-1]):
        if pieces[index + 1].isdigit():
            return f"{piece}.{pieces[index + 1]}"
    return pieces[0]


def measure(first: Algorithm, second: Algorithm, policy: Policy, batch: Trajectories, max_new_tokens: int, shown: int = 6) -> Difference:
    """Both gradients of the same batch at the same parameters: cosine and norm ratio, and where the batch makes them differ."""
    setting = Setting(max_new_tokens=max_new_tokens)
    parameters = [(n, p) for n, p in policy.module.named_parameters() if p.requires_grad]
    gradients: list[list[Tensor]] = []
    coefficients: list[Tensor] = []
    for algorithm in (first, second):
        objective, planned = prepare(algorithm, batch, setting, policy)
        now = policy.evaluate(planned, entropy=True, value=policy.has_value, readings=objective.readings)
        coefficients.append(token_coefficients(objective, planned, now.detach()))
        found = torch.autograd.grad(objective.loss(now, planned), [p for _, p in parameters], allow_unused=True)
        gradients.append([torch.zeros_like(p) if g is None else g for g, (_, p) in zip(found, parameters, strict=True)])
    names = [layer_group(n) for n, _ in parameters]
    groups = [_grouped(g, names, gradients) for g in dict.fromkeys(names)]
    a, b = coefficients
    gap = torch.where(batch.mask, (a - b).abs(), 0)
    return Difference(
        first.name,
        second.name,
        compare_parts(first, second, setting),
        difference_of("all", *(torch.cat([g.flatten() for g in found]) for found in gradients)),
        groups,
        rows_of(batch, a, b, gap, shown),
        by_position(gap, batch.mask),
        by_sign(a, gap, batch.mask),
        {
            "rollouts": int(batch.rows_from(Source.ROLLOUT).sum()),
            "demonstrations": int(batch.rows_from(Source.DEMONSTRATION).sum()),
            "steps" if policy.memoryless else "tokens": int(batch.mask.sum()),
        },
    )


def by_sign(a: Tensor, gap: Tensor, mask: Tensor) -> dict[str, float]:
    """Share of the whole difference [B,T] by what A does to the token."""
    everything = float(gap.sum())
    sides = (("pushed up by A", a > 0), ("pushed down by A", a < 0), ("left alone by A", (a == 0) & mask))
    return {side: float(gap[where].sum()) / everything if everything else 0.0 for side, where in sides}


def _grouped(name: str, names: list[str], gradients: list[list[Tensor]]) -> GroupDifference:
    pieces = (torch.cat([g.flatten() for g, owner in zip(found, names, strict=True) if owner == name]) for found in gradients)
    return difference_of(name, *pieces)


def difference_of(name: str, first: Tensor, second: Tensor) -> GroupDifference:
    """Of two gradients [P] of the same parameters."""
    a, b = first.double(), second.double()
    length_a, length_b = float(a.norm()), float(b.norm())
    cosine = float(a @ b) / (length_a * length_b) if length_a and length_b else float("nan")
    return GroupDifference(name, len(a), cosine, _ratio(length_b, length_a))


def _ratio(top: float, bottom: float) -> float:
    if bottom:
        return top / bottom
    return float("inf") if top else float("nan")


def rows_of(batch: Trajectories, a: Tensor, b: Tensor, gap: Tensor, shown: int) -> list[RowDifference]:
    """The rows with the largest share of the whole difference [B,T], the largest first."""
    assert batch.source is not None
    by_row, everything = gap.sum(1), float(gap.sum())
    order = torch.argsort(by_row, descending=True, stable=True)[:shown].tolist()
    rewarded = batch.reward is not None or batch.step_reward is not None
    reward = batch.total_reward() if rewarded else torch.zeros(len(batch))

    def note(key: str, row: int) -> str:
        values = batch.annotations.get(key)
        return "" if values is None or values[row] is None else str(values[row])

    return [
        RowDifference(
            Source(int(batch.source[i])).name.lower(),
            float(reward[i]),
            float(torch.where(batch.mask[i], a[i], 0).sum()),
            float(torch.where(batch.mask[i], b[i], 0).sum()),
            float(by_row[i]) / everything,
            note("prompt", i),
            note("answer", i),
        )
        for i in order
        if everything and by_row[i] > 0
    ]


def by_position(gap: Tensor, mask: Tensor, bins: int = 10) -> list[float]:
    """Shares of the difference [B,T] along the rows."""
    place = (
        ((mask.cumsum(1) - 1).clamp_min(0) * bins).div(mask.sum(1, keepdim=True).clamp_min(1), rounding_mode="floor").clamp_max(bins - 1)
    )
    total = torch.zeros(bins, dtype=gap.dtype).index_add(0, place[mask].long(), gap[mask])
    return (total / total.sum()).tolist() if total.sum() > 0 else [0.0] * bins


def string_setting(seed: int) -> tuple[Policy, Experience]:
    """Where no recipe is given: short strings, a bigram policy."""
    return BigramPolicy(4, seed=seed), StringExperience(StringProblem(vocabulary=4, prompts=(0, 1, 2), length=3), prompts=12)


def recipe_of(place: str, first: Algorithm, second: Algorithm, overrides: Iterable[str]) -> Recipe:
    """A recipe, or that of a run folder with its trained model; language or control."""
    from unipg.training.recipe import load_recipe

    path = Path(place)
    changes = ["evaluation.tasks=[]", *overrides]
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise InputError(f"'{place}' is not a run folder: it has no recipe.yaml")
        if is_controller(path / "model"):  # the folder, with the critics beside the model
            changes = [f"controller.model={json.dumps(str(path))}", "controller.log_std=0.0", *changes]
        elif (path / "model" / "config.json").is_file():
            changes = ["policy.scratch=null", f"policy.model={json.dumps(str(path / 'model'))}", *changes]
        path = path / "recipe.yaml"
    loaded = load_recipe(path, changes)
    if loaded.environment is not None:
        for algorithm in (first, second):
            check_without_prompts(algorithm)
    if loaded.threads is not None:
        torch.set_num_threads(loaded.threads)
    return loaded


def as_trained(loaded: Recipe, algorithm: Algorithm) -> Algorithm:
    """With the recipe's settings where it is the one that the recipe trains, else as it is."""
    trained = loaded.build_algorithm()
    return trained if trained.name == algorithm.name else algorithm


def on_prompts(loaded: Recipe, first: Algorithm, second: Algorithm, seed: int) -> Difference:
    """Both algorithms on one batch of a language recipe."""
    from unipg.training.run import build, pick_device

    needy = max((first, second), key=lambda a: "value" in a.terms(Setting()).reads)
    policy, experience = build(loaded, needy, pick_device(loaded.device))
    anchor = loaded.policy.build_anchor(policy) if loaded.policy and loaded.policy.anchor else None  # type: ignore[arg-type]
    batch = shared_batch(first, second, policy, experience, seed, anchor)
    return measure(first, second, policy, batch, experience.max_new_tokens)
