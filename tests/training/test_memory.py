"""Memory of averages and optimizers, on the family's B/14 and on a tiny model."""

from functools import cache

import pytest
import torch
from torch import nn
from transformers import Tipsv2Model

from model.variants import variant
from tests.training.conftest import TINY_HEAD
from training.ema import EmaScope
from training.heads import HeadConfig
from training.memory import count_state
from training.methods.pretrain import Pretrain, PretrainConfig

FLOAT_BYTES = 4


@cache
def b14(ema: EmaScope) -> Pretrain:
    """Pretraining of the released size with the default head, without memory for its weights."""
    with torch.device("meta"):
        model = Tipsv2Model(variant("b14").build())
        return Pretrain(model, PretrainConfig(head=HeadConfig(), ema=ema))


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def test_the_released_size_is_counted_to_the_parameter() -> None:
    method = b14("full")
    assert millions(method.model.vision_model) == pytest.approx(86.3, abs=0.05)
    assert millions(method.model.text_model) == pytest.approx(109.6, abs=0.05)
    assert millions(method.head) == pytest.approx(14.7, abs=0.05)
    state = count_state(method, ())
    assert state.ema == round(millions(*method.averages()) * 1e6) * FLOAT_BYTES
    trained = sum(p.numel() for p in method.parameters()) * FLOAT_BYTES - state.ema
    assert (state.parameters, state.optimizer) == (trained, 0)


def test_head_only_averaging_saves_what_the_paper_reports() -> None:
    # "42 % fewer training parameters for ViT-B": the vision tower and one head, each with its
    # copy, without the text tower. Full averaging has 2 * 86.3 + 2 * 14.7 M, head-only one 86.3 M
    # less, which is 42.7 %.
    head, full = (
        millions(method.model.vision_model, method.head, *method.averages())
        for method in (b14("head"), b14("full"))
    )
    assert 1 - head / full == pytest.approx(0.427, abs=0.001)


def test_optimizer_state_is_counted_once_a_parameter_had_a_gradient(
    student_model: Tipsv2Model,
) -> None:
    method = Pretrain(student_model, PretrainConfig(head=TINY_HEAD))
    optimizer = torch.optim.AdamW(p for p in method.parameters() if p.requires_grad)
    assert count_state(method, [optimizer]).optimizer == 0
    parameters = list(method.head.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # Two moments of each weight, and a step counter of each tensor.
    expected = FLOAT_BYTES * (2 * sum(p.numel() for p in parameters) + len(parameters))
    assert count_state(method, [optimizer]).optimizer == expected


def test_shared_modules_are_counted_once(student_model: Tipsv2Model) -> None:
    method = Pretrain(student_model, PretrainConfig(head=TINY_HEAD))
    before = count_state(method, ())
    method.add_module("again", method.head)
    assert count_state(method, ()) == before
