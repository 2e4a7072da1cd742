"""Critics of continuous time as kinds of an algorithm's critic: their terms, laws, runs, and what is refused."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from unipg import Trajectories
from unipg.algorithms import A2C, DQN, PPO, SAC
from unipg.algorithms.base import Algorithm, Setting
from unipg.cli import main
from unipg.critics import Bootstrapped, Value
from unipg.critics.continuous import Paths, Times, advantage_rate, ctd_loss, martingale_loss, mean_square_td
from unipg.critics.kinds import CTD0, GMM, MSTDE, CTDLambda, Martingale, Squared
from unipg.critics.kinds.martingale import ContinuousCritic
from unipg.environments.timed import TimeStep
from unipg.errors import InputError
from unipg.estimator import GAE
from unipg.estimator.advantages import generalized_advantage, values_after
from unipg.laws.search import LAWS
from unipg.policies.actions import BoxActions
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import generator
from unipg.training import Trainer, TrainingRecipe
from unipg.training.optimization import OptimizerRecipe
from unipg.training.recipe import build_algorithm
from unipg.training.run import wanted_of

DT, BETA, LAM = 0.1, 0.7, 0.4
ALL: dict[str, ContinuousCritic] = {
    "martingale": Martingale(DT, BETA, LAM),
    "ctd0": CTD0(DT, BETA, LAM),
    "ctd_lambda": CTDLambda(DT, BETA, LAM, lam=LAM),
    "mstde": MSTDE(DT, BETA, LAM),
    "gmm": GMM(DT, BETA, LAM, tests=5),
}


def windows(rows: int = 4, steps: int = 6) -> Trajectories:
    """Whole windows in float64, whose ends have values; rewards are those of steps, rate times dt."""
    source = generator(0, "windows")

    def normal(*more: int) -> torch.Tensor:
        return torch.randn(rows, steps, *more, generator=source).double()

    return Trajectories(
        action=normal(1),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        observation=normal(2),
        step_reward=normal(),
        value=normal(),
        bootstrap_value=normal(),
    )


def policy() -> ActorCritic:
    made = ActorCritic((2,), BoxActions((1,), (-1.0,), (1.0,), "float64"), hidden=(5,))
    made.module.double()
    return made


def paths_of(batch: Trajectories) -> Paths:
    """The same windows for the library of paths; the payoff is the value behind the window."""
    assert batch.step_reward is not None
    assert batch.bootstrap_value is not None
    times = Times(torch.full((batch.mask.shape[1],), DT).double(), BETA)
    return Paths(times, batch.step_reward / DT, batch.bootstrap_value[:, -1])


def closed(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values, torch.zeros(len(values), 1).double()], 1)


def test_the_actors_advantage_is_the_rate_of_the_library() -> None:
    batch = windows()
    assert batch.value is not None
    gae = GAE(gamma=0.99, lam=0.95, normalize=False)
    rate = advantage_rate(paths_of(batch), closed(batch.value), LAM)
    torch.testing.assert_close(CTD0(DT, BETA, LAM).advantage(gae)(batch), rate)
    torch.testing.assert_close(CTD0(DT, BETA, 0.0).advantage(gae)(batch), advantage_rate(paths_of(batch), closed(batch.value)))


@pytest.mark.parametrize("kind", ["martingale", "ctd0", "ctd_lambda", "mstde"])
def test_a_loss_on_windows_has_the_gradient_of_the_loss_on_paths(kind: str) -> None:
    """At the values with which the batch was collected, without discounting since the start (beta 0), which windows leave out."""
    made, batch = policy(), windows()
    with torch.no_grad():
        batch = batch.replace(value=made.evaluate(batch, value=True).value)
    critic = dataclasses.replace(ALL[kind], beta=0.0)
    paths = dataclasses.replace(paths_of(batch), times=Times.even(0.6, DT))
    values = made.evaluate(batch, value=True).value
    assert values is not None
    own = made.networks["critic"]
    ours = torch.autograd.grad(critic.state_loss(GAE(gamma=0.5, lam=0.9))(made.evaluate(batch, value=True), batch), own)
    losses = {
        "martingale": lambda: martingale_loss(paths, closed(values)) / DT,
        "ctd0": lambda: ctd_loss(paths, closed(values)),
        "ctd_lambda": lambda: ctd_loss(paths, closed(values), LAM) / DT,
        "mstde": lambda: mean_square_td(paths, closed(values)) * DT,
    }
    theirs = torch.autograd.grad(losses[kind]() / 6, own)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)
    assert max(float(g.abs().max()) for g in ours) > 1e-3


def test_moments_have_the_gradient_of_the_product_of_two_halves() -> None:
    """By autograd of ½ m₁^T A m₂, written out; however the windows are ordered."""
    made, batch = policy(), windows()
    term = GMM(DT, BETA, LAM, tests=5, weighting="identity").state_loss(GAE())
    own = made.networks["critic"]
    ours = torch.autograd.grad(term(made.evaluate(batch, value=True), batch), own)
    seen = batch.observation
    assert seen is not None
    assert batch.bootstrap_value is not None
    assert batch.step_reward is not None
    source = generator(0, "moments", 5, 2)
    w = torch.randn(2, 5, generator=source, dtype=torch.float64)
    b = 2 * math.pi * torch.rand(5, generator=source, dtype=torch.float64)
    flat = seen.flatten(0, 1)
    xi = torch.cos((seen - flat.mean(0)) / flat.std(0, correction=0) @ w + b)
    xi = torch.cat([torch.ones(4, 6, 1).double(), xi], -1)
    values = made.evaluate(batch, value=True).value
    assert values is not None
    after = torch.cat([values[:, 1:], batch.bootstrap_value[:, -1:]], 1)
    delta = batch.step_reward + math.exp(-BETA * DT) * after - values
    halves = [(xi[rows] * delta[rows].unsqueeze(-1)).mean((0, 1)) for rows in ([0, 2], [1, 3])]
    theirs = torch.autograd.grad(0.5 * halves[0] @ halves[1], own)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)
    turned = batch.select([3, 1, 0, 2])
    again = torch.autograd.grad(term(made.evaluate(turned, value=True), turned), own)
    for a, b in zip(ours, again, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dt", [1e-30, 1e30])
def test_rates_of_any_step_that_is_accepted_are_numbers(dt: float) -> None:
    """In float32, in which controllers are trained: whitening makes zeros of infinite ones."""
    batch = windows()
    batch = batch.replace(**{name: getattr(batch, name).float() for name in ("step_reward", "value", "bootstrap_value")})
    rate = CTD0(dt).advantage(GAE(normalize=False))(batch)
    assert rate.isfinite().all()
    assert rate.all()


def test_values_after_are_those_of_the_advantage() -> None:
    """delta of generalised advantage with lambda 0, over rows with gaps, ends and cuts."""
    source = generator(1, "after")
    shape = (5, 9)
    value, boot, reward = (torch.randn(shape, generator=source).double() for _ in range(3))
    mask = torch.rand(shape, generator=source) < 0.7
    end, cut = torch.rand(shape, generator=source) < 0.2, torch.rand(shape, generator=source) < 0.2
    ends = {"terminated": end, "truncated": cut & ~end, "bootstrap_value": boot}
    delta = torch.where(mask, reward + 0.9 * values_after(value, mask, **ends) - value, 0)
    torch.testing.assert_close(delta, generalized_advantage(reward, value, mask, 0.9, 0.0, **ends))


# ---------------------------------------------------------------------------------------------------------------------------- laws

VARIANTS: dict[str, Algorithm] = {f"ppo {name}": PPO(critic=critic) for name, critic in ALL.items()}
VARIANTS |= {"a2c ctd_lambda": A2C(critic=ALL["ctd_lambda"]), "a2c mstde": A2C(critic=ALL["mstde"])}
VARIANTS |= {f"{a.name} {k}": a(critic=ALL[k]) for a in (SAC, DQN) for k in ("ctd0", "mstde")}


@pytest.mark.parametrize("law", ["split", "silence", "exactness", "agreement", "emptiness", "second_opinion"])
@pytest.mark.parametrize("name", VARIANTS)
def test_law(name: str, law: str) -> None:
    LAWS[law](VARIANTS[name])


# ---------------------------------------------------------------------------------------------------------------------------- runs


def run(
    algorithm: Algorithm, folder: Path, *, id: str = "Pendulum-v1", dt: float | None = None, iterations: int = 3
) -> dict[str, torch.Tensor]:
    wrappers = [] if dt is None else [{"path": "unipg.environments.timed.TimeStep", "dt": dt}]
    environments = EnvironmentRecipe(id, 4, 20, {"max_episode_steps": 30}, wrappers=wrappers, evaluation_episodes=2).build(0)
    made = ActorCriticRecipe(hidden=[8]).build(environments.observation_space, environments.action_space, 0, wanted=wanted_of(algorithm))
    minibatches = 1 if algorithm.replays else 2
    training = TrainingRecipe(iterations=iterations, save_every=1, minibatches=minibatches)
    Trainer(algorithm, made, environments, folder=folder, training=training, optimizer=OptimizerRecipe(learning_rate=1e-3), seed=0).train()
    return {name: tensor.clone() for name, tensor in made.module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_of_1_is_the_discrete_critic_to_the_bit(tmp_path: Path) -> None:
    """CTD(lambda) with the algorithm's own discount and lambda per step: a run of PPO."""
    plain = run(PPO(gamma=0.9, lam=0.8), tmp_path / "plain")
    timed = run(PPO(gamma=0.9, critic=CTDLambda(lam=0.8, trace=0.8)), tmp_path / "timed")
    assert same(plain, timed)
    assert not same(plain, run(PPO(gamma=0.9, critic=Martingale(trace=0.8)), tmp_path / "other"))


def test_ctd0_of_actions_is_the_discount_of_its_rate_to_the_bit(tmp_path: Path) -> None:
    beta = -math.log(0.9) / 0.05
    plain = run(DQN(discount=math.exp(-beta * 0.05), n_step=2), tmp_path / "plain", id="CartPole-v1")
    assert same(plain, run(DQN(n_step=2, critic=CTD0(0.05, beta)), tmp_path / "timed", id="CartPole-v1"))


@pytest.mark.parametrize(
    "algorithm", [PPO(critic=ALL["gmm"]), A2C(critic=ALL["mstde"]), SAC(critic=MSTDE(0.05, 2.0))], ids=lambda a: a.name
)
def test_every_kind_trains_and_tells_its_increments(algorithm: Algorithm, tmp_path: Path) -> None:
    run(algorithm, tmp_path / "run", dt=0.1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    if not algorithm.replays:
        assert all(row["critic/variation"] >= 0 and math.isfinite(row["critic/drift"]) for row in rows if "return/episodes" in row)


def test_increments_are_told_by_their_drift_and_variation() -> None:
    batch = windows()
    assert batch.value is not None
    delta = paths_of(batch).increments(closed(batch.value))
    found = ALL["ctd0"].metrics(batch, 0.99)
    assert found["critic/drift"] == pytest.approx(float(delta.mean()) / DT)
    assert found["critic/variation"] == pytest.approx(float((delta**2).mean()) / DT)


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "pendulum-ppo-martingale.yaml"
    small = [
        "environment.count=4",
        "environment.steps=16",
        "environment.evaluation_episodes=1",
        "training.minibatches=2",
        "training.epochs=2",
    ]
    small += ["training.save_every=1", "training.evaluate_every=0"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", str(recipe), *small, "training.iterations=4", f"output={whole}"]) == 0
    assert main(["train", str(recipe), *small, "training.iterations=2", f"output={cut}"]) == 0
    assert main(["train", str(recipe), *small, "training.iterations=4", f"output={cut}", "--resume"]) == 0
    assert (whole / "model" / "model.safetensors").read_bytes() == (cut / "model" / "model.safetensors").read_bytes()


# --------------------------------------------------------------------------------------------------------------------------- steps


def test_a_step_of_other_length_is_the_same_physics() -> None:
    """Ten steps of 0.01 are nearly two of 0.05, and earn as much over the same time."""
    ends = []
    for dt in (0.05, 0.01):
        env = TimeStep(gymnasium.make("Pendulum-v1"), dt)
        env.reset(seed=0)
        env.unwrapped.state = torch.tensor([1.0, 0.0]).numpy()  # type: ignore[attr-defined]
        earned = sum(float(env.step(torch.zeros(1).numpy())[1]) for _ in range(round(0.1 / dt)))
        ends.append((env.unwrapped.state, earned))  # type: ignore[attr-defined]
    assert ends[0][0] == pytest.approx(ends[1][0], abs=0.1)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=0.05)


@pytest.mark.parametrize("path", ["unipg.environments.timed.TimeStep", "unipg.environments.timed:TimeStep"])
def test_another_step_than_the_environments_is_told(path: str, tmp_path: Path) -> None:
    recipe = str(Path(__file__).parents[2] / "recipes" / "pendulum-ppo-martingale.yaml")

    def train(dt: float) -> None:
        small = ["environment.count=1", "environment.steps=8", "environment.evaluation_episodes=1", "training.iterations=1"]
        small += [f"environment.wrappers=[{{path: '{path}', dt: 0.1}}, {{path: '{path}', dt: 0.01}}]", "training.minibatches=1"]
        critic = f"algorithm.critic={{kind: ctd_lambda, dt: {dt}}}"
        assert main(["train", recipe, *small, critic, f"output={tmp_path / str(dt)}"]) == 0

    said = r"^algorithm\.critic\.dt is 0\.05, but environment\.wrappers\[1\], TimeStep, makes steps of dt 0\.01: in one unit of time"
    with pytest.warns(UserWarning, match=said):
        train(0.05)
    for dt in (0.01, 1.0):  # equal; and the step itself as the unit
        train(dt)


@pytest.mark.parametrize(
    ("id", "dt", "message"), [("Pendulum-v1", 0.0, "TimeStep.dt is 0.0"), ("MountainCar-v0", 0.1, "no time step that can be set")]
)
def test_a_step_that_cannot_be_set_is_one_line(id: str, dt: float, message: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        TimeStep(gymnasium.make(id), dt)
    assert message in str(error.value)


# ----------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "critic", "message"),
    [
        ("ppo", {"kind": "martingale", "dt": 0}, "algorithm.critic.dt is 0"),
        ("ppo", {"kind": "ctd_lambda", "dt": 1e-320}, "algorithm.critic.dt is 1e-320; accepted: a time from 1e-30 to 1e+30"),
        ("sac", {"kind": "ctd0", "dt": 1e39}, "algorithm.critic.dt is 1e+39"),
        ("ppo", {"kind": "martingale", "beta": -1}, "algorithm.critic.beta is -1"),
        ("ppo", {"kind": "ctd_lambda", "lam": 0}, "algorithm.critic.lam is 0"),
        ("ppo", {"kind": "ctd_lambda", "lam": 1.1}, "algorithm.critic.lam is 1.1"),
        ("a2c", {"kind": "ctd0", "trace": -0.1}, "algorithm.critic.trace is -0.1"),
        ("ppo", {"kind": "gmm", "tests": 0}, "algorithm.critic.tests is 0"),
        ("ppo", {"kind": "gmm", "weighting": "other"}, "weighting"),
    ],
)
def test_settings_out_of_range_are_one_line(name: str, critic: Any, message: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        build_algorithm({"name": name, "critic": critic})
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["martingale", "ctd_lambda", "gmm"])
@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_what_needs_paths_cannot_judge_kept_transitions(algorithm: Any, kind: str) -> None:
    with pytest.raises(InputError, match=rf"'{kind}', which judges states, but '.*' has a critic of actions; accepted: squared"):
        algorithm(critic=ALL[kind]).networks(True)


@pytest.mark.parametrize("kind", ["mstde", "gmm"])
def test_increments_have_nothing_to_clip_to(kind: str) -> None:
    with pytest.raises(InputError, match=r"algorithm\.value_clip is given, but .* accepted: null"):
        PPO(value_clip=0.2, critic=ALL[kind]).learned(Setting(acts=True))


def test_moments_need_two_rows() -> None:
    batch = windows(1)
    with pytest.raises(InputError, match="one row alone has steps; accepted: 2 rows or more"):
        ALL["gmm"].state_loss(GAE())(policy().evaluate(batch, value=True), batch)


def test_a_squared_td_error_reads_the_network_itself() -> None:
    """No gradient would go through the value of a copy."""
    assert MSTDE().target_value("q_lagged") == Value("q")
    assert Squared().target_value("q_lagged") == Value("q_lagged")
    assert MSTDE(0.1, 2.0).regression("q", Bootstrapped(Value("q"), 0.99)).target.discount == math.exp(-0.2)
