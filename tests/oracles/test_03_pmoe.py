"""Closed-form oracles of PMOE (arXiv 2104.09122): one component, the density, isolation, winners, the router's fixed point, PPO."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from unipg import InputError, Planning, Source, Trajectories
from unipg.algorithms import PMOEPPO, PMOESAC, PPO, SAC, Setting
from unipg.algorithms.base import Algorithm
from unipg.algorithms.learners import Learner
from unipg.cli import main
from unipg.networks.perceptron import Routed
from unipg.policies.actions import BoxActions, SquashedActions
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.mixtures import MixtureActions, SquashedMixtureActions
from unipg.policies.now import NOISE
from unipg.rollouts.environments import EnvironmentRecipe, evaluate_controller
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.feeds.replay import ReplayRecipe
from unipg.training.run import wanted_of

ROWS, K, A = 40, 3, 2
LOW, HIGH = (-1.0,) * A, (1.0,) * A


def policy(algorithm: Algorithm, *, hidden: tuple[int, ...] = (8,), components: int = K, seed: int = 5) -> ActorCritic:
    kind = SquashedMixtureActions if algorithm.replays else MixtureActions
    networks = algorithm.networks(False)
    made = ActorCritic((2,), kind((A,), LOW, HIGH, components=components), hidden=hidden, init="torch", networks=networks, seed=seed)
    made.module.double()
    return made


def rows(algorithm: Algorithm, components: int = K) -> Trajectories:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(ROWS, 1, *shape, generator=draw, dtype=torch.float64)

    noises = MixtureActions((A,), LOW, HIGH, components=components).noises
    batch = Trajectories(
        action=normal(A).tanh(),
        mask=torch.ones(ROWS, 1, dtype=torch.bool),
        observation=normal(2),
        next_observation=normal(2),
        step_reward=normal(),
        terminated=torch.zeros(ROWS, 1, dtype=torch.bool),
        source=torch.full((ROWS,), int(Source.REPLAY if algorithm.replays else Source.ROLLOUT)),
        planned={NOISE.format(at): normal(noises) for at in ("observation", "next_observation")},
    )
    return batch if algorithm.replays else batch.replace(value=normal(), bootstrap_value=normal())


def learner(algorithm: Algorithm, name: str = "policy") -> Learner:
    return next(found for found in algorithm.learned(Setting(1, False, A, acts=True)) if found.name == name)


def loss(found: Learner, made: ActorCritic, batch: Trajectories) -> Tensor:
    ready = found.terms.plan(found.terms.prepare(batch))
    return found.terms.loss(made.now(ready, found.terms.differentiates), ready)


def means(made: ActorCritic) -> Tensor:
    """[K,A] of an actor that is its bias."""
    return made.network("actor").network.layers[0].bias[: K * A].view(K, A)


# ---------------------------------------------------------------------------------------------------- 1. one component


def trained(algorithm: Algorithm, folder: Path, **controller: object) -> dict[str, Tensor]:
    experience = EnvironmentRecipe("Pendulum-v1", 2, 60).build(3)
    spaces = experience.observation_space, experience.action_space
    made = ActorCriticRecipe(hidden=[16, 16], **controller).build(*spaces, 3, wanted=wanted_of(algorithm))
    training, replay = TrainingRecipe(iterations=2), ReplayRecipe(batch=32, warmup=40, updates_per_step=0.5)
    Trainer(algorithm, made, experience, folder=folder, training=training, replay=replay, seed=3).train()
    return made.module.state_dict()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.2, "critics": 1}], ids=["learned", "fixed"])
def test_one_component_is_soft_actor_critic_to_the_bit(tmp_path, settings) -> None:
    sac = trained(SAC(**settings), tmp_path / "sac")
    for update in ("max", "all"):
        pmoe = trained(PMOESAC(update=update, **settings), tmp_path / update, components=1)
        assert len(pmoe) == len(sac) + 2
        for name, expected in sac.items():
            assert torch.equal(pmoe[name.replace("actor.", "actor.network.", 1)], expected), name


@pytest.mark.parametrize("settings", [{}, {"update": "all"}, {"entropy": "mixture"}, {"update": "all", "entropy": "mixture"}])
def test_how_a_batch_is_cut_changes_nothing(settings, tmp_path) -> None:
    """Winners, and the router that a mixture's density reads, are the same for all learners however small a micro-batch is."""
    plain = {"kind": "sgd", "learning_rate": 0.1, "clip_norm": None}  # Adam's steps are no smaller where gradients are nothing but rounding

    def weights(tokens: int) -> dict[str, Tensor]:
        experience = EnvironmentRecipe("Pendulum-v1", 2, 20).build(3)
        spaces = experience.observation_space, experience.action_space
        made = ActorCriticRecipe(hidden=[16]).build(*spaces, 3, wanted=wanted_of(PMOESAC(**settings)))
        run = Trainer(
            PMOESAC(**settings),
            made,
            experience,
            folder=tmp_path / str(tokens),
            training=TrainingRecipe(iterations=1, micro_batch_tokens=tokens),
            optimizer=OptimizerRecipe(learners=dict.fromkeys(("router", "temperature", "critic", "policy"), plain)),
            replay=ReplayRecipe(batch=32, warmup=36, updates_per_step=1.0),
            seed=3,
        )
        run.train()
        assert run.step == 4
        return made.module.state_dict()

    whole, cut = weights(16384), weights(7)
    assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 2e-5


def test_the_router_of_one_component_has_nothing_to_learn() -> None:
    algorithm = PMOESAC()
    made, batch = policy(algorithm, components=1), rows(algorithm, 1)
    assert torch.equal(made.now(batch).router("observation"), torch.zeros(ROWS, 1, 1, dtype=torch.float64))
    found = loss(learner(algorithm, "router"), made, batch)
    assert found == 0
    assert all(not g.any() for g in torch.autograd.grad(found, made.networks["router"]))


def test_one_component_has_the_gaussians_density() -> None:
    draw = torch.Generator().manual_seed(1)
    mean, log_std, action = (torch.randn(ROWS, A, generator=draw, dtype=torch.float64) for _ in range(3))
    logit = torch.randn(ROWS, 1, generator=draw, dtype=torch.float64)
    plain, one = BoxActions((A,), LOW, HIGH), MixtureActions((A,), LOW, HIGH, components=1)
    expected = plain.log_prob(mean, log_std[0], action, False)[0]
    assert torch.equal(one.log_prob(torch.cat([mean, logit], 1), log_std[0], action, False)[0], expected)
    both = torch.cat([mean, log_std], 1)
    squashed, one = SquashedActions((A,), LOW, HIGH), SquashedMixtureActions((A,), LOW, HIGH, components=1)
    expected = squashed.log_prob(both, None, action.tanh(), False)[0]
    assert torch.equal(one.log_prob(torch.cat([both, logit], 1), None, action.tanh(), False)[0], expected)


# ---------------------------------------------------------------------------------------------------- 2. the mixture


def test_the_density_of_two_components() -> None:
    actions = MixtureActions((1,), (-math.inf,), (math.inf,), components=2)
    output = torch.tensor([[-0.5, 0.6, math.log(0.25), math.log(0.75)]], dtype=torch.float64)
    log_std = torch.tensor([0.4, 0.2], dtype=torch.float64).log()
    found = actions.log_prob(output, log_std, torch.tensor([[0.3]], dtype=torch.float64), False)[0]
    torch.testing.assert_close(found, torch.tensor([-0.6550129462229307], dtype=torch.float64), rtol=1e-14, atol=0)


def test_far_from_all_components_the_density_is_small_and_not_zero() -> None:
    actions = MixtureActions((1,), (-math.inf,), (math.inf,), components=2)
    output = torch.tensor([[-0.5, 0.6, 0.0, -800.0]], requires_grad=True)  # in float32, and one weight is 0 there
    found = actions.log_prob(output, torch.tensor([-3.0, -3.0]), torch.tensor([[90.0]]), False)[0]
    assert -1.8e6 < float(found.detach()) < -1.6e6
    assert torch.autograd.grad(found, output)[0].isfinite().all()


@pytest.mark.parametrize("kind", [MixtureActions, SquashedMixtureActions])
def test_densities_integrate_to_one_and_draws_have_them(kind) -> None:
    actions = kind((1,), (-1.0,), (1.0,), components=3)
    draw = torch.Generator().manual_seed(2)
    output = torch.randn(1, actions.outputs + 3, generator=draw, dtype=torch.float64)
    log_std = torch.tensor([-0.5, 0.1, -1.0], dtype=torch.float64) if actions.has_log_std else None
    u = torch.linspace(-40, 40, 80001, dtype=torch.float64).unsqueeze(1)
    slope = actions.log_slope(u)
    density = (actions.log_mixture(output.expand(len(u), -1), log_std, u) + slope).exp()
    assert float(torch.trapezoid(density, u[:, 0])) == pytest.approx(1, abs=1e-9)
    noise = torch.from_numpy(actions.noise(1, 40000, draw)[0]).double()
    action, log_prob = actions.fresh(output.expand(len(noise), -1), noise, log_std)
    stored = actions.log_prob(output.expand(len(noise), -1), log_std, action, False)[0]
    torch.testing.assert_close(log_prob, stored, rtol=1e-7, atol=1e-7)
    below = torch.trapezoid(density[u[:, 0] <= 0.3], u[u[:, 0] <= 0.3][:, 0])
    at = actions.bounded(torch.tensor(0.3, dtype=torch.float64))
    assert float((action <= at).double().mean()) == pytest.approx(float(below), abs=4 * 0.5 / 200)  # four standard errors
    std = None if log_std is None else log_std.exp().numpy()
    np.testing.assert_allclose(actions.draw(output.expand(len(noise), -1).numpy(), std, noise.numpy()), action.numpy(), rtol=1e-12)


def test_the_router_draws_components_as_often_as_their_weights_say() -> None:
    actions, draw = MixtureActions((1,), (-1.0,), (1.0,), components=3), torch.Generator().manual_seed(4)
    weights = torch.tensor([0.2, 0.7, 0.1])
    output = torch.cat([torch.zeros(3), weights.log()]).expand(20000, -1)
    noise = torch.from_numpy(actions.noise(1, 20000, draw)[0])
    counts = torch.bincount(actions.drawn(output, noise), minlength=3) / 20000
    assert float((counts - weights).abs().max()) < 4 * 0.5 / math.sqrt(20000)
    noise[:, -1] = torch.linspace(-40, 40, 20000)  # also what no float can tell from 0 and 1
    assert set(actions.drawn(output, noise).tolist()) == {0, 1, 2}


def test_the_most_likely_action_is_the_mean_of_the_best_component() -> None:
    actions = SquashedMixtureActions((A,), LOW, HIGH, components=2)
    output = torch.tensor([[0.1, 0.2, 0.3, 0.4, *[-1.0] * 4, 0.0, 1.0], [0.1, 0.2, 0.3, 0.4, *[-1.0] * 4, 1.0, 0.0]])
    expected = torch.tensor([[0.3, 0.4], [0.1, 0.2]]).tanh()
    assert torch.equal(actions.likeliest(output), expected)
    np.testing.assert_allclose(actions.draw(output.numpy(), None, None), expected, rtol=1e-6)
    assert torch.equal(actions.fresh(output, None)[0], expected)


# ---------------------------------------------------------------------------------------------------- 3. isolation


def test_the_routers_loss_does_not_reach_the_trunk_nor_the_policys_the_router() -> None:
    algorithm = PMOESAC()
    made, batch = policy(algorithm), rows(algorithm)
    frequencies, primitives = (loss(learner(algorithm, name), made, batch) for name in ("router", "policy"))
    own, others = torch.autograd.grad(frequencies, made.networks["router"], retain_graph=True), made.networks["actor"]
    assert all(g.any() for g in own)
    assert all(g is None or not g.any() for g in torch.autograd.grad(frequencies, others, allow_unused=True))
    assert all(g.any() for g in torch.autograd.grad(primitives, others, retain_graph=True))
    assert all(g is None or not g.any() for g in torch.autograd.grad(primitives, made.networks["router"], allow_unused=True))


def test_in_ppo_the_routers_loss_reaches_the_router_alone() -> None:
    algorithm = PMOEPPO()
    made, batch = policy(algorithm), rows(algorithm)
    term = next(t for t in algorithm.objective(Setting(acts=True)).terms if t.name == "router")
    found = term(made.now(batch, term.differentiates), batch)
    assert all(g.any() for g in torch.autograd.grad(found, made.networks["router"], retain_graph=True))
    for name in ("actor", "critic", "ranker"):
        gradients = torch.autograd.grad(found, made.networks[name], allow_unused=True, retain_graph=True)
        assert all(g is None or not g.any() for g in gradients)


# ---------------------------------------------------------------------------------------------------- 4. winners


class Peaks(torch.nn.Module):
    """Q(s, a) = −Σ (a − c)² of the action alone."""

    channels = 1

    def __init__(self, centre: float = 0.2) -> None:
        super().__init__()
        self.centre = torch.nn.Parameter(torch.tensor(centre, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        return -(x[:, 2:] - self.centre).square().sum(-1, keepdim=True).unsqueeze(0)


def one_state(algorithm: PMOESAC) -> tuple[ActorCritic, Trajectories]:
    made, batch = policy(algorithm, hidden=()), rows(algorithm)
    made.modules["q"] = Peaks()
    with torch.no_grad():
        means(made).copy_(torch.tensor([[-0.5, -0.4], [0.1, 0.3], [0.6, 0.2]]))
    return made, batch.replace(observation=torch.zeros(ROWS, 1, 2, dtype=torch.float64))


def test_only_winners_are_moved_each_by_its_own_wins() -> None:
    algorithm = PMOESAC(temperature=0.3)
    made, batch = one_state(algorithm)
    found = learner(algorithm)
    now = made.now(batch)
    winner = now.winner("observation", algorithm.critic_of_actions().value("q"))[:, 0]
    action = now.components("observation").action
    assert torch.equal(winner, (-(action - 0.2).square().sum(-1)).argmax(-1))
    assert len(winner.unique()) == K  # each wins somewhere, so something is compared

    def of(batch: Trajectories) -> Tensor:
        (gradient,) = torch.autograd.grad(loss(found, made, batch), [made.network("actor").network.layers[0].bias])
        return gradient[: K * A].view(K, A)

    each = torch.stack([of(batch.select([row])) for row in range(ROWS)])
    for row in range(ROWS):
        assert not each[row][[k for k in range(K) if k != winner[row]]].any()
        assert each[row, winner[row]].any()
    whole = of(batch)
    for k in range(K):
        wins = winner == k
        torch.testing.assert_close(whole[k], wins.double().mean() * each[wins, k].mean(0), rtol=1e-12, atol=1e-15)


def test_all_components_are_moved_by_their_mean() -> None:
    made, batch = one_state(PMOESAC())
    found = loss(learner(PMOESAC(update="all", temperature=0.3)), made, batch)
    mean, log_std = (each.view(K, A) for each in made.network("actor").network.layers[0].bias.chunk(2))
    noise = batch.planned[NOISE.format("observation")][:, 0, : K * A].view(ROWS, K, A)
    u = mean + log_std.exp() * noise
    log_prob = (torch.distributions.Normal(mean, log_std.exp()).log_prob(u) - torch.log1p(-(u.tanh() ** 2))).sum(-1)
    expected = (0.3 * log_prob + (u.tanh() - 0.2).square().sum(-1)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entropy", ["component", "mixture"])
def test_losses_are_those_of_the_equations(entropy) -> None:
    algorithm = PMOESAC(entropy=entropy)
    made, batch = policy(algorithm), rows(algorithm)
    alpha = made.network("temperature").log_value.exp()

    def judged(at: str, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Actions and log-densities of every component, and of those the router draws the index."""
        output, noise = made.network("actor")(batch.require(at, "")[:, 0]), batch.planned[NOISE.format(at)][:, 0]
        mean, log_std = (each.view(ROWS, K, A) for each in output[:, : 2 * K * A].chunk(2, -1))
        u = mean + log_std.exp() * noise[:, : K * A].view(ROWS, K, A)
        slope = torch.log1p(-(u.tanh() ** 2)).sum(-1)
        gaussians = torch.distributions.Normal(mean.unsqueeze(1), log_std.exp().unsqueeze(1))
        pairs = gaussians.log_prob(u.unsqueeze(2)).sum(-1)  # [N, action of, under]
        w = torch.softmax(output[:, -K:], -1)
        log_prob = pairs.diagonal(0, 1, 2) if entropy == "component" else (w.unsqueeze(1) * pairs.exp()).sum(-1).log()
        level = torch.distributions.Normal(0, 1).cdf(noise[:, -1:])
        return u.tanh(), log_prob - slope, (w.cumsum(-1) < level).sum(-1)

    def q(name: str, at: Tensor, action: Tensor) -> Tensor:
        return made.network(name)(torch.cat([at, action], 1)).squeeze(-1)

    observation, following, row = batch.observation[:, 0], batch.next_observation[:, 0], torch.arange(ROWS)
    action, log_prob, _ = judged("observation", None)
    value = torch.stack([q("q", observation, action[:, k]).amin(0) for k in range(K)], -1)
    best = value.argmax(-1)
    with torch.no_grad():
        after, log_after, drawn = judged("next_observation", None)
        assert len(drawn.unique()) == K
        target = q("q_lagged", following, after[row, drawn]).amin(0) - alpha * log_after[row, drawn]
        target = batch.step_reward[:, 0] + 0.99 * target
    expected = {
        "policy": (alpha.detach() * log_prob[row, best] - value[row, best]).mean(),
        "critic": 0.5 * (q("q", observation, batch.action[:, 0]) - target).square().sum(0).mean(),
        "temperature": -(alpha.log() * (log_prob[row, best].detach() - A)).mean(),
        "router": (torch.nn.functional.one_hot(best, K) - made.now(batch, frozenset({"observation"})).router("observation")[:, 0].exp())
        .square()
        .mean(),
    }
    learners = algorithm.learned(Setting(1, False, A, acts=True))
    assert [found.name for found in learners] == ["router", "temperature", "critic", "policy"]
    for found in learners:
        got = loss(found, made, batch)
        torch.testing.assert_close(got, expected[found.name], rtol=1e-9, atol=1e-12)
        if entropy == "component" or found.name != "policy":
            own = [p for name in found.trains for p in made.networks[name]]
            pair = (torch.autograd.grad(each, own, retain_graph=True) for each in (got, expected[found.name]))
            for gradient, reference in zip(*pair, strict=True):
                torch.testing.assert_close(gradient, reference, rtol=1e-8, atol=1e-11)


# ---------------------------------------------------------------------------------------------------- 5. the router


def test_the_router_comes_to_the_frequencies_of_wins() -> None:
    """dL/dlogits = (2/K) (diag(w) − w wᵀ)(w − p), 0 at w = p; p are the shares of wins among the batch's drawn actions."""
    algorithm = PMOESAC()
    made, batch = one_state(algorithm)
    found = learner(algorithm, "router")
    winner = made.now(batch).winner("observation", algorithm.critic_of_actions().value("q"))
    p = torch.bincount(winner.flatten(), minlength=K).double() / ROWS
    bias = made.network("router").layers[0].bias
    for logits, expected in ((torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), None), (p.log(), torch.zeros(K, dtype=torch.float64))):
        with torch.no_grad():
            bias.copy_(logits)
        w = logits.softmax(-1)
        closed = 2 / K * (torch.diag(w) - torch.outer(w, w)) @ (w - p)
        (gradient,) = torch.autograd.grad(loss(found, made, batch), [bias])
        torch.testing.assert_close(gradient, closed, rtol=1e-10, atol=1e-15)
        if expected is not None:
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-15)


# ---------------------------------------------------------------------------------------------------- 6. PPO


def test_ppos_first_gradient_is_that_of_the_mixtures_score() -> None:
    """Ratios are 1, nothing is clipped, and −E[Â · ∇log pi] agrees with finite differences in means, log_std and logits."""
    algorithm = PMOEPPO(normalize_advantage=False)
    made, batch = policy(algorithm, hidden=()), rows(algorithm)
    batch = batch.replace(observation=torch.zeros(ROWS, 1, 2, dtype=torch.float64))
    term = next(t for t in algorithm.objective(Setting(acts=True)).terms if hasattr(t, "surrogate"))
    with torch.no_grad():
        old = made.now(batch).log_prob
    batch = batch.replace(old_log_prob=old, behaviour_log_prob=old)
    assert torch.equal((made.now(batch).log_prob - old).exp(), torch.ones_like(old))
    own = {
        "means": made.network("actor").network.layers[0].bias,
        "log_std": made.log_std,
        "logits": made.network("router").layers[0].bias,
    }
    gradients = torch.autograd.grad(term(made.now(batch), batch), list(own.values()))
    prepared = term.advantage(batch, None, Planning())

    def expected() -> Tensor:
        with torch.no_grad():
            return -(prepared * made.now(batch).log_prob).mean()

    step = 1e-6
    for parameter, gradient in zip(own.values(), gradients, strict=True):
        for place in range(parameter.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[place] += sign * step
                ends.append(expected())
                with torch.no_grad():
                    parameter[place] -= sign * step
            assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(float(gradient[place]), rel=1e-6, abs=1e-9)


def test_ppos_objective_is_ppos_with_a_ranker_and_a_router() -> None:
    algorithm = PMOEPPO()
    made, batch = policy(algorithm), rows(algorithm)
    names = [name for name, _ in learner(algorithm).terms.named()]
    assert names == ["policy_gradient", "value_loss", "ranker", "router"]
    ranker = next(t for t in algorithm.objective(Setting(acts=True)).terms if t.name == "ranker")
    plain = PPO(gamma=0.99, value_clip=0.2).objective(Setting(acts=True)).terms[1]
    target = plain.prepared(batch, Planning())["target"][:, 0]
    q = made.network("ranker")(torch.cat([batch.observation, batch.action], -1)[:, 0]).squeeze(-1)[0]
    torch.testing.assert_close(ranker(made.now(batch), batch), (q - target).square().mean(), rtol=1e-12, atol=0)  # 2 · ½ d²


# ---------------------------------------------------------------------------------------------------- evaluation, files, bad input


def test_evaluations_say_whose_mean_they_play(tmp_path) -> None:
    """With the router's best component every episode of the bandit has one return; with drawn ones there are as many as components."""
    recipe = EnvironmentRecipe("unipg.environments:unipg/Bandit-v0", 1, 8, evaluation_episodes=60)
    space = spaces.Box(0.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (1,))
    for evaluated, how in (("best", "the router's best component"), ("drawn", "components that the router draws")):
        made = ActorCriticRecipe(kind="squashed_mixture", evaluated=evaluated, init="torch", components=3).build(*space, 1)
        with torch.no_grad():
            made.network("router").layers[0].bias.copy_(torch.tensor([0.0, 0.0, 0.2]))
        result = evaluate_controller(made, recipe, 2)
        assert result.how == how
        spread = result.metrics["return"]["high"] - result.metrics["return"]["low"]
        assert (spread > 1e-9) == (evaluated == "drawn")
        made.save(tmp_path / evaluated)
        again = ActorCriticRecipe(model=str(tmp_path / evaluated)).build(*space, 0)
        assert again.actions == made.actions
        assert again.how_evaluated == how
        assert json.loads((tmp_path / evaluated / "config.json").read_text())["actions"]["components"] == 3
        other = {"best": "drawn", "drawn": "best"}[evaluated]
        assert ActorCriticRecipe(model=str(tmp_path / evaluated), evaluated=other).build(*space, 0).actions.evaluated == other
        observation = torch.ones(2, 1)
        with torch.no_grad():
            assert torch.equal(again.network("actor")(observation), made.network("actor")(observation))
    with pytest.raises(InputError, match=r"controller.components is 2, but that of the model"):
        ActorCriticRecipe(model=str(tmp_path / "best"), components=2).build(*space, 0)


def test_values_that_are_not_finite_name_the_component() -> None:
    algorithm = PMOESAC()
    made, batch = policy(algorithm), rows(algorithm)
    with torch.no_grad():
        for p in made.networks["q"]:
            p.fill_(math.nan)
    with pytest.raises(InputError, match=r"the value of a fresh action is nan \(row 0, position 0, component 0\), so that no component"):
        loss(learner(algorithm), made, batch)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("controller.components=0", "controller.components is 0; accepted: 1 or more"),
        ("controller.kind=squashed", "controller.kind is 'squashed'; accepted for algorithm 'pmoe_sac' here: squashed_mixture, auto"),
        (
            "environment.id=CartPole-v1",
            "the environment's actions are Discrete(2); accepted for algorithm 'pmoe_sac': a Box of real numbers",
        ),
        ("algorithm.update=best", "algorithm.update"),
        ("algorithm.entropy=none", "algorithm.entropy"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, change, line) -> None:
    recipe = tmp_path / "recipe.yaml"
    section = "environment: {id: Pendulum-v1, count: 1, steps: 10}\nreplay: {warmup: 4, batch: 4}\n"
    recipe.write_text(f"algorithm: {{name: pmoe_sac}}\noutput: {tmp_path / 'run'}\n{section}")
    assert main(["train", str(recipe), change]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_what_is_of_mixtures_alone_is_refused_elsewhere() -> None:
    box = spaces.Box(0.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (1,))
    with pytest.raises(InputError, match=r"controller.components is 3, which is of mixtures"):
        ActorCriticRecipe(components=3).build(*box, 0, wanted=wanted_of(SAC()))
    with pytest.raises(InputError, match="a mixture has 0 components"):
        MixtureActions((1,), (-1.0,), (1.0,), components=0)
    with pytest.raises(InputError, match="two finite bounds"):
        ActorCriticRecipe().build(box[0], spaces.Box(-np.inf, np.inf, (1,)), 0, wanted=wanted_of(PMOESAC()))
    with pytest.raises(InputError, match="closed form"):
        PMOEPPO(entropy=0.1)
    made, batch = policy(PMOEPPO()), rows(PMOEPPO())
    with pytest.raises(InputError, match="entropy of a mixture has no closed form"):
        _ = made.now(batch).entropy
    with pytest.raises(InputError, match="KL of two mixtures"):
        made.now(batch).divergence("actor", "actor")
    sac = ActorCriticRecipe().build(*box, 0, wanted=wanted_of(SAC()))
    with pytest.raises(InputError, match="a controller of kind mixture or squashed_mixture"):
        sac.now(batch).router("observation")


def test_a_router_on_the_host_is_that_of_torch() -> None:
    for kind in (MixtureActions, SquashedMixtureActions):
        made = ActorCritic((3,), kind((A,), LOW, HIGH, components=4), hidden=(7, 5), init="torch", seed=2)
        observation = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        assert isinstance(made.network("actor"), Routed)
        with torch.no_grad():
            expected = made.network("actor")(torch.from_numpy(observation)).numpy()
        for live in (False, True):
            np.testing.assert_allclose(made.network("actor").on_the_host(live=live)(observation), expected, rtol=1e-5, atol=1e-6)
