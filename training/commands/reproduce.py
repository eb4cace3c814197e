"""`python -m training reproduce`: measure the paper's effects in miniature, over several seeds."""

import argparse
from pathlib import Path
from typing import Any

import torch

from training.data.folder import DataFolder
from training.reproduce.cells import cached_cells
from training.reproduce.page import describe_result, write_page
from training.reproduce.plan import Scale, digest, smoke
from training.reproduce.runner import Setup, run_all
from training.reproduce.texts import cached_texts

HELP = "Measure the paper's effects in miniature, over several seeds; resumes after a stop."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="the data job's folder (default data)"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        help="folder of cells and models (default runs/reproduce; with --smoke runs/smoke)",
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
    parser.add_argument(
        "--output", type=Path, help="Markdown page of the results (default RESULTS.md in --runs)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="run every arm at toy size, in seconds"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="write the page of existing results only"
    )


def run(options: argparse.Namespace) -> None:
    """Train and measure the missing arms, and rewrite the page after each."""
    scale = smoke() if options.smoke else Scale()
    runs = options.runs or Path("runs") / ("smoke" if options.smoke else "reproduce")
    results = options.results or runs / "results"
    output = options.output or runs / "RESULTS.md"
    if not options.report_only:
        torch.set_num_threads(1)
        cells = runs / f"cells-{digest(scale.cells)}"
        sets = cached_cells(DataFolder(path=options.data), scale.cells, cells)
        texts = cached_texts(sets["train"], scale.width, cells)

        def report(result: dict[str, Any]) -> None:
            print(describe_result(result), flush=True)
            write_page(results, scale, output)

        setup = Setup(scale=scale, sets=sets, texts=texts, runs=runs)
        run_all(setup, options.seeds, results=results, after_each=report)
    write_page(results, scale, output)
    print(f"The page is {output}")
