"""Exported functions have the library's gradients; adapters translate and add nothing."""

import math
from types import SimpleNamespace

import pytest
import torch

from unipg import Evaluation, InputError, Planning, Source
from unipg.algorithms import Setting, registered
from unipg.algorithms.base import Algorithm
from unipg.estimator import EntropyScaled, PolicyGradient, Progress
from unipg.interop import advantage_function, loss_function, per_token_function, prime_rl, slime
from unipg.lab import BigramPolicy
from unipg.laws.cases import VOCABULARY, random_batch


def exportable(kind) -> bool:
    """Whether log-probabilities are all that its loss asks of the policy."""
    terms = kind().terms(Setting())
    return not terms.readings and (kind.select is Algorithm.select or not any(term.tokens for term in terms.terms))


@pytest.mark.parametrize("name", [name for name, kind in registered(answers=True).items() if exportable(kind)])
def test_the_loss_function_has_the_objectives_gradient(name) -> None:
    algorithm = registered()[name]()
    batch = random_batch(algorithm, 3)
    policy = BigramPolicy(VOCABULARY, 3)
    now = policy.evaluate(batch, entropy=True, value=True)
    leaves = [now.log_prob.detach().requires_grad_(), now.entropy.detach().requires_grad_(), now.value.detach().requires_grad_()]
    loss = loss_function(algorithm, 6)(
        leaves[0],
        batch.mask,
        batch.reward,
        group=batch.group,
        demonstration=batch.rows_from(Source.DEMONSTRATION),
        completion=batch.rows_from(Source.PREFERENCE),
        mismatched=batch.rows_from(Source.MISMATCHED),
        entropy=leaves[1],
        value=leaves[2],
        old_value=batch.value,
        old_log_prob=batch.old_log_prob,
        behaviour_log_prob=batch.behaviour_log_prob,
        anchor_log_prob=batch.anchor_log_prob,
        old_entropy=batch.old_entropy,
        action=batch.action,
        present=batch.present,
        annotations=batch.annotations,
    )
    (found,) = torch.autograd.grad(loss, leaves[:1])
    setting = Setting(6)
    ready = algorithm.prepare(batch, setting, Planning())
    other = leaves[0].detach().requires_grad_()
    (expected,) = torch.autograd.grad(algorithm.terms(setting)(Evaluation(other, leaves[1], leaves[2]), ready), other)
    assert found.norm() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_per_token_losses_by_hand() -> None:
    """PPO's clip: the blocked token has no gradient, the other A·r."""
    log_prob = torch.tensor([[-0.1, -1.0, math.nan]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.0, -1.1, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    loss = per_token_function(registered()["grpo"]())(log_prob, old, torch.full((1, 3), 2.0, dtype=torch.float64), mask)
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -2 * math.exp(0.1), 0.0]], dtype=torch.float64))


def test_advantages_by_hand() -> None:
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    found = advantage_function(registered()["rloo"]())(torch.tensor([1.0, 0.0, 3.0]), mask, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [-1.0, -1.0], [3.0, 3.0]]))


def test_what_cannot_be_exported_says_so() -> None:

    class Undecided(registered()["grpo"]):
        def objective(self, setting):
            return PolicyGradient(advantage=EntropyScaled())

    with pytest.raises(InputError, match="depends on the current policy"):
        advantage_function(Undecided())
    with pytest.raises(InputError, match="reads whole next-token distributions"):
        loss_function(registered()["otr"](), 6)
    with pytest.raises(InputError, match="selects tokens by asking the policy"):
        loss_function(registered()["capo"](), 6)
    with pytest.raises(InputError, match="no policy gradient on rollouts"):
        per_token_function(registered()["sft"]())


def test_what_must_be_given_instead_is_named() -> None:
    table = registered()
    with pytest.raises(InputError, match=r"'capo' selects tokens by asking the policy.*train with unipg"):
        per_token_function(table["capo"]())
    with pytest.raises(InputError, match=r"'tppo' chooses its rows and tokens from whole batches.*use loss_function"):
        per_token_function(table["tppo"]())
    with pytest.raises(InputError, match=r"'stratified_grpo' takes more than reward, mask and group: use loss_function.*annotations"):
        advantage_function(table["stratified_grpo"]())
    with pytest.raises(InputError, match=r"'ppo' takes more than.*old_value"):
        advantage_function(table["ppo"]())


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("d3s", {}, "chooses its rows and tokens from whole batches"),
        ("hpt", {}, r"is a sum of policy gradients \(rollouts, sft\)"),
        ("hpt_soft", {}, "is a sum of policy gradients"),
        ("chord", {}, r"is a sum of policy gradients \(rollouts, sft\)"),
        ("chord_mu", {}, "is a sum of policy gradients"),
        ("luffy", {}, "is a sum of policy gradients"),
        ("srft", {}, "is a sum of policy gradients"),
        ("copo", {}, r"is a sum of policy gradients \(local, global\)"),
        ("fdpg", {}, r"weighs its rows by what it finds in whole batches \(target/weight\)"),
    ],
)
def test_algorithms_of_which_a_function_would_be_a_part_are_refused(name, settings, match) -> None:
    algorithm = registered()[name](**settings)
    for function in (advantage_function, per_token_function):
        with pytest.raises(InputError, match=f"'{name}' {match}.*: use loss_function"):
            function(algorithm)


@pytest.mark.parametrize("name", list(registered(answers=True)))
def test_the_flag_says_whether_preparation_leaves_anything_out(name) -> None:
    algorithm = registered()[name]()
    batch = random_batch(algorithm, 3)
    ready = algorithm.prepare(batch, Setting(6), Planning())
    assert algorithm.selects == (len(ready) != len(batch) or not torch.equal(ready.mask, batch.mask))


def test_what_is_done_to_the_reward_is_not_lost() -> None:
    """DAPO's penalty on length: limit 5, buffer 2, so an answer of 5 tokens loses 1."""
    dapo = registered()["dapo"]
    with pytest.raises(InputError, match=r"'dapo' has a penalty on length.*give max_new_tokens, or turn it off"):
        advantage_function(dapo())
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    reward, group = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    found = advantage_function(dapo(overlong_buffer=2), 5)(reward, mask, group)[:, 0]
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2), rtol=1e-5, atol=0)
    assert not advantage_function(dapo(overlong_factor=0.0))(reward, mask, group).any()
    with pytest.raises(InputError, match="'rloo' takes more than reward, mask and group: use loss_function, which takes log-probabilities"):
        advantage_function(registered()["rloo"](kl_in_reward=0.1))


def test_schedules_read_where_training_stands() -> None:
    """CHORD's mixture: at step 0 of its decay demonstrations have weight 0.9, at its end 0.05."""
    log_prob, mask = torch.full((2, 1), -1.0, requires_grad=True), torch.ones(2, 1, dtype=torch.bool)
    loss = loss_function(registered()["chord_mu"](), 1)
    found = []
    for step in (0, 200):
        value = loss(
            log_prob,
            mask,
            torch.ones(2),
            demonstration=torch.tensor([False, True]),
            old_log_prob=log_prob.detach(),
            planning=Planning(Progress(step, 400)),
        )
        found.append(float(torch.autograd.grad(value, log_prob)[0][1]))
    assert found == pytest.approx([-0.9, -0.05])


@pytest.mark.parametrize(
    ("annotations", "match"),
    [
        ([1, 2], r"annotations is a list; accepted: lists of 2 facts by name"),
        ({"stratum": 3}, r"annotations\['stratum'\] is a int; accepted"),
        ({"stratum": "ab"}, r"annotations\['stratum'\] is a str; accepted"),
        ({"stratum": [1]}, r"annotations\['stratum'\] is 1 values; accepted: lists of 2"),
    ],
)
def test_annotations_of_a_wrong_shape_are_refused(annotations, match) -> None:
    loss = loss_function(registered()["grpo"](), 4)
    log_prob, mask = torch.full((2, 3), -1.0), torch.ones(2, 3, dtype=torch.bool)
    given = {"old_log_prob": log_prob, "group": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(InputError, match=match):
        loss(log_prob, mask, torch.tensor([1.0, 0.0]), annotations=annotations, **given)
    kept = {"stratum": (1, 2)}
    assert float(loss(log_prob, mask, torch.tensor([1.0, 0.0]), annotations=kept, **given)) == 0.0


def test_prime_rl_sums_over_the_sequence() -> None:
    log_prob = torch.tensor([-0.5, -0.2, -9.0], requires_grad=True)
    inputs = SimpleNamespace(
        trainer_logprobs=log_prob,
        inference_logprobs=torch.tensor([-0.6, -0.2, -1.0]),
        advantages=torch.tensor([1.0, 1.0, 1.0]),
        loss_mask=torch.tensor([True, True, False]),
    )
    total, metrics = prime_rl.summed_loss(inputs, "cispo", weight_high=0.05)
    (gradient,) = torch.autograd.grad(total, log_prob)
    torch.testing.assert_close(gradient, torch.tensor([-1.05, -1.0, 0.0]))
    assert float(metrics["mean_log_ratio"]) == pytest.approx(0.05)
    with pytest.raises(InputError, match="runs inside prime-rl"):
        prime_rl.loss(inputs)


def test_slime_rewards_and_packed_losses(monkeypatch) -> None:
    monkeypatch.setenv("UNIPG_ALGORITHM", "rloo")
    samples = [SimpleNamespace(get_reward_value=lambda args, r=r: r, group_index=g) for r, g in ((1.0, 7), (0.0, 7), (0.5, 9))]
    assert slime.rewards(None, samples) == ([1.0, 0.0, 0.5], [1.0, -1.0, 0.5])
    current = [torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)]
    losses = slime.packed_loss(
        current,
        [c.detach() for c in current],
        [torch.tensor([2.0, 2.0]), torch.tensor([-1.0])],
        [torch.tensor([1, 0]), torch.tensor([1])],
    )
    assert losses.shape == (3,)
    gradients = torch.autograd.grad(losses.sum(), current)
    assert [g.tolist() for g in gradients] == [[-2.0, 0.0], [1.0]]
    with pytest.raises(InputError, match="runs inside slime"):
        slime.loss(None, {}, torch.zeros(1), sum)


def test_verl_registers_and_agrees_with_its_own_vanilla_loss() -> None:
    core = pytest.importorskip("verl.trainer.ppo.core_algos")
    from unipg.interop import verl

    name = verl.register("grpo")
    rng = torch.Generator().manual_seed(0)
    log_prob = (-torch.rand(4, 5, generator=rng, dtype=torch.float64)).requires_grad_()
    old = log_prob.detach() + 0.3 * torch.randn(4, 5, generator=rng, dtype=torch.float64)
    mask = (torch.rand(4, 5, generator=rng) < 0.8).double()
    advantages = torch.randn(4, 1, generator=rng, dtype=torch.float64).expand(4, 5)
    config = SimpleNamespace(global_batch_info={}, clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.2)
    config.get = lambda key, default=None: 1e9 if key == "clip_ratio_c" else getattr(config, key, default)
    gradients = []
    for function in (core.get_policy_loss_fn(name), core.get_policy_loss_fn("vanilla")):
        loss, _ = function(
            old_log_prob=old, log_prob=log_prob, advantages=advantages, response_mask=mask, loss_agg_mode="token-mean", config=config
        )
        gradients.append(torch.autograd.grad(loss, log_prob)[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    scores = torch.zeros(4, 5, dtype=torch.float64)
    scores[:, 2] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    ours, _ = core.get_adv_estimator_fn(name)(token_level_rewards=scores, response_mask=torch.ones(4, 5), index=["a", "a", "b", "b"])
    theirs, _ = core.compute_grpo_outcome_advantage(scores, torch.ones(4, 5), ["a", "a", "b", "b"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
