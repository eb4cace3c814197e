"""`python -m training reproduce`: measure the paper's effects in miniature, over several seeds."""

import argparse
from pathlib import Path
from typing import Any

import torch

from training.data.folder import DataFolder
from training.reproduce.cells import cached_cells
from training.reproduce.plan import Scale
from training.reproduce.runner import Setup, run_all, summary
from training.reproduce.texts import cached_texts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="the data job's folder (default data)"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/reproduce"),
        help="folder of cells and models (default runs/reproduce)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=list(range(6)),
        help="seeds to run (default 0 to 5)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of one JSON file for each arm and seed (default results in --runs)",
    )


def run(options: argparse.Namespace) -> None:
    """Train and measure the missing arms, and print the means so far."""
    scale, runs = Scale(), options.runs
    results = options.results or runs / "results"
    torch.set_num_threads(1)
    cells = runs / "cells"
    sets = cached_cells(DataFolder(path=options.data), scale.cells, cells)
    texts = cached_texts(sets["train"], scale.width, cells)

    def report(result: dict[str, Any]) -> None:
        print(f"{result['seed']}, {result['arm']}: {result['cpu_s']} s", flush=True)

    setup = Setup(scale=scale, sets=sets, texts=texts, runs=runs)
    run_all(setup, options.seeds, results=results, after_each=report)
    print(summary(results, scale))
