"""The runs that measure the paper's effects in miniature, and the comparisons for each effect.

All runs of a seed start from the same weights and see the same scenes, so they differ only in the
method. Runs are ordered by seed, so that after a stop some seeds are complete. The variants in LAST
follow after all seeds, because no main verdict depends on them.

Source: TIPSv2, arXiv:2604.12012; the tables of its ablations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from training.config import DataConfig, ModelConfig, TrainingConfig
from training.data.captions import SCENE_CAPTIONS, CaptionSampling
from training.data.folder import EMOJI_TRAIN_STYLES
from training.data.loader import Stage
from training.data.scenes import SceneConfig
from training.heads import SMALL_HEAD, HeadConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.optim import OptimConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes that all runs share.

    Attributes:
        model: Teachers and students alike.
        head: The prototype head.
        size: Side in pixels of the scenes, in the last stage and in the benchmarks.
        close_up_size: Side of the first stage's images of one drawing each.
        close_up_share: Share of a start's steps that are close-ups.
        batch_size: Scenes per step.
        warm_up_steps: Of a start's text tower.
        start_steps: Contrastive steps before the patch loss starts; shared by variants.
        pretrain_steps: Steps of each pretraining variant after its start.
        distill_steps: Steps of each student, from random vision weights.
        optim: Peaks and warm-up.
        num_scenes: Scenes in each test set; validation has half as many.
    """

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            dim=128, vision_layers=4, text_layers=2, heads=2, native_size=70
        )
    )
    head: HeadConfig = SMALL_HEAD
    size: int = 70
    close_up_size: int = 56
    close_up_share: float = 0.33
    batch_size: int = 64
    warm_up_steps: int = 400
    start_steps: int = 600
    pretrain_steps: int = 250
    distill_steps: int = 350
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(muon_lr=9e-3, adamw_lr=3e-3, warmup_steps=50)
    )
    num_scenes: int = 300

    @property
    def teacher_steps(self) -> int:
        """Steps of a teacher with its start."""
        return self.start_steps + self.pretrain_steps

    @property
    def scenes(self) -> Stage:
        """Scenes of one to three everyday objects."""
        return Stage(scenes=SceneConfig(size=self.size, common_share=1.0))

    @property
    def close_ups_then_scenes(self) -> tuple[Stage, ...]:
        """The curriculum of a start."""
        close_ups = SceneConfig(
            size=self.close_up_size,
            count_weights=(1.0,),
            min_size=0.6,
            max_size=1.0,
            common_share=1.0,
        )
        return Stage(until=self.close_up_share, scenes=close_ups), self.scenes


def smoke() -> Scale:
    """A toy size for tests: every variant takes seconds, and the scores mean nothing."""
    return Scale(
        model=ModelConfig(
            dim=32, vision_layers=2, text_layers=1, heads=2, native_size=28, vocab_size=400
        ),
        head=HeadConfig(hidden=32, bottleneck=16, num_prototypes=24),
        size=28,
        close_up_size=28,
        batch_size=4,
        warm_up_steps=0,
        start_steps=2,
        pretrain_steps=2,
        distill_steps=3,
        optim=OptimConfig(warmup_steps=1),
        num_scenes=3,
    )


ONE_CAPTION = CaptionSampling(cls1=("alt",), cls2=("alt",))
START = "start"
ONE_CAPTION_START = "one-caption-start"
# The paper's pretraining, and the teacher of most students.
RECIPE = "ibot++"
# The paper's distillation.
STUDENT = "student"
# The same with as many scenes as its teacher.
LONG_STUDENT = "student-long"
# The averaged encoder of the run "full-ema".
AVERAGED = "full-ema, the average"
LAST = ("no-ema", "student-of-ibot", LONG_STUDENT)
# All seeds share the tokenizer and the warmed-up text tower of this one.
_TEXT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of the trainer.

    Attributes:
        variant: Name in comparisons.
        seed: Of the repetition.
        config: The configuration; a teacher is a run earlier in the list.
        text_from: Folder of the run whose tokenizer and warmed-up text tower it copies.
        is_measured: Whether the tables show it.
    """

    variant: str
    seed: int
    config: TrainingConfig
    text_from: Path | None = None
    is_measured: bool = True

    @property
    def has_average(self) -> bool:
        """Whether it has an averaged encoder, which is measured as AVERAGED."""
        method = self.config.method
        return isinstance(method, PretrainConfig) and method.ema == "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproductionPlan:
    """All runs of a scale.

    Attributes:
        scale: Sizes.
        data: Data folder.
        runs: Parent of the seeds' folders.
    """

    scale: Scale
    data: Path
    runs: Path

    def all_runs(self, seeds: Sequence[int]) -> list[PlannedRun]:
        """Runs of all seeds in order; each follows those that it needs."""
        by_seed = [self._seed_runs(seed) for seed in seeds]
        first = [run for runs in by_seed for run in runs if run.variant not in LAST]
        return first + [run for runs in by_seed for run in runs if run.variant in LAST]

    def _seed_runs(self, seed: int) -> list[PlannedRun]:
        recipe = self._pretrain()
        methods = {
            RECIPE: recipe,
            "ibot": replace(recipe, supervised="masked"),
            "contrastive": replace(recipe, ibot_weight=0.0),
            "full-ema": replace(recipe, ema="full"),
            "no-ema": replace(recipe, ema="none"),
        }
        teachers = [self._continued(seed, name, method) for name, method in methods.items()]
        students = [
            self._student(seed, name, method, teacher)
            for name, (method, teacher) in self._distillations().items()
        ]
        return [
            self._start(seed, START, SCENE_CAPTIONS),
            *teachers,
            *students,
            self._start(seed, ONE_CAPTION_START, ONE_CAPTION),
            self._continued(seed, "one-caption", recipe, captions=ONE_CAPTION),
        ]

    def _distillations(self) -> dict[str, tuple[DistillConfig, str]]:
        """Method and teacher of each student."""
        recipe = DistillConfig(
            dino_weight=0.0,
            head=self.scale.head,
            mask_ratio=0.0,
            text_start="teacher",
            text_frozen=False,
            text_locked_until=0.0,
        )
        masked = replace(recipe, mask_ratio=0.75)
        return {
            STUDENT: (recipe, RECIPE),
            "student-mask-75": (masked, RECIPE),
            "student-masked-only": (replace(masked, supervised="masked"), RECIPE),
            "student-alone": (replace(recipe, patch_weight=0.0), RECIPE),
            "student-of-ibot": (recipe, "ibot"),
            LONG_STUDENT: (recipe, RECIPE),
        }

    def _pretrain(self) -> PretrainConfig:
        return PretrainConfig(dino_weight=0.0, head=self.scale.head)

    def _start(self, seed: int, name: str, captions: CaptionSampling) -> PlannedRun:
        config = self._config(
            seed,
            name,
            replace(self._pretrain(), ibot_weight=0.0),
            num_steps=self.scale.start_steps,
            data=self._data(seed, 0, self.scale.close_ups_then_scenes, captions),
        )
        config = replace(config, text_warmup_steps=self.scale.warm_up_steps)
        first = self.runs / f"seed-{_TEXT_SEED}" / START
        return PlannedRun(
            variant=name,
            seed=seed,
            config=config,
            text_from=None if first == config.folder else first,
            is_measured=False,
        )

    def _continued(
        self,
        seed: int,
        name: str,
        method: PretrainConfig,
        *,
        captions: CaptionSampling = SCENE_CAPTIONS,
    ) -> PlannedRun:
        config = self._config(
            seed,
            name,
            method,
            num_steps=self.scale.pretrain_steps,
            data=self._data(seed, 1, (self.scale.scenes,), captions),
        )
        start = START if captions == SCENE_CAPTIONS else ONE_CAPTION_START
        config = replace(config, start=config.runs / start)
        return PlannedRun(variant=name, seed=seed, config=config)

    def _student(self, seed: int, name: str, method: DistillConfig, teacher: str) -> PlannedRun:
        is_long = name == LONG_STUDENT
        config = self._config(
            seed,
            name,
            method,
            num_steps=self.scale.teacher_steps if is_long else self.scale.distill_steps,
            data=self._data(seed, 2, (self.scale.scenes,), SCENE_CAPTIONS),
            teacher=teacher,
        )
        return PlannedRun(variant=name, seed=seed, config=config)

    def _data(
        self, seed: int, part: int, stages: tuple[Stage, ...], captions: CaptionSampling
    ) -> DataConfig:
        # Stages and seeds see different scenes.
        return DataConfig(
            folder=self.data,
            styles=EMOJI_TRAIN_STYLES,
            stages=stages,
            captions=captions,
            seed=1000 + 10 * seed + part,
            num_workers=0,
        )

    def _config(
        self,
        seed: int,
        name: str,
        method: PretrainConfig | DistillConfig,
        *,
        num_steps: int,
        data: DataConfig,
        teacher: str | None = None,
    ) -> TrainingConfig:
        runs = self.runs / f"seed-{seed}"
        is_student = isinstance(method, DistillConfig)
        return TrainingConfig(
            name=name,
            method=method,
            model=self.scale.model,
            data=data,
            optim=self.scale.optim,
            num_steps=num_steps,
            batch_size=self.scale.batch_size,
            # With its teacher's seed, a student would start from the teacher's initial weights.
            seed=2 * seed + int(is_student),
            teacher=None if teacher is None else runs / teacher,
            runs=runs,
            log_every=10,
            validate_every=0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two variants, the first of which the paper reports as better.

    Attributes:
        better: The first variant.
        worse: The second variant.
        question: Name of the comparison in tables.
        is_equality: Whether the paper reports them as equally good.
    """

    better: str
    worse: str
    question: str
    is_equality: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One claim of the paper and its comparisons.

    Attributes:
        letter: Short name.
        comparisons: Pairs of variants.
    """

    letter: str
    comparisons: tuple[Comparison, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant that is compared, in order of appearance."""
        pairs = [(pair.better, pair.worse) for pair in self.comparisons]
        return tuple(dict.fromkeys(name for pair in pairs for name in pair))


EFFECTS = (
    # iBOT++ against iBOT in pretraining.
    # The paper: ViT-g, zero-shot mIoU on ADE150: 3.5 with iBOT, 17.6 with iBOT++.
    Effect(
        letter="a",
        comparisons=(
            Comparison(better=RECIPE, worse="ibot", question="iBOT++ over iBOT"),
            Comparison(better=RECIPE, worse="contrastive", question="iBOT++ over no patch loss"),
            Comparison(better="ibot", worse="contrastive", question="iBOT over no patch loss"),
            Comparison(
                better=STUDENT,
                worse="student-of-ibot",
                question="a student of the iBOT++ teacher over one of the iBOT teacher",
            ),
        ),
    ),
    # Distillation: what is masked and what is supervised.
    # The paper: ViT-L, ADE150: 20.0 with mask 0, 5.9 with mask 0.75; visible patches decide.
    Effect(
        letter="b",
        comparisons=(
            Comparison(
                better=STUDENT, worse="student-mask-75", question="mask 0 over 0.75, all tokens"
            ),
            Comparison(
                better="student-mask-75",
                worse="student-masked-only",
                question="all tokens over masked ones only, both at 0.75",
            ),
            Comparison(
                better=STUDENT,
                worse="student-masked-only",
                question="the paper's distillation over pretraining's patch loss",
            ),
        ),
    ),
    # Student against teacher.
    # The paper: TIPS: the ViT-g teacher has 2.6 on ADE150 and its ViT-L student 20.8.
    Effect(
        letter="c",
        comparisons=(
            Comparison(better=STUDENT, worse=RECIPE, question="student over its teacher"),
            Comparison(
                better=LONG_STUDENT,
                worse=RECIPE,
                question="a student that saw as many scenes as its teacher over it",
            ),
            Comparison(
                better=STUDENT,
                worse="student-alone",
                question="student over the same training without a teacher",
            ),
            Comparison(
                better="student-of-ibot", worse="ibot", question="iBOT's student over its teacher"
            ),
        ),
    ),
    # Head-only average against a full one, and none.
    # The paper: ViT-g, ADE150: 19.1 with the head's average alone, 18.1 with a full one.
    Effect(
        letter="d",
        comparisons=(
            Comparison(
                better=RECIPE, worse="full-ema", question="head-only against full", is_equality=True
            ),
            Comparison(
                better=RECIPE,
                worse=AVERAGED,
                question="head-only against full, keeping the averaged encoder",
                is_equality=True,
            ),
            Comparison(better=RECIPE, worse="no-ema", question="head-only over no average"),
        ),
    ),
    # Captions of several granularities against one source.
    # The paper: ViT-g: Flickr text to image from 81.7 to 85.4, ADE150 from 17.6 to 18.1.
    Effect(
        letter="e",
        comparisons=(
            Comparison(
                better=RECIPE, worse="one-caption", question="alt text, keywords and scene over alt"
            ),
        ),
    ),
)
