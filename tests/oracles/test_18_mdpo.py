"""Closed-form oracles of MDPO (arXiv 2005.09814): fixed points, the first step, the SAC identity, KL's direction, its two ends, Tsallis."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from unipg import InputError, Objective, Planning, Progress, Source, Trajectories
from unipg.algorithms import MDPO, PPO, SAC, OffPolicyMDPO, Setting
from unipg.algorithms.learners import Learner
from unipg.cli import main
from unipg.critics import Value
from unipg.estimator import PolicyGradient, Tightening
from unipg.policies.actions import BoxActions, DiscreteActions, SquashedActions
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.now import NOISE

OLD = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
COUNTED = Setting(1, True, 3)


class Known(torch.nn.Module):
    """Q of the three actions, whatever the state."""

    channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.stays = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, observation: Tensor, members: int | None = None) -> Tensor:
        return Q.expand(1, len(observation), 3)


def policy_of(algorithm: MDPO | OffPolicyMDPO, learner: str, setting: Setting = COUNTED) -> Learner:
    return next(found for found in algorithm.learned(setting) if found.name == learner)


def tabular(algorithm: MDPO | OffPolicyMDPO) -> ActorCritic:
    """One state, whose logits are log OLD, of the policy and of its copy; Q is known."""
    made = ActorCritic((1,), DiscreteActions(3), hidden=(), critic=False, networks={**algorithm.networks(True)})
    made.module.double()
    with torch.no_grad():
        for name in ("actor", "actor_k"):
            if name in made.modules:
                layer = made.network(name).layers[0]
                layer.weight.zero_()
                layer.bias.copy_(OLD.log())
    made.modules["q"] = Known()
    return made


def rows(source: Source) -> Trajectories:
    """Ten rows whose actions are as frequent as the old policy takes them, so that means over them are its expectations."""
    action = torch.tensor([[0]] * 5 + [[1]] * 3 + [[2]] * 2)
    return Trajectories(
        action=action,
        mask=torch.ones(10, 1, dtype=torch.bool),
        observation=torch.ones(10, 1, 1, dtype=torch.float64),
        step_reward=Q[action],
        terminated=torch.ones(10, 1, dtype=torch.bool),
        value=torch.full((10, 1), 0.3, dtype=torch.float64),  # the expected Q, so that the advantage is centred
        old_log_prob=OLD.log()[action],
        source=torch.full((10,), int(source)),
    )


def ascent(made: ActorCritic, learner: Learner, batch: Trajectories, planning: Planning | None = None) -> tuple[Tensor, list[Tensor]]:
    """The loss, and minus its gradient in the actor's parameters."""
    objective, planning = learner.terms, planning or Planning()
    ready = objective.plan(objective.prepare(batch, planning), planning)
    loss = objective.loss(made.now(ready, objective.differentiates), ready, planning)
    return loss.detach(), [-g for g in torch.autograd.grad(loss, made.networks["actor"])]


def fixed_point(algorithm: MDPO | OffPolicyMDPO, source: Source, rate: float, steps: int) -> Tensor:
    made, learner, batch = tabular(algorithm), policy_of(algorithm, "policy"), rows(source)
    for _ in range(steps):
        _, gradient = ascent(made, learner, batch)
        with torch.no_grad():
            for parameter, step in zip(made.networks["actor"], gradient, strict=True):
                parameter.add_(rate * step)
    return torch.softmax(made.network("actor")(torch.ones(1, 1, dtype=torch.float64)), -1)[0].detach()


def test_1_on_policy_the_fixed_point_is_the_tilted_old_policy() -> None:
    algorithm = MDPO(step_size=0.5, annealing="constant", normalize_advantage=False)
    found = fixed_point(algorithm, Source.ROLLOUT, 1.0, 300)
    assert found.tolist() == pytest.approx([0.66178, 0.24083, 0.09738], abs=1e-5)
    tilted = OLD * (0.5 * Q).exp()
    torch.testing.assert_close(found, tilted / tilted.sum(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kl", "expected"), [(2.0, [0.64756, 0.24801, 0.10443]), (0.2, [0.99326, 0.00669, 0.00005])])
def test_1_off_policy_the_copy_counts_with_its_power(kl, expected) -> None:
    """pi ∝ pi_k^(1 − lambda/c) · exp(Q/c); with c = lambda softmax(Q/lambda)."""
    algorithm = OffPolicyMDPO(kl=kl, temperature=0.2)
    tilted = OLD ** (1 - 0.2 / kl) * (Q / kl).exp()
    tilted /= tilted.sum()
    assert tilted.tolist() == pytest.approx(expected, abs=1e-5)
    made, learner, batch = tabular(algorithm), policy_of(algorithm, "policy"), rows(Source.REPLAY)
    with torch.no_grad():
        made.network("actor").layers[0].bias.copy_(tilted.log())
    assert max(float(g.abs().max()) for g in ascent(made, learner, batch)[1]) < 1e-14  # nothing pulls away from it
    found = fixed_point(algorithm, Source.REPLAY, 0.5 if kl == 2.0 else 2.0, 600 if kl == 2.0 else 4000)
    torch.testing.assert_close(found, tilted, rtol=0, atol=1e-10 if kl == 2.0 else 1e-4)  # and it is where ascent leads


def test_2_the_first_step_is_the_unclipped_policy_gradient() -> None:
    algorithm = MDPO(step_size=0.5, annealing="constant", normalize_advantage=False)
    _, (_, bias) = ascent(tabular(algorithm), policy_of(algorithm, "policy"), rows(Source.ROLLOUT))
    assert bias.tolist() == pytest.approx([0.35, -0.09, -0.26], abs=1e-12)


def squashed(algorithm: SAC | OffPolicyMDPO) -> ActorCritic:
    actions = SquashedActions((2,), (-1.0, 0.0), (1.0, 3.0))
    return ActorCritic(
        (3,), actions, hidden=(8,), activation="relu", init="torch", critic=False, networks=algorithm.networks(False), seed=4
    )


def replayed() -> Trajectories:
    draw = torch.Generator().manual_seed(0)
    return Trajectories(
        action=torch.rand(16, 1, 2, generator=draw) * 2 - 1,
        mask=torch.ones(16, 1, dtype=torch.bool),
        observation=torch.randn(16, 1, 3, generator=draw),
        next_observation=torch.randn(16, 1, 3, generator=draw),
        step_reward=torch.randn(16, 1, generator=draw),
        terminated=torch.rand(16, 1, generator=draw) < 0.2,
        source=torch.full((16,), int(Source.REPLAY)),
        planned={NOISE.format(at): torch.randn(16, 1, 2, generator=draw) for at in ("observation", "next_observation")},
    )


@pytest.mark.parametrize("critics", [1, 2])
def test_3_with_c_equal_to_lambda_it_is_soft_actor_critic_to_the_bit(critics) -> None:
    """Float32, the same networks and noise; the copy of the policy is not even asked for."""
    mirror, soft = OffPolicyMDPO(kl=0.2, temperature=0.2, critics=critics), SAC(temperature=0.2, critics=critics)
    setting = Setting(1, False, 2)
    assert mirror.networks(False).keys() == soft.networks(False).keys()
    found, wanted = squashed(mirror), squashed(soft)
    for name, value in wanted.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value)
    for name, trained in (("critic", "q"), ("policy", "actor")):
        theirs = next(x for x in soft.learned(setting) if x.name == name)
        if name == "policy":  # the first critic alone in both
            (term,) = theirs.terms.terms
            assert isinstance(term, PolicyGradient)
            first = dataclasses.replace(term, advantage=Value("q", "first") + term.advantage.terms[1][1])
            theirs = dataclasses.replace(theirs, objective=Objective((first,)))
        results = []
        for made, learner in ((found, policy_of(mirror, name, setting)), (wanted, theirs)):
            ready = learner.terms.plan(replayed())
            loss = learner.terms.loss(made.now(ready, learner.terms.differentiates), ready)
            results.append((loss, torch.autograd.grad(loss, made.networks[trained])))
        assert torch.equal(results[0][0], results[1][0])
        for a, b in zip(results[0][1], results[1][1], strict=True):
            assert torch.equal(a, b)


def test_3_a_copy_that_finds_an_action_impossible_cannot_spoil_the_identity() -> None:
    """−inf · 0 is NaN: where the weight is 0 the term is not there."""
    algorithm = OffPolicyMDPO(kl=0.2, temperature=0.2)
    assert "actor_k" not in algorithm.networks(True)
    assert not policy_of(algorithm, "policy").then


def test_4_the_direction_of_the_kl() -> None:
    actions = BoxActions((1,), (-math.inf,), (math.inf,), "float64")
    one, other = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[0.0]], dtype=torch.float64)
    spread, unit = torch.tensor([0.8], dtype=torch.float64).log(), torch.zeros(1, dtype=torch.float64)
    assert float(actions.kl(one, spread, other, unit)) == pytest.approx(0.1681435513, abs=1e-10)
    assert float(actions.kl(other, unit, one, spread)) == pytest.approx(0.2534189487, abs=1e-10)


def test_4_the_term_is_the_new_policy_from_the_old_one() -> None:
    algorithm = MDPO(step_size=0.5, annealing="constant")
    actions = BoxActions((1,), (-math.inf,), (math.inf,), "float64")
    made = ActorCritic((1,), actions, hidden=(), networks=algorithm.networks(False))
    made.module.double()
    with torch.no_grad():
        for name, mean in (("actor", 0.5), ("actor_k", 0.0)):
            made.network(name).layers[0].weight.zero_()
            made.network(name).layers[0].bias.fill_(mean)
        made.log_std_of("actor").fill_(math.log(0.8))
        made.log_std_of("actor_k").fill_(0.0)
    batch = Trajectories(
        action=torch.zeros(1, 1, 1, dtype=torch.float64),
        mask=torch.ones(1, 1, dtype=torch.bool),
        observation=torch.ones(1, 1, 1, dtype=torch.float64),
    )
    assert float(made.now(batch).divergence("actor", "actor_k").detach()) == pytest.approx(0.1681435513, abs=1e-10)


def test_5_without_a_kl_it_is_ppo_without_a_clip_and_at_first_whatever_the_step_size() -> None:
    free = MDPO(step_size=None, normalize_advantage=False)
    ppo = PPO(clip_low=0.999, clip_high=1e9, gamma=0.99, normalize_advantage=False)
    made, batch = tabular(free), rows(Source.ROLLOUT)
    with torch.no_grad():  # away from the old policy
        made.network("actor").layers[0].bias.add_(torch.tensor([0.2, -0.1, 0.3]))
    _, found = ascent(made, policy_of(free, "policy"), batch)
    gradient = Objective((ppo.terms(COUNTED).terms[0],))
    _, wanted = ascent(made, Learner("policy", ("actor",), gradient), batch)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    first = []
    for step_size in (0.01, 1.0, 100.0):
        algorithm = MDPO(step_size=step_size, annealing="constant", normalize_advantage=False)
        first.append(ascent(tabular(algorithm), policy_of(algorithm, "policy"), batch)[1][1])
    for other in first[1:]:
        torch.testing.assert_close(first[0], other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("counted", [False, True])
def test_6_tsallis_at_1_is_the_logarithm(counted) -> None:
    """Exactly at 1; and in the limit, where no density is floored."""
    setting = Setting(1, True, 3) if counted else Setting(1, False, 2)
    gradients = []
    for tsallis in (1.0, 1.0 + 1e-7):
        algorithm = OffPolicyMDPO(kl=0.5, temperature=0.2, tsallis=tsallis, floor=0.0)
        made = tabular(algorithm) if counted else squashed(algorithm)
        made.module.double()
        with torch.no_grad():  # a policy that has left its copy
            made.networks["actor"][-1].add_(0.1 * torch.arange(made.networks["actor"][-1].numel(), dtype=torch.float64))
        batch = rows(Source.REPLAY) if counted else replayed()
        batch = batch.replace(observation=batch.observation.double(), planned={k: v.double() for k, v in batch.planned.items()})
        gradients.append(torch.cat([g.flatten() for g in ascent(made, policy_of(algorithm, "policy", setting), batch)[1]]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert gradients[0].norm() > 1e-3


def test_the_step_size_never_reaches_zero() -> None:
    """A schedule that goes on past the last iteration would turn the KL's sign round."""
    falling = Tightening(1.0, every=10)
    weights = [falling(Progress(step, 40)) for step in (0, 9, 10, 39, 40, 400)]
    assert weights == pytest.approx([1.0, 1.0, 4 / 3, 4.0, 4.0, 4.0])
    late = Tightening(1.0, every=10, lead=1.0)  # as the released code counts: above 1 at first, 2/K at the end
    assert [late(Progress(step, 40)) for step in (0, 39)] == pytest.approx([0.8, 2.0])


def test_equal_advantages_count_as_nothing() -> None:
    algorithm = MDPO(step_size=0.5, annealing="constant")
    batch = rows(Source.ROLLOUT).replace(step_reward=torch.full((10, 1), 2.0, dtype=torch.float64))
    ready = policy_of(algorithm, "policy").terms.prepare(batch)
    assert bool((ready.planned["policy_gradient/advantage"] == 0).all())
    _, gradient = ascent(tabular(algorithm), policy_of(algorithm, "policy"), batch)
    assert max(float(g.abs().max()) for g in gradient) < 1e-15  # the KL's own rounding


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MDPO(step_size=0.0), "algorithm.step_size is 0.0; accepted: a finite number above 0"),
        (lambda: MDPO(step_size=-1.0), "algorithm.step_size is -1.0"),
        (lambda: MDPO(steps=0), "algorithm.steps is 0"),
        (lambda: OffPolicyMDPO(kl=-0.1), "algorithm.kl is -0.1; accepted: 0 or more"),
        (lambda: OffPolicyMDPO(tsallis=2.5), r"algorithm.tsallis is 2.5; accepted: a number in \[1, 2\]"),
    ],
)
def test_impossible_values_are_refused(build, said) -> None:
    with pytest.raises(InputError, match=said):
        build()


def test_a_temperature_above_the_weight_of_the_kl_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="pushed away from its own earlier copy"):
        OffPolicyMDPO(kl=0.1, temperature=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OffPolicyMDPO(kl=0.2, temperature=0.2)


def test_a_box_without_bounds_is_refused_in_one_line(tmp_path, capsys) -> None:
    """CartPole's actions can be counted and are summed over; a squashed policy needs bounds."""
    from gymnasium import spaces

    from unipg.policies.actor_critic import ActorCriticRecipe
    from unipg.training.run import wanted_of

    free = spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(InputError, match="squashed actions need two finite bounds"):
        ActorCriticRecipe().build(spaces.Box(-1, 1, (2,)), free, 0, wanted=wanted_of(OffPolicyMDPO()))
    path = tmp_path / "r.yaml"
    path.write_text("algorithm: {name: mdpo, step_size: 0}\nenvironment: {id: CartPole-v1}\n")
    assert main(["train", str(path), f"output={tmp_path / 'run'}"]) == 2
    assert "algorithm.step_size is 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
