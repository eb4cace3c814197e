"""Sinkhorn-Knopp: every token is assigned once, every prototype gets its equal share."""

import math

import torch
from torch import Tensor

from training.losses.sinkhorn import sinkhorn_knopp


def random_logits(tokens: int = 12, prototypes: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(tokens, prototypes, generator=generator)


def test_equals_the_textbook_in_float64() -> None:
    logits_NK = random_logits()
    scaled_NK = logits_NK.double().exp()
    for _ in range(3):
        scaled_NK /= scaled_NK.sum(0, keepdim=True) * 5
        scaled_NK /= scaled_NK.sum(1, keepdim=True) * 12
    expected_NK = (scaled_NK * 12).float()
    torch.testing.assert_close(sinkhorn_knopp(logits_NK), expected_NK, rtol=1e-4, atol=1e-6)


def test_totals_over_ranks_balance_all_ranks() -> None:
    logits_NK = random_logits()
    whole_NK = sinkhorn_knopp(logits_NK, num_iterations=1)
    rest_K = logits_NK[7:].logsumexp(0)
    part_NK = sinkhorn_knopp(
        logits_NK[:7], num_iterations=1, over_ranks=lambda own_K: torch.logaddexp(own_K, rest_K)
    )
    torch.testing.assert_close(part_NK, whole_NK[:7])
    assert math.dist(part_NK.flatten(), sinkhorn_knopp(logits_NK[:7]).flatten()) > 0.01
