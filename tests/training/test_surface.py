"""A learner's loss around its weights, beside closed forms, finite differences and enumeration."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from unipg import Advantage, EntropyBonus, GroupCentered, OldPolicy, Outcome, PolicyGradient, SequenceMeanTokenSum, Trajectories, ValueLoss
from unipg.algorithms import algorithm_named
from unipg.algorithms.learners import Learner
from unipg.errors import InputError
from unipg.estimator.directions import HessianAided, Natural, Plain
from unipg.lab import BigramPolicy, StringProblem
from unipg.policies.actions import BoxActions, DiscreteActions, MultiBinaryActions, MultiDiscreteActions, SquashedActions
from unipg.policies.actor_critic import ActorCritic
from unipg.seeding import generator
from unipg.training.diagnostics import UpdateDiagnostics
from unipg.training.distribution import Workers
from unipg.training.learner import Learning, NonFinite
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.surface import BatchSurface, Displaced
from unipg.training.weights import Weights

BOX = BoxActions((2,), (-1.0, -1.0), (1.0, 1.0))
KINDS = {
    "discrete": DiscreteActions(3),
    "multi_discrete": MultiDiscreteActions((2, 3), (0, 0), (2,)),
    "multi_binary": MultiBinaryActions((2,)),
    "gaussian": BOX,
    "squashed": SquashedActions((2,), (-1.0, -1.0), (1.0, 1.0)),
}


@dataclass(frozen=True)
class Given(Advantage):
    """An advantage per step that the test brings along."""

    needs: ClassVar[frozenset[str]] = frozenset({"given"})
    joint = "step"

    def __call__(self, batch, now=None, planning=None):
        return batch.require("given", "Given")


RATIO = PolicyGradient(reference=OldPolicy(), advantage=Given(), surrogate="ratio")
SCORE = PolicyGradient(advantage=Given())


def controller(actions=BOX, hidden=(4,), dtype=torch.float64) -> ActorCritic:
    policy = ActorCritic((3,), actions, hidden=hidden, log_std=-0.3, seed=2)
    policy.module.to(dtype)
    with torch.no_grad():  # the initial head is almost 0
        for parameter in policy.module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator(1, parameter.shape)).to(dtype)
    return policy


def learning(policy, objective, tmp_path, trains=("actor",), direction=None, **training) -> Learning:
    return Learning(
        Learner("policy", trains, objective, direction or Natural()),
        algorithm_named("ppo")(),
        policy,
        Weights(policy),
        training=TrainingRecipe(**training),
        recipe=OptimizerRecipe(learning_rate=0.1, eps=1e-8, kind="adamw", clip_norm=1.0),
        workers=Workers(),
        seed=0,
        folder=tmp_path,
        steps=10,
        memory={},
        diagnostics=UpdateDiagnostics(),
    )


def rows(policy, count=6, steps=3, *, holes=True) -> Trajectories:
    """Random observations, with actions that the policy has drawn; some steps are not its own, and hold rubbish."""
    source = generator(0, "rows")
    observation = torch.randn(count, steps, 3, dtype=torch.float64, generator=source)
    noise = torch.as_tensor(policy.noise(steps, count, source)).transpose(0, 1).double()
    with torch.no_grad():
        output = policy.module.actor(observation.reshape(count * steps, 3))
        action, _ = policy.actions.fresh(output, noise.reshape(count * steps, -1), policy.log_std)
    mask = torch.ones(count, steps, dtype=torch.bool)
    if holes:
        mask[1, 2], mask[4, 1:] = False, False
        observation[~mask] = float("nan")
    batch = Trajectories(
        action=action.reshape(count, steps, *action.shape[1:]),
        mask=mask,
        observation=observation,
        step_reward=torch.zeros(count, steps),
        planned={"given": torch.randn(count, steps, dtype=torch.float64, generator=source)},
    )
    with torch.no_grad():
        return batch.replace(old_log_prob=policy.evaluate(batch).log_prob)


def surface(made: Learning, batch: Trajectories, point=None) -> BatchSurface:
    planning = made.planning()
    return BatchSurface(made, made.objective.plan(made.objective.prepare(batch, planning), planning), planning, point)


def direction_of(size: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64, generator=generator(seed, "direction"))


def differences(value, theta: torch.Tensor, vector: torch.Tensor, step: float = 1e-4) -> torch.Tensor:
    """The derivative of a function along a vector."""
    return (value(theta + step * vector) - value(theta - step * vector)) / (2 * step)


# ---------------------------------------------------------------------------------------------------- the policy's own KL


@pytest.mark.parametrize("kind", KINDS)
def test_the_kl_is_the_expectation_of_the_log_ratio(kind) -> None:
    """Exact sums over actions that can be counted; else a mean over 200,000 draws, within 5 standard errors."""
    one, other = controller(KINDS[kind]), controller(KINDS[kind])
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator(9, parameter.shape))
        observation = torch.randn(1, 3, dtype=torch.float64, generator=generator(0, "o"))
        outputs = [policy.module.actor(observation) for policy in (one, other)]
        said = [(out,) if policy.log_std is None else (out, policy.log_std) for out, policy in zip(outputs, (one, other), strict=True)]
        exact = one.kl(said[0], said[1])
        count = 200_000
        noise = torch.as_tensor(one.noise(1, count, generator(4)))[0].double()
        many = [out.expand(count, -1) for out in outputs]
        action, own = one.actions.fresh(many[0], noise, one.log_std)
        ratio = own - one.actions.log_prob(many[1], other.log_std, action, False)[0]
        assert float(ratio.mean()) == pytest.approx(float(exact), abs=5 * float(ratio.std()) / count**0.5)
        assert float(exact) > 0.0003
        assert float(one.kl(said[0], said[0])) == 0.0


def test_an_action_that_is_impossible_under_both_adds_nothing() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    other = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    kl = DiscreteActions(3).kl(logits, None, other, None)
    kl.sum().backward()
    p = torch.tensor([0.0, 1.0]).softmax(-1)
    assert float(kl.detach()) == pytest.approx(float((p * torch.tensor([-1.0, 1.0])).sum()))
    assert torch.isfinite(other.grad).all()


# ---------------------------------------------------------------------------------------------------- Fisher products


def test_the_fisher_matrix_of_a_gaussian(tmp_path) -> None:
    """Of a linear mean W·o + b: o oᵀ / std² averaged over steps, and 2 for each log std; nothing between them."""
    policy = controller(hidden=())
    batch = rows(policy)
    made = learning(policy, RATIO, tmp_path)
    on = surface(made, batch)
    matrix = torch.stack([on.fisher(row) for row in torch.eye(len(on.theta), dtype=torch.float64)])
    names = [name for name, p in policy.module.named_parameters() for _ in range(p.numel()) if any(p is q for q in made.moved)]
    order = [policy.module.actor.layers[-1].weight, policy.module.actor.layers[-1].bias, policy.module.log_std]
    assert [id(p) for p in made.moved] == [id(p) for p in order], names
    seen = torch.cat([batch.observation[batch.mask], torch.ones(int(batch.mask.sum()), 1, dtype=torch.float64)], 1)
    moment = seen.T @ seen / len(seen)
    precision = torch.exp(-2 * policy.log_std.detach())
    expected = torch.zeros_like(matrix)
    for a in range(2):  # W [2,3], then b [2], then log_std [2]
        place = [3 * a, 3 * a + 1, 3 * a + 2, 6 + a]
        expected[torch.tensor(place).unsqueeze(1), torch.tensor(place)] = precision[a] * moment
        expected[8 + a, 8 + a] = 2.0
    torch.testing.assert_close(matrix, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_products_are_symmetric_never_negative_and_the_hessian_of_the_kl(kind, tmp_path) -> None:
    policy = controller(KINDS[kind])
    made = learning(policy, RATIO, tmp_path)
    on = surface(made, rows(policy))
    one, two = direction_of(len(on.theta)), direction_of(len(on.theta), 4)
    product = on.fisher(one)
    assert float(two @ product) == pytest.approx(float(one @ on.fisher(two)), rel=1e-9)
    assert float(one @ product) > 0
    curved = [on.divergence(on.theta + s * 1e-3 * one) for s in (1, -1)]
    assert sum(curved) / 1e-6 == pytest.approx(float(one @ product), rel=1e-4)
    assert on.divergence(on.theta) == 0.0


# ---------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("objective", [RATIO, SCORE, SCORE + 0.1 * EntropyBonus()])
def test_gradient_and_hessian_are_derivatives_of_the_loss(objective, tmp_path) -> None:
    policy = controller(hidden=(3,))
    made = learning(policy, objective, tmp_path)
    on = surface(made, rows(policy))
    vector = direction_of(len(on.theta))
    gradient = on.gradient()
    if objective is RATIO:
        value = torch.tensor(differences(lambda theta: on.loss(theta), on.theta, vector))
        assert float(value) == pytest.approx(float(gradient @ vector), rel=1e-6)
    torch.testing.assert_close(sum(on.named().values()), gradient, rtol=1e-10, atol=1e-12)

    def slope(theta):
        made.put(theta)
        found = surface(made, on.batch).gradient()
        made.put(on.theta)
        return found

    torch.testing.assert_close(on.hessian(vector), differences(slope, on.theta, vector), rtol=1e-5, atol=1e-7)


def test_the_sum_of_a_gradients_terms_has_their_names(tmp_path) -> None:
    policy = controller()
    made = learning(policy, SCORE + 0.5 * SCORE, tmp_path)
    on = surface(made, rows(policy))
    named = on.named()
    assert list(named) == ["policy_gradient", "policy_gradient_2"]
    torch.testing.assert_close(named["policy_gradient_2"], 0.5 * named["policy_gradient"])


@pytest.mark.parametrize("trains", [("actor",), ()])
def test_cutting_changes_nothing(trains, tmp_path) -> None:
    """Law 1, of everything that a direction may ask for."""
    policy = controller()
    objective = SCORE if trains else SCORE + ValueLoss()
    batch = rows(policy).replace(value=torch.zeros(6, 3, dtype=torch.float64))
    found = []
    for budget in (10**6, 4):
        made = learning(controller(), objective, tmp_path, trains, micro_batch_tokens=budget)
        on = surface(made, batch)
        assert (len(list(made.pieces(on.batch))) > 1) == (budget == 4)
        v = 0.1 * direction_of(len(on.theta))
        numbers = [torch.tensor([on.loss(), on.loss(on.theta + v), on.divergence(on.theta + v)])]
        vectors = [on.gradient(), *on.named().values(), on.fisher(v), on.fisher(2 * v), on.hessian(v)]
        if trains:
            vectors += [on.expected_hessian(v, "product"), on.expected_hessian(v, "dice")]
        found.append(numbers + vectors)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        assert bool(one.any())


def test_other_weights_are_put_back_to_the_last_bit(tmp_path) -> None:
    policy = controller(dtype=torch.float32)
    batch = rows(controller()).replace(observation=rows(controller()).observation.float())
    made = learning(policy, RATIO, tmp_path)
    before = {name: value.clone() for name, value in policy.module.state_dict().items()}
    on = surface(made, batch, point=made.flat() + 0.5)
    v = direction_of(len(on.theta)).float()
    for ask in (
        lambda: on.loss(on.theta + v),
        lambda: on.divergence(on.theta - v),
        on.gradient,
        on.named,
        lambda: on.fisher(v),
        lambda: on.hessian(v),
        lambda: on.expected_hessian(v, "dice"),
    ):
        ask()
        assert all(torch.equal(value, before[name]) for name, value in policy.module.state_dict().items())
    with pytest.raises(RuntimeError), on._at(v):
        raise RuntimeError
    assert all(torch.equal(value, before[name]) for name, value in policy.module.state_dict().items())


def test_a_displaced_batch_is_evaluated_where_it_was_collected(tmp_path) -> None:
    policy = controller()
    made = learning(policy, SCORE, tmp_path)
    theta = made.flat()
    point, batch, v = theta + 0.3, rows(policy), direction_of(len(theta))
    away = surface(made, batch, point=point)
    found = [away.gradient(), away.hessian(v), away.fisher(v), torch.tensor(away.loss())]
    made.put(point)
    here = surface(made, batch)
    for one, other in zip(found, [here.gradient(), here.hessian(v), here.fisher(v), torch.tensor(here.loss())], strict=True):
        assert torch.equal(one, other)


def test_weights_that_say_what_is_no_number_have_an_infinite_loss(tmp_path) -> None:
    policy = controller()
    made = learning(policy, RATIO, tmp_path)
    on = surface(made, rows(policy))
    assert on.loss(torch.full_like(on.theta, float("nan"))) == float("inf")


# ---------------------------------------------------------------------------------------------------- the expected Hessian


@pytest.mark.parametrize("estimate", ["product", "dice"])
def test_the_expected_hessian_is_that_of_the_expected_reward(estimate, tmp_path) -> None:
    """Every answer once, its reward times its probability: the mean over all trajectories is then exact."""
    problem = StringProblem(vocabulary=3, prompts=(0,), length=3, reward=lambda prompt, answer: answer[0] - 0.7 * answer[1] * answer[2])
    policy = BigramPolicy(3, seed=5)
    answers = problem.answers()
    batch = problem.batch([(0, answer) for answer in answers], [0] * len(answers))
    probability = policy.evaluate(batch).log_prob.detach().sum(1).exp()
    batch = batch.replace(reward=batch.reward * probability * len(answers))
    made = learning(policy, PolicyGradient(advantage=Outcome(), aggregate=SequenceMeanTokenSum()), tmp_path, (), HessianAided())
    on = surface(made, batch)
    weight = policy.logits
    (exact,) = torch.autograd.grad(problem.expected_reward(policy), weight, create_graph=True)
    torch.testing.assert_close(on.gradient()[:9], -exact.detach().reshape(-1), rtol=1e-10, atol=1e-12)
    v = direction_of(len(on.theta))  # the logits' first, then those of values, which play no part
    (curved,) = torch.autograd.grad((exact.reshape(-1) * v[:9]).sum(), weight)
    torch.testing.assert_close(on.expected_hessian(v, estimate)[:9], -curved.reshape(-1), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(on.hessian(v)[:9], -curved.reshape(-1), rtol=1e-2)  # without the product it is not


def test_products_of_scores_with_earlier_rewards_are_left_out_by_dice(tmp_path) -> None:
    """One row, by hand: advantages A_t, scores s_t; product has A_t·(s·v) of the whole row, dice that of the steps up to t."""
    policy = controller(hidden=())
    made = learning(policy, SCORE, tmp_path)
    batch = rows(policy, 1, 3, holes=False)
    on = surface(made, batch)
    v = direction_of(len(on.theta))
    log_prob = policy.evaluate(batch).log_prob[0]
    scores = [torch.cat([g.reshape(-1) for g in torch.autograd.grad(x, made.moved, retain_graph=True)]) for x in log_prob]
    along = torch.stack([s @ v for s in scores])
    advantage = batch.planned["given"][0] / 3
    product = -sum(a * s for a, s in zip(advantage, scores, strict=True)) * along.sum()
    dice = torch.zeros_like(v)
    for t, a in enumerate(advantage):
        dice -= a * (scores[t] * along[: t + 1].sum() + sum(scores[:t], torch.zeros_like(v)) * along[t])
    torch.testing.assert_close(on.expected_hessian(v, "product") - on.hessian(v), product, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(on.expected_hessian(v, "dice") - on.hessian(v), dice, rtol=1e-9, atol=1e-11)


# ---------------------------------------------------------------------------------------------------- steps


def flat(policy) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in policy.module.parameters()])


def test_a_natural_step_is_inside_the_trust_region_and_better_or_none_at_all(tmp_path) -> None:
    policy = controller()
    batch, outcomes = rows(policy), set()
    for max_kl, tries in ((0.01, 10), (0.1, 10), (30.0, 1)):
        made = learning(policy, RATIO, tmp_path, direction=Natural(max_kl=max_kl, tries=tries, damping=1e-4))
        on, before, theta = surface(made, batch), flat(policy), made.flat()
        start = on.loss()
        told = made.optimise(made.objective.prepare(batch, made.planning()), (0, 0))
        if told["step_norm"] == 0:
            assert torch.equal(flat(policy), before)
        else:
            after = made.flat()
            made.put(theta)
            assert on.loss(after) < start
            assert 0 < on.divergence(after) <= max_kl
            assert told["trust_region/kl"] == on.divergence(after)
            assert not torch.equal(after, theta)
        outcomes.add(told["step_norm"] > 0)
        made.put(theta)
        assert torch.equal(flat(policy)[-len(before) :], before)
        assert torch.equal(policy.module.critic.layers[0].weight, controller().module.critic.layers[0].weight)
    assert outcomes == {True, False}


def test_a_natural_step_is_that_of_explicit_matrices(tmp_path) -> None:
    policy = controller(hidden=(2,))
    batch = rows(policy)
    made = learning(policy, RATIO, tmp_path, direction=Natural(max_kl=0.001, damping=0.05, iterations=200))
    on, theta = surface(made, batch), made.flat()
    fisher = torch.stack([on.fisher(row) for row in torch.eye(len(theta), dtype=torch.float64)]) + 0.05 * torch.eye(len(theta)).double()
    x = torch.linalg.solve(fisher, -on.gradient())
    expected = theta + (2 * 0.001 / float(x @ fisher @ x)) ** 0.5 * x
    told = made.optimise(made.objective.prepare(batch, made.planning()), (0, 0))
    assert told["trust_region/backtracks"] == 0
    torch.testing.assert_close(made.flat(), expected, rtol=1e-5, atol=1e-7)


def test_without_a_signal_nothing_moves(tmp_path) -> None:
    policy = controller()
    batch = rows(policy).with_planned(given=torch.zeros(6, 3))
    made = learning(policy, RATIO, tmp_path)
    before = flat(policy)
    assert made.optimise(made.objective.prepare(batch, made.planning()), (0, 0))["step_norm"] == 0
    assert torch.equal(flat(policy), before)


@pytest.mark.parametrize("direction", [Natural(), HessianAided(), HessianAided(normalised=False)])
def test_a_gradient_that_is_no_number_is_never_applied(direction, tmp_path) -> None:
    policy = controller()
    batch = rows(policy, holes=False)
    spoilt = batch.with_planned(given=torch.full((6, 3), float("inf")))
    before = flat(policy)
    for kind in ("stop", "skip"):
        made = learning(policy, SCORE, tmp_path, direction=direction)
        made.recipe = OptimizerRecipe(learning_rate=0.1, on_nonfinite=kind, clip_norm=1.0)
        ready = made.objective.prepare(spoilt, made.planning())
        if kind == "stop":
            with pytest.raises(NonFinite, match="the policy's gradient at optimiser step 0"):
                made.optimise(ready, (0, 0))
        else:
            made.optimise(ready, (0, 0))
            assert made.skipped["nonfinite"] == 1
            assert made.state.get("count", 0) == 0
        assert torch.equal(flat(policy), before)


def test_a_direction_that_does_not_own_the_step_hands_it_to_the_optimiser(tmp_path) -> None:
    @dataclass(frozen=True)
    class Doubled(Plain.__mro__[1]):
        def __call__(self, surfaces, state, progress):
            return 2 * surfaces[0].gradient()

    one, two = controller(), controller()
    for policy, direction, factor in ((one, Doubled(), 1.0), (two, Plain(), 2.0)):
        made = learning(policy, factor * SCORE, tmp_path, direction=direction)
        made.recipe = OptimizerRecipe(learning_rate=0.1, kind="sgd", clip_norm=None)
        made.optimizer = made.recipe.build(*made._models.values())
        made.optimise(made.objective.prepare(rows(policy), made.planning()), (0, 0))
    torch.testing.assert_close(flat(one), flat(two))
    assert not torch.equal(flat(one), flat(controller()))


# ---------------------------------------------------------------------------------------------------- what is refused


def test_policies_and_objectives_that_a_direction_can_make_nothing_of_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="needs the exact KL of two policies, which BigramPolicy does not offer"):
        learning(BigramPolicy(3), PolicyGradient(advantage=Outcome()), tmp_path, ())
    bigram = BigramPolicy(3)
    bigram.twice_differentiable = False
    with pytest.raises(InputError, match="needs second derivatives, which BigramPolicy does not offer"):
        learning(bigram, PolicyGradient(advantage=Outcome()), tmp_path, (), HessianAided())
    with pytest.raises(InputError, match="needs the score of whole trajectories, but its term 'entropy_bonus' is EntropyBonus"):
        learning(controller(), SCORE + EntropyBonus(), tmp_path, direction=HessianAided())
    normalised = ActorCritic((3,), BOX, normalize=True)
    with pytest.raises(InputError, match=r"'normalizer\.\w+' is kept beside the weights.*normalize_observations: false"):
        learning(normalised, SCORE, tmp_path, direction=HessianAided())
    with pytest.raises(InputError, match="shares parameters with the critic here"):
        learning(controller(), PolicyGradient(advantage=ValueAdvantage()), tmp_path, (), HessianAided())
    learning(normalised, SCORE, tmp_path, direction=Natural())  # nothing is displaced here
    learning(BigramPolicy(3), PolicyGradient(advantage=GroupCentered()), tmp_path, (), HessianAided())
    assert Displaced(rows(controller())).point is None


@dataclass(frozen=True)
class ValueAdvantage(Given):
    needs: ClassVar[frozenset[str]] = frozenset({"given", "value"})
