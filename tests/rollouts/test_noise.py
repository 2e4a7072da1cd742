"""Noise around environments: on forces and rewards, by the environment's own seed, and without it on rewards in evaluations."""

import gymnasium
import numpy as np
import pytest

from unipg.environments.noise import NoisyForce, NoisyReward, ScaledReward
from unipg.errors import InputError
from unipg.rollouts.wrappers import show_own_rewards


@pytest.mark.parametrize(("released", "mean"), [(False, 1.0), (True, 2.0)])
def test_a_cart_is_pushed_with_a_force_that_varies_around_its_own(released: bool, mean: float) -> None:
    """Pushed from rest, a cart's speed is the force's, up to a factor that is the same for all."""
    environment = NoisyForce(gymnasium.make("CartPole-v1"), released=released)
    environment.reset(seed=0)
    world = environment.unwrapped
    speeds = []
    for push in (False, True):
        for _ in range(400):
            environment.env.reset()
            world.state = np.zeros(4)  # type: ignore[attr-defined]
            after = (environment if push else environment.env).step(1)[0]
            speeds.append(float(after[1]))
    plain, noisy = speeds[0], np.array(speeds[400:]) / speeds[0]
    assert plain > 0
    assert world.force_mag == 10.0  # type: ignore[attr-defined]
    assert noisy.min() >= mean - 0.3 - 1e-6
    assert noisy.max() <= mean + 0.3 + 1e-6
    assert noisy.mean() == pytest.approx(mean, abs=0.03)
    assert noisy.std() == pytest.approx(0.6 / 12**0.5, abs=0.02)


def test_real_actions_are_multiplied() -> None:
    plain, noisy = gymnasium.make("Pendulum-v1"), NoisyForce(gymnasium.make("Pendulum-v1"), 0.5, 0.5)
    plain.reset(seed=1), noisy.reset(seed=1)
    assert np.array_equal(plain.step(np.array([0.5], np.float32))[0], noisy.step(np.array([1.0], np.float32))[0])


def test_rewards_are_noisy_by_the_environments_seed_and_not_in_evaluations() -> None:
    def rewards(shown: bool) -> list[float]:
        environment = NoisyReward(ScaledReward(gymnasium.make("CartPole-v1"), 0.1))
        if shown:
            show_own_rewards(environment)
        environment.reset(seed=3)
        return [float(environment.step(n % 2)[1]) for n in range(8)]

    first = rewards(False)
    assert len(set(first)) == 8
    assert rewards(False) == first
    assert rewards(True) == [1.0] * 8


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda e: NoisyForce(e, 2.0, 1.0), "accepted: 0 <= low <= high"),
        (lambda e: NoisyReward(e, -1.0), "accepted: scale >= 0"),
        (lambda e: ScaledReward(e, 0.0), "accepted: a finite number above 0"),
        (lambda e: NoisyForce(gymnasium.make("Acrobot-v1")), "knows no force of .* accepted: CartPole, MountainCar"),
    ],
)
def test_bad_input_is_one_line(wrap, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrap(gymnasium.make("CartPole-v1"))
