"""Turns checkpoints on this machine into a model package."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import JsonValue

from model.conversion.cache import Progress, check_space, weight_bytes
from model.conversion.errors import CONVERTING, CacheError, ConversionError, require
from model.graphs import DENSE_TASKS, Precision, graph_file
from model.manifest import MANIFEST_NAME, Manifest
from model.package import ModelPackage, open_package

# The package's own weights, its graphs in float32, and what else is written on the way.
SPACE_FACTOR: Final = 3
# The graphs in each further precision, at most.
FURTHER_FACTOR: Final = 0.5
FRONT_MATTER: Final = "---"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a package is made of and called.

    Attributes:
        base: Folder of the model's checkpoint.
        dense: Folder or file of dense heads, if any.
        name: The model's name for clients.
        precisions: Of the graphs; `fp32` is among them.
        provenance: Where the checkpoints came from.
    """

    base: Path
    dense: Path | None
    name: str
    precisions: Sequence[Precision]
    provenance: dict[str, JsonValue]


def convert(recipe: Recipe, output: Path, progress: Progress) -> ModelPackage:
    """Read, export, prove and write; the folder appears whole or not at all.

    Args:
        recipe: What goes into it.
        output: The package's folder; absent, empty, or an older package.
        progress: Told of each step.

    Raises:
        MissingExtraError: torch and its like are not installed.
        CheckpointError: A checkpoint is broken, or not one of ours.
        ParityError: A graph differs from the model.
        CacheError: There is too little room, or the folder cannot be written.
        ValueError: `output` holds something else.
    """
    require(CONVERTING, purpose="converting a checkpoint")
    check_space(output.parent, _needed_bytes(recipe))
    progress("loading what converts")
    # An extra, and seconds to import.
    from safetensors import SafetensorError  # noqa: PLC0415

    from model.checkpoints.read import read_checkpoint  # noqa: PLC0415
    from model.export.graph_writer import draft_manifest  # noqa: PLC0415
    from model.export.package_writer import PackageContent, author_text, render_card, write_package  # noqa: PLC0415  # noqa: PLC0415

    progress(f"reading the weights in {recipe.base}")
    checkpoint = read_checkpoint(recipe.base, dense=recipe.dense)
    lacking = set(DENSE_TASKS) - set(checkpoint.dense_tasks)
    if checkpoint.dense is not None and lacking:
        raise ConversionError(
            f"{recipe.dense} has no heads for {', '.join(sorted(lacking))}; a package has all "
            "three or none: put the zips of all three into one folder, and name that"
        )
    draft = draft_manifest(
        checkpoint.model, name=recipe.name, has_dense_heads=checkpoint.dense is not None
    )
    earlier, precisions = _earlier_package(recipe), tuple(recipe.precisions)
    if earlier is not None:
        precisions = tuple(dict.fromkeys((*_precisions(earlier.manifest), *precisions)))
        described = _as_before(earlier.manifest)
        card = author_text(earlier.file("README.md").read_text(encoding="utf-8"))
    else:
        licence = licence_of(recipe.base) or "unknown"
        origin = {"checkpoint": checkpoint.origin, "converted_by": _versions()}
        provenance = {**recipe.provenance, **origin}
        described = {"variant": checkpoint.variant, "licence": licence, "provenance": provenance}
        card = _card(recipe, licence)
    content = PackageContent(
        model=checkpoint.model,
        tokenizer=checkpoint.tokenizer,
        dense=checkpoint.dense,
        precisions=precisions,
        draft=draft.model_copy(update=described),
        render_card=partial(render_card, card),
    )
    try:
        return write_package(content, output, progress=progress)
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"{output} cannot be written ({error}); make room on its disk and in "
            f"{tempfile.gettempdir()}, or name another folder"
        ) from error


def _needed_bytes(recipe: Recipe) -> int:
    """About what a package takes while it is written."""
    weights = sum(weight_bytes(path) for path in (recipe.base, recipe.dense) if path)
    num_further = len(set(recipe.precisions) - {"fp32"})
    return int((SPACE_FACTOR + FURTHER_FACTOR * num_further) * weights)


def _earlier_package(recipe: Recipe) -> ModelPackage | None:
    """The package that gets further precisions; None where a checkpoint is converted."""
    if not (recipe.base / MANIFEST_NAME).is_file():
        return None
    package = open_package(recipe.base)
    if set(DENSE_TASKS) & set(package.manifest.outputs) and recipe.dense is None:
        raise ConversionError(
            f"{recipe.base} has dense heads as graphs alone, which cannot be exported again; name "
            "the checkpoint that they came from with --dense"
        )
    return package


def _precisions(manifest: Manifest) -> list[Precision]:
    """Those that a package has graphs in."""
    known: tuple[Precision, ...] = get_args(Precision)
    return [precision for precision in known if graph_file("vision", precision) in manifest.files]


def _as_before(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says that the weights do not."""
    kept = ("variant", "licence", "provenance", "zero_shot", "scores")
    return {name: getattr(manifest, name) for name in kept}


def licence_of(folder: Path) -> str | None:
    """The licence that the front matter of a folder's card names, if it names one."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    if not lines or lines[0].strip() != FRONT_MATTER:
        return None
    for line in lines[1:]:
        if line.strip() == FRONT_MATTER:
            break
        key, _, value = line.partition(":")
        if key == "license" and (text := value.strip().strip("\"'")):
            return text
    return None


def _card(recipe: Recipe, licence: str) -> str:
    sources = ", ".join(f"{key}: `{value}`" for key, value in _flat(recipe.provenance))
    return (
        f"# {recipe.name}\n\n"
        "Converted by tipserve from released weights, which are unchanged; the graphs beside them "
        "were exported here and compared with the model in float32.\n\n"
        f"Made from {sources}. Licence of the weights: {licence}."
    )


def _flat(value: JsonValue, prefix: str = "") -> list[tuple[str, JsonValue]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    items = [_flat(inner, f"{prefix}.{key}".lstrip(".")) for key, inner in value.items()]
    return [item for inner in items for item in inner]


def _versions() -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for name in ("tipserve", *CONVERTING):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a distribution"
    return found


__all__ = ["ConversionError", "Recipe", "convert", "licence_of"]
