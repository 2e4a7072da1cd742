"""Control with gradients in closed form: one state, a linear-quadratic problem, a small Markov chain; and estimates of them by action.

One policy gradient, E over visited states of ∇ E_a[Q(s, a)] with the exact Q, taken three ways: through the action (`Pathwise`), by the
score of drawn actions (`Stepwise`), with and without the exact V(s) as a baseline, and over all actions (`Enumerated`). They agree in mean;
how much they scatter is what the lab shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unipg.critics.regression import REPLAYED
from unipg.critics.values import StateValue, Value
from unipg.errors import InputError
from unipg.estimator import Advantage, Enumerated, Likelihood, Objective, Pathwise, Planning, PolicyGradient, Stepwise
from unipg.lab.measures import measure
from unipg.lab.study import Result
from unipg.policies.actions import BoxActions, DiscreteActions
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.now import NOISE
from unipg.seeding import generator
from unipg.trajectories import Source, Trajectories

BATCHES = 400
VISITS = 64
"""States of a batch."""
FARTHEST = 2000
"""Steps at which a sampled visit is cut."""


class Exact(nn.Module):
    """A known function in the place of a network: of action values from [N,O+A] to [1,N,1] or from [N,O] to [1,N,n], of state values from
    [N,O] to [1,N,1]."""

    channels = 1

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of
        self.stays = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        return self.of(x)


@dataclass(frozen=True)
class ControlProblem:
    """A policy whose exact gradient is known, the exact values under it, and how the states that it visits are drawn."""

    name: str
    title: str
    policy: ActorCritic
    """Its networks `q` and `v` are the exact values."""
    visits: Callable[[int, torch.Generator], Tensor]
    """[N,O] states, as often as the policy comes by, discounted."""
    weight: float
    """Expected number of visits, discounted."""
    gradient: Tensor
    """[P] of the expected discounted return in the actor's parameters, in closed form."""
    counted: bool = False
    contexts: int = 1
    trajectories: None = None
    """They are not counted."""

    @property
    def outcome(self) -> str:
        """What makes it a yardstick."""
        return f"{self.title}: the gradient is known in closed form."

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.policy.networks["actor"]


def _controller(inputs: int, actions: BoxActions | DiscreteActions, weights: Sequence[Tensor]) -> ActorCritic:
    """A linear actor with the given parameters, in the order of `networks["actor"]`."""
    made = ActorCritic((inputs,), actions, hidden=(), critic=False)
    made.module.double()
    with torch.no_grad():
        for parameter, value in zip(made.networks["actor"], weights, strict=True):
            parameter.copy_(value.reshape(parameter.shape))
    return made


def _with_values(policy: ActorCritic, q: Callable[[Tensor], Tensor], v: Callable[[Tensor], Tensor]) -> ActorCritic:
    policy.modules |= {"q": Exact(q), "v": Exact(v)}
    return policy


def one_state(best: float = 0.5, mean: float = -0.3, log_std: float = -0.5) -> ControlProblem:
    """Reward −(a − best)², a ~ N(mean, std²): J = −(std² + (mean − best)²), ∂J/∂mean = −2 (mean − best), ∂J/∂log_std = −2 std²."""
    std = math.exp(log_std)
    free = BoxActions((1,), (-math.inf,), (math.inf,), "float64")
    weights = [torch.tensor(0.0), torch.tensor(mean), torch.tensor([log_std])]
    policy = _controller(1, free, weights)
    level = -(std**2 + (mean - best) ** 2)
    _with_values(policy, lambda x: -((x[:, 1:] - best) ** 2).unsqueeze(0), lambda x: torch.full((1, len(x), 1), level, dtype=x.dtype))
    slope = -2 * (mean - best)
    exact = torch.tensor([slope, slope, -2 * std**2], dtype=torch.float64)  # the observation is 1: weight and bias have one slope
    return ControlProblem("one-state", "one state, real actions", policy, lambda n, _: torch.ones(n, 1, dtype=torch.float64), 1.0, exact)


def linear_quadratic(
    a: float = 0.9, b: float = 0.5, cost: float = 0.1, discount: float = 0.95, gain: float = -0.4, log_std: float = -1.0, noise: float = 0.3
) -> ControlProblem:
    """x' = a·x + b·u + noise·w, reward −(x² + cost·u²), u ~ N(gain·x, std²), x_0 ~ N(0, 1); everything Gaussian and quadratic.

        V(x) = −(P·x² + c),  P = (1 + cost·gain²) / (1 − discount·(a + b·gain)²)
        c = (std²·(cost + discount·P·b²) + discount·P·noise²) / (1 − discount)
        J = −(P + c) as x_0 has variance 1, whose derivatives in gain and log_std are the gradient; that in the bias is 0 by symmetry

    Errors: `InputError` where discount·(a + b·gain)² is 1 or more.
    """
    pull = a + b * gain
    if not discount * pull**2 < 1:
        raise InputError(
            f"the linear-quadratic problem diverges: discount · (a + b · gain)² is {discount * pull**2:.3g}; accepted: below 1"
        )

    def expected(k: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        p = (1 + cost * k**2) / (1 - discount * (a + b * k) ** 2)
        return p, (s.exp() ** 2 * (cost + discount * p * b**2) + discount * p * noise**2) / (1 - discount)

    k, s = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (gain, log_std))
    p, c = expected(k, s)
    by_gain, by_spread = torch.autograd.grad(-(p + c), (k, s))
    level, rest, std = float(p.detach()), float(c.detach()), math.exp(log_std)

    def q(x: Tensor) -> Tensor:
        state, action = x[:, :1], x[:, 1:]
        after = (a * state + b * action) ** 2 + noise**2
        return -(state**2 + cost * action**2 + discount * (level * after + rest)).unsqueeze(0)

    def visits(count: int, source: torch.Generator) -> Tensor:
        """At a step that is geometric in the discount; the state is Gaussian there."""
        uniform = torch.rand(count, 1, generator=source, dtype=torch.float64)
        step = (uniform.log() / math.log(discount)).floor().clamp_max(FARTHEST)
        still = (b**2 * std**2 + noise**2) / (1 - pull**2)  # the variance after long
        variance = still + (1 - still) * pull ** (2 * step)
        return variance.sqrt() * torch.randn(count, 1, generator=source, dtype=torch.float64)

    free = BoxActions((1,), (-math.inf,), (math.inf,), "float64")
    policy = _controller(1, free, [torch.tensor(gain), torch.tensor(0.0), torch.tensor([log_std])])
    _with_values(policy, q, lambda x: -(level * x**2 + rest).unsqueeze(0))
    exact = torch.stack([by_gain, torch.zeros((), dtype=torch.float64), by_spread])
    return ControlProblem("lq", "linear dynamics, quadratic reward", policy, visits, 1 / (1 - discount), exact)


def markov(states: int = 4, actions: int = 3, discount: float = 0.9, seed: int = 0) -> ControlProblem:
    """A random Markov decision process: J = mu · (1 − discount · P_pi)^−1 · r_pi, differentiated through the solution."""
    source = generator(seed, "markov")
    move = torch.rand(states, actions, states, generator=source, dtype=torch.float64) ** 3
    move /= move.sum(-1, keepdim=True)
    reward = torch.rand(states, actions, generator=source, dtype=torch.float64)
    start = torch.full((states,), 1 / states, dtype=torch.float64)
    weight = torch.randn(actions, states, generator=source, dtype=torch.float64)
    bias = torch.zeros(actions, dtype=torch.float64)
    leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    pi = torch.softmax(leaves[0].T + leaves[1], -1)
    chain = torch.eye(states, dtype=torch.float64) - discount * torch.einsum("sa,sat->st", pi, move)
    value = torch.linalg.solve(chain, (pi * reward).sum(-1))
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(start @ value, leaves)])
    value = value.detach()
    of_action = reward + discount * move @ value
    visited = torch.linalg.solve(chain.detach().T, start)
    policy = _controller(states, DiscreteActions(actions), [weight, bias])
    _with_values(policy, lambda x: (x @ of_action).unsqueeze(0), lambda x: (x @ value).reshape(1, -1, 1))
    share = visited / visited.sum()

    def visits(count: int, source: torch.Generator) -> Tensor:
        return torch.nn.functional.one_hot(torch.multinomial(share, count, True, generator=source), states).double()

    title = f"a Markov decision process of {states} states and {actions} actions"
    return ControlProblem("mdp", title, policy, visits, float(visited.sum()), exact, counted=True, contexts=states)


PROBLEMS: dict[str, Callable[[int], ControlProblem]] = {
    "one-state": lambda seed: one_state(),
    "lq": lambda seed: linear_quadratic(),
    "mdp": lambda seed: markov(seed=seed),
}


def methods(problem: ControlProblem) -> dict[str, PolicyGradient]:
    """The ways to differentiate that the problem's actions allow, by name."""
    above = Value("q") + (-1.0) * StateValue("v")

    def term(advantage: Advantage, likelihood: Likelihood) -> PolicyGradient:
        return PolicyGradient(rows=REPLAYED, advantage=advantage, likelihood=likelihood)

    own = {"enumerated": term(Value("q"), Enumerated())} if problem.counted else {"pathwise": term(Value("q"), Pathwise())}
    return own | {"score": term(Value("q"), Stepwise()), "score, baseline V(s)": term(above, Stepwise())}


def batch_of(problem: ControlProblem, visits: int, source: torch.Generator) -> Trajectories:
    """Visited states with actions that the policy draws there, and noise for fresh ones."""
    observation = problem.visits(visits, source)
    policy = problem.policy
    noise = torch.from_numpy(policy.noise(1, visits, source)[0]).double()
    with torch.no_grad():
        action, _ = policy.actions.fresh(policy.network("actor")(observation), noise, policy.log_std)
    more = torch.randn(visits, 1, policy.actions.noises, generator=source, dtype=torch.float64)
    return Trajectories(
        action=action.unsqueeze(1),
        mask=torch.ones(visits, 1, dtype=torch.bool),
        observation=observation.unsqueeze(1),
        source=torch.full((visits,), int(Source.REPLAY)),
        planned={NOISE.format("observation"): more},
    )


def estimate(problem: ControlProblem, term: PolicyGradient, batch: Trajectories) -> Tensor:
    """[P] one estimate of the gradient, from one batch."""
    objective = Objective((term,))
    planned = objective.plan(objective.prepare(batch), Planning())
    loss = objective.loss(problem.policy.now(planned, objective.differentiates), planned, Planning())
    return -problem.weight * torch.cat([g.flatten() for g in torch.autograd.grad(loss, problem.parameters)])


def run_control(
    problem: ControlProblem,
    batches: int = BATCHES,
    visits: Sequence[int] = (VISITS,),
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> list[Result]:
    """Every method on the same batches, of each number of visited states.

    Errors: `InputError` for fewer than two batches, or none of a state.
    """
    if batches < 2:
        raise InputError(f"{batches} batches say nothing of the variance; accepted: 2 or more")
    if any(count < 1 for count in visits):
        raise InputError(f"a batch has {min(visits)} states; accepted: 1 or more")
    terms = methods(problem)
    results = []
    for turn, count in enumerate(visits):
        found: dict[str, list[Tensor]] = {name: [] for name in terms}
        for number in range(batches):
            batch = batch_of(problem, count, generator(seed, "control", count, number))
            for name, term in terms.items():
                found[name].append(estimate(problem, term, batch))
            if progress is not None and number % 20 == 0:
                progress((turn + number / batches) / len(visits))
        for name, estimates in found.items():
            gradients = torch.stack(estimates)
            cosine = float(torch.nn.functional.cosine_similarity(gradients.mean(0), problem.gradient, 0))
            measured = measure(gradients, [problem.gradient], seed)
            results.append(Result(name, "E[R]", count, 0, None, 0.0, batches, measured, cosine, 1.0, 0.0))
    if progress is not None:
        progress(1.0)
    return results
