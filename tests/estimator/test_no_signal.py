"""Where nothing can be learnt the advantage is exactly 0: an optimiser such as Adam makes a whole step of any other number."""

import pytest
import torch

from unipg import Planning, Source, Trajectories
from unipg.algorithms import Setting, registered
from unipg.estimator import GAE, BatchWhitened, GroupCentered, GroupStandardized, LeaveOneOut
from unipg.estimator.advantages import UNION
from unipg.estimator.baselines import AcrossPrompts, RowsWhitened
from unipg.estimator.strata import Stratified
from unipg.laws.cases import random_batch


def group(rewards: list[float], dtype: torch.dtype, **fields) -> Trajectories:
    count = len(rewards)
    return Trajectories(
        action=torch.zeros(count, 3, dtype=torch.long),
        mask=torch.ones(count, 3, dtype=torch.bool),
        group=torch.zeros(count, dtype=torch.long),
        reward=torch.tensor(rewards, dtype=dtype),
        planned={"stratum": torch.zeros(count, dtype=torch.long)},
        **fields,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.7, 0.1, -1 / 3, 1e8 + 0.1])
@pytest.mark.parametrize(
    "advantage",
    [
        GroupCentered(),
        GroupStandardized(),
        LeaveOneOut(),
        LeaveOneOut(over=UNION),
        Stratified(),
        BatchWhitened(),
        RowsWhitened(),
        RowsWhitened(level="token"),
        AcrossPrompts(),
        GAE(lam=1.0),
        0.7 * LeaveOneOut() + 0.3 * GroupStandardized(),
    ],
    ids=lambda part: part.symbol(),
)
@pytest.mark.parametrize("count", [2, 7, 11])
def test_equal_rewards_give_exactly_0(advantage, reward, dtype, count) -> None:
    batch = group([reward] * count, dtype, value=torch.zeros(count, 3, dtype=dtype))
    assert torch.equal(advantage(batch), torch.zeros(count, 3, dtype=advantage(batch).dtype))


def test_leave_one_out_by_hand_and_for_rows_that_do_not_count() -> None:
    source = torch.tensor([Source.ROLLOUT, Source.ROLLOUT, Source.ROLLOUT, Source.DEMONSTRATION])
    found = LeaveOneOut()(group([1.0, 0.0, 0.5, 1.0], torch.float64, source=source))[:, 0]
    torch.testing.assert_close(found, torch.tensor([0.75, -0.75, 0.0, 0.5], dtype=torch.float64))
    assert LeaveOneOut()(group([0.3], torch.float64))[:, 0].tolist() == [0.3]


def test_a_standard_deviation_of_0_counts_as_1() -> None:
    """A right demonstration beside rollouts that all fail, as in the released code of LUFFY and HPT."""
    source = torch.tensor([Source.ROLLOUT] * 3 + [Source.DEMONSTRATION])
    batch = group([0.0, 0.0, 0.0, 1.0], torch.float64, source=source)
    found = GroupStandardized()(batch)[:, 0]
    torch.testing.assert_close(found, torch.tensor([0, 0, 0, 1 / (1 + 1e-6)], dtype=torch.float64), rtol=0, atol=1e-15)
    luffy = registered()["luffy"](use_std=True, union_baseline=False).terms(Setting(3)).terms[1].advantage
    torch.testing.assert_close(luffy(batch)[3, 0], found[3])


def test_small_differences_are_signal() -> None:
    for advantage in (GroupCentered(), LeaveOneOut(), BatchWhitened(), RowsWhitened(), GAE(lam=1.0)):
        batch = group([0.7, 0.7 + 1e-6], torch.float64, value=torch.zeros(2, 3, dtype=torch.float64))
        assert float(advantage(batch)[1, 0]) > 0 > float(advantage(batch)[0, 0])


def test_a_planning_used_for_a_second_batch_knows_the_second_batch() -> None:
    planning, objective = Planning(), registered()["ppo"]().terms(Setting(6))
    first, second = (random_batch(registered()["ppo"](), seed) for seed in (3, 4))
    fresh = objective.prepare(second)
    objective.prepare(first, planning)
    again = objective.prepare(second, planning)
    assert all(torch.equal(again.planned[name], tensor) for name, tensor in fresh.planned.items())


def test_gae_follows_what_is_written_into_its_batch() -> None:
    batch = group([1.0, 0.0], torch.float64, value=torch.zeros(2, 3, dtype=torch.float64))
    plain = GAE(normalize=False)
    before = plain(batch).clone()
    batch.value += 0.5
    fresh = plain(batch.replace(value=batch.value.clone()))
    assert torch.equal(plain(batch), fresh)
    assert not torch.equal(before, fresh)
    with torch.inference_mode():
        assert torch.equal(plain(batch.replace(value=batch.value.clone())), fresh)
