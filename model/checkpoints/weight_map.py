"""Load weights of other layouts into a model by name, shape and dtype."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from model.checkpoints.array_archive import ArrayArchive
from model.checkpoints.checkpoint import CheckpointError, name_some

Change = Callable[[Tensor], Tensor]
Model = TypeVar("Model", bound=PreTrainedModel)


def as_stored(tensor: Tensor) -> Tensor:
    """Return the tensor unchanged."""
    return tensor


@dataclass(frozen=True, slots=True)
class Source:
    """Name of a tensor's array in the archive, and how to convert it."""

    name: str
    change: Change = as_stored


def gather(
    archive: ArrayArchive,
    sources: Mapping[str, Source],
    shapes: Mapping[str, torch.Size],
) -> dict[str, Tensor]:
    """Check all names and shapes, then read every array once.

    At most one array is in memory in addition to the result.

    Args:
        archive: Archive that holds exactly the arrays of `sources`.
        sources: Source of each tensor of the model.
        shapes: Required shape of each tensor of the model.

    Raises:
        CheckpointError: An array is missing, left over, of a wrong shape, damaged or not finite.
    """
    _check_names(archive, {source.name for source in sources.values()})
    ours: dict[str, list[str]] = defaultdict(list)
    for name, source in sources.items():
        _check_shape(archive, source, shapes[name])
        ours[source.name].append(name)
    tensors: dict[str, Tensor] = {}
    for stored, names in ours.items():
        array = archive.read(stored)
        for name in names:
            tensors[name] = sources[name].change(array).clone(memory_format=torch.contiguous_format)
    return tensors


def _check_names(archive: ArrayArchive, wanted: set[str]) -> None:
    missing, extra = wanted - archive.shapes.keys(), archive.shapes.keys() - wanted
    if missing or extra:
        found = [f"lacks {name_some(missing)}"] if missing else []
        found += [f"has {name_some(extra)} that the model does not have"] if extra else []
        raise CheckpointError(
            f"{archive.path} {' and '.join(found)}; it is incomplete, or of another model than its "
            "sizes say: use the file as it was released"
        )


def _check_shape(archive: ArrayArchive, source: Source, expected: torch.Size) -> None:
    stored = archive.shapes[source.name]
    try:
        actual = source.change(torch.empty(stored, device="meta")).shape
    except (RuntimeError, IndexError):
        actual = None
    if actual != expected:
        raise CheckpointError(
            f"{archive.path} has {source.name!r} with shape {stored}, which cannot become the "
            f"{tuple(expected)} that a model of its sizes has there; use the file as "
            "it was released"
        )


def load_weights(
    kind: type[Model], source: Path | Mapping[str, Tensor], config: PretrainedConfig
) -> tuple[Model, dict[str, Any]]:
    """Load a model from a folder of safetensors, memory-mapped if float32, or from tensors.

    Returns:
        The model in float32 and evaluation mode, and the names that were missing, left over or of
        another shape.
    """
    folder: Path | None = None
    options: dict[str, Any]
    if isinstance(source, Path):
        folder, options = source, {"ignore_mismatched_sizes": True}
    else:
        options = {"state_dict": dict(source)}
    # transformers' types lack the tuple that `output_loading_info` returns.
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
    """Hide progress bars and warnings of transformers; our errors report the same problems."""
    had_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
