"""The patch-name contrast: each name in some patches, and no name of another image."""

import pytest
import torch
from torch import Tensor

from training.losses.fine_grained import patch_name_parts

SCALE, NOTHING = torch.tensor(10.0), torch.tensor(4.0)


def loss_of(
    patches_BND: Tensor,
    names_UD: Tensor,
    present_BU: Tensor,
    *,
    scale: Tensor = SCALE,
    nothing: Tensor = NOTHING,
    num_shown: int = 2,
) -> Tensor:
    stray, hidden_P = patch_name_parts(
        patches_BND, names_UD, present_BU, scale=scale, nothing=nothing, num_shown=num_shown
    )
    return stray + hidden_P.mean()


def random_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    patches_BND = torch.randn(3, 6, 5, generator=generator)
    names_UD = torch.randn(4, 5, generator=generator)
    present_BU = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 1]]).bool()
    return patches_BND, names_UD, present_BU


def test_equals_a_float64_reference_and_all_learn() -> None:
    patches_BND, names_UD, present_BU = random_batch()
    stray, shown = [], []
    for image, own in zip(patches_BND.double(), present_BU, strict=True):
        unit_ND = image / image.norm(dim=-1, keepdim=True)
        unit_UD = names_UD.double() / names_UD.double().norm(dim=-1, keepdim=True)
        names_NU = unit_ND @ unit_UD.T * SCALE.item()
        nothing_N1 = torch.full((len(unit_ND), 1), NOTHING.item(), dtype=torch.float64)
        probs_NU = torch.cat((names_NU, nothing_N1), dim=1).softmax(1)
        stray += (-(probs_NU[:, :-1][:, own].sum(1) + probs_NU[:, -1]).log()).tolist()
        best_2U = probs_NU[:, :-1][:, own].sort(dim=0, descending=True).values[:2]
        shown += (-(best_2U.mean(0) + 1e-6).log()).tolist()
    expected = sum(stray) / len(stray) + sum(shown) / len(shown)
    scale, nothing = SCALE.clone().requires_grad_(), NOTHING.clone().requires_grad_()
    learners = [patches_BND.requires_grad_(), names_UD.requires_grad_(), scale, nothing]
    loss = loss_of(patches_BND, names_UD, present_BU, scale=scale, nothing=nothing)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for learner in learners:
        assert learner.grad is not None
        assert learner.grad.isfinite().all()
        assert learner.grad.any()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # does not round the cosines
        assert torch.equal(loss_of(*random_batch()), loss)
