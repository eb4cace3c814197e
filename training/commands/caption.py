"""`python -m training caption paligemma|gemini`: add a caption to every sample of some shards."""

import importlib
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal, cast

from pydantic.dataclasses import dataclass

from model.installation import install
from training.captioning.gemini_config import GeminiConfig, read_api_key
from training.captioning.job import Captioner, CaptionJob
from training.captioning.paligemma import PaliGemmaCaptioner, PaliGemmaConfig
from training.data.shards.sample import BrokenList
from training.data.shards.store import describe_folder, index_shards
from training.options import argument, option
from training.settings import SETTING, apply_overrides


def _names(config: type[PaliGemmaConfig | GeminiConfig]) -> str:
    return ", ".join(item.name for item in fields(config))


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of both captioners."""

    captioner: Literal["paligemma", "gemini"] = argument(
        "a transformers model on this machine, or Google's service, in batches; costs money"
    )
    shards: Path = option("folder of shards")
    output: Path = option("folder to write to")
    model: str | None = option("checkpoint's folder or name, or the service's name", None)
    overrides: tuple[str, ...] = option(
        f"change a setting; of paligemma {_names(PaliGemmaConfig)}; of gemini "
        f"{_names(GeminiConfig)}",
        (),
        **SETTING,
    )
    batch_size: int | None = option("images per batch of PaliGemma (default 16)", None)
    api_key_file: Path | None = option("file with Gemini's key (else a variable)", None)
    base_url: str | None = option("other URL of Gemini's service, such as a proxy", None)

    def __post_init__(self) -> None:
        """Refuse options of the other captioner."""
        others = ("batch_size",) if self.captioner == "gemini" else ("api_key_file", "base_url")
        for name in others:
            if getattr(self, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is no option of {self.captioner}")


def run(options: Options) -> None:
    """Caption; then index the shards for training.

    Raises:
        ValueError: A setting is wrong, or the job stopped.
        FileNotFoundError: There are no shards, no checkpoint or no key file.
    """
    given = {"model": options.model, "batch_size": options.batch_size}
    lines = [f"{name}={value}" for name, value in given.items() if value is not None]
    lines += options.overrides
    if options.captioner == "paligemma":
        captioner: Captioner = PaliGemmaCaptioner.load(apply_overrides(PaliGemmaConfig(), lines))
    else:
        captioner = _gemini(options, lines)
    summary = CaptionJob(shards=options.shards, output=options.output).run(captioner)
    print(f"{summary}; the shards are in {options.output}")
    index_shards(options.output, BrokenList())
    print(describe_folder(options.output))


def _gemini(options: Options, lines: Sequence[str]) -> Captioner:
    config = apply_overrides(GeminiConfig(), lines)
    key = read_api_key(options.api_key_file, os.environ)
    try:
        gemini = importlib.import_module("training.captioning.gemini")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; captions by Gemini need {install('captions')}"
        ) from error
    client = gemini.open_client(key, base_url=options.base_url)
    return cast("Captioner", gemini.GeminiCaptioner(config, client))
