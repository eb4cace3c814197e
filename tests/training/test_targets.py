"""Targets are centred and sharpened, some tokens at a time."""

import pytest
import torch
from torch import Tensor

from training.losses.distillation import prototype_losses, token_losses
from training.targets import Centering, target_statistics


def assigned(targets: Centering, cosines_TK: Tensor) -> Tensor:
    """Assignments of tokens whose cosines with the prototypes are given."""
    rows, assign = targets(cosines_TK, torch.eye(cosines_TK.shape[1]))
    found: Tensor = assign(rows)
    return found


def test_centering_subtracts_the_moving_mean_and_sharpens() -> None:
    centering = Centering(3, temperature=0.5, momentum=0.9)
    centering.centre_K.copy_(torch.tensor([0.2, 0.0, -0.1]))
    probs_1K = assigned(centering, torch.tensor([[0.7, 0.0, -0.1]]))
    torch.testing.assert_close(probs_1K[0], torch.tensor([0.5, 0.0, 0.0]).div(0.5).softmax(0))
    centering = Centering(2, temperature=0.1, momentum=0.9)
    cosines_TK = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, -0.2]])
    for share in (0.1, 0.19):
        assigned(centering, cosines_TK)
        assert centering.centre_K.tolist() == pytest.approx([share * 0.25, share * 0.2])
    assigned(centering.eval(), cosines_TK)
    assert centering.centre_K.tolist() == pytest.approx([0.19 * 0.25, 0.19 * 0.2])


@pytest.mark.parametrize("chunk", [1, 8, 10**6])
def test_losses_of_some_tokens_at_a_time_are_those_of_all(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.losses.distillation.CHUNK_LOGITS", chunk)
    generator = torch.Generator().manual_seed(0)
    student_TF, teacher_TF = (torch.randn(7, 3, generator=generator) for _ in range(2))
    student_KF, teacher_KF = (torch.randn(4, 3, generator=generator) for _ in range(2))
    learners = [student_TF.requires_grad_(), student_KF.requires_grad_()]
    targets = Centering(4, temperature=0.1, momentum=0.5)
    for _ in range(2):  # the second time with a centre that has moved
        rows, assign = targets(teacher_TF, teacher_KF)
        probs_TK = assign(rows)
        torch.testing.assert_close(probs_TK.sum(1), torch.ones(7))
        whole_T = token_losses(student_TF @ student_KF.T / 0.5, probs_TK)
        parted_T = prototype_losses(student_TF, student_KF, (rows, assign), 0.5)
        expected, found = (torch.autograd.grad(t.mean(), learners) for t in (whole_T, parted_T))
        statistics = target_statistics((probs_TK, lambda rows: rows), 4)
        torch.testing.assert_close(parted_T, whole_T)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(target_statistics((rows, assign), 4), statistics)
