"""What a batch derives from its fields once: it follows them."""

import pytest
import torch

from unipg import Source, Trajectories


def batch() -> Trajectories:
    return Trajectories(action=torch.zeros(2, 3, dtype=torch.long), mask=torch.ones(2, 3, dtype=torch.bool))


def test_full_follows_the_mask() -> None:
    one = batch()
    assert one.full
    one.mask[0] = False
    assert not one.full
    one.mask = torch.ones(2, 3, dtype=torch.bool)
    assert one.full
    assert not one.replace(mask=torch.zeros(2, 3, dtype=torch.bool)).full
    assert one.full


def test_rows_follow_the_source() -> None:
    one = batch()
    assert one.rows_from(Source.ROLLOUT).tolist() == [True, True]
    one.source = torch.tensor([0, 1])
    assert one.rows_from(Source.ROLLOUT).tolist() == [True, False]
    one.source[0] = 1
    assert one.rows_from(Source.ROLLOUT).tolist() == [False, False]
    assert one.select([1]).rows_from(Source.DEMONSTRATION).tolist() == [True]


def test_inference_mode_which_counts_no_writes() -> None:
    with torch.inference_mode():
        one = batch()
        assert one.full
        one.mask[0] = False
        assert not one.full
        assert one.rows_from(Source.ROLLOUT).all()


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_are_the_rows_in_their_order_and_share_memory(parts: int) -> None:
    """Five rows: the first parts have one more where they do not come out even, and some none where there are too few."""
    rows = torch.arange(5)
    one = Trajectories(
        action=rows.unsqueeze(1).expand(5, 3).clone(),
        mask=torch.ones(5, 3, dtype=torch.bool),
        planned={"weight": rows.unsqueeze(1) * 10},
        annotations={"name": list("abcde")},
    )
    cut, start = one.cut(parts), 0
    assert [len(piece) for piece in cut] == [5 // parts + (k < 5 % parts) for k in range(parts)]
    for piece in cut:
        expected = one.select(range(start, start + len(piece)))
        for name in Trajectories.tensor_fields():
            a, b = getattr(piece, name), getattr(expected, name)
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b), name
        assert torch.equal(piece.planned["weight"], expected.planned["weight"])
        assert piece.annotations == expected.annotations
        assert not len(piece) or piece.action.data_ptr() == one.action[start:].data_ptr()
        start += len(piece)


def test_episodes_are_rows_of_their_own() -> None:
    """Row 0: an end, a step of the environment, an end by the limit, a rest. Row 1: one whole episode. Row 2: nothing."""
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    no = torch.zeros(3, 6, dtype=torch.bool)
    terminated, truncated = no.clone(), no.clone()
    terminated[0, 1] = terminated[1, 3] = terminated[2, 2] = truncated[0, 4] = True
    number = torch.arange(18).reshape(3, 6)
    one = Trajectories(
        action=number,
        mask=mask,
        observation=number.float().unsqueeze(-1),
        terminated=terminated,
        truncated=truncated,
        step_reward=number.float(),
        reward=torch.tensor([5.0, 6.0, 7.0]),
        group=torch.tensor([3, 3, 3]),
        planned={"weight": torch.tensor([0.1, 0.2, 0.3]), "place": number},
        annotations={"name": ["a", "b", "c"]},
    )
    found = one.as_episodes()
    assert found.mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert found.present.equal(found.mask)
    assert [row[live].tolist() for row, live in zip(found.action, found.mask, strict=True)] == [[0, 1], [3, 4], [5], [6, 7, 8, 9]]
    assert found.observation[3].squeeze(-1).tolist() == [6, 7, 8, 9]
    assert found.planned["place"].equal(found.action)
    assert found.terminated.nonzero().tolist() == [[0, 1], [3, 3]]
    assert found.truncated.nonzero().tolist() == [[1, 1]]
    assert found.reward.tolist() == [0, 0, 5, 6]  # the outcome of a row belongs to its last episode
    assert found.planned["weight"].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.2])
    assert found.annotations == {"name": ["a", "a", "a", "b"]}
    assert found.group[0] == found.group[3] == 3  # what begins behind a row's first episode began elsewhere
    assert len(set(found.group.tolist())) == 3
    assert found.as_steps().action.equal(one.as_steps().action)


def test_rows_that_are_whole_stay_as_they_are() -> None:
    one = batch()
    assert one.as_episodes() is one
    ended = one.replace(terminated=torch.tensor([[False, False, True], [False, False, False]]))
    assert ended.as_episodes() is ended
