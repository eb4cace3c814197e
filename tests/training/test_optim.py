"""Which parameters go to which optimizer, the learning-rate schedule, and clipping."""

import pytest
from transformers import Tipsv2Model

from tests.training.conftest import TINY_HEAD
from training.methods.pretrain import Pretrain, PretrainConfig
from training.optim import OptimConfig, build_optimizers, learning_rate_factor


def test_muon_has_the_hidden_matrices_and_every_parameter_one_optimizer(
    student_model: Tipsv2Model,
) -> None:
    method = Pretrain(student_model, PretrainConfig(head=TINY_HEAD))
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    muon, adamw = build_optimizers([method], OptimConfig(weight_decay=0.02))
    groups = [*muon.param_groups, *adamw.param_groups]
    assert [group["weight_decay"] for group in groups] == [0.02, 0.02, 0.0, 0.0]
    matrices, decayed, vectors, scalars = ([names[id(p)] for p in g["params"]] for g in groups)
    trainable = sorted(name for name, p in method.named_parameters() if p.requires_grad)
    assert sorted([*matrices, *decayed, *vectors, *scalars]) == trainable
    assert not [name for name in trainable if name.startswith("teacher_head")]
    layer = "model.vision_model.encoder.layer.0"
    hidden = {f"{layer}.attention.q_proj.weight", f"{layer}.mlp.fc1.weight", "head.mlp.0.weight"}
    assert hidden <= set(matrices)
    assert {
        "head.prototypes",
        "model.text_model.embeddings.token_embedding.weight",
        "model.vision_model.embeddings.patch_embeddings.projection.weight",
        "model.vision_model.embeddings.mask_token",
        "model.vision_model.embeddings.position_embeddings",
    } <= set(decayed)
    assert {f"{layer}.norm1.weight", f"{layer}.mlp.fc1.bias"} <= set(vectors)
    assert set(scalars) == {"log_temperature", "contrast.log_scale", "contrast.nothing"}


def factors(num_steps: int = 100, **settings: float) -> list[float]:
    """The factor of each step up to the last and one beyond."""
    config = OptimConfig(**settings)  # type: ignore[arg-type]
    return [
        learning_rate_factor(s, num_steps=num_steps, config=config) for s in range(num_steps + 1)
    ]


def test_the_schedule_warms_up_stays_and_falls_to_a_hundredth() -> None:
    ten = factors(warmup_steps=10)
    assert ten[0] == pytest.approx(0.1)
    assert ten[9] == ten[10] == 1.0
    assert ten[55] == pytest.approx(0.01 + 0.99 / 2)
    assert ten[100] == pytest.approx(0.01)
    assert ten[10:] == sorted(ten[10:], reverse=True)
    assert factors(10, warmup_steps=0)[0] == 1.0
    assert factors(5, warmup_steps=5)[5] == pytest.approx(1.0)
    late = factors(warmup_steps=10, decay_from=0.6)
    assert late[9:61] == [1.0] * 52
    assert [late[80], late[100]] == pytest.approx([0.01 + 0.99 / 2, 0.01])
    # So a longer run goes on as this one would have.
    assert factors(200, warmup_steps=10, decay_from=0.6)[:61] == late[:61]
