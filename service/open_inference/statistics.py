"""What models have done, in the terms of Triton's statistics extension; as plain values.

Both transports write these: as JSON as they are, as protobuf by the names of its fields.
"""

from typing import Any, Final

from service.call import Stage
from service.data_plane import DataPlane
from service.models.statistics import ModelStatistics, Total
from service.open_inference.metadata import VERSION, find_model

# The protocol's words for our stages.
STAGES: Final[dict[str, Stage]] = {
    "queue": "queue",
    "compute_input": "decode",
    "compute_infer": "run",
    "compute_output": "post",
}
NOT_COUNTED: Final = {"count": 0, "ns": 0}


def statistics(plane: DataPlane, name: str = "", version: str = "") -> dict[str, Any]:
    """Of one model, or of all where no name is given.

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
