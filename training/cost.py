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
from typing import Any, Literal, TypeVar, get_args

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
from training.config import TrainingConfig
from training.data.batch import MAX_TOKENS
from training.data.shards.batches import ShardsConfig
from training.heads import HeadConfig
from training.losses.distillation import distillation_loss
from training.methods.base import Method
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain
from training.methods.teacher import MODEL_FOLDER, FrozenTeacher
from training.optim import Adafactor, build_optimizers
from training.parallel import ParallelKind, blocks
from training.targets import Softmax

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What one image costs in one pass, or the sum over passes.

    Attributes:
        forward_flops: Operations of the forward pass.
        backward_flops: Of the backward pass, recomputation included where blocks are checkpointed.
        saved_bytes: What is kept from forward to backward, without the parameters.
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
        """Return the cost of `factor` of the same."""
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
# torch counts the GPU's fused attention and leaves out the processor's, which has the same shapes.
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}


class _Kept:
    """Adds up the storages that autograd keeps, each once, without the module's own."""

    def __init__(self, module: nn.Module) -> None:
        state = (*module.parameters(), *module.buffers())
        self._seen = {tensor.untyped_storage()._cdata for tensor in state}
        self._alive: list[Tensor] = []
        self.num_bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)  # or its number could be given to another storage
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
    """Count what one more image in the batch costs.

    Args:
        build: Makes the module that computes; it is called for the meta device.
        compute: Takes the module and a number of images; gives what is differentiated.
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
    """Count a tower from two shallow ones: all its blocks are alike, so the cost is linear."""
    two, three = count_at(2), count_at(3)
    return two + (three + two.times(-1)).times(num_layers - 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator.

    Attributes:
        name: As `--device` takes it.
        title: As a table prints it.
        peak_flops: Dense bfloat16 operations a second at best; a multiply-add is two.
        memory_bytes: The data sheet's gigabytes, read as 1e9 bytes, which is the lower reading.
        source: Where the numbers are from.
    """

    name: str
    title: str
    peak_flops: float
    memory_bytes: float
    source: str


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            name="a100",
            title="A100 80GB",
            peak_flops=312e12,
            memory_bytes=80e9,
            source="NVIDIA A100 data sheet: 312 TFLOP/s bf16 without sparsity, 80 GB",
        ),
        Device(
            name="h100",
            title="H100 80GB",
            peak_flops=989e12,
            memory_bytes=80e9,
            source="NVIDIA H100 SXM data sheet: 1979 TFLOP/s bf16 with sparsity, half without; "
            "80 GB",
        ),
        Device(
            name="h200",
            title="H200",
            peak_flops=989e12,
            memory_bytes=141e9,
            source="NVIDIA H200 SXM data sheet: 1979 TFLOP/s bf16 with sparsity, half without; "
            "141 GB",
        ),
        # The two chips that the paper's "TPUv5" may mean; torch here runs on neither.
        Device(
            name="tpu-v5e",
            title="TPU v5e",
            peak_flops=197e12,
            memory_bytes=16e9,
            source="Google Cloud TPU documentation: 197 TFLOP/s bf16, 16 GB a chip",
        ),
        Device(
            name="tpu-v5p",
            title="TPU v5p",
            peak_flops=459e12,
            memory_bytes=95e9,
            source="Google Cloud TPU documentation: 459 TFLOP/s bf16, 95 GB a chip",
        ),
    )
}


def device(name: str) -> Device:
    """Look up a device.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in DEVICES:
        raise ValueError(f"no device {name!r}: choose one of {', '.join(DEVICES)}")
    return DEVICES[name]


_FLOAT32, _BFLOAT16 = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Bytes on one device that do not grow with the batch.

    Attributes:
        parameters: Of the student and its head, float32, without averages.
        gradients: Of what is trained, float32; twice under DDP, which exchanges them through
            buckets.
        optimizer: Its moments.
        average: The moving average: the head's, or the head's and the vision tower's.
        teacher: A frozen teacher's weights.
        copies: bfloat16 copies of trained weights, which autocast keeps until the forward pass is
            over.
        gathered: Under FSDP2 what is whole beside the parts.
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
        """Bytes of all of it."""
        return float(sum(getattr(self, item.name) for item in fields(self)))


def num_parameters(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def optimizer_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Bytes that optimizers will hold after their first step; step counters are not counted.

    AdamW keeps two moments of everything, Muon one, and Adafactor one and the means of the squares
    of rows and columns; all in float32.

    Raises:
        ValueError: The optimizer is none of these.
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
            raise ValueError(f"what {type(optimizer).__name__} keeps is not known here")


def state_of(
    learner: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    averages: Sequence[nn.Module] = (),
    teacher_bytes: int = 0,
    parallel: ParallelKind,
    num_devices: int,
) -> State:
    """Lay a run's state out over its devices, as training/parallel.py does.

    Under DDP every device holds everything. Under FSDP2 parameters, gradients, moments and averages
    are cut in as many parts as there are devices; whole, with their gradients, are what belongs to
    no block, and two blocks: the one in use and the next. A frozen teacher is whole on every device
    under both, and so are autocast's copies.

    Args:
        learner: All that learns, on the meta device.
        optimizers: Of the learner's parameters.
        averages: Modules of the learner's that are moving averages and learn nothing themselves.
        teacher_bytes: Of a frozen teacher's weights.
        parallel: How the run is spread.
        num_devices: Over how many.

    Raises:
        ValueError: The kind is unknown.
    """
    if parallel not in get_args(ParallelKind):
        raise ValueError(f"parallel must be one of {get_args(ParallelKind)}, not {parallel!r}")
    is_cut = parallel == "fsdp2" and num_devices > 1
    share = num_devices if is_cut else 1
    averaged = sum(num_parameters(module) for module in averages)
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    buckets = 2 if parallel == "ddp" and num_devices > 1 else 1
    return State(
        parameters=_FLOAT32 * (num_parameters(learner) - averaged) / share,
        gradients=buckets * _FLOAT32 * trained / share,
        optimizer=optimizer_bytes(optimizers) / share,
        average=_FLOAT32 * averaged / share,
        teacher=teacher_bytes,
        copies=_BFLOAT16 * trained,
        gathered=2 * _FLOAT32 * _num_gathered(learner) if is_cut else 0,
    )


def _num_gathered(learner: nn.Module) -> int:
    sizes = [num_parameters(block) for block in blocks(learner)]
    return num_parameters(learner) - sum(sizes) + 2 * max(sizes, default=0)


def batch_that_fits(
    device: Device, state: State, bytes_per_image: float, *, usable_share: float = 0.9
) -> int:
    """Count the images that fit on one device at a time; 0 if not even the state does.

    Args:
        device: Its memory.
        state: What is there without images.
        bytes_per_image: What each adds at the peak.
        usable_share: What the allocator's gaps, the kernels' workspaces and the driver leave of
            the memory. Not measured here; a tenth is a customary reserve.
    """
    free = usable_share * device.memory_bytes - state.total
    return max(0, int(free // bytes_per_image))


PatchTarget = Literal["prototypes", "features", "none"]
NUM_CAPTION_STREAMS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a step does with one image.

    Attributes:
        student: The model in training.
        teacher: The frozen model of a distillation; None in pretraining.
        head: The shape of the prototype heads.
        global_size: Side of the global crop in pixels.
        num_local: Local crops; 0 where nothing learns from them.
        local_size: Their side.
        has_masked_view: Whether the student sees a masked image as well.
        patch_target: What patches learn from.
        averages_encoder: Whether a moving average of the encoder encodes each image once more,
            as full EMA does and head-only EMA does not.
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

    def __post_init__(self) -> None:
        """Check what no type checks at run time."""
        if self.global_size % PATCH_SIZE or self.local_size % PATCH_SIZE:
            raise ValueError(f"sides of crops must be multiples of {PATCH_SIZE} pixels")
        if self.patch_target not in get_args(PatchTarget):
            raise ValueError(f"patch_target must be one of {get_args(PatchTarget)}")

    @property
    def num_patches(self) -> int:
        """N of the global crop."""
        return (self.global_size // PATCH_SIZE) ** 2


def _vision(config: Tipsv2Config) -> Tipsv2VisionConfig:
    assert isinstance(config.vision_config, Tipsv2VisionConfig)  # transformers makes it one
    return config.vision_config


def _text(config: Tipsv2Config) -> Tipsv2TextConfig:
    assert isinstance(config.text_config, Tipsv2TextConfig)
    return config.text_config


def _read(text: str) -> Tipsv2Config:
    """A configuration from the text that names it where counts are kept."""
    config: Tipsv2Config = Tipsv2Config.from_dict(json.loads(text))
    return config


def _shallow(config: Tipsv2Config, num_layers: int, *, checkpoint: bool) -> Tipsv2Model:
    vision = {**_vision(config).to_dict(), "num_hidden_layers": num_layers}
    text = {**_text(config).to_dict(), "num_hidden_layers": num_layers}
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
    """Count an image of a side in pixels through the vision tower."""
    text = config.to_json_string()

    def count_at(num_layers: int) -> Count:
        return _blocks(text, size, num_layers, trains=trains, checkpoint=checkpoint)

    return extend_in_depth(count_at, _vision(config).num_hidden_layers)


def block_bytes(config: Tipsv2Config, size: int) -> int:
    """Bytes that one block of the vision tower keeps of an image where nothing is recomputed."""
    text = config.to_json_string()
    two, three = (_blocks(text, size, number, trains=True, checkpoint=False) for number in (2, 3))
    return three.saved_bytes - two.saved_bytes


@cache  # several recipes, and both stages of one, share passes
def _blocks(text: str, size: int, num_layers: int, *, trains: bool, checkpoint: bool) -> Count:
    config = _read(text)
    return count_per_image(
        lambda: _shallow(config, num_layers, checkpoint=checkpoint),
        lambda model, batch: _encode(model, batch, size),
        trains=trains,
    )


def text_pass(config: Tipsv2Config, *, checkpoint: bool = False) -> Count:
    """Count a caption of 64 tokens through the text tower."""
    return _text_pass(config.to_json_string(), checkpoint=checkpoint)


@cache
def _text_pass(text: str, *, checkpoint: bool) -> Count:
    config = _read(text)

    def compute(model: Tipsv2Model, batch: int) -> Tensor:
        token_ids_BL = torch.zeros((batch, MAX_TOKENS), dtype=torch.int64)
        return text_features(model, token_ids_BL, torch.ones_like(token_ids_BL))

    def count_at(num_layers: int) -> Count:
        return count_per_image(lambda: _shallow(config, num_layers, checkpoint=checkpoint), compute)

    return extend_in_depth(count_at, _text(config).num_hidden_layers)


def head_pass(head: HeadConfig, width: int, num_tokens: int) -> Count:
    """Count tokens of one image through a head and into its loss."""

    def compute(module: nn.Module, batch: int) -> Tensor:
        logits_BNK = module(torch.empty(batch, num_tokens, width, requires_grad=True))
        targets_BNK = torch.empty(logits_BNK.shape)  # a float32 softmax
        return distillation_loss(logits_BNK / head.student_temperature, targets_BNK)

    return count_per_image(lambda: head.build(width), compute)


def teacher_head_pass(head: HeadConfig, width: int, num_tokens: int) -> Count:
    """Count tokens of one image through a head that nothing is learnt through."""

    def compute(module: nn.Module, batch: int) -> Tensor:
        output: Tensor = module(torch.empty(batch, num_tokens, width))
        return output

    return count_per_image(lambda: head.build(width), compute, trains=False)


def projector_pass(width: int, teacher_width: int, num_tokens: int) -> Count:
    """Count tokens of one image through the linear layer to a teacher's width."""

    def compute(module: nn.Linear, batch: int) -> Tensor:
        projected = module(torch.empty(batch, num_tokens, width, requires_grad=True))
        target = torch.empty(batch, num_tokens, teacher_width)
        return F.cosine_similarity(projected.float(), target, dim=-1)

    return count_per_image(lambda: nn.Linear(width, teacher_width), compute)


def contrast_pass(width: int, global_batch: int) -> Count:
    """Count one image against all captions and its captions against all images.

    Each of the two streams makes a row of cosines with the gathered batch in both directions; the
    backward pass needs two products for each. What is kept is the rows, in float32.
    """
    rows = 2 * NUM_CAPTION_STREAMS
    forward = rows * 2 * width * global_batch
    return Count(
        forward_flops=forward, backward_flops=2 * forward, saved_bytes=rows * 4 * global_batch
    )


def passes_of(workload: Workload, *, global_batch: int) -> dict[str, Count]:
    """Name and count every pass that a step makes for one image."""
    student, teacher = workload.student, workload.teacher
    width = _vision(student).hidden_size
    checkpoint, size = workload.checkpoint, workload.global_size
    view = vision_pass(student, size, checkpoint=checkpoint)
    passes = {"student, whole image": view}
    if workload.has_masked_view:
        passes["student, masked image"] = view
    if workload.num_local:
        local = vision_pass(student, workload.local_size, checkpoint=checkpoint)
        passes[f"student, {workload.num_local} local crops"] = local.times(workload.num_local)
    if teacher is not None:
        passes["teacher, whole image"] = vision_pass(teacher, size, trains=False)
    elif workload.averages_encoder:
        passes["averaged encoder, whole image"] = vision_pass(student, size, trains=False)
    passes |= _head_passes(workload)
    captions = text_pass(student, checkpoint=checkpoint).times(NUM_CAPTION_STREAMS)
    passes[f"text, {NUM_CAPTION_STREAMS} captions"] = captions
    passes["contrast"] = contrast_pass(width, global_batch)
    return passes


def _head_passes(workload: Workload) -> dict[str, Count]:
    """Count the heads: patches of one view, and CLS tokens where local crops learn from them."""
    width = _vision(workload.student).hidden_size
    config = workload.teacher or workload.student
    teacher_width = _vision(config).hidden_size
    patches = workload.num_patches if workload.patch_target == "prototypes" else 0
    passes = {}
    if workload.patch_target == "features":
        passes["projector"] = projector_pass(width, teacher_width, workload.num_patches)
    if patches + workload.num_local:
        tokens = patches + workload.num_local
        passes["student head"] = head_pass(workload.head, width, tokens)
        tokens = patches + bool(workload.num_local)
        passes["teacher head"] = teacher_head_pass(workload.head, teacher_width, tokens)
    return passes


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


def teacher_config(folder: Path, assumed: str) -> Tipsv2Config:
    """The size of a teacher: of the model in its folder, or an assumed variant if there is none."""
    for place in (folder / MODEL_FOLDER, folder):
        if (place / "config.json").exists():
            found: Tipsv2Config = Tipsv2Config.from_pretrained(place)
            return found
    return variant(assumed).build()


def plan_of(config: TrainingConfig, *, num_ranks: int, assumed_teacher: str = "g14") -> Plan:
    """Read a plan off a configuration.

    Args:
        config: The run; nothing of it is started.
        num_ranks: The ranks that its batch size is written for.
        assumed_teacher: The variant of a teacher that is not there yet.
    """
    student = config.model.build(config.model.vocab_size)
    teacher = None
    if isinstance(config.method, DistillConfig):
        assert config.teacher is not None  # TrainingConfig checks it
        teacher = teacher_config(config.teacher, assumed_teacher)
    with torch.device("meta"):
        method, teacher_bytes = _meta_method(config, student, teacher)
    return Plan(
        name=config.name,
        workload=Workload(
            student=student,
            teacher=teacher,
            head=config.method.head,
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


def _meta_method(
    config: TrainingConfig, student: Tipsv2Config, teacher: Tipsv2Config | None
) -> tuple[Method, int]:
    """Build the method that a run would build, and say what its teacher weighs."""
    if teacher is None or not isinstance(config.method, DistillConfig):
        assert not isinstance(config.method, DistillConfig)
        return Pretrain(Tipsv2Model(student), config.method), 0
    dtype: torch.dtype = getattr(torch, config.method.teacher_dtype)
    frozen = _meta_teacher(Tipsv2Model(teacher), config.method.head)
    assert frozen.head is not None
    teacher_bytes = num_parameters(frozen.model) * dtype.itemsize
    if config.method.patch_loss == "prototypes":
        teacher_bytes += _FLOAT32 * num_parameters(frozen.head)
    return Distill(Tipsv2Model(student), config.method, frozen), teacher_bytes


def _meta_teacher(model: Tipsv2Model, head: HeadConfig) -> FrozenTeacher:
    width = int(model.vision_model.config.hidden_size)
    return FrozenTeacher(
        model=model,
        head=head.build(width),
        centering=Softmax(temperature=head.teacher_temperature),
    )


def _views(config: TrainingConfig) -> Mapping[str, Any]:
    """Sides of the crops; a curriculum of scenes counts at its last size."""
    data, crops = config.data, config.data.crops
    if isinstance(data, ShardsConfig):
        assert crops.global_size is not None  # images from disk are always cropped
        size = crops.global_size
    else:
        size = data.stages[-1].scenes.size
    num_local = crops.num_local if config.method.dino_weight > 0 else 0
    local_size = crops.local_size if num_local else PATCH_SIZE
    return {"global_size": size, "num_local": num_local, "local_size": local_size}


def _targets(config: TrainingConfig) -> Mapping[str, Any]:
    """What patches learn from, and through which views."""
    method = config.method
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


def render(estimates: Sequence[Estimate], cluster: Cluster) -> str:
    """Lay estimates on one cluster out, with what they are estimates of."""
    device = cluster.device
    about = (
        "Every number is an estimate from counted operations and bytes; nothing was run.\n"
        f"Devices: {cluster.num_devices} x {device.title}, {device.peak_flops / 1e12:.0f} TFLOP/s "
        f"at best, of which {100 * cluster.mfu:g} % are assumed to be used:\n"
        "hours are as good as this share, which is yours to measure.\n"
        f"Source: {device.source}.\n"
        "Operations: matrix products, convolutions and attention; a multiply-add is two; "
        "recomputed ones count."
    )
    memory = (
        "Memory of one device in GB of 1e9 bytes. EMA: the moving average of the head. Copies: "
        "autocast's bfloat16 weights\nand what FSDP2 has whole. An image: what the backward pass "
        "keeps of one, and its share of the working memory.\nFit at once: images in nine tenths "
        "of the memory. Parts: micro-batches of a step (accumulate); contrast sees one at a time."
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


def _compute_row(estimate: Estimate) -> list[str]:
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


def _memory_row(estimate: Estimate) -> list[str]:
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
    """Three digits: no estimate is better than that."""
    return f"{float(f'{value:.3g}'):.15g}"
