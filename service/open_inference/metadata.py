"""Metadata, configuration and statistics of models in the Open Inference Protocol.

The answers have the protocol's names: REST sends them as JSON, and gRPC converts them to protobuf.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from model.manifest import Output
from service.data_plane import DataPlane
from service.errors import InvalidRequest, ModelNotFound
from service.messages import ModelInfo
from service.models.registry import ModelState
from service.models.served_model import ModelStatistics, Total
from service.monitoring.metrics import release
from service.open_inference.tensors import ANY, IMAGE, PIXEL_VALUES, PIXELS, TEXT, TensorSpec

# An answer in the form of Triton, as its JSON.
Document = dict[str, Any]
SERVER_NAME: Final = "tipserve"
# A new model replaces the old one, so each has one version.
VERSION: Final = "1"
OUTPUTS: Final[Mapping[str, Output]] = {
    "patch_embeddings": "patches",
    "value_embeddings": "values",
    "cls1": "cls1",
    "cls2": "cls2",
    "text_embeddings": "text",
    "depth": "depth",
    "normals": "normals",
    "segmentation": "segmentation",
}
EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
)
MANAGEMENT: Final = "model_repository"
CONFIG_TYPES: Final = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}
NOT_COUNTED: Final = asdict(Total())


def server_metadata(*, is_managed: bool) -> Document:
    """The server and its extensions; model management is one of them if it is enabled."""
    extensions = sorted((*EXTENSIONS, MANAGEMENT) if is_managed else EXTENSIONS)
    return {"name": SERVER_NAME, "version": release(), "extensions": extensions}


def model_metadata(info: ModelInfo) -> Document:
    """Inputs and outputs of a model."""
    manifest = info.manifest
    has_text = "text" in manifest.outputs
    outputs = [
        TensorSpec(name, "FP32", _output_shape(ours, manifest.embed_dim))
        for name, ours in OUTPUTS.items()
        if ours in info.outputs
    ]
    inputs = (IMAGE, PIXELS, PIXEL_VALUES, *((TEXT,) if has_text else ()))
    return {
        "name": manifest.name,
        "versions": [VERSION],
        "platform": f"{SERVER_NAME}_{info.runtime}",
        "inputs": [asdict(spec) for spec in inputs],
        "outputs": [asdict(spec) for spec in outputs],
    }


def _output_shape(output: Output, embed_dim: int) -> tuple[int, ...]:
    match output:
        case "depth" | "segmentation":
            return ANY, ANY, ANY
        case "normals":
            return ANY, ANY, ANY, 3
        case "patches" | "values":
            return ANY, ANY, ANY, embed_dim
        case _:
            return ANY, embed_dim


def model_config(info: ModelInfo) -> Document:
    """Inputs and outputs of a model as a Triton configuration."""
    metadata = model_metadata(info)

    def tensor(spec: Document) -> Document:
        kind = CONFIG_TYPES[spec["datatype"]]
        return {"name": spec["name"], "data_type": kind, "dims": spec["shape"]}

    return {
        "name": metadata["name"],
        "platform": metadata["platform"],
        "backend": SERVER_NAME,
        "max_batch_size": 0,
        "input": [tensor(spec) | {"optional": True} for spec in metadata["inputs"]],
        "output": [tensor(spec) for spec in metadata["outputs"]],
    }


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


def statistics(plane: DataPlane, name: str = "", version: str = "") -> Document:
    """Statistics of one model, or of all without a name, as in Triton's statistics extension.

    Raises:
        ModelNotFound: There is no such model, or no such version of it.
    """
    if name or version:
        name = find_model(plane, name, version).manifest.name
    return {"model_stats": [_statistics(found) for found in plane.statistics(name or None)]}


def _statistics(found: ModelStatistics) -> Document:
    """Counts of images, texts and batches, nanoseconds, and milliseconds since the epoch."""
    totals = {name: asdict(total) for name, total in found.totals.items()}
    return {
        "name": found.name,
        "version": VERSION,
        "last_inference": found.last_ms,
        "inference_count": found.num_items,
        "execution_count": sum(total.count for total in found.batches.values()),
        "inference_stats": {
            "success": totals["success"],
            "fail": totals["fail"],
            "queue": totals["queue"],
            "compute_input": totals["decode"],
            "compute_infer": totals["run"],
            "compute_output": totals["post"],
            "cache_hit": totals["cache_hit"],
            "cache_miss": NOT_COUNTED,
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": NOT_COUNTED,
                "compute_infer": asdict(total),
                "compute_output": NOT_COUNTED,
            }
            for size, total in found.batches.items()
        ],
    }


def repository_index(states: Iterable[ModelState], *, only_ready: bool) -> list[Document]:
    """The models that are served or can be loaded; `reason` says why a last load failed."""
    return [
        {"name": state.name, "version": VERSION, "state": state.state, "reason": state.reason}
        for state in states
        if state.state == "READY" or not only_ready
    ]


def check_load(parameters: Mapping[str, Any]) -> str | None:
    """The package to load, if the parameters name one.

    Raises:
        InvalidRequest: A parameter is unknown, or not a string.
    """
    for name, value in parameters.items():
        param = f"parameters.{name[:100]}"
        if name != "package":
            raise InvalidRequest(
                f"{param}: unknown field; known is package.", code="unknown_field", param=param
            )
        if not isinstance(value, str):
            raise InvalidRequest(
                f"{param} must be the name of a folder below the model repository.", param=param
            )
    return parameters.get("package")
