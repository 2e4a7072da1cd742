"""Policies and critics of their own for each step of an episode, beside their parts one by one."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from unipg import InputError
from unipg.critics import ValuesByStep
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe, Wanted
from unipg.policies.export import export

STEPS = 3
WANTED = Wanted("mine", ("spread",), critic=False, steps=STEPS, networks=lambda counted: {"q": ValuesByStep(STEPS, (5,))})


def made(seed: int = 0, **recipe) -> ActorCritic:
    built = ActorCriticRecipe(hidden=[4], **recipe).build(spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (2,)), seed, wanted=WANTED)
    with torch.no_grad():
        for parameter in built.module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return built


def observations(step: list[float]) -> torch.Tensor:
    seen = torch.randn(len(step), 3, generator=torch.Generator().manual_seed(1))
    seen[:, -1] = torch.tensor(step)
    return seen


@pytest.mark.parametrize(
    "step", [[2, 0, 1, 1, 0, 2, 2], [1, 1, 1], [], [3, 0, float("nan"), 7, -1]], ids=["mixed", "one", "none", "no steps"]
)
def test_each_row_is_of_the_network_of_its_step(step: list[float]) -> None:
    """Of what is observed after the last step its network is asked; of what is no number, some network."""
    policy, seen = made(), observations(step)
    own = [min(max(0 if s != s else int(s), 0), STEPS - 1) for s in step]
    found = policy.network("actor")(seen)
    assert found.shape == (len(step), 4)
    for row, h in enumerate(own):
        network = policy.network(f"actor_{h}")
        expected = torch.cat([network.network(seen[row : row + 1, :-1])[0], network.log_std])
        torch.testing.assert_close(found[row], expected)
    action = torch.randn(len(step), 2, generator=torch.Generator().manual_seed(2))
    q = policy.network("q")(seen, action)
    assert q.shape == (1, len(step), 1)
    for row, h in enumerate(own):
        torch.testing.assert_close(q[0, row], policy.network(f"q_{h}")(torch.cat([seen[row, :-1], action[row]])[None])[0, 0])


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("step", [[2, 0, 1, 1, 0, 2, 2], [1, 1, 1], [3, 0]])
def test_on_the_host_as_in_torch(step: list[float], live: bool) -> None:
    policy, seen = made(), observations(step)
    noise = np.random.default_rng(0).standard_normal((len(step), 2)).astype(np.float32)
    output = policy.network("actor")(seen).detach()
    expected, _ = policy.actions.fresh(output, torch.from_numpy(noise))
    np.testing.assert_allclose(policy.actor(live=live)(seen.numpy(), noise), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(policy.actor(live=live)(seen.numpy(), None), output[:, :2], rtol=1e-5, atol=1e-6)


def test_every_step_has_networks_with_names_and_weights_of_their_own() -> None:
    policy = made()
    assert list(policy.networks) == ["actor_0", "actor_1", "actor_2", "q_0", "q_1", "q_2"]
    held = [id(p) for parameters in policy.networks.values() for p in parameters]
    assert sorted(held) == sorted({id(p) for p in policy.module.parameters()})
    first = policy.version("actor")
    with torch.no_grad():
        for parameter in policy.networks["actor_2"]:
            parameter.add_(1)
    assert policy.version("actor") == first + 1
    assert any((a != b).any() for a, b in zip(policy.networks["actor_0"], policy.networks["actor_1"], strict=True))


def test_it_is_saved_and_read_again(tmp_path) -> None:
    policy, seen = made(), observations([0, 1, 2, 2])
    policy.save(tmp_path / "model")
    policy.save_critic(tmp_path / "critic")
    again = ActorCritic.load(tmp_path / "model", {"q": ValuesByStep(STEPS, (5,))})
    again.load_critic(tmp_path / "critic")
    assert again.steps == STEPS
    assert torch.equal(policy.network("actor")(seen), again.network("actor")(seen))
    assert torch.equal(policy.network("q")(seen, seen[:, :2]), again.network("q")(seen, seen[:, :2]))


def test_what_cannot_be_by_step() -> None:
    with pytest.raises(InputError, match=r"a controller of its own for each step reads vectors as they are"):
        made(normalize_observations=True)
    with pytest.raises(InputError, match=r"the environment's actions are Discrete\(3\); accepted for algorithm 'mine'"):
        ActorCriticRecipe().build(spaces.Box(-9, 9, (3,)), spaces.Discrete(3), 0, wanted=WANTED)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # which is what was asked for
@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_exported_it_acts_by_the_step(format: str, tmp_path) -> None:
    policy, path = made(), tmp_path / "actor"
    export(policy, path, format)
    for step in ([2, 0, 1, 1, 0, 2, 2], [1, 1, 1], [3, 0]):
        seen = observations(step)
        if format == "onnx":
            (found,) = pytest.importorskip("onnxruntime").InferenceSession(path).run(["action"], {"observation": seen.numpy()})
        else:
            found = torch.jit.load(path)(seen).numpy()
        expected = policy.environment_action(policy.actor()(seen.numpy(), None))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
