"""The whole configuration of a run."""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Lt
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from transformers import Tipsv2Config, Tipsv2TextConfig, Tipsv2VisionConfig

from model.variants import variant
from training.data.captions import SCENE_CAPTIONS, CaptionSampling
from training.data.folder import TRAIN_STYLES
from training.data.scenes import SceneConfig
from training.data.shards.batches import ShardsConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.methods.space import SpaceConfig
from training.optim import Auto, OptimConfig
from training.parallel import ParallelKind, Precision
from training.settings import STRICT


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ModelConfig:
    """Size of a Tipsv2Model.

    Attributes:
        dim: Width of both towers.
        vision_layers: Blocks of the vision tower.
        text_layers: Blocks of the text tower.
        heads: Attention heads of both towers.
        native_size: Image side in pixels of the learnt position grid.
        vocab_size: Pieces of the tokenizer, if one is trained.
        variant: A size of the family ("s14", "b14", "l14", "so400m14", "g14"), which fixes all of
            the above except the vocabulary; "custom" for the sizes given here.
    """

    dim: int = 192
    vision_layers: int = 6
    text_layers: int = 2
    heads: int = 3
    native_size: int = 112
    vocab_size: int = 2048
    variant: str = "custom"

    def __post_init__(self) -> None:
        """Refuse sizes that a variant would override."""
        if self.variant == "custom":
            return
        variant(self.variant)
        for item in dataclasses.fields(self):
            fixed = item.name not in ("variant", "vocab_size")
            if fixed and getattr(self, item.name) != item.default:
                raise ValueError(
                    f"variant {self.variant!r} fixes {item.name}: do not set model.{item.name}, "
                    "or set model.variant=custom"
                )

    def build(self, vocab_size: int) -> Tipsv2Config:
        """Build transformers' configuration."""
        if self.variant != "custom":
            return variant(self.variant).build(vocab_size=vocab_size)
        return Tipsv2Config(
            text_config={
                "vocab_size": vocab_size,
                "hidden_size": self.dim,
                "intermediate_size": 4 * self.dim,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": self.heads,
            },
            vision_config={
                "hidden_size": self.dim,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.heads,
                "image_size": self.native_size,
            },
            temperature_init_value=0.07,
        )


def vision_of(config: Tipsv2Config) -> Tipsv2VisionConfig:
    """The vision tower's configuration."""
    assert isinstance(config.vision_config, Tipsv2VisionConfig)  # transformers makes it one
    return config.vision_config


def text_of(config: Tipsv2Config) -> Tipsv2TextConfig:
    """The text tower's configuration."""
    assert isinstance(config.text_config, Tipsv2TextConfig)
    return config.text_config


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Stage:
    """One stage of a curriculum: scenes, and further drawings without a concept's name in a batch.

    It ends at the share `until` of the steps.
    """

    until: float = 1.0
    scenes: SceneConfig = field(default_factory=SceneConfig)
    unnamed: NonNegativeInt = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DataConfig:
    """Scenes that are composed during training; `ShardsConfig` is for images from disk.

    Attributes:
        folder: Filled by `python -m training data`.
        styles: Drawing styles.
        stages: The curriculum, in order; the last stage lasts until 1.0.
        num_workers: Processes that prefetch batches.
    """

    folder: Path = Path("data")
    styles: tuple[str, ...] = TRAIN_STYLES
    stages: tuple[Stage, ...] = (Stage(),)
    captions: CaptionSampling = SCENE_CAPTIONS
    seed: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        """Check that every step has a stage."""
        if not self.stages or self.stages[-1].until < 1:
            raise ValueError("the last stage of a curriculum must last until 1.0")

    def stage_at(self, step: int, num_steps: int) -> Stage:
        """The stage of a step."""
        return next(s for s in self.stages if step < s.until * num_steps or s.until >= 1)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ViewsConfig:
    """Views of drawings and photographs with a teacher's cells, and scenes without a teacher.

    Attributes:
        folder: Filled by `python -m training data`.
        size: Side of the images that the student sees, and of scenes.
        part_size: Views that are computed and kept together.
        num_parts: Parts of the pool, which are computed when a step first needs them.
        scenes_share: Share of scenes in a batch; the rest are crops of views.
        num_workers: Processes that prefetch batches; each would keep all views in its memory.
    """

    folder: Path = Path("data")
    size: int = 112
    part_size: PositiveInt = 256
    num_parts: PositiveInt = 30
    scenes: SceneConfig = field(default_factory=SceneConfig)
    scenes_share: Annotated[float, Ge(0), Lt(1)] = 0.5
    seed: int = 0
    num_workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """Configuration of a run.

    Attributes:
        name: Name of the run and of its folder.
        method: Training method and its loss weights.
        model: Size of the model in training.
        data: Composed scenes, images from disk, or views with a teacher's cells.
        optim: Optimizers and learning rates.
        num_steps: Optimizer steps.
        batch_size: Images in one micro-batch of one rank; at least two, for contrast.
        accumulate: Micro-batches per step. Captions are contrasted over all of them, for which
            whole images and captions are encoded a second time.
        precision: Of forward passes: "bfloat16" by autocast, or "float32"; "auto" is bfloat16 where
            the hardware computes in it. Weights, averages and optimizer states are float32.
            TIPSv2's precision is not published; bfloat16 is native on its hardware.
        parallel: With several ranks (torchrun): "ddp" replicates everything, "fsdp2" shards
            weights, gradients and optimizer state over all ranks, "hsdp" over those of a machine.
        compile: Compile transformer blocks by torch.compile.
        checkpoint_activations: Recompute a block's inner activations in the backward pass instead
            of keeping them: less memory, about a third more time.
        seed: Of the weights and of each step's random choices.
        text_warmup_steps: Steps in which a new text tower first learns MiniLM's embeddings.
        teacher: Folder of a finished run or of a released model, required for distillation. The
            teacher of a space is the checkpoint of an encoder for photographs.
        start: Folder of a finished run or of a released model whose tokenizer and weights this run
            starts from; of a run also its heads, averages and centres, where their shapes agree.
            The position grid is interpolated if model.native_size is larger, as in a stage at a
            higher resolution. None for random weights.
        runs: Parent of run folders.
        log_every: Steps between log lines.
        validate_every: Steps between validations; 0 for none.
        checkpoint_every_s: Seconds between checkpoints.
        keep_checkpoints: Number of newest checkpoints to keep.
        checkpoint_store: URL of a folder that gets a copy of each checkpoint, such as
            s3://bucket/runs; a machine without the run continues from there. None for none.
        threads: Of torch.
    """

    name: str
    method: PretrainConfig | DistillConfig | SpaceConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig | ShardsConfig | ViewsConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    num_steps: PositiveInt
    batch_size: Annotated[int, Ge(2)] = 96
    accumulate: PositiveInt = 1
    precision: Precision | Auto = "bfloat16"
    parallel: ParallelKind = "ddp"
    compile: bool = False
    checkpoint_activations: bool = False
    seed: int = 0
    text_warmup_steps: int = 0
    teacher: Path | None = None
    start: Path | None = None
    runs: Path = Path("runs")
    log_every: int = 20
    validate_every: int = 500
    checkpoint_every_s: float = 120.0
    keep_checkpoints: PositiveInt = 2
    checkpoint_store: str | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Check combinations of settings."""
        if isinstance(self.data, ShardsConfig) and self.data.probe and not self.validate_every:
            raise ValueError("data.probe is scored at validations: set validate_every above 0")
        if isinstance(self.method, DistillConfig | SpaceConfig) and self.teacher is None:
            raise ValueError("distillation needs a teacher: --set teacher=runs/NAME")
        if isinstance(self.method, SpaceConfig) != isinstance(self.data, ViewsConfig):
            raise ValueError("method SpaceConfig and data ViewsConfig go together")

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.runs / self.name
