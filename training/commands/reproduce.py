"""`python -m training reproduce`: measure the paper's effects in miniature, over several seeds."""

from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass

from training.data.folder import DataFolder
from training.options import option
from training.reproduce.plan import Scale
from training.reproduce.runner import Setup, run_all, summary
from training.reproduce.scenes import cached_cells, cached_texts


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job."""

    data: Path = option("the data job's folder", Path("data"))
    runs: Path = option("folder of cells and models", Path("runs/reproduce"))
    seeds: tuple[int, ...] = option("seeds to run", tuple(range(6)))
    results: Path | None = option(
        "folder of one JSON file for each arm and seed (default results in --runs)", None
    )


def run(options: Options) -> None:
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
