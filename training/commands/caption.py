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
from training.captioning.gemini import read_api_key
from training.captioning.gemini_config import PRICE, GeminiConfig, GeminiLimits, estimate_cost
from training.captioning.job import (
    Captioner,
    CaptionJob,
    CleaningConfig,
    JobConfig,
    Progress,
    ask_consent,
    earlier_usage,
    pending_samples,
)
from training.captioning.paligemma import PaliGemmaCaptioner, PaliGemmaConfig
from training.data.shards.image_folder import describe_folder
from training.data.shards.manifest import index_shards
from training.data.shards.sample import BrokenList


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line says of one setting."""

    help: str
    type: type = str
    choices: tuple[str, ...] | None = None


PALIGEMMA: Mapping[str, Option] = {
    "model": Option("folder or hub name of a checkpoint with its processor"),
    "prompt": Option("what the model is asked"),
    "max_tokens": Option("longest answer", int),
    "temperature": Option("0 takes the likeliest token; above it, tokens are drawn", float),
    "seed": Option("of the draws", int),
    "batch_size": Option("images at a time", int),
    "precision": Option("of weights and activations", str, ("auto", "bfloat16", "float32")),
    "device": Option('"auto", "cpu", "cuda", "cuda:1", ...'),
    "source": Option("what the captions are called"),
}
GEMINI: Mapping[str, Option] = {
    "model": Option("the service's name of the model"),
    "prompt": Option("what is asked; {words} becomes the number of words"),
    "max_words": Option("what the prompt asks for", int),
    "max_output_tokens": Option("where the service cuts an answer", int),
    "expected_output_tokens": Option("an answer's length in the estimate", int),
    "alt_source": Option("caption source given as the alt text"),
    "draft_source": Option("caption source given as the short caption"),
    "image_resolution": Option("how finely it looks", str, ("low", "medium", "high")),
    "image_tokens": Option("what an image is counted with in the estimate", int),
    "temperature": Option("left to the service where not given", float),
    "seed": Option("sent with every request", int),
    "thinking": Option("how long it reasons", str, ("minimal", "low", "medium", "high")),
    "source": Option("what the captions are called"),
}
LIMITS: Mapping[str, Option] = {
    "requests_per_minute": Option("the account's limit", int),
    "tokens_per_minute": Option("the account's limit of input tokens", int),
    "max_in_flight": Option("requests at a time", int),
    "timeout_s": Option("when an answer counts as lost", float),
    "longest_pause_s": Option("stop when the service asks for a longer pause", float),
    "max_attempts": Option("tries of one request", int),
}
JOB: Mapping[str, Option] = {
    "max_failure_share": Option("stop when more of the samples fail", float),
    "free_failures": Option("this many failures never stop the job", int),
}
CLEANING: Mapping[str, Option] = {
    "max_characters": Option("where a caption is cut", int),
}


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
    """Return those settings of a table that the command line gives."""
    values = {name: getattr(options, name) for name in table}
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def progress_bar(
    name: str, *, console: Console, price: Price | None = None
) -> Iterator[Callable[[Progress], None]]:
    """Show a bar while the block runs; yields what a job reports to."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(f"{name}: shards", total=None, detail="")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                completed=progress.done,
                total=progress.shards,
                detail=describe(progress, price),
            )

        yield show


def describe(progress: Progress, price: Price | None = None) -> str:
    """Put a job's state into words: "1,200 captions, 3 failed, $0.41"."""
    total = progress.total
    parts = [f"{total.captioned:,} captions", f"{len(total.failures):,} failed"]
    if total.already:
        parts.append(f"{total.already:,} had one")
    if price is not None:
        parts.append(f"${price.of(total.usage):,.2f}")
    if progress.busy:
        parts.append(f"{progress.busy} shards are another process's")
    return ", ".join(parts)


HELP = "Caption the images of shards with PaliGemma or Gemini."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of both captioners."""
    kinds = parser.add_subparsers(dest="captioner", required=True)
    paligemma = kinds.add_parser("paligemma", help="a transformers model on this machine")
    gemini = kinds.add_parser("gemini", help="Google's service; costs money")
    for kind in (paligemma, gemini):
        kind.add_argument("--shards", type=Path, required=True, help="folder of .tar files, or one")
        kind.add_argument("--output", type=Path, required=True, help="folder to write to")
        kind.add_argument("--estimate", action="store_true", help="say what it takes, and stop")
    add_options(paligemma, PALIGEMMA, JOB, CLEANING)
    add_options(gemini, GEMINI, LIMITS, JOB, CLEANING)
    gemini.add_argument("--input-price", type=float, help="US dollars for a million input tokens")
    gemini.add_argument("--output-price", type=float, help="US dollars for a million output tokens")
    gemini.add_argument("--price-date", help="when these prices were read, as YYYY-MM-DD")
    gemini.add_argument("--max-cost", type=float, help="US dollars that all its runs may cost")
    gemini.add_argument("--yes", action="store_true", help="agree to the cost without being asked")
    gemini.add_argument("--api-key-file", type=Path, help="holds the key, if no variable does")
    gemini.add_argument("--base-url", help="another address of the service, such as a proxy")


def run(options: argparse.Namespace) -> None:
    """Caption, or say what captioning would take.

    Raises:
        ValueError: A setting is wrong, nobody agreed to the cost, or the job stopped itself.
        FileNotFoundError: There are no shards, no checkpoint or no key file.
    """
    {"paligemma": _paligemma, "gemini": _gemini}[options.captioner](options)


def _paligemma(options: argparse.Namespace) -> None:
    job = _job_config(options)
    config = PaliGemmaConfig(**given(options, PALIGEMMA))
    captioner = PaliGemmaCaptioner.load(config)
    if options.estimate:
        _print_duration(job, captioner, batch_size=config.batch_size)
        return
    _run(job, captioner)


def _print_duration(job: JobConfig, captioner: Captioner, *, batch_size: int) -> None:
    """Caption a second batch, after one that warms up, and keep none of it."""
    pending = pending_samples(job, captioner.source)
    first = list(islice(pending, 2 * batch_size))
    count = len(first) + sum(1 for _ in pending)
    print(f"{count:,} images to caption")
    for batch in (first[:batch_size], first[batch_size:] or first):
        start_s = time.perf_counter()
        list(captioner.caption(batch))
        per_image_s = (time.perf_counter() - start_s) / max(len(batch), 1)
    print(f"{per_image_s:.3g} s an image here, {count * per_image_s / 3600:.3g} hours")


def _gemini(options: argparse.Namespace) -> None:
    job = _job_config(options, price=_price(options), max_cost_usd=options.max_cost)
    assert job.price is not None
    config = GeminiConfig(**given(options, GEMINI))
    limits = GeminiLimits(**given(options, LIMITS))
    estimate = estimate_cost(pending_samples(job, config.source), config, job.price)
    print(estimate)
    if options.estimate:
        return
    client = _client_module()
    key = read_api_key(options.api_key_file, os.environ)
    ask_consent(
        estimate,
        spent_usd=job.price.of(earlier_usage(job)),
        max_cost_usd=options.max_cost,
        is_agreed=options.yes,
        confirm=_confirm if sys.stdin.isatty() else None,
    )
    with client.open_captioner(config, limits, key, base_url=options.base_url) as captioner:
        _run(job, captioner)


def _price(options: argparse.Namespace) -> Price:
    """Take the price list that was given, or the built-in one where it fits the model."""
    prices = (options.input_price, options.output_price)
    if None not in prices:
        date = options.price_date or "a date not given"
        return Price(input_usd=prices[0], output_usd=prices[1], as_of=date)
    if prices != (None, None) or options.model not in (None, GeminiConfig().model):
        raise ValueError(
            f"give both --input-price and --output-price; the prices here are for "
            f"{GeminiConfig().model}, read on {PRICE.as_of}"
        )
    return PRICE


def _confirm() -> bool:
    return Confirm.ask("Go on?", default=False)


def _client_module() -> ModuleType:
    """Import what needs Google's client only where it is used; it is an extra."""
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
    """Caption; when no shard is left to do, index them all, so that training can read them."""
    with progress_bar(
        captioner.source, console=Console(stderr=True), price=job.price
    ) as on_progress:
        progress = CaptionJob(job, captioner, on_progress=on_progress).run()
    print(f"{describe(progress, job.price)}; the shards are in {job.output}")
    if progress.done == progress.shards:
        index_shards(job.output, BrokenList())
        print("\n".join(describe_folder(job.output)))
