"""`python -m training caption paligemma|gemini`: add a caption to every sample of some shards.

Defaults are in the settings classes; an option that is not given keeps its setting's default.
"""

import argparse
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.captioning.gemini_config import GeminiConfig, read_api_key
from training.captioning.job import Captioner, CaptionJob
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
    "alt_source": Option("caption source given as the alt text"),
    "draft_source": Option("caption source given as the short caption"),
    "image_resolution": Option("resolution of the image", str, ("low", "medium", "high")),
    "temperature": Option("default: the service's", float),
    "seed": Option("seed, sent with every request", int),
    "thinking": Option("amount of reasoning", str, ("minimal", "low", "medium", "high")),
    "source": Option("caption source under which the captions are stored"),
}
JOB: Mapping[str, Option] = {"max_characters": Option("longest caption", int)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of both captioners."""
    kinds = parser.add_subparsers(dest="captioner", required=True)
    paligemma = kinds.add_parser("paligemma", help="a transformers model on this machine")
    gemini = kinds.add_parser("gemini", help="Google's service, in batches; costs money")
    for kind in (paligemma, gemini):
        kind.add_argument("--shards", type=Path, required=True, help="folder of .tar files, or one")
        kind.add_argument("--output", type=Path, required=True, help="folder to write to")
    _add_options(paligemma, PALIGEMMA, JOB)
    _add_options(gemini, GEMINI, JOB)
    gemini.add_argument("--api-key-file", type=Path, help="file with the key (else a variable)")
    gemini.add_argument("--base-url", help="other URL of the service, such as a proxy")


def run(options: argparse.Namespace) -> None:
    """Caption; then index the shards for training.

    Raises:
        ValueError: A setting is wrong, or the job stopped.
        FileNotFoundError: There are no shards, no checkpoint or no key file.
    """
    job = CaptionJob(shards=options.shards, output=options.output, **_given(options, JOB))
    summary = job.run({"paligemma": _paligemma, "gemini": _gemini}[options.captioner](options))
    print(f"{summary}; the shards are in {job.output}")
    index_shards(job.output, BrokenList())
    print(describe_folder(job.output))


def _add_options(parser: argparse.ArgumentParser, *tables: Mapping[str, Option]) -> None:
    for table in tables:
        for name, option in table.items():
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, type=option.type, choices=option.choices, help=option.help)


def _given(options: argparse.Namespace, table: Mapping[str, Option]) -> dict[str, Any]:
    """The settings of a table that are given on the command line."""
    values = {name: getattr(options, name) for name in table}
    return {name: value for name, value in values.items() if value is not None}


def _paligemma(options: argparse.Namespace) -> Captioner:
    return PaliGemmaCaptioner.load(PaliGemmaConfig(**_given(options, PALIGEMMA)))


def _gemini(options: argparse.Namespace) -> Captioner:
    config = GeminiConfig(**_given(options, GEMINI))
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
