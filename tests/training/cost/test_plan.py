"""Plans are read off configurations, and estimates are what their parts give."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.config import DataConfig, ModelConfig, TrainingConfig
from training.cost import Cluster, Device, Plan, estimate, plan_of
from training.data.crops import CropConfig
from training.data.shards.batches import ShardsConfig
from training.heads import HeadConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig

HEAD = HeadConfig(layers=2, hidden=24, bottleneck=8, num_prototypes=20)
TINY = ModelConfig(dim=16, vision_layers=2, text_layers=2, heads=2, native_size=56, vocab_size=300)
CARD = Device(name="x", title="X", peak_flops=1e12, memory_bytes=1e9, source="made up")


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


def distilled(config: TrainingConfig, method: DistillConfig) -> TrainingConfig:
    return replace(config, method=method, teacher=Path("runs/none"))


def test_a_plan_says_what_the_configuration_says(config: TrainingConfig) -> None:
    plan = plan_of(config, num_ranks=4)
    work = plan.workload
    assert (plan.num_steps, plan.global_batch, plan.teacher_bytes) == (10, 64, 0)
    assert (work.global_size, work.num_local, work.local_size) == (56, 3, 28)
    assert work.has_masked_view
    assert not work.averages_encoder
    assert work.teacher is None
    assert {p.device.type for p in plan.method.parameters()} == {"meta"}
    assert plan.num_trained == sum(p.numel() for p in plan.method.parameters() if p.requires_grad)
    full = plan_of(replace(config, method=PretrainConfig(head=HEAD, ema="full")), num_ranks=4)
    assert full.workload.averages_encoder


def test_views_that_no_loss_looks_at_are_not_counted(config: TrainingConfig) -> None:
    bare = PretrainConfig(head=HEAD, dino_weight=0.0, ibot_weight=0.0)
    work = plan_of(replace(config, method=bare), num_ranks=1).workload
    assert (work.num_local, work.has_masked_view, work.patch_target) == (0, False, "none")


def test_a_distillation_masks_nothing_and_holds_its_teacher(config: TrainingConfig) -> None:
    exact = plan_of(distilled(config, DistillConfig(head=HEAD)), num_ranks=1, assumed_teacher="b14")
    assert not exact.workload.has_masked_view
    assert exact.workload.teacher is not None
    halved = DistillConfig(head=HEAD, teacher_dtype="bfloat16", patch_loss="features")
    half = plan_of(distilled(config, halved), num_ranks=1, assumed_teacher="b14")
    model = 86_316_288 + 109_632_000 + 1  # the released B/14
    assert half.teacher_bytes == 2 * model
    assert exact.teacher_bytes > 4 * model
    masked = distilled(config, DistillConfig(head=HEAD, mask_ratio=0.5))
    assert plan_of(masked, num_ranks=1, assumed_teacher="b14").workload.has_masked_view


def test_drawn_scenes_count_at_their_last_size(config: TrainingConfig) -> None:
    scenes = replace(config, data=DataConfig())
    size = DataConfig().stages[-1].scenes.size
    assert plan_of(scenes, num_ranks=1).workload.global_size == size


@pytest.fixture
def plan(config: TrainingConfig) -> Plan:
    """A step of 64 images on four ranks."""
    return plan_of(config, num_ranks=4)


def test_hours_are_operations_over_speed(plan: Plan) -> None:
    guess = estimate(plan, Cluster(device=CARD, num_devices=4, mfu=0.5))
    assert guess.flops_per_image == sum(count.flops for count in guess.passes.values())
    seconds = guess.flops_per_image * 64 * 10 / (1e12 * 0.5)
    assert guess.device_hours == pytest.approx(seconds / 3600)
    assert guess.hours == pytest.approx(guess.device_hours / 4)
    assert guess.batch_per_device == 16
    twice = estimate(plan, Cluster(device=CARD, num_devices=8, mfu=0.25))
    assert twice.hours == pytest.approx(guess.hours)
    assert twice.batch_per_device == 8


def test_a_step_that_does_not_fit_is_cut_in_parts(plan: Plan) -> None:
    roomy = estimate(plan, Cluster(device=CARD, num_devices=4, mfu=0.5))
    assert roomy.micro_batches == 1
    assert roomy.memory_bytes == roomy.state.total + 16 * roomy.bytes_per_image
    held = roomy.state.total + 5.5 * roomy.bytes_per_image
    tight = replace(CARD, memory_bytes=held / 0.9)
    guess = estimate(plan, Cluster(device=tight, num_devices=4, mfu=0.5))
    assert (guess.largest_batch, guess.micro_batches) == (5, 4)
    assert guess.memory_bytes == guess.state.total + 4 * guess.bytes_per_image
    small = replace(CARD, memory_bytes=guess.state.total)
    assert estimate(plan, Cluster(device=small, num_devices=4, mfu=0.5)).micro_batches is None


def test_recomputing_blocks_costs_operations_and_saves_memory(config: TrainingConfig) -> None:
    cluster = Cluster(device=CARD, num_devices=1, mfu=0.5)
    deep = replace(config, model=replace(TINY, vision_layers=8), batch_size=2, accumulate=1)
    plain, saving = (
        estimate(plan_of(replace(deep, checkpoint_activations=on), num_ranks=1), cluster)
        for on in (False, True)
    )
    assert saving.total_flops > plain.total_flops
    assert saving.bytes_per_image < plain.bytes_per_image


@pytest.mark.parametrize(("num_devices", "mfu"), [(0, 0.4), (8, 0.0), (8, 1.01)])
def test_a_cluster_that_cannot_be_is_refused(num_devices: int, mfu: float) -> None:
    with pytest.raises(ValueError, match=r"at least one device|share of the peak"):
        Cluster(device=CARD, num_devices=num_devices, mfu=mfu)
