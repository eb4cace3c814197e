"""`python -m training reproduce`: the paper's effects in miniature, over seeds, into RESULTS.md."""

import argparse
from pathlib import Path

from training.reproduce.job import reproduce
from training.reproduce.plan import Plan, Scale, smoke

HELP = "Measure the paper's effects in miniature, over several seeds; goes on after a stop."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="filled by the data job (default data)"
    )
    parser.add_argument("--runs", type=Path, help="default runs/reproduce; of a smoke, runs/smoke")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="which repetitions (default 0 1 2), whole ones first",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="the page (default training/RESULTS.md; of a smoke, in its runs folder)",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="every variant at toy size, in seconds"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="write the page from what is measured already"
    )


def run(options: argparse.Namespace) -> None:
    """Make what is missing, and write the page after each run."""
    runs = options.runs or Path("runs") / ("smoke" if options.smoke else "reproduce")
    output = options.output or (
        runs / "RESULTS.md" if options.smoke else Path("training/RESULTS.md")
    )
    plan = Plan(scale=smoke() if options.smoke else Scale(), data=options.data, runs=runs)
    reproduce(plan, options.seeds, output, is_report_only=options.report_only)
    print(f"The results are in {output}")
