"""`python -m training distill`: a teacher's folder and a folder of images make a student."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from training.commands.folder_options import add_folder_arguments, folder_run
from training.overrides import apply_overrides
from training.recipes.from_folder import describe_pair, distill_folder, read_teacher_facts
from training.run import run as train

HELP = "Distil a teacher into a student on a folder of images, with captions or without."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--teacher",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a finished run, or any Tipsv2Model with its config.json and tokenizer.json",
    )
    add_folder_arguments(parser, size="student")


def run(options: argparse.Namespace) -> None:
    """Look at both folders, say what is used, and train."""
    facts = read_teacher_facts(options.teacher)
    recipe = distill_folder(folder_run(options, kind="distilled"), options.teacher, facts)
    config = apply_overrides(replace(recipe, runs=options.runs), options.overrides)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts this program once a rank
        print("\n".join(describe_pair(config, facts)), flush=True)
    folder = train(config)
    print(f"The student is in {folder}")
