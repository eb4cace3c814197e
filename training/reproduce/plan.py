"""The arms of the miniature: what each trains, from what it starts, and who teaches it.

All arms of a seed see the same scenes in the same order and, except for students, start from the
same weights, so their differences are paired.

Source: TIPSv2, arXiv:2604.12012; the tables of its ablations.
"""

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
from training.reproduce.scenes import CellConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes that all arms share.

    Attributes:
        layers: Blocks on top of the cells.
        start_steps: Of contrast, before the arms branch off.
        pretrain_steps: Of each arm after the start.
        head_alone: Share of these steps in which the patch loss trains the head alone.
        ramp: Share of these steps at which the patch loss has its whole weight.
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
    """One training of each seed, and which captions supervise which CLS token."""

    config: TrainingConfig
    captions: CaptionSampling = SCENE_CAPTIONS


START, CONTRAST, IBOT, IBOT_PP, UNMASKED = "start", "contrast", "ibot", "ibot++", "ibot++-mask-0"
HEAD_EMA, NO_EMA = "ibot++-head-only-ema", "ibot++-no-ema"
ONE_CAPTION_START, ONE_CAPTION = "one-caption-start", "ibot++-one-caption"
TEACHERS = (IBOT, IBOT_PP)
# What distinguishes the students of a teacher.
RECIPE, MASKED_ONLY, MASKED_ALL, WARM = "mask-0", "mask-0.75-masked-only", "mask-0.75", "warm-start"
HALF_MASKED_ONLY = "mask-0.5-masked-only"
_ALT_ONLY = CaptionSampling(cls1=("alt",), cls2=("alt",))


def student_of(teacher: str, kind: str) -> str:
    """Name of a student's arm."""
    return f"student-of-{teacher}-{kind}"


def arms(scale: Scale, seed: int, runs: Path) -> tuple[tuple[Arm, ...], ...]:
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
    base = TrainingConfig(
        name=START,
        method=contrast,
        optim=scale.optim,
        num_steps=scale.start_steps,
        batch_size=scale.batch_size,
        precision="float32",
        seed=2 * seed,
        runs=runs / f"seed-{seed}",
        log_every=10,
        validate_every=0,
    )
    branched = replace(base, optim=scale.branch_optim, num_steps=scale.pretrain_steps)

    def branch(name: str, method: PretrainConfig, start: str = START) -> TrainingConfig:
        return replace(branched, name=name, method=method, start=base.runs / start)

    pretraining = (
        Arm(config=base),
        Arm(config=branch(IBOT, replace(recipe, supervised="masked"))),
        Arm(config=branch(IBOT_PP, recipe)),
        Arm(config=branch(CONTRAST, contrast)),
        Arm(config=branch(UNMASKED, replace(recipe, mask_ratio=0.0))),
    )
    others = (
        Arm(config=branch(HEAD_EMA, replace(recipe, ema="head"))),
        Arm(config=branch(NO_EMA, replace(recipe, ema="none"))),
        _student(scale, base, IBOT, HALF_MASKED_ONLY),
        Arm(config=replace(base, name=ONE_CAPTION_START), captions=_ALT_ONLY),
        Arm(config=branch(ONE_CAPTION, recipe, start=ONE_CAPTION_START), captions=_ALT_ONLY),
    )
    kinds = (RECIPE, MASKED_ONLY, MASKED_ALL, WARM)
    students = (tuple(_student(scale, base, name, kind) for kind in kinds) for name in TEACHERS)
    return (pretraining, *students, others)


def _student(scale: Scale, base: TrainingConfig, teacher: str, kind: str) -> Arm:
    recipe = DistillConfig(dino_weight=0.0, head=scale.head)
    methods = {
        RECIPE: recipe,
        WARM: recipe,
        MASKED_ALL: replace(recipe, mask_ratio=0.75),
        MASKED_ONLY: replace(recipe, mask_ratio=0.75, supervised="masked"),
        HALF_MASKED_ONLY: replace(recipe, mask_ratio=0.5, supervised="masked"),
    }
    config = replace(
        base,
        name=student_of(teacher, kind),
        method=methods[kind],
        num_steps=scale.distill_steps,
        # With its teacher's seed, a student would start from the teacher's initial weights.
        seed=base.seed + 1,
        # The paper's warm-started student has the weights of a finished pretraining, by iBOT.
        start=base.runs / IBOT if kind == WARM else None,
        teacher=base.runs / teacher,
    )
    return Arm(config=config)


def planned(scale: Scale, seeds: Sequence[int], runs: Path) -> list[Arm]:
    """All seeds and arms in the order in which they are trained."""
    groups_of_seeds = zip(*(arms(scale, seed, runs) for seed in seeds), strict=True)
    return [arm for groups in groups_of_seeds for group in groups for arm in group]
