"""Metadata, configuration and statistics of models in the Open Inference Protocol.

The answers have the protocol's names: REST sends them as JSON, and gRPC converts them to protobuf.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from model.manifest import Output
from service.data_plane import DataPlane
from service.errors import ModelNotFound
from service.messages import ModelInfo
from service.models.registry import ModelState
from service.models.served_model import ModelStatistics, Total
from service.monitoring.metrics import release
from service.open_inference.tensors import ANY, IMAGE, PIXEL_VALUES, PIXELS, TEXT

# An answer in the form of Triton, as its JSON.
Document = dict[str, Any]
SERVER_NAME: Final = "tipserve"
# A new model replaces the old one, so each has one version.
VERSION: Final = "1"
# The protocol's names of our outputs.
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
# Shapes of those that are no embeddings.
MAP_SHAPES: Final[Mapping[Output, tuple[int, ...]]] = {
    "depth": (ANY, ANY, ANY),
    "segmentation": (ANY, ANY, ANY),
    "normals": (ANY, ANY, ANY, 3),
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
# Triton's totals, and ours; the last one is not counted.
STAGES: Final = {
    "success": "success",
    "fail": "fail",
    "queue": "queue",
    "compute_input": "decode",
    "compute_infer": "run",
    "compute_output": "post",
    "cache_hit": "cache_hit",
    "cache_miss": "",
}


def server_metadata(*, is_managed: bool) -> Document:
    """The server and its extensions; model management is one of them if it is enabled."""
    extensions = sorted((*EXTENSIONS, MANAGEMENT) if is_managed else EXTENSIONS)
    return {"name": SERVER_NAME, "version": release(), "extensions": extensions}


def model_metadata(info: ModelInfo) -> Document:
    """Inputs and outputs of a model."""
    manifest = info.manifest
    inputs = (IMAGE, PIXELS, PIXEL_VALUES, *((TEXT,) if "text" in manifest.outputs else ()))
    return {
        "name": manifest.name,
        "versions": [VERSION],
        "platform": f"{SERVER_NAME}_{info.runtime}",
        "inputs": [asdict(spec) for spec in inputs],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": _output_shape(ours, manifest.embed_dim)}
            for name, ours in OUTPUTS.items()
            if ours in info.outputs
        ],
    }


def _output_shape(output: Output, embed_dim: int) -> tuple[int, ...]:
    grid = (ANY, ANY) if output in {"patches", "values"} else ()
    return MAP_SHAPES.get(output) or (ANY, *grid, embed_dim)


def model_config(info: ModelInfo) -> Document:
    """Inputs and outputs of a model as a Triton configuration."""
    metadata = model_metadata(info)
    inputs, outputs = (
        [
            {"name": s["name"], "data_type": CONFIG_TYPES[s["datatype"]], "dims": s["shape"]}
            for s in metadata[kind]
        ]
        for kind in ("inputs", "outputs")
    )
    return {
        "name": metadata["name"],
        "platform": metadata["platform"],
        "backend": SERVER_NAME,
        "max_batch_size": 0,
        "input": [tensor | {"optional": True} for tensor in inputs],
        "output": outputs,
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
    return {
        "name": found.name,
        "version": VERSION,
        "last_inference": found.last_ms,
        "inference_count": found.num_items,
        "execution_count": sum(total.count for total in found.batches.values()),
        "inference_stats": {
            name: asdict(found.totals.get(ours, Total())) for name, ours in STAGES.items()
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": asdict(Total()),
                "compute_infer": asdict(total),
                "compute_output": asdict(Total()),
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
