"""ODICE in closed form (arXiv 2402.00348)."""

import pytest
import torch
from offline import flat, gradients, lag, learner_of, minimised, policy_of, rows
from torch import Tensor

from unipg.algorithms.base import algorithm_named
from unipg.critics.duals import DualWeight, Residual, conjugate
from unipg.errors import InputError
from unipg.estimator import Planning, Progress
from unipg.estimator.directions import Orthogonal, Surface

ODICE = algorithm_named("odice")


class Given(Surface):
    """Named gradients that are known."""

    def __init__(self, **named: list[float] | Tensor) -> None:
        self._named = {name: torch.as_tensor(g, dtype=torch.float64) for name, g in named.items()}
        self.theta = torch.zeros_like(next(iter(self._named.values())))
        self.told = {}

    def named(self) -> dict[str, Tensor]:
        return self._named

    gradient = loss = divergence = fisher = hessian = expected_hessian = None  # type: ignore[assignment]


def combined(**named: list[float] | Tensor) -> Tensor:
    return Orthogonal()([Given(**named)], {}, Progress())


def linear(algorithm, terminal: bool = False) -> tuple:
    """V = theta · (s_1, s_2) of one transition from phi(s) = (1, 0) to phi(s') = (1, 1), theta = 0."""
    made = policy_of(algorithm, "gaussian", hidden=(), seen=2, size=1)
    batch = rows(rows=1, seen=2, size=1)
    changes = {
        "observation": torch.tensor([[[1.0, 0.0]]], dtype=torch.float64),
        "next_observation": torch.tensor([[[1.0, 1.0]]], dtype=torch.float64),
        "step_reward": torch.zeros(1, 1, dtype=torch.float64),
        "terminated": torch.full((1, 1), terminal),
    }
    with torch.no_grad():
        for name in ("v", "v_lagged"):
            for parameter in made.network(name).parameters():
                parameter.zero_()
    return made, batch.replace(**changes)


def named(algorithm, made, batch) -> dict[str, Tensor]:
    """The gradient of each term's loss, of V's weights without the bias."""
    learner = learner_of(algorithm, "value")
    planned = learner.terms.plan(learner.terms.prepare(batch), Planning())
    found = {}
    for name, term in learner.terms.named():
        loss, _ = term.per_token(made.now(planned), planned, name, Planning())
        weighted = (planned.planned[f"{name}/weight"] * loss).sum()
        found[name] = flat(list(torch.autograd.grad(weighted, made.networks["v"])))
    return found


@pytest.mark.parametrize(("gradient", "expected"), [("orthogonal", (-0.2, 0.594)), ("semi", (-0.2, 0.0)), ("true", (0.394, 0.594))])
def test_by_hand(gradient: str, expected: tuple[float, float]) -> None:
    """On one transition of a linear V; the bias, whose gradients the example does not have, is left out."""
    algorithm = ODICE(gradient=gradient, lam=0.6, eta=1.0, critics=1, discount=0.99)
    made, batch = linear(algorithm)
    made.network("v").norms = None
    found = {name: g[:2] for name, g in named(algorithm, made, batch).items()}
    if gradient == "orthogonal":
        assert found["forward"].tolist() == pytest.approx([-0.6, 0.0])
        assert found["backward"].tolist() == pytest.approx([0.594, 0.594])
        total = combined(**found)
    else:
        total = torch.stack(list(found.values())).sum(0)
    assert total.tolist() == pytest.approx(list(expected))


def test_what_is_left_of_the_backward_gradient_is_orthogonal() -> None:
    algorithm = ODICE()
    made, batch = policy_of(algorithm, "gaussian"), rows()
    lag(made, "v_lagged")
    found = named(algorithm, made, batch)
    rest = combined(**found) - found["level"] - found["forward"]
    assert abs(float(rest @ found["forward"])) <= 1e-6 * float(rest.norm() * found["forward"].norm())


def test_the_projection_is_of_all_weights_together() -> None:
    """Layer by layer it would be another vector."""
    algorithm = ODICE()
    made, batch = policy_of(algorithm, "gaussian", hidden=(8, 8)), rows()
    lag(made, "v_lagged")
    found = named(algorithm, made, batch)
    sizes = [p.numel() for p in made.networks["v"]]
    layers = [dict(zip(found, parts, strict=True)) for parts in zip(*(g.split(sizes) for g in found.values()), strict=True)]
    apart = torch.cat([combined(**layer) for layer in layers])
    assert not torch.allclose(apart, combined(**found), rtol=1e-3)


def test_without_eta_it_is_the_semi_gradient() -> None:
    made, batch = policy_of(ODICE(), "gaussian"), rows()
    found = [gradients(learner_of(ODICE(**own), "value"), made, batch)["v"] for own in ({"eta": 0.0}, {"gradient": "semi"})]
    assert torch.equal(flat(found[0]), flat(found[1]))


def test_a_forward_gradient_of_nothing_is_no_division_by_it() -> None:
    assert combined(level=[1.0, 0.0], forward=[0.0, 0.0], backward=[0.5, 2.0]).tolist() == [1.5, 2.0]


def test_the_conjugate_of_chi_square() -> None:
    y = torch.tensor([0.0, 2.0, -2.0, -5.0], dtype=torch.float64, requires_grad=True)
    found = conjugate(y, "chi_square")
    (slope,) = torch.autograd.grad(found.sum(), y)
    assert found.tolist() == [0, 3, -1, -1]
    assert slope.tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize(
    ("lam", "value", "weights"), [(0.4, -0.5, (0.5, 1.5)), (0.5, 0.5, (0, 0.5)), (0.6, 7 / 6, (0, 0)), (0.8, 2.0, (0, 0))]
)
def test_the_fixed_point_of_a_terminal_state(lam: float, value: float, weights: tuple[float, float]) -> None:
    """Rewards 0 and 1 equally often: mean f*'(r − V) = (1 − lam) / lam. Above lam = ½ every weight is 0."""
    reward = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def loss(v: Tensor) -> Tensor:
        return (1 - lam) * v + lam * conjugate(reward[:, None] - v, "chi_square").mean(0)

    assert minimised(loss, -3, 5) == pytest.approx(value, abs=1e-4)
    made, batch = linear(ODICE(critics=1), terminal=True)
    with torch.no_grad():
        made.network("v").layers[-1].bias.fill_(value)
    found = [
        float(
            DualWeight(Residual())(batch.replace(step_reward=torch.full((1, 1), float(r), dtype=torch.float64)), made.now(batch)).detach()
        )
        for r in (0, 1)
    ]
    assert found == pytest.approx([max(r - value, 0) for r in (0, 1)])
    assert [round(each, 4) for each in found] == pytest.approx(list(weights), abs=1e-4)


def test_two_members_each_have_a_residual_and_the_least_is_the_target() -> None:
    algorithm = ODICE(critics=2, discount=0.9)
    made, batch = policy_of(algorithm, "gaussian"), rows()
    lag(made, "v_lagged")
    weight = learner_of(algorithm, "policy").terms.terms[0].advantage(batch, made.now(batch), Planning())[:, 0]
    seen, following = batch.observation[:, 0], batch.next_observation[:, 0]
    after = made.network("v_lagged")(following)[..., 0].min(0).values
    delta = batch.step_reward[:, 0] + 0.9 * torch.where(batch.terminated[:, 0], 0, after) - made.network("v")(seen)[..., 0]
    torch.testing.assert_close(weight.detach(), delta.clamp(0, 100).mean(0).detach())


def test_nothing_is_read_of_what_follows_an_end() -> None:
    algorithm = ODICE()
    made, batch = policy_of(algorithm, "gaussian"), rows()
    expected = combined(**named(algorithm, made, batch))
    seen = batch.next_observation.clone()
    seen[1] = torch.nan
    found = combined(**named(algorithm, made, batch.replace(next_observation=seen)))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "told"), [({"lam": 1.0}, "lam is 1.0"), ({"eta": -1.0}, "eta is -1"), ({"gradient": "both"}, "orthogonal")]
)
def test_settings_that_mean_nothing_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        ODICE(**settings)
