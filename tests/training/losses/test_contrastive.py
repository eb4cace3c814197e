"""InfoNCE over a batch, against hand-computed values and a float64 reference."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses.contrastive import contrastive_loss

DISTINCT = torch.arange(5)


def random_pair(seed: int = 0, batch: int = 5, dim: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, dim)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_equals_a_float64_reference_and_computes_in_single_precision() -> None:
    images_BD, texts_BD = random_pair()
    logits_BB = F.normalize(images_BD.double()) @ F.normalize(texts_BD.double()).T / 0.07
    expected = -(logits_BB.log_softmax(0) + logits_BB.log_softmax(1)).diagonal().mean() / 2
    loss = contrastive_loss(images_BD, texts_BD, torch.tensor(0.07), DISTINCT)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    images_BD, texts_BD = random_pair()
    loss = contrastive_loss(images_BD.bfloat16(), texts_BD.bfloat16(), torch.tensor(0.07), DISTINCT)
    assert loss.dtype == torch.float32


def test_autocast_does_not_round_the_cosines() -> None:
    images_BD, texts_BD = random_pair(batch=64, dim=48)
    own, temperature = torch.arange(64), torch.tensor(0.005)
    expected = contrastive_loss(images_BD, texts_BD, temperature, own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = contrastive_loss(images_BD, texts_BD, temperature, own)
        by_rank = [
            contrastive_loss(images_BD, texts_BD, temperature, own, rows=slice(first, first + 32))
            for first in (0, 32)
        ]
    assert torch.equal(rounded, expected)
    torch.testing.assert_close(torch.stack(by_rank).sum(), expected)


def test_equal_captions_are_no_negatives() -> None:
    images_BD, texts_BD = random_pair(batch=3)
    texts_BD[1] = texts_BD[0]
    loss = contrastive_loss(images_BD, texts_BD, torch.tensor(1.0), torch.tensor([4, 4, 9]))
    logits_BB = F.normalize(images_BD.double()) @ F.normalize(texts_BD.double()).T
    # Image 0 chooses between captions 0 and 2, image 1 between 1 and 2, image 2 among all.
    total = 0.0
    for row, rivals in ((0, [0, 2]), (1, [1, 2]), (2, [0, 1, 2])):
        total -= (logits_BB[row, row] - logits_BB[row, rivals].logsumexp(0)).item()
        total -= (logits_BB[row, row] - logits_BB[rivals, row].logsumexp(0)).item()
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_a_batch_of_one_caption_has_no_loss() -> None:
    images_BD, texts_BD = random_pair()
    images_BD.requires_grad_()
    loss = contrastive_loss(images_BD, texts_BD, torch.tensor(0.07), torch.zeros(5).long())
    loss.backward()
    assert loss.item() == 0.0
    assert images_BD.grad is not None
    assert not images_BD.grad.any()


def test_both_towers_and_the_temperature_learn() -> None:
    images_BD, texts_BD = random_pair()
    temperature = torch.tensor(0.07, requires_grad=True)
    images_BD.requires_grad_()
    texts_BD.requires_grad_()
    contrastive_loss(images_BD, texts_BD, temperature, DISTINCT).backward()
    for tensor in (images_BD, texts_BD, temperature):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@pytest.mark.parametrize(("texts", "ids"), [(4, 5), (5, 4)])
def test_sizes_must_fit(texts: int, ids: int) -> None:
    with pytest.raises(ValueError, match="same batch"):
        contrastive_loss(
            torch.ones(5, 7), torch.ones(texts, 7), torch.tensor(0.1), torch.arange(ids)
        )


def test_parts_of_the_rows_sum_to_the_whole() -> None:
    images_GD, texts_GD = random_pair()
    ids_G = torch.tensor([0, 1, 1, 2, 0])
    whole = contrastive_loss(images_GD, texts_GD, torch.tensor(0.1), ids_G)
    parts = [
        contrastive_loss(images_GD, texts_GD, torch.tensor(0.1), ids_G, rows=rows)
        for rows in (slice(0, 2), slice(2, 2), slice(2, 5))
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-6)
    assert parts[1].item() == 0.0
    assert parts[0].item() > 0
