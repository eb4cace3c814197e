"""The arms of the miniature: what each trains, from what it starts, and who teaches it.

All arms of a seed see the same scenes in the same order and, except for students, start from the
same weights, so their differences are paired.

Source: TIPSv2, arXiv:2604.12012; the tables of its ablations.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import Tipsv2Config

from training.config import TrainingConfig
from training.data.captions import SCENE_CAPTIONS, CaptionSampling
from training.heads import HeadConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.optim import OptimConfig
from training.reproduce.cells import CellConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes that all arms share.

    Attributes:
        cells: The scenes.
        width: D of teachers and students.
        layers: Blocks on top of the cells.
        heads: Attention heads.
        head: The prototype head.
        batch_size: Scenes of a step.
        start_steps: Of contrast, before the arms branch off.
        pretrain_steps: Of each arm after the start.
        head_alone: Share of these steps in which the patch loss trains the head alone.
        ramp: Share of these steps at which the patch loss has its whole weight.
        distill_steps: Of each student.
        optim: Peaks and warm-up of starts and students.
        branch_optim: Of the arms that continue from the start; a high peak would first undo it.
    """

    cells: CellConfig = field(default_factory=CellConfig)
    width: int = 96
    layers: int = 6
    heads: int = 3
    head: HeadConfig = field(
        default_factory=lambda: HeadConfig(
            layers=2, hidden=192, bottleneck=64, num_prototypes=256, ema_momentum=0.98
        )
    )
    batch_size: int = 48
    start_steps: int = 360
    pretrain_steps: int = 150
    head_alone: float = 0.15
    ramp: float = 0.3
    distill_steps: int = 160
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(optimizer="adamw", adamw_lr=2e-3, warmup_steps=20)
    )
    branch_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(optimizer="adamw", adamw_lr=1e-3, warmup_steps=20)
    )

    def model(self) -> Tipsv2Config:
        """Blocks whose image is the grid: one cell is one patch, its width the channels."""
        return Tipsv2Config(
            # The towers share a width. This one is never run: texts have fixed vectors.
            text_config={
                "vocab_size": 2,
                "hidden_size": self.width,
                "intermediate_size": self.width,
                "num_hidden_layers": 1,
                "num_attention_heads": self.heads,
            },
            vision_config={
                "hidden_size": self.width,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "image_size": self.cells.grid,
                "patch_size": 1,
                "num_channels": self.cells.width,
            },
            temperature_init_value=0.07,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One training of each seed.

    Attributes:
        name: Also the name of its result.
        method: What it trains.
        num_steps: Its length.
        start: The arm whose model it starts from; None for random weights.
        teacher: The arm that teaches it.
        captions: Which captions supervise which CLS token.
    """

    name: str
    method: PretrainConfig | DistillConfig
    num_steps: int
    start: str | None = None
    teacher: str | None = None
    captions: CaptionSampling = SCENE_CAPTIONS


START, CONTRAST, IBOT, IBOT_PP, UNMASKED = "start", "contrast", "ibot", "ibot++", "ibot++ mask 0"
HEAD_EMA, NO_EMA = "ibot++ head-only ema", "ibot++ no ema"
ONE_CAPTION_START, ONE_CAPTION = "one caption start", "ibot++ one caption"
TEACHERS = (IBOT, IBOT_PP)
# What distinguishes the students of a teacher.
RECIPE, MASKED_ONLY, MASKED_ALL, WARM = "mask 0", "mask 0.75 masked only", "mask 0.75", "warm start"
HALF_MASKED_ONLY = "mask 0.5 masked only"
_ALT_ONLY = CaptionSampling(cls1=("alt",), cls2=("alt",))


def file_name(arm: str) -> str:
    """Name of an arm's folder and of its result."""
    return re.sub(r"[ ,]+", "-", arm)


def student_of(teacher: str, kind: str) -> str:
    """Name of a student's arm."""
    return f"student of {teacher}, {kind}"


def arms(scale: Scale) -> tuple[tuple[Arm, ...], ...]:
    """The arms of a seed, in groups; each group is trained for all seeds before the next one."""
    # Head-only averaging is the last step of the paper's ablation: the rows before it average all.
    recipe = PretrainConfig(
        dino_weight=0.0,
        ema="full",
        head=scale.head,
        head_alone_until=scale.head_alone,
        ibot_ramp_until=scale.ramp,
    )
    contrast = replace(recipe, ibot_weight=0.0, ema="none")

    def start(name: str, captions: CaptionSampling) -> Arm:
        return Arm(name=name, method=contrast, num_steps=scale.start_steps, captions=captions)

    def branch(name: str, method: PretrainConfig) -> Arm:
        return Arm(name=name, method=method, num_steps=scale.pretrain_steps, start=START)

    pretraining = (
        start(START, SCENE_CAPTIONS),
        branch(IBOT, replace(recipe, supervised="masked")),
        branch(IBOT_PP, recipe),
        branch(CONTRAST, contrast),
        branch(UNMASKED, replace(recipe, mask_ratio=0.0)),
    )
    others = (
        branch(HEAD_EMA, replace(recipe, ema="head")),
        branch(NO_EMA, replace(recipe, ema="none")),
        _student(scale, IBOT, HALF_MASKED_ONLY),
        start(ONE_CAPTION_START, _ALT_ONLY),
        replace(branch(ONE_CAPTION, recipe), start=ONE_CAPTION_START, captions=_ALT_ONLY),
    )
    kinds = (RECIPE, MASKED_ONLY, MASKED_ALL, WARM)
    students = (tuple(_student(scale, teacher, kind) for kind in kinds) for teacher in TEACHERS)
    return (pretraining, *students, others)


def _student(scale: Scale, teacher: str, kind: str) -> Arm:
    recipe = DistillConfig(dino_weight=0.0, head=scale.head)
    methods = {
        RECIPE: recipe,
        WARM: recipe,
        MASKED_ALL: replace(recipe, mask_ratio=0.75),
        MASKED_ONLY: replace(recipe, mask_ratio=0.75, supervised="masked"),
        HALF_MASKED_ONLY: replace(recipe, mask_ratio=0.5, supervised="masked"),
    }
    return Arm(
        name=student_of(teacher, kind),
        method=methods[kind],
        num_steps=scale.distill_steps,
        # The paper's warm-started student has the weights of a finished pretraining, by iBOT.
        start=IBOT if kind == WARM else None,
        teacher=teacher,
    )


def planned(scale: Scale, seeds: Sequence[int]) -> list[tuple[int, Arm]]:
    """All seeds and arms in the order in which they are trained."""
    return [(seed, arm) for group in arms(scale) for seed in seeds for arm in group]


def training_config(scale: Scale, arm: Arm, seed: int, runs: Path) -> TrainingConfig:
    """The trainer's view of an arm."""
    folder = runs / f"seed-{seed}"
    is_branch = arm.teacher is None and arm.start is not None
    return TrainingConfig(
        name=file_name(arm.name),
        method=arm.method,
        optim=scale.branch_optim if is_branch else scale.optim,
        num_steps=arm.num_steps,
        batch_size=scale.batch_size,
        precision="float32",
        # With its teacher's seed, a student would start from the teacher's initial weights.
        seed=2 * seed + (arm.teacher is not None),
        teacher=None if arm.teacher is None else folder / file_name(arm.teacher),
        start=None if arm.start is None else folder / file_name(arm.start),
        runs=folder,
        log_every=10,
        validate_every=0,
    )
