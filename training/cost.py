"""Cost of a run before it starts: operations, memory and hours.

The real modules run on tensors with a shape and a dtype but no memory (torch's FakeTensorMode),
under bfloat16 autocast as in training. torch's FlopCounterMode counts matrix products, convolutions
and attention, a multiply-add as two operations; the rest is bound by memory, and the assumed
utilisation stands for it. The tensors that autograd keeps for the backward pass are added up.

Of the loss terms only the paper's are counted: captions, DINO, patches. The terms for names and for
the image backbone, which only small recipes use, cost a few percent of a step.

Hours are operations over speed. Waiting for data, other devices and files is not added; the assumed
utilisation stands for that too.

Shapes: B batch, N patches, L tokens, D width, K prototypes, H W pixels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from transformers import Tipsv2Config, Tipsv2Model, Tipsv2TextConfig, Tipsv2VisionConfig

from model.features import text_features, vision_tokens
from model.variants import PATCH_SIZE, variant
from training.config import TrainingConfig, ViewsConfig, text_of, vision_of
from training.data.batch import MAX_TOKENS
from training.data.shards.batches import ShardsConfig
from training.heads import HeadConfig, PrototypeHead
from training.losses.distillation import CHUNK_LOGITS, prototype_losses, token_losses
from training.methods.base import Method
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain, PretrainConfig
from training.methods.teacher import MODEL_FOLDER, FrozenTeacher
from training.optim import Adafactor, build_optimizers
from training.parallel import ParallelKind, blocks
from training.targets import Softmax

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Cost of one image in one pass, or the sum over passes.

    Attributes:
        forward_flops: Operations of the forward pass.
        backward_flops: Of the backward pass, including recomputation of checkpointed blocks.
        saved_bytes: Kept from forward to backward, without the parameters.
    """

    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0

    @property
    def flops(self) -> int:
        """Operations of both passes."""
        return self.forward_flops + self.backward_flops

    def __add__(self, other: "Count") -> "Count":
        return Count(
            forward_flops=self.forward_flops + other.forward_flops,
            backward_flops=self.backward_flops + other.backward_flops,
            saved_bytes=self.saved_bytes + other.saved_bytes,
        )

    def times(self, factor: int) -> "Count":
        """The cost of `factor` such passes."""
        return Count(
            forward_flops=factor * self.forward_flops,
            backward_flops=factor * self.backward_flops,
            saved_bytes=factor * self.saved_bytes,
        )


def _flash(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _flash_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


_aten = torch.ops.aten
# torch counts the GPU's fused attention but not the CPU's, which has the same shapes.
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}


class _Kept:
    """Adds up the storages that autograd keeps, each once, without those of the module."""

    def __init__(self, module: nn.Module) -> None:
        state = (*module.parameters(), *module.buffers())
        self._seen = {tensor.untyped_storage()._cdata for tensor in state}
        self._alive: list[Tensor] = []
        self.num_bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)  # so that no other storage gets the same address
            self.num_bytes += storage.nbytes()
        return tensor


def _count_batch(
    module: Module, compute: Callable[[Module, int], Tensor], batch: int, *, trains: bool
) -> Count:
    kept = _Kept(module)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor)
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        with torch.autocast("cpu", dtype=torch.bfloat16), hooks, torch.set_grad_enabled(trains):
            output = compute(module, batch)
        forward = counter.get_total_flops()
        if trains:
            output.float().sum().backward()
    module.zero_grad(set_to_none=True)
    total = counter.get_total_flops()
    return Count(forward_flops=forward, backward_flops=total - forward, saved_bytes=kept.num_bytes)


def count_per_image(
    build: Callable[[], Module], compute: Callable[[Module, int], Tensor], *, trains: bool = True
) -> Count:
    """Count the cost of one more image in the batch.

    Args:
        build: Builds the module, on the meta device.
        compute: Takes the module and a number of images; returns the tensor to differentiate.
        trains: Whether a backward pass follows; without one nothing is kept.
    """
    with torch.device("meta"):
        module = build()
    with FakeTensorMode():
        apply: Callable[..., nn.Module] = module._apply
        apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        one = _count_batch(module, compute, 1, trains=trains)
        two = _count_batch(module, compute, 2, trains=trains)
    return two + one.times(-1)


def extend_in_depth(count_at: Callable[[int], Count], num_layers: int) -> Count:
    """Extrapolate a tower's cost from 2 and 3 blocks: equal blocks make it linear in depth."""
    two, three = count_at(2), count_at(3)
    return two + (three + two.times(-1)).times(num_layers - 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """Peak speed and memory of an accelerator, from its data sheet.

    Attributes:
        name: Value of `--device`.
        title: Name in tables.
        peak_flops: Dense bfloat16 operations per second; a multiply-add is two.
        memory_bytes: The data sheet's gigabytes as 1e9 bytes, the lower reading.
        source: Source of the numbers.
    """

    name: str
    title: str
    peak_flops: float
    memory_bytes: float
    source: str


DEVICES: dict[str, Accelerator] = {
    device.name: device
    for device in (
        Accelerator(
            name="a100",
            title="A100 80GB",
            peak_flops=312e12,
            memory_bytes=80e9,
            source="NVIDIA A100 data sheet: 312 TFLOP/s bf16 without sparsity, 80 GB",
        ),
        Accelerator(
            name="h100",
            title="H100 80GB",
            peak_flops=989e12,
            memory_bytes=80e9,
            source="NVIDIA H100 SXM data sheet: 1979 TFLOP/s bf16 with sparsity, half without; "
            "80 GB",
        ),
        Accelerator(
            name="h200",
            title="H200",
            peak_flops=989e12,
            memory_bytes=141e9,
            source="NVIDIA H200 SXM data sheet: 1979 TFLOP/s bf16 with sparsity, half without; "
            "141 GB",
        ),
    )
}


_FLOAT32, _BFLOAT16 = 4, 2
_DEVICES_PER_MACHINE = 8
_CHUNK_TENSORS = 4
"""Tensors of the size of a chunk of logits, at the peak; a test measures them."""
_NUM_CAPTION_STREAMS = 2
_WHOLE_PASS, _TEXT_PASS = "student, whole image", f"text, {_NUM_CAPTION_STREAMS} captions"
_TEACHER_PASS = "teacher, whole image"
_EMBEDDING_PASSES = (_WHOLE_PASS, _TEXT_PASS)
# The rest is for the allocator's gaps, kernel workspaces and the driver. Not measured; a tenth is a
# common reserve.
_USABLE_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """Bytes on one device that do not depend on the batch.

    Attributes:
        parameters: Of the student and its head, float32, without averages.
        gradients: Of trained parameters, float32; twice with DDP, which exchanges them in buckets.
        optimizer: Moments of the optimizer.
        average: Moving average of the head, or of the head and the vision tower.
        teacher: Weights of a frozen teacher.
        copies: bfloat16 copies of trained weights, which autocast keeps during the forward pass.
        gathered: With FSDP2, parameters that are gathered for use.
    """

    parameters: float
    gradients: float
    optimizer: float
    average: float
    teacher: float
    copies: float
    gathered: float

    @property
    def total(self) -> float:
        """Sum of all bytes."""
        return float(sum(getattr(self, item.name) for item in fields(self)))


def num_parameters(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def optimizer_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Bytes of optimizer state after the first step, without step counters.

    AdamW keeps two moments per parameter, Muon one, Adafactor one and the means of squares of rows
    and columns; all in float32.

    Raises:
        ValueError: The optimizer is unknown.
    """
    total = 0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            total += sum(_moments(optimizer, tuple(p.shape)) for p in group["params"])
    return _FLOAT32 * total


def _moments(optimizer: torch.optim.Optimizer, shape: tuple[int, ...]) -> int:
    numel = torch.Size(shape).numel()
    match optimizer:
        case torch.optim.AdamW():
            return 2 * numel
        case torch.optim.Muon():
            return numel
        case Adafactor() if len(shape) < 2:
            return 2 * numel
        case Adafactor():
            return numel + numel // shape[-1] + numel // shape[-2]
        case _:
            raise ValueError(f"the state of {type(optimizer).__name__} is not known here")


def state_of(
    learner: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    averages: Sequence[nn.Module] = (),
    teacher_bytes: int = 0,
    parallel: ParallelKind,
    num_devices: int,
) -> DeviceState:
    """Bytes per device of a run's state, distributed as in training/parallel.py.

    With DDP every device holds everything. With FSDP2 parameters, gradients, moments and averages
    are sharded over the devices, with HSDP over those of a machine; parameters outside blocks and
    two blocks (the current and the next one) are gathered, with their gradients. A frozen teacher
    and autocast's copies are whole on every device in all cases.

    Args:
        learner: Student and heads, on the meta device.
        optimizers: Of the learner's parameters.
        averages: Submodules of the learner that are moving averages.
        teacher_bytes: Of a frozen teacher's weights.
        parallel: Kind of parallelism.
        num_devices: Number of devices.
    """
    is_cut = parallel != "ddp" and num_devices > 1
    share = num_devices if is_cut else 1
    if parallel == "hsdp":
        share = min(share, _DEVICES_PER_MACHINE)
    averaged = sum(num_parameters(module) for module in averages)
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    sizes = [num_parameters(block) for block in blocks(learner)]
    gathered = num_parameters(learner) - sum(sizes) + 2 * max(sizes, default=0)
    buckets = 2 if parallel == "ddp" and num_devices > 1 else 1
    return DeviceState(
        parameters=_FLOAT32 * (num_parameters(learner) - averaged) / share,
        gradients=buckets * _FLOAT32 * trained / share,
        optimizer=optimizer_bytes(optimizers) / share,
        average=_FLOAT32 * averaged / share,
        teacher=teacher_bytes,
        copies=_BFLOAT16 * trained,
        gathered=2 * _FLOAT32 * gathered if is_cut else 0,
    )


PatchTarget = Literal["prototypes", "features", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The computation of a step for one image.

    Attributes:
        student: The model in training.
        teacher: The frozen model of a distillation; None in pretraining.
        head: The shape of the prototype heads.
        global_size: Side of the global crop in pixels.
        num_local: Local crops; 0 if no loss uses them.
        local_size: Their side.
        has_masked_view: Whether the student encodes a masked image as well.
        patch_target: Target of the patch loss.
        averages_encoder: Whether an averaged encoder encodes each image too, as in full EMA.
        checkpoint: Whether blocks are recomputed in the backward pass.
    """

    student: Tipsv2Config
    teacher: Tipsv2Config | None = None
    head: HeadConfig
    global_size: int
    num_local: int = 0
    local_size: int = 98
    has_masked_view: bool = True
    patch_target: PatchTarget = "prototypes"
    averages_encoder: bool = False
    checkpoint: bool = False

    @property
    def num_patches(self) -> int:
        """N of the global crop."""
        return (self.global_size // PATCH_SIZE) ** 2


def _read(text: str) -> Tipsv2Config:
    """A configuration from its JSON text, which is the key of cached counts."""
    config: Tipsv2Config = Tipsv2Config.from_dict(json.loads(text))
    return config


def _shallow(config: Tipsv2Config, num_layers: int, *, checkpoint: bool) -> Tipsv2Model:
    vision = {**vision_of(config).to_dict(), "num_hidden_layers": num_layers}
    text = {**text_of(config).to_dict(), "num_hidden_layers": num_layers}
    for part in (vision, text):
        part["out_features"] = part["out_indices"] = None
    model = Tipsv2Model(
        Tipsv2Config(
            text_config=Tipsv2TextConfig(**text), vision_config=Tipsv2VisionConfig(**vision)
        )
    )
    model.train()
    model.set_attn_implementation("sdpa")
    if checkpoint:
        model.activation_checkpointing_enable()
    return model


def _encode(model: Tipsv2Model, batch: int, size: int) -> Tensor:
    tokens = vision_tokens(model, torch.empty(batch, 3, size, size))
    return torch.cat((tokens.cls1_BD[:, None], tokens.cls2_BD[:, None], tokens.patches_BND), dim=1)


def vision_pass(
    config: Tipsv2Config, size: int, *, trains: bool = True, checkpoint: bool = False
) -> Count:
    """Cost of an image of `size` pixels in the vision tower."""
    text = config.to_json_string()

    def count_at(num_layers: int) -> Count:
        return _blocks(text, size, num_layers, trains=trains, checkpoint=checkpoint)

    return extend_in_depth(count_at, vision_of(config).num_hidden_layers)


def block_bytes(config: Tipsv2Config, size: int) -> int:
    """Bytes that one block of the vision tower keeps per image without recomputation."""
    text = config.to_json_string()
    two, three = (_blocks(text, size, number, trains=True, checkpoint=False) for number in (2, 3))
    return three.saved_bytes - two.saved_bytes


@cache  # recipes share passes
def _blocks(text: str, size: int, num_layers: int, *, trains: bool, checkpoint: bool) -> Count:
    config = _read(text)
    return count_per_image(
        lambda: _shallow(config, num_layers, checkpoint=checkpoint),
        lambda model, batch: _encode(model, batch, size),
        trains=trains,
    )


def text_pass(config: Tipsv2Config, *, checkpoint: bool = False) -> Count:
    """Cost of a caption of 64 tokens in the text tower."""
    return _text_pass(config.to_json_string(), checkpoint=checkpoint)


@cache
def _text_pass(text: str, *, checkpoint: bool) -> Count:
    config = _read(text)

    def compute(model: Tipsv2Model, batch: int) -> Tensor:
        token_ids_BL = torch.zeros((batch, MAX_TOKENS), dtype=torch.int64)
        return text_features(model, token_ids_BL, torch.ones_like(token_ids_BL))

    def count_at(num_layers: int) -> Count:
        return count_per_image(lambda: _shallow(config, num_layers, checkpoint=checkpoint), compute)

    return extend_in_depth(count_at, text_of(config).num_hidden_layers)


def head_pass(head: HeadConfig, width: int, *, num_patches: int, num_crops: int) -> Count:
    """Cost of one image's tokens in a head and their losses.

    The losses of patches also compare the teacher's features with its prototypes, twice.
    """

    def compute(module: PrototypeHead, batch: int) -> Tensor:
        losses = []
        if num_patches:
            patches_BND = torch.empty(batch, num_patches, width, requires_grad=True)
            student_TF = module.embed(patches_BND).flatten(0, 1)
            prototypes_KF = torch.empty(head.num_prototypes, head.bottleneck)
            targets = Softmax(temperature=head.teacher_temperature).of_tokens(
                torch.empty(student_TF.shape), prototypes_KF
            )
            directions_KF, temperature = module.directions(), head.student_temperature
            losses.append(prototype_losses(student_TF, directions_KF, targets, temperature).sum())
        if num_crops:
            logits_BCK = module(torch.empty(batch, num_crops, width, requires_grad=True))
            targets_BCK = torch.empty(logits_BCK.shape)  # a float32 softmax
            losses.append(token_losses(logits_BCK / head.student_temperature, targets_BCK).sum())
        return torch.stack(losses).sum()

    return count_per_image(lambda: head.build(width), compute)


def teacher_head_pass(head: HeadConfig, width: int, *, num_patches: int, has_global: bool) -> Count:
    """Cost of one image in a teacher's head, without the patches' prototypes."""

    def compute(module: PrototypeHead, batch: int) -> Tensor:
        parts = [module.embed(torch.empty(batch, num_patches, width))] if num_patches else []
        if has_global:
            parts.append(module(torch.empty(batch, 1, width)))
        return torch.stack([part.sum() for part in parts]).sum()

    return count_per_image(lambda: head.build(width), compute, trains=False)


def projector_pass(width: int, teacher_width: int, num_tokens: int) -> Count:
    """Cost of one image's tokens in the linear layer to a teacher's width."""

    def compute(module: nn.Linear, batch: int) -> Tensor:
        projected = module(torch.empty(batch, num_tokens, width, requires_grad=True))
        target = torch.empty(batch, num_tokens, teacher_width)
        return F.cosine_similarity(projected.float(), target, dim=-1)

    return count_per_image(lambda: nn.Linear(width, teacher_width), compute)


def contrast_pass(width: int, global_batch: int) -> Count:
    """Cost of contrasting one image with all captions and its captions with all images.

    Each of the two streams computes a row of cosines with the gathered batch in both directions;
    the backward pass needs two products for each. The rows are kept, in float32.
    """
    rows = 2 * _NUM_CAPTION_STREAMS
    forward = rows * 2 * width * global_batch
    return Count(
        forward_flops=forward, backward_flops=2 * forward, saved_bytes=rows * 4 * global_batch
    )


def passes_of(workload: Workload, *, global_batch: int) -> dict[str, Count]:
    """Cost of every pass of a step for one image, by name.

    A test compares the sum with what the methods in training/methods/ execute.
    """
    student, teacher = workload.student, workload.teacher
    width = vision_of(student).hidden_size
    checkpoint, size = workload.checkpoint, workload.global_size
    view = vision_pass(student, size, checkpoint=checkpoint)
    passes = {_WHOLE_PASS: view}
    if workload.has_masked_view:
        passes["student, masked image"] = view
    if workload.num_local:
        local = vision_pass(student, workload.local_size, checkpoint=checkpoint)
        passes[f"student, {workload.num_local} local crops"] = local.times(workload.num_local)
    if teacher is not None:
        passes[_TEACHER_PASS] = vision_pass(teacher, size, trains=False)
    elif workload.averages_encoder:
        passes["averaged encoder, whole image"] = vision_pass(student, size, trains=False)
    passes |= _head_passes(workload)
    captions = text_pass(student, checkpoint=checkpoint).times(_NUM_CAPTION_STREAMS)
    passes[_TEXT_PASS] = captions
    passes["contrast"] = contrast_pass(width, global_batch)
    return passes


def _head_passes(workload: Workload) -> dict[str, Count]:
    """Cost of the heads: patches of one view, and CLS tokens if there are local crops."""
    width = vision_of(workload.student).hidden_size
    config = workload.teacher or workload.student
    teacher_width = vision_of(config).hidden_size
    patches = workload.num_patches if workload.patch_target == "prototypes" else 0
    passes = {}
    if workload.patch_target == "features":
        passes["projector"] = projector_pass(width, teacher_width, workload.num_patches)
    if patches + workload.num_local:
        head, num_crops = workload.head, workload.num_local
        passes["student head"] = head_pass(head, width, num_patches=patches, num_crops=num_crops)
        passes["teacher head"] = teacher_head_pass(
            head, teacher_width, num_patches=patches, has_global=num_crops > 0
        )
    return passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Hardware of a run.

    Attributes:
        device: The accelerator.
        num_devices: Number of accelerators.
        mfu: Achieved share of the peak speed, over all counted operations including recomputed
            ones. 0.4 is usual for transformers of this size on GPUs; measure your own.
    """

    device: Accelerator
    num_devices: int
    mfu: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_devices < 1:
            raise ValueError("at least one device is needed: --gpus 1")
        if not 0 < self.mfu <= 1:
            raise ValueError("the utilisation is a share of the peak, above 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunPlan:
    """The parts of a run that determine its cost.

    Attributes:
        name: Name in tables.
        workload: The computation of a step for one image.
        method: The method in training, on the meta device.
        optimizers: Of the method's parameters.
        teacher_bytes: Of a frozen teacher's vision tower and head; 0 without one.
        num_steps: Optimizer steps.
        global_batch: Images per step on all devices.
        parallel: Kind of parallelism.
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
        """Number of trained parameters."""
        return sum(p.numel() for p in self.method.parameters() if p.requires_grad)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunCost:
    """Cost of a run on a cluster.

    Attributes:
        plan: The run.
        cluster: The hardware.
        passes: Cost of every pass of a step, for one image.
        state: Bytes on one device without images.
        chunk_bytes: Of the patches' logits that exist at a time.
        bytes_per_image: Bytes per image at the peak.
    """

    plan: RunPlan
    cluster: Cluster
    passes: Mapping[str, Count]
    state: DeviceState
    chunk_bytes: float
    bytes_per_image: float

    @property
    def flops_per_image(self) -> int:
        """Operations of all passes; several micro-batches embed what they contrast once more."""
        once = sum(count.flops for count in self.passes.values())
        if self.micro_batches in (None, 1):
            return once
        return once + sum(self.passes[name].forward_flops for name in _EMBEDDING_PASSES)

    @property
    def total_flops(self) -> int:
        """Operations of the whole run."""
        return self.flops_per_image * self.plan.global_batch * self.plan.num_steps

    @property
    def device_hours(self) -> float:
        """Hours on one device."""
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
        """Images that fit on a device at a time; 0 if the state alone does not fit."""
        free = _USABLE_SHARE * self.cluster.device.memory_bytes - self.state.total
        free -= self.chunk_bytes
        return max(0, int(free // self.bytes_per_image))

    @property
    def micro_batches(self) -> int | None:
        """Number of micro-batches per step that fits; None if not even one image fits."""
        if self.largest_batch == 0:
            return None
        return -(-self.batch_per_device // self.largest_batch)

    @property
    def memory_bytes(self) -> float:
        """Bytes on one device during a micro-batch."""
        parts = self.micro_batches
        images = 1 if parts is None else -(-self.batch_per_device // parts)
        return self.state.total + self.chunk_bytes + images * self.bytes_per_image


def estimate(plan: RunPlan, cluster: Cluster) -> RunCost:
    """Estimate the cost of a run."""
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
    return RunCost(
        plan=plan,
        cluster=cluster,
        passes=passes,
        state=state,
        chunk_bytes=_chunk_bytes(
            plan.workload, images=-(-plan.global_batch // cluster.num_devices)
        ),
        bytes_per_image=kept + _working_bytes(plan.workload),
    )


def _chunk_bytes(workload: Workload, *, images: int) -> float:
    """Bytes of the patches' logits, targets and gradients that exist at a time."""
    if workload.patch_target != "prototypes":
        return 0
    logits = images * workload.num_patches * workload.head.num_prototypes
    return _CHUNK_TENSORS * _FLOAT32 * min(logits, CHUNK_LOGITS)


def _working_bytes(workload: Workload) -> float:
    """Bytes of one image that exist only during the backward pass: those of a recomputed block."""
    if not workload.checkpoint:
        return 0
    sizes = [workload.global_size] + [workload.local_size] * bool(workload.num_local)
    counts = [1, workload.num_local]
    blocks = [
        number * block_bytes(workload.student, size)
        for number, size in zip(counts, sizes, strict=False)
    ]
    return max(blocks)


def teacher_config(folder: Path, assumed: str) -> Tipsv2Config:
    """Configuration of the teacher in a folder, or of an assumed variant if there is none."""
    for place in (folder / MODEL_FOLDER, folder):
        if (place / "config.json").exists():
            found: Tipsv2Config = Tipsv2Config.from_pretrained(place)
            return found
    return variant(assumed).build()


def plan_of(config: TrainingConfig, *, num_ranks: int, assumed_teacher: str = "g14") -> RunPlan:
    """The plan of a configured run; nothing is run.

    Args:
        config: The run.
        num_ranks: Number of ranks for the configured batch size.
        assumed_teacher: Variant of the teacher if its folder does not exist yet.
    """
    student = config.model.build(config.model.vocab_size)
    teacher = None
    if isinstance(config.method, DistillConfig):
        assert config.teacher is not None  # TrainingConfig checks it
        teacher = teacher_config(config.teacher, assumed_teacher)
    with torch.device("meta"):
        method, teacher_bytes = _meta_method(config, student, teacher)
    return RunPlan(
        name=config.name,
        workload=Workload(
            student=student,
            teacher=teacher,
            head=config.tips_method.head,
            checkpoint=config.checkpoint_activations,
            **_views(config),
            **_targets(config),
        ),
        method=method,
        optimizers=build_optimizers([method], config.optim),
        teacher_bytes=teacher_bytes,
        num_steps=config.num_steps,
        global_batch=config.batch_size * config.accumulate * num_ranks,
        parallel=config.parallel,
    )


def known_device() -> Accelerator | None:
    """This machine's accelerator, if it is in the table above."""
    name = torch.cuda.get_device_name().lower() if torch.cuda.is_available() else ""
    return next((device for device in DEVICES.values() if device.name in name), None)


def job_flops(configs: Sequence[TrainingConfig], *, num_ranks: int) -> int:
    """Operations of one step of a job on one device; its runs share one pass of their teacher."""
    total = 0
    for number, config in enumerate(configs):
        plan = plan_of(config, num_ranks=num_ranks)
        passes = passes_of(plan.workload, global_batch=plan.global_batch)
        if number > 0:
            passes.pop(_TEACHER_PASS)
        an_image = sum(count.flops for count in passes.values())
        if config.accumulate > 1:
            an_image += sum(passes[name].forward_flops for name in _EMBEDDING_PASSES)
        total += config.batch_size * config.accumulate * an_image
    return total


def _meta_method(
    config: TrainingConfig, student: Tipsv2Config, teacher: Tipsv2Config | None
) -> tuple[Method, int]:
    """Build the method of a run on the meta device, and count the bytes of its teacher."""
    if teacher is None or not isinstance(config.method, DistillConfig):
        assert isinstance(config.method, PretrainConfig)
        return Pretrain(Tipsv2Model(student), config.method), 0
    dtype: torch.dtype = getattr(torch, config.method.teacher_dtype)
    head = config.method.head
    head_module = head.build(vision_of(teacher).hidden_size)
    frozen = FrozenTeacher(
        vision_model=Tipsv2Model(teacher).vision_model,
        head=head_module,
        centering=Softmax(temperature=head.teacher_temperature),
    )
    teacher_bytes = num_parameters(frozen.vision_model) * dtype.itemsize
    if config.method.patch_loss == "prototypes":
        teacher_bytes += _FLOAT32 * num_parameters(head_module)
    return Distill(Tipsv2Model(student), config.method, frozen), teacher_bytes


def _views(config: TrainingConfig) -> Mapping[str, Any]:
    """Sizes of the crops; for a curriculum of scenes, those of the last stage."""
    data = config.data
    assert not isinstance(data, ViewsConfig)  # of the distillation of a space
    crops = data.crops
    if isinstance(data, ShardsConfig):
        assert crops.global_size is not None  # images from disk are always cropped
        size = crops.global_size
    else:
        size = data.stages[-1].scenes.size
    num_local = crops.num_local if config.tips_method.dino_weight > 0 else 0
    local_size = crops.local_size if num_local else PATCH_SIZE
    return {"global_size": size, "num_local": num_local, "local_size": local_size}


def _targets(config: TrainingConfig) -> Mapping[str, Any]:
    """Targets of the patch loss, and the views that it uses."""
    method = config.tips_method
    if isinstance(method, DistillConfig):
        target: PatchTarget = method.patch_loss if method.patch_weight > 0 else "none"
        return {
            "has_masked_view": method.mask_ratio > 0 and method.patch_weight > 0,
            "patch_target": target,
        }
    has_ibot = method.ibot_weight > 0
    return {
        "has_masked_view": has_ibot,
        "patch_target": "prototypes" if has_ibot else "none",
        "averages_encoder": method.ema == "full",
    }


_COMPUTE = (
    "recipe",
    "vision + text + head, M parameters",
    "TFLOP an image",
    "PFLOP a step",
    "steps x images",
    "GPU hours",
    "hours",
)
_MEMORY = (
    "recipe",
    "parameters",
    "gradients",
    "EMA",
    "optimizer",
    "teacher",
    "copies",
    "an image",
    "images a GPU",
    "fit at once",
    "parts",
    "in use",
)


def render(estimates: Sequence[RunCost], cluster: Cluster) -> str:
    """Format costs on one cluster as Markdown tables with explanations."""
    device = cluster.device
    about = (
        "Every number is an estimate from counted operations and bytes; nothing was run.\n"
        f"Devices: {cluster.num_devices} x {device.title}, {device.peak_flops / 1e12:.0f} TFLOP/s "
        f"at peak, with an assumed utilisation of {100 * cluster.mfu:g} %.\n"
        "Hours depend on this share; measure it on your hardware.\n"
        f"Source: {device.source}.\n"
        "Operations: matrix products, convolutions and attention; a multiply-add is two; "
        "recomputed ones count."
    )
    memory = (
        "Memory of one device in GB of 1e9 bytes. EMA: the moving average of the head. Copies: "
        "autocast's bfloat16 weights\nand what FSDP2 gathers. An image: what the backward pass "
        "keeps of one, and its share of the working memory.\nFit at once: images in nine tenths "
        "of the memory. Parts: micro-batches of a step (accumulate), of which several encode what "
        "they contrast twice."
    )
    return "\n\n".join(
        (
            about,
            _table(_COMPUTE, [_compute_row(estimate) for estimate in estimates]),
            memory,
            _table(_MEMORY, [_memory_row(estimate) for estimate in estimates]),
        )
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows))


def _compute_row(estimate: RunCost) -> list[str]:
    plan = estimate.plan
    model = plan.method.model
    towers = [num_parameters(tower) for tower in (model.vision_model, model.text_model)]
    heads = plan.num_trained - sum(towers)
    return [
        plan.name,
        " + ".join(_significant(number / 1e6) for number in (*towers, heads)),
        _significant(estimate.flops_per_image / 1e12),
        _significant(estimate.flops_per_image * plan.global_batch / 1e15),
        f"{plan.num_steps:,} x {plan.global_batch:,}",
        f"{float(_significant(estimate.device_hours)):,.0f}",
        _significant(estimate.hours),
    ]


def _memory_row(estimate: RunCost) -> list[str]:
    state, parts = estimate.state, estimate.micro_batches
    held = (
        state.parameters,
        state.gradients,
        state.average,
        state.optimizer,
        state.teacher,
        state.copies + state.gathered,
        estimate.bytes_per_image,
    )
    return [
        estimate.plan.name,
        *(_gigabytes(number) for number in held),
        str(estimate.batch_per_device),
        str(estimate.largest_batch),
        "does not fit" if parts is None else str(parts),
        _gigabytes(estimate.memory_bytes),
    ]


def _gigabytes(num_bytes: float) -> str:
    return _significant(num_bytes / 1e9)


def _significant(value: float) -> str:
    """Three significant digits, the precision of the estimates."""
    return f"{float(f'{value:.3g}'):.15g}"
