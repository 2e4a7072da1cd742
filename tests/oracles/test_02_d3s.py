"""Closed-form oracles of D3S (arXiv 2509.22115) and its bad input."""

import itertools
import math

import pytest
import torch

from unipg import GroupStandardized, InputError, Planning, Progress, Trajectories
from unipg.algorithms import Setting, registered
from unipg.algorithms.language.d3s import D3S, lexicographic, most_varied
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.laws import LawBroken, checks
from unipg.laws.cases import VOCABULARY, random_batch
from unipg.training import Trainer, TrainingRecipe

EVERYTHING = {"sample_share_initial": 1.0, "token_share_initial": 1.0}
SETTING = Setting(6)


def batch_of(rewards: list[list[float]], tokens: int = 1, entropy: torch.Tensor | None = None) -> Trajectories:
    rows = sum(map(len, rewards))
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    return Trajectories(
        action=torch.arange(rows * tokens).reshape(rows, tokens),
        mask=mask,
        group=torch.tensor([g for g, group in enumerate(rewards) for _ in group]),
        reward=torch.tensor([r for group in rewards for r in group], dtype=torch.float64),
        old_entropy=torch.ones(rows, tokens, dtype=torch.float64) if entropy is None else entropy,
    )


def variance(values: torch.Tensor) -> float:
    return float(values.var(correction=0))


def group_advantages(seed: int, size: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    reward = torch.randn(size, dtype=torch.float64, generator=draw) if seed % 2 else (torch.rand(size, generator=draw) < 0.5).double()
    return GroupStandardized(eps=0.0)(batch_of([reward.tolist()]))[:, 0].nan_to_num()


# ---------------------------------------------------------------------------------------------------- 1. the scan


@pytest.mark.parametrize("count", range(4, 10))
def test_1_the_scan_equals_brute_force(count) -> None:
    for seed in range(12):
        values = group_advantages(100 * count + seed, count)
        for size in range(2, count + 1):
            best = max(variance(values[list(rows)]) for rows in itertools.combinations(range(count), size))
            chosen = most_varied(values, size)
            assert int(chosen.sum()) == size
            assert variance(values[chosen]) == pytest.approx(best, rel=1e-10, abs=1e-12)


def test_the_scan_breaks_ties_by_key_then_index_and_takes_the_first_of_equals() -> None:
    values = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert most_varied(values, 2).tolist() == [True, False, False, True]
    assert most_varied(values, 2, torch.tensor([0, 3, 1, 2])).tolist() == [True, True, False, False]
    assert most_varied(torch.zeros(5), 2).tolist() == [True, True, False, False, False]
    assert most_varied(torch.zeros(5), 9).tolist() == [True] * 5


def test_lexicographic_order() -> None:
    assert lexicographic([torch.tensor([1, 0, 1, 0]), torch.tensor([5.0, 7.0, 4.0, 7.0])]).tolist() == [1, 3, 2, 0]


# ---------------------------------------------------------------------------------------------------- 2. everything is the base


@pytest.mark.parametrize("base", ["grpo", "gspo"])
def test_2_all_rollouts_and_tokens_are_the_base_bit_for_bit(base) -> None:
    d3s = D3S(base=base, **EVERYTHING)
    batch, policy = random_batch(d3s, 4), BigramPolicy(VOCABULARY, 4)
    plain = registered()[base](**({"aggregate": "token_mean"} if base == "grpo" else {}))
    ours, theirs = checks.prepared(d3s, batch), checks.prepared(plain, batch)
    if base == "gspo":
        theirs = (ours[0], theirs[1])  # GSPO averages rows; the aggregate is D3S's own
    found, expected = checks.step(ours[0], policy, ours[1]), checks.step(theirs[0], policy, theirs[1])
    assert expected[1:].norm() > 1e-3
    assert torch.equal(found, expected)
    assert d3s.reads == frozenset()


def test_2_training_with_everything_kept_gives_the_weights_of_grpo(tmp_path) -> None:
    problem = StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2)

    def run(algorithm, name):
        policy = BigramPolicy(4, seed=1)
        recipe = TrainingRecipe(iterations=4, minibatches=2, epochs=2)
        Trainer(algorithm, policy, StringExperience(problem), folder=tmp_path / name, training=recipe, seed=7).train()
        return policy.logits.detach()

    start = BigramPolicy(4, seed=1).logits.detach()
    plain = run(registered()["grpo"](aggregate="token_mean"), "grpo")
    assert not torch.equal(plain, start)
    assert torch.equal(run(D3S(**EVERYTHING), "d3s"), plain)
    assert not torch.equal(run(D3S(), "selected"), plain)


# ---------------------------------------------------------------------------------------------------- 3, 4. by hand


def selected(batch: Trajectories, **settings) -> torch.Tensor:
    settings = {"token_share_initial": 1.0, **settings}
    return D3S(**settings).prepare(batch, SETTING, Planning(Progress(0, 10))).planned["d3s/selected"].bool()


def test_3_one_success_of_four() -> None:
    batch = batch_of([[1, 0, 0, 0]])
    advantage = GroupStandardized(eps=0.0)(batch)[:, 0]
    torch.testing.assert_close(advantage, torch.tensor([1.5, -0.5, -0.5, -0.5], dtype=torch.float64), rtol=0, atol=1e-15)
    for across in (True, False):
        chosen = selected(batch, sample_share_initial=0.5, across_groups=across)
        assert chosen[0]
        assert int(chosen.sum()) == 2
        assert variance(advantage[chosen]) == 1.0


def test_4_across_groups() -> None:
    batch = batch_of([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    advantage = GroupStandardized(eps=0.0)(batch)[:, 0].nan_to_num()
    root = math.sqrt(3) / 2
    expected = torch.tensor([1.5, *[-0.5] * 3, root, root, -root, -root, 0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(advantage, expected, rtol=0, atol=1e-12)
    chosen = selected(batch, sample_share_initial=4 / 12)
    values = advantage[chosen].sort(descending=True).values
    torch.testing.assert_close(values, torch.tensor([1.5, root, -root, -root], dtype=torch.float64), rtol=0, atol=1e-12)
    assert variance(values) == pytest.approx(1.0998798, abs=5e-8)
    assert not chosen[8:].any()
    within = selected(batch, sample_share_initial=0.5, across_groups=False).reshape(3, 4)
    assert within.sum(1).tolist() == [2, 2, 2]
    assert within[0, 0]
    assert within[1].tolist()[:2].count(True) == 1


def test_advantages_are_those_of_all_rollouts() -> None:
    d3s = D3S(sample_share_initial=0.5, token_share_initial=1.0)
    objective, ready = checks.prepared(d3s, batch_of([[1, 0, 0, 0]]), Planning(Progress(0, 10)))
    kept = ready.planned["policy_gradient/advantage"][ready.mask.any(1)][:, 0]
    torch.testing.assert_close(kept, torch.tensor([1.5, -0.5], dtype=torch.float64), rtol=0, atol=1e-5)
    planned = objective.plan(ready)
    assert float(planned.planned["policy_gradient/weight"].sum()) == 1.0  # the mean is over what is kept


# ---------------------------------------------------------------------------------------------------- 5. the lemma


def test_5_a_subset_of_unbiased_variance_1_exists_and_the_average_over_subsets_is_1() -> None:
    fails_when_biased = 0
    for count in range(4, 9):
        for seed in range(10):
            values = group_advantages(1000 * count + seed, count)
            if not values.any():
                continue
            for size in range(2, count + 1):
                best = values[most_varied(values, size)]
                unbiased = [float(values[list(rows)].var()) for rows in itertools.combinations(range(count), size)]
                assert sum(unbiased) / len(unbiased) == pytest.approx(1.0, abs=1e-9)
                assert float(best.var()) >= 1 - 1e-9
                biased = GroupStandardized(eps=0.0, unbiased=False).of_rewards(
                    values, torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool)
                )
                fails_when_biased += variance(biased[most_varied(biased, size)]) < 1 - 1e-9
    assert fails_when_biased > 0


# ---------------------------------------------------------------------------------------------------- 6. the schedule


def test_6_the_ends_of_the_schedule() -> None:
    d3s = D3S(sample_share_initial=0.25, token_share_initial=0.2, sample_share_final=0.9, token_share_final=0.7)
    assert d3s.shares(Progress(0, 160)) == (0.25, 0.2)
    assert d3s.shares(Progress(159, 160)) == (0.9, 0.7)
    assert d3s.shares(Progress(0, 1)) == (0.25, 0.2)
    middle = d3s.shares(Progress(53, 160))
    assert middle == pytest.approx((0.25 + 0.65 / 3, 0.2 + 0.5 / 3), abs=1e-15)


def test_6_the_number_of_rollouts_is_rounded_to_the_nearest() -> None:
    batch = batch_of([[1, 0, 0, 0, 0, 1, 1, 0, 0, 1]])
    for share, count in ((0.24, 2), (0.25, 3), (0.34, 3), (0.1, 2), (1.0, 10)):
        assert int(selected(batch, sample_share_initial=share).sum()) == count


# ---------------------------------------------------------------------------------------------------- 7. tokens


def kept_tokens(entropy: list[list[float]], rewards: list[float], share: float) -> torch.Tensor:
    table = torch.tensor(entropy, dtype=torch.float64)
    d3s = D3S(sample_share_initial=1.0, token_share_initial=share)
    return d3s.prepare(batch_of([rewards], table.shape[1], table), SETTING, Planning(Progress(0, 10))).mask


def test_7_tokens_by_hand() -> None:
    """A = [2, −1] of a group is not to be had, so the rule itself is asked: keys [[.2, 1.], [.9, .2]]."""
    d3s, batch = D3S(), batch_of([[1, 0]], 2)
    entropy = torch.tensor([[0.1, 0.5], [0.9, 0.2]], dtype=torch.float64)
    size = torch.tensor([2.0, 1.0], dtype=torch.float64)
    keys = torch.arange(4).reshape(2, 2)
    mask = d3s._tokens(size, entropy, keys, batch.mask, 0.5, Planning())
    assert mask.tolist() == [[False, True], [True, False]]
    assert int(d3s._tokens(size, entropy, keys, batch.mask, 0.51, Planning()).sum()) == 3  # the ceiling


def test_7_through_the_algorithm() -> None:
    mask = kept_tokens([[0.1, 0.5, 0.3], [0.9, 0.2, 0.6]], [1.0, 0.0], 0.5)  # |A| is the same for both
    assert mask.tolist() == [[False, True, False], [True, False, True]]
    assert kept_tokens([[0.1, 0.9]] + [[0.0, 0.3]] * 3, [1.0, 0.0, 0.0, 0.0], 0.25).tolist()[0] == [True, True]  # 1.5 · 0.1 = 0.5 · 0.3


def test_without_any_entropy_tokens_rank_by_advantage_then_position() -> None:
    mask = kept_tokens([[0.0, 0.0, 0.0]] * 4, [1.0, 0.0, 0.0, 0.0], 5 / 12)
    assert mask[0].all()
    assert mask[1:].sum(0).tolist() == [2, 0, 0]


def test_pooling_may_leave_a_selected_row_without_tokens() -> None:
    batch = batch_of([[1, 0]], 2, torch.tensor([[0.9, 0.8], [0.1, 0.2]], dtype=torch.float64))
    d3s, policy = D3S(sample_share_initial=1.0, token_share_initial=0.5), BigramPolicy(4, 1)
    objective, ready = checks.prepared(d3s, batch, Planning(Progress(0, 10)))
    assert ready.mask.tolist() == [[True, True], [False, False]]
    found = checks.gradient(objective, policy, ready)
    assert torch.isfinite(found).all()
    assert found.norm() > 0


# ---------------------------------------------------------------------------------------------------- in the loop


def test_what_is_left_out_is_gone_before_the_updates(tmp_path) -> None:
    seen = []

    class Watching(D3S):
        name = "watching"

        def learn(self, batch, planning, evaluate):
            seen.append((len(batch), int(batch.mask.sum()), bool(batch.mask.any(1).all()), batch.old_entropy is not None))
            return {}

    problem = StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2)
    recipe = TrainingRecipe(iterations=3, minibatches=2)
    experience = StringExperience(problem, prompts=6)
    d3s = Watching(token_share_initial=0.5, token_share_final=0.5, sample_share_final=0.25)
    trainer = Trainer(d3s, BigramPolicy(4, seed=1), experience, folder=tmp_path, training=recipe, seed=7)
    last = trainer.train()
    assert [tokens for _, tokens, _, _ in seen] == [12] * 3  # 48 rollouts x 2 tokens, a quarter, half of those
    assert all(rows <= 12 and live and entropies for rows, _, live, entropies in seen)
    assert last["selection/rows"] == 0.25
    assert last["selection/tokens"] == 12
    assert last["selection/token_fraction"] == 12 / 96


def test_old_entropies_are_those_of_the_whole_vocabulary(tmp_path) -> None:
    policy = BigramPolicy(3, seed=2)
    problem = StringProblem(vocabulary=3, prompts=(0, 1), length=2)
    trainer = Trainer(D3S(), policy, StringExperience(problem), folder=tmp_path, seed=1)
    trainer.feed.begin()
    batch = trainer.feed.batch
    tokens = torch.cat([batch.action[:, :1], batch.action[:, :-1]], 1)
    p = policy.logits.detach().softmax(1)[tokens]
    exact = -(p * p.log()).sum(-1)
    torch.testing.assert_close(batch.old_entropy[batch.mask], exact[batch.mask], rtol=0, atol=1e-14)


def test_without_any_signal_nothing_moves_and_it_is_said() -> None:
    d3s, batch, policy = D3S(), batch_of([[0, 0, 0, 0], [1, 1, 1, 1]], 2), BigramPolicy(8, 1)
    batch.action %= 8
    objective, ready = checks.prepared(d3s, batch, Planning(Progress(0, 10)))
    assert (checks.step(objective, policy, ready) == 0).all()
    assert not objective.touched_rows(ready).any()
    assert d3s.metrics(ready)["selection/signal"] == 0.0
    assert d3s.metrics(checks.prepared(d3s, batch_of([[1, 0, 0, 0]]))[1])["selection/signal"] == 1.0


def test_ties_by_index_alone_would_break_the_law_of_splitting(monkeypatch) -> None:
    from unipg.algorithms.language import d3s as module

    checks.split(D3S())
    monkeypatch.setattr(module, "position_keys", lambda batch, seed: torch.zeros_like(batch.action))
    said = []
    for seed in range(6):
        try:
            checks.split(D3S(), seed)
        except LawBroken as error:
            said.append(str(error))
    assert any("rows in another order" in sentence for sentence in said)


def test_empty_responses_are_left_out_before_selection() -> None:
    batch = batch_of([[1, 0, 0, 0]], 2)
    batch.mask[0] = False
    assert selected(batch, sample_share_initial=0.5).tolist()[0] is False
    batch.mask[:] = False
    ready = D3S().prepare(batch, SETTING, Planning(Progress(0, 10)))
    assert not ready.mask.any()
    assert D3S().metrics(ready) == {"selection/signal": 0.0}


# ---------------------------------------------------------------------------------------------------- bad input, section 9


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"token_share_initial": 0.0}, r"token_share_initial is 0\.0; accepted: a share in \(0, 1\]"),
        ({"token_share_final": 1.5}, r"token_share_final is 1\.5"),
        ({"sample_share_initial": float("nan")}, "sample_share_initial is nan"),
        ({"sample_share_initial": 0.6, "sample_share_final": 0.5}, "set allow_shrinking"),
        ({"token_share_initial": 0.6, "token_share_final": 0.5}, "set allow_shrinking"),
        ({"rollouts": 1}, "2 or more"),
    ],
)
def test_values_outside_their_range(settings, said) -> None:
    with pytest.raises(InputError, match=said):
        D3S(**settings)
    assert D3S(token_share_initial=0.6, token_share_final=0.5, allow_shrinking=True)


def test_a_subset_of_one_has_no_variance() -> None:
    with pytest.raises(InputError, match="a subset of 1 has no variance; accepted: 2 or more"):
        most_varied(torch.tensor([1.0, 2.0, 3.0]), 1)


def test_bad_batches() -> None:
    def prepare(**changes) -> None:
        D3S(rollouts=2).prepare(batch_of([[1, 0], [0, 1]]).replace(**changes), SETTING, Planning(Progress(0, 10)))

    with pytest.raises(InputError, match="0 optimiser steps are planned"):
        D3S().shares(Progress(0, 0))
    with pytest.raises(InputError, match="the reward of row 1 is nan"):
        prepare(reward=torch.tensor([0.0, float("nan"), 0.0, 1.0]))
    with pytest.raises(InputError, match="old_entropy is nan at row 2, position 0"):
        prepare(old_entropy=torch.tensor([[0.0], [0.0], [float("nan")], [1.0]]))
    with pytest.raises(InputError, match="d3s needs the field 'old_entropy'"):
        prepare(old_entropy=None)
    with pytest.raises(InputError, match="no two rows share a group"):
        prepare(group=torch.arange(4))
