"""Model metadata, statistics and repository index of the Open Inference Protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from model.manifest import Output
from service.call import Stage
from service.data_plane import DataPlane
from service.errors import InvalidRequest, ModelNotFound
from service.messages import ModelInfo
from service.models.served_model import ModelStatistics, Total
from service.monitoring.metrics import release
from service.open_inference.tensors import ANY, IMAGE, PIXEL_VALUES, PIXELS, TEXT, TensorSpec

SERVER_NAME: Final = "tipserve"
# A new model replaces the old one, so each has one version.
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
    """Metadata of the server."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """Metadata of one model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def server_metadata(*, is_managed: bool) -> ServerMetadata:
    """Name, version and extensions of this server."""
    extensions = EXTENSIONS + (MANAGEMENT if is_managed else ())
    return ServerMetadata(name=SERVER_NAME, version=release(), extensions=tuple(sorted(extensions)))


def model_metadata(info: ModelInfo) -> ModelMetadata:
    """Inputs and outputs of a model."""
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
    """A served model by name and version; an empty name means the default model.

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


def check_load(parameters: Mapping[str, Any]) -> str | None:
    """The package to load, if the parameters name one.

    Raises:
        InvalidRequest: A parameter is unknown, or not a string.
    """
    _check(parameters, "package", str, "the name of a folder below the model repository")
    return parameters.get("package")


def check_unload(parameters: Mapping[str, Any]) -> None:
    """Check parameters; `unload_dependents` has no effect, as no model has dependents.

    Raises:
        InvalidRequest: A parameter is unknown, or not a boolean.
    """
    _check(parameters, "unload_dependents", bool, "true or false")


def _check(parameters: Mapping[str, Any], known: str, kind: type, meaning: str) -> None:
    for name, value in parameters.items():
        param = f"parameters.{name[:100]}"
        if name != known:
            raise InvalidRequest(
                f"{param}: unknown field; known is {known}.", code="unknown_field", param=param
            )
        if not isinstance(value, kind):
            raise InvalidRequest(f"{param} must be {meaning}.", param=param)


# Our stages by their names in the protocol.
STAGES: Final[dict[str, Stage]] = {
    "queue": "queue",
    "compute_input": "decode",
    "compute_infer": "run",
    "compute_output": "post",
}
NOT_COUNTED: Final = {"count": 0, "ns": 0}


def statistics(plane: DataPlane, name: str = "", version: str = "") -> dict[str, Any]:
    """Statistics of one model, or of all without a name, as in Triton's statistics extension.

    REST sends this as JSON; gRPC converts it to protobuf by field names.

    Raises:
        ModelNotFound: There is no such model, or no such version of it.
    """
    if name or version:
        name = find_model(plane, name, version).manifest.name
    return {"model_stats": [_one(found) for found in plane.statistics(name or None)]}


def _one(found: ModelStatistics) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": VERSION,
        "last_inference": found.last_ms,
        "inference_count": found.num_items,
        "execution_count": found.num_batches,
        "inference_stats": {
            "success": _duration(found.success),
            "fail": _duration(found.fail),
            **{name: _duration(found.stages[stage]) for name, stage in STAGES.items()},
            "cache_hit": NOT_COUNTED,
            "cache_miss": NOT_COUNTED,
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": NOT_COUNTED,
                "compute_infer": _duration(total),
                "compute_output": NOT_COUNTED,
            }
            for size, total in found.batches.items()
        ],
    }


def _duration(total: Total) -> dict[str, int]:
    return {"count": total.count, "ns": total.ns}
