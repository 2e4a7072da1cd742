"""Closed-form oracles of Stratified GRPO (arXiv 2510.06214) and its bad input."""

import itertools

import pytest
import torch

from unipg import Evaluation, GroupCentered, GroupStandardized, InputError, Planning, Trajectories
from unipg.algorithms import Setting, algorithm_named
from unipg.algorithms.language.stratified_grpo import STRATUM, StratifiedGRPO
from unipg.estimator.strata import Stratified

SETTING = Setting(4)
POPULATION = GroupStandardized(eps=0.0, unbiased=False)


def batch_of(rewards: list[float], strata: list | None = None, groups: list[int] | None = None, **annotations: list) -> Trajectories:
    """Rows of a prompt token and two tokens of the policy."""
    rows = len(rewards)
    given = {} if strata is None else {"stratum": strata}
    mask = torch.tensor([[False, True, True]]).expand(rows, 3)
    return Trajectories(
        action=torch.arange(rows * 3).reshape(rows, 3) % 4,
        mask=mask,
        group=torch.tensor(groups or [0] * rows),
        reward=torch.tensor(rewards, dtype=torch.float64),
        annotations=given | annotations,
    )


def advantage(part: Stratified, batch: Trajectories) -> torch.Tensor:
    ready = StratifiedGRPO().prepare(batch, SETTING, Planning())
    return part(ready)[:, 0]


def san(within=POPULATION, alpha: float = 1.0, smallest: int = 2) -> Stratified:
    return Stratified(alpha, within, STRATUM, smallest)


REWARDS, STRATA = [1.0, 1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]
EXPECTED = [0.5**0.5, 0.5**0.5, -(2**0.5), -0.5, 2.0, -0.5, -0.5, -0.5]


def test_1_the_hand_worked_group() -> None:
    batch = batch_of(REWARDS, STRATA)
    found = advantage(san(), batch)
    assert found.tolist() == pytest.approx(EXPECTED, abs=1e-14)
    assert float(found.mean()) == pytest.approx(0, abs=1e-15)
    assert float((found**2).mean()) == pytest.approx(1, abs=1e-14)
    overall = advantage(san(alpha=0.0), batch)
    assert overall.tolist() == pytest.approx([1.2909944487 if r else -0.7745966692 for r in REWARDS], abs=1e-10)
    inside, all_rows = (advantage(san(GroupCentered(), a), batch) for a in (1.0, 0.0))
    gap = float((all_rows**2).mean() - (inside**2).mean())
    assert gap == pytest.approx(0.0510416667, abs=1e-10)
    assert gap == pytest.approx((3 * (2 / 3 - 3 / 8) ** 2 + 5 * (1 / 5 - 3 / 8) ** 2) / 8, abs=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("strata", [[4] * 8, STRATA])
def test_2_one_stratum_or_alpha_0_is_grpo_to_the_bit(alpha: float, strata: list[int]) -> None:
    if strata is STRATA:
        alpha = 0.0
    draw = torch.Generator().manual_seed(3)
    batch = batch_of(torch.rand(8, dtype=torch.float64, generator=draw).tolist(), strata)
    log_prob = torch.where(batch.mask, -torch.rand(8, 3, dtype=torch.float64, generator=draw), 0)
    batch = batch.replace(old_log_prob=log_prob + 0.1 * torch.rand(8, 3, dtype=torch.float64, generator=draw))
    gradients = []
    for algorithm in (StratifiedGRPO(alpha=alpha), algorithm_named("grpo")()):
        leaf = log_prob.clone().requires_grad_(True)
        algorithm.terms(SETTING)(Evaluation(leaf), algorithm.prepare(batch, SETTING, Planning())).backward()
        gradients.append(leaf.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


def test_3_where_the_arm_is_the_stratum_only_the_global_part_is_left() -> None:
    batch = batch_of([1.0, 0.2, 1.0, 0.2, 0.2], [7, 2, 7, 2, 2])
    assert advantage(san(GroupStandardized()), batch).tolist() == [0.0] * 5
    blended, overall = (advantage(san(GroupStandardized(), alpha), batch) for alpha in (0.8, 0.0))
    assert blended.tolist() == pytest.approx((0.2 * overall).tolist(), abs=1e-15)


def test_4_the_expected_gradient_on_the_stratum_by_enumeration() -> None:
    """Two strata (.3, .7), two answers in each, K = 3: the expected gradient on the strata's logits, over all 4^3 groups."""
    choice = torch.tensor([0.3, 0.7], dtype=torch.float64)
    answer = torch.tensor([[0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    reward = torch.tensor([[1.0, 0.0], [1.0, 0.2]], dtype=torch.float64)
    outcomes = list(itertools.product((0, 1), (0, 1)))
    found = {}
    for name, part in {"stratified": san(), "centered": san(GroupCentered()), "global": san(GroupCentered(), 0.0)}.items():
        total = torch.zeros(2, dtype=torch.float64)
        for group in itertools.product(outcomes, repeat=3):
            probability = torch.stack([choice[s] * answer[s, a] for s, a in group]).prod()
            value = advantage(part, batch_of([float(reward[s, a]) for s, a in group], [s for s, _ in group]))
            score = torch.stack([torch.nn.functional.one_hot(torch.tensor(s), 2) - choice for s, _ in group])
            total += probability * (value.unsqueeze(1) * score).sum(0)
        found[name] = total
    assert float(found["stratified"].abs().max()) < 1e-11
    assert float(found["centered"].abs().max()) < 1e-11
    assert found["global"].tolist() == pytest.approx([-0.2016, 0.2016], abs=1e-12)


def test_5_an_affine_change_of_the_reward_changes_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    rewards = torch.rand(8, dtype=torch.float64, generator=draw)
    before, after = (advantage(san(), batch_of(r.tolist(), STRATA)) for r in (rewards, 3 * rewards + 2))
    assert after.tolist() == pytest.approx(before.tolist(), abs=1e-12)


def test_6_every_rollout_a_stratum_of_its_own() -> None:
    batch = batch_of([1.0, 0.0, 0.5], [0, 1, 2])
    ready = StratifiedGRPO().prepare(batch, SETTING, Planning())
    with pytest.warns(UserWarning, match=r"3\.0 strata per prompt for 3\.0 rollouts"):
        assert StratifiedGRPO().metrics(ready)["strata/single_fraction"] == 1
    overall = GroupStandardized()(ready)[:, 0]
    assert Stratified(0.8, GroupStandardized(), STRATUM)(ready)[:, 0].tolist() == pytest.approx((0.2 * overall).tolist(), abs=1e-15)
    assert Stratified(1.0, GroupStandardized(), STRATUM)(ready)[:, 0].tolist() == [0.0] * 3


def test_strata_are_not_pooled_over_prompts() -> None:
    both = batch_of([1.0, 0, 1, 0, 5, 3, 5, 3], [0, 0, 1, 1] * 2, [0] * 4 + [1] * 4)
    found = advantage(san(GroupCentered()), both)
    assert found.tolist() == [0.5, -0.5, 0.5, -0.5, 1.0, -1.0, 1.0, -1.0]


def test_small_strata_may_take_the_groups_advantage() -> None:
    batch = batch_of([1.0, 0, 0.3, 0, 1, 0.5], [0, 0, 1, 2, 2, 2])
    found, overall = (advantage(part, batch) for part in (san(smallest=3), san(alpha=0.0)))
    assert found[:2].equal(overall[:2])
    assert float(found[2]) == 0
    assert found[3:].tolist() == pytest.approx(advantage(san(), batch)[3:].tolist(), abs=1e-15)


CALLS = [
    [],
    [{"name": "search", "turn": 0, "outcome": "ok"}],
    [{"name": "search", "turn": 1, "outcome": "error"}],
    [{"name": "calculator", "turn": 0, "outcome": "ok"}],
    [{"name": "search", "turn": 0, "outcome": "ok"}, {"name": "search", "turn": 1, "outcome": "ok"}],
    [{"name": "search", "turn": 0, "outcome": "ok"}, {"name": "search", "turn": 1, "outcome": "ok"}],
]


def by_asked(row: dict) -> tuple:
    """A user's strata: what was asked."""
    return (*(call["name"] for call in row["tool_calls"]), row["answer"])


@pytest.mark.parametrize(
    ("strata", "expected"),
    [
        ("auto", [0, 1, 1, 1, 2, 2]),
        ("calls", [0, 1, 1, 1, 2, 2]),
        ("names", [0, 1, 1, 2, 3, 3]),
        ("places", [0, 1, 2, 1, 3, 3]),
        ("outcomes", [0, 1, 2, 1, 3, 3]),
        ("names+places", [0, 1, 2, 3, 4, 4]),
        (f"{__name__}:by_asked", [0, 1, 1, 2, 3, 4]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*strata per prompt")
def test_strata_from_tool_calls(strata: str, expected: list[int], request) -> None:
    if ":" in strata:
        request.getfixturevalue("monkeypatch").setattr(
            "unipg.algorithms.language.stratified_grpo.callable_named", lambda spec, what: by_asked
        )
    batch = batch_of([1.0, 0, 0, 1, 1, 0], tool_calls=CALLS, answer=["a", "b", "b", "b", "c", "d"])
    algorithm = StratifiedGRPO(strata=strata)
    ready = algorithm.prepare(batch, SETTING, Planning())
    assert ready.planned[STRATUM].tolist() == expected
    told = algorithm.metrics(ready)
    assert told["strata/per_prompt"] == len(set(expected))
    assert told["strata/share_1_calls"] == pytest.approx(0.5)
    assert told["strata/reward_1_calls"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"alpha is 1\.5; accepted: a share in \[0, 1\]"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"rollouts": 1}, "2 or more per prompt"),
        ({"strata": "call"}, "did you mean 'calls'"),
        ({"strata": "calls+auto"}, "'auto' does not exist; .*accepted: calls, names, outcomes, package.module:function, places"),
        ({"strata": "no_such_module_here:f"}, "no module 'no_such_module_here'"),
        ({"smallest": 1}, "algorithm.smallest is 1; accepted: 2 rollouts or more"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        StratifiedGRPO(**settings).terms(SETTING)


@pytest.mark.parametrize(
    ("settings", "annotations", "message"),
    [
        ({}, {}, "no 'stratum' or 'tool_calls' annotation"),
        ({}, {"stratum": [0, 1]}, "2 strata for 3 rows"),
        ({}, {"stratum": [0, float("nan"), 1]}, "the stratum of row 1 is nan"),
        ({}, {"stratum": [0, 1, [2]]}, r"the stratum of row 2 is \[2\]; accepted: a hashable"),
        ({}, {"stratum": [None, 1, 0]}, "the stratum of row 0 is None"),
        ({}, {"stratum": [0, ([],), 1]}, "the stratum of row 1"),
        ({"strata": "calls"}, {"tool_calls": [[]]}, "1 values of 'tool_calls' for 3 rows"),
        (
            {},
            {"stratum": [0] * 3, "item": [3, 3, 4], "prompt": ["p", "p", "q"]},
            r"prompt 0 \(.q.\): its group holds rollouts of items 3 and 4",
        ),
        ({"strata": "json:loads"}, {}, r"algorithm.strata 'json:loads' failed for row 0: TypeError"),
    ],
)
def test_bad_strata(settings: dict, annotations: dict, message: str) -> None:
    batch = batch_of([1.0, 0.0, 1.0]).replace(annotations=annotations)
    with pytest.raises(InputError, match=message):
        StratifiedGRPO(**settings).prepare(batch, SETTING, Planning())
