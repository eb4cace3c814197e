"""InfoNCE over a batch, against hand-computed values and a float64 reference."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses.contrastive import contrastive_loss

HEAT = torch.tensor(0.07)


def random_pair(batch: int = 5, dim: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images_BD, texts_BD = torch.randn(2, batch, dim, generator=generator)
    return images_BD.requires_grad_(), texts_BD.requires_grad_()


def test_equals_a_float64_reference_and_all_learn() -> None:
    images_BD, texts_BD = random_pair()
    logits_BB = F.normalize(images_BD.double()) @ F.normalize(texts_BD.double()).T / 0.07
    expected = -(logits_BB.log_softmax(0) + logits_BB.log_softmax(1)).diagonal().mean() / 2
    temperature = HEAT.clone().requires_grad_()
    loss = contrastive_loss(images_BD, texts_BD, temperature, torch.arange(5))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    for learner in (images_BD, texts_BD, temperature):
        assert learner.grad is not None
        assert learner.grad.isfinite().all()
        assert learner.grad.any()


def test_autocast_does_not_round_the_cosines_and_parts_of_the_rows_sum_to_the_whole() -> None:
    images_BD, texts_BD = random_pair(batch=64, dim=48)
    ids_B, temperature = torch.arange(64) // 2, torch.tensor(0.005)
    expected = contrastive_loss(images_BD, texts_BD, temperature, ids_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = contrastive_loss(images_BD, texts_BD, temperature, ids_B)
        parts = [
            contrastive_loss(images_BD, texts_BD, temperature, ids_B, rows=rows)
            for rows in (slice(0, 20), slice(20, 20), slice(20, 64))
        ]
    assert torch.equal(rounded, expected)
    torch.testing.assert_close(torch.stack(parts).sum(), expected)
    assert parts[1].item() == 0.0


def test_equal_captions_are_no_negatives() -> None:
    images_BD, texts_BD = random_pair(batch=3)
    texts_BD = texts_BD[[0, 0, 2]]
    loss = contrastive_loss(images_BD, texts_BD, torch.tensor(1.0), torch.tensor([4, 4, 9]))
    logits_BB = F.normalize(images_BD.double()) @ F.normalize(texts_BD.double()).T
    # Image 0 chooses between captions 0 and 2, image 1 between 1 and 2, image 2 among all.
    total = 0.0
    for row, rivals in ((0, [0, 2]), (1, [1, 2]), (2, [0, 1, 2])):
        total -= (logits_BB[row, row] - logits_BB[row, rivals].logsumexp(0)).item()
        total -= (logits_BB[row, row] - logits_BB[rivals, row].logsumexp(0)).item()
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)
    alone = contrastive_loss(images_BD, texts_BD, HEAT, torch.zeros(3).long())
    assert alone.item() == 0.0
