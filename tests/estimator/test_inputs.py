"""The estimator on tensors of one's own: what is taken, and what is refused by name."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from unipg import Evaluation, InputError, Planning, Trajectories
from unipg.algorithms import Setting, registered
from unipg.estimator import kl_in_reward
from unipg.interop import loss_function, per_token_function
from unipg.lab import BigramPolicy
from unipg.laws.cases import VOCABULARY, random_batch

INF = math.inf


def rows(**fields) -> Trajectories:
    return Trajectories(**{"action": torch.zeros(2, 3, dtype=torch.long), "mask": torch.ones(2, 3, dtype=torch.bool)} | fields)


READ_NOTHING = [n for n, kind in registered(answers=True).items() if not kind().terms(Setting(6)).readings and n != "capo"]


@pytest.mark.parametrize(
    ("name", "settings", "field", "where"),
    [
        ("grpo", {}, "old_log_prob", "old_log_prob"),
        ("grpo", {"kl": 0.1}, "anchor_log_prob", "anchor_log_prob"),
        ("rloo", {"kl_in_reward": 0.1}, "anchor_log_prob", "anchor_log_prob"),
        ("rloo", {"kl_in_reward": 0.1}, "old_log_prob", "old_log_prob"),
        ("fdpg", {}, "behaviour_log_prob", "behaviour_log_prob"),
    ],
)
@pytest.mark.parametrize("value", [-INF, INF, math.nan])
def test_log_probabilities_that_are_not_finite_are_refused_wherever_they_come_in(name, settings, field, where, value) -> None:
    algorithm = registered()[name](**settings)
    objective, setting = algorithm.terms(Setting(6)), Setting(6)
    good = random_batch(algorithm, 3)
    row, step = (int(i) for i in good.mask.nonzero()[-1])
    wrong = getattr(good, field).clone()
    wrong[row, step] = value
    expected = rf"{where} is {value} at row {row}, position {step}"
    with pytest.raises(InputError, match=expected):
        objective.prepare(algorithm.prepare(good.replace(**{field: wrong}), setting, Planning()), Planning())
    ready = objective.prepare(algorithm.prepare(good, setting, Planning()), Planning())
    if field in objective.reads:  # that of a KL in the reward has been used up by now
        with pytest.raises(InputError, match=expected):
            objective.plan(ready.replace(**{field: wrong}))
        planned = objective.plan(ready).replace(**{field: wrong})
        with pytest.raises(InputError, match=expected):
            objective.loss(BigramPolicy(VOCABULARY, 3).evaluate(planned, entropy=True, value=True), planned)


@pytest.mark.parametrize("name", READ_NOTHING)
def test_the_current_log_probability_is_refused_in_plan_and_loss(name) -> None:
    algorithm = registered()[name]()
    objective = algorithm.terms(Setting(6))
    ready = objective.prepare(algorithm.prepare(random_batch(algorithm, 3), Setting(6), Planning()), Planning())
    now = BigramPolicy(VOCABULARY, 3).evaluate(ready, entropy=True, value=True)
    row, step = (int(i) for i in ready.mask.nonzero()[-1])
    wrong = now.log_prob.detach().clone()
    wrong[row, step] = -INF
    bad = Evaluation(wrong.requires_grad_(), now.entropy, now.value)
    expected = rf"log_prob is -inf at row {row}, position {step}"
    with pytest.raises(InputError, match=expected):
        objective.plan(ready, Planning(), bad)
    with pytest.raises(InputError, match=expected):
        objective.loss(bad, objective.plan(ready, Planning(), now))


def test_a_kl_in_the_reward_of_log_probabilities_that_are_not_finite() -> None:
    old = torch.tensor([[-1.0, -INF, -1.0], [-1.0, -1.0, -1.0]])
    with pytest.raises(InputError, match=r"old_log_prob is -inf at row 0, position 1 \(an action that was sampled cannot have"):
        kl_in_reward(rows(old_log_prob=old, anchor_log_prob=torch.zeros(2, 3)), 0.1)
    masked = rows(mask=old.isfinite(), old_log_prob=old, anchor_log_prob=torch.zeros(2, 3))
    assert torch.isfinite(kl_in_reward(masked, 0.1).step_reward).all()


def test_step_rewards_that_are_not_finite_are_refused() -> None:
    steps = torch.zeros(2, 3)
    steps[1, 2] = math.nan
    batch = rows(step_reward=steps, old_log_prob=torch.zeros(2, 3))
    with pytest.raises(InputError, match="step_reward is nan at row 1, position 2"):
        registered()["reinforce_plus_plus"]().terms(Setting(3)).prepare(batch)


def test_per_token_functions_refuse_too() -> None:
    loss = per_token_function(registered()["grpo"]())
    log_prob, mask = torch.full((1, 2), -1.0), torch.ones(1, 2, dtype=torch.bool)
    for name, given in (("log_prob", (log_prob * INF, log_prob)), ("old_log_prob", (log_prob, log_prob * INF))):
        with pytest.raises(InputError, match=f"{name} is -inf at row 0, position 0"):
            loss(*given, torch.ones(1, 2), mask)


KINDS = ("reward", "current", "old", "value")


@pytest.mark.parametrize("name", READ_NOTHING)
def test_tensors_may_have_different_precisions(name) -> None:
    """float32 rewards beside float64 log-probabilities, and every other mixture: the same loss and gradient."""
    kind = registered()[name]
    settings = {f.name: 0.1 for f in dataclasses.fields(kind) if f.name in ("kl", "kl_in_reward")}
    algorithm = kind(**settings)
    objective, batch = algorithm.terms(Setting(6)), random_batch(algorithm, 3)
    found = []
    for precisions in itertools.product((torch.float64, torch.float32), repeat=len(KINDS)):
        of = dict(zip(KINDS, precisions, strict=True))
        fields = {
            "reward": of["reward"],
            **dict.fromkeys(("old_log_prob", "behaviour_log_prob", "anchor_log_prob", "old_entropy"), of["old"]),
            "value": of["value"],
        }
        mixed = batch.replace(**{field: getattr(batch, field).to(dtype) for field, dtype in fields.items()})
        now = BigramPolicy(VOCABULARY, 3).evaluate(mixed, entropy=True, value=True)
        leaf = now.log_prob.detach().to(of["current"]).requires_grad_()
        entropy, value = (tensor.detach().to(of["current"]).requires_grad_() for tensor in (now.entropy, now.value))
        loss = objective(Evaluation(leaf, entropy, value), algorithm.prepare(mixed, Setting(6), Planning()), Planning())
        found.append(torch.autograd.grad(loss, leaf)[0].double())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-5)


def test_lists_arrays_and_flags_are_taken() -> None:
    batch = rows(group=[4, 4], reward=[True, False], terminated=np.array([[0, 0, 1], [0, 0, 1]]), old_log_prob=[[-1.0] * 3] * 2)
    assert batch.group.tolist() == [4, 4]
    assert (batch.reward.tolist(), batch.reward.dtype) == ([1.0, 0.0], torch.float32)
    assert batch.terminated.dtype == torch.bool
    assert batch.replace(reward=torch.tensor([3, 1])).total_reward().tolist() == [3.0, 1.0]
    assert rows(mask=[[1, 1, 0], [1, 0, 0]]).mask.dtype == torch.bool
    log_prob, mask = torch.full((2, 3), -1.0), torch.ones(2, 3, dtype=torch.bool)
    given = {"old_log_prob": log_prob, "group": torch.tensor([0, 0])}
    loss = loss_function(registered()["reinforce"](signed=False), 3)
    assert float(loss(log_prob, mask, torch.tensor([1.0, 0.0]), **given)) == float(loss(log_prob, mask, torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("reward", torch.zeros(2, 1), r"reward is \[2, 1\] but must be \[2\]"),
        ("reward", torch.zeros(3), r"reward is \[3\] but must be \[2\]"),
        ("reward", ["right", "wrong"], r"reward is \['right', 'wrong'\]; accepted: a tensor, or a list of numbers"),
        ("group", torch.zeros(2, 1, dtype=torch.long), r"group is \[2, 1\] but must be \[2\]"),
        ("group", ["a", "a"], r"group is \['a', 'a'\]; accepted: a tensor, or a list of numbers"),
        ("group", [0.0, 0.5], "group holds float32; accepted: whole numbers"),
        ("group", [True, False], "group holds bool; accepted: whole numbers"),
        ("step_reward", torch.zeros(2, 3, 1), r"step_reward is \[2, 3, 1\] but must be \[2, 3\]"),
        ("old_log_prob", torch.zeros(2, 1), r"old_log_prob is \[2, 1\] but must be \[2, 3\]"),
        ("value", torch.zeros(2, 4), r"value is \[2, 4\] but must be \[2, 3\]"),
        ("observation", torch.zeros(3, 2), r"observation is \[3, 2\] but must start with \[2, 3\]"),
        ("mask", torch.ones(2, 3, 1), r"mask is \[2, 3, 1\]; accepted: \[B,T\]"),
    ],
)
def test_what_has_another_shape_or_kind_is_refused(field, value, message) -> None:
    with pytest.raises(InputError, match=message):
        rows(**{field: value})
    if field not in ("mask",):
        with pytest.raises(InputError, match=message):
            rows().replace(**{field: value})


def test_an_evaluation_of_another_shape_is_refused() -> None:
    objective = registered()["ppo"]().terms(Setting(3))
    batch = rows(reward=[1.0, 0.0], value=torch.zeros(2, 3), old_log_prob=torch.zeros(2, 3))
    planned = objective.plan(objective.prepare(batch))
    with pytest.raises(InputError, match=r"value is \[2, 3, 1\] but mask is \[2, 3\]; they must be equal"):
        objective.loss(Evaluation(torch.zeros(2, 3), None, torch.zeros(2, 3, 1)), planned)
