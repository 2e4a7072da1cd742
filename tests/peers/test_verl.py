"""verl's advantages and losses beside ours, on the same tensors. What is found is written down in docs/peers.md."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from unipg import (
    GAE,
    BatchWhitened,
    BehaviourPolicy,
    ConstantLength,
    CurrentPolicy,
    EntropyBonus,
    GroupCentered,
    GroupStandardized,
    InputError,
    KLPenalty,
    LeaveOneOut,
    OldPolicy,
    PolicyGradient,
    RatioClip,
    SequenceClip,
    SequenceMean,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    Source,
    TokenMean,
    TruncatedWeight,
    ValueLoss,
    kl_estimate,
    kl_in_reward,
)
from unipg.algorithms import Setting, algorithm_named
from unipg.estimator.likelihoods import categorical_log_prob

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl and what it imports warn while they are imported
    core = pytest.importorskip("verl.trainer.ppo.core_algos")
    from tensordict import TensorDict
    from verl.utils import tensordict_utils
    from verl.utils import torch_functional as verl_functional
    from verl.workers.config import ActorConfig
    from verl.workers.utils.losses import sft_loss

NO_DUAL = 1e30  # verl's dual clip cannot be switched off, only moved out of reach
AGGREGATES = {
    "token-mean": TokenMean(),
    "seq-mean-token-mean": SequenceMeanTokenMean(),
    "seq-mean-token-sum": SequenceMeanTokenSum(),
    "seq-mean-token-sum-norm": ConstantLength(9),
}


def actor(low=0.2, high=0.28, dual=3.0, **split) -> ActorConfig:
    config = ActorConfig(
        strategy="fsdp",
        ppo_mini_batch_size=4,
        ppo_micro_batch_size_per_gpu=1,
        rollout_n=1,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=dual,
    )
    config.global_batch_info.update(split)
    return config


def theirs(case, name, aggregate="token-mean", config=None, advantage=None, weights=None):
    """verl's loss and gradient."""
    log_prob = case.log_prob.clone().requires_grad_()
    surrogate = core.compute_policy_loss_reinforce if name == "reinforce" else core.get_policy_loss_fn(name)
    old = {"rollout_log_prob" if name == "reinforce" else "old_log_prob": case.old}
    loss, _ = surrogate(
        **old,
        log_prob=log_prob,
        advantages=case.advantage if advantage is None else advantage,
        response_mask=case.number,
        loss_agg_mode=aggregate,
        config=config or actor(),
        rollout_is_weights=weights,
    )
    return loss.detach(), torch.autograd.grad(loss, log_prob)[0]


def as_index(case):
    """Groups as verl takes them; its loops want hashable numbers."""
    return case.group.numpy()


def clipped(case, low=0.2, high=0.28, dual=3.0, aggregate=AGGREGATES["token-mean"], **changes) -> PolicyGradient:
    parts = {"advantage": case.given, "reference": OldPolicy(), "mask": RatioClip(low, high, dual), "aggregate": aggregate}
    return PolicyGradient(**{**parts, **changes})


# policy losses


@pytest.mark.parametrize("name", AGGREGATES)
def test_vanilla_is_the_ratio_clip_with_dual(case, equal, name) -> None:
    mode = actor(loss_scale_factor=9) if name.endswith("norm") else actor()
    value, gradient = theirs(case, "vanilla", name, mode)
    term = clipped(case, aggregate=AGGREGATES[name], surrogate="ratio")
    ours, our_gradient = case.ours(term)
    equal(our_gradient, gradient)
    # a silenced token is 0 in our value and the constant −A·bound in theirs
    ratio, a = (case.log_prob - case.old).exp(), case.advantage
    constant = torch.where((a > 0) & (ratio > 1.28), -a * 1.28, 0)
    constant = torch.where((a < 0) & (ratio < 0.8), -a * 0.8, constant)
    constant = torch.where((a < 0) & (ratio > 3), -a * 3, constant)
    assert (constant != 0).any()
    equal(ours + (AGGREGATES[name](case.mask) * constant).sum(), value)


@pytest.mark.parametrize("name", ["vanilla", "gspo"])
def test_bounds_lie_where_theirs_do(case, equal, name) -> None:
    case.beside(0.8, 1.28, *([3.0] if name == "vanilla" else []))
    parts = {"mask": SequenceClip(0.2, 0.28), "reference": SequenceMean()} if name == "gspo" else {}
    a = case.advantage[:, :1].expand_as(case.advantage)
    equal(case.gradient(clipped(case, **parts), planned={"given": a}), theirs(case, name, advantage=a)[1])


def test_vanilla_always_has_the_dual_clip(case, equal) -> None:
    ratio = (case.log_prob - case.old).exp()
    beyond = case.mask & (case.advantage < 0) & (ratio > 3)
    assert beyond.any()
    default, plain = theirs(case, "vanilla")[1], case.gradient(clipped(case, dual=None))
    assert (default[beyond] == 0).all()
    assert (plain[beyond] != 0).all()
    equal(plain[~beyond], default[~beyond])
    equal(plain, theirs(case, "vanilla", config=actor(dual=NO_DUAL))[1])


def test_vanilla_and_ours_stop_at_twenty_nats(case, equal) -> None:
    """verl clamps the log-ratio to ±20, which ends the gradient on both sides; ours ends it above only, where exp would run away."""
    case.mask[:2, :2] = True
    case.old[0, :2] = case.log_prob[0, :2] + torch.tensor([19.0, 21.0], dtype=torch.float64)  # ratio near 0, wanted larger
    case.advantage[0, :2] = 1.0
    case.old[1, :2] = case.log_prob[1, :2] - torch.tensor([19.0, 21.0], dtype=torch.float64)  # ratio huge, wanted smaller
    case.advantage[1, :2] = -1.0
    ours, gradient = case.gradient(clipped(case, dual=None)), theirs(case, "vanilla", config=actor(dual=NO_DUAL))[1]
    assert gradient[0, 1] == 0
    equal(ours[0, 1], torch.tensor(-math.exp(-21) / int(case.mask.sum()), dtype=torch.float64))
    assert gradient[1, 1] == ours[1, 1] == 0
    ours[0, 1] = 0
    equal(ours, gradient)


def test_weights_of_another_sampler(case, equal) -> None:
    """verl multiplies by pi_old / pi_sampler: dividing by the sampler's policy under a clip on pi_old."""
    found = theirs(case, "vanilla", weights=(case.old - case.behaviour).exp())[1]
    equal(case.gradient(clipped(case, reference=BehaviourPolicy())), found)


@pytest.mark.parametrize("name", ["token-mean", "seq-mean-token-mean"])
def test_gspo_is_the_sequence_clip(case, equal, name) -> None:
    a = case.advantage[:, :1].expand_as(case.advantage)
    low, high = 0.05, 0.06  # wide enough that both sides are met
    value, gradient = theirs(case, "gspo", name, actor(low, high), a)
    parts = {"mask": SequenceClip(low, high), "reference": SequenceMean(), "aggregate": AGGREGATES[name]}
    term = clipped(case, **parts, surrogate="ratio")
    ours, our_gradient = case.ours(term, planned={"given": a})
    silenced = case.mask & (gradient == 0)
    assert silenced.any()
    assert (case.mask & ~silenced).any()
    equal(our_gradient, gradient)
    constant = torch.where(silenced, torch.where(a > 0, -a * (1 + high), -a * (1 - low)), 0)
    equal(ours + (AGGREGATES[name](case.mask) * constant).sum(), value)


def test_gspo_stops_at_ten_nats(case) -> None:
    """verl clamps the mean log-ratio from above at 10, ours at 20: a row between keeps its gradient here only."""
    case.old[0] = case.log_prob[0] - 12
    a = -torch.ones_like(case.advantage)
    ours = case.gradient(clipped(case, mask=SequenceClip(), reference=SequenceMean()), planned={"given": a})
    assert (theirs(case, "gspo", config=actor(3e-4, 4e-4), advantage=a)[1][0] == 0).all()
    assert (ours[0][case.mask[0]] > 0).all()


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.28), (1.0, 0.28), (0.2, 4.0)])
def test_cispo_is_the_truncated_weight(case, equal, low, high) -> None:
    value, gradient = theirs(case, "cispo", config=actor(low, high))
    term = PolicyGradient(advantage=case.given, reference=TruncatedWeight(low, high), aggregate=TokenMean())
    ours, our_gradient = case.ours(term)
    equal(ours, value)
    equal(our_gradient, gradient)


@pytest.mark.parametrize("name", ["gpg", "reinforce"])
def test_unclipped_losses_are_the_current_policy(case, equal, name) -> None:
    value, gradient = theirs(case, name)
    ours, our_gradient = case.ours(PolicyGradient(advantage=case.given, reference=CurrentPolicy(), aggregate=TokenMean()))
    equal(ours, value)
    equal(our_gradient, gradient)


@pytest.mark.parametrize("name", AGGREGATES)
def test_halves_add_up_if_verl_is_told_the_global_counts(case, equal, name) -> None:
    counts = {"batch_num_tokens": int(case.mask.sum()), "global_batch_size": len(case.mask), "dp_size": 1}
    if name.endswith("norm"):
        counts["loss_scale_factor"] = 9
    halves = [theirs(case.select(rows), "vanilla", name, actor(**counts))[1] for rows in (slice(0, 10), slice(10, None))]
    equal(case.gradient(clipped(case, aggregate=AGGREGATES[name])), torch.cat(halves))


def test_without_the_global_counts_halves_do_not_add_up(case, equal) -> None:
    """Without `batch_num_tokens` each micro-batch is divided by its own tokens: each half is off by its own factor."""
    whole = case.gradient(clipped(case))
    for rows in (slice(0, 10), slice(10, None)):
        share = case.mask[rows].sum() / case.mask.sum() * 2
        assert share != 1
        equal(whole[rows] / share, theirs(case.select(rows), "vanilla")[1] / 2, 1e-6)


def test_padded_width_is_the_default_length_of_token_sum_norm(case, equal) -> None:
    ours = case.gradient(clipped(case, aggregate=ConstantLength(9)))
    equal(ours, theirs(case, "vanilla", "seq-mean-token-sum-norm")[1])
    wider = theirs_padded(case, "seq-mean-token-sum-norm", 3)
    equal(ours * 9 / 12, wider)


def theirs_padded(case, name, more):
    def pad(tensor):
        return torch.nn.functional.pad(tensor, (0, more))

    log_prob = case.log_prob.clone().requires_grad_()
    loss, _ = core.get_policy_loss_fn("vanilla")(
        pad(case.old), pad(log_prob), pad(case.advantage), pad(case.number), loss_agg_mode=name, config=actor()
    )
    return torch.autograd.grad(loss, log_prob)[0]


def test_rows_without_a_token(case, equal) -> None:
    """Not counted by us, nor by verl unless it is given a number of rows that counts them."""
    case.mask[:4] = False
    ours = case.gradient(clipped(case, aggregate=SequenceMeanTokenMean()))
    equal(ours, theirs(case, "vanilla", "seq-mean-token-mean")[1])
    counted = theirs(case, "vanilla", "seq-mean-token-mean", actor(global_batch_size=20))[1]
    equal(ours * 16 / 20, counted)


@pytest.mark.parametrize(("name", "leak"), [("vanilla", "no"), ("gpg", "no"), ("gspo", "loss"), ("cispo", "gradient")])
def test_nan_where_the_mask_is_zero(case, equal, name, leak) -> None:
    term = {
        "vanilla": clipped(case),
        "gpg": clipped(case, mask=RatioClip(1.0, 1e9), reference=CurrentPolicy()),
        "gspo": clipped(case, mask=SequenceClip(0.2, 0.28), reference=SequenceMean()),
        "cispo": PolicyGradient(advantage=case.given, reference=TruncatedWeight(0.2, 0.28), aggregate=TokenMean()),
    }[name]
    clean = theirs(case, name)[1]
    case.old = torch.where(case.mask, case.old, torch.nan)
    equal(case.gradient(term), clean)
    loss, gradient = theirs(case, name)
    assert bool(loss.isnan()) == (leak == "loss")
    assert bool(gradient.isnan().any()) == (leak == "gradient")
    if leak == "loss":
        holed = ~case.mask.all(1)
        assert (gradient[holed] == 0).all()  # the whole row falls silent
        assert (clean[holed] != 0).any()


# KL, entropy, value


@pytest.mark.parametrize(
    ("name", "estimator"), [("kl", "k1"), ("k1", "k1"), ("mse", "k2"), ("k2", "k2"), ("low_var_kl", "k3"), ("k3", "k3")]
)
def test_kl_values(case, equal, name, estimator) -> None:
    equal(kl_estimate(case.log_prob, case.anchor, estimator), core.kl_penalty(case.log_prob, case.anchor, name))


@pytest.mark.parametrize(("name", "estimator"), [("mse", "k2"), ("low_var_kl", "k3"), ("k1+", "k2"), ("k3+", "k2")])
@pytest.mark.parametrize("aggregate", ["token-mean", "seq-mean-token-mean"])
def test_kl_as_a_loss(case, equal, name, estimator, aggregate) -> None:
    """verl's `+` takes the value of one estimator and the gradient of k2, which is our k2."""
    log_prob = case.log_prob.clone().requires_grad_()
    loss = 0.04 * core.agg_loss(core.kl_penalty(log_prob, case.anchor, name), case.number, aggregate)
    value, gradient = case.ours(0.04 * KLPenalty(estimator=estimator, aggregate=AGGREGATES[aggregate]))
    equal(gradient, torch.autograd.grad(loss, log_prob)[0])
    if not name.endswith("+"):
        equal(value, loss.detach())


def test_k1_as_a_loss_is_refused_here(case, equal) -> None:
    log_prob = case.log_prob.clone().requires_grad_()
    loss = core.agg_loss(core.kl_penalty(log_prob, case.anchor, "k1"), case.number, "token-mean")
    equal(case.mask / case.mask.sum().double(), torch.autograd.grad(loss, log_prob)[0])  # the anchor is not in it
    with pytest.raises((InputError, TypeError)):  # TypeError: the type checker of the tests is quicker than the constructor
        KLPenalty(estimator="k1")


@pytest.mark.parametrize("distance", [-2.7, 11.1])
def test_k3_is_cut_at_ten_in_verl(case, distance) -> None:
    """verl clamps k3 to 10, which silences the tokens that have moved furthest from the anchor; ours keeps pulling them."""
    case.mask[0, 0] = True
    case.anchor[0, 0] = case.log_prob[0, 0] - distance
    log_prob = case.log_prob.clone().requires_grad_()
    core.agg_loss(core.kl_penalty(log_prob, case.anchor, "low_var_kl"), case.number, "token-mean").backward()
    ours = case.gradient(KLPenalty(estimator="k3"))
    assert log_prob.grad[0, 0] == 0
    expected = (1 - math.exp(-distance)) / int(case.mask.sum())
    assert ours[0, 0].item() == pytest.approx(expected, rel=1e-10)


def test_kl_in_the_reward(case, equal) -> None:
    penalised = kl_in_reward(case.batch(), 0.05, "k1")
    scores = core.compute_rewards(case.outcome, case.old, case.anchor, 0.05) * case.mask
    equal(penalised.total_reward(), scores.sum(1))
    theirs_now, _ = core.compute_grpo_outcome_advantage(scores, case.number, as_index(case))
    equal(torch.where(case.mask, GroupStandardized()(penalised), 0), theirs_now)


def test_entropy_bonus_and_log_probs_of_logits(case, equal) -> None:
    logits = torch.randn(*case.mask.shape, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    action = torch.arange(case.mask.numel()).reshape(case.mask.shape) % 5
    mine, yours = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    log_prob, entropy = categorical_log_prob(mine, action)
    equal(log_prob, verl_functional.logprobs_from_logits_naive(yours, action))
    case.entropy = entropy.detach()
    value, by_entropy = case.ours(0.01 * EntropyBonus(aggregate=TokenMean()), of="entropy")
    loss = -0.01 * core.compute_entropy_loss(yours, case.number)
    equal(value, loss.detach())
    equal(torch.autograd.grad(entropy, mine, by_entropy)[0], torch.autograd.grad(loss, yours)[0])


@pytest.mark.parametrize("clip", [0.5, None])
def test_value_loss(case, equal, clip) -> None:
    """verl's loss always clips; ours may not, which is theirs with a clip that is out of reach."""
    gae = GAE(gamma=0.99, lam=0.9)
    _, returns = core.compute_gae_advantage_return(case.outcome, case.value, case.number, 0.99, 0.9)
    now = case.value_now.clone().requires_grad_()
    loss, _ = core.compute_value_loss(now, returns, case.value, case.number, clip or 1e9)
    value, gradient = case.ours(ValueLoss(gae=gae, clip=clip, aggregate=TokenMean()), of="value")
    equal(value, loss.detach())
    equal(gradient, torch.autograd.grad(loss, now)[0])


def test_sft(case, equal) -> None:
    log_prob = case.log_prob.clone().requires_grad_()
    data = TensorDict({"response_mask": case.number}, batch_size=[len(case.mask)])
    tensordict_utils.assign_non_tensor(data, pad_mode="left_right", dp_size=1, batch_num_tokens=int(case.mask.sum()))
    loss, _ = sft_loss(actor(), {"log_probs": log_prob}, data)
    rows = torch.full((len(case.mask),), int(Source.DEMONSTRATION))
    value, gradient = case.ours(algorithm_named("sft")().terms(Setting()), source=rows)
    equal(value, loss.detach())
    equal(gradient, torch.autograd.grad(loss, log_prob)[0])


# advantages


@pytest.mark.parametrize(("scaled", "ours"), [(True, GroupStandardized()), (False, GroupCentered())])
@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
def test_grpo_advantage(case, equal, scaled, ours, name) -> None:
    """The unbiased std, with 1e-6 added to it. The vectorised version computes in float32 whatever it is given."""
    estimator = core.get_adv_estimator_fn(name)
    found, _ = estimator(case.outcome, case.number, as_index(case), norm_adv_by_std_in_grpo=scaled)
    mine = torch.where(case.mask, ours(case.batch()), 0)
    flat = case.mask & (case.group == 1).unsqueeze(1)
    if name == "grpo":
        equal(mine[~flat], found[~flat])
    else:
        torch.testing.assert_close(mine[~flat], found[~flat].double(), rtol=1e-5, atol=1e-6)
    assert (mine[flat] == 0).all()  # a group without signal; theirs keeps the rounding of its mean, here divided by 1e-6
    assert found[flat].abs().max() < (0.1 if name == "grpo_vectorized" else 1e-9)


@pytest.mark.parametrize(("name", "one"), [("grpo", 1.0), ("grpo_vectorized", 1.0), ("rloo", 1.0), ("rloo_vectorized", 0.0)])
def test_a_group_of_one(case, equal, name, one) -> None:
    """Â = R with us and in verl, except in its vectorised RLOO, where it is 0."""
    case.group = torch.arange(len(case.mask))
    ours = LeaveOneOut() if name.startswith("rloo") else GroupStandardized(eps=1e-12)
    found, _ = core.get_adv_estimator_fn(name)(case.outcome, case.number, as_index(case), epsilon=1e-12)
    equal(one * torch.where(case.mask, ours(case.batch()), 0), found.double(), 1e-6)


@pytest.mark.parametrize("name", ["rloo", "rloo_vectorized"])
def test_leave_one_out(case, equal, name) -> None:
    found, _ = core.get_adv_estimator_fn(name)(case.outcome, case.number, as_index(case))
    torch.testing.assert_close(torch.where(case.mask, LeaveOneOut()(case.batch()), 0), found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_plus_plus(case, equal, gamma) -> None:
    """Equal up to verl's Bessel factor n / (n − 1), a division of integers that torch does in float32, and 1e-8 added to its counts."""
    ours = BatchWhitened(gamma)(case.batch())
    for mask, tolerance in ((case.number, 1e-7), (case.mask.double(), 1e-9)):
        found, _ = core.compute_reinforce_plus_plus_outcome_advantage(case.outcome, mask, config=SimpleNamespace(gamma=gamma))
        torch.testing.assert_close(ours, found, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
def test_gae(case, equal, gamma, lam) -> None:
    """Steps on which a tool speaks are skipped by both. Whitening as in REINFORCE++."""
    rewards = case.outcome + 0.1 * torch.where(case.mask, case.entropy, 0)
    batch = case.batch(step_reward=0.1 * case.entropy)
    found, returns = core.compute_gae_advantage_return(rewards, case.value, case.number, gamma, lam)
    raw = GAE(gamma, lam, normalize=False)(batch)
    equal((raw + case.value)[case.mask], returns[case.mask])
    torch.testing.assert_close(GAE(gamma, lam)(batch)[case.mask], found[case.mask], rtol=1e-7, atol=1e-7)


def test_gae_of_a_truncated_row(case, equal) -> None:
    """verl takes 0 for what follows the last token. Our bootstrap value is theirs with gamma · V added to the last reward."""
    gamma, lam = 0.97, 0.9
    end = case.outcome != 0
    batch = case.batch(truncated=end, bootstrap_value=case.value_now)
    more = case.outcome + torch.where(end, gamma * case.value_now, 0)
    _, returns = core.compute_gae_advantage_return(more, case.value, case.number, gamma, lam)
    equal((GAE(gamma, lam, normalize=False)(batch) + case.value)[case.mask], returns[case.mask])


def test_a_reward_on_a_token_of_a_tool(case, equal) -> None:
    """verl's outcome advantages sum rewards wherever they stand; its GAE, and all of ours, count those on policy tokens."""
    case.mask[:, 5:] = False
    on_tool = torch.zeros_like(case.log_prob)
    on_tool[:, 5] = 1.0 + torch.arange(len(on_tool))
    batch = case.batch(reward=None, step_reward=on_tool)
    assert (batch.total_reward() == 0).all()
    found, _ = core.compute_rloo_outcome_advantage(on_tool, case.number, as_index(case))
    assert (found[case.mask] != 0).any()
    _, returns = core.compute_gae_advantage_return(on_tool, torch.zeros_like(case.value), case.number, 1.0, 1.0)
    assert (returns[case.mask] == 0).all()
    equal(torch.where(case.mask, LeaveOneOut()(case.batch(reward=on_tool[:, 5])), 0), found)  # the outcome belongs in `reward`


# whole algorithms, from rewards to gradient


def _outcome(name):
    return lambda c: core.get_adv_estimator_fn(name)(c.outcome, c.number, index=as_index(c), config=SimpleNamespace(gamma=1.0))[0]


def _centred(c):
    return core.compute_grpo_outcome_advantage(c.outcome, c.number, as_index(c), norm_adv_by_std_in_grpo=False)[0]


def _gae(c):
    return core.compute_gae_advantage_return(c.outcome, c.value, c.number, 1.0, 0.95)[0]


@pytest.mark.parametrize(
    ("name", "settings", "advantage", "surrogate", "aggregate", "config"),
    [
        ("grpo", {}, _outcome("grpo"), "vanilla", "seq-mean-token-mean", actor(0.2, 0.2, NO_DUAL)),
        ("grpo", {"clip_high": 0.28, "aggregate": "token_mean"}, _outcome("grpo"), "vanilla", "token-mean", actor(0.2, 0.28, NO_DUAL)),
        ("dr_grpo", {"length": 20}, _centred, "vanilla", "seq-mean-token-sum-norm", actor(0.2, 0.2, NO_DUAL, loss_scale_factor=20)),
        ("dapo", {"overlong_factor": 0.0}, _outcome("grpo"), "vanilla", "token-mean", actor(0.2, 0.28, NO_DUAL)),
        ("gspo", {}, _outcome("grpo"), "gspo", "seq-mean-token-mean", actor(3e-4, 4e-4)),
        ("cispo", {}, _outcome("grpo"), "cispo", "token-mean", actor(1.0, 0.28)),
        ("rloo", {}, _outcome("rloo"), "reinforce", "seq-mean-token-sum", actor()),
        ("reinforce_plus_plus", {}, _outcome("reinforce_plus_plus"), "vanilla", "token-mean", actor(0.2, 0.2, NO_DUAL)),
        ("ppo", {}, _gae, "vanilla", "token-mean", actor(0.2, 0.2, NO_DUAL)),
    ],
    ids=["grpo", "grpo asymmetric", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++", "ppo"],
)
def test_whole_algorithms(case, equal, name, settings, advantage, surrogate, aggregate, config) -> None:
    terms = algorithm_named(name)(**{"rollouts": 5, **settings}).terms(Setting(max_new_tokens=20))
    whitened = name in ("reinforce_plus_plus", "ppo")
    equal(case.gradient(terms), theirs(case, surrogate, aggregate, config, advantage(case))[1], 1e-6 if whitened else 1e-9)
