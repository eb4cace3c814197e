"""Reads off a run's configuration what its cost depends on.

Of the loss terms it counts the paper's: captions, DINO, patches. The fine-grained term and the
trunk's, which only small recipes use, cost a few percent of a step and are left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Tipsv2Config, Tipsv2Model

from model.variants import PATCH_SIZE, variant
from training.config import TrainingConfig
from training.cost.estimate import Plan
from training.cost.memory import num_parameters
from training.cost.passes import PatchTarget, Workload
from training.data.shards.batches import ShardsConfig
from training.heads import HeadConfig
from training.methods.base import Method
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain
from training.methods.teacher import MODEL_FOLDER, FrozenTeacher
from training.optim import build_optimizers
from training.targets import Softmax

_FLOAT32 = 4


def teacher_config(folder: Path, assumed: str) -> Tipsv2Config:
    """The size of a teacher: of the model in its folder, or an assumed variant if there is none."""
    for place in (folder / MODEL_FOLDER, folder):
        if (place / "config.json").exists():
            found: Tipsv2Config = Tipsv2Config.from_pretrained(place)
            return found
    return variant(assumed).build()


def plan_of(config: TrainingConfig, *, num_ranks: int, assumed_teacher: str = "g14") -> Plan:
    """Read a plan off a configuration.

    Args:
        config: The run; nothing of it is started.
        num_ranks: The ranks that its batch size is written for.
        assumed_teacher: The variant of a teacher that is not there yet.
    """
    student = config.model.build(config.model.vocab_size)
    teacher = None
    if isinstance(config.method, DistillConfig):
        assert config.teacher is not None  # TrainingConfig checks it
        teacher = teacher_config(config.teacher, assumed_teacher)
    with torch.device("meta"):
        method, teacher_bytes = _meta_method(config, student, teacher)
    return Plan(
        name=config.name,
        workload=Workload(
            student=student,
            teacher=teacher,
            head=config.method.head,
            checkpoint=config.checkpoint_activations,
            **_views(config),
            **_targets(config),
        ),
        method=method,
        optimizers=build_optimizers([method], config.optim),
        teacher_bytes=teacher_bytes,
        num_steps=config.num_steps,
        global_batch=config.batch_size * config.accumulate * num_ranks,
        parallel=config.parallel,
    )


def _meta_method(
    config: TrainingConfig, student: Tipsv2Config, teacher: Tipsv2Config | None
) -> tuple[Method, int]:
    """Build the method that a run would build, and say what its teacher weighs."""
    if teacher is None or not isinstance(config.method, DistillConfig):
        assert not isinstance(config.method, DistillConfig)
        return Pretrain(Tipsv2Model(student), config.method), 0
    dtype: torch.dtype = getattr(torch, config.method.teacher_dtype)
    frozen = _meta_teacher(Tipsv2Model(teacher), config.method.head)
    assert frozen.head is not None
    teacher_bytes = num_parameters(frozen.model) * dtype.itemsize
    if config.method.patch_loss == "prototypes":
        teacher_bytes += _FLOAT32 * num_parameters(frozen.head)
    return Distill(Tipsv2Model(student), config.method, frozen), teacher_bytes


def _meta_teacher(model: Tipsv2Model, head: HeadConfig) -> FrozenTeacher:
    width = int(model.vision_model.config.hidden_size)
    return FrozenTeacher(
        model=model,
        head=head.build(width),
        centering=Softmax(temperature=head.teacher_temperature),
    )


def _views(config: TrainingConfig) -> Mapping[str, Any]:
    """Sides of the crops; a curriculum of scenes counts at its last size."""
    data, crops = config.data, config.data.crops
    if isinstance(data, ShardsConfig):
        assert crops.global_size is not None  # images from disk are always cropped
        size = crops.global_size
    else:
        size = data.stages[-1].scenes.size
    num_local = crops.num_local if config.method.dino_weight > 0 else 0
    local_size = crops.local_size if num_local else PATCH_SIZE
    return {"global_size": size, "num_local": num_local, "local_size": local_size}


def _targets(config: TrainingConfig) -> Mapping[str, Any]:
    """What patches learn from, and through which views."""
    method = config.method
    if isinstance(method, DistillConfig):
        target: PatchTarget = method.patch_loss if method.patch_weight > 0 else "none"
        return {
            "has_masked_view": method.mask_ratio > 0 and method.patch_weight > 0,
            "patch_target": target,
        }
    has_ibot = method.ibot_weight > 0
    return {
        "has_masked_view": has_ibot,
        "patch_target": "prototypes" if has_ibot else "none",
        "averages_encoder": method.ema == "full",
    }
