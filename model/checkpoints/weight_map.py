"""Collects a module's tensors from an archive that calls and stores them otherwise, all or none."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoints.array_archive import ArrayArchive
from model.checkpoints.checkpoint import CheckpointError, name_some

Change = Callable[[Tensor], Tensor]


def as_stored(tensor: Tensor) -> Tensor:
    """Change nothing."""
    return tensor


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor of ours comes from: the archive's name, and how to get ours from its array."""

    name: str
    change: Change = as_stored


def gather(
    archive: ArrayArchive,
    sources: Mapping[str, Source],
    shapes: Mapping[str, torch.Size],
) -> dict[str, Tensor]:
    """Read every tensor once, after all names and shapes were found right.

    One array is in memory beside the result at a time.

    Args:
        archive: Holds exactly what `sources` names.
        sources: By our name.
        shapes: What each of ours must have.

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
        found += [f"has {name_some(extra)} that belong nowhere"] if extra else []
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
