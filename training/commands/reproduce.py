"""`python -m training reproduce`: measure the paper's effects in miniature, over several seeds."""

import argparse
from pathlib import Path

from training.data.folder import DataFolder
from training.reproduce.plan import ReproductionPlan, Scale, smoke
from training.reproduce.runner import make_benchmarks, make_runs
from training.reproduce.tables import write_tables

HELP = "Measure the paper's effects in miniature, over several seeds; resumes after a stop."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="the data job's folder (default data)"
    )
    parser.add_argument(
        "--runs", type=Path, help="folder of runs (default runs/reproduce; with --smoke runs/smoke)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run (default 0 1 2)"
    )
    parser.add_argument(
        "--output", type=Path, help="Markdown file of results (default RESULTS.md in --runs)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="run every variant at toy size, in seconds"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="write the tables of existing runs; run nothing"
    )


def run(options: argparse.Namespace) -> None:
    """Make the missing runs, and rewrite the tables after each."""
    folder = options.runs or Path("runs") / ("smoke" if options.smoke else "reproduce")
    output = options.output or folder / "RESULTS.md"
    scale = smoke() if options.smoke else Scale()
    runs = ReproductionPlan(scale=scale, data=options.data, runs=folder).all_runs(options.seeds)
    if not options.report_only:
        data = DataFolder(path=options.data)
        benchmarks = make_benchmarks(data, size=scale.size, num_scenes=scale.num_scenes)
        make_runs(runs, benchmarks, after_each=lambda: write_tables(runs, output))
    write_tables(runs, output)
    print(f"The results are in {output}")
