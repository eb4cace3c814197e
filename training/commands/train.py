"""Jobs that train: `python -m training RECIPE`, `pretrain` and `distill`."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from training.config import TrainingConfig
from training.options import option
from training.recipes import bundled
from training.recipes.from_folder import (
    SIZES,
    SMALL,
    FolderRun,
    describe_pair,
    distill_folder,
    pretrain_folder,
    read_teacher_facts,
)
from training.recipes.scale import SCALE_RECIPES
from training.run import run as train
from training.settings import SETTING, apply_overrides

RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    "teacher": bundled.teacher,
    "first-student": bundled.first_student,
    "student": bundled.student,
    "photo-student": bundled.photo_student,
    "debug": bundled.debug,
    **SCALE_RECIPES,
}
_SIZE = f"model size; {SMALL}: 6 blocks of width 192, for a CPU"


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Of a recipe's job."""

    overrides: tuple[str, ...] = option(
        "change one setting of the recipe, such as optim.muon_lr=2e-3", (), **SETTING
    )


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(FolderRun):
    """Of `pretrain`."""

    size: str = option(_SIZE, SMALL, flag="--model", choices=SIZES)


@dataclass(frozen=True, kw_only=True)
class DistillOptions(FolderRun):
    """Of `distill`."""

    teacher: Path = option(
        "folder of a finished run, or of a Tipsv2Model with config.json and tokenizer.json"
    )
    size: str = option(_SIZE, SMALL, flag="--student", choices=SIZES)


def run_recipe(name: str, options: RecipeOptions) -> None:
    """Train by a recipe."""
    print(f"The model is in {train(apply_overrides(RECIPES[name](), options.overrides))}")


def run_pretrain(options: PretrainOptions) -> None:
    """Pretrain a model on a folder of images with captions."""
    folder = train(_configured(pretrain_folder(options), options, kind="pretrained"))
    print(f"The model is in {folder}; to use it as a teacher: --teacher {folder.parent}")


def run_distill(options: DistillOptions) -> None:
    """Inspect the teacher and the images, print what is used, and train."""
    facts = read_teacher_facts(options.teacher)
    recipe = distill_folder(options, options.teacher, facts)
    config = _configured(recipe, options, kind="distilled")
    if os.environ.get("RANK", "0") == "0":  # torchrun starts this program once per rank
        print("\n".join(describe_pair(config, facts)), flush=True)
    print(f"The student is in {train(config)}")


def _configured(recipe: TrainingConfig, options: FolderRun, *, kind: str) -> TrainingConfig:
    """With the changed settings; a run without a name has its kind, the images and the size."""
    name = options.name or f"{kind}-{options.images.resolve().name}-{options.size}"
    return apply_overrides(replace(recipe, name=name, runs=options.runs), options.overrides)
