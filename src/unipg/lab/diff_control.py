"""`unipg diff` on controllers: two algorithms on the same steps of environments, network by network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.critics.regression import Regression
from unipg.estimator import Objective, Planning, PolicyGradient, Progress
from unipg.estimator.directions import Plain
from unipg.lab import diff
from unipg.lab.diff import Difference, GroupDifference, RowDifference
from unipg.lab.gradients import LEARNING_RATE, prepared, selected
from unipg.networks.perceptron import Ensemble
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.now import NOISE, Now
from unipg.replay import Pairs, Ring, transition_columns
from unipg.rollouts.environments import EnvironmentRollouts
from unipg.seeding import generator
from unipg.training.feeds.dataset import data_for, inner_actions, observe_all
from unipg.training.recipe import Recipe
from unipg.training.run import build, pick_device, wanted_of
from unipg.trajectories import Source, Trajectories

TRANSITIONS = 512
"""Kept steps that are compared, from random actions and the first algorithm's policy in turn."""
TARGETS = "the critic's target"
SHOWN = 6


def on_environments(loaded: Recipe, first: Algorithm, second: Algorithm, seed: int, shown: int = SHOWN) -> Difference:
    """Both algorithms on the same steps of a control recipe, with the same weights wherever their networks have the same sizes.

    Each gradient is that of the network's own losses, before any direction and optimiser. Of methods that keep their transitions the rows
    are single steps, and what differs in them is the critic's target. Where one keeps its transitions and the other does not, the parts
    alone are compared.
    """
    policy, experience = build(loaded, first, pick_device(loaded.device))
    assert isinstance(policy, ActorCritic)
    assert isinstance(experience, EnvironmentRollouts)
    if loaded.dataset is not None and policy.must_observe:  # before the other one takes them over
        observe_all(policy, data_for(policy, loaded.dataset, loaded.dataset.path, experience.recipe.id))
    other = policy if first.by_step != second.by_step else _beside(loaded, policy, experience, first, second)
    setting = Setting(experience.max_new_tokens, policy.counts_actions, policy.actions_per_step, acts=True)
    parts = diff.compare_parts(first, second, setting)
    nothing = GroupDifference("all", 0, float("nan"), float("nan"))
    if first.replays != second.replays:
        keeps, uses = (first, second) if first.replays else (second, first)
        note = f"{keeps.name} learns from kept transitions and {uses.name} from each batch once: only parts are compared"
        return Difference(first.name, second.name, parts, nothing, [], [], [], {}, notes=[note])
    for algorithm in (first, second):
        if algorithm.by_step is not None:
            note = f"{algorithm.name} has a policy for each step of an episode, and rows of its own for each: only parts are compared"
            return Difference(first.name, second.name, parts, nothing, [], [], [], {}, notes=[note])
    both = ((first, policy), (second, other))
    if first.replays:
        batch = _transitions(experience, policy, first, seed) if loaded.dataset is None else _given(loaded, policy, seed)
        batch = _drawn(batch, both, setting, seed)
        judged = all(_regression(algorithm, setting) is not None for algorithm, _ in both)
        numbers = [(_targets if judged else _weights)(algorithm, made, batch, setting) for algorithm, made in both]
        counts = {"transitions": float(len(batch))}
    else:
        batch = diff.shared_batch(first, second, policy, experience, seed)
        numbers = [_coefficients(algorithm, made, batch, setting) for algorithm, made in both]
        counts = {"episodes": float(len(batch)), "steps": float(batch.mask.sum())}
    gradients = [_gradients(algorithm, made, batch, setting) for algorithm, made in both]
    groups, notes = _compared(both, gradients)
    notes += [f"{a.name}: gradients are shown before the direction {d}" for a, _ in both for d in _directions(a, setting)]
    a, b = numbers
    gap = torch.where(batch.mask, (a - b).abs(), 0)
    kept = first.replays
    return Difference(
        first.name,
        second.name,
        parts,
        groups[0] if groups else nothing,
        groups[1:] if len(groups) > 1 and groups[1].name.startswith(f"{groups[0].name} ·") else groups,
        _steps(batch, a, b, gap, shown) if kept else diff.rows_of(batch, a, b, gap, shown),
        [] if kept else diff.by_position(gap, batch.mask),
        {} if kept else diff.by_sign(a, gap, batch.mask),
        counts,
        TARGETS if kept and judged else diff.COEFFICIENTS,
        notes,
    )


def _beside(loaded: Recipe, policy: ActorCritic, experience: EnvironmentRollouts, first: Algorithm, second: Algorithm) -> ActorCritic:
    """The second algorithm's controller, of the first one's sizes and with its weights."""
    wanted = wanted_of(second)
    kind = loaded.controller.kind if loaded.controller.kind in wanted.kinds else "auto"
    recipe = dataclasses.replace(
        loaded.controller, model=None, hidden=list(policy.hidden), activation=policy.activation, kind=kind,
        normalize_observations=policy.normalizes,
    )  # fmt: skip
    made = recipe.build(experience.observation_space, experience.action_space, loaded.seed, wanted=wanted)
    made.module.to(policy.device)
    with torch.no_grad():
        for name in made.networks:
            if name in policy.modules:
                for own, their in zip(made.weights_of(name), policy.weights_of(name), strict=False):
                    to, of = _aligned(own, their)
                    to.copy_(of)
        theirs = dict(policy.module.named_buffers())
        for name, buffer in made.module.named_buffers():
            if name in theirs and theirs[name].shape == buffer.shape:
                buffer.copy_(theirs[name])
    made.copy_lagged(but=[name for name in made.lags if name in policy.modules])
    return made


def _aligned(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Views of what two tensors have in common, from the first element of each dimension on: the first members of ensembles (one alone has
    no dimension for it), and means before deviations."""
    while one.ndim > other.ndim:
        one = one[0]
    while other.ndim > one.ndim:
        other = other[0]
    shared = tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
    return one[shared], other[shared]


def _members(policy: ActorCritic, name: str) -> int:
    return next((module.members for module in policy.network(name).modules() if isinstance(module, Ensemble)), 1)


def _transitions(experience: EnvironmentRollouts, policy: ActorCritic, first: Algorithm, seed: int) -> Trajectories:
    """[N,1] steps as a replay buffer keeps them, with the noise of fresh actions."""
    policy.exploration = first.explores(Progress(1, 1))
    count, source = experience.recipe.count, generator(seed, "diff")
    steps = -(-TRANSITIONS // count)
    stepper, act, give = experience.stepper(policy), policy.actor(), policy.outward()
    noise, chance = policy.noise(steps, count, source), policy.actions.random(steps, count, source)
    action_columns = ((), "int64") if policy.counts_actions else ((policy.actions_per_step,), "float32")
    stored = policy.encoder.stored
    ring = Ring(None, transition_columns(tuple(stored.shape), str(stored.dtype), *action_columns), steps * count)
    for number in range(steps):
        action = chance[number] if number % 2 else act(stepper.observation, None if policy.exploration == 0 else noise[number])
        found = stepper.step(give(stepper.observation, action))
        fields = {name: value for name, value in vars(found).items() if name != "live"}
        ring.append(action=action if found.live is None else action[found.live], **fields)
    return _rows(policy, {Source.REPLAY: ring.draw(torch.arange(len(ring)))}, source)


def _given(loaded: Recipe, policy: ActorCritic, seed: int) -> Trajectories:
    """[N,1] steps of the recipe's dataset, and as many of its demonstrations where it has some."""
    recipe, environment = loaded.dataset, loaded.environment
    assert recipe is not None
    assert environment is not None
    source, found = generator(seed, "diff"), {}
    for of, place in ((Source.REPLAY, recipe.path), (Source.DEMONSTRATION, recipe.demonstrations)):
        if place is not None:
            data = data_for(policy, recipe, place, environment.id)
            if of is Source.REPLAY:
                scale, shift = recipe.rewards(data)
            rows = data.draw(torch.randint(len(data), (TRANSITIONS,), generator=source))
            found[of] = rows | {"action": inner_actions(policy, rows["action"]), "reward": rows["reward"] * scale + shift}
    return _rows(policy, found, source)


def _rows(policy: ActorCritic, drawn: dict[Source, dict[str, Tensor]], noise: torch.Generator) -> Trajectories:
    """[N,1] of columns [N,…] by their source, with the noise of fresh actions."""
    names = [name for name in next(iter(drawn.values())) if name != "episode"]
    rows = {name: torch.cat([each[name] for each in drawn.values()]).unsqueeze(1) for name in names}
    count = len(rows["reward"])
    size = (count, 1, policy.actions.noises)
    batch = Trajectories(
        mask=torch.ones(count, 1, dtype=torch.bool),
        source=torch.cat([torch.full((len(each["reward"]),), int(of)) for of, each in drawn.items()]),
        step_reward=rows.pop("reward"),
        planned={NOISE.format(at): torch.randn(size, generator=noise) for at in ("observation", "next_observation")},
        **rows,  # type: ignore[arg-type]
    )
    return batch.to(policy.device)


def _drawn(batch: Trajectories, both: Iterable[tuple[Algorithm, ActorCritic]], setting: Setting, seed: int) -> Trajectories:
    """With the noise of models that either trains, by their names."""
    wanted = {at: made for algorithm, made in both for learner in algorithm.learned(setting) for at in learner.terms.noise}
    size, source = batch.mask.shape, generator(seed, "diff", "models")
    missing = sorted(at for at in wanted if NOISE.format(at) not in batch.planned)
    noise = {NOISE.format(at): torch.randn(*size, wanted[at].noises(at), generator=source) for at in missing}
    return batch.with_planned(**{name: values.to(batch.mask.device) for name, values in noise.items()}) if noise else batch


def _planned(algorithm: Algorithm, policy: ActorCritic, objective: Objective, batch: Trajectories, setting: Setting) -> Trajectories:
    planning = _planning(policy, batch)
    if algorithm.replays:
        batch = objective.prepare(batch, planning)
    else:
        batch = selected(algorithm, policy, prepared(algorithm, batch, setting, planning, objective)[1], planning)
    return objective.plan(batch, planning)


def _planning(policy: ActorCritic, batch: Trajectories) -> Planning:
    def neighbours() -> Pairs:
        """Of the rows themselves, in the place of a dataset's."""
        now = Now(policy, batch)
        return Pairs(now.observed("observation"), now.action)

    return Planning(Progress(learning_rate=LEARNING_RATE), neighbours=neighbours)


def _gradients(algorithm: Algorithm, policy: ActorCritic, batch: Trajectories, setting: Setting) -> dict[str, list[Tensor]]:
    """The gradient of each network that an algorithm trains, by name; a learner that names none trains actor and critic."""
    found: dict[str, list[Tensor]] = {}
    for learner in algorithm.learned(setting):
        planned = _planned(algorithm, policy, learner.terms, batch, setting)
        loss = learner.terms.loss(policy.now(planned, learner.terms.differentiates), planned, _planning(policy, batch))
        for name in learner.trains or ("actor", *(["critic"] if policy.has_value else [])):
            weights = policy.weights_of(name)
            gradient = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            if all(g is None for g in gradient):
                continue
            pieces = [torch.zeros_like(w) if g is None else g for g, w in zip(gradient, weights, strict=True)]
            found[name] = [a + b for a, b in zip(found[name], pieces, strict=True)] if name in found else pieces
    return found


def _coefficients(algorithm: Algorithm, policy: ActorCritic, batch: Trajectories, setting: Setting) -> Tensor:
    """[B,T] what multiplies ∇log pi of each step, over all policy gradients of an algorithm."""
    terms = [term for learner in algorithm.learned(setting) for term in learner.terms.terms if isinstance(term, PolicyGradient)]
    objective = Objective(tuple(terms))
    planned = _planned(algorithm, policy, objective, batch, setting)
    with torch.no_grad():
        now = policy.evaluate(planned, entropy=True, value=policy.has_value)
    return diff.token_coefficients(objective, planned, now)


@torch.no_grad()
def _weights(algorithm: Algorithm, policy: ActorCritic, batch: Trajectories, setting: Setting) -> Tensor:
    """[B,1] what multiplies ∇log pi of each step of data, over all policy gradients of an algorithm."""
    found = torch.zeros(batch.mask.shape, device=policy.device)
    planning = _planning(policy, batch)
    for learner in algorithm.learned(setting):
        for term in learner.terms.terms:
            if isinstance(term, PolicyGradient) and not term.likelihood.substitutes:
                weight = term.advantage(batch, policy.now(batch), planning).to(found.dtype)
                found += torch.where(batch.rows_from(*term.rows).unsqueeze(1), weight, 0)
    return found


def _regression(algorithm: Algorithm, setting: Setting) -> Regression | None:
    """The first regression of an algorithm, where it has any."""
    terms = (term for learner in algorithm.learned(setting) for term in learner.terms.terms)
    return next((term for term in terms if isinstance(term, Regression)), None)


@torch.no_grad()
def _targets(algorithm: Algorithm, policy: ActorCritic, batch: Trajectories, setting: Setting) -> Tensor:
    """[B,1] what the first regression of an algorithm aims at."""
    regression = _regression(algorithm, setting)
    assert regression is not None
    return regression.aim(policy.now(batch), batch, _planning(policy, batch))


def _compared(
    both: tuple[tuple[Algorithm, ActorCritic], ...], gradients: list[dict[str, list[Tensor]]]
) -> tuple[list[GroupDifference], list[str]]:
    """Each network that both train, the actor first, with its layers where it has several; and one line on each that is not compared."""
    (first, policy), (second, other) = both
    a, b = gradients
    groups: list[GroupDifference] = []
    notes = []
    for name in sorted({*a, *b}, key=lambda name: (name != "actor", name)):
        if name not in a or name not in b:
            only = first if name in a else second
            notes.append(f"'{name}' is trained by {only.name} alone")
            continue
        if name == "actor" and policy.actions != other.actions:
            kinds = f"{_kind(policy)} actions in {first.name} and {_kind(other)} ones in {second.name}"
            notes.append(f"'{name}' is not compared: it gives {kinds}; both begin with the same most likely action")
            continue
        if len(a[name]) != len(b[name]):
            notes.append(f"'{name}' is not compared: it has layer normalisation in one of the two")
            continue
        sizes = _members(policy, name), _members(other, name)
        if sizes[0] != sizes[1]:
            members = f"{sizes[0]} in {first.name}, {sizes[1]} in {second.name}"
            notes.append(f"members of '{name}': {members}; the first {min(sizes)} are compared")
        cut = [tuple(piece.flatten() for piece in _aligned(x, y)) for x, y in zip(a[name], b[name], strict=True)]
        groups.append(diff.difference_of(name, torch.cat([x for x, _ in cut]), torch.cat([y for _, y in cut])))
        layers = _layers(policy, name)
        if len(set(layers)) > 1:
            for layer in dict.fromkeys(layers):
                own = [pair for pair, where in zip(cut, layers, strict=True) if where == layer]
                pieces = (torch.cat([pair[k] for pair in own]) for k in (0, 1))
                groups.append(diff.difference_of(f"{name} · {layer}", *pieces))
    return groups, notes


def _layers(policy: ActorCritic, name: str) -> list[str]:
    """Where each of a network's parameters lies: `layers.0`, `log_std` …"""
    known = {id(p): path for path, p in policy.network(name).named_parameters()}
    return [diff.layer_group(known.get(id(p), "log_std")) for p in policy.weights_of(name)]


def _kind(policy: ActorCritic) -> str:
    return type(policy.actions).__name__.removesuffix("Actions").lower()


def _directions(algorithm: Algorithm, setting: Setting) -> Iterator[str]:
    for learner in algorithm.learned(setting):
        if not isinstance(learner.direction, Plain):
            yield learner.direction.symbol()


def _steps(batch: Trajectories, a: Tensor, b: Tensor, gap: Tensor, shown: int) -> list[RowDifference]:
    """The transitions whose targets differ most."""
    assert batch.terminated is not None
    assert batch.truncated is not None
    assert batch.step_reward is not None
    everything, by_row = float(gap.sum()), gap.sum(1)
    ends = [
        "terminated" if t else "time limit" if c else "goes on"
        for t, c in zip(batch.terminated.any(1), batch.truncated.any(1), strict=True)
    ]
    order = torch.argsort(by_row, descending=True, stable=True)[:shown].tolist()
    return [
        RowDifference("replay", float(batch.step_reward[i, 0]), float(a[i, 0]), float(b[i, 0]), float(by_row[i]) / everything, "", ends[i])
        for i in order
        if everything and by_row[i] > 0
    ]
