"""What a folder says of the teacher in it, read without its weights, and the same in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Tipsv2Config, Tipsv2TextConfig, Tipsv2Tokenizer, Tipsv2VisionConfig

from training.config import TrainingConfig
from training.methods.distill import DistillConfig
from training.methods.teacher import HEAD_FILE, MODEL_FOLDER
from training.tokenizer import find_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFacts:
    """What a folder says of the model in it.

    Attributes:
        config: Of the model.
        num_prototypes: Of its head; None where it has none.
        vocab_size: Of its tokenizer; None where there is none beside it.
    """

    config: Tipsv2Config
    num_prototypes: int | None
    vocab_size: int | None


def look_at_teacher(folder: Path) -> TeacherFacts:
    """Read what a teacher is, without its weights.

    Raises:
        FileNotFoundError: No model is there; the message says what a teacher's folder holds.
    """
    source = folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder
    if not (source / "config.json").exists():
        raise FileNotFoundError(
            f"no teacher in {folder}: give the folder of a finished run, or of a Tipsv2Model with "
            "config.json, model.safetensors and tokenizer.json"
        )
    heads = {}
    if (folder / HEAD_FILE).exists():
        heads = torch.load(folder / HEAD_FILE, map_location="meta", weights_only=True)
    prototypes = heads.get("teacher_head.prototypes", heads.get("head.prototypes"))
    tokenizer = find_tokenizer(folder)
    return TeacherFacts(
        config=Tipsv2Config.from_pretrained(source),
        num_prototypes=None if prototypes is None else len(prototypes),
        vocab_size=len(Tipsv2Tokenizer.from_pretrained(tokenizer)) if tokenizer else None,
    )


def describe_pair(config: TrainingConfig, facts: TeacherFacts) -> Sequence[str]:
    """Say who teaches whom, and how two widths meet."""
    method = config.method
    assert isinstance(method, DistillConfig)
    student = config.model.build(facts.vocab_size or config.model.vocab_size)
    words = (
        "the teacher's, and trained where captions are"
        if method.text_start == "teacher"
        else "random"
    )
    return (
        f"teacher: {config.teacher}, {_size(facts.config)}, frozen, in {method.teacher_dtype}",
        f"student: {_size(student)}; its vision tower starts at random, its text tower is {words}",
        f"bridge: {_bridge(method, student, facts)}",
        "tokenizer: the teacher's" if facts.vocab_size else "tokenizer: trained on the captions",
    )


def vision_of(config: Tipsv2Config) -> Tipsv2VisionConfig:
    """The vision tower's configuration."""
    assert isinstance(config.vision_config, Tipsv2VisionConfig)  # transformers makes it one
    return config.vision_config


def text_of(config: Tipsv2Config) -> Tipsv2TextConfig:
    """The text tower's configuration."""
    assert isinstance(config.text_config, Tipsv2TextConfig)
    return config.text_config


def _size(config: Tipsv2Config) -> str:
    vision = vision_of(config)
    return f"width {vision.hidden_size}, {vision.num_hidden_layers} vision blocks"


def _bridge(method: DistillConfig, student: Tipsv2Config, facts: TeacherFacts) -> str:
    own, theirs = vision_of(student).hidden_size, vision_of(facts.config).hidden_size
    if method.patch_loss == "prototypes":
        return f"the teacher's {facts.num_prototypes} prototypes, with a new head for the student"
    why = (
        "it has no prototype head"
        if facts.num_prototypes is None
        else "which its text tower's words fit"
        if method.text_start == "teacher"
        else 'for method.patch_loss is "features"'
    )
    how = (
        "directly, for widths are equal"
        if own == theirs
        else f"through a linear projector from {own} to {theirs}, which the student is left without"
    )
    return f"the teacher's features ({why}), {how}"
