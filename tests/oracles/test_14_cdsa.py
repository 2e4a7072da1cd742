"""CDSA in closed form (the idea of arXiv 2406.07541): scores, the correction they make, and when there is none."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from unipg.algorithms.base import algorithm_named
from unipg.critics import Corrector
from unipg.errors import InputError
from unipg.front import train
from unipg.networks.corrections import Correction, denoising_error
from unipg.networks.perceptron import Perceptron
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe, Wanted
from unipg.policies.export import Acting
from unipg.training.export import export_model

CDSA = algorithm_named("cdsa")


def trained(data: Tensor, sigma: float, steps: int = 800) -> Perceptron:
    """e(x, log sigma) of 1-D data by denoising score matching."""
    source = torch.Generator().manual_seed(0)
    network = Perceptron([2, 64, 64, 1], activation="silu", source=source)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        x = data[torch.randint(len(data), (512,), generator=source)].unsqueeze(1)
        error = denoising_error(
            lambda x, log: network(torch.cat([x, log], 1)), x, torch.full_like(x, sigma), torch.randn(512, 1, generator=source)
        )
        optimizer.zero_grad()
        error.mean().backward()
        optimizer.step()
    return network


def score(network: Perceptron, x: Tensor, sigma: float) -> Tensor:
    with torch.no_grad():
        return network(torch.stack([x, torch.full_like(x, math.log(sigma))], 1))[:, 0] / sigma


class Linear(nn.Module):
    """x W."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def linear(size: int = 2, **settings: float | None) -> Correction:
    """s' = s + a, known exactly, in units of 1; the networks of scores are as they were made."""
    made = Correction(size, size, hidden=(8,), source=torch.Generator().manual_seed(0), **settings)
    one, nothing = torch.eye(size), torch.zeros(size, size)
    made.inverse, made.dynamics = Linear(torch.cat([nothing, one])), Linear(torch.cat([nothing, one]))
    made.reach.fill_(100.0)
    made.fitted.fill_(True)
    return made


def controller(correction: Corrector | None = None, kind: str = "gaussian", low: float = -1.0, high: float = 1.0) -> ActorCritic:
    """Whose most likely actions lie outside their bounds too."""
    networks = {} if correction is None else {"correction": correction}
    made = ActorCriticRecipe(hidden=[8], kind=kind).build(
        spaces.Box(-9.0, 9.0, (3,)), spaces.Box(low, high, (2,)), 0, wanted=Wanted(networks=lambda counted: networks)
    )
    with torch.no_grad():
        last = [p for p in made.module.actor.parameters() if p.ndim == 2][1]
        last.mul_(300)
    return made


def seen(rows: int = 40) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 3)).astype(np.float32)


def given(policy: ActorCritic, observation: np.ndarray) -> np.ndarray:
    return policy.outward()(observation, policy.actor()(observation, None))


def fit(policy: ActorCritic) -> Correction:
    """The correction has seen data; its networks are as they were made."""
    made, draw = policy.correction, torch.Generator().manual_seed(1)
    assert made is not None
    s, a, after = (torch.randn(200, n, generator=draw) for n in (3, 2, 3))
    made.fit(s, a.tanh(), after, torch.zeros(200, dtype=torch.bool))
    made.settle(s, a.tanh(), after, torch.zeros(200, dtype=torch.bool))
    return made


@pytest.mark.parametrize("kind", ["gaussian", "spread", "bounded", "squashed", "deterministic", "latent", "mixture"])
def test_strengths_of_zero_and_a_closed_gate_change_no_bit(kind: str) -> None:
    plain = given(controller(kind=kind, low=-3.0, high=0.7), seen())
    for settings in ({"k_state": 0.0, "k_action": 0.0}, {"k_state": 1.0, "k_action": 1.0, "gate": 0.5}):
        policy = controller(Corrector(hidden=(8,), **settings), kind, -3.0, 0.7)
        made = fit(policy)
        made.levels.fill_(1e9)
        assert np.array_equal(given(policy, seen()), plain)
    made.levels.fill_(0.0)  # the gate is open
    assert not np.array_equal(given(policy, seen()), plain)


def test_the_score_of_a_gaussian() -> None:
    """−(x − mu) / (v + sigma²): of N(1, 1) and sigma 1 it is −1 at mu + 2, and so is the step to the denoised point."""
    data = 1 + torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-2, 2, 41)
    found = score(trained(data, 1.0), x + 1, 1.0)
    assert float((found + x / 2).abs().max()) < 0.1
    assert float(found[-1]) == pytest.approx(-1.0, abs=0.1)


def test_the_score_of_two_points() -> None:
    """(tanh(x / sigma²) − x) / sigma²: 0 between them, and unstable there."""
    sigma, x = 0.5, torch.linspace(-1.5, 1.5, 31)
    found = score(trained(torch.tensor([-1.0, 1.0]), sigma), x, sigma)
    exact = (torch.tanh(x / sigma**2) - x) / sigma**2
    assert float((sigma**2 * (found - exact)).abs().max()) < 0.15  # of the step to the denoised point
    assert float(found[16]) > 0 > float(found[14])


def test_of_linear_dynamics_the_inverse_is_exact() -> None:
    """s' = s + B a, B = diag(2, 0.5): a wanted change (1, 1) of the next state is one of (0.5, 2) of the action."""
    made = linear(k_state=1.0, k_action=0.0)
    b = torch.tensor([2.0, 0.5])
    zero = torch.zeros(2, 2)
    made.dynamics, made.inverse = Linear(torch.cat([zero, b.diag()])), Linear(torch.cat([zero, (1 / b).diag()]))
    made.of_states = lambda following: (torch.ones_like(following), torch.ones(len(following)))  # type: ignore[method-assign]
    torch.testing.assert_close(made(torch.randn(5, 2), torch.randn(5, 2)), torch.tensor([[0.5, 2.0]]).expand(5, 2))


def test_the_action_part_is_the_step_to_the_denoised_action() -> None:
    """k_a · sigma² · score of p(s, a), of data N(0, v): −k_a · sigma² / (v + sigma²) · a, in each unit."""
    made = linear(k_state=0.0, k_action=0.5, sigmas=(0.3,))
    made.action_std.fill_(2.0)
    variance = 1.0
    made.pairs = Scored(variance, 0.3)
    action = torch.randn(6, 2)
    expected = -0.5 * 0.3**2 / (variance + 0.3**2) * action
    torch.testing.assert_close(made(torch.randn(6, 2), action), expected)


class Scored(nn.Module):
    """sigma · score of N(0, variance) in every dimension of [x, log sigma]."""

    def __init__(self, variance: float, sigma: float) -> None:
        super().__init__()
        self.factor = -sigma / (variance + sigma**2)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x[:, :-1]


def test_a_network_that_says_nothing_errs_by_the_dimensions_and_a_perfect_one_not_at_all() -> None:
    draw = torch.Generator().manual_seed(0)
    noise, sigma = torch.randn(200_000, 3, generator=draw), torch.full((200_000, 1), 0.3)
    nothing = denoising_error(lambda x, log: torch.zeros_like(x), torch.zeros_like(noise), sigma, noise)
    assert float(nothing.mean()) == pytest.approx(3.0, abs=5 * math.sqrt(6 / 200_000))
    perfect = denoising_error(lambda x, log: -x / log.exp(), torch.zeros_like(noise), sigma, noise)
    torch.testing.assert_close(perfect, torch.zeros(200_000), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["gaussian", "deterministic", "latent"])
def test_no_strength_leads_out_of_the_bounds(kind: str) -> None:
    policy = controller(Corrector(hidden=(8,), k_state=1e6, k_action=1e6), kind, -3.0, 0.7)
    fit(policy)
    found = given(policy, seen())
    assert np.isfinite(found).all()
    assert (found >= -3.0).all()
    assert (found <= np.float32(0.7)).all()


def test_without_bounds_a_correction_is_no_longer_than_actions_are_apart() -> None:
    policy = controller(Corrector(hidden=(8,), k_state=1e6, k_action=1e6), low=-np.inf, high=np.inf)
    made = fit(policy)
    plain = policy.actor()(seen(), None)
    length = np.linalg.norm(given(policy, seen()) - plain, axis=1)
    assert length == pytest.approx(np.full(len(length), float(made.reach[1])), rel=1e-4)


def test_the_gate_leaves_its_share_of_the_data_alone() -> None:
    made = linear(k_state=0.0, k_action=1.0, gate=0.9)
    s, a = torch.randn(2000, 2), torch.randn(2000, 2)
    made.settle(s, a, s + a, torch.zeros(2000, dtype=torch.bool))
    assert float((made(s, a) == 0).all(1).float().mean()) == pytest.approx(0.9, abs=0.002)


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    policy = controller(Corrector(hidden=(8,), k_state=1.0, k_action=1.0))
    made = fit(policy)
    plain = given(controller(), seen())
    with torch.no_grad():
        made.pairs.layers[-1].bias.fill_(math.nan)
    give, action = policy.outward(), policy.actor()(seen(), None)
    with pytest.warns(UserWarning, match="not finite"):
        assert np.array_equal(give(seen(), action), plain)
    give(seen(), action)
    assert made.given_up == 2 * len(plain)


def test_numbers_that_stand_still_are_left_out_of_the_density() -> None:
    made = Correction(2, 1, hidden=(8,), source=torch.Generator().manual_seed(0))
    s, a = torch.randn(50, 2), torch.randn(50, 1)
    s[:, 1] = 7.0
    assert made.fit(s, a, s, torch.zeros(50, dtype=torch.bool)) == [1]
    assert bool((made.of_states(s)[0][:, 1] == 0).all())
    other = s + torch.tensor([0.0, 3.0])
    torch.testing.assert_close(made(s, a), made(other, a), rtol=0, atol=0)


def data(folder: Path, rows: int = 80) -> str:
    draw = np.random.default_rng(0)
    place = folder / "data.npz"
    state = draw.standard_normal((rows, 3)).astype(np.float32)
    action = draw.uniform(-2, 2, (rows, 1)).astype(np.float32)
    np.savez(place, observation=state, next_observation=state + action, action=action, terminated=np.zeros(rows, bool))
    return str(place)


def run(folder: Path, model: str | None, environment: str = "Pendulum-v1", **settings: float):
    return train(
        CDSA(width=8, **settings),
        output=str(folder),
        threads=1,
        environment={"id": environment, "evaluation_episodes": 1},
        dataset={"path": data(folder.parent), "batch": 16, "updates": 4},
        controller={} if model is None else {"model": model},
        training={"iterations": 2, "evaluate_every": 0},
    )


@pytest.mark.parametrize("kind", ["deterministic", "mixture"])
def test_a_saved_policy_is_wrapped_saved_and_exported(tmp_path: Path, kind: str) -> None:
    space, actions = spaces.Box(-9.0, 9.0, (3,)), spaces.Box(-2.0, 2.0, (1,))
    made = ActorCriticRecipe(hidden=[8], kind=kind, normalize_observations=True).build(space, actions, 0)
    made.module.normalizer.update(torch.randn(9, 3))
    made.save(tmp_path / "model")
    run(tmp_path / "run", str(tmp_path / "model"))
    wrapped = ActorCritic.load(tmp_path / "run" / "model")
    before, after = made.module.state_dict(), wrapped.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith("critic."))
    assert wrapped.correction is not None
    assert wrapped.correction.settings["hidden"] == [8, 8]
    observation = seen()
    corrected = given(wrapped, observation)
    assert not np.array_equal(corrected, given(made, observation))
    with torch.no_grad():
        exported = Acting(wrapped)(torch.from_numpy(observation)).numpy()
    assert exported == pytest.approx(corrected, abs=1e-5)
    if kind == "mixture":  # what exporters cannot follow is the correction's, not the kind's
        ort = pytest.importorskip("onnxruntime")
        path, _ = export_model(str(tmp_path / "run"))
        session = ort.InferenceSession(path)
        assert session.run(None, {session.get_inputs()[0].name: observation})[0] == pytest.approx(corrected, abs=1e-5)
    again = tmp_path / "again"
    wrapped.save(again)
    assert np.array_equal(given(ActorCritic.load(again), observation), corrected)


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (lambda folder: CDSA(sigma=0.0), "sigma is 0"),
        (lambda folder: CDSA(state=-1.0), "state is -1"),
        (lambda folder: CDSA(gate=1.0), "gate is 1"),
        (lambda folder: Correction(2, 1, sigmas=(0.1, 0.0), source=torch.Generator()), "sigmas"),
        (lambda folder: Correction(2, 1, source=torch.Generator())(torch.zeros(1, 2), torch.zeros(1, 1)), "before it has seen any data"),
        (lambda folder: run(folder / "run", None), "controller: {model"),
        (lambda folder: run(folder / "run", str(folder / "nothing")), "no folder"),
        (lambda folder: run(folder / "run", str(folder), "CartPole-v1"), "a Box of real numbers|Box"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, refused, told: str) -> None:
    with pytest.raises(InputError, match=told.replace("{", r"\{")):
        refused(tmp_path)
