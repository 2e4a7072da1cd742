"""Rows are drawn as often as their priorities say, and weighted so that this does not matter in expectation."""

import numpy as np
import pytest
import torch

from unipg.errors import InputError
from unipg.replay import Priorities


def of(errors, capacity: int = 0, **settings) -> Priorities:
    """One row for each error."""
    errors = torch.as_tensor(errors, dtype=torch.float64)
    priorities = Priorities(capacity or len(errors), **{"alpha": 1.0, "eps": 1e-300, **settings})
    priorities.append(len(errors))
    priorities.update(torch.arange(len(errors)), errors)
    return priorities


def everywhere(priorities: Priorities, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws of which each stands for the same share of the total priority: the exact distribution, in `count` parts."""
    return priorities.draw(torch.full((count,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("capacity", [3, 4, 100])
def test_frequencies_and_weights_are_those_of_the_paper(capacity) -> None:
    priorities = of([1.0, -2.0, 5.0], capacity, beta=1.0)
    index, weight = everywhere(priorities, 800)
    assert torch.bincount(index).tolist() == [100, 200, 500]
    assert torch.allclose(weight, torch.tensor([1.0, 0.5, 0.2])[index])
    value = torch.tensor([3.0, -1.0, 7.0])
    assert torch.isclose((weight * value[index]).sum() / weight.sum(), value.mean())
    priorities.beta = 0.5
    assert torch.allclose(everywhere(priorities, 8)[1], torch.tensor([1.0, 0.5, 0.2])[everywhere(priorities, 8)[0]].sqrt())


def test_alpha_is_a_power_and_eps_keeps_what_was_predicted_well() -> None:
    index, weight = everywhere(of([1.0, 2.0, 3.0], alpha=2.0, beta=1.0), 1400)
    assert torch.bincount(index).tolist() == [100, 400, 900]
    assert torch.allclose(weight, torch.tensor([1.0, 1 / 4, 1 / 9])[index])
    assert torch.bincount(everywhere(of([0.0, 2.5, 6.0], eps=0.5), 1000)[0]).tolist() == [50, 300, 650]
    assert torch.bincount(everywhere(of([0.0, 2.5, 6.0], alpha=0.0), 300)[0]).tolist() == [100, 100, 100]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13, 64])
def test_every_row_is_drawn_and_the_last_leaf_too(size) -> None:
    priorities = of(np.arange(1, size + 1))
    for uniform in (0.0, 0.5, 1 - 2**-53):
        index, _ = priorities.draw(torch.full((size * (size + 1),), uniform, dtype=torch.float64))
        assert index.unique().tolist() == list(range(size))
    assert priorities.draw(torch.tensor([1 - 2**-53], dtype=torch.float64))[0].tolist() == [size - 1]
    assert priorities.draw(torch.tensor([0.0]))[0].tolist() == [0]
    assert len(priorities.draw(torch.zeros(0))[0]) == 0


def test_each_draw_is_of_its_own_share_of_the_total() -> None:
    priorities = of(np.ones(64))
    for seed in range(5):
        index, _ = priorities.draw(torch.rand(16, generator=torch.Generator().manual_seed(seed)))
        assert (index // 4).tolist() == list(range(16))


def test_rounding_never_leads_to_a_row_that_is_not_there() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 40):
        priorities = of(torch.rand(size, generator=generator).double() ** 8 + 1e-12, 64)
        for uniform in (torch.rand(500, generator=generator), torch.full((500,), 1 - 2**-53, dtype=torch.float64)):
            index, weight = priorities.draw(uniform)
            assert int(index.min()) >= 0
            assert int(index.max()) < size
            assert float(weight.max()) <= 1
            assert float(weight.min()) > 0


def test_new_rows_have_the_largest_priority_so_far() -> None:
    priorities = Priorities(8, alpha=1.0, eps=1e-300)
    priorities.append(2)
    assert priorities.state_dict()["priority"].tolist() == [1.0, 1.0]
    priorities.update(torch.tensor([0, 1]), torch.tensor([7.0, 0.5]))
    priorities.append()
    priorities.update(torch.tensor([0]), torch.tensor([2.0]))  # what the largest was stays
    priorities.append(2)
    assert priorities.state_dict()["priority"].tolist() == [2.0, 0.5, 7.0, 7.0, 7.0]


def test_rows_that_have_left_the_ring_have_none() -> None:
    priorities = of([1.0, 2.0, 3.0, 4.0, 5.0], beta=1.0)
    for appended, right in ((2, [3.0, 4.0, 5.0, 5.0, 5.0]), (1, [4.0, 5.0, 5.0, 5.0, 5.0]), (14, [5.0] * 5)):
        priorities.append(appended)
        total = int(sum(right))
        assert priorities.state_dict()["priority"].tolist() == right
        index, weight = everywhere(priorities, total)
        assert torch.bincount(index).tolist() == right
        assert torch.allclose(weight, torch.tensor(min(right)) / torch.tensor(right)[index])
    priorities.update(torch.tensor([4, 0]), torch.tensor([1.0, 2.0]))
    assert torch.bincount(everywhere(priorities, 18)[0]).tolist() == [2, 5, 5, 5, 1]


def test_trees_are_those_of_all_leaves_after_any_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    priorities, right = Priorities(300, alpha=1.0, eps=1e-300), []
    for _ in range(60):
        count = int(torch.randint(0, 40, (1,), generator=generator))
        right = [*right, *[priorities._largest] * count][-300:]
        priorities.append(count)
        if right:
            index = torch.randint(0, len(right), (5,), generator=generator)
            error = torch.rand(5, generator=generator) * 2
            priorities.update(index, error)
            for place, value in zip(index.tolist(), error.double().tolist(), strict=True):
                right[place] = value
            priorities.draw(torch.rand(3, generator=generator))
            assert priorities._sum[1] == pytest.approx(sum(right), rel=1e-12)
            assert priorities._least[1] == min(right)
            assert priorities.state_dict()["priority"].tolist() == right


def test_a_resumed_one_draws_the_same_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    priorities = Priorities(50)
    for _ in range(30):
        priorities.append(7)
        index, _ = priorities.draw(torch.rand(16, generator=generator))
        priorities.update(index, torch.randn(16, generator=generator))
    again = Priorities(50)
    again.append(3)
    again.load_state_dict(priorities.state_dict())
    for one in (priorities, again):
        one.append(2)
    uniforms = torch.rand(400, generator=generator)
    for ours, theirs in zip(priorities.draw(uniforms), again.draw(uniforms), strict=True):
        assert torch.equal(ours, theirs)
    few = of([1.0, 2.0, 5.0], 50)
    again.load_state_dict(few.state_dict())
    for ours, theirs in zip(few.draw(uniforms), again.draw(uniforms), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match=r"priorities of 50 rows; accepted: 60, as this run's capacity has"):
        Priorities(60).load_state_dict(priorities.state_dict())


def test_errors_that_are_not_finite_are_refused_and_change_nothing() -> None:
    priorities = of([1.0, 2.0, 5.0])
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"row 2 has the error {value}; accepted: finite numbers"):
            priorities.update(torch.tensor([0, 2]), torch.tensor([3.0, value]))
    with pytest.raises(InputError, match=r"\[2\] rows and \[2, 1\] errors were given"):
        priorities.update(torch.tensor([0, 2]), torch.ones(2, 1))
    for outside in (-1, 3):
        with pytest.raises(IndexError, match="there are 3, from 0 on"):
            priorities.update(torch.tensor([outside]), torch.ones(1))
    assert priorities.state_dict()["priority"].tolist() == [1.0, 2.0, 5.0]
    with pytest.raises(IndexError, match="no rows were appended"):
        Priorities(3).draw(torch.zeros(1))


@pytest.mark.parametrize(
    "settings", [{"capacity": 0}, {"alpha": -0.1}, {"beta": 1.1}, {"beta": -0.1}, {"eps": 0.0}, {"alpha": float("nan")}]
)
def test_impossible_settings_are_refused(settings) -> None:
    with pytest.raises(InputError, match="accepted: at least 1, at least 0, from 0 to 1, above 0"):
        Priorities(**{"capacity": 3, **settings})
