"""Closed-form oracles of GoRL (arXiv 2512.02581): identity, DDIM's factor, one and two data points, no gradient across, the first ratio."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from unipg import InputError, Planning, Trajectories
from unipg.algorithms import PPO, GoRL, Setting
from unipg.critics import Decoder, LatentPull
from unipg.networks import Denoiser, alpha_bars, ddim, euler, time_features
from unipg.policies.actions import BoxActions, DiscreteActions, LatentActions
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.export import Acting
from unipg.policies.now import NOISE
from unipg.policies.spaces import actions_from, actions_of, described
from unipg.rollouts.environments import EnvironmentRecipe, EnvironmentRollouts
from unipg.seeding import generator
from unipg.training.collapse import Watch
from unipg.training.observer import Stopped
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.run import wanted_of
from unipg.training.trainer import Trainer

SETTING = Setting(actions=2, acts=True)
LATENT = LatentActions((2,), (-1.0, -1.0), (1.0, 1.0))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


def policy_of(algorithm: GoRL, inputs: int = 3) -> ActorCritic:
    wanted = wanted_of(algorithm)
    made = ActorCritic((inputs,), LATENT, hidden=(8,), activation="silu", networks=wanted.networks(False))
    made.module.double()
    return made


# ------------------------------------------------------------------------------------------------ 1: the identity


def test_1_zero_weights_are_the_identity() -> None:
    z, condition = randn(5, 2), randn(5, 3, seed=1)
    flow = Denoiser("flow", 3, 2, (8, 8), 10).double()
    assert torch.equal(flow.decode(condition, z), z)
    assert np.array_equal(flow.on_the_host()(condition.float().numpy(), z.float().numpy()), z.float().numpy())
    flow.draw(generator(0, "net"))
    assert not torch.allclose(flow.decode(condition, z), z)


class Line(gymnasium.Env):
    """The state moves by the action, which is bounded by tanh where `squashes`: then any real number is one."""

    def __init__(self, squashes: bool = False) -> None:
        bound = math.inf if squashes else 1.0
        self.observation_space = spaces.Box(-9.0, 9.0, (1,), np.float32)
        self.action_space = spaces.Box(-bound, bound, (1,), np.float32)
        self.squashes = squashes

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1), 0
        return np.array([self.x], np.float32), {}

    def step(self, action):
        move = np.tanh(action[0]) if self.squashes else action[0]
        self.x, self.t = float(np.clip(self.x + 0.5 * float(move), -9, 9)), self.t + 1
        return np.array([self.x], np.float32), -((self.x - 1) ** 2), False, self.t >= 8, {}


class Unbounded(LatentActions):
    """The same Gaussian, given to the environment as it is drawn."""

    def __post_init__(self) -> None:
        pass

    def for_environment(self, action: np.ndarray) -> np.ndarray:
        return BoxActions.for_environment(self, action)


gymnasium.register("gorl-line-v0", Line)
PASSES = {"epochs": 2, "minibatches": 2}


def trained(algorithm, actions, folder, *, squashes=False, iterations=3, stop=None, resume=False, **training) -> Trainer:
    recipe = EnvironmentRecipe("gorl-line-v0", 2, 32, {"squashes": squashes}, evaluation_episodes=2)
    networks = algorithm.networks(False)
    policy = ActorCritic((1,), actions, hidden=(8,), activation="silu", networks=networks, seed=1)
    run = Trainer(
        algorithm,
        policy,
        recipe.build(1),
        folder=folder,
        training=TrainingRecipe(iterations=iterations, **PASSES, **training),
        optimizer=OptimizerRecipe(learning_rate=3e-3),
        seed=1,
    )
    run.stop_after_steps = stop
    if resume:
        run.resume()
    try:
        run.train()
    except Stopped:
        assert stop is not None
    return run


def test_1_the_first_stage_is_ppo_with_tanh_in_the_environment(tmp_path) -> None:
    """To the bit, over a training run; c_z = 0, one clip, one entropy bonus without a correction for tanh, one bound of the gradient."""
    same = {"gamma": 0.99, "entropy": 0.01, "value_weight": 0.5}
    latent = LatentActions((1,), (-1.0,), (1.0,))
    gorl = trained(GoRL(clip=0.2, pull=0.0, reward_scale=1.0, **same), latent, tmp_path / "gorl")
    plain = Unbounded((1,), (-math.inf,), (math.inf,))
    recipe = OptimizerRecipe(learning_rate=3e-3, clip_norm=0.5)
    policy = ActorCritic((1,), plain, hidden=(8,), activation="silu", seed=1)
    experience = EnvironmentRecipe("gorl-line-v0", 2, 32, {"squashes": True}, evaluation_episodes=2).build(1)
    training = TrainingRecipe(iterations=3, **PASSES)
    ppo = Trainer(PPO(**same), policy, experience, folder=tmp_path / "ppo", training=training, optimizer=recipe, seed=1)
    start = policy.module.actor.layers[0].weight.clone()
    ppo.train()
    ours = gorl.policy.module.state_dict()
    theirs = policy.module.state_dict()
    assert not torch.equal(start, theirs["actor.layers.0.weight"])
    assert len(theirs) >= 8
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


# ------------------------------------------------------------------------------------------------ 2: DDIM


def test_2_ddim_of_a_zero_network_divides_by_the_root_of_the_last_share() -> None:
    assert alpha_bars("linear", 10)[-1] == pytest.approx(0.9037394161, abs=1e-10)
    diffusion = Denoiser("diffusion", 1, 2, (8,), 10).double()
    z = randn(4, 2)
    torch.testing.assert_close(diffusion.decode(randn(4, 1), z), 1.0519095 * z, rtol=1e-7, atol=0)
    found = ddim(lambda x, k: 0 * x, z, alpha_bars("cosine", 10))
    torch.testing.assert_close(found / z, torch.full_like(z, 6.44), rtol=0, atol=0.005)
    diffusion.draw(generator(0, "net"))
    assert diffusion.alpha_bar.tolist() == pytest.approx(alpha_bars("cosine", 10))  # whatever is trained has the whole range of noise


@pytest.mark.parametrize("levels", [2, 10, 100, 1000])
def test_a_diffusion_starts_near_the_identity_whatever_its_levels(levels) -> None:
    z = randn(4, 2)
    found = Denoiser("diffusion", 1, 2, (8,), levels).double().decode(randn(4, 1), z).detach() / z
    assert 1 <= float(found.min()) <= float(found.max()) < 1.07


def test_2_ddim_finds_one_data_point_exactly() -> None:
    """The best noise prediction of data that are all u is (x − sqrt(a) u) / sqrt(1 − a)."""
    bars, u = alpha_bars("cosine", 10), randn(1, 2, seed=3)
    found = ddim(lambda x, k: (x - bars[k] ** 0.5 * u) / (1 - bars[k]) ** 0.5, randn(6, 2), bars)
    torch.testing.assert_close(found, u.expand(6, 2), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------ 3, 4: what a velocity should be


def test_3_flow_matching_of_one_data_point_ends_there() -> None:
    u = randn(1, 2, seed=3)
    found = euler(lambda x, t: (x - u) / t, randn(6, 2), 10)
    torch.testing.assert_close(found, u.expand(6, 2), rtol=0, atol=1e-12)


def test_3_the_loss_of_that_velocity_is_zero() -> None:
    """(x_t − u)/t = e − u, whatever e and t are: the least that the loss can be."""
    made, u = Denoiser("flow", 1, 2, (8,), 10).double(), randn(1, 2, seed=3).expand(6, 2)
    made.forward = lambda read, x, t: (x - u[:1]) / t.unsqueeze(-1)  # type: ignore[method-assign]
    noise = made.noise((6, 4), generator(0, "noise")).double().clamp_min(-3)
    noise[..., -1] = noise[..., -1].clamp_min(0.05)
    assert float(made.error(torch.zeros(6, 1).double(), u, noise).max()) < 1e-24
    zero = Denoiser("flow", 1, 2, (8,), 10).double()
    expected = (noise[..., :2] - u.unsqueeze(1)).square().mean((1, 2))
    torch.testing.assert_close(zero.error(torch.zeros(6, 1).double(), u, noise), expected)


def test_4_between_two_equal_data_points_the_best_velocity_is_zero() -> None:
    """E[e − u | x_t = 0] by the posterior of u = ±m: by symmetry 0 for every t in (0, 1]; away from 0 it is not."""
    m = 0.7
    for t in (0.1, 0.5, 1.0):
        for x, zero in ((0.0, True), (0.3, False)):
            e = [(x - (1 - t) * u) / t for u in (m, -m)]
            share = torch.softmax(torch.tensor([-0.5 * each**2 for each in e], dtype=torch.float64), 0)
            v = float(share @ torch.tensor([e[0] - m, e[1] + m], dtype=torch.float64))
            assert (abs(v) < 1e-12) == zero or t == 1.0
    # and that is what is learned: the gradient of the loss at an odd network's bias vanishes on mirrored noise
    made = Denoiser("flow", 1, 1, (), 10).double()
    noise = made.noise((2, 64), generator(1, "noise")).double()
    noise[1] = noise[0] * torch.tensor([-1.0, 1.0])
    made.error(torch.zeros(2, 1).double(), torch.tensor([[m], [-m]]).double(), noise).mean().backward()
    assert made.network.layers[0].bias.grad.abs().item() < 1e-12


def test_time_features_have_no_factor_of_pi() -> None:
    t = 0.3
    expected = [math.cos(2**i * t) for i in range(4)] + [math.sin(2**i * t) for i in range(4)]
    assert time_features(torch.tensor([t], dtype=torch.float64))[0].tolist() == pytest.approx(expected, abs=1e-12)


# ------------------------------------------------------------------------------------------------ 5, 6: what moves what


def rows(made: ActorCritic, seed: int = 0) -> Trajectories:
    batch = Trajectories(
        action=randn(8, 1, 2, seed=seed),
        mask=torch.ones(8, 1, dtype=torch.bool),
        observation=randn(8, 1, 3, seed=seed + 1),
        step_reward=randn(8, 1, seed=seed + 2),
        terminated=torch.ones(8, 1, dtype=torch.bool),
        value=randn(8, 1, seed=seed + 3),
    )
    assert made.decoder is not None
    batch = batch.with_planned(**{NOISE.format("decoder"): made.decoder.noise((8, 1, 4), generator(seed, "noise")).double()})
    with torch.no_grad():
        old = made.now(batch).log_prob
    return batch.replace(old_log_prob=old, behaviour_log_prob=old)


@pytest.mark.parametrize("process", ["flow", "diffusion"])
def test_5_no_gradient_from_actor_to_decoder_or_back(process) -> None:
    algorithm = GoRL(decoder=process)
    made = policy_of(algorithm)
    made.decoder.draw(generator(0, "net"))
    batch = rows(made)
    for learner in algorithm.learned(SETTING)[:2]:
        ready = learner.terms.plan(learner.terms.prepare(batch))
        made.module.zero_grad(set_to_none=True)
        learner.terms.loss(made.now(ready), ready).backward()
        moved = {name for name, network in made.networks.items() for p in network if p.grad is not None and bool(p.grad.any())}
        assert moved == set(learner.trains)


def test_6_the_first_ratio_is_one_and_nothing_is_masked() -> None:
    algorithm = GoRL()
    made = policy_of(algorithm)
    objective = algorithm.learned(SETTING)[0].terms
    ready = objective.plan(objective.prepare(rows(made)))
    records: list = []
    objective.loss(made.now(ready), ready, records=records)
    assert float(records[0].log_ratio.abs().max()) == 0
    assert bool(records[0].stable.all())


def test_the_pull_is_on_the_distributions_parameters() -> None:
    algorithm = GoRL(pull=0.25)
    made = policy_of(algorithm)
    term = next(t for name, t in algorithm.learned(SETTING)[0].terms.named() if name == "latent_pull")
    assert term.weight == 0.25
    batch = rows(made)
    output = made.network("actor")(batch.observation[:, 0])
    std = torch.nn.functional.softplus(output[:, 2:]) + 1e-3
    expected = (output[:, :2] ** 2 + std**2).mean(1, keepdim=True)
    torch.testing.assert_close(term.per_token(made.now(batch), batch, "latent_pull", Planning())[0], expected)


def test_a_standard_deviation_at_its_limit_is_warned_of() -> None:
    made = policy_of(GoRL())
    with torch.no_grad():
        made.module.actor.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
    batch = rows(made)
    record = LatentPull().per_token(made.now(batch), batch, "latent_pull", Planning())[1]
    share = float(record.facts["at_limit"].mean())
    assert share == 0.5  # of one dimension of the two
    watch = Watch(compares=False)
    found = [watch.read({"iteration": i, "latent_pull/at_limit": share}) for i in range(12)]
    told = [finding for each in found for finding in each]
    assert [finding.kind for finding in told] == ["latent"]
    assert "50%" in told[0].text


# ------------------------------------------------------------------------------------------------ latent actions


def test_latent_actions_are_a_gaussian_with_the_released_codes_std() -> None:
    output = torch.tensor([[0.3, -0.2, 0.0, 40.0]], dtype=torch.float64)
    mean, log_std = LATENT.moments(output, None)
    assert log_std.exp()[0].tolist() == pytest.approx([math.log(2) + 1e-3, 10.0])  # at most 10
    z = torch.tensor([[0.1, 5.0]], dtype=torch.float64)
    found, entropy = LATENT.log_prob(output, None, z, True)
    normal = torch.distributions.Normal(mean, log_std.exp())
    torch.testing.assert_close(found, normal.log_prob(z).sum(-1))
    torch.testing.assert_close(entropy, normal.entropy().sum(-1))
    drawn = LATENT.draw(output.numpy(), None, np.array([[0.5, -1.0]]))
    assert drawn[0].tolist() == pytest.approx([0.3 + 0.5 * (math.log(2) + 1e-3), -0.2 - 10.0])
    assert LATENT.draw(output.numpy(), None, None)[0].tolist() == [0.3, -0.2]


def test_the_environment_is_given_tanh_in_units_of_its_bounds() -> None:
    actions = LatentActions((2,), (-2.0, 0.0), (2.0, 10.0))
    found = actions.for_environment(np.array([[0.5, 0.0], [100.0, -100.0]], np.float32))
    np.testing.assert_allclose(found, [[2 * math.tanh(0.5), 5.0], [2.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(actions.given(torch.tensor([[0.5, 0.0]])).numpy(), found[:1], rtol=1e-6)
    np.testing.assert_allclose(actions.from_environment(found[:1])[0], [0.5, 0.0], atol=1e-6)
    assert actions_from(**described(actions)) == actions
    assert actions_of(spaces.Box(-1.0, 1.0, (2,)), "latent") == LATENT


@pytest.mark.parametrize("process", ["flow", "diffusion"])
def test_host_export_and_tensors_decode_alike(process, tmp_path) -> None:
    made = ActorCritic((3,), LATENT, hidden=(8,), networks={"decoder": Decoder(process, (8, 8), 5)}, normalize=True)
    made.decoder.draw(generator(0, "net"))
    made.decoder.fit(torch.randn(50, 3) * 3 + 1)
    made.module.normalizer.update(torch.randn(50, 3) - 2)
    observation = torch.randn(6, 3)
    z = made.actor()(observation.numpy(), None)
    given = made.outward()(observation.numpy(), z)
    with torch.no_grad():
        np.testing.assert_allclose(Acting(made)(observation).numpy(), given, atol=2e-6)
    assert float(np.abs(given - made.environment_action(z)).max()) > 1e-3
    made.save(tmp_path)
    again = ActorCritic.load(tmp_path)
    assert np.array_equal(again.outward()(observation.numpy(), again.actor()(observation.numpy(), None)), given)
    assert again.decoder.mean.tolist() == made.decoder.mean.tolist()
    assert not any(p.requires_grad for p in again.decoder.parameters())  # nobody trains it


# ------------------------------------------------------------------------------------------------ stages

SMALL = {"decoder_hidden": (8,), "batches": 2, "decoder_batch": 48, "decoder_epochs": 4, "reward_scale": 0.1}
ONE = LatentActions((1,), (-1.0,), (1.0,))


def test_stages_begin_with_new_networks_and_end_with_the_best(tmp_path) -> None:
    algorithm = GoRL(stages=(2, 2, 9), **SMALL)
    run = trained(algorithm, ONE, tmp_path / "run", iterations=7, evaluate_every=1)
    rows = run.tracker.rows()
    assert [row["stage"] for row in rows] == [0, 0, 0, 1, 1, 1, 2]
    assert [row.get("decoder/pairs") for row in rows] == [None, None, 115.0, None, None, 115.0, None]  # 128, 13 of them for validation
    assert rows[2]["decoder/passes"] == 4
    assert [made.name for made in run.learned] == ["policy", "decoder_0", "policy_1", "decoder_1", "policy_2"]


def test_new_networks_are_those_of_another_seed() -> None:
    made, other = policy_of(GoRL()), policy_of(GoRL())
    made.renew(("actor", "critic"), 7)
    start = other.module.state_dict()
    seventh = ActorCritic((3,), LATENT, hidden=(8,), activation="silu", networks=GoRL().networks(False), seed=7)
    fresh = seventh.module.double().state_dict()
    for name, tensor in made.module.state_dict().items():
        assert torch.equal(tensor, (start if name.startswith("decoder") else fresh)[name]), name
    assert not torch.equal(start["actor.layers.0.weight"], fresh["actor.layers.0.weight"])
    made.renew(("decoder",), 7)
    assert bool(made.decoder.network.layers[-1].weight.any())


def test_the_best_networks_of_a_stage_make_the_data(tmp_path) -> None:
    run = trained(GoRL(stages=(3, 9), **SMALL), ONE, tmp_path / "run", iterations=1, evaluate_every=1)
    stages, before = run.stages, {name: t.clone() for name, t in run.policy.module.state_dict().items()}
    kept = stages.best["policy"]
    kept["value"] = math.inf  # whatever comes after is worse
    best = {name: t.clone() for name, t in kept["weights"].items()}
    run.training = TrainingRecipe(iterations=3, **PASSES, evaluate_every=1)
    run.train()
    assert not torch.equal(run.policy.module.actor.layers[0].weight, best["actor.layers.0.weight"])
    assert stages.ends
    stages.restore()
    for name, tensor in run.policy.module.state_dict().items():
        assert torch.equal(tensor, best.get(name, before[name])), name
    assert not any(name.startswith("decoder.network") for name in best)


def test_an_evaluation_because_the_run_ends_decides_nothing(tmp_path, monkeypatch) -> None:
    """A longer run would not have it: going on from there is the longer run, to the last bit."""
    algorithm = GoRL(stages=(4, 9), **SMALL)
    evaluate, values = EnvironmentRollouts.evaluate, iter((0.0, 2.0, 1.0, 0.0, 0.0, 1.0, 0.0))  # 2: of the end that comes too soon

    def valued(*arguments):
        results = evaluate(*arguments)
        results[0].metrics["return"]["value"] = next(values)
        return results

    monkeypatch.setattr(EnvironmentRollouts, "evaluate", valued)
    assert trained(algorithm, ONE, tmp_path / "run", iterations=2).evaluated_at == 2
    again = trained(algorithm, ONE, tmp_path / "run", iterations=6, resume=True)
    straight = trained(algorithm, ONE, tmp_path / "straight", iterations=6).policy.module.state_dict()
    for name, tensor in again.policy.module.state_dict().items():
        assert torch.equal(tensor, straight[name]), name


def test_a_decoder_of_another_kind_is_not_gone_on_with(tmp_path) -> None:
    policy_of(GoRL(decoder="diffusion")).save(tmp_path)
    for other in (GoRL(), GoRL(decoder="diffusion", decoder_steps=5), GoRL(decoder="diffusion", decoder_hidden=(8,))):
        with pytest.raises(InputError, match=r"the decoder in .* but the algorithm asks for"):
            ActorCritic.load(tmp_path, other.networks(False))
    assert ActorCritic.load(tmp_path, GoRL(decoder="diffusion").networks(False)).decoder.process == "diffusion"


@pytest.mark.parametrize("process", ["flow", "diffusion"])
def test_a_run_resumes_to_the_bit_across_stages_and_inside_the_decoders_training(process, tmp_path) -> None:
    algorithm = GoRL(stages=(2, 2, 9), decoder=process, **SMALL)
    settings = {"iterations": 7, "evaluate_every": 2}
    expected = trained(algorithm, ONE, tmp_path / "straight", **settings).policy.module.state_dict()
    # 4 updates an iteration, 3 a pass of the decoder: in stage 0, at its end, inside and at the end of the decoder's training, after it
    for stop in (3, 8, 10, 14, 21) if process == "flow" else (10, 14):
        first = trained(algorithm, ONE, tmp_path / f"{stop}", stop=stop, **settings)
        assert first.iteration < 7
        again = trained(algorithm, ONE, tmp_path / f"{stop}", resume=True, **settings).policy.module.state_dict()
        for name, tensor in expected.items():
            assert torch.equal(again[name], tensor), (stop, name)


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: Denoiser("flow", 1, 2, (8,), 10).decode(torch.zeros(1, 1), torch.zeros(1, 3)), "was given 3"),
        (lambda: Decoder().build(ActorCriticBody.discrete(), generator(0, "x")), "counted"),
        (lambda: ActorCritic((1,), BoxActions((1,), (-1.0,), (1.0,)), networks={"decoder": Decoder()}), "accepted: kind latent"),
        (lambda: ActorCritic((1,), DiscreteActions(2), networks={"decoder": Decoder()}), "accepted: kind latent"),
        (lambda: LatentActions((1,), (-math.inf,), (1.0,)), "two finite bounds"),
        (lambda: wanted_of(GoRL()).kind_of("auto", spaces.Discrete(3)), "accepted for algorithm 'gorl': a Box of real numbers"),
        (lambda: GoRL(stages=()), "algorithm.stages"),
        (lambda: GoRL(stages=(3, 0)), "algorithm.stages"),
        (lambda: GoRL(decoder_epochs=0), "algorithm.decoder_epochs is 0"),
        (lambda: GoRL(pairs=1), "algorithm.pairs is 1"),
        (lambda: GoRL(reward_scale=-1), "algorithm.reward_scale"),
        (lambda: GoRL(decoder_hidden=(8, 0)), r"algorithm.decoder_hidden is \[8, 0\]"),
        (lambda: Denoiser("flow", 1, 2, (8,), 0), "0 steps"),
        (lambda: alpha_bars("linear", 1), "1 levels"),
    ],
)
def test_bad_input_is_one_line(made, says) -> None:
    with pytest.raises(InputError, match=says) as caught:
        made()
    assert "\n" not in str(caught.value)


class ActorCriticBody:
    @staticmethod
    def discrete():
        from unipg.critics import Body

        return Body(1, 2, True, (8,), "tanh")


def test_a_decoder_that_gives_nan_is_refused_before_tanh_hides_infinity() -> None:
    made = ActorCritic((1,), ONE, networks={"decoder": Decoder("flow", (8,), 5)})
    with torch.no_grad():
        made.decoder.network.layers[-1].bias.fill_(-math.inf)
    observation = np.zeros((2, 1), np.float32)
    with pytest.raises(InputError, match="the decoder gives"):
        made.outward()(observation, made.actor()(observation, None))
