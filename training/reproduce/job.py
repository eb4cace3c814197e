"""The whole job: make the runs that are missing, measure, and rewrite the page after each."""

from collections.abc import Sequence
from pathlib import Path

from transformers import Tipsv2Tokenizer

from training.config import DataConfig
from training.data.folder import DataFolder, seen_names
from training.data.loader import BatchPlan, SceneBatches
from training.reproduce.averages import (
    AverageCost,
    load_averages,
    measure_averages,
    save_averages,
)
from training.reproduce.page import write_page
from training.reproduce.plan import RECIPE, Plan, PlannedRun
from training.reproduce.runner import make_benchmarks, make_runs


def reproduce(
    plan: Plan, seeds: Sequence[int], output: Path, *, is_report_only: bool = False
) -> None:
    """Make and measure all runs of some seeds; what is finished is not made again.

    Args:
        plan: Where and how large.
        seeds: Which repetitions.
        output: The page, rewritten after each run.
        is_report_only: Write the page from what there is, and make nothing.

    Raises:
        ValueError: No seed, or the runs folder holds runs of other settings.
    """
    if not seeds:
        raise ValueError("--seeds needs at least one seed")
    runs: list[PlannedRun] = plan.all_runs(seeds)

    def write() -> None:
        write_page(plan, runs, output, averages=load_averages(plan.runs))

    if not is_report_only:
        data = DataFolder(path=plan.data)
        scale = plan.scale
        benchmarks = make_benchmarks(data, size=scale.size, num_scenes=scale.num_scenes)
        make_runs(runs, benchmarks, after_each=write)
        if not load_averages(plan.runs):
            save_averages(_averages(plan, runs[0].seed), plan.runs)
    write()


def _averages(plan: Plan, seed: int) -> list[AverageCost]:
    """Measure what averaging costs on the first batches of a seed's recipe."""
    config = next(run.config for run in plan.all_runs([seed]) if run.variant == RECIPE)
    tokenizer = Tipsv2Tokenizer.from_pretrained(config.folder / "tokenizer")
    assert isinstance(config.data, DataConfig)  # the plan's runs draw their scenes
    source = DataFolder(path=plan.data).source(
        "train", styles=config.data.styles, names=seen_names(), seed=config.data.seed
    )
    first = BatchPlan(
        stages=config.data.stages,
        batch_size=config.batch_size,
        num_steps=plan.scale.timing_steps,
        captions=config.data.captions,
    )
    batches = list(SceneBatches(source, tokenizer, first).loader(0, num_workers=0))
    return measure_averages(config, batches, vocab_size=len(tokenizer))
