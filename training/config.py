"""The whole configuration of a run, and changing it by `--set key=value`."""

import ast
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from transformers import Tipsv2Config

from training.data.caption_sampling import SCENE_CAPTIONS, CaptionSampling
from training.data.crops import CropConfig
from training.data.folder import TRAIN_STYLES
from training.data.loader import Stage
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.optim import OptimConfig
from training.variants import variant


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Size of a Tipsv2Model.

    Attributes:
        dim: Width of both towers.
        vision_layers: Blocks of the vision tower.
        text_layers: Blocks of the text tower.
        heads: Attention heads of both towers.
        native_size: Side in pixels of the learnt position grid.
        vocab_size: Pieces of the tokenizer, used where one is trained.
        variant: One of the family's sizes ("s14", "b14", "l14", "so400m14", "g14"), which fixes all
            of the above but the vocabulary; "custom" for the sizes given here.
    """

    dim: int = 192
    vision_layers: int = 6
    text_layers: int = 2
    heads: int = 3
    native_size: int = 112
    vocab_size: int = 2048
    variant: str = "custom"

    def __post_init__(self) -> None:
        """Refuse sizes that a variant would silently override."""
        if self.variant == "custom":
            return
        variant(self.variant)
        for item in dataclasses.fields(self):
            fixed = item.name not in ("variant", "vocab_size")
            if fixed and getattr(self, item.name) != item.default:
                raise ValueError(
                    f"variant {self.variant!r} fixes {item.name}: leave model.{item.name} alone, "
                    "or set model.variant=custom"
                )

    def build(self, vocab_size: int) -> Tipsv2Config:
        """Translate into transformers' configuration."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What is trained on.

    Attributes:
        folder: Filled by `python -m training data`.
        styles: Drawing styles.
        stages: The curriculum.
        captions: Which captions supervise which CLS token.
        crops: Local crops of each scene.
        seed: Of the scenes.
        num_workers: Processes that make batches ahead.
    """

    folder: Path = Path("data")
    styles: tuple[str, ...] = TRAIN_STYLES
    stages: tuple[Stage, ...] = (Stage(),)
    captions: CaptionSampling = SCENE_CAPTIONS
    crops: CropConfig = field(default_factory=CropConfig)
    seed: int = 0
    num_workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """A run.

    Attributes:
        name: Names the run's folder.
        method: What is minimised.
        model: Size of the model that is trained.
        data: What on.
        optim: How.
        num_steps: Optimizer steps.
        batch_size: Scenes a step.
        seed: Of the weights and of each step's random choices.
        text_warmup_steps: Steps in which a new text tower first learns MiniLM's embeddings.
        teacher: Folder of a finished pretraining run; distillation needs it.
        start: Folder of a finished run whose tokenizer and model this run goes on from; None for
            random weights.
        runs: Where run folders are made.
        log_every: Steps between log lines.
        validate_every: Steps between validations; 0 for none.
        checkpoint_every_s: Seconds between checkpoints.
        threads: Of torch.
    """

    name: str
    method: PretrainConfig | DistillConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    num_steps: int
    batch_size: int = 96
    seed: int = 0
    text_warmup_steps: int = 0
    teacher: Path | None = None
    start: Path | None = None
    runs: Path = Path("runs")
    log_every: int = 20
    validate_every: int = 500
    checkpoint_every_s: float = 120.0
    threads: int = 1

    def __post_init__(self) -> None:
        """Check what no part can check alone."""
        if self.num_steps < 1 or self.batch_size < 2:
            raise ValueError("num_steps must be at least 1 and batch_size at least 2, for contrast")
        if isinstance(self.method, DistillConfig) and self.teacher is None:
            raise ValueError("distillation needs a teacher: --set teacher=runs/NAME")

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.runs / self.name


Config = TypeVar("Config")


def _parse(text: str) -> Any:
    """Read a Python literal; anything else is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _replace(config: Config, path: list[str], text: str, whole: str) -> Config:
    """Return a copy of a config with the field at `path` changed."""
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    names = [item.name for item in dataclasses.fields(config)]
    if path[0] not in names:
        raise ValueError(f"unknown setting {whole!r}: {path[0]!r} is none of {', '.join(names)}")
    old = getattr(config, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(old):
            raise ValueError(f"unknown setting {whole!r}: {path[0]!r} has no parts")
        return dataclasses.replace(config, **{path[0]: _replace(old, path[1:], text, whole)})
    new = _parse(text)
    if isinstance(old, Path) or path[0] in ("teacher", "start"):
        new = Path(text)
    elif isinstance(old, str):
        new = new if isinstance(new, str) else text
    elif isinstance(old, float) and isinstance(new, int):
        new = float(new)
    elif dataclasses.is_dataclass(old) or (old is not None and not isinstance(new, type(old))):
        raise ValueError(f"{whole} must be of type {type(old).__name__}, and {text!r} is not")
    return dataclasses.replace(config, **{path[0]: new})


def apply_overrides(config: TrainingConfig, overrides: list[str]) -> TrainingConfig:
    """Change settings by lines such as "optim.muon_lr=2e-3".

    Raises:
        ValueError: An unknown setting, a value of another type, or a line without "=".
    """
    for line in overrides:
        key, separator, value = line.partition("=")
        if not separator:
            raise ValueError(f"--set takes KEY=VALUE, not {line!r}")
        config = _replace(config, key.split("."), value, key)
    return config
