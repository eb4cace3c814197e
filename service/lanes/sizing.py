"""How many lanes, how many threads and how large batches fit the processors and the memory.

On a CPU several lanes of one thread compute more than one lane of several threads, so processors go
to lanes first. Each lane needs memory for its images, and with some runtimes for its own copy of
the weights: if memory does not hold one lane for each processor, the remaining processors become
further threads of the lanes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from model.package import ModelPackage
from model.runtime.choice import RuntimeChoice
from model.runtime.loaded_graphs import loaded_bytes
from service.lanes.work import Bucket, image_work

MAX_LANES: Final = 8
# One lane copies its images to the device while the other computes.
GPU_LANES: Final = 2
# A loaded graph keeps its weights in the file's layout and in the processor's.
MEMORY_FACTOR: Final = 3
# Part of the free memory that lanes may use; the rest is for images of requests in flight.
MEMORY_PART: Final = 0.5
# Memory of one patch in a lane, in numbers of 4 bytes for each number of its embedding. With the
# bundled models ONNX Runtime takes 150; OpenVINO adds 20 MB to small images.
IMAGE_FACTOR: Final = 160
# Batch sizes double as long as the time of an image falls at least to this part.
WORTHWHILE: Final = 0.95
# A short batch holds a few images even if they get no cheaper: one image a batch takes twice as
# many context switches. Not if an image then takes so much longer: to stack images takes more time
# than a model of no operation.
SHORT_BATCH_S: Final = 0.02
SHORT_BATCH_IMAGES: Final = 4
MAX_STACKING: Final = 1.5


@dataclass(frozen=True, slots=True)
class LanePlan:
    """Number of lanes of a model, and number of threads in each."""

    num_lanes: int
    num_threads: int


def plan_lanes(
    package: ModelPackage,
    choice: RuntimeChoice,
    *,
    lanes: int | None,
    cpus: int,
    free_bytes: int | None,
) -> LanePlan:
    """Choose the lanes, if they are not set, and the threads of each.

    Args:
        package: Its weights, and the largest size that it serves, say how much memory a lane takes.
        choice: Which graphs are loaded.
        lanes: Number of lanes, if set.
        cpus: CPUs that the process may use.
        free_bytes: Free memory; None if unknown.
    """
    if lanes is None and choice.device == "gpu":
        lanes = GPU_LANES
    if lanes is None:
        lanes = min(MAX_LANES, max(1, cpus))
        if free_bytes is not None:
            manifest = package.manifest
            most_patches = max(map(math.prod, manifest.shape_buckets)) // manifest.patch_size**2
            lane_bytes, shared_bytes = weight_bytes(package, choice)
            lane_bytes += IMAGE_FACTOR * 4 * manifest.embed_dim * most_patches
            fitting = (int(free_bytes * MEMORY_PART) - shared_bytes) // lane_bytes
            lanes = max(1, min(lanes, fitting))
    return LanePlan(lanes, max(1, cpus // lanes))


def weight_bytes(package: ModelPackage, choice: RuntimeChoice) -> tuple[int, int]:
    """Estimate the memory of the chosen graphs: per lane, and shared by all lanes.

    ONNX Runtime shares its sessions if lanes have one thread. That is not known before lanes are
    planned, so each of its lanes counts as holding the weights. Weights on a GPU are not in this
    memory, but pass through it once.
    """
    num_bytes = MEMORY_FACTOR * loaded_bytes(package.manifest, choice.runtime, choice.precision)
    is_own = choice.runtime == "onnx" and choice.device == "cpu"
    return (num_bytes, 0) if is_own else (0, num_bytes)


def patches_within(
    budget_bytes: int, peaks: Mapping[Bucket, int], num_patches: Callable[[Bucket], int]
) -> int | None:
    """Patches of a batch of images that fit the memory of a lane; None if nothing was measured.

    Memory grows with the number of patches, since attention is computed in blocks. The largest
    shape of a kind shows the growth best: in small shapes a constant part dominates.
    """
    largest = {b.kind: b for b in sorted((b for b in peaks if peaks[b]), key=num_patches)}
    per_patch = [peaks[b] / num_patches(b) / image_work(kind) for kind, b in largest.items()]
    return int(budget_bytes / max(1.0, *per_patch)) if per_patch else None


def find_batch_size(run: Callable[[int], float | None], most: int) -> int:
    """Double a batch while that makes an image cheaper, or the batch is short.

    Args:
        run: Runs a batch of so many images; returns its seconds, or None once the time is over.
        most: Upper bound.
    """
    size, image_s = 1, run(1)
    while image_s is not None and 2 * size <= most:
        seconds = run(2 * size)
        if seconds is None:
            break
        is_short = 2 * size <= SHORT_BATCH_IMAGES and seconds <= SHORT_BATCH_S
        if seconds / (2 * size) > image_s * (MAX_STACKING if is_short else WORTHWHILE):
            break
        size, image_s = 2 * size, seconds / (2 * size)
    return size
