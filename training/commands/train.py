"""Jobs that train: `python -m training RECIPE`, `pretrain` and `distill`."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from training.config import TrainingConfig
from training.overrides import apply_overrides
from training.recipes import bundled, first_light
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

RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    "teacher": first_light.teacher,
    "first-student": first_light.first_student,
    "student": bundled.student,
    "photo-student": bundled.photo_student,
    "debug": first_light.debug,
    **SCALE_RECIPES,
}


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a recipe's job."""
    _add_overrides(parser, "change one setting of the recipe, such as optim.muon_lr=2e-3")


def run_recipe(options: argparse.Namespace) -> None:
    """Train by the recipe that the job is named after."""
    config = apply_overrides(RECIPES[options.job](), options.overrides)
    print(f"The model is in {train(config)}")


def add_pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pretrain`."""
    _add_folder_options(parser, size="model")


def run_pretrain(options: argparse.Namespace) -> None:
    """Pretrain a model on a folder of images with captions."""
    config = pretrain_folder(_folder_run(options, kind="pretrained"))
    folder = train(apply_overrides(replace(config, runs=options.runs), options.overrides))
    print(f"The model is in {folder}; to use it as a teacher: --teacher {folder.parent}")


def add_distill_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `distill`."""
    parser.add_argument(
        "--teacher",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of a finished run, or of a Tipsv2Model with config.json and tokenizer.json",
    )
    _add_folder_options(parser, size="student")


def run_distill(options: argparse.Namespace) -> None:
    """Inspect the teacher and the images, print what is used, and train."""
    facts = read_teacher_facts(options.teacher)
    recipe = distill_folder(_folder_run(options, kind="distilled"), options.teacher, facts)
    config = apply_overrides(replace(recipe, runs=options.runs), options.overrides)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts this program once per rank
        print("\n".join(describe_pair(config, facts)), flush=True)
    print(f"The student is in {train(config)}")


def _add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help=text
    )


def _add_folder_options(parser: argparse.ArgumentParser, *, size: str) -> None:
    """Declare the options of a run on a folder of images; `size` names the model-size option."""
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of shards, or of images with optional .txt or .json caption files",
    )
    parser.add_argument(
        f"--{size}",
        dest="size",
        choices=SIZES,
        default=SMALL,
        help=f"model size (default {SMALL}: 6 blocks of width 192, for a CPU)",
    )
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default 1000)")
    parser.add_argument(
        "--batch", type=int, default=64, help="images per step, at most all of them (default 64)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="parent of run folders (default runs)"
    )
    parser.add_argument(
        "--name",
        help="name of the run's folder (default: the job, the images and the size); an unfinished "
        "run of this name is resumed",
    )
    _add_overrides(parser, "change one setting, such as data.crops.num_local=2")


def _folder_run(options: argparse.Namespace, *, kind: str) -> FolderRun:
    """Read the options; a run without a name is named after its kind, the images and the size."""
    images: Path = options.images
    name = options.name or f"{kind}-{images.resolve().name}-{options.size}"
    return FolderRun(
        name=name,
        images=images,
        size=options.size,
        num_steps=options.steps,
        batch_size=options.batch,
    )
