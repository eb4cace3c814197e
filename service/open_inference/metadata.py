"""What is told about the server and its models: names, versions, tensors, extensions."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from model.manifest import Output
from service.data_plane import DataPlane
from service.errors import ModelNotFound
from service.messages import ModelInfo
from service.open_inference.tensors import ANY, IMAGE, PIXEL_VALUES, PIXELS, TEXT, TensorSpec

SERVER_NAME: Final = "tipserve"
# A model is replaced and never kept beside its successor, so there is one version of each.
VERSION: Final = "1"
OUTPUTS: Final[Mapping[str, Output]] = {
    "patch_embeddings": "patches",
    "value_embeddings": "values",
    "cls1": "cls1",
    "cls2": "cls2",
    "text_embeddings": "text",
}
DENSE: Final = frozenset({"patches", "values"})
EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
)
MANAGEMENT: Final = ("model_repository", "model_repository(unload_dependents)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetadata:
    """Of the whole server."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """Of one model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def server_metadata(*, is_managed: bool) -> ServerMetadata:
    """What this server is, and what it can do beyond the protocol's core."""
    try:
        release = version("tipserve")
    except PackageNotFoundError:  # run from its source
        release = "0"
    extensions = EXTENSIONS + (MANAGEMENT if is_managed else ())
    return ServerMetadata(name=SERVER_NAME, version=release, extensions=tuple(sorted(extensions)))


def model_metadata(info: ModelInfo) -> ModelMetadata:
    """What a model takes and gives."""
    manifest = info.manifest
    has_text = "text" in manifest.outputs
    return ModelMetadata(
        name=manifest.name,
        versions=(VERSION,),
        platform=f"{SERVER_NAME}_{info.runtime}",
        backend=SERVER_NAME,
        inputs=(IMAGE, PIXELS, PIXEL_VALUES, *((TEXT,) if has_text else ())),
        outputs=tuple(
            TensorSpec(
                name, "FP32", (ANY, *((ANY, ANY) if ours in DENSE else ()), manifest.embed_dim)
            )
            for name, ours in OUTPUTS.items()
            if ours in manifest.outputs
        ),
    )


def find_model(plane: DataPlane, name: str, version: str) -> ModelInfo:
    """A served model by name and version; an empty name is the default, an empty version the one.

    Raises:
        Unavailable: The server is starting.
        ModelNotFound: There is no such model, or no such version of it.
    """
    info = plane.get_model(name or None)
    if version not in {"", VERSION}:
        raise ModelNotFound(
            f"{info.manifest.name} has no version {version[:100]!r}; it has {VERSION}.",
            code="version_not_found",
            param="version",
        )
    return info
