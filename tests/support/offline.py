"""Rows and policies that closed forms of offline methods are tried on."""

from collections.abc import Callable

import torch
from gymnasium import spaces
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.algorithms.learners import Learner
from unipg.estimator import Planning
from unipg.networks.perceptron import Activation
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.now import NOISE
from unipg.training.run import wanted_of
from unipg.trajectories import Source, Trajectories

ROWS, SEEN, SIZE = 8, 2, 3


def policy_of(
    algorithm: Algorithm, kind: str, hidden: tuple[int, ...] = (8,), seen: int = SEEN, size: int = SIZE, activation: Activation = "tanh"
) -> ActorCritic:
    recipe = ActorCriticRecipe(hidden=list(hidden), activation=activation, kind=kind, normalize_observations=False)  # type: ignore[arg-type]
    made = recipe.build(spaces.Box(-9.0, 9.0, (seen,)), spaces.Box(-1.0, 1.0, (size,)), 0, wanted=wanted_of(algorithm))
    made.module.double()
    return made


def rows(expert: int = 0, rows: int = ROWS, seen: int = SEEN, size: int = SIZE) -> Trajectories:
    """Transitions in float64, the last `expert` of them an expert's; the second one is terminal."""
    draw = torch.Generator().manual_seed(0)

    def normal(*of: int) -> Tensor:
        return torch.randn(rows, 1, *of, generator=draw, dtype=torch.float64)

    terminated = torch.zeros(rows, 1, dtype=torch.bool)
    terminated[1:2] = True
    source = torch.full((rows,), int(Source.REPLAY))
    source[rows - expert :] = int(Source.DEMONSTRATION)
    return Trajectories(
        action=normal(size).tanh(),
        mask=torch.ones(rows, 1, dtype=torch.bool),
        observation=normal(seen),
        next_observation=normal(seen),
        step_reward=normal(),
        terminated=terminated,
        source=source,
        planned={NOISE.format(at): normal(size) for at in ("observation", "next_observation")},
    )


def learner_of(algorithm: Algorithm, name: str, size: int = SIZE) -> Learner:
    return next(each for each in algorithm.learned(Setting(1, False, size, acts=True)) if each.name == name)


def gradients(learner: Learner, made: ActorCritic, batch: Trajectories) -> dict[str, list[Tensor]]:
    """Of a learner's loss, for every network that learns; a list of None is of one that it does not reach."""
    objective = learner.terms
    planned = objective.plan(objective.prepare(batch), Planning(), made.now(batch, objective.differentiates) if objective.spans else None)
    loss = objective.loss(made.now(planned, objective.differentiates), planned, Planning())
    found = {}
    for name, parameters in made.networks.items():
        if any(p.requires_grad for p in parameters):
            found[name] = list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
    return found


def flat(found: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in found])


def lag(made: ActorCritic, *names: str) -> None:
    """Moves copies away from what they lag behind."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in names:
            for parameter in made.network(name).parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))


def minimised(loss: Callable[[Tensor], Tensor], low: float, high: float, points: int = 200_001) -> float:
    """Where a loss of one number [N] is least, by looking everywhere."""
    tried = torch.linspace(low, high, points, dtype=torch.float64)
    return float(tried[loss(tried).argmin()])
