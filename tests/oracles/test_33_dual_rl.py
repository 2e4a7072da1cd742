"""In-sample values, f-DVL and ReCOIL in closed form (arXiv 2110.06169, 2301.02328, 2302.08560)."""

import math

import pytest
import torch
from offline import flat, gradients, lag, learner_of, minimised, policy_of, rows

from unipg.algorithms.base import algorithm_named
from unipg.critics.duals import ChiSquare, Expectile, Gumbel, Shape, TotalVariation
from unipg.errors import InputError
from unipg.estimator import Planning
from unipg.trajectories import Source

IQL, XQL, F_DVL, RECOIL, AWAC = (algorithm_named(name) for name in ("iql", "xql", "f_dvl", "recoil", "awac"))


def least(shape: Shape, values: list[float], low: float = -10, high: float = 10) -> float:
    """V of equally likely values of actions."""
    q = torch.tensor(values, dtype=torch.float64)

    def loss(v: torch.Tensor) -> torch.Tensor:
        y = q[:, None] - v[None]
        top = None if (exponent := shape.exponent(y)) is None else exponent.new_zeros(())
        return shape(y, top).mean(0)

    return minimised(loss, low, high)


def test_total_variation_is_a_quantile() -> None:
    """tau = (2·0.8 − 1) / 0.8 = ¾ of 0, 1, 2, 3, 4."""
    assert least(TotalVariation(0.8), [0, 1, 2, 3, 4]) == pytest.approx(3, abs=1e-4)
    with pytest.raises(InputError, match="lam"):
        TotalVariation(0.5)


def test_chi_square_by_hand() -> None:
    def at(y: float, lam: float) -> float:
        return float(ChiSquare(lam)(torch.tensor(y, dtype=torch.float64), None))

    nearly = 1 - 1e-12
    assert at(0, 0.8) == 0
    assert [at(2, nearly), at(-2, nearly), at(-6, nearly)] == pytest.approx([3, 0, 3], abs=1e-9)
    assert least(ChiSquare(0.8), [1.5]) == pytest.approx(1.5, abs=1e-4)
    y = -2 + 2 * (1 - 0.4) / 0.4  # above 0 where lam < ½: V stays below the only action's value
    assert least(ChiSquare(0.4), [1.5]) == pytest.approx(1.5 - y, abs=1e-4)


def test_gumbel_is_a_soft_maximum() -> None:
    assert least(Gumbel(1.0, None), [0, 1]) == pytest.approx(0.62011, abs=1e-4)
    assert least(Gumbel(0.5, None), [0, 1]) == pytest.approx(0.5 * math.log((1 + math.exp(2)) / 2), abs=1e-4)


def test_expectile_of_two_values() -> None:
    """tau (1 − v) = (1 − tau) v."""
    assert least(Expectile(0.9), [0, 1]) == pytest.approx(0.9, abs=1e-4)


def test_scaling_by_the_largest_exponent_only_scales_the_gradient() -> None:
    q = torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64)
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    shape = Gumbel(0.7, None)
    top = shape.exponent(q - v.detach()).max()
    (scaled,) = torch.autograd.grad(shape(q - v, top).mean(), v)
    z = (q - v) / 0.7
    (plain,) = torch.autograd.grad((z.exp() - z - 1).mean(), v)
    torch.testing.assert_close(scaled, (-top).exp() * plain, rtol=1e-12, atol=1e-14)


def test_without_a_temperature_it_clones_to_the_bit() -> None:
    algorithm, cloning = IQL(temperature=0.0), algorithm_named("bc")()
    made = policy_of(algorithm, "bounded")
    found = gradients(learner_of(algorithm, "policy"), made, rows())["actor"]
    assert torch.equal(flat(found), flat(gradients(learner_of(cloning, "policy"), made, rows())["actor"]))


def test_weights_are_exponential_up_to_their_limit() -> None:
    algorithm = F_DVL(temperature=3.0, most=100.0)
    made, batch = policy_of(algorithm, "bounded"), rows()
    with torch.no_grad():
        made.network("v").layers[-1].bias.sub_(1.0)
    lag(made, "q_lagged")
    policy = learner_of(algorithm, "policy").terms.terms[0]
    weight = policy.advantage(batch, made.now(batch), Planning())[:, 0]
    seen, action = batch.observation[:, 0], batch.action[:, 0]
    q = made.network("q_lagged")(torch.cat([seen, action], 1))[..., 0].min(0).values
    advantage = q - made.network("v")(seen)[0, :, 0]
    torch.testing.assert_close(weight, (3 * advantage).exp().clamp_max(100))
    with torch.no_grad():
        made.network("v").layers[-1].bias.sub_(50.0)
    assert policy.advantage(batch, made.now(batch), Planning()).unique().tolist() == [100.0]


@pytest.mark.parametrize("algorithm", [IQL(), XQL(), F_DVL(divergence="total_variation"), F_DVL(divergence="reverse-kl"), RECOIL()])
def test_each_step_reaches_its_own_network_alone(algorithm) -> None:
    made, batch = policy_of(algorithm, "bounded"), rows(expert=4 if algorithm.name == "recoil" else 0)
    for name, own in (("value", "v"), ("policy", "actor"), ("critic", "q")):
        found = gradients(learner_of(algorithm, name), made, batch)
        assert all((own == network) == any(g is not None and bool(g.any()) for g in each) for network, each in found.items())


def test_iql_by_hand() -> None:
    algorithm = IQL(expectile=0.7, discount=0.9)
    made, batch = policy_of(algorithm, "bounded"), rows()
    lag(made, "q_lagged")
    seen, following, action = batch.observation[:, 0], batch.next_observation[:, 0], batch.action[:, 0]
    v = made.network("v")
    y = made.network("q_lagged")(torch.cat([seen, action], 1))[..., 0].min(0).values.detach() - v(seen)[0, :, 0]
    expected = torch.autograd.grad((torch.where(y < 0, 0.3, 0.7) * y**2).mean(), made.networks["v"])
    torch.testing.assert_close(flat(gradients(learner_of(algorithm, "value"), made, batch)["v"]), flat(list(expected)))
    target = batch.step_reward[:, 0] + 0.9 * torch.where(batch.terminated[:, 0], 0, v(following)[0, :, 0].detach())
    q = made.network("q")(torch.cat([seen, action], 1))[..., 0]
    expected = torch.autograd.grad((0.5 * (q - target) ** 2).sum(0).mean(), made.networks["q"])
    torch.testing.assert_close(flat(gradients(learner_of(algorithm, "critic"), made, batch)["q"]), flat(list(expected)))


def test_recoils_critic_by_hand() -> None:
    """Both halves have a mean of their own; rewards count for nothing."""
    algorithm = RECOIL(discount=0.9)
    made, batch = policy_of(algorithm, "bounded"), rows(expert=3)
    found = flat(gradients(learner_of(algorithm, "critic"), made, batch)["q"])
    q = made.network("q")(torch.cat([batch.observation[:, 0], batch.action[:, 0]], 1))[..., 0]
    after = made.network("v")(batch.next_observation[:, 0])[0, :, 0].detach()
    target = 0.9 * torch.where(batch.terminated[:, 0], 0, after)
    expert = batch.source == int(Source.DEMONSTRATION)
    error = (q - target).abs()
    huber = torch.where(error <= 20, 0.5 * error**2, 20 * (error - 10))
    loss = -q[:, expert].sum(0).mean() + 1e-4 * q[:, ~expert].sum(0).mean() + huber[:, ~expert].sum(0).mean()
    torch.testing.assert_close(found, flat(list(torch.autograd.grad(loss, made.networks["q"]))))
    changed = batch.replace(step_reward=batch.step_reward * 7 + 3)
    assert torch.equal(flat(gradients(learner_of(algorithm, "critic"), made, changed)["q"]), found)


def test_recoils_fixed_point_of_the_released_loss() -> None:
    """A row in both halves: ½(Q − 200)² + ½(Q − y)², y = −2 + 0.99 · (−200) = −200 after a terminal step, is least at 0."""
    algorithm = RECOIL(loss="ls")
    terms = {type(term).__name__: term for term in learner_of(algorithm, "critic").terms.terms}
    target, most = terms["Regression"].target, terms["Toward"].value
    y = target.reward + target.discount * target.terminal
    assert (most, y) == (pytest.approx(200), pytest.approx(-200))
    assert minimised(lambda q: 0.5 * (q - most) ** 2 + 0.5 * (q - y) ** 2, -300, 300) == pytest.approx((most + y) / 2, abs=1e-2)


def test_awac_by_hand() -> None:
    """Weights exp(Q(s, a) − Q(s, a')) over their mean, a' the action that the planned noise draws."""
    algorithm = AWAC(temperature=2.0)
    made, batch = policy_of(algorithm, "bounded"), rows()
    weight = learner_of(algorithm, "policy").terms.terms[0].advantage(batch, made.now(batch), Planning())[:, 0]
    seen = batch.observation[:, 0]
    noise = batch.planned["noise/observation"][:, 0]
    drawn = made.network("actor")(seen).tanh() + made.log_std.exp() * noise

    def value(action: torch.Tensor) -> torch.Tensor:
        return made.network("q")(torch.cat([seen, action], 1))[..., 0].min(0).values

    raw = (2.0 * (value(batch.action[:, 0]) - value(drawn))).exp()
    torch.testing.assert_close(weight, (raw / raw.mean()).detach())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: F_DVL(lam=1.0), "lam is 1.0"),
        (lambda: F_DVL(divergence="total_variation", lam=0.5), "between 0.5 and 1"),
        (lambda: F_DVL(divergence="hellinger"), "hellinger"),
        (lambda: IQL(expectile=1.0), "tau is 1.0"),
        (lambda: XQL(scale=0.0), "temperature is 0"),
        (lambda: RECOIL(loss="lsq"), "ls, unstabilised"),
        (lambda: RECOIL(loss="ls", discount=1.0), "below 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, told: str) -> None:
    with pytest.raises(InputError, match=told):
        learner_of(wrong(), "value")


def test_an_exponential_without_end_is_told() -> None:
    algorithm = XQL(clip=None)
    made, batch = policy_of(algorithm, "bounded"), rows()
    with torch.no_grad():
        made.network("v").layers[-1].bias.fill_(-math.inf)
    with pytest.raises(InputError, match="larger temperature"):
        gradients(learner_of(algorithm, "value"), made, batch)
