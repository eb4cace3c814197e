"""From tokens' losses to one number: the mean of those that count, or the paper's sum."""

import pytest
import torch

from training.losses.reduction import reduce_tokens

LOSS_BN = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
COUNTED_BN = torch.tensor([[True, False, True], [False, True, True]])


def test_means_and_sums_are_over_the_tokens_that_count() -> None:
    assert reduce_tokens(LOSS_BN, None, "mean").item() == pytest.approx(63 / 6)
    assert reduce_tokens(LOSS_BN, COUNTED_BN, "mean").item() == pytest.approx(53 / 4)
    assert reduce_tokens(LOSS_BN, None, "sum").item() == pytest.approx(63 / 2)
    assert reduce_tokens(LOSS_BN, COUNTED_BN, "sum").item() == pytest.approx(53 / 2)
