"""`python -m training caption paligemma|gemini`: add a caption to every sample of some shards."""

import argparse
import importlib
import os
from dataclasses import fields
from pathlib import Path

from training.captioning.gemini_config import GeminiConfig, read_api_key
from training.captioning.job import Captioner, CaptionJob
from training.captioning.paligemma import PaliGemmaCaptioner, PaliGemmaConfig
from training.data.shards.image_folder import describe_folder
from training.data.shards.manifest import index_shards
from training.data.shards.sample import BrokenList
from training.overrides import apply_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of both captioners."""
    kinds = parser.add_subparsers(dest="captioner", required=True)
    paligemma = kinds.add_parser("paligemma", help="a transformers model on this machine")
    gemini = kinds.add_parser("gemini", help="Google's service, in batches; costs money")
    for kind, config in ((paligemma, PaliGemmaConfig), (gemini, GeminiConfig)):
        kind.add_argument("--shards", type=Path, required=True, help="folder of shards")
        kind.add_argument("--output", type=Path, required=True, help="folder to write to")
        kind.add_argument("--model", help="checkpoint's folder or name, or the service's name")
        kind.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="overrides",
            help=f"change a setting: {', '.join(item.name for item in fields(config))}",
        )
    paligemma.add_argument("--batch-size", type=int, help="images per batch (default 16)")
    gemini.add_argument("--api-key-file", type=Path, help="file with the key (else a variable)")
    gemini.add_argument("--base-url", help="other URL of the service, such as a proxy")


def run(options: argparse.Namespace) -> None:
    """Caption; then index the shards for training.

    Raises:
        ValueError: A setting is wrong, or the job stopped.
        FileNotFoundError: There are no shards, no checkpoint or no key file.
    """
    job = CaptionJob(shards=options.shards, output=options.output)
    summary = job.run({"paligemma": _paligemma, "gemini": _gemini}[options.captioner](options))
    print(f"{summary}; the shards are in {job.output}")
    index_shards(job.output, BrokenList())
    print(describe_folder(job.output))


def _lines(options: argparse.Namespace, *names: str) -> list[str]:
    """Lines of `--set`, after those of some options that are given."""
    given = [(name, getattr(options, name)) for name in names]
    return [*(f"{name}={value}" for name, value in given if value is not None), *options.overrides]


def _paligemma(options: argparse.Namespace) -> Captioner:
    lines = _lines(options, "model", "batch_size")
    return PaliGemmaCaptioner.load(apply_overrides(PaliGemmaConfig(), lines))


def _gemini(options: argparse.Namespace) -> Captioner:
    config = apply_overrides(GeminiConfig(), _lines(options, "model"))
    key = read_api_key(options.api_key_file, os.environ)
    try:
        gemini = importlib.import_module("training.captioning.gemini")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; captions by Gemini need the extra `captions`: "
            "pip install 'tipserve[captions]'"
        ) from error
    client = gemini.open_client(key, base_url=options.base_url)
    captioner: Captioner = gemini.GeminiCaptioner(config, client)
    return captioner
