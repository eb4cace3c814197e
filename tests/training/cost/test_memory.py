"""State laid out over devices, against what optimizers really keep."""

import pytest
import torch
from torch import nn
from transformers import Tipsv2Config, Tipsv2Model

from training.cost import DEVICES, Device, State, batch_that_fits, device, optimizer_bytes, state_of
from training.optim import OptimConfig, OptimizerName, build_optimizers
from training.parallel import ParallelKind


def learner() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    return Tipsv2Model(
        Tipsv2Config(
            vision_config={**sizes, "image_size": 28},
            text_config={**sizes, "intermediate_size": 64, "vocab_size": 40},
        )
    )


@pytest.mark.parametrize("name", ["muon", "adamw", "adafactor"])
def test_what_an_optimizer_will_keep_is_what_it_keeps(name: OptimizerName) -> None:
    module = learner()
    optimizers = build_optimizers([module], OptimConfig(optimizer=name))
    expected = optimizer_bytes(optimizers)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    kept = [
        tensor.numel() * tensor.element_size()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for key, tensor in state.items()
        if key != "step"
    ]
    assert sum(kept) == expected


def test_an_optimizer_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="SGD"):
        optimizer_bytes([torch.optim.SGD(learner().parameters())])


def with_average() -> tuple[nn.Module, nn.Module]:
    """A learner and, within it, a moving average of a thousand parameters."""
    average = nn.Linear(1000, 1, bias=False).requires_grad_(requires_grad=False)
    return nn.ModuleList([learner(), average]), average


def laid_out(parallel: ParallelKind, num_devices: int) -> State:
    module, average = with_average()
    return state_of(
        module,
        build_optimizers([module], OptimConfig(optimizer="adamw")),
        averages=[average],
        teacher_bytes=77,
        parallel=parallel,
        num_devices=num_devices,
    )


def test_a_single_device_holds_everything_once() -> None:
    count = sum(parameter.numel() for parameter in learner().parameters())
    for kind in ("ddp", "fsdp2"):
        state = laid_out(kind, 1)
        assert state.total == 4 * count * (1 + 1 + 2) + 4 * 1000 + 77 + 2 * count


def test_what_is_not_trained_has_no_gradient() -> None:
    module = learner()
    assert isinstance(module, Tipsv2Model)
    text = sum(parameter.numel() for parameter in module.text_model.parameters())
    everything = sum(parameter.numel() for parameter in module.parameters())
    module.text_model.requires_grad_(requires_grad=False)
    optimizers = build_optimizers([module], OptimConfig(optimizer="adamw"))
    state = state_of(module, optimizers, parallel="ddp", num_devices=1)
    assert state.parameters == 4 * everything
    assert state.gradients == 4 * (everything - text)
    assert state.optimizer == 2 * state.gradients


def test_cut_state_shrinks_with_the_devices_and_copied_state_does_not() -> None:
    four, eight = laid_out("fsdp2", 4), laid_out("fsdp2", 8)
    for part in ("parameters", "gradients", "optimizer", "average"):
        assert getattr(four, part) == 2 * getattr(eight, part)
    for part in ("teacher", "copies", "gathered"):
        assert getattr(four, part) == getattr(eight, part) > 0
    assert laid_out("ddp", 4) == laid_out("ddp", 8)
    assert laid_out("ddp", 4).gathered == 0


def test_what_is_gathered_is_never_more_than_everything() -> None:
    count = sum(parameter.numel() for parameter in learner().parameters())
    assert 0 < laid_out("fsdp2", 4).gathered < 2 * 4 * count


def test_the_batch_that_fits_uses_what_the_state_leaves() -> None:
    card = Device(name="x", title="x", peak_flops=1, memory_bytes=1000, source="made up")
    empty = State(
        parameters=100, gradients=0, optimizer=0, average=0, teacher=0, copies=0, gathered=0
    )
    assert batch_that_fits(card, empty, 100, usable_share=0.5) == 4
    assert batch_that_fits(card, empty, 401, usable_share=0.5) == 0
    assert batch_that_fits(card, empty, 100, usable_share=0.05) == 0


def test_every_device_says_where_its_numbers_are_from() -> None:
    for name, card in DEVICES.items():
        assert device(name) is card
        assert card.source
        assert 1e14 < card.peak_flops < 2e15
    with pytest.raises(ValueError, match="a100, h100, h200"):
        device("b200")
