"""What a batch derives from its fields once: it follows them."""

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
