"""Recipes for a folder of images: distil a teacher on it, or pretrain on it.

Settings follow from the folders: whether the teacher has prototypes, whether its text tower fits
the student, how many images there are, and whether they have captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as options_class
from transformers import Tipsv2Config, Tipsv2Tokenizer

from model.variants import VARIANTS
from training.config import ModelConfig, TrainingConfig, text_of, vision_of
from training.data.crops import TIPSV2_CROPS, CropConfig
from training.data.shards.batches import ShardsConfig
from training.data.shards.sample import DataSummary
from training.data.shards.store import open_store
from training.heads import SMALL_HEAD, HeadConfig
from training.methods.distill import DistillConfig, PatchLoss, TextStart
from training.methods.pretrain import PretrainConfig
from training.methods.teacher import find_model, read_heads
from training.optim import OptimConfig
from training.options import option
from training.recipes.scale import HEAD, PEAK_LR, WARMUP_SHARE
from training.settings import SETTING
from training.tokenizer import find_tokenizer

SMALL = "small"
SIZES = (SMALL, *VARIANTS)
SMALL_CROPS = CropConfig(global_size=112, num_local=4, local_size=56)
"""Half the paper's sizes and two local crops fewer: trains on a CPU in minutes."""
_TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


@options_class(frozen=True, kw_only=True)
class FolderRun:
    """The user's choices for a run on images; `name` and `overrides` are applied afterwards."""

    images: Path = option(
        "folder of shards, or of images with optional .txt or .json caption files"
    )
    size: str = option("model size", SMALL, choices=SIZES)
    steps: PositiveInt = option("optimizer steps", 1000)
    batch: PositiveInt = option("images per step on one rank, at most all of them", 64)
    runs: Path = option("parent of run folders", Path("runs"))
    name: str | None = option(
        "name of the run's folder (default: the job, the images and the size); an unfinished run "
        "of this name is resumed",
        None,
    )
    overrides: tuple[str, ...] = option(
        "change one setting, such as data.crops.num_local=2", (), **SETTING
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFacts:
    """A teacher's model, and the sizes of its head and tokenizer; None where there is none."""

    config: Tipsv2Config
    num_prototypes: int | None
    vocab_size: int | None


def read_teacher_facts(folder: Path) -> TeacherFacts:
    """Read a teacher's properties without its weights.

    Raises:
        FileNotFoundError: There is no model; the message says what a teacher's folder contains.
    """
    source = find_model(folder)
    heads = read_heads(folder)
    prototypes = heads.get("teacher_head.prototypes", heads.get("head.prototypes"))
    tokenizer = find_tokenizer(folder)
    return TeacherFacts(
        config=Tipsv2Config.from_pretrained(source),
        num_prototypes=None if prototypes is None else len(prototypes),
        vocab_size=len(Tipsv2Tokenizer.from_pretrained(tokenizer)) if tokenizer else None,
    )


def describe_pair(config: TrainingConfig, facts: TeacherFacts) -> Sequence[str]:
    """Lines that describe teacher, student, and what the student's patches learn."""
    method = config.method
    assert isinstance(method, DistillConfig)
    own = vision_of(config.model.build(config.model.vocab_size))
    theirs = vision_of(facts.config)
    text = "a copy of the teacher's" if method.text_start == "teacher" else "random"
    learnt = (
        f"the teacher's {facts.num_prototypes} prototypes"
        if method.patch_loss == "prototypes"
        else f"the teacher's features, from width {own.hidden_size} to {theirs.hidden_size}"
    )
    return (
        f"teacher: {config.teacher}, width {theirs.hidden_size}, frozen, {method.teacher_dtype}",
        f"student: width {own.hidden_size}, {own.num_hidden_layers} vision blocks; vision tower "
        f"random, text tower {text}",
        f"patches learn {learnt}",
        f"tokenizer: {'that of the teacher' if facts.vocab_size else 'trained on the captions'}",
    )


def distill_folder(options: FolderRun, teacher: Path, facts: TeacherFacts) -> TrainingConfig:
    """Distil a teacher with these properties into a student on a folder of images."""
    counts = open_store(options.images).summary
    model, head = _model(options.size), _head(options.size)
    text_start = _text_start(model, facts)
    patch_loss = _patch_loss(facts, counts, text_start)
    if patch_loss == "prototypes" and facts.num_prototypes is not None:
        head = replace(head, num_prototypes=facts.num_prototypes)
    method = DistillConfig(
        patch_loss=patch_loss,
        text_start=text_start,
        teacher_dtype="bfloat16" if torch.cuda.is_available() else "float32",
        head=head,
    )
    return _run(options, method, model, counts, teacher=teacher)


def pretrain_folder(options: FolderRun) -> TrainingConfig:
    """Pretrain a model on a folder of images with captions."""
    counts = open_store(options.images).summary
    method = PretrainConfig(head=_head(options.size))
    return _run(options, method, _model(options.size), counts)


def _model(size: str) -> ModelConfig:
    return ModelConfig() if size == SMALL else ModelConfig(variant=size, vocab_size=32_000)


def _head(size: str) -> HeadConfig:
    return SMALL_HEAD if size == SMALL else HEAD


def _text_start(model: ModelConfig, facts: TeacherFacts) -> TextStart:
    """The teacher's text tower if it fits; the paper found little difference."""
    if facts.vocab_size is None:
        return "fresh"
    own, theirs = text_of(model.build(facts.vocab_size)), text_of(facts.config)
    fits = all(getattr(own, name) == getattr(theirs, name) for name in _TEXT_SIZES)
    return "teacher" if fits else "fresh"


def _patch_loss(facts: TeacherFacts, counts: DataSummary, text_start: TextStart) -> PatchLoss:
    """Prototypes if the teacher has them, as inferred from the paper.

    Without captions a student with the teacher's text tower learns the teacher's features instead,
    because that tower's embeddings are compared with them.
    """
    if facts.num_prototypes is None:
        return "features"
    return "features" if not counts.num_captioned and text_start == "teacher" else "prototypes"


def _run(
    options: FolderRun,
    method: DistillConfig | PretrainConfig,
    model: ModelConfig,
    counts: DataSummary,
    *,
    teacher: Path | None = None,
) -> TrainingConfig:
    is_small = options.size == SMALL
    warmup_steps = round(options.steps * WARMUP_SHARE)
    optim = (
        OptimConfig(optimizer="auto", muon_lr=6e-3, adamw_lr=2e-3, warmup_steps=warmup_steps)
        if is_small
        else OptimConfig(optimizer="adamw", adamw_lr=PEAK_LR, warmup_steps=warmup_steps)
    )
    return TrainingConfig(
        name=options.name or options.images.name,
        method=method,
        model=model,
        data=ShardsConfig(
            folder=options.images,
            crops=SMALL_CROPS if is_small else TIPSV2_CROPS,
            num_workers=1 if is_small else 8,
        ),
        optim=optim,
        num_steps=options.steps,
        batch_size=min(options.batch, counts.num_images),
        precision="auto",
        checkpoint_activations=not is_small,
        teacher=teacher,
        # A student must not start from the initial weights of a teacher of its size.
        seed=0 if teacher is None else 1,
        validate_every=0,
    )
