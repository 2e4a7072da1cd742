"""`unipg diff` on controllers: where two algorithms must agree, by how much they must differ, and what is not compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unipg.algorithms import A2C, DDPG, DQN, HNPG, MDPO, PPO, SAC, TD3, TRPO, OffPolicyMDPO, PolychromicPPO
from unipg.cli import main
from unipg.lab import diff_control
from unipg.lab.diff import recipe_of
from unipg.lab.diff_control import on_environments
from unipg.training.run import build

RECIPE = """\
algorithm: {name}
threads: 1
environment: {{id: {environment}, count: 4, steps: 32, vectorized: false}}
controller: {{hidden: [16, 16]}}
"""


@pytest.fixture
def compare(tmp_path: Path):
    def compare(first, second):
        counted = any(isinstance(each, DQN | PPO) for each in (first, second))
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.format(name=first.name, environment="CartPole-v1" if counted else "Pendulum-v1"), encoding="utf-8")
        return on_environments(recipe_of(str(path), first, second, []), first, second, 0)

    return compare


def groups(found) -> dict[str, tuple[float, float]]:
    return {group.name: (group.cosine, group.norm_ratio) for group in (found.total, *found.groups)}


def same(found, *names: str) -> None:
    for name in names:
        assert groups(found)[name] == pytest.approx((1.0, 1.0), abs=1e-6)


@pytest.mark.parametrize("algorithm", [SAC(), TD3(), DQN(), OffPolicyMDPO(), PPO(), A2C(), TRPO(), MDPO()], ids=lambda a: a.name)
def test_an_algorithm_does_not_differ_from_itself(algorithm, compare) -> None:
    found = compare(algorithm, algorithm)
    trained = {name for learner in algorithm.learned(_setting(algorithm)) for name in learner.trains} or {"actor", "critic"}
    assert trained <= groups(found).keys()
    same(found, *trained)
    assert found.rows == []
    assert {part["same"] for part in found.parts} == {"yes"}


def test_sets_of_vines_are_compared_with_gae_on_the_same_vines(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(name="polychromic_ppo", environment="unipg.environments:unipg/FourRooms-v0"), encoding="utf-8")
    first, second = PolychromicPPO(kl=0.0), PPO()
    found = on_environments(recipe_of(str(path), first, second, []), first, second, 0)
    assert found.batch["episodes"] == 4 * (1 + 2 * 8)
    assert groups(found)["actor"][0] < 0.999
    itself = on_environments(recipe_of(str(path), first, first, []), first, first, 0)
    same(itself, "actor", "critic")


def _setting(algorithm):
    from unipg.algorithms.base import Setting

    return Setting(1, counted=isinstance(algorithm, DQN), actions=1, acts=True)


def test_a_factor_on_the_critics_loss_is_the_ratio_of_its_gradients(compare) -> None:
    """PPO halves the value loss, TRPO does not: with one GAE the ratio is 2, whatever the critic."""
    found = compare(PPO(gamma=0.99, lam=0.97), TRPO(gamma=0.99, lam=0.97))
    assert groups(found)["critic"] == pytest.approx((1.0, 2.0), abs=1e-5)
    assert groups(found)["actor"][0] == pytest.approx(1.0, abs=1e-5)
    assert any("Natural" in note for note in found.notes)


def test_mirror_descent_has_the_targets_and_the_critics_step_of_sac(compare) -> None:
    """One temperature: one soft target, though the policies are stepped differently."""
    found = compare(SAC(temperature=0.2), OffPolicyMDPO(temperature=0.2, kl=1.0))
    same(found, "q")
    assert found.rows == []
    assert groups(found)["actor"][0] < 0.999


def test_with_kl_and_temperature_alike_mirror_descent_is_soft_actor_critic_of_one_critic(compare) -> None:
    found = compare(SAC(temperature=0.3, critics=1), OffPolicyMDPO(temperature=0.3, kl=0.3, critics=1))
    same(found, "q", "actor")


def test_the_first_critic_drives_td3_and_ddpg_alike(compare) -> None:
    found = compare(TD3(), DDPG())
    same(found, "actor")
    assert found.notes == ["members of 'q': 2 in td3, 1 in ddpg; the first 1 are compared"]


def test_targets_of_single_steps_are_those_of_the_formula(compare) -> None:
    """Without smoothing, and with one lagged critic, TD3 and DDPG aim at one thing; with smoothing every target moves a little."""
    assert compare(TD3(smoothing=None, critics=1), DDPG()).rows == []
    rows = compare(TD3(critics=1), DDPG()).rows
    assert rows
    assert all(abs(row.first - row.second) < 1 for row in rows)
    shares = [row.share for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_what_acts_differently_is_one_line(compare) -> None:
    found = compare(SAC(), TD3())
    assert "actor" not in groups(found)
    assert "q" in groups(found)
    assert found.notes == [
        "'actor' is not compared: it gives squashed actions in sac and deterministic ones in td3; both begin with the same most likely "
        "action",
        "'temperature' is trained by sac alone",
    ]


def test_both_controllers_begin_with_the_same_most_likely_action(compare, tmp_path) -> None:
    """The mean's rows of SAC's last layer are TD3's."""
    first, second = SAC(), TD3()
    (tmp_path / "r.yaml").write_text(RECIPE.format(name="sac", environment="Pendulum-v1"), encoding="utf-8")
    loaded = recipe_of(str(tmp_path / "r.yaml"), first, second, [])
    policy, experience = build(loaded, first, torch.device("cpu"))
    other = diff_control._beside(loaded, policy, experience, first, second)
    seen = torch.randn(20, 3).numpy()
    torch.testing.assert_close(torch.tensor(policy.actor()(seen, None)), torch.tensor(other.actor()(seen, None)))


def test_kept_and_fresh_rows_are_not_compared(compare) -> None:
    found = compare(SAC(), PPO())
    assert found.groups == found.rows == []
    assert found.notes == ["sac learns from kept transitions and ppo from each batch once: only parts are compared"]
    assert any(part["same"] == "no" for part in found.parts)


def test_policies_by_step_have_rows_of_their_own(compare) -> None:
    found = compare(TRPO(), HNPG(hybrid=False, horizon=200))
    assert found.groups == found.rows == []
    assert found.notes == ["hnpg has a policy for each step of an episode, and rows of its own for each: only parts are compared"]


def test_double_q_learning_differs_only_once_the_copy_lags(compare) -> None:
    """While the copy is the network itself, both choose the same action and value it alike."""
    same(compare(DQN(), DQN(double=True)), "q")


@pytest.mark.parametrize(("second", "said"), [("td3", "norm ratio"), ("ppo", "only parts are compared")])
def test_the_command_on_a_trained_run(second: str, said: str, tmp_path: Path, capsys) -> None:
    """The run folder's critics are compared, not new ones."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        RECIPE.format(name="sac", environment="Pendulum-v1") + "replay: {warmup: 32, batch: 16}\ntraining: {iterations: 1}\n"
        f"output: {tmp_path / 'run'}\n",
        encoding="utf-8",
    )
    assert main(["train", str(recipe)]) == 0
    capsys.readouterr()
    assert main(["diff", "sac", second, "--on", str(tmp_path / "run"), "--output", str(tmp_path / "d.html")]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    kept = load_file(tmp_path / "run" / "critic" / "networks.safetensors")
    made, _ = build(recipe_of(str(tmp_path / "run"), SAC(), SAC(), []), SAC(), torch.device("cpu"))
    assert all(torch.equal(kept[name], tensor) for name, tensor in made.module.state_dict().items() if name in kept)
    numbers = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert numbers["notes"]
    assert numbers["notes"][-1] in (tmp_path / "d.html").read_text(encoding="utf-8").replace("&#x27;", "'")
    assert main(["diff", "sac", "grpo", "--on", str(recipe)]) == 2
    assert "grpo" in capsys.readouterr().err


def test_the_recipes_own_settings_count(tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = RECIPE.format(name="ppo", environment="CartPole-v1").replace("algorithm: ppo", "algorithm: {name: ppo, gamma: 0.97}")
    recipe.write_text(text, encoding="utf-8")
    assert main(["diff", "ppo", "a2c", "--on", str(recipe), "--output", str(tmp_path / "d.html")]) == 0
    capsys.readouterr()
    parts = {part["part"]: part for part in json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["parts"]}
    assert "gamma=0.97" in parts["advantage"]["first"]
    assert "gamma=0.97" not in parts["advantage"]["second"]
