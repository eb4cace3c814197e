"""The bundled student, from nothing: a teacher, two students of drawings, one of photographs."""

from pathlib import Path

from training.config import DataConfig, ModelConfig, Stage, TrainingConfig, ViewsConfig
from training.data.scenes import SceneConfig
from training.heads import SMALL_HEAD
from training.methods.captioned import ImageBackboneConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.methods.space import SpaceConfig
from training.optim import OptimConfig

FIRST_TEACHER, FIRST_STUDENT = "first-teacher", "first-student"


def close_ups(*, until: float, common_share: float, unnamed: int = 0) -> Stage:
    """Small images of one large drawing each: cheap, and with an unambiguous name."""
    return Stage(
        until=until,
        scenes=SceneConfig(
            size=56,
            count_weights=(1.0,),
            min_size=0.6,
            max_size=1.0,
            common_share=common_share,
            is_augmented=True,
        ),
        unnamed=unnamed,
    )


def _scenes(common_share: float, size: int, *count_weights: float) -> SceneConfig:
    return SceneConfig(
        size=size, count_weights=count_weights, common_share=common_share, is_augmented=True
    )


def teacher() -> TrainingConfig:
    """Pretrain a small teacher: two caption streams, and iBOT++ in the second half."""
    return TrainingConfig(
        name=FIRST_TEACHER,
        method=PretrainConfig(dino_weight=0.0, ibot_start=0.5, head=SMALL_HEAD),
        data=DataConfig(
            stages=(
                close_ups(until=0.25, common_share=0.5),
                Stage(scenes=SceneConfig(size=84, is_augmented=True)),
            )
        ),
        optim=OptimConfig(muon_lr=9e-3, adamw_lr=3e-3),
        text_warmup_steps=1200,
        batch_size=64,
        num_steps=1600,
    )


def first_student() -> TrainingConfig:
    """Distil the first teacher, contrast patches with names, end at a higher resolution."""
    return TrainingConfig(
        name=FIRST_STUDENT,
        method=DistillConfig(
            image_backbone=ImageBackboneConfig(weight=1.0, scenes_until=0.31),
            patch_weight=1.0,
            patch_from=0.5,
            patch_until=0.69,
            head=SMALL_HEAD,
            names_weight=1.0,
        ),
        model=ModelConfig(),
        data=DataConfig(
            stages=(
                close_ups(until=0.31, common_share=0.8),
                Stage(until=0.87, scenes=_scenes(0.8, 84, 0.25, 0.4, 0.35)),
                Stage(scenes=_scenes(0.8, 112, 0.2, 0.4, 0.4)),
            )
        ),
        optim=OptimConfig(muon_lr=6e-3, adamw_lr=2e-3),
        text_warmup_steps=1200,
        teacher=Path("runs") / FIRST_TEACHER,
        num_steps=5600,
    )


def debug() -> TrainingConfig:
    """Run both losses of the teacher for a minute, as a test."""
    return TrainingConfig(
        name="debug",
        method=PretrainConfig(dino_weight=0.0, ibot_start=0.5, head=SMALL_HEAD, names_weight=1.0),
        model=ModelConfig(dim=48, vision_layers=2, text_layers=1, heads=2, native_size=56),
        data=DataConfig(stages=(close_ups(until=1.0, common_share=0.5),)),
        batch_size=16,
        num_steps=20,
        log_every=5,
        validate_every=20,
    )


_CLOSE_UPS_UNTIL = 0.28


def student() -> TrainingConfig:
    """Distil the first student's patches into a new tower, with an image backbone and titles.

    The teacher is dropped late in the training, because the student is better by then.
    """
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
                Stage(until=0.86, scenes=_scenes(0.7, 84, 0.25, 0.4, 0.35), unnamed=48),
                Stage(scenes=_scenes(0.7, 112, 0.2, 0.4, 0.4)),
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
