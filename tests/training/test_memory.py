"""What head-only EMA saves, on the real size of the family's B/14 and on a model that trains."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from transformers import Tipsv2Model

from model.variants import variant
from training.ema import EmaScope
from training.heads import HeadConfig
from training.memory import count_state
from training.methods.pretrain import Pretrain, PretrainConfig

FLOAT_BYTES = 4
# One DINO-style head with 32k prototypes: HeadConfig's defaults.
HEAD = HeadConfig(layers=3, hidden=2048, bottleneck=256, num_prototypes=32768)
TINY_HEAD = HeadConfig(hidden=32, bottleneck=16, num_prototypes=24)


@cache
def b14(ema: EmaScope, *, separate_heads: bool = False) -> Pretrain:
    """Pretraining of the released size, without memory for its weights."""
    with torch.device("meta"):
        model = Tipsv2Model(variant("b14").build())
        return Pretrain(model, PretrainConfig(head=HEAD, ema=ema, separate_heads=separate_heads))


def millions(modules: Sequence[nn.Module]) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def saving(*, text: bool, separate_heads: bool = False) -> float:
    """Share of vision, heads and averages that head-only EMA does without, text counted or not."""
    totals = []
    for ema in ("head", "full"):
        method = b14("head" if ema == "head" else "full", separate_heads=separate_heads)
        counted: list[nn.Module] = [method.model.vision_model, method.head, *method.averages()]
        counted += [] if method.global_head is None else [method.global_head]
        counted += [method.model.text_model] if text else []
        totals.append(millions(counted))
    return 1 - totals[0] / totals[1]


def test_the_real_size_is_counted_to_the_parameter() -> None:
    assert HeadConfig() == HEAD
    method = b14("full")
    assert millions([method.model.vision_model]) == pytest.approx(86.3, abs=0.05)
    assert millions([method.model.text_model]) == pytest.approx(109.6, abs=0.05)
    assert millions([method.head]) == pytest.approx(14.7, abs=0.05)
    state = count_state(method, ())
    assert method.teacher_tower is not None
    assert method.teacher_head is not None
    average = millions([method.teacher_tower, method.teacher_head])
    assert state.ema == round(average * 1e6) * FLOAT_BYTES
    trained = sum(p.numel() for p in method.parameters()) * FLOAT_BYTES - state.ema
    assert state.parameters == trained
    assert (state.optimizer, state.total) == (0, trained + state.ema)


def test_head_only_averaging_saves_what_the_paper_says() -> None:
    # "42 % fewer training parameters for ViT-B": the vision tower and one head, each with its
    # copy, without the text tower. Full averaging has 2 * 86.3 + 2 * 14.7 M, head-only one 86.3 M
    # less, which is 42.7 %.
    assert saving(text=False) == pytest.approx(0.427, abs=0.001)


def test_the_state_of_an_optimizer_counts_what_has_moved(student_model: Tipsv2Model) -> None:
    method = Pretrain(student_model, replace(PretrainConfig(), head=TINY_HEAD))
    optimizer = torch.optim.AdamW(p for p in method.parameters() if p.requires_grad)
    assert count_state(method, [optimizer]).optimizer == 0
    for parameter in method.head.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    num_head = sum(p.numel() for p in method.head.parameters())
    num_tensors = len(list(method.head.parameters()))
    # Two moments of each weight, and each tensor's own count of steps.
    expected = FLOAT_BYTES * (2 * num_head + num_tensors)
    assert count_state(method, [optimizer]).optimizer == expected


def test_shared_modules_are_counted_once(student_model: Tipsv2Model) -> None:
    method = Pretrain(student_model, PretrainConfig(head=TINY_HEAD))
    before = count_state(method, ())
    method.add_module("again", method.head)
    assert count_state(method, ()) == before
