"""Random numbers of a test depend neither on earlier tests nor on the run."""

import random

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("turn", ["one", "two"])
def test_every_test_draws_the_same_numbers(turn: str) -> None:
    assert random.random() == random.Random(0).random(), turn
    assert np.random.random() == np.random.RandomState(0).random()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
