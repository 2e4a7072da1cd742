"""Control policies: likelihoods against torch.distributions, silence of masked steps, acting, saving."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Independent, Normal

from unipg.errors import InputError
from unipg.policies.actions import BoxActions, DiscreteActions
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.spaces import described
from unipg.seeding import generator
from unipg.trajectories import Trajectories

ROWS, STEPS = 3, 5
DISCRETE = DiscreteActions(4)
BOX = BoxActions((2, 1), (-1.0, -math.inf), (1.0, math.inf))


def policy_of(actions: DiscreteActions | BoxActions, **settings: object) -> ActorCritic:
    """With weights far from the initial, nearly uniform ones."""
    policy = ActorCritic((3,), actions, hidden=(8, 8), **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(1, "weights", parameter.numel())))
    return policy


def batch_of(actions: DiscreteActions | BoxActions, mask: torch.Tensor | None = None) -> Trajectories:
    source = generator(0, "batch")
    observation = torch.randn(ROWS, STEPS, 3, generator=source)
    if isinstance(actions, DiscreteActions):
        action = torch.randint(actions.n, (ROWS, STEPS), generator=source)
    else:
        action = torch.randn(ROWS, STEPS, actions.outputs, generator=source)
    return Trajectories(action=action, mask=torch.ones(ROWS, STEPS) if mask is None else mask, observation=observation)


def distribution(policy: ActorCritic, observation: torch.Tensor) -> torch.distributions.Distribution:
    output = policy.module.actor(observation)
    if isinstance(policy.actions, DiscreteActions):
        return Categorical(logits=output)
    assert policy.module.log_std is not None
    return Independent(Normal(output, policy.module.log_std.exp()), 1)


@pytest.mark.parametrize("actions", [DISCRETE, BOX])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_log_prob_and_entropy_are_those_of_the_distribution(actions: DiscreteActions | BoxActions, activation: str) -> None:
    policy, batch = policy_of(actions, activation=activation, log_std=-0.3), batch_of(actions)
    now = policy.evaluate(batch, entropy=True, value=True)
    assert batch.observation is not None
    expected = distribution(policy, batch.observation)
    torch.testing.assert_close(now.log_prob, expected.log_prob(batch.action))
    torch.testing.assert_close(now.entropy, expected.entropy())
    torch.testing.assert_close(now.value, policy.module.critic(batch.observation).squeeze(-1))
    only = policy.evaluate(batch)
    assert only.entropy is None
    assert only.value is None


@pytest.mark.parametrize("actions", [DISCRETE, BOX])
def test_what_stands_at_masked_steps_changes_neither_values_nor_gradients(actions: DiscreteActions | BoxActions) -> None:
    policy = policy_of(actions)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    clean = batch_of(actions, mask)
    assert clean.observation is not None
    observation = torch.where(mask.unsqueeze(-1), clean.observation, math.nan)
    action = torch.where(mask, clean.action, -7) if clean.action.ndim == 2 else torch.where(mask.unsqueeze(-1), clean.action, math.nan)
    spoilt = clean.replace(observation=observation, action=action)
    kept = clean.as_steps()

    def gradients(batch: Trajectories) -> tuple[torch.Tensor, list[torch.Tensor]]:
        now = policy.evaluate(batch, entropy=True, value=True)
        assert now.entropy is not None
        assert now.value is not None
        everything = torch.stack([now.log_prob, now.entropy, now.value])
        return everything, list(torch.autograd.grad(everything.square().sum(), list(policy.module.parameters())))

    values, gradient = gradients(spoilt)
    assert (values[:, ~mask] == 0).all()
    alone, gradient_alone = gradients(kept)
    torch.testing.assert_close(values[:, mask], alone.squeeze(-1))
    for one, other in zip(gradient, gradient_alone, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_a_batch_without_steps_has_a_usable_graph(shape: tuple[int, int]) -> None:
    empty = Trajectories(action=torch.zeros(shape, dtype=torch.int64), mask=torch.zeros(shape), observation=torch.zeros(*shape, 3))
    now = policy_of(DISCRETE).evaluate(empty, entropy=True, value=True)
    assert now.log_prob.shape == shape
    now.log_prob.sum().backward()


def test_the_evaluation_follows_the_parameters_precision() -> None:
    policy = policy_of(DISCRETE)
    policy.module.double()
    assert policy.evaluate(batch_of(DISCRETE), value=True).log_prob.dtype == torch.float64


@pytest.mark.parametrize("actions", [DISCRETE, BOX])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_actor_on_the_host_is_the_network(actions: DiscreteActions | BoxActions, activation: str) -> None:
    policy = policy_of(actions, activation=activation)
    observation = torch.randn(50, 3, generator=generator(3))
    expected = distribution(policy, observation)
    greedy = policy.actor()(observation.numpy(), None)
    torch.testing.assert_close(torch.from_numpy(greedy), expected.mode)
    noise = policy.noise(2, 50, generator(4))
    assert noise.shape == (2, 50, actions.outputs)
    drawn = torch.from_numpy(policy.actor()(observation.numpy(), noise[1]))
    if isinstance(expected, Categorical):
        assert torch.equal(drawn, (expected.logits + torch.from_numpy(noise[1])).argmax(-1))
    else:
        torch.testing.assert_close((drawn - expected.mean) / expected.stddev, torch.from_numpy(noise[1]))


def test_the_actor_is_a_snapshot() -> None:
    policy = policy_of(BOX)
    observation, noise = np.ones((4, 3), np.float32), policy.noise(1, 4, generator(0))[0]
    actor = policy.actor()
    before = actor(observation, noise)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.add_(1.0)
    assert np.array_equal(actor(observation, noise), before)
    assert not np.array_equal(policy.actor()(observation, noise), before)


def test_discrete_draws_have_the_softmax_frequencies() -> None:
    draws = 40_000
    policy = policy_of(DISCRETE)
    observation = torch.randn(1, 3, generator=generator(5))
    actor = policy.actor()
    drawn = actor(np.repeat(observation.numpy(), draws, 0), policy.noise(1, draws, generator(6))[0])
    p = distribution(policy, observation).probs[0].detach().numpy()
    frequency = np.bincount(drawn, minlength=4) / draws
    assert (np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / draws) + 1e-6).all()


def test_actions_are_clipped_and_shaped_only_for_the_environment() -> None:
    policy = policy_of(BOX)
    given = policy.environment_action(np.array([[3.0, 3.0], [-3.0, -3.0]], np.float32))
    assert given.tolist() == [[[1.0], [3.0]], [[-1.0], [-3.0]]]
    assert policy_of(DiscreteActions(4, start=10)).environment_action(np.array([0, 3])).tolist() == [10, 13]


def test_initial_weights_are_orthogonal_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    policy = ActorCritic((3,), DISCRETE, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    for network, head in ((policy.module.actor, 0.01), (policy.module.critic, 1.0)):
        layers = list(network.layers)
        for layer, gain in zip(layers, [math.sqrt(2), math.sqrt(2), head], strict=True):
            w = layer.weight.detach() if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.detach().T
            torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w)), rtol=1e-4, atol=1e-5)
            assert not layer.bias.any()
    again, other = ActorCritic((3,), DISCRETE, seed=1), ActorCritic((3,), DISCRETE, seed=2)
    first = [p.module.actor.layers[0].weight for p in (policy, again, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize("actions", [DiscreteActions(4, start=2), BOX])
def test_a_saved_policy_is_the_same_policy(actions: DiscreteActions | BoxActions, tmp_path: Path) -> None:
    policy, batch = policy_of(actions, activation="relu"), batch_of(actions)
    policy.save(tmp_path / "model")
    loaded = ActorCritic.load(tmp_path / "model")
    assert loaded.actions == actions
    assert torch.equal(loaded.evaluate(batch).log_prob, policy.evaluate(batch).log_prob)

    # as it was written when observations were vectors only
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    older = {**{key: value for key, value in config.items() if key != "observation"}, "observation_shape": [3]}
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "config.json").write_text(json.dumps(older))
    (tmp_path / "older" / "model.safetensors").write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
    assert ActorCritic.load(tmp_path / "older").observation == loaded.observation == policy.observation

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "model" / "config.json").read_text(), parse_constant=refuse)


def test_a_folder_without_a_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        ActorCritic.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="does not describe an actor_critic policy"):
        ActorCritic.load(tmp_path)


def test_a_model_of_before_and_one_that_is_not_finite_are_refused(tmp_path: Path) -> None:
    policy = policy_of(BOX)
    with torch.no_grad():
        policy.module.critic.layers[0].bias[1] = math.inf
    policy.save(tmp_path)
    with pytest.raises(InputError, match=r"'critic\.layers\.0\.bias' is not finite \(infinity; 1 of its 8 numbers"):
        ActorCritic.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["actions"]["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has no 'dtype': it was written before actions were in units of their bounds"):
        ActorCritic.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden": [9, 9], "actions": described(DISCRETE)}))
    with pytest.raises(InputError, match=r"cannot be read: RuntimeError: .*size mismatch"):
        ActorCritic.load(tmp_path)


SPACES = (spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(4))


def test_a_recipe_may_start_from_a_saved_model(tmp_path: Path) -> None:
    policy, batch = policy_of(DISCRETE, activation="relu"), batch_of(DISCRETE)
    policy.save(tmp_path / "run" / "model")
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        made = ActorCriticRecipe(model=str(place)).build(*SPACES, seed=3)
        assert torch.equal(made.evaluate(batch).log_prob, policy.evaluate(batch).log_prob)
        assert (made.hidden, made.activation) == ((8, 8), "relu")
    ActorCriticRecipe([8, 8], "relu", normalize_observations=False, model=str(place)).build(*SPACES, seed=3)


@pytest.mark.parametrize(
    ("settings", "changed", "message"),
    [
        ({"hidden": [16]}, {}, r"controller\.hidden is \[16\], but that of the model in '.*' counts; accepted: leave it out"),
        ({"log_std": -1.0}, {}, r"controller\.log_std is -1\.0, but that of the model"),
        ({"normalize_observations": True}, {}, r"controller\.normalize_observations is True, but that of the model"),
        ({}, {"normalized": True}, r"wrapped by NormalizeObservation, but the model in '.*' keeps no statistics"),
        ({}, {"action_space": spaces.Discrete(5)}, r"gives discrete actions \(n 4, .*environment has \[3\] and discrete actions \(n 5"),
        ({"model": "nowhere"}, {}, r"controller\.model 'nowhere' is no folder"),
        ({"model": "."}, {}, r"holds no config\.json"),
    ],
)
@pytest.mark.filterwarnings("ignore:the environment's NormalizeObservation")
def test_a_saved_model_that_does_not_fit_is_named(settings: dict, changed: dict, message: str, tmp_path: Path) -> None:
    policy_of(DISCRETE).save(tmp_path)
    spaces_ = {"observation_space": SPACES[0], "action_space": SPACES[1], "seed": 0}
    with pytest.raises(InputError, match=message):
        ActorCriticRecipe(**{"model": str(tmp_path), **settings}).build(**{**spaces_, **changed})


def test_the_recipe_reads_the_spaces() -> None:
    box = spaces.Box(-1, 1, (2, 3), np.float32)
    discrete = ActorCriticRecipe([16]).build(box, spaces.Discrete(3, start=1), seed=0)
    assert discrete.actions == DiscreteActions(3, 1)
    assert [layer.weight.shape for layer in discrete.module.actor.layers] == [(16, 6), (3, 16)]
    real = ActorCriticRecipe([], log_std=-1.0).build(
        box, spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, np.inf]), dtype=np.float64), seed=0
    )
    assert real.actions == BoxActions((2,), (-2.0, 0.0), (2.0, math.inf), "float64")
    assert real.module.log_std is not None
    assert real.module.log_std.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": [64, 0]}, r"controller\.hidden is \[64, 0\]"),
        ({"activation": "tahn"}, "did you mean 'tanh'"),
        ({"log_std": math.nan}, "controller.log_std is nan"),
    ],
)
def test_impossible_sizes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ActorCriticRecipe(**settings)


def test_spaces_that_do_not_fit_are_named() -> None:
    box = spaces.Box(-1, 1, (2,), np.float32)
    with pytest.raises(InputError, match=r"observations are Text\(.*; accepted: Box, Discrete"):
        ActorCriticRecipe().build(spaces.Text(3), spaces.Discrete(2), seed=0)
    with pytest.raises(InputError, match="channels is 'first', but the environment's observations are no images"):
        ActorCriticRecipe(channels="first").build(box, spaces.Discrete(2), seed=0)
    with pytest.raises(InputError, match="images are divided by 255 already"):
        ActorCriticRecipe(normalize_observations=True).build(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2), seed=0)
    with pytest.raises(InputError, match="Box of real numbers"):
        ActorCriticRecipe().build(box, spaces.Box(0, 3, (2,), np.int64), seed=0)
    with pytest.raises(InputError, match="the policy reads 3 numbers per step"):
        policy_of(DISCRETE).evaluate(batch_of(DISCRETE).replace(observation=torch.zeros(ROWS, STEPS, 2)))
