"""Which parameters go to which optimizer, and the learning-rate schedule."""

import math

import pytest
import torch
from torch import nn
from transformers import Tipsv2Model

from tests.training.conftest import TINY_HEAD
from training.methods.pretrain import Pretrain, PretrainConfig
from training.optim import (
    OptimConfig,
    OptimizerName,
    build_optimizers,
    clip_gradients,
    learning_rate_factor,
)

CONFIG = OptimConfig(muon_lr=3e-3, adamw_lr=1e-3, weight_decay=0.02)


def split(module: nn.Module) -> tuple[set[str], set[str], set[str]]:
    """Names of Muon's parameters, of those that AdamW decays, and of the rest."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    muon, adamw = build_optimizers([module], CONFIG)
    decayed, vectors, scalars = adamw.param_groups
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.02, 0.0, 0.0]
    plain = [*vectors["params"], *scalars["params"]]
    return (
        {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]},
        {names[id(parameter)] for parameter in decayed["params"]},
        {names[id(parameter)] for parameter in plain},
    )


def test_muon_has_the_hidden_matrices_and_every_parameter_one_optimizer(
    student_model: Tipsv2Model,
) -> None:
    method = Pretrain(student_model, PretrainConfig(head=TINY_HEAD))
    muon, decayed, plain = split(method)
    trainable = {name for name, p in method.named_parameters() if p.requires_grad}
    assert muon | decayed | plain == trainable
    assert len(muon) + len(decayed) + len(plain) == len(trainable)
    assert not [name for name in trainable if name.startswith("teacher_head")]
    layer = "model.vision_model.encoder.layer.0"
    assert {f"{layer}.attention.q_proj.weight", f"{layer}.mlp.fc1.weight"} <= muon
    assert {"head.mlp.0.weight", "projection.weight"} <= muon
    assert not [name for name in muon if "embedding" in name or "token" in name]
    assert {
        "head.prototypes",
        "model.text_model.embeddings.token_embedding.weight",
        "model.vision_model.embeddings.patch_embeddings.projection.weight",
        "model.vision_model.embeddings.mask_token",
        "model.vision_model.embeddings.position_embeddings",
    } <= decayed
    assert {"log_temperature", "contrast.log_scale", "contrast.nothing"} <= plain
    assert {f"{layer}.norm1.weight", f"{layer}.mlp.fc1.bias"} <= plain


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_steps_move_towards_the_minimum(name: OptimizerName) -> None:
    torch.manual_seed(0)
    layer, inputs_ND = nn.Linear(4, 4), torch.randn(32, 4)
    config = OptimConfig(optimizer=name, muon_lr=0.1, adamw_lr=0.1)
    optimizers = build_optimizers([layer], config)
    losses = []
    for _ in range(30):
        loss = (layer(inputs_ND) - inputs_ND).square().mean()
        layer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_schedule_warms_up_and_falls_to_a_hundredth() -> None:
    ten = OptimConfig(warmup_steps=10)
    factors = [learning_rate_factor(s, num_steps=100, config=ten) for s in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.01 + 0.99 / 2)
    assert factors[100] == pytest.approx(0.01)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    at_once, five = OptimConfig(warmup_steps=0), OptimConfig(warmup_steps=5)
    assert learning_rate_factor(0, num_steps=10, config=at_once) == 1.0
    assert learning_rate_factor(99, num_steps=10, config=at_once) == pytest.approx(0.01)
    assert learning_rate_factor(5, num_steps=5, config=five) == pytest.approx(1.0)


def test_the_rate_stays_until_it_may_fall() -> None:
    config = OptimConfig(warmup_steps=10, decay_from=0.6)
    factors = [learning_rate_factor(s, num_steps=100, config=config) for s in range(101)]
    assert factors[9:61] == [1.0] * 52
    assert factors[80] == pytest.approx(0.01 + 0.99 / 2)
    assert factors[100] == pytest.approx(0.01)
    # So a longer run goes on as this one would have.
    longer = [learning_rate_factor(s, num_steps=200, config=config) for s in range(61)]
    assert longer == factors[:61]
    with pytest.raises(ValueError, match="decay_from"):
        OptimConfig(decay_from=1.5)


def with_gradients(*norms: float) -> list[nn.Parameter]:
    """Parameters whose gradients have these norms, and one that has none."""
    parameters = [nn.Parameter(torch.zeros(2, 2)) for _ in (*norms, None)]
    for parameter, norm in zip(parameters, norms, strict=False):
        parameter.grad = torch.full((2, 2), norm / 2)
    return parameters


def test_long_gradients_are_scaled_together_and_short_ones_left() -> None:
    parameters = with_gradients(3.0, 4.0)
    assert clip_gradients(parameters, 2.5) == pytest.approx(5.0)
    assert [float(p.grad.norm()) for p in parameters if p.grad is not None] == pytest.approx(
        [1.5, 2.0]
    )
    assert clip_gradients(parameters, 2.6) == pytest.approx(2.5)  # nothing to scale
    assert clip_gradients(parameters, 2.6) == pytest.approx(2.5)
    assert clip_gradients(with_gradients(), 1.0) == 0.0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_is_returned_and_scales_nothing(value: float) -> None:
    parameters = with_gradients(3.0, value)
    assert not math.isfinite(clip_gradients(parameters, 1.0))
    assert parameters[0].grad is not None
    assert float(parameters[0].grad.norm()) == pytest.approx(3.0)
