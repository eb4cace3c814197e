"""How large the miniature is: the model, its scenes and the steps of each part of a seed."""

from dataclasses import dataclass, field

from training.config import ModelConfig
from training.data.loader import Stage
from training.data.scenes import SceneConfig
from training.heads import SMALL_HEAD, HeadConfig
from training.optim import OptimConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes that all runs share.

    Attributes:
        model: Teachers and students alike.
        head: The prototype head.
        size: Side in pixels of the scenes, the last stage's and the measuring ones'.
        close_up_size: Side of the first stage's images of one drawing each.
        close_up_share: Share of a start's steps that are close-ups.
        batch_size: Scenes a step.
        warm_up_steps: Of a start's text tower.
        start_steps: Contrastive steps before the patch loss joins in; shared by variants.
        pretrain_steps: Steps of each pretraining variant after its start.
        distill_steps: Steps of each student, from random vision weights.
        optim: Peaks and warm-up.
        num_scenes: Measuring scenes in each test set; validation has half as many.
        timing_steps: Steps a mode that the averages' cost is measured over.
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
    timing_steps: int = 40

    @property
    def teacher_steps(self) -> int:
        """All steps that a teacher is made of, its start's counted."""
        return self.start_steps + self.pretrain_steps

    @property
    def scenes(self) -> Stage:
        """Scenes of one to three everyday things."""
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
    """A toy size: every variant in seconds, to see that it works; its scores say nothing."""
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
        timing_steps=4,
    )
