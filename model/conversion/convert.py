"""Convert checkpoints on this machine into a model package."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import JsonValue

from model.conversion.errors import CONVERTING, CacheError, ConversionError, require
from model.conversion.hub import fetch
from model.conversion.source import CheckpointSource, HubSource
from model.graphs import DENSE_TASKS, DepthActivation, ExportPrecision, graph_file
from model.manifest import CARD, MANIFEST_NAME, PUBLISHED_ZERO_SHOT, Manifest
from model.package import ModelPackage, Progress, open_package

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Checkpoint

# In the front matter of a model card.
FRONT_LICENCE: Final = re.compile(r"---[ \t]*\n(?:(?!---).*\n)*?license:(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRequest:
    """A package to be made.

    Attributes:
        base: The model; pinned to a commit before it is converted.
        dense: Its dense heads, if any; likewise.
        precisions: Precisions of the graphs; `fp32` is among them.
        may_fail: Those of them that are left out if they differ from the model.
        name: Name of the model for clients; None for the name of the source.
        depth_activation: Of the last layer of the depth head; None for what its checkpoint says.
        is_thorough: Compare the graphs on all sizes; not in the cache key.
        provenance: Where the checkpoints came from; filled in by preparing.
    """

    base: CheckpointSource
    dense: CheckpointSource | None = None
    precisions: Sequence[ExportPrecision] = ("fp32",)
    may_fail: Sequence[ExportPrecision] = ()
    name: str | None = None
    depth_activation: DepthActivation | None = None
    is_thorough: bool = False
    provenance: dict[str, JsonValue] = field(default_factory=dict)


def convert(request: ConversionRequest, output: Path, progress: Progress) -> ModelPackage:
    """Read the checkpoint, export, compare and write; the folder appears whole or not at all.

    Args:
        request: Its sources are folders, or commits on the hub.
        output: The package's folder; absent, empty, or an older package.
        progress: Called with each step.

    Raises:
        ValueError: A library or a source is missing, a checkpoint is broken or not supported, a
            graph differs from the model, or the folder cannot be written.
    """
    require(CONVERTING, purpose="converting a checkpoint")
    base = _local(request.base, progress)
    dense = None if request.dense is None else _local(request.dense, progress)
    progress("importing the libraries for conversion")
    # These come with an extra, and take seconds.
    from safetensors import SafetensorError  # noqa: PLC0415

    from model.checkpoints.read import read_checkpoint  # noqa: PLC0415
    from model.encoder import LOADERS, load_encoder, saved_kind  # noqa: PLC0415
    from model.export.graph_writer import PackageContent, draft_manifest  # noqa: PLC0415
    from model.export.package_writer import write_package  # noqa: PLC0415

    progress(f"reading the weights in {base}")
    earlier, precisions = _earlier_package(base, dense), tuple(request.precisions)
    # What `Encoder.save` wrote has one layout, the checkpoints of a Tipsv2Model have several.
    is_saved = earlier is not None or saved_kind(base) in LOADERS.keys() - {"tipsv2"}
    checkpoint = None
    if not is_saved or dense is not None:
        last = request.depth_activation or _recorded_activation(earlier)
        checkpoint = read_checkpoint(base, dense=dense, depth_activation=last)
    encoder = load_encoder(base) if checkpoint is None else checkpoint.encoder
    heads = None if checkpoint is None else checkpoint.dense
    name = request.name or request.base.name
    draft = draft_manifest(encoder, name=name, dense=heads)
    if earlier is not None:
        precisions = tuple(dict.fromkeys((*_precisions(earlier.manifest), *precisions)))
        # These entries do not follow from the weights.
        kept = ("variant", "licence", "provenance", "zero_shot", "scores")
        described = {name: getattr(earlier.manifest, name) for name in kept}
        described["provenance"] = _with_heads(earlier.manifest.provenance, checkpoint)
        card = earlier.file(CARD).read_text(encoding="utf-8")
    else:
        described = _described(checkpoint, base, request)
        card = _card(name, request.provenance, described["licence"])
    content = PackageContent(
        encoder=encoder,
        dense=heads,
        precisions=precisions,
        may_fail=tuple(request.may_fail),
        draft=draft.model_copy(update=described),
        card=card,
    )
    try:
        return write_package(content, output, is_thorough=request.is_thorough, progress=progress)
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"{output} cannot be written ({error}); make room on its disk and in "
            f"{tempfile.gettempdir()}, or name another folder"
        ) from error


def _described(
    checkpoint: "Checkpoint | None", base: Path, request: ConversionRequest
) -> dict[str, Any]:
    """Entries of the manifest that the weights do not give; without a checkpoint fewer."""
    origin: dict[str, JsonValue] = {"converted_by": _versions()}
    described: dict[str, Any] = {"licence": licence_of(base) or "unknown"}
    if checkpoint is not None:
        origin = {"checkpoint": checkpoint.origin, **origin}
        described |= {"variant": checkpoint.variant, "zero_shot": PUBLISHED_ZERO_SHOT}
    return {**described, "provenance": {**request.provenance, **origin}}


def _recorded_activation(earlier: ModelPackage | None) -> DepthActivation | None:
    """What the depth head of a package was converted with, so that new graphs compute the same."""
    origin = None if earlier is None else earlier.manifest.provenance.get("checkpoint")
    heads = origin.get("dense") if isinstance(origin, dict) else None
    found = heads.get("depth_activation") if isinstance(heads, dict) else None
    return next((known for known in get_args(DepthActivation) if known == found), None)


def _with_heads(
    provenance: Mapping[str, JsonValue], checkpoint: "Checkpoint | None"
) -> dict[str, JsonValue]:
    """The provenance of a package, with the heads if they are converted from a checkpoint."""
    if checkpoint is None:
        return dict(provenance)
    origin = provenance.get("checkpoint")
    known = origin if isinstance(origin, dict) else {}
    return {**provenance, "checkpoint": {**known, "dense": checkpoint.origin["dense"]}}


def _local(source: CheckpointSource, progress: Progress) -> Path:
    """The folder of a source on this machine, downloaded if it is on the hub."""
    return fetch(source, progress) if isinstance(source, HubSource) else source.path


def _earlier_package(base: Path, dense: Path | None) -> ModelPackage | None:
    """The package that gets further precisions; None if a checkpoint is converted."""
    if not (base / MANIFEST_NAME).is_file():
        return None
    package = open_package(base)
    if set(DENSE_TASKS) & set(package.manifest.outputs) and dense is None:
        raise ConversionError(
            f"{base} has dense heads as graphs only, which cannot be exported again; name it with "
            "their checkpoint, as package+heads"
        )
    return package


def _precisions(manifest: Manifest) -> list[ExportPrecision]:
    """Precisions of a package's graphs that can be exported again."""
    known: tuple[ExportPrecision, ...] = get_args(ExportPrecision)
    return [precision for precision in known if graph_file("vision", precision) in manifest.files]


def licence_of(folder: Path) -> str | None:
    """Read the licence from the front matter of a folder's model card."""
    try:
        card = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = FRONT_LICENCE.match(card)
    return (found[1].strip(" \t\"'") or None) if found else None


def _card(name: str, provenance: dict[str, JsonValue], licence: str) -> str:
    sources = ", ".join(
        f"{name}.{key}: `{value}`"
        for name, source in provenance.items()
        if isinstance(source, dict)
        for key, value in source.items()
    )
    return (
        f"# {name}\n\n"
        "Converted by tipserve from released weights, which are unchanged. The graphs were "
        "exported and compared with the model in float32.\n\n"
        "A server decodes large JPEG images at a reduced size (`jpeg_decode=fast`): patches of a "
        "photograph of 6 megapixels differ from the model's by up to 0.025, at a cosine of 0.9999. "
        "`jpeg_decode=exact` decodes as the released code does.\n\n"
        f"Source: {sources}. Licence of the weights: {licence}."
    )


def _versions() -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for name in ("tipserve", *CONVERTING):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
