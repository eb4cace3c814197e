"""Targets: centering balances and sharpens, Sinkhorn balances exactly, softmax only sharpens."""

import math
from typing import get_args

import pytest
import torch

from training.losses.distillation import prototype_losses, token_losses
from training.losses.sinkhorn import sinkhorn_knopp
from training.targets import (
    Centering,
    Sinkhorn,
    Softmax,
    TargetKind,
    build_targets,
    target_statistics,
)


def test_centering_subtracts_the_moving_mean_over_all_patches_and_sharpens() -> None:
    centering = Centering(3, temperature=0.5, momentum=0.9)
    centering.centre_K.copy_(torch.tensor([0.2, 0.0, -0.1]))
    probs_K = centering(torch.tensor([[0.7, 0.0, -0.1]]))
    expected_K = torch.tensor([0.5, 0.0, 0.0]).div(0.5).softmax(0)
    torch.testing.assert_close(probs_K[0], expected_K)
    centering = Centering(2, temperature=0.1, momentum=0.9)
    cosines_BNK = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, -0.2]]])
    centering(cosines_BNK)
    assert centering.centre_K.tolist() == pytest.approx([0.1 * 0.25, 0.1 * 0.2])
    centering(cosines_BNK)
    assert centering.centre_K.tolist() == pytest.approx([0.19 * 0.25, 0.19 * 0.2])
    centering.eval()(cosines_BNK)
    assert centering.centre_K.tolist() == pytest.approx([0.19 * 0.25, 0.19 * 0.2])


def test_statistics_tell_certain_and_collapsed_targets_from_healthy_ones() -> None:
    certain_BNK = torch.eye(4).view(2, 2, 4)  # each token has its own prototype
    collapsed_BNK = certain_BNK[:1, :1].expand(2, 2, 4)
    vague_BNK = torch.full((2, 2, 4), 0.25)
    expected = {"certain": (0.0, 4.0), "collapsed": (0.0, 1.0), "vague": (math.log(4), 4.0)}
    targets = {"certain": certain_BNK, "collapsed": collapsed_BNK, "vague": vague_BNK}
    for name, probs_BNK in targets.items():
        found = target_statistics((probs_BNK.flatten(0, 1), lambda rows: rows), 4)
        assert set(found) == {"target_entropy", "prototypes_used"}
        assert found["target_entropy"].item() == pytest.approx(expected[name][0], abs=1e-6)
        assert found["prototypes_used"].item() == pytest.approx(expected[name][1])


def test_centering_keeps_one_prototype_from_taking_all_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines_NK = 0.05 * torch.randn(64, 4, generator=generator) + torch.tensor([0.5, 0, 0, 0])
    centering = Centering(4, temperature=0.06, momentum=0.5)
    first_K = centering(cosines_NK).mean(0)
    for _ in range(20):
        last_K = centering(cosines_NK).mean(0)
    assert first_K[0] > 0.95
    assert last_K.max() < 0.4


def test_sinkhorn_balances_and_softmax_only_sharpens() -> None:
    cosines_BNK = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    probs_BNK = Sinkhorn(temperature=0.1)(cosines_BNK)
    expected_NK = sinkhorn_knopp(cosines_BNK.view(6, 4) / 0.1)
    torch.testing.assert_close(probs_BNK, expected_NK.view(2, 3, 4))
    probs_NK = Softmax(temperature=0.5)(torch.tensor([[0.5, 0.0]]))
    assert probs_NK[0, 0].item() == pytest.approx(math.e / (math.e + 1), rel=1e-6)


@pytest.mark.parametrize("kind", get_args(TargetKind))
def test_every_kind_assigns_each_token_once_without_gradient(kind: TargetKind) -> None:
    targets = build_targets(kind, num_prototypes=4, temperature=0.1, momentum=0.5)
    probs_BNK = targets(torch.rand(2, 3, 4, requires_grad=True))
    assert not probs_BNK.requires_grad
    assert not list(targets.parameters())
    torch.testing.assert_close(probs_BNK.sum(-1), torch.ones(2, 3))
    assert type(targets).__name__.lower() == kind


@pytest.mark.parametrize("chunk", [1, 8, 10**6])
@pytest.mark.parametrize("kind", get_args(TargetKind))
def test_losses_of_some_tokens_at_a_time_are_those_of_all(
    kind: TargetKind, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.losses.distillation.CHUNK_LOGITS", chunk)
    generator = torch.Generator().manual_seed(0)
    student_TF, teacher_TF = (torch.randn(7, 3, generator=generator) for _ in range(2))
    student_KF, teacher_KF = (torch.randn(4, 3, generator=generator) for _ in range(2))
    student_TF.requires_grad_()
    student_KF.requires_grad_()
    found = []
    for is_whole in (True, False):
        targets = build_targets(kind, num_prototypes=4, temperature=0.1, momentum=0.5)
        for _ in range(2):  # the second time with a centre that has moved
            student_TF.grad = student_KF.grad = None
            if is_whole:
                probs_TK = targets(teacher_TF @ teacher_KF.T)
                loss_T = token_losses(student_TF @ student_KF.T / 0.5, probs_TK)
                statistics = target_statistics((probs_TK, lambda rows: rows), 4)
            else:
                put_off = targets.of_tokens(teacher_TF, teacher_KF)
                loss_T = prototype_losses(student_TF, student_KF, put_off, 0.5)
                statistics = target_statistics(put_off, 4)
            loss_T.mean().backward()
        assert student_TF.grad is not None
        assert student_KF.grad is not None
        found.append(
            (
                loss_T.detach(),
                student_TF.grad,
                student_KF.grad,
                *targets.buffers(),
                *statistics.values(),
            )
        )
    for whole, parted in zip(*found, strict=True):
        torch.testing.assert_close(parted, whole, rtol=1e-5, atol=1e-6)
