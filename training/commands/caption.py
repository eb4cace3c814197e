"""`python -m training caption paligemma|gemini`: add a caption to every sample of some shards.

Defaults are in the settings classes; an option that is not given keeps its setting's default.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.prompt import Confirm

from training.captioning.cost import Price
from training.captioning.gemini_config import (
    PRICE,
    GeminiConfig,
    GeminiLimits,
    estimate_cost,
    read_api_key,
)
from training.captioning.job import (
    Captioner,
    CaptionJob,
    CleaningConfig,
    JobConfig,
    JobProgress,
    ask_consent,
    earlier_usage,
    pending_samples,
)
from training.captioning.paligemma import PaliGemmaCaptioner, PaliGemmaConfig
from training.data.shards.image_folder import describe_folder
from training.data.shards.manifest import index_shards
from training.data.shards.sample import BrokenList

HELP = "Caption the images of shards with PaliGemma or Gemini."


@dataclass(frozen=True, slots=True)
class Option:
    """Command-line option of a setting."""

    help: str
    type: type = str
    choices: tuple[str, ...] | None = None


PALIGEMMA: Mapping[str, Option] = {
    "model": Option("folder or hub name of a checkpoint with its processor"),
    "prompt": Option("prompt for the model"),
    "max_tokens": Option("longest answer in tokens", int),
    "temperature": Option("0 is greedy; above 0, tokens are sampled", float),
    "seed": Option("seed of the sampling", int),
    "batch_size": Option("images per batch", int),
    "precision": Option("of weights and activations", str, ("auto", "bfloat16", "float32")),
    "device": Option('"auto", "cpu", "cuda", "cuda:1", ...'),
    "source": Option("caption source under which the captions are stored"),
}
GEMINI: Mapping[str, Option] = {
    "model": Option("the service's name of the model"),
    "prompt": Option("the prompt; {words} becomes the value of --max-words"),
    "max_words": Option("words that the prompt asks for", int),
    "max_output_tokens": Option("longest answer in tokens", int),
    "expected_output_tokens": Option("tokens of an answer in the estimate", int),
    "alt_source": Option("caption source given as the alt text"),
    "draft_source": Option("caption source given as the short caption"),
    "image_resolution": Option("resolution of the image", str, ("low", "medium", "high")),
    "image_tokens": Option("tokens of an image in the estimate", int),
    "temperature": Option("default: the service's", float),
    "seed": Option("seed, sent with every request", int),
    "thinking": Option("amount of reasoning", str, ("minimal", "low", "medium", "high")),
    "source": Option("caption source under which the captions are stored"),
}
LIMITS: Mapping[str, Option] = {
    "requests_per_minute": Option("the account's limit", int),
    "tokens_per_minute": Option("the account's limit of input tokens", int),
    "max_in_flight": Option("concurrent requests", int),
    "timeout_s": Option("longest wait for an answer, in seconds", float),
    "longest_pause_s": Option("stop if the service asks for a longer pause", float),
    "max_attempts": Option("attempts of one request", int),
}
JOB: Mapping[str, Option] = {
    "max_failure_share": Option("stop if a larger share of the samples fails", float),
    "free_failures": Option("number of failures that never stops the job", int),
}
CLEANING: Mapping[str, Option] = {
    "max_characters": Option("longest caption", int),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of both captioners."""
    kinds = parser.add_subparsers(dest="captioner", required=True)
    paligemma = kinds.add_parser("paligemma", help="a transformers model on this machine")
    gemini = kinds.add_parser("gemini", help="Google's service; costs money")
    for kind in (paligemma, gemini):
        kind.add_argument("--shards", type=Path, required=True, help="folder of .tar files, or one")
        kind.add_argument("--output", type=Path, required=True, help="folder to write to")
        kind.add_argument("--estimate", action="store_true", help="print an estimate and stop")
    add_options(paligemma, PALIGEMMA, JOB, CLEANING)
    add_options(gemini, GEMINI, LIMITS, JOB, CLEANING)
    gemini.add_argument("--input-price", type=float, help="US dollars per million input tokens")
    gemini.add_argument("--output-price", type=float, help="US dollars per million output tokens")
    gemini.add_argument("--price-date", help="date of these prices, as YYYY-MM-DD")
    gemini.add_argument(
        "--max-cost", type=float, help="limit in US dollars for all runs of the job"
    )
    gemini.add_argument("--yes", action="store_true", help="agree to the cost without a question")
    gemini.add_argument("--api-key-file", type=Path, help="file with the key (else a variable)")
    gemini.add_argument("--base-url", help="other URL of the service, such as a proxy")


def run(options: argparse.Namespace) -> None:
    """Caption, or print an estimate.

    Raises:
        ValueError: A setting is wrong, the cost has no consent, or the job stopped.
        FileNotFoundError: There are no shards, no checkpoint or no key file.
    """
    {"paligemma": _paligemma, "gemini": _gemini}[options.captioner](options)


def add_options(parser: argparse.ArgumentParser, *tables: Mapping[str, Option]) -> None:
    """Declare an option for each setting of some tables."""
    for table in tables:
        for name, option in table.items():
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=option.type,
                choices=option.choices,
                help=option.help,
                default=None,
            )


def given(options: argparse.Namespace, table: Mapping[str, Option]) -> dict[str, Any]:
    """The settings of a table that are given on the command line."""
    values = {name: getattr(options, name) for name in table}
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def progress_bar(
    name: str, *, console: Console, price: Price | None = None
) -> Iterator[Callable[[JobProgress], None]]:
    """Show a progress bar while the block runs; yields the job's progress callback."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(f"{name}: shards", total=None, detail="")

        def show(progress: JobProgress) -> None:
            bar.update(
                task,
                completed=progress.done,
                total=progress.shards,
                detail=describe(progress, price),
            )

        yield show


def describe(progress: JobProgress, price: Price | None = None) -> str:
    """A job's progress as text: "1,200 captions, 3 failed, $0.41"."""
    total = progress.total
    parts = [f"{total.captioned:,} captions", f"{len(total.failures):,} failed"]
    if total.already:
        parts.append(f"{total.already:,} already captioned")
    if price is not None:
        parts.append(f"${price.of(total.usage):,.2f}")
    if progress.busy:
        parts.append(f"{progress.busy} shards in work by other processes")
    return ", ".join(parts)


def _paligemma(options: argparse.Namespace) -> None:
    job = _job_config(options)
    config = PaliGemmaConfig(**given(options, PALIGEMMA))
    captioner = PaliGemmaCaptioner.load(config)
    if options.estimate:
        _print_duration(job, captioner, batch_size=config.batch_size)
        return
    _run(job, captioner)


def _print_duration(job: JobConfig, captioner: Captioner, *, batch_size: int) -> None:
    """Time a second batch after a warm-up batch; no caption is kept."""
    pending = pending_samples(job, captioner.source)
    first = list(islice(pending, 2 * batch_size))
    count = len(first) + sum(1 for _ in pending)
    print(f"{count:,} images to caption")
    for batch in (first[:batch_size], first[batch_size:] or first):
        start_s = time.perf_counter()
        list(captioner.caption(batch))
        per_image_s = (time.perf_counter() - start_s) / max(len(batch), 1)
    print(f"{per_image_s:.3g} s per image here, {count * per_image_s / 3600:.3g} hours")


def _gemini(options: argparse.Namespace) -> None:
    job = _job_config(options, price=_price(options), max_cost_usd=options.max_cost)
    assert job.price is not None
    config = GeminiConfig(**given(options, GEMINI))
    limits = GeminiLimits(**given(options, LIMITS))
    estimate = estimate_cost(pending_samples(job, config.source), config, job.price)
    print(estimate)
    if options.estimate:
        return
    gemini = _gemini_module()
    key = read_api_key(options.api_key_file, os.environ)
    ask_consent(
        estimate,
        spent_usd=job.price.of(earlier_usage(job)),
        max_cost_usd=options.max_cost,
        is_agreed=options.yes,
        confirm=_confirm if sys.stdin.isatty() else None,
    )
    with gemini.open_client(key, limits, base_url=options.base_url) as client:
        _run(job, gemini.GeminiCaptioner(config, limits, client))


def _price(options: argparse.Namespace) -> Price:
    """The given prices, or the built-in ones for the default model."""
    prices = (options.input_price, options.output_price)
    if None not in prices:
        date = options.price_date or "a date not given"
        return Price(input_usd=prices[0], output_usd=prices[1], as_of=date)
    if prices != (None, None) or options.model not in (None, GeminiConfig().model):
        raise ValueError(
            f"give both --input-price and --output-price; the built-in prices are for "
            f"{GeminiConfig().model} ({PRICE.as_of})"
        )
    return PRICE


def _confirm() -> bool:
    return Confirm.ask("Continue?", default=False)


def _gemini_module() -> ModuleType:
    """Import Google's client only if it is used; it is an optional dependency."""
    try:
        return importlib.import_module("training.captioning.gemini")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; captions by Gemini need the extra `captions`: "
            "pip install 'tipserve[captions]'"
        ) from error


def _job_config(
    options: argparse.Namespace, *, price: Price | None = None, max_cost_usd: float | None = None
) -> JobConfig:
    return JobConfig(
        shards=options.shards,
        output=options.output,
        cleaning=CleaningConfig(**given(options, CLEANING)),
        price=price,
        max_cost_usd=max_cost_usd,
        **given(options, JOB),
    )


def _run(job: JobConfig, captioner: Captioner) -> None:
    """Caption; once all shards are finished, index them for training."""
    with progress_bar(
        captioner.source, console=Console(stderr=True), price=job.price
    ) as on_progress:
        progress = CaptionJob(job, captioner, on_progress=on_progress).run()
    print(f"{describe(progress, job.price)}; the shards are in {job.output}")
    if progress.done == progress.shards:
        index_shards(job.output, BrokenList())
        print(describe_folder(job.output))
