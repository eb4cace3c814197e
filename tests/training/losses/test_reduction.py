"""From tokens' losses to one number: the mean of those that count, or the paper's sum."""

import pytest
import torch

from training.losses.reduction import reduce_tokens

LOSS_BN = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
COUNTED_BN = torch.tensor([[True, False, True], [False, True, True]])


def test_the_mean_is_over_all_that_count() -> None:
    assert reduce_tokens(LOSS_BN, None, "mean").item() == pytest.approx(63 / 6)
    assert reduce_tokens(LOSS_BN, COUNTED_BN, "mean").item() == pytest.approx(53 / 4)


def test_the_sum_is_over_tokens_and_the_mean_over_images() -> None:
    assert reduce_tokens(LOSS_BN, None, "sum").item() == pytest.approx(63 / 2)
    assert reduce_tokens(LOSS_BN, COUNTED_BN, "sum").item() == pytest.approx(53 / 2)


def test_the_two_differ_by_the_number_of_tokens_that_count() -> None:
    ratios = [
        (reduce_tokens(LOSS_BN, counted, "sum") / reduce_tokens(LOSS_BN, counted, "mean")).item()
        for counted in (None, COUNTED_BN)
    ]
    assert ratios == pytest.approx([3.0, 2.0])
