"""Cost of a run: operations against real steps, memory, and the plan of a configuration."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import Tipsv2Config, Tipsv2Model

from model.features import vision_tokens
from model.variants import VARIANTS
from training.config import ModelConfig, TrainingConfig
from training.cost import (
    _ATTENTION,
    _CHUNK_TENSORS,
    DEVICES,
    Accelerator,
    Cluster,
    Count,
    DeviceState,
    RunCost,
    RunPlan,
    Workload,
    _chunk_bytes,
    _Kept,
    _working_bytes,
    block_bytes,
    count_per_image,
    estimate,
    extend_in_depth,
    job_flops,
    known_device,
    optimizer_bytes,
    passes_of,
    plan_of,
    state_of,
    vision_pass,
)
from training.data.batch import MAX_TOKENS, Batch, TextBatch
from training.data.crops import CropConfig
from training.data.shards.batches import ShardsConfig
from training.heads import HeadConfig
from training.losses.distillation import prototype_losses
from training.methods.base import Method, Step
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain, PretrainConfig
from training.methods.teacher import FrozenTeacher
from training.optim import OptimConfig, OptimizerName, build_optimizers
from training.parallel import ParallelKind
from training.targets import Softmax

TOKENS, WIDTH, HIDDEN = 5, 8, 12


def test_a_linear_layer_costs_two_operations_per_weight_and_token() -> None:
    def compute(layer: nn.Linear, batch: int) -> Tensor:
        needs_grad = torch.is_grad_enabled()
        output: Tensor = layer(torch.empty(batch, TOKENS, WIDTH, requires_grad=needs_grad))
        return output

    count = count_per_image(lambda: nn.Linear(WIDTH, HIDDEN), compute)
    product = 2 * TOKENS * WIDTH * HIDDEN
    assert count.forward_flops == product
    # One product for the gradient of the input and one for that of the weights.
    assert count.backward_flops == 2 * product
    # The input, in bfloat16, for the gradient of the weights; the weights are no activation.
    assert count.saved_bytes == 2 * TOKENS * WIDTH
    frozen = count_per_image(lambda: nn.Linear(WIDTH, HIDDEN), compute, trains=False)
    assert frozen == Count(forward_flops=product)


def test_shared_activations_are_counted_once() -> None:
    def compute(_: nn.Module, batch: int) -> Tensor:
        values = torch.empty(batch, WIDTH, requires_grad=True) * 1.0
        return values.sin() + values.cos()  # both keep `values`

    assert count_per_image(nn.Identity, compute).saved_bytes == 4 * WIDTH


def tower(depth: int) -> Tipsv2Model:
    sizes = {"hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2}
    config = Tipsv2Config(
        vision_config={**sizes, "image_size": 28},
        text_config={**sizes, "intermediate_size": 64, "vocab_size": 40},
    )
    return Tipsv2Model(config)


def encode(model: Tipsv2Model, batch: int) -> Tensor:
    return vision_tokens(model, torch.zeros(batch, 3, 28, 28)).patches_BND


@pytest.mark.slow
def test_depth_is_linear_and_recomputing_costs_a_forward_pass() -> None:
    def at(depth: int) -> Count:
        return count_per_image(lambda: tower(depth), encode)

    def recomputing() -> Tipsv2Model:
        model = tower(4)
        model.train()
        model.activation_checkpointing_enable()
        return model

    plain, saving = at(4), count_per_image(recomputing, encode)
    assert extend_in_depth(at, 4) == plain
    assert saving.forward_flops == plain.forward_flops
    extra = saving.backward_flops - plain.backward_flops
    patch_embedding = 2 * 4 * (3 * 14 * 14) * 16
    assert extra == plain.forward_flops - patch_embedding  # all blocks are done again
    assert saving.saved_bytes < plain.saved_bytes / 2


@pytest.mark.parametrize("name", ["muon", "adamw", "adafactor"])
def test_optimizer_state_is_predicted_exactly(name: OptimizerName) -> None:
    module = tower(3)
    optimizers = build_optimizers([module], OptimConfig(optimizer=name))
    expected = optimizer_bytes(optimizers)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    kept = [
        tensor.numel() * tensor.element_size()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for key, tensor in state.items()
        if key != "step"
    ]
    assert sum(kept) == expected


def laid_out(parallel: ParallelKind, num_devices: int) -> DeviceState:
    """State of a tower, and within it a moving average of a thousand parameters."""
    average = nn.Linear(1000, 1, bias=False).requires_grad_(requires_grad=False)
    module = nn.ModuleList([tower(3), average])
    return state_of(
        module,
        build_optimizers([module], OptimConfig(optimizer="adamw")),
        averages=[average],
        teacher_bytes=77,
        parallel=parallel,
        num_devices=num_devices,
    )


def test_a_single_device_holds_everything_once() -> None:
    count = sum(parameter.numel() for parameter in tower(3).parameters())
    for kind in ("ddp", "fsdp2"):
        state = laid_out(kind, 1)
        assert state.total == 4 * count * (1 + 1 + 2) + 4 * 1000 + 77 + 2 * count


def test_frozen_parameters_have_no_gradient() -> None:
    module = tower(3)
    text = sum(parameter.numel() for parameter in module.text_model.parameters())
    everything = sum(parameter.numel() for parameter in module.parameters())
    module.text_model.requires_grad_(requires_grad=False)
    optimizers = build_optimizers([module], OptimConfig(optimizer="adamw"))
    state = state_of(module, optimizers, parallel="ddp", num_devices=1)
    assert state.parameters == 4 * everything
    assert state.gradients == 4 * (everything - text)
    assert state.optimizer == 2 * state.gradients


def test_sharded_state_shrinks_with_the_devices_and_copied_state_does_not() -> None:
    four, eight = laid_out("fsdp2", 4), laid_out("fsdp2", 8)
    for part in ("parameters", "gradients", "optimizer", "average"):
        assert getattr(four, part) == 2 * getattr(eight, part)
    for part in ("teacher", "copies", "gathered"):
        assert getattr(four, part) == getattr(eight, part) > 0
    assert laid_out("ddp", 4) == laid_out("ddp", 8)
    assert laid_out("ddp", 4).gathered == 0


HEAD = HeadConfig(layers=2, hidden=24, bottleneck=8, num_prototypes=20)
STUDENT = ModelConfig(dim=16, vision_layers=2, text_layers=2, heads=2, native_size=56).build(50)
TEACHER = ModelConfig(dim=32, vision_layers=3, text_layers=1, heads=2, native_size=56).build(50)
NUM_CROPS = 3
WORK = Workload(student=STUDENT, head=HEAD, global_size=56, num_local=NUM_CROPS, local_size=28)
DISTILLED = replace(WORK, teacher=TEACHER, has_masked_view=False)


def block_flops(tokens: int, width: int, hidden: int, *, matrices: int = 2) -> int:
    """One block: four projections, an MLP of some matrices, scores and their sums."""
    projections = 4 * 2 * tokens * width * width
    mlp = matrices * 2 * tokens * width * hidden
    return projections + mlp + 2 * 2 * tokens * tokens * width


@pytest.mark.parametrize(("name", "matrices"), [("b14", 2), ("g14", 3)])
def test_a_tower_of_the_family_costs_its_products(name: str, matrices: int) -> None:
    size = VARIANTS[name]
    count = vision_pass(size.build(), 224, trains=False)
    patches = 16 * 16
    embedding = 2 * patches * 3 * 14 * 14 * size.width
    block = block_flops(patches + 2, size.width, size.vision_mlp, matrices=matrices)
    assert count.forward_flops == embedding + size.vision_layers * block
    assert count.backward_flops == count.saved_bytes == 0


@pytest.mark.slow
def test_a_block_keeps_its_tokens_and_no_scores_of_pairs() -> None:
    # 4 or 16 patches, each time with two CLS tokens.
    assert block_bytes(STUDENT, 56) == 3 * block_bytes(STUDENT, 28) > 0


def pretrained(config: PretrainConfig) -> Method:
    return Pretrain(Tipsv2Model(STUDENT), config)


def distilled(config: DistillConfig) -> Method:
    teacher = FrozenTeacher(
        vision_model=Tipsv2Model(TEACHER).vision_model,
        head=HEAD.build(32),
        centering=Softmax(temperature=0.06),
    )
    return Distill(Tipsv2Model(STUDENT), config, teacher)


def batch_of(rows: int) -> Batch:
    """Captions as long as they may be, all different."""

    def texts(first: int) -> TextBatch:
        tokens_BL = torch.ones((rows, MAX_TOKENS), dtype=torch.int64)
        tokens_BL[:, 0] = torch.arange(rows) + first
        return TextBatch(token_ids_BL=tokens_BL, mask_BL=torch.ones_like(tokens_BL))

    return Batch(
        pixels_B3HW=torch.rand(rows, 3, 56, 56),
        locals_CB3hw=torch.rand(NUM_CROPS, rows, 3, 28, 28),
        captioned_B=torch.ones(rows, dtype=torch.bool),
        cls1=texts(1),
        cls1_ids_T=torch.arange(rows),
        cls2=texts(20),
        cls2_ids_T=torch.arange(rows),
        names=texts(1),
        name_ids_U=torch.arange(rows),
        present_BU=torch.ones((rows, rows), dtype=torch.bool),
    )


def executed(method: Method, rows: int) -> tuple[int, int]:
    """Operations of a step, and bytes that its forward pass keeps."""
    step = Step(
        progress=0.5,
        generator=torch.Generator(),
        first_row=0,
        global_rows=rows,
        is_logged=False,
    )
    method.zero_grad()
    kept = _Kept(method)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor)
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        with torch.autocast("cpu", dtype=torch.bfloat16), hooks:
            loss = method(batch_of(rows), step).loss
        loss.backward()
    return int(counter.get_total_flops()), kept.num_bytes


CASES: dict[str, tuple[Callable[[], Method], Workload]] = {
    "pretrain": (lambda: pretrained(PretrainConfig(head=HEAD)), WORK),
    "full EMA": (
        lambda: pretrained(PretrainConfig(head=HEAD, ema="full")),
        replace(WORK, averages_encoder=True),
    ),
    "recomputed": (lambda: pretrained(PretrainConfig(head=HEAD)), replace(WORK, checkpoint=True)),
    "distill": (lambda: distilled(DistillConfig(head=HEAD)), DISTILLED),
    "features": (
        lambda: distilled(DistillConfig(head=HEAD, patch_loss="features", dino_weight=0.0)),
        replace(DISTILLED, patch_target="features", num_local=0),
    ),
}


def split(two: int, four: int, six: int) -> tuple[int, int]:
    """Solve for the cost of an image and of a pair of images; the rest is a constant."""
    a_pair, rest = divmod(six - 2 * four + two, 8)
    assert rest == 0
    return (four - two) // 2 - 6 * a_pair, a_pair


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_passes_add_up_to_what_a_method_executes(case: str) -> None:
    build, work = CASES[case]
    method = build().train()
    method.model.set_attn_implementation("sdpa")
    if isinstance(method, Distill):
        method._teacher.vision_model.set_attn_implementation("sdpa")
    if work.checkpoint:
        method.model.activation_checkpointing_enable()
    flops, kept = zip(*(executed(method, rows) for rows in (2, 4, 6)), strict=True)
    passes = passes_of(work, global_batch=1)
    contrast = passes.pop("contrast")
    flops_a_image, flops_a_pair = split(*flops)
    assert flops_a_image == sum(count.flops for count in passes.values())
    # One rank makes both directions' cosines in one product; several need one for each.
    assert contrast.flops == 2 * flops_a_pair
    # Passes that share a tensor keep it once: what is counted is never too little, nor far off.
    kept_a_image, _ = split(*kept)
    counted = sum(count.saved_bytes for count in passes.values())
    assert kept_a_image <= counted <= 1.2 * kept_a_image


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators return, until each is freed; keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, _: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator."""
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in self._sizes:
                storage = value.untyped_storage()
                self._sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._sizes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._sizes.values()))
        return output


def test_patches_and_their_log_need_no_more_memory_than_planned() -> None:
    head = replace(HEAD, num_prototypes=8192)  # so that prototypes take the most, as at full size
    method = pretrained(PretrainConfig(head=head, dino_weight=0.0)).train()
    method.model.set_attn_implementation("sdpa")
    work = replace(WORK, head=head, num_local=0)

    def peak(rows: int) -> int:
        batch, live = batch_of(rows), LiveBytes()
        method.zero_grad()
        step = Step(progress=0.5, generator=torch.Generator(), first_row=0, global_rows=rows)
        with live:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                result = method(batch, step)
            result.loss.backward()
        assert {"patch_visible", "patch_masked"} <= set(result.metrics)
        return live.peak

    kept = sum(count.saved_bytes for count in passes_of(work, global_batch=2).values())
    planned = kept + _working_bytes(work) + _chunk_bytes(work, images=1)
    assert 0.9 * planned < (peak(6) - peak(2)) / 4 <= planned


def test_the_logits_of_all_tokens_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head = HeadConfig(layers=1, bottleneck=8, num_prototypes=4096).build(8)

    def peak(num_tokens: int) -> int:
        features_TF = torch.randn(num_tokens, 8, requires_grad=True)
        targets = Softmax(temperature=0.1).of_tokens(
            torch.randn(num_tokens, 8), torch.randn(4096, 8)
        )
        head.zero_grad()
        live = LiveBytes()
        with live:
            prototype_losses(features_TF, head.directions(), targets, 0.1).mean().backward()
        return live.peak

    whole = peak(1024) - peak(512)
    monkeypatch.setattr("training.losses.distillation.CHUNK_LOGITS", 64 * 4096)
    parted = peak(1024) - peak(512)
    assert whole > _CHUNK_TENSORS * 4 * 512 * 4096 * 0.9
    assert parted < 0.01 * whole
    assert peak(1024) < 1.3 * _CHUNK_TENSORS * 4 * 64 * 4096


TINY = ModelConfig(dim=16, vision_layers=2, text_layers=2, heads=2, native_size=56, vocab_size=300)
CARD = Accelerator(name="x", title="X", peak_flops=1e12, memory_bytes=1e9, source="made up")


@pytest.fixture
def config() -> TrainingConfig:
    """Pretraining on shards, two micro-batches a step."""
    crops = CropConfig(global_size=56, num_local=3, local_size=28)
    return TrainingConfig(
        name="tiny",
        method=PretrainConfig(head=HEAD),
        model=TINY,
        data=ShardsConfig(folder=Path("shards"), crops=crops),
        num_steps=10,
        batch_size=8,
        accumulate=2,
    )


def work_of(config: TrainingConfig, method: PretrainConfig) -> Workload:
    return plan_of(replace(config, method=method), num_ranks=1).workload


def test_a_plan_follows_the_configuration(config: TrainingConfig) -> None:
    plan = plan_of(config, num_ranks=4)
    work = plan.workload
    assert (plan.num_steps, plan.global_batch, plan.teacher_bytes) == (10, 64, 0)
    assert (work.global_size, work.num_local, work.local_size) == (56, 3, 28)
    assert (work.has_masked_view, work.averages_encoder, work.teacher) == (True, False, None)
    assert {p.device.type for p in plan.method.parameters()} == {"meta"}
    assert work_of(config, PretrainConfig(head=HEAD, ema="full")).averages_encoder
    # Views that no loss uses are not counted.
    bare = work_of(config, PretrainConfig(head=HEAD, dino_weight=0.0, ibot_weight=0.0))
    assert (bare.num_local, bare.has_masked_view, bare.patch_target) == (0, False, "none")


def test_a_distillation_masks_nothing_and_holds_its_teacher(config: TrainingConfig) -> None:
    def planned(method: DistillConfig) -> RunPlan:
        student = replace(config, method=method, teacher=Path("runs/none"))
        return plan_of(student, num_ranks=1, assumed_teacher="b14")

    exact = planned(DistillConfig(head=HEAD))
    assert not exact.workload.has_masked_view
    assert exact.workload.teacher is not None
    half = planned(DistillConfig(head=HEAD, teacher_dtype="bfloat16", patch_loss="features"))
    tower = 86_316_288  # the released B/14's; no loss uses a teacher's text tower
    assert half.teacher_bytes == 2 * tower
    head = sum(p.numel() for p in HEAD.build(768).parameters())
    assert exact.teacher_bytes == 4 * (tower + head)
    assert planned(DistillConfig(head=HEAD, mask_ratio=0.5)).workload.has_masked_view


@pytest.mark.slow
def test_hours_and_micro_batches_follow_from_speed_and_memory(config: TrainingConfig) -> None:
    found = estimate(plan_of(config, num_ranks=4), Cluster(device=CARD, num_devices=4, mfu=0.5))
    assert found.flops_per_image == sum(count.flops for count in found.passes.values())
    seconds = found.flops_per_image * 64 * 10 / (1e12 * 0.5)
    assert found.device_hours == pytest.approx(seconds / 3600)
    assert found.hours == pytest.approx(found.device_hours / 4)
    twice = replace(found, cluster=Cluster(device=CARD, num_devices=8, mfu=0.25))
    assert twice.hours == pytest.approx(found.hours)
    assert (found.batch_per_device, twice.batch_per_device) == (16, 8)
    assert found.micro_batches == 1
    fixed = found.state.total + found.chunk_bytes
    assert found.memory_bytes == fixed + 16 * found.bytes_per_image

    def on_card_of(memory_bytes: float) -> RunCost:
        card = replace(CARD, memory_bytes=memory_bytes)
        return replace(found, cluster=replace(found.cluster, device=card))

    tight = on_card_of((fixed + 5.5 * found.bytes_per_image) / 0.9)
    assert (tight.largest_batch, tight.micro_batches) == (5, 4)
    assert tight.memory_bytes == fixed + 4 * found.bytes_per_image
    again = ("student, whole image", "text, 2 captions")
    forward = sum(found.passes[name].forward_flops for name in again)
    assert tight.flops_per_image == found.flops_per_image + forward
    assert on_card_of(found.state.total).micro_batches is None


@pytest.mark.slow
def test_students_of_one_job_pay_for_one_pass_of_their_teacher(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = DistillConfig(head=HEAD)
    student = replace(config, method=method, teacher=Path("runs/none"), accumulate=1)
    monkeypatch.setattr("training.cost.teacher_config", lambda *_: TEACHER)
    plan = plan_of(student, num_ranks=2)
    passes = passes_of(plan.workload, global_batch=16)
    alone = job_flops([student], num_ranks=2)
    assert alone == 8 * sum(count.flops for count in passes.values())
    saved = 8 * passes["teacher, whole image"].flops
    assert job_flops([student, student], num_ranks=2) == 2 * alone - saved
    again = ("student, whole image", "text, 2 captions")
    twice = job_flops([replace(student, accumulate=2)], num_ranks=2)
    assert twice > 2 * (alone + 8 * sum(passes[name].forward_flops for name in again))


def test_an_accelerator_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_device() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert known_device() is DEVICES["h100"]
