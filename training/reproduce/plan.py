"""The runs of one seed: a contrastive start, what continues from it, and the students.

Every run of a seed draws the same weights and sees the same scenes as its siblings, so that their
differences are the method's. Runs are listed seed by seed, so that a stop leaves whole seeds; two
variants that no verdict hangs on come after all seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.config import DataConfig, TrainingConfig
from training.data.caption_sampling import SCENE_CAPTIONS, CaptionSampling
from training.data.folder import EMOJI_TRAIN_STYLES
from training.data.loader import Stage
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.reproduce.scale import Scale

ONE_CAPTION = CaptionSampling(cls1=("alt",), cls2=("alt",))

START = "start"
ONE_CAPTION_START = "one-caption-start"
# Pretraining as the paper's recipe has it, and the teacher of most students.
RECIPE = "ibot++"
# Distillation as the paper has it.
STUDENT = "student"
# The same with as many scenes as its teacher saw.
LONG_STUDENT = "student-long"
# The encoder that taught under full averaging, which might be what one would keep.
AVERAGED = "full-ema, the average"
LAST = ("no-ema", "student-of-ibot", LONG_STUDENT)
# Words are learnt before any image is seen, once: seeds share tokenizer and warmed-up tower.
_TEXT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of the project's own trainer.

    Attributes:
        variant: What it is compared by.
        seed: Which repetition it belongs to.
        config: The whole run; its teacher, where it has one, is a run listed before it.
        text_from: Folder of a run whose tokenizer and warmed-up text tower it takes over.
        is_measured: Whether a table shows it.
    """

    variant: str
    seed: int
    config: TrainingConfig
    text_from: Path | None = None
    is_measured: bool = True

    @property
    def has_average(self) -> bool:
        """Whether it leaves an averaged encoder, which is measured as AVERAGED."""
        method = self.config.method
        return isinstance(method, PretrainConfig) and method.ema == "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where and how large: makes the runs of a seed."""

    scale: Scale
    data: Path
    runs: Path

    def all_runs(self, seeds: Sequence[int]) -> list[PlannedRun]:
        """Runs of all seeds in the order they are made in; each after those that it needs."""
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
        # Parts of a seed see different scenes; no seed shares any with another.
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
            # A student with its teacher's seed would start from its teacher's first weights.
            seed=2 * seed + int(is_student),
            teacher=None if teacher is None else runs / teacher,
            runs=runs,
            log_every=10,
            validate_every=0,
        )
