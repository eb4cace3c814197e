"""What a simulated replica is made of, from measured costs and the service's own default limits."""

from typing import Any, Final

from benchmarks.autoscaling.curves import Curves
from benchmarks.autoscaling.replica import IMAGE, TEXT, ReplicaSpec
from service.lanes.latency_model import CostCurve
from service.lanes.warm_up import SHORT_BATCH_ITEMS, SHORT_BATCH_S
from service.lanes.work import BatchLimits
from service.settings import Settings

# Batches of one shape vary by so much on cores of their own; measured by `validate.py`.
SERVICE_CV: Final = 0.1


def default(name: str) -> Any:
    """The default of one of the service's settings."""
    return Settings.model_fields[name].default


def max_batch_images(alone_s: float) -> int:
    """About what the service finds at its start on a CPU, where batches make nothing cheaper."""
    return max(1, min(SHORT_BATCH_ITEMS, int(SHORT_BATCH_S / alone_s)))


def replica_spec(
    curves: Curves, side: int, lanes: int, *, service_cv: float = SERVICE_CV
) -> ReplicaSpec:
    """A replica that computes images of one side.

    What an image costs outside the lanes is counted to its lane: both share the processors.
    """
    image = curves.image(side)
    slope_s = image.slope_s + curves.beside_s
    return ReplicaSpec(
        lanes=lanes,
        costs={IMAGE: CostCurve(image.intercept_s, slope_s), TEXT: curves.text.curve},
        limits={
            IMAGE: BatchLimits(
                max_items=max_batch_images(image.alone_s), max_cost=default("max_batch_patches")
            ),
            TEXT: BatchLimits(
                max_items=default("max_batch_texts"), max_cost=default("max_batch_patches")
            ),
        },
        max_queue_cost=default("max_queue_patches"),
        service_cv=service_cv,
    )
