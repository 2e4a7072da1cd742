"""Conservative Q-learning by hand (arXiv 2006.04779), on the same draws."""

import math

import pytest
import torch
from gymnasium import spaces
from offline import flat, gradients, lag, learner_of, policy_of, rows
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from unipg.algorithms.base import Setting, algorithm_named
from unipg.critics.conservative import Gap
from unipg.errors import InputError
from unipg.estimator.likelihoods import nth
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.now import NOISE
from unipg.training.run import wanted_of
from unipg.trajectories import Trajectories

CQL, SAC = algorithm_named("cql"), algorithm_named("sac")
DRAWS = 3


def batch_of() -> Trajectories:
    draw, batch = torch.Generator().manual_seed(5), rows()
    names = [nth(at, number) for at in ("observation", "next_observation", "uniform") for number in range(1, DRAWS + 1)]
    return batch.with_planned(**{NOISE.format(at): torch.randn(batch.action.shape, generator=draw, dtype=torch.float64) for at in names})


def values(made: ActorCritic, seen: Tensor, action: Tensor, of: str = "q") -> Tensor:
    return made.network(of)(torch.cat([seen, action], -1))[..., 0]


def gap_by_hand(made: ActorCritic, batch: Trajectories) -> Tensor:
    """[2,N], one draw after the other; of a terminal state nothing is asked."""
    seen = batch.observation[:, 0]
    after = torch.where(batch.terminated, seen, batch.next_observation[:, 0])
    terms = []
    for number in range(1, DRAWS + 1):
        for at, condition in (("observation", seen), ("next_observation", after)):
            mean, log_std = (each.detach() for each in made.actions.gaussian(made.network("actor")(condition)))
            action = (mean + log_std.exp() * batch.planned[f"noise/{at}/{number}"][:, 0]).tanh()
            density = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform()).log_prob(action).sum(-1)
            terms.append(values(made, seen, action) - density)
        even = 2 * torch.special.ndtr(batch.planned[f"noise/uniform/{number}"][:, 0]) - 1
        terms.append(values(made, seen, even) - math.log(0.5 ** even.shape[-1]))
    return torch.stack(terms).exp().sum(0).log() - values(made, seen, batch.action[:, 0])


def test_the_critics_loss_by_hand() -> None:
    """Whole squared errors of a target at the mode, without entropy, and 5 times the gap, of both critics."""
    algorithm = CQL(draws=DRAWS, discount=0.9)
    made, batch = policy_of(algorithm, "squashed"), batch_of()
    lag(made, "q_lagged")
    seen, after = batch.observation[:, 0], batch.next_observation[:, 0]
    mode = made.actions.gaussian(made.network("actor")(after))[0].tanh()
    ahead = values(made, after, mode, "q_lagged").min(0).values.masked_fill(batch.terminated[:, 0], 0)
    target = (batch.step_reward[:, 0] + 0.9 * ahead).detach()
    loss = ((values(made, seen, batch.action[:, 0]) - target).square() + 5 * gap_by_hand(made, batch)).sum(0).mean()
    found = gradients(learner_of(algorithm, "critic"), made, batch)
    torch.testing.assert_close(flat(found["q"]), flat(list(torch.autograd.grad(loss, made.networks["q"]))))
    assert all(gradient is None for gradient in found["actor"])


def test_the_multiplier_rises_where_the_gap_is_above_its_threshold() -> None:
    """d/dlog alpha of −weight · alpha · (mean gap − threshold), and the critic reads alpha."""
    algorithm = CQL(draws=DRAWS, threshold=1.5, initial_multiplier=2.0)
    made, batch = policy_of(algorithm, "squashed"), batch_of()
    gap = gap_by_hand(made, batch)
    (found,) = gradients(learner_of(algorithm, "multiplier"), made, batch)["multiplier"]
    torch.testing.assert_close(found, (-5 * 2.0 * (gap.mean() - 1.5)).detach().reshape(found.shape))
    fixed = CQL(draws=DRAWS, conservative=10.0)
    ours, theirs = (flat(gradients(learner_of(each, "critic"), made, batch)["q"]) for each in (algorithm, fixed))
    torch.testing.assert_close(ours, theirs)


def test_policy_and_temperature_are_soft_actor_critics() -> None:
    algorithm = CQL(draws=DRAWS)
    made, batch = policy_of(algorithm, "squashed"), batch_of()
    for name, network in (("policy", "actor"), ("temperature", "temperature")):
        ours, theirs = (flat(gradients(learner_of(each, name), made, batch)[network]) for each in (algorithm, SAC()))
        assert torch.equal(ours, theirs)


def test_soft_targets_without_conservatism_are_soft_actor_critics() -> None:
    made, batch = policy_of(CQL(), "squashed"), batch_of()
    nothing = CQL(draws=DRAWS, soft=True, conservative=0.0)
    ours, theirs = (flat(gradients(learner_of(each, "critic"), made, batch)["q"]) for each in (nothing, SAC()))
    torch.testing.assert_close(ours, 2 * theirs)


def test_actions_that_can_be_counted_are_all_in_the_sum() -> None:
    algorithm = CQL()
    recipe = ActorCriticRecipe(hidden=[8], activation="tanh", normalize_observations=False)
    made = recipe.build(spaces.Box(-9.0, 9.0, (2,)), spaces.Discrete(4), 0, wanted=wanted_of(algorithm))
    made.module.double()
    action = torch.tensor([0, 3, 1, 1, 2, 0, 3, 2]).unsqueeze(1)
    batch = rows().replace(action=action)
    term = next(
        t for t in next(e for e in algorithm.learned(Setting(1, True, 4, acts=True)) if e.name == "critic").terms.terms if hasattr(t, "gap")
    )
    q = made.network("q")(batch.observation[:, 0])
    expected = q.exp().sum(-1).log() - q[:, torch.arange(8), action[:, 0]]
    assert term.gap.draws == 0
    torch.testing.assert_close(term.gap(made.now(batch), batch)[:, :, 0], expected)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"draws": 0}, "draws is 0"), ({"conservative": -1.0}, "conservative is -1"), ({"initial_multiplier": 0.0}, "above 0")],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        CQL(**wrong)
    with pytest.raises(InputError, match="draws is -1"):
        Gap(draws=-1)
