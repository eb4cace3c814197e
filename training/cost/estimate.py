"""Puts counts, memory and devices together: hours, device-hours and the batch that fits.

Hours are operations over speed: no waiting for data, for other devices or for files is added, all
of which a stated utilisation must stand for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from training.cost.counting import Count
from training.cost.devices import Device
from training.cost.memory import State, batch_that_fits, state_of
from training.cost.passes import Workload, block_bytes, passes_of
from training.methods.base import Method
from training.parallel import ParallelKind

_FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a run is run on.

    Attributes:
        device: One of its accelerators.
        num_devices: How many.
        mfu: Share of the peak at which the counted operations are done, recomputed ones included.
            0.4 is a usual value for transformers of this size on GPUs; measure your own.
    """

    device: Device
    num_devices: int
    mfu: float

    def __post_init__(self) -> None:
        """Check that the numbers can be meant."""
        if self.num_devices < 1:
            raise ValueError("at least one device is needed: --gpus 1")
        if not 0 < self.mfu <= 1:
            raise ValueError("the utilisation is a share of the peak, above 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A stage of training, as far as its cost goes.

    Attributes:
        name: For the table.
        workload: What a step does with an image.
        method: What is trained, on the meta device.
        optimizers: Of the method's parameters.
        teacher_bytes: Of a frozen teacher's weights; 0 without one.
        num_steps: Optimizer steps.
        global_batch: Images a step, on all devices together.
        parallel: How the run is spread over devices.
    """

    name: str
    workload: Workload
    method: Method
    optimizers: tuple[torch.optim.Optimizer, ...]
    teacher_bytes: int
    num_steps: int
    global_batch: int
    parallel: ParallelKind

    @property
    def num_trained(self) -> int:
        """Parameters that something is learnt through."""
        return sum(p.numel() for p in self.method.parameters() if p.requires_grad)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """What a stage costs on a cluster.

    Attributes:
        plan: The stage.
        cluster: The devices.
        passes: Every pass of a step, for one image.
        state: Bytes on one device without images.
        bytes_per_image: Bytes that an image adds at the peak.
    """

    plan: Plan
    cluster: Cluster
    passes: Mapping[str, Count]
    state: State
    bytes_per_image: float

    @property
    def flops_per_image(self) -> int:
        """Operations of all passes."""
        return sum(count.flops for count in self.passes.values())

    @property
    def total_flops(self) -> int:
        """Operations of the whole stage."""
        return self.flops_per_image * self.plan.global_batch * self.plan.num_steps

    @property
    def device_hours(self) -> float:
        """Hours on one device; the price, once it is known what an hour costs."""
        return self.total_flops / (self.cluster.device.peak_flops * self.cluster.mfu) / 3600

    @property
    def hours(self) -> float:
        """Hours on the cluster."""
        return self.device_hours / self.cluster.num_devices

    @property
    def batch_per_device(self) -> int:
        """Images of a step on each device."""
        return -(-self.plan.global_batch // self.cluster.num_devices)

    @property
    def largest_batch(self) -> int:
        """Images that fit on a device at a time."""
        return batch_that_fits(self.cluster.device, self.state, self.bytes_per_image)

    @property
    def micro_batches(self) -> int | None:
        """In how many parts a step must be done to fit; None where even one image does not.

        The contrast of a step in parts sees the images of one part at a time.
        """
        if self.largest_batch == 0:
            return None
        return -(-self.batch_per_device // self.largest_batch)

    @property
    def memory_bytes(self) -> float:
        """Bytes on one device while a step's images, or one part of them, are computed."""
        parts = self.micro_batches
        images = 1 if parts is None else -(-self.batch_per_device // parts)
        return self.state.total + images * self.bytes_per_image


def estimate(plan: Plan, cluster: Cluster) -> Estimate:
    """Count what a stage costs."""
    passes = passes_of(plan.workload, global_batch=plan.global_batch)
    state = state_of(
        plan.method,
        plan.optimizers,
        averages=plan.method.averages(),
        teacher_bytes=plan.teacher_bytes,
        parallel=plan.parallel,
        num_devices=cluster.num_devices,
    )
    kept = sum(count.saved_bytes for count in passes.values())
    return Estimate(
        plan=plan,
        cluster=cluster,
        passes=passes,
        state=state,
        bytes_per_image=kept + _working_bytes(plan.workload),
    )


def _working_bytes(workload: Workload) -> float:
    """Bytes of one image that live only within the backward pass, at its largest.

    Either the gradients of the patches' logits, twice for the softmax, or, where blocks are
    recomputed, what one block keeps: both are never there at once.
    """
    prototypes = workload.head.num_prototypes if workload.patch_target == "prototypes" else 0
    logits = 2 * _FLOAT32 * workload.num_patches * prototypes
    if not workload.checkpoint:
        return logits
    sizes = [workload.global_size] + [workload.local_size] * bool(workload.num_local)
    counts = [1, workload.num_local]
    blocks = [
        number * block_bytes(workload.student, size)
        for number, size in zip(counts, sizes, strict=False)
    ]
    return max(logits, *blocks)
