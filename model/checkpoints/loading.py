"""Calls transformers' loader so that it tells what it found, prints nothing and fetches nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

Model = TypeVar("Model", bound=PreTrainedModel)
Found = dict[str, Any]


def load_folder(kind: type[Model], folder: Path, config: PretrainedConfig) -> tuple[Model, Found]:
    """Load safetensors of a folder, mapped into memory where they need no change.

    Returns:
        The model in float32 and evaluation mode, and which names were missing, left over or of
        another shape.
    """
    return _load(kind, folder, config, ignore_mismatched_sizes=True)


def load_tensors(
    kind: type[Model], config: PretrainedConfig, tensors: Mapping[str, Tensor]
) -> tuple[Model, Found]:
    """Build a model that has these tensors themselves, without a copy; returns as above."""
    return _load(kind, None, config, state_dict=dict(tensors))


def _load(
    kind: type[Model], folder: Path | None, config: PretrainedConfig, **options: Any
) -> tuple[Model, Found]:
    # Typed for the usual call, which returns the model alone.
    from_pretrained: Any = kind.from_pretrained
    with _quiet():
        model, found = from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    return model, found


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor warnings: what these would say, our errors say, or it is as it should be."""
    had_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
