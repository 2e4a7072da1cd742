"""Oracles of GGTD (arXiv 2408.02295): densities, moments, the squared error inside, error variance, effective batch, best shapes, K = 1."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unipg import InputError
from unipg.algorithms import A2C, DQN, PPO, SAC, Algorithm, Setting
from unipg.critics.kinds import Ensemble, Gaussian, GeneralizedGaussian
from unipg.critics.kinds.ensembles import LEAST_SHAPE, MOST_SHAPE, likelihood_loss, raw_of
from unipg.critics.kinds.epistemic import effective_size, error_variance, excess_kurtosis, inverse_variance_weights
from unipg.laws.transitions import LAWS, _trainer, learning, resume

FLOAT = torch.float64


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=FLOAT)


def shaped(beta: float, start: float = 2.0) -> float:
    """What a head must say for beta."""
    return math.log(math.expm1(beta)) - math.log(math.expm1(start))


@pytest.mark.parametrize(
    ("beta", "power", "released"), [(1.0, 1.3931471806, 0.7), (2.0, 1.0623649429, 1.2792177624), (1.3, 1.2426121840, 0.8304985941)]
)
def test_1_the_negative_log_density(beta: float, power: float, released: float) -> None:
    assert float(likelihood_loss(number(-0.7), number(beta))) + math.log(2) == pytest.approx(power, abs=1e-10)
    assert float(likelihood_loss(number(0.7), number(beta), "released")) == pytest.approx(released, abs=1e-10)


@pytest.mark.parametrize(
    ("beta", "variance", "kurtosis"),
    [(0.5, 120, 22.2), (1, 2, 3), (1.5, 0.7384881116, 0.7619542369), (2, 0.5, 0), (4, 0.3379891200, -0.8115603848)],
)
def test_2_its_moments_are_those_of_the_density(beta: float, variance: float, kurtosis: float) -> None:
    """By quadrature of exp(−loss), which also says that the density integrates to 1."""
    x = torch.linspace(0, 40, 2_000_001, dtype=FLOAT) ** (4 if beta < 1 else 1)
    x = x[x < 4e5]
    density = (-likelihood_loss(x, number(beta))).exp()  # both sides: twice, and log 2 is left out
    total, second, fourth = (float(torch.trapezoid(density * x**p, x)) for p in (0, 2, 4))
    assert total == pytest.approx(1, abs=1e-5)
    assert second == pytest.approx(variance, rel=1e-5)
    assert fourth / second**2 - 3 == pytest.approx(kurtosis, abs=2e-4)


def test_3_with_beta_two_the_slope_is_that_of_squared_errors() -> None:
    kind, squared = GeneralizedGaussian(members=4, epistemic="none"), Ensemble(members=4)
    value = torch.randn(1, 4, 6, 3, dtype=FLOAT, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randn(4, 6, 3, dtype=FLOAT, generator=torch.Generator().manual_seed(1))
    said = torch.stack([value, torch.full_like(value, shaped(2.0))], -1)
    (own,) = torch.autograd.grad(kind.fit(said, value - target)[0].sum(), value)
    (plain,) = torch.autograd.grad(squared.fit(said[..., :1], value - target)[0].sum(), value)
    assert float(kind.shape(number(0.0))) == 2.0
    assert torch.equal(own, plain / 4)  # ½ e² / K: ½ · Σ w (e²), w = 1/K


def test_4_the_variance_of_errors() -> None:
    error = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0], dtype=FLOAT)
    assert float(excess_kurtosis(error)) == pytest.approx(3.152, abs=1e-12)
    assert float(error_variance(error, 0)) == pytest.approx(4.6939541870, abs=1e-10)
    assert float(error_variance(error, 1)) == pytest.approx(5.8674427338, abs=1e-10)


def test_5_the_effective_batch() -> None:
    variance = torch.tensor([[1.0, 1, 1, 97]], dtype=FLOAT)
    weights = inverse_variance_weights(variance, 16)
    assert weights[0].tolist() == pytest.approx([0.332192] * 3 + [0.003425], abs=1e-6)
    assert float(effective_size(weights)) == pytest.approx(3.0205469746, abs=1e-10)  # at least 3 = B − 1 already: xi is 0
    equal = inverse_variance_weights(torch.full((2, 32), 0.7, dtype=FLOAT), 16)
    assert torch.allclose(effective_size(equal), number(32.0))


def test_5_the_least_xi_reaches_the_effective_batch_and_no_more() -> None:
    variance = torch.rand(3, 64, dtype=FLOAT, generator=torch.Generator().manual_seed(2)) + 0.5
    variance[0, :3], variance[1, 5:16] = 1e-3, 2e-2
    variance[2] = 1.0  # reached already
    bare = (1 / variance) / (1 / variance).sum(-1, keepdim=True)
    assert bool((effective_size(bare)[:2] < 16).all())
    weights = inverse_variance_weights(variance, 16)
    assert torch.allclose(effective_size(weights)[:2], number(16.0), atol=1e-9)
    assert torch.allclose(weights.sum(-1), number(1.0))
    line, v = 1 / weights[:2], variance[:2]  # ω ∝ 1/(V + xi): 1/ω is a straight line in V, 0 at −xi
    slope = (line.amax(1) - line.amin(1)) / (v.amax(1) - v.amin(1))
    xi = (line / slope.unsqueeze(1) - v).T
    assert torch.allclose(xi, xi[0].expand_as(xi))
    assert bool((xi > 0).all())


@pytest.mark.parametrize(
    ("size", "form", "best", "accuracy"),
    [
        (2.0, "power", 0.738, 1e-3),
        (0.5, "power", 6.34, 1e-2),
        (1.0, "power", 2.166, 1e-3),
        (2.0, "released", 0.617, 1e-3),
        (0.5, "released", 0.953, 1e-3),
    ],
)
def test_6_the_best_shape_at_one_error(size: float, form: str, best: float, accuracy: float) -> None:
    beta = torch.linspace(0.2, 10, 98_001, dtype=FLOAT)
    loss = likelihood_loss(number(size).expand_as(beta), beta, form)  # type: ignore[arg-type]
    assert float(beta[loss.argmin()]) == pytest.approx(best, abs=accuracy)


@pytest.mark.parametrize("form", ["power", "released"])
def test_7_one_member_without_weights_is_the_plain_critic(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import unipg.critics.kinds.epistemic as epistemic

    monkeypatch.setattr(epistemic, "excess_kurtosis", lambda values: pytest.fail("one member was asked for a kurtosis"))
    kind = GeneralizedGaussian(members=1, epistemic="none", form=form)  # type: ignore[arg-type]
    said = torch.randn(1, 1, 5, 2, 2, dtype=FLOAT, generator=torch.Generator().manual_seed(0))
    loss, facts = kind.fit(said, said[..., 0])
    beta = torch.nn.functional.softplus(said[0, 0, ..., 1] + math.log(math.expm1(2.0)))
    assert torch.equal(facts["beta"][0, 0], beta)
    assert torch.equal(loss[0], 0.5 * likelihood_loss(said[0, 0, ..., 0], beta, form))  # type: ignore[arg-type]
    many = GeneralizedGaussian(epistemic_weight=0.0)
    assert not many.weighs


@pytest.mark.parametrize("form", ["power", "released"])
def test_a2_the_head_learns_the_shape(form: str) -> None:
    shapes = torch.tensor([0.8, 1.0, 2.0, 3.0])
    draw = np.random.default_rng(0)
    # |e|^beta of a generalised Gaussian is Gamma(1/beta)
    drawn = [draw.gamma(1 / b, size=20_000) ** (1 / b) * draw.choice([-1, 1], 20_000) + 0.5 for b in shapes.tolist()]
    sample = torch.from_numpy(np.stack(drawn, 1)).float()
    fit = torch.zeros(2, 4, requires_grad=True)
    optimiser = torch.optim.Adam([fit], lr=0.02)
    for _ in range(600):
        beta = GeneralizedGaussian().shape(fit[1])
        loss = likelihood_loss(fit[0] - sample, beta, form).mean(0).sum()  # type: ignore[arg-type]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    beta = GeneralizedGaussian().shape(fit[1]).detach()
    if form == "power":
        assert torch.allclose(beta, shapes, rtol=0.05)
        assert torch.allclose(fit[0].detach(), torch.tensor(0.5), atol=0.01)
    else:
        assert float(beta.max()) < 1.1
        assert beta.tolist() == pytest.approx([0.681, 0.773, 0.922, 0.952], abs=0.01)


# ---------------------------------------------------------------------------------------------------- what lies at the edges


def test_members_that_are_equal_have_no_kurtosis() -> None:
    error = torch.tensor([[1.0] * 5, [1, 2, 3, 4, 10]], dtype=FLOAT)
    assert excess_kurtosis(error).tolist() == pytest.approx([0, 3.152])
    weights = inverse_variance_weights(error_variance(error).unsqueeze(0), 16)
    assert bool(torch.isfinite(weights).all())


def test_one_step_and_none() -> None:
    assert inverse_variance_weights(torch.ones(2, 1), 16).tolist() == [[1], [1]]
    assert inverse_variance_weights(torch.ones(2, 0), 16).shape == (2, 0)


@pytest.mark.parametrize("error", [0.0, 1e-9, 1e12])
@pytest.mark.parametrize("raw", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("form", ["power", "released"])
def test_no_error_and_no_head_gives_what_is_no_number(error: float, raw: float, form: str) -> None:
    kind = GeneralizedGaussian(form=form)  # type: ignore[arg-type]
    e, r = torch.tensor([error], requires_grad=True), torch.tensor([raw], requires_grad=True)
    beta = kind.shape(r)
    assert LEAST_SHAPE * (1 - 1e-6) <= float(beta.detach()) <= MOST_SHAPE
    loss = likelihood_loss(e, beta, form)  # type: ignore[arg-type]
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(e.grad).all())
    assert bool(torch.isfinite(r.grad).all())


def test_an_error_beyond_all_powers_still_has_a_slope() -> None:
    error = torch.tensor([1e6], dtype=FLOAT, requires_grad=True)
    likelihood_loss(error, torch.tensor([4.0], dtype=FLOAT)).sum().backward()
    assert float(error.grad) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 3}, "algorithm.critic.members is 3, but epistemic is error_variance .* bias-corrected kurtosis; accepted: 4 or more"),
        ({"members": 1, "epistemic": "value_variance"}, "variance of several alone; accepted: 2 or more"),
        ({"members": 0, "epistemic": "none"}, "algorithm.critic.members is 0; accepted: 1 or more"),
        ({"start": 0.0}, r"algorithm.critic.start is 0.0; accepted: a number in \[0.001, 20\]"),
        ({"ddof": 2}, "algorithm.critic.ddof is 2; accepted: 0, 1"),
        ({"epistemic_weight": float("nan")}, "algorithm.critic.epistemic_weight is nan"),
        ({"form": "powr"}, "form 'powr' does not exist; did you mean 'power'"),
    ],
)
def test_bad_input_is_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GeneralizedGaussian(**settings)  # type: ignore[arg-type]


def test_values_without_a_second_number_are_refused() -> None:
    with pytest.raises(ValueError, match="says two numbers"):
        raw_of(torch.zeros(5, 1))


def test_a_clipped_value_has_no_likelihood() -> None:
    with pytest.raises(InputError, match=r"algorithm.value_clip is given, but .* accepted: null"):
        PPO(value_clip=0.2, critic=Gaussian()).learned(Setting(acts=True))


def test_one_member_of_squared_errors_is_what_everybody_has() -> None:
    assert PPO(critic=Ensemble(members=1)).learned(Setting(acts=True)) == PPO().learned(Setting(acts=True))


# ---------------------------------------------------------------------------------------------------- laws

FULL = GeneralizedGaussian(members=4)
VARIANTS = {
    "ppo": PPO(gamma=0.99, critic=FULL),
    "ppo gaussian": PPO(gamma=0.99, critic=Gaussian(members=3, epistemic="value_variance", reduction="mean")),
    "a2c": A2C(critic=Ensemble(members=3)),
    "sac": SAC(critic=FULL),
    "sac released": SAC(critic=GeneralizedGaussian(members=4, form="released", ddof=0)),
    "dqn": DQN(critic=FULL),
}


@pytest.mark.parametrize("law", ["split", "silence", "exactness", "agreement", "emptiness", "second_opinion"])
@pytest.mark.parametrize("name", VARIANTS)
def test_laws_on_a_critic_with_members(name: str, law: str) -> None:
    algorithm: Algorithm = VARIANTS[name]
    LAWS[law](algorithm)


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_a_run_that_is_stopped_goes_on_to_the_last_bit(name: str) -> None:
    resume(VARIANTS[name], (45,))


@pytest.mark.parametrize("name", ["ppo", "sac", "dqn"])
def test_it_solves_a_bandit(name: str) -> None:
    assert learning(VARIANTS[name]) >= 0.9


@pytest.mark.parametrize(("name", "kind"), [("ppo", "gaussian"), ("sac", "squashed")])
def test_a_step_in_pieces_is_the_same_step(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights by error variance are of the whole step's batch, also where that is cut: what they are is counted here, too."""
    asked: list[int] = []
    weigh = GeneralizedGaussian.weights
    monkeypatch.setattr(GeneralizedGaussian, "weights", lambda self, v: asked.append(v.shape[1]) or weigh(self, v))
    found = []
    for tokens in (None, 5):
        run = _trainer(VARIANTS[name], kind, tmp_path / str(tokens), 1, steps=24)
        for learner in run.learners if tokens else ():
            learner.training = dataclasses.replace(learner.training, micro_batch_tokens=tokens)
        run.train()
        found.append({key: value.clone() for key, value in run.policy.module.state_dict().items()})
    assert len(set(asked)) == 1
    for key, value in found[0].items():
        assert torch.allclose(value, found[1][key], atol=2e-4), key
