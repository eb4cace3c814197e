"""How many lanes, how many threads and how large batches fit the processors and the memory.

On a CPU several lanes of one thread compute more than one lane of several threads, so processors go
to lanes first. Each lane needs memory for its images, and with some runtimes for its own copy of
the weights: if memory does not hold one lane for each processor, the remaining processors become
further threads of the lanes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from model.package import ModelPackage
from model.runtime.choice import RuntimeChoice
from model.runtime.loaded_graphs import loaded_bytes
from service.lanes.work import Bucket, Kind

MAX_LANES: Final = 8
# A loaded graph keeps its weights in the file's layout and in the processor's.
MEMORY_FACTOR: Final = 3
# Share of the free memory that lanes may use; the rest is for images of requests in flight.
MEMORY_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class LanePlan:
    """Number of lanes of a model, and number of threads in each."""

    num_lanes: int
    num_threads: int


def plan_lanes(
    *,
    lanes: int | None,
    threads: int | None,
    cpus: int,
    free_bytes: int | None,
    lane_bytes: int,
    shared_bytes: int = 0,
) -> LanePlan:
    """Choose the lanes and threads that are not set.

    Args:
        lanes: Number of lanes, if set.
        threads: Threads per lane, if set.
        cpus: CPUs that the process may use.
        free_bytes: Free memory; None if unknown.
        lane_bytes: Memory of one lane.
        shared_bytes: Memory that all lanes share.
    """
    if lanes is None:
        lanes = min(MAX_LANES, max(1, cpus // (threads or 1)))
        if free_bytes is not None and lane_bytes > 0:
            budget_bytes = int(free_bytes * MEMORY_SHARE) - shared_bytes
            lanes = max(1, min(lanes, budget_bytes // lane_bytes))
    return LanePlan(lanes, threads or max(1, cpus // lanes))


def weight_bytes(package: ModelPackage, choice: RuntimeChoice) -> tuple[int, int]:
    """Estimate the memory of the chosen graphs: per lane, and shared by all lanes.

    ONNX Runtime shares its sessions if lanes have one thread. That is not known before lanes are
    planned, so each of its lanes counts as holding the weights. Weights on a GPU are not in this
    memory, but pass through it once.
    """
    num_bytes = MEMORY_FACTOR * loaded_bytes(package.manifest, choice.runtime, choice.precision)
    is_own = choice.runtime == "onnx" and choice.device == "cpu"
    return (num_bytes, 0) if is_own else (0, num_bytes)


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """Peak memory of one image of each served shape, in bytes; empty if not measured."""

    peak_bytes: Mapping[Bucket, int]

    @property
    def largest_bytes(self) -> int:
        """Peak of the shape that needs most memory."""
        return max(self.peak_bytes.values(), default=0)

    def patches_within(
        self, budget_bytes: int, num_patches: Callable[[Bucket], int], kind: Kind = "image"
    ) -> int | None:
        """Patches of a batch that fit the budget, for any shape of this kind; None if unknown.

        Memory grows with the number of patches, since attention is computed in blocks. The largest
        shape shows the growth best: in small shapes a constant part dominates.
        """
        peaks = {bucket: peak for bucket, peak in self.peak_bytes.items() if bucket.kind == kind}
        if not any(peaks.values()):
            return None
        largest = max(peaks, key=num_patches)
        per_patch = max(1.0, peaks[largest] / num_patches(largest))
        return int(budget_bytes / per_patch)
