"""Closed-form oracles of the polychromic objective (arXiv 2509.25424): sets, vines, and their bad input."""

import itertools
import math

import gymnasium
import numpy as np
import pytest
import torch

from unipg import GAE, GroupCentered, InputError, Planning, PolicyGradient, Trajectories
from unipg.algorithms import Setting
from unipg.algorithms.control.polychromic_ppo import PolychromicPPO
from unipg.algorithms.language.polychromic import Polychromic
from unipg.environments import four_rooms
from unipg.estimator.sets import OUTSIDE, SetAdvantage, Shared, distinct, plan_shared, set_advantages, set_scores
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.base import Demand, Vines
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.rollouts.snapshots import Copies
from unipg.rollouts.vines import SIGNATURE
from unipg.training.run import wanted_of
from unipg.trajectories import Evaluation

REWARD = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
ROOMS = "unipg.environments:unipg/FourRooms-v0"


def expected_score(logits: torch.Tensor, n: int) -> torch.Tensor:
    """E f over all sets of n draws from a bandit with rewards (1, 1, 0), with the graph."""
    member = torch.tensor(list(itertools.product(range(3), repeat=n)))
    score = set_scores(REWARD, distinct(member).double() / n, member)
    return (logits.log_softmax(0)[member].sum(1).exp() * score).sum()


# ---------------------------------------------------------------------------------------------------- the objective


def test_the_bandit_of_three_arms() -> None:
    """Uniform policy, n = 2: E f = 5/9, gradient (2, 2, −4)/27, marginal advantage (1, 1, −2)/9."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = expected_score(logits, 2)
    assert value.item() == pytest.approx(5 / 9, abs=1e-15)
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, torch.tensor([2, 2, -4], dtype=torch.float64) / 27, rtol=0, atol=1e-15)
    member = torch.tensor(list(itertools.product(range(3), repeat=2)))
    score = set_scores(REWARD, distinct(member).double() / 2, member)
    marginal = torch.stack([score[member[:, 0] == arm].mean() for arm in range(3)]) - score.mean()
    torch.testing.assert_close(marginal, torch.tensor([1, 1, -2], dtype=torch.float64) / 9, rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_one_number_for_all_members_is_the_gradient_of_the_expected_score(n: int, baseline: float) -> None:
    """E[(f − b) Σ_i ∇log pi(a_i)] = ∇E f, for any b."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(expected_score(logits, n), logits)
    member = torch.tensor(list(itertools.product(range(3), repeat=n)))
    score = set_scores(REWARD, distinct(member).double() / n, member)
    log_prob = logits.log_softmax(0)[member].sum(1)
    (found,) = torch.autograd.grad((log_prob.exp().detach() * (score - baseline) * log_prob).sum(), logits)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-15)


def bandit_batch(arms: tuple[int, ...]) -> Trajectories:
    action = torch.tensor(arms).unsqueeze(1)
    return Trajectories(
        action=action, mask=torch.ones_like(action, dtype=torch.bool), group=torch.zeros(len(arms)).long(), reward=REWARD[[*arms]]
    )


@pytest.mark.parametrize(("rollouts", "n"), [(3, 1), (3, 2), (4, 2), (4, 3)])
def test_all_sets_among_the_rollouts_of_a_prompt(rollouts: int, n: int) -> None:
    """What `polychromic` does with N rollouts and all their sets, enumerated: (1/n) (1 − n/N) ∇E f."""
    algorithm = Polychromic(rollouts=rollouts, set_size=n)
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    total = torch.zeros(3, dtype=torch.float64)
    for arms in itertools.product(range(3), repeat=rollouts):
        batch = algorithm.prepare(bandit_batch(arms), Setting(), Planning())
        advantage = algorithm.advantage(batch).squeeze(1)
        log_prob = logits.log_softmax(0)[[*arms]]
        (gradient,) = torch.autograd.grad((advantage * log_prob).mean(), logits)
        total += log_prob.sum().exp().item() * gradient
    (exact,) = torch.autograd.grad(expected_score(logits, n), logits)
    torch.testing.assert_close(total, (1 - n / rollouts) / n * exact, rtol=0, atol=1e-15)


def test_one_alone_without_diversity_is_reinforce() -> None:
    """n = 1: F is the reward, so that the set advantage is that of the group's mean as a baseline."""
    batch = bandit_batch((0, 2, 1, 2, 0))
    for diversity in ("none", "fraction"):
        algorithm = Polychromic(rollouts=5, set_size=1, diversity=diversity)
        found = algorithm.advantage(algorithm.prepare(batch, Setting(), Planning()))
        torch.testing.assert_close(found, GroupCentered()(batch), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("n", "end"), [(2, (0.5, 0.5, 0.0)), (4, (0.466, 0.466, 0.067))])
def test_the_fixed_point(n: int, end: tuple[float, ...]) -> None:
    """Ascent from logits (1, 0, 0): both right arms in the end, and with n = 4 some of the wrong one too."""
    logits = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    for _ in range(3000):
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad(expected_score(logits, n), logits)
        logits = (logits + 4 * gradient).detach()
    assert logits.softmax(0).tolist() == pytest.approx(end, abs=2e-3)


def test_the_expected_reward_never_brings_the_second_arm_back() -> None:
    """f of (q, 1 − q, 0) is 1/2 + q (1 − q), 3/4 at most; the expected reward is 1 for all q, and its ascent keeps what it began with."""
    for q in (0.5, 0.9):
        logits = torch.tensor([q, 1 - q, 1e-300], dtype=torch.float64).log()
        assert float(expected_score(logits, 2)) == pytest.approx(0.5 + q * (1 - q), abs=1e-12)
    logits = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    for _ in range(3000):
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad((logits.softmax(0) * REWARD).sum(), logits)
        logits = (logits + 4 * gradient).detach()
    assert float(logits.softmax(0)[0]) > 0.98


# ---------------------------------------------------------------------------------------------------- the advantage


@pytest.mark.parametrize(("rewards", "signature"), [([0.3, 0.3, 0.3, 0.3], [7, 7, 7, 7]), ([0.0, 0.0, 0.0, 0.0], [0, 1, 2, 1])])
@pytest.mark.parametrize("sets", [None, 4])
def test_sets_that_score_the_same_say_exactly_nothing(rewards: list[float], signature: list[int], sets: int | None) -> None:
    batch = bandit_batch((0, 0, 0, 0)).replace(reward=torch.tensor(rewards, dtype=torch.float64))
    algorithm = Polychromic(rollouts=4, set_size=3, sets=sets)
    ready = algorithm.planned_sets(batch, signature, torch.ones(4, dtype=torch.bool), Planning())
    assert torch.equal(ready.planned["sets/advantage"], torch.zeros(4, dtype=torch.float64))
    assert algorithm.metrics(ready)["sets/no_signal_fraction"] == 1


def test_a_row_in_several_sets_gets_their_mean_and_one_in_none_gets_nothing() -> None:
    score = torch.tensor([0.2, 0.6, 0.5], dtype=torch.float64)
    member = torch.tensor([[0, 1], [1, 2], [4, 5]])
    found = set_advantages(score, torch.tensor([9, 9, 3]), member, 7)
    expected = torch.tensor([-0.2, 0.0, 0.2, 0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(found.advantage, expected, rtol=0, atol=1e-15)
    assert found.sets.tolist() == [1, 2, 1, 0, 1, 1, 0]


def test_the_window() -> None:
    """A# on a member's first W + 1 steps of the policy; GAE, whitened by itself, on everything else."""
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.bool)
    draw = torch.Generator().manual_seed(0)
    batch = Trajectories(
        action=torch.zeros(2, 5).long(),
        mask=mask,
        step_reward=torch.rand(2, 5, generator=draw, dtype=torch.float64),
        value=torch.rand(2, 5, generator=draw, dtype=torch.float64),
    )
    ready = plan_shared(batch, Shared(torch.tensor([0.25, 9.0]).double(), torch.tensor([2.0, 0.0])), 1)
    gae = GAE(tokens=OUTSIDE)
    found = SetAdvantage(gae, scale=3.0, window=1)(ready)
    inside = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert found[inside].tolist() == [0.75, 0.75]
    others = mask & ~inside
    torch.testing.assert_close(found[others], gae(ready)[others], rtol=0, atol=0)
    assert float(found[others].mean()) == pytest.approx(0, abs=1e-12)
    assert float(found[others].std()) == pytest.approx(1, abs=1e-6)


def test_the_penalty_is_the_forward_kl() -> None:
    """KL(pi_b ‖ pi_theta), its gradient that of the cross-entropy: pi_theta − pi_b, of the logits."""
    objective = PolychromicPPO(kl=0.1).learners(Setting(acts=True, counted=True, actions=3))[0].terms
    penalty = next(term for term in objective.terms if not isinstance(term, PolicyGradient))

    class Two(Evaluation):
        def divergence(self, of: str, other: str, at: str = "observation") -> torch.Tensor:
            one, two = (table[name].log_softmax(-1) for name in (of, other))
            return (one.exp() * (one - two)).sum(-1)

    table = {"actor_b": torch.tensor([[[0.1, 0.7, -0.3]]]), "actor": torch.tensor([[[0.0, 0.0, 0.5]]], requires_grad=True)}
    loss, _ = penalty.per_token(Two(torch.zeros(1, 1)), bandit_batch((0,)), "kl", Planning())
    loss.sum().backward()
    torch.testing.assert_close(table["actor"].grad, (table["actor"].softmax(-1) - table["actor_b"].softmax(-1)).detach())


# ---------------------------------------------------------------------------------------------------- vines


@pytest.mark.parametrize("name", [ROOMS, "CartPole-v1", "FrozenLake-v1", "MiniGrid-FourRooms-v0"])
def test_an_environment_comes_back_as_it_stood(name: str) -> None:
    """The same actions give the same observations and rewards, and as many steps are left."""
    if name.startswith("MiniGrid"):
        pytest.importorskip("minigrid")

    def new() -> gymnasium.Env:
        environment = gymnasium.make(name.rpartition(":")[2], **({} if name.startswith("unipg") else {"max_episode_steps": 40}))
        environment.reset(seed=0)
        return environment

    copies, environment = Copies(new), new()
    environment.reset(seed=5)
    environment.action_space.seed(1)
    for _ in range(3):
        environment.step(environment.action_space.sample())
    saved = copies.save(environment)
    actions = [environment.action_space.sample() for _ in range(60)]

    def played(one: gymnasium.Env) -> list[object]:
        found = []
        for action in actions:
            seen, reward, terminated, truncated, _ = one.step(action)
            found.append((str(seen), reward, terminated, truncated))
            if terminated or truncated:
                break
        return found

    first, second = copies.back(saved), copies.back(saved)
    assert first is not second
    expected = played(environment)
    assert expected[-1][2] or expected[-1][3]
    assert played(first) == expected == played(second)
    copies.done([first, second])
    assert played(copies.back(saved)) == expected


def collected(environment: str = ROOMS, steps: int = 60, options: dict | None = None, wrappers: list | None = None, **vines) -> tuple:
    recipe = EnvironmentRecipe(environment, 3, steps, options or {}, wrappers=wrappers or [])
    rollouts = recipe.build(0)
    policy = ActorCriticRecipe(hidden=[]).build(rollouts.observation_space, rollouts.action_space, 0, wanted=wanted_of(PolychromicPPO()))
    return rollouts.collect(policy, Demand(0, value=True, vines=Vines(**vines)))


def test_vines_begin_where_the_episode_stood() -> None:
    batch, told = collected(states=2, count=4)
    assert len(batch) == 3 + 3 * 2 * 4
    assert batch.group.tolist() == [0, 1, 2] + [3 + k // 4 for k in range(24)]
    lengths = batch.mask.sum(1)
    for episode in range(3):
        half = int(lengths[episode]) // 2
        for state, step in enumerate((0, half)):
            rows = [3 + 8 * episode + 4 * state + k for k in range(4)]
            assert all(torch.equal(batch.observation[row, 0], batch.observation[episode, step]) for row in rows)
            assert all(step + int(lengths[row]) <= 60 for row in rows)
            assert len({str(batch.action[row, : lengths[row]].tolist()) for row in rows}) > 1
    assert told["environment/steps"] == int(lengths.sum())
    assert batch.annotations[SIGNATURE][:3] == [None] * 3
    shares = {name: value for name, value in told.items() if name.startswith("vines/share_")}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(name.startswith("vines/share_0") for name in shares)


def test_time_goes_on_in_vines() -> None:
    """A goal that is reached early pays what it pays at that time of the episode, and an episode's limit is cut, not ended."""
    batch, _ = collected(options={"horizon": 20}, states=2, count=2)
    lengths, ends = batch.mask.sum(1), batch.truncated.any(1) | batch.terminated.any(1)
    assert bool(ends.all())
    assert lengths[:3].tolist() == [20, 20, 20]
    assert lengths[5:7].tolist() == [10, 10]
    assert bool(batch.truncated.any(1).all())
    last = lengths - 1
    assert bool((batch.bootstrap_value[torch.arange(len(batch)), last] != 0).all())


def test_the_limit_of_the_recipe_leaves_episodes_open() -> None:
    batch, _ = collected(steps=16, states=2, count=2)
    assert batch.mask.shape[1] == 16
    assert not bool(batch.truncated.any() | batch.terminated.any())
    assert batch.mask.sum(1)[5:7].tolist() == [8, 8]


def test_an_episode_of_one_step_has_one_state() -> None:
    batch, _ = collected("unipg.environments:unipg/Bandit-v0", options={"arms": 3, "best": 2}, states=4, count=2)
    assert batch.group.tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 5]


def test_chance_is_drawn_anew_for_each_vine() -> None:
    """On slippery ice a policy that always does the same comes through different states."""
    recipe = EnvironmentRecipe("FrozenLake-v1", 1, 50)
    rollouts = recipe.build(0)
    policy = ActorCriticRecipe(hidden=[]).build(rollouts.observation_space, rollouts.action_space, 0, wanted=wanted_of(PolychromicPPO()))
    with torch.no_grad():
        policy.module.actor.layers[-1].bias.copy_(torch.tensor([100.0, 0, 0, 0]))
    batch, _ = rollouts.collect(policy, Demand(0, value=True, vines=Vines(1, 8)))
    assert set(batch.action[batch.mask].tolist()) == {0}
    assert len({str(row.tolist()) for row in batch.observation[1:]}) > 4


# ---------------------------------------------------------------------------------------------------- the toy


def test_the_grid_has_two_equally_short_ways() -> None:
    moves = four_rooms.shortest_moves()
    start = four_rooms.START[0] * four_rooms.SIZE + four_rooms.START[1]
    assert moves[start].tolist() == [False, True, False, True]
    environment = gymnasium.make(ROOMS)
    for way in ([3] * 6 + [1] * 6, [1] * 6 + [3] * 6):
        environment.reset(seed=0)
        places = []
        for move in way:
            _, reward, ended, _, info = environment.step(move)
            places.append(info["place"])
        assert ended
        assert reward == pytest.approx(1 - 0.5 * 12 / 60)
        assert {place for place in places if place is not None} == ({0, 1, 3} if way[0] == 3 else {0, 2, 3})
    shut = gymnasium.make(ROOMS, closed=[[2, 5]], render_mode="rgb_array")
    shut.reset(seed=0)
    for _ in range(6):
        seen = shut.step(3)[0]
    assert int(seen) == 2 * 11 + 4
    picture = shut.render()
    assert picture.shape == (220, 220, 3)
    assert tuple(picture[50, 90]) != (255, 255, 255) != tuple(picture[50, 110]) == (96, 96, 96)


def test_configurations_are_a_few_seeds() -> None:
    pytest.importorskip("minigrid")
    from unipg.environments.minigrid import Rooms
    from unipg.environments.starts import Configurations

    environment = Configurations(Rooms(gymnasium.make("MiniGrid-FourRooms-v0")), count=2)
    seen = {environment.reset(seed=seed)[0].tobytes() for seed in range(12)} | {environment.reset()[0].tobytes() for _ in range(12)}
    assert len(seen) == 2
    vector, info = environment.reset(seed=1)
    assert vector.shape == environment.observation_space.shape
    assert vector.sum() == 7 * 7 * 3 + 1
    assert info["place"] in (0, 1, 2, 3)
    with pytest.raises(ValueError, match="count is 0"):
        Configurations(environment, count=0)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Polychromic, {"set_size": 8}, "set_size is 8; accepted: 1 or more, and fewer than the 8"),
        (Polychromic, {"set_size": 0}, "set_size is 0"),
        (Polychromic, {"set_size": 1, "diversity": "none_if_alike"}, "accepted: 2 or more"),
        (Polychromic, {"sets": 1}, "sets is 1"),
        (Polychromic, {"rollouts": 40, "set_size": 20}, "137,846,528,820 sets of 20"),
        (Polychromic, {"diversity": "fractoin"}, "algorithm.diversity"),
        (Polychromic, {"poly_scale": -1.0}, "poly_scale is -1"),
        (Polychromic, {"reward_low": 2.0}, "reward_low is 2"),
        (Polychromic, {"extract": "("}, "no regular expression"),
        (PolychromicPPO, {"vine_count": 4}, "fewer than the 4"),
        (PolychromicPPO, {"vine_states": 0}, "vine_states is 0"),
        (PolychromicPPO, {"shared_steps": -1}, "shared_steps is -1"),
        (
            PolychromicPPO,
            {"signature": "sets"},
            "unknown algorithm.signature 'sets'; did you mean 'set' .*accepted: last, package.module:fun",
        ),
        (PolychromicPPO, {"place": "no.such:thing"}, "algorithm.place"),
        (PolychromicPPO, {"place": "obs"}, "unknown algorithm.place 'obs'; accepted: auto, package.module:function"),
        (
            PolychromicPPO,
            {"diversity": "fractoin"},
            "unknown algorithm.diversity 'fractoin'; did you mean 'fraction'. accepted: fraction, none,",
        ),
        (
            Polychromic,
            {"diversity": "fractoin"},
            "unknown algorithm.diversity 'fractoin'; did you mean 'fraction'. accepted: fraction, none,",
        ),
        (PolychromicPPO, {"gamma": 1.5}, "gamma is 1.5"),
    ],
)
def test_settings_that_mean_nothing(kind: type, settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        kind(**settings)


def test_what_sets_refuse() -> None:
    algorithm, rows = Polychromic(rollouts=4), torch.ones(4, dtype=torch.bool)
    batch = bandit_batch((0, 1, 2, 0))
    with pytest.raises(InputError, match=r"the reward of row 1 is 1.5; .*reward_low and reward_high"):
        algorithm.planned_sets(batch.replace(reward=torch.tensor([0.0, 1.5, 0.0, 1.0])), [0, 1, 2, 3], rows, Planning())
    with pytest.raises(InputError, match=r"the reward of row 0 is nan"):
        algorithm.planned_sets(batch.replace(reward=torch.tensor([math.nan, 1, 0, 1])), [0, 1, 2, 3], rows, Planning())
    with pytest.raises(InputError, match=r"the signature of row 2 is \[3\]; accepted: a hashable"):
        algorithm.planned_sets(batch, [1, 2, [3], 4], rows, Planning())
    wide = Polychromic(rollouts=4, diversity=f"{__name__}:too_large")
    with pytest.raises(InputError, match=r"is 2 for a set; accepted: a number in \[0, 1\]"):
        wide.planned_sets(batch, [0, 1, 2, 3], rows, Planning())
    scaled = Polychromic(rollouts=4, reward_low=-1.0, reward_high=3.0)
    ready = scaled.planned_sets(batch.replace(reward=torch.tensor([-1.0, 3.0, 1.0, 1.0])), [0, 0, 0, 0], rows, Planning())
    assert float(ready.planned["sets/score"][0]) == pytest.approx(0.25)


def too_large(signatures: list[int]) -> float:
    return 2.0


def unhashable(places: list[object]) -> list[object]:
    return places


def as_array(environment: gymnasium.Env, info: dict) -> np.ndarray:
    return np.zeros(2)


class Placed(gymnasium.Wrapper):
    """Tells places that cannot be compared."""

    def reset(self, **given):
        observation, info = self.env.reset(**given)
        return observation, {**info, "place": np.zeros(2)}


class Forgetful(gymnasium.Wrapper):
    """Holds what cannot be copied."""

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self.stream = (number for number in range(3))


class Drifting(gymnasium.Wrapper):
    """What a step leads to does not depend on the environment alone."""

    count = 0

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, **given):
        return np.zeros(1, np.float32), self.env.reset(**given)[1]

    def step(self, action):
        Drifting.count += 1
        return np.full(1, Drifting.count, np.float32), *self.env.step(action)[1:]


class Paid(gymnasium.Wrapper):
    """What a step earns does not depend on the environment alone, what it leads to does."""

    count = 0

    def step(self, action):
        Paid.count += 1
        observation, _, *rest = self.env.step(action)
        return observation, Paid.count / 1e4, *rest


def test_vines_need_environments_that_come_back() -> None:
    with pytest.raises(InputError, match=r"cannot be saved and restored \(.*generator.*\).*accepted: one that can"):
        collected(wrappers=[f"{__name__}.Forgetful"])
    with pytest.raises(InputError, match="the same 30 actions led somewhere else"):
        collected(wrappers=[f"{__name__}.Drifting"])
    with pytest.raises(InputError, match="the same 30 actions led somewhere else, or earned something else"):
        collected(wrappers=[f"{__name__}.Paid"])
    with pytest.raises(InputError, match="gave no hashable value"):
        collected(signature=f"{__name__}:unhashable")
    with pytest.raises(InputError, match=r"algorithm\.place failed"):
        collected(place=f"{__name__}:too_large")
    with pytest.raises(InputError, match=r"algorithm\.place is array\(\[.*accepted: a hashable value, such as a number, text or a tuple"):
        collected(place=f"{__name__}:as_array")
    with pytest.raises(InputError, match=r"info\['place'\] is array\(\[.*accepted: a hashable value"):
        collected(wrappers=[f"{__name__}.Placed"])
    with pytest.raises(InputError, match="scored by rewards as they are"):
        EnvironmentRecipe(ROOMS, 2, 8, normalize_rewards=True).build(0).collect(
            ActorCriticRecipe().build(gymnasium.spaces.Discrete(121), gymnasium.spaces.Discrete(4), 0), Demand(0, vines=Vines())
        )
    with pytest.raises(InputError, match=r"environment\.processes is 2"):
        EnvironmentRecipe(ROOMS, 2, 8, processes=2).build(0).collect(
            ActorCriticRecipe().build(gymnasium.spaces.Discrete(121), gymnasium.spaces.Discrete(4), 0), Demand(0, vines=Vines())
        )
