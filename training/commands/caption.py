"""`python -m training caption paligemma|gemini`: write shards with one more caption a sample."""

import argparse
import importlib
import os
import sys
import time
from itertools import islice
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.prompt import Confirm

from training.captioning.api_key import read_api_key
from training.captioning.cleaning import CleaningConfig
from training.captioning.consent import ask_consent
from training.captioning.cost import Price
from training.captioning.gemini_config import PRICE, GeminiConfig, GeminiLimits, estimate_cost
from training.captioning.job import Captioner, CaptionJob, JobConfig
from training.captioning.options import (
    CLEANING,
    GEMINI,
    JOB,
    LIMITS,
    PALIGEMMA,
    add_options,
    given,
)
from training.captioning.outlook import earlier_usage, pending_samples
from training.captioning.paligemma import PaliGemmaCaptioner, PaliGemmaConfig
from training.captioning.progress_bar import describe, progress_bar
from training.data.shards.broken import BrokenList
from training.data.shards.indexing import index_shards
from training.data.shards.opening import describe_folder

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
