"""The bundled student: of the first student, then of the encoder for photographs."""

from pathlib import Path

from training.config import TrainingConfig, ViewsConfig
from training.data.loader import DataConfig, Stage
from training.data.scenes import SceneConfig
from training.methods.distill import DistillConfig
from training.methods.image_backbone import ImageBackboneConfig
from training.methods.space import SpaceConfig
from training.optim import OptimConfig
from training.recipes.first_light import FIRST_STUDENT, close_ups

_CLOSE_UPS_UNTIL = 0.28


def student() -> TrainingConfig:
    """Distil the first student's patches into a new tower, with an image backbone and titles.

    The teacher is dropped late in the training, because the student is better by then.
    """

    def scenes(size: int, *count_weights: float) -> SceneConfig:
        return SceneConfig(
            size=size, count_weights=count_weights, common_share=0.7, is_augmented=True
        )

    return TrainingConfig(
        name="student",
        method=DistillConfig(
            dino_weight=0.0,
            patch_loss="features",
            patch_weight=2.0,
            patch_until=0.7,
            text_start="teacher",
            names_weight=1.0,
            image_backbone=ImageBackboneConfig(
                weight=2.0, scenes_until=_CLOSE_UPS_UNTIL, titles_weight=0.5
            ),
        ),
        data=DataConfig(
            stages=(
                close_ups(until=_CLOSE_UPS_UNTIL, common_share=0.7, unnamed=64),
                Stage(until=0.86, scenes=scenes(84, 0.25, 0.4, 0.35), unnamed=48),
                Stage(scenes=scenes(112, 0.2, 0.4, 0.4)),
            )
        ),
        optim=OptimConfig(muon_lr=6e-3, adamw_lr=2e-3),
        teacher=Path("runs") / FIRST_STUDENT,
        num_steps=3600,
        validate_every=600,
    )


def photo_student() -> TrainingConfig:
    """Distil the space of the encoder for photographs into the bundled student."""
    scenes = SceneConfig(count_weights=(0.2, 0.4, 0.4), common_share=0.7, is_augmented=True)
    return TrainingConfig(
        name="photo-student",
        method=SpaceConfig(),
        data=ViewsConfig(scenes=scenes),
        optim=OptimConfig(muon_lr=3e-3, adamw_lr=1e-3, decay_from=0.73),
        # On an Intel CPU with AVX-512's bfloat16, a step took 1.5 times as long in bfloat16.
        precision="float32",
        teacher=Path("runs/photographs/checkpoint"),
        start=Path("model/bundled_student"),
        num_steps=1200,
        validate_every=300,
    )
