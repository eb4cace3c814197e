"""The family at full size: the g/14 teacher, and its students SO400m, L, B and a new S/14.

Each has two stages, as in the paper: images of 224 pixels, then a tenth of the steps at 448 pixels
from the end of the first stage. Batches, steps, crops, loss weights and mask are the
paper's; values that it does not publish are given here or at their setting, with a reason. The
students' steps and batch are not published either: they are the teacher's.

None of these runs has been made. `python -m training cost --recipe NAME` estimates one.

Source: TIPSv2, arXiv:2604.12012, and TIPS, arXiv:2410.16512, which it follows.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from model.variants import RELEASED_VOCAB
from training.config import ModelConfig, TrainingConfig
from training.data.crops import TIPSV2_CROPS, TIPSV2_HIGH_RES_CROPS
from training.data.shards.batches import ShardsConfig
from training.heads import HeadConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.optim import OptimConfig

NUM_RANKS = 64
"""Number of ranks for these batch sizes; on N ranks, set batch_size to 8192 / N."""

LOW_RES_STEPS, LOW_RES_BATCH = 90_000, 8192
HIGH_RES_STEPS, HIGH_RES_BATCH = 9_000, 4096

PEAK_LR = 1e-3
"""Of AdamW, where the paper has Adafactor with unpublished settings. That of large ViTs in How to
train your ViT (arXiv:2106.10270)."""

WARMUP_SHARE = 0.1
"""Not published. Scaling Vision Transformers (arXiv:2106.04560) warms up for 10,000 steps, which is
about a tenth of the first stage; the second has the same share."""

HIGH_RES_LR_SHARE = 0.1
"""Not published. The second stage refines, at a tenth of the first one's peak rate."""

HEAD = HeadConfig(layers=3, hidden=2048, bottleneck=256, num_prototypes=32_768)
"""TIPS is said to have had 32k prototypes; the rest is DINO's head, because TIPSv2's is not
published. This head matches the saving of head-only EMA that the paper states."""

TEACHER = "teacher-g14"


def _optim(num_steps: int, *, lr_share: float = 1.0) -> OptimConfig:
    """AdamW, which also trains parameters that are sharded over the ranks."""
    return OptimConfig(
        optimizer="adamw", adamw_lr=PEAK_LR * lr_share, warmup_steps=round(num_steps * WARMUP_SHARE)
    )


def _low_res(
    name: str, variant: str, method: PretrainConfig | DistillConfig, *, recomputes: bool
) -> TrainingConfig:
    """The first stage: one crop of 224 and six of 98 pixels.

    Blocks are recomputed in the backward pass if a step would not fit on 64 GPUs of 80 GB
    otherwise. Micro-batches would cost about as much: what they contrast is encoded twice.
    """
    return TrainingConfig(
        name=name,
        method=method,
        model=ModelConfig(variant=variant, vocab_size=RELEASED_VOCAB),
        data=ShardsConfig(folder=Path("shards"), crops=TIPSV2_CROPS, num_workers=12),
        optim=_optim(LOW_RES_STEPS),
        num_steps=LOW_RES_STEPS,
        batch_size=LOW_RES_BATCH // NUM_RANKS,
        parallel="fsdp2",
        checkpoint_activations=recomputes,
        teacher=Path("runs") / TEACHER if isinstance(method, DistillConfig) else None,
        log_every=100,
        validate_every=0,
        checkpoint_every_s=1800.0,
    )


def _high_res(low_res: TrainingConfig, *, recomputes: bool) -> TrainingConfig:
    """The second stage: from the first one's weights, with crops of 448 and of 140 pixels."""
    assert isinstance(low_res.data, ShardsConfig)
    teacher = low_res.teacher
    return replace(
        low_res,
        name=f"{low_res.name}-high-res",
        data=replace(low_res.data, crops=TIPSV2_HIGH_RES_CROPS, seed=1),
        optim=_optim(HIGH_RES_STEPS, lr_share=HIGH_RES_LR_SHARE),
        num_steps=HIGH_RES_STEPS,
        batch_size=HIGH_RES_BATCH // NUM_RANKS,
        checkpoint_activations=recomputes,
        start=low_res.folder,
        teacher=teacher.with_name(f"{teacher.name}-high-res") if teacher else None,
    )


def _stages(
    name: str, variant: str, *, low_recomputes: bool = True, high_recomputes: bool = True
) -> dict[str, Callable[[], TrainingConfig]]:
    """Both stages of a size: of the teacher, or of a student with random weights and no mask."""
    is_teacher = name == TEACHER

    def low() -> TrainingConfig:
        method = (
            PretrainConfig(head=HEAD)
            if is_teacher
            else DistillConfig(head=HEAD, teacher_dtype="bfloat16")
        )
        return _low_res(name, variant, method, recomputes=low_recomputes)

    def high() -> TrainingConfig:
        return _high_res(low(), recomputes=high_recomputes)

    return {name: low, f"{name}-high-res": high}


SCALE_RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    **_stages(TEACHER, "g14"),
    **_stages("student-so400m14", "so400m14"),
    **_stages("student-l14", "l14"),
    **_stages("student-b14", "b14", low_recomputes=False),
    # Google released no S/14 in v2.
    **_stages("student-s14", "s14", low_recomputes=False, high_recomputes=False),
}
