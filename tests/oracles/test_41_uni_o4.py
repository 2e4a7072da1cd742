"""Uni-O4 in closed form (arXiv 2311.03351)."""

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from offline import flat, gradients, lag, learner_of, minimised, policy_of, rows
from torch import Tensor

from unipg.algorithms.base import Setting, algorithm_named
from unipg.algorithms.learners import Learner
from unipg.critics import Body, Dynamics, Elected, Gated, Imagined, Moment, Score, Value
from unipg.errors import InputError
from unipg.estimator import Planning, Progress, per_token_loss
from unipg.front import train
from unipg.laws import LAWS
from unipg.networks.dynamics import PULL, GaussianDynamics
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.spaces import actions_from, actions_of, described
from unipg.training.observer import Observer, Stopped
from unipg.training.optimization import OptimizerRecipe

UNI_O4 = algorithm_named("uni_o4")
ALONE = {"members": 1, "model_members": 1}


def drawn(made, batch, by: str) -> tuple[Tensor, Tensor]:
    """[B,A] the actions of a network by the planned noise, and [B] their log-probability."""
    mean, log_std = made.gaussian(batch.observation[:, 0], by)
    action = mean + log_std.exp() * batch.planned["noise/observation"][:, 0]
    return action, log_prob(made, batch, by, action)


def log_prob(made, batch, of: str, action: Tensor) -> Tensor:
    mean, log_std = made.gaussian(batch.observation[:, 0], of)
    return torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)


def whitened(made, batch, action: Tensor) -> Tensor:
    seen = batch.observation[:, 0]
    value = made.network("q")(torch.cat([seen, action], 1))[..., 0].min(0).values - made.network("critic")(seen)[:, 0]
    return ((value - value.mean()) / (value.std() + 1e-10)).detach()


def test_the_first_step_is_on_policy() -> None:
    made, batch = policy_of(UNI_O4(**ALONE), "bounded_spread"), rows()
    learner = learner_of(UNI_O4(**ALONE), "policy")
    planned = learner.terms.plan(learner.terms.prepare(batch), Planning())
    assert abs(float(learner.terms.loss(made.now(planned), planned, Planning()).detach())) < 1e-6
    action, _ = drawn(made, batch, "actor")
    loss = -(whitened(made, batch, action) * log_prob(made, batch, "actor", action.detach())).mean()
    expected = flat(list(torch.autograd.grad(loss, made.networks["actor"])))
    torch.testing.assert_close(flat(gradients(learner, made, batch)["actor"]), expected, rtol=1e-7, atol=1e-10)


def test_later_steps_are_those_of_the_clipped_objective() -> None:
    made, batch = policy_of(UNI_O4(**ALONE), "bounded_spread"), rows(rows=200)
    lag(made, "actor_old")
    found = gradients(learner_of(UNI_O4(**ALONE), "policy"), made, batch)
    with torch.no_grad():
        action, old = drawn(made, batch, "actor_old")
        advantage = whitened(made, batch, action)
    ratio = (log_prob(made, batch, "actor", action) - old).exp()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(0.75, 1.25) * advantage).mean()
    clipped = ((advantage > 0) & (ratio > 1.25)) | ((advantage < 0) & (ratio < 0.75))
    assert 20 < int(clipped.sum()) < 180
    torch.testing.assert_close(flat(found["actor"]), flat(list(torch.autograd.grad(loss, made.networks["actor"]))), rtol=1e-6, atol=1e-9)
    assert all(g is None for name in ("q", "critic", "model") for g in found[name])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "flows"), [(1.5, 1, -1.25, 0), (0.5, -1, 0.75, 0), (0.5, 1, -0.5, 1), (1.5, -1, 1.5, 1)]
)
def test_the_clip_by_hand(ratio: float, advantage: float, loss: float, flows: int) -> None:
    mask = learner_of(UNI_O4(), "policy").terms.terms[0].mask.at(Progress(0, 10_000))
    log_ratio = torch.full((1, 1), math.log(ratio), dtype=torch.float64, requires_grad=True)
    worth = torch.full((1, 1), float(advantage), dtype=torch.float64)
    ours = per_token_loss(log_ratio, torch.zeros_like(worth), worth, mask(log_ratio.detach(), worth, rows(rows=1)), "ratio").sum()
    r = log_ratio.exp()
    published = -torch.minimum(r * worth, r.clamp(0.75, 1.25) * worth).sum()
    assert float(published.detach()) == pytest.approx(loss)
    slopes = [torch.autograd.grad(each, log_ratio, retain_graph=True)[0].item() for each in (ours, published)]
    assert slopes == pytest.approx([flows * loss, flows * loss])


def test_schedules() -> None:
    learner = learner_of(UNI_O4(), "policy")
    mask = learner.terms.terms[0].mask
    assert [mask.at(Progress(step, 10_000)).low for step in (0, 100, 500, 9_999)] == pytest.approx([0.25, 0.2475, 0.245, 0.245])
    recipe = OptimizerRecipe().settled(UNI_O4(), policy_of(UNI_O4(), "bounded_spread"), own=learner.optimizer)
    assert [recipe.learning_rate_at(step, 10_000) for step in (0, 5_000, 10_000)] == pytest.approx([1e-4, 5e-5, 0])
    assert dataclasses.replace(OptimizerRecipe(schedule="constant"), learning_rate=1.0).learning_rate_at(5, 10) == 1


@pytest.mark.parametrize("diversity", ["heuristic", "kl", "none"])
def test_what_keeps_clones_apart(diversity: str) -> None:
    """Heuristic: 1.1 times the gradient of cloning. KL: from the other member that finds the action likeliest, over all dimensions."""
    algorithm = UNI_O4(members=3, diversity=diversity, alpha=0.1)
    made, batch = policy_of(algorithm, "bounded_spread"), rows()
    for name in algorithm.policies:
        lag(made, name)
    action = batch.action[:, 0]
    own, others = log_prob(made, batch, "member_1", action), [f"member_{k}" for k in (2, 3)]
    theirs = torch.stack([log_prob(made, batch, other, action) for other in others]).detach()
    loss = -own
    if diversity == "heuristic":
        loss = loss - 0.1 * (own - theirs.max(0).values)
    elif diversity == "kl":
        normal = {
            name: torch.distributions.Normal(m, s.exp())
            for name in algorithm.policies
            for m, s in [made.gaussian(batch.observation[:, 0], name)]
        }
        apart = torch.stack([torch.distributions.kl_divergence(normal["member_1"], normal[other]).sum(-1) for other in others])
        loss = loss - 0.1 * apart.gather(0, theirs.argmax(0, keepdim=True))[0]
    expected = flat(list(torch.autograd.grad(loss.mean(), made.networks["member_1"], retain_graph=True)))
    found = flat(gradients(learner_of(algorithm, "clone_member_1"), made, batch)["member_1"])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
    cloning = flat(list(torch.autograd.grad(-own.mean(), made.networks["member_1"])))
    assert torch.allclose(found, {"heuristic": 1.1, "none": 1.0}.get(diversity, 0.0) * cloning, rtol=1e-6) == (diversity != "kl")


def test_one_member_has_nothing_to_keep_apart_from_and_acts() -> None:
    algorithm = UNI_O4(members=1)
    assert [name for name, _ in learner_of(algorithm, "clone_actor").terms.named()] == ["clone_actor"]
    assert algorithm.policies == ("actor",)


class Read(Score):
    """What a table says."""

    table: ClassVar[dict[str, Tensor]] = {}

    def __call__(self, now, of: str, planning: Planning) -> float:
        return float(self.table[of])


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Moment:
    batch = rows()
    names = {name: torch.tensor(1.0) for name in ("actor", "actor_old", "a", "b", "c")}
    monkeypatch.setattr(Read, "table", names)
    return Moment(batch, lambda: None, Planning())


def weights(name: str) -> list[Tensor]:
    return [Read.table[name]]


def test_the_gate_opens_to_what_is_strictly_better(moment: Moment) -> None:
    gate, opened = Gated("actor", "actor_old", 1, Read()), []
    for found in (1.0, 0.9, 1.2, 1.1, 1.3):
        Read.table["actor"].fill_(found)
        gate(weights, 1, moment)
        opened.append(float(Read.table["actor_old"]) == pytest.approx(found) and found != 1.0)
    assert opened == [False, False, True, False, True]
    assert moment.planning.memory["gate/actor_old"] == (2, 5)
    assert gate(weights, 5, moment) is not None
    assert Gated("actor", "actor_old", 2, Read())(weights, 5, moment) is None


@pytest.mark.parametrize("found", [math.nan, math.inf, 11.0])
def test_a_gate_that_finds_what_cannot_be_stays_closed(moment: Moment, found: float) -> None:
    Read.table["actor"].fill_(found)
    with pytest.warns(UserWarning, match="it stays closed.*algorithm.rollout"):
        Gated("actor", "actor_old", 1, Read())(weights, 1, moment)
    assert float(Read.table["actor_old"]) == 1.0


def test_the_best_member_acts(moment: Moment) -> None:
    for name, value in {"a": 2.0, "b": math.nan, "c": 1.5, "actor": -7.0}.items():
        Read.table[name].fill_(value)
    told = Elected("c", "actor", 1, Read(), ("a", "b", "c"))(weights, 1, moment)
    assert float(Read.table["actor"]) == 2.0
    assert told == {"elected": 0.0}


def test_the_expectile() -> None:
    shape = learner_of(UNI_O4(expectile=0.9), "value").terms.terms[0].shape
    q = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert minimised(lambda v: shape(q[:, None] - v, None).mean(0), -1, 2) == pytest.approx(0.9, abs=1e-4)


def test_spread_actions() -> None:
    actions = actions_of(spaces.Box(-2.0, 2.0, (1,)), "bounded_spread")
    assert actions_from(**described(actions)) == actions
    ends = torch.tensor([[0.0, -40.0], [0.0, 0.0], [0.5, 40.0]], dtype=torch.float64)
    mean, log_std = actions.moments(ends, None)
    assert log_std[:, 0].tolist() == pytest.approx([-5, -2.5, 0])
    assert mean[:, 0].tolist() == pytest.approx([0, 0, math.tanh(0.5)])
    noise = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    fresh, density = actions.fresh(ends, noise)
    np.testing.assert_allclose(actions.draw(ends.numpy(), None, noise.numpy()), fresh.numpy(), rtol=1e-12)
    torch.testing.assert_close(density, torch.distributions.Normal(mean, log_std.exp()).log_prob(fresh).sum(-1))
    torch.testing.assert_close(actions.log_prob(ends, None, fresh, True)[0], density)
    assert actions.for_environment(np.array([[3.0]])).tolist() == [[2.0]]


def test_advantages_that_are_all_equal_move_nothing() -> None:
    made, batch = policy_of(UNI_O4(**ALONE), "bounded_spread"), rows()
    with torch.no_grad():
        for name in ("q", "critic"):
            for parameter in made.networks[name]:
                parameter.zero_()
    found = flat(gradients(learner_of(UNI_O4(**ALONE), "policy"), made, batch)["actor"])
    assert torch.equal(found, torch.zeros_like(found))


# ------------------------------------------------------------------------------------------------ the model


def model(members: int = 2, seen: int = 2, size: int = 1) -> GaussianDynamics:
    return GaussianDynamics(members, seen, size, (4,), "silu", source=torch.Generator().manual_seed(0)).double()


def test_the_model_is_a_gaussian_and_its_end() -> None:
    made, draw = model(), torch.Generator().manual_seed(1)
    seen, after = (torch.randn(5, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    action, reward = torch.randn(5, 1, generator=draw, dtype=torch.float64), torch.randn(5, generator=draw, dtype=torch.float64)
    ended = torch.tensor([False, True, False, False, True])
    after[ended] = torch.nan
    mean, log_variance, end = made(seen, action)
    expected = torch.zeros(5, dtype=torch.float64)
    for k in range(2):
        for n in range(5):
            target = [reward[n]] if ended[n] else [*(after[n] - seen[n]), reward[n]]
            at = slice(2, 3) if ended[n] else slice(0, 3)
            likelihood = torch.distributions.Normal(mean[k, n, at], (0.5 * log_variance[k, n, at]).exp()).log_prob(torch.stack(target))
            expected[n] += (-2 * likelihood - math.log(2 * math.pi)).mean()
            expected[n] -= torch.distributions.Bernoulli(logits=end[k, n]).log_prob(ended[n].double())
    held = PULL * (made.most - made.least).sum() + 0.5 * sum(layer.weight.square().sum() for layer in made.ensemble.layers)
    torch.testing.assert_close(made.error(seen, action, after, reward, ended, 0.5), expected + held)


@pytest.mark.parametrize("count", [6, 7])
def test_rows_are_dealt_to_the_members(count: int) -> None:
    """Each row by one member, each member as many rows; what they say is what comes, and where a logit is above 0 it ends."""
    made = model()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.least.fill_(-200)
        made.most.fill_(-100)  # hardly any noise
        made.ensemble.layers[-1].bias[:, 0] = torch.tensor([[1.0, 2, 9, 0, 0, 0, -1], [3, 4, 9, 0, 0, 0, 1]])
    seen = torch.arange(2.0 * count, dtype=torch.float64).reshape(count, 2)
    found, over = made.after(seen, torch.zeros(count, 1, dtype=torch.float64), torch.Generator().manual_seed(0))
    change = (found - seen).round()
    expected = torch.where(over[:, None], torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])).double()
    assert torch.equal(change, expected)
    assert abs(int(over.sum()) - count / 2) <= 0.5
    draws = [
        made.after(seen, torch.zeros(count, 1, dtype=torch.float64), torch.Generator().manual_seed(seed))[1].tolist() for seed in range(4)
    ]
    assert len({tuple(each) for each in draws}) > 1


def test_a_policy_is_scored_by_steps_in_the_model() -> None:
    """s' = s + (1, 1) until the end, which the second row is at; the value is that of the most likely action."""
    made, batch = policy_of(UNI_O4(**ALONE), "bounded_spread"), rows(rows=2)
    with torch.no_grad():
        network = made.network("model")
        for parameter in network.parameters():
            parameter.zero_()
        network.least.fill_(-200)
        network.most.fill_(-100)
        network.ensemble.layers[-1].bias[:] = torch.tensor([1.0, 1, 0, 0, 0, 0, -1])
        network.ensemble.layers[0].weight[0] = 1e4  # a large first number, and all units are
        network.ensemble.layers[1].weight[..., -1] = 1.0
    batch = batch.replace(observation=torch.tensor([[[-9.0, 0.0]], [[0.5, 0.25]]], dtype=torch.float64))
    found = Imagined(Value("q"), steps=3)(made.now(batch), "actor", Planning())

    def worth(s: list[float]) -> float:
        seen = torch.tensor([s], dtype=torch.float64)
        action = made.gaussian(seen, "actor")[0]
        return float(made.network("q")(torch.cat([seen, action], 1))[..., 0].min(0).values.detach())

    expected = [worth([-9, 0]), worth([-8, 1]), worth([-7, 2]), worth([0.5, 0.25])]
    assert found == pytest.approx(float(np.mean(expected)), rel=1e-6)


def test_images_have_no_model() -> None:
    with pytest.raises(InputError, match="vectors and real actions"):
        Dynamics().build(Body(3, 2, True, (8,), "tanh"), torch.Generator())


# ------------------------------------------------------------------------------------------------ the stages


def test_critics_and_clones_rest_while_policies_are_improved() -> None:
    algorithm = UNI_O4(members=2, critic_iterations=3, clone_iterations=1, model_iterations=2)
    spans = {learner.name: learner.span for learner in algorithm.learned(None)}
    assert spans["critic"] == spans["value"] == (0, 3)
    assert spans["clone_member_1"] == (0, 1)
    assert spans["policy"] == spans["policy_member_2"] == (3, math.inf)


def test_it_goes_on_to_the_bit_in_every_stage() -> None:
    algorithm = UNI_O4(**ALONE, critic_iterations=1, clone_iterations=1, model_iterations=1, gate_every=10, rollout=3)
    LAWS["resume"](algorithm, (100,))


def test_online_it_is_ppo_to_the_bit() -> None:
    algorithm = UNI_O4(**ALONE, offline_iterations=1, online_epochs=1, online_minibatches=1, value_clip=None, entropy=0.01)
    ppo = algorithm_named("ppo")(clip_low=0.05, clip_high=0.05, gamma=0.99, lam=0.95, value_weight=1.0, entropy=0.01)
    made, batch = policy_of(algorithm, "bounded_spread"), rows()
    draw = torch.Generator().manual_seed(2)
    old = made.now(batch).log_prob.detach() + 0.1 * torch.randn(8, 1, generator=draw, dtype=torch.float64)
    value = {name: torch.randn(8, 1, generator=draw, dtype=torch.float64) for name in ("value", "bootstrap_value")}
    batch = batch.replace(source=torch.zeros(8, dtype=torch.long), old_log_prob=old, **value)
    expected = gradients(Learner("all", (), ppo.objective(Setting(acts=True))), made, batch)
    for name, network in (("online", "actor"), ("online_value", "critic")):
        found = gradients(learner_of(algorithm, name), made, batch)[network]
        assert torch.equal(flat(found), flat(expected[network]))
        assert flat(found).norm() > 0


SHORT = {"critic_iterations": 1, "clone_iterations": 1, "model_iterations": 1, "offline_iterations": 1}


def to_online(folder: Path, *, resume: bool = False, observers: tuple = (), **more):
    draw = np.random.default_rng(0)
    states = draw.standard_normal((61, 3)).astype(np.float32) * [1, 1, 5]
    data = {"observation": states[:-1], "next_observation": states[1:], "action": draw.uniform(-2, 2, (60, 1)).astype(np.float32)}
    data |= {"reward": draw.standard_normal(60).astype(np.float32), "terminated": np.zeros(60, bool), "truncated": np.arange(60) % 20 == 19}
    folder.mkdir(exist_ok=True)
    np.savez(folder / "data.npz", **data)
    return train(
        algorithm={"name": "uni_o4", **ALONE, **SHORT, "gate_every": 3, "rollout": 2, "online_epochs": 2, "online_minibatches": 2} | more,
        output=str(folder / "run"),
        threads=1,
        environment={"id": "Pendulum-v1", "evaluation_episodes": 1, "count": 2, "steps": 8},
        dataset={"path": str(folder / "data.npz"), "batch": 8, "updates": 6, "reward_scale": 0.1, "reward_shift": 1.0},
        controller={"hidden": [8], "normalize_observations": True},
        training={"iterations": 4, "evaluate_every": 0},
        resume=resume,
        observers=list(observers),
    )


class Notes:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


def test_a_stage_that_a_run_does_not_reach_is_told_of(tmp_path: Path) -> None:
    notes = Notes()
    to_online(tmp_path, observers=(notes,), offline_iterations=7)
    assert notes.heard == [
        "training.iterations is 4, and these learners begin later, so they learn nothing: 'online' at 8, 'online_value' at 8"
    ]


def test_a_batch_with_fewer_rows_than_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'online' takes 17 steps in each pass over a batch, but a batch has 16 rows"):
        to_online(tmp_path, online_minibatches=17)


class Watch(Observer):
    """Stops a run after so many updates; keeps what batches of rollouts are made of, and V before the first and when it is collected."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.rewards, self.values = after, [], {}

    def start(self, run) -> None:
        self.run, run.stop_after_steps = run, self.after
        feed = run.feed.feeds["rollouts"]
        join = feed._joined

        def joined(batch, number: int):
            self.values.setdefault("collected", self.value())
            found = join(batch, number)
            self.rewards.append((batch.step_reward, found.step_reward))
            return found

        feed._joined = joined

    def value(self) -> Tensor:
        return flat([p.detach().clone() for p in self.run.policy.networks["critic"]])

    def iteration(self, done: int, total: int, metrics: dict) -> None:
        if done == 2:
            self.values["given"] = self.value()


def test_it_goes_on_online(tmp_path: Path) -> None:
    """Rewards are rescaled as the data's, units stay, and a run that is stopped among its rollouts comes to the same bits."""
    watch = Watch()
    to_online(tmp_path / "straight", observers=(watch,))
    assert len(watch.rewards) == 2
    ((raw, scaled),) = watch.rewards[:1]
    torch.testing.assert_close(scaled, 0.1 * raw + 1)
    whole = ActorCritic.load(tmp_path / "straight" / "run" / "model")
    assert float(whole.module.normalizer.count) == 60
    with pytest.raises(Stopped):
        to_online(tmp_path / "stopped", observers=(Watch(15),))
    to_online(tmp_path / "stopped", resume=True)
    again = ActorCritic.load(tmp_path / "stopped" / "run" / "model").module.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.module.state_dict().items())


@pytest.mark.parametrize("value", ["kept", "fresh"])
def test_the_value_that_online_steps_begin_with(tmp_path: Path, value: str) -> None:
    watch = Watch()
    to_online(tmp_path, observers=(watch,), online_value=value, online_epochs=1, online_minibatches=1)
    assert torch.equal(watch.values["given"], watch.values["collected"]) == (value == "kept")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"members": 0}, "members is 0"),
        ({"clip": 1.5}, "clip is 1.5"),
        ({"gate": "score"}, "model, always, never|always"),
        ({"rollout": 0}, "rollout is 0"),
        ({"expectile": 1.5}, "expectile is 1.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        UNI_O4(**settings)
