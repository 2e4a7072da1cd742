"""What a policy would earn, from data of others alone."""

from pathlib import Path

import numpy as np
import pytest

from unipg.cli import main
from unipg.errors import InputError
from unipg.front import train
from unipg.policies.actor_critic import ActorCritic
from unipg.replay import Transitions
from unipg.training.estimates import _Episodes, estimate_return, importance_estimates

BEST = 0.5


def bandit(rows: int = 512) -> Transitions:
    """Uniform actions; one step an episode."""
    action = np.random.default_rng(0).uniform(-1, 1, (rows, 1)).astype(np.float32)
    state = np.ones((rows, 1), np.float32)
    reward = -((action[:, 0] - BEST) ** 2)
    ended = np.ones(rows, bool)
    given = {"observation": state, "next_observation": state, "action": action, "reward": reward, "terminated": ended}
    return Transitions.of(given, {"environment": {"id": "unipg.environments:unipg/Bandit-v0"}})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Controllers of the bandit that have hardly learned."""
    folder = tmp_path_factory.mktemp("runs")
    bandit().save(folder / "data")
    found = {"data": str(folder / "data")}
    for name, algorithm in (("drawn", "bc"), ("deterministic", "td3_bc")):
        train(
            algorithm,
            environment={"id": "unipg.environments:unipg/Bandit-v0", "evaluation_episodes": 1},
            dataset={"path": found["data"], "batch": 16, "updates": 4},
            controller={"hidden": [16]},
            training={"iterations": 1, "evaluate_every": 0},
            output=str(folder / name),
            threads=1,
        )
        found[name] = str(folder / name)
    return found


def three_episodes() -> _Episodes:
    state = np.zeros((5, 1), np.float32)
    given = {
        "observation": state,
        "next_observation": state,
        "action": np.zeros((5, 1), np.float32),
        "reward": np.array([1, 2, 3, 4, 5], np.float32),
        "terminated": np.array([False, True, True, False, True]),
        "episode": np.array([0, 0, 1, 2, 2]),
    }
    return _Episodes(Transitions.of(given))


def test_importance_sampling_by_hand() -> None:
    """Episodes of rewards (1, 2), (3) and (4, 5) with ratios (½, 4), (2) and (1, ½); discount ½."""
    episodes = three_episodes()
    assert episodes.returns(0.5).tolist() == [2, 3, 6.5]
    ratio = np.array([0.5, 4.0, 2.0, 1.0, 0.5])
    nothing = np.zeros(5)
    found = {each.estimator: each for each in importance_estimates(episodes, np.log(ratio), 0.5, nothing, nothing, 0)}
    whole = (2.0 * 2 + 2.0 * 3 + 0.5 * 6.5) / 3
    decision = (0.5 * 1 + 0.5 * 2.0 * 2 + 2 * 3 + 1 * 4 + 0.5 * 0.5 * 5) / 3
    weighted = (0.5 * 1 + 2 * 3 + 1 * 4) / 3.5 + 0.5 * (2.0 * 2 + 0.5 * 5) / 4.5
    assert found["importance sampling"].interval.value == pytest.approx(whole)
    assert found["per decision"].interval.value == pytest.approx(decision)
    assert found["weighted, per decision"].interval.value == pytest.approx(weighted)
    assert found["doubly robust"].interval.value == pytest.approx(decision)  # Q and V are 0
    assert found["per decision"].effective == pytest.approx(4.5**2 / (4 + 4 + 0.25))


def test_doubly_robust_needs_no_ratios_where_q_is_right() -> None:
    """With ratios of 1 and the data's own values every correction is 0: the mean of V at the starts."""
    episodes = three_episodes()
    value = np.array([2.0, 2.0, 3.0, 6.5, 5.0])  # of each row, discount ½
    found = {each.estimator: each for each in importance_estimates(episodes, np.zeros(5), 0.5, value, value, 0)}
    assert found["doubly robust"].interval.value == pytest.approx((2 + 3 + 6.5) / 3)


@pytest.mark.parametrize("name", ["drawn", "deterministic"])
def test_fitted_q_finds_what_the_policy_earns(runs: dict[str, str], name: str) -> None:
    """One step an episode: −(a − ½)² of the policy's most likely action."""
    policy = ActorCritic.load(Path(runs[name]) / "model")
    one = np.ones((1, 1), np.float32)
    action = float(policy.environment_action(policy.actor()(one, None))[0, 0])
    found = {each.estimator: each for each in estimate_return(runs[name], runs["data"], updates=1500, threads=1)}
    assert found["fitted Q"].interval.value == pytest.approx(-((action - BEST) ** 2), abs=0.03)
    assert found["data"].interval.value == pytest.approx(float(bandit().column("reward").mean()))


def test_the_policy_itself_stays_as_it_is(runs: dict[str, str]) -> None:
    before = (Path(runs["drawn"]) / "model" / "model.safetensors").read_bytes()
    estimate_return(runs["drawn"], bandit(), updates=10, threads=1)
    assert (Path(runs["drawn"]) / "model" / "model.safetensors").read_bytes() == before


def test_a_policy_beside_itself_has_weights_of_one(runs: dict[str, str]) -> None:
    found = {
        each.estimator: each
        for each in estimate_return(runs["drawn"], runs["data"], updates=10, draws=True, behaviour=runs["drawn"], threads=1)
    }
    mean = found["data"].interval.value
    for estimator in ("importance sampling", "per decision", "weighted, per decision"):
        assert found[estimator].interval.value == pytest.approx(mean)
    assert found["per decision"].effective == pytest.approx(512)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"discount": 1.0}, "discount is 1.0"),
        ({"updates": 3}, "updates is 3"),
        ({"behaviour": "drawn"}, "draws its actions"),
        ({"behaviour": "deterministic", "draws": True}, "probabilities of both"),
    ],
)
def test_what_cannot_be_estimated_is_refused(runs: dict[str, str], settings: dict, told: str) -> None:
    if "behaviour" in settings:
        settings = settings | {"behaviour": runs[settings["behaviour"]]}
    with pytest.raises(InputError, match=told):
        estimate_return(runs["drawn"], runs["data"], **settings)


def test_what_has_not_settled_is_told(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "estimate", runs["drawn"], "--data", runs["data"], "--updates", "40", "--threads", "1"]) == 0
    assert "has not settled" in capsys.readouterr().out


def test_the_command_prints_a_table(runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "estimate", runs["drawn"], "--data", runs["data"], "--updates", "10", "--threads", "1"]
    assert main([*command, "--json", str(tmp_path / "found.json")]) == 0
    assert "fitted Q" in capsys.readouterr().out
    assert '"fitted Q"' in (tmp_path / "found.json").read_text()
    assert main([*command, "--behaviour", "nowhere"]) == 2
