"""The passes of a step: against products worked by hand, and against what the methods execute."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Tipsv2Config, Tipsv2Model

from model.variants import VARIANTS
from training.config import ModelConfig
from training.cost import (
    _ATTENTION,
    Workload,
    _Kept,
    block_bytes,
    passes_of,
    text_pass,
    vision_pass,
)
from training.data.batch import MAX_TOKENS, Batch, TextBatch
from training.heads import HeadConfig
from training.methods.base import Method, Step
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain, PretrainConfig
from training.methods.teacher import FrozenTeacher
from training.targets import Softmax

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


@pytest.mark.parametrize(("name", "matrices"), [("b14", 2), ("so400m14", 2), ("g14", 3)])
def test_a_tower_of_the_family_costs_its_products(name: str, matrices: int) -> None:
    size = VARIANTS[name]
    count = vision_pass(size.build(), 224, trains=False)
    patches = 16 * 16
    embedding = 2 * patches * 3 * 14 * 14 * size.width
    block = block_flops(patches + 2, size.width, size.vision_mlp, matrices=matrices)
    assert count.forward_flops == embedding + size.vision_layers * block
    assert count.backward_flops == count.saved_bytes == 0


def test_a_caption_costs_its_products() -> None:
    size = VARIANTS["b14"]
    block = block_flops(MAX_TOKENS, size.width, size.text_mlp)
    assert text_pass(size.build()).forward_flops == size.text_layers * block


def test_a_block_keeps_its_tokens_and_no_scores_of_pairs() -> None:
    # 4 or 16 patches, each time with two CLS tokens.
    assert block_bytes(STUDENT, 56) == 3 * block_bytes(STUDENT, 28) > 0


def pretrained(config: PretrainConfig) -> Method:
    return Pretrain(Tipsv2Model(STUDENT), config)


def distilled(config: DistillConfig) -> Method:
    teacher = FrozenTeacher(
        model=Tipsv2Model(TEACHER), head=HEAD.build(32), centering=Softmax(temperature=0.06)
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
    step = Step(progress=0.5, generator=torch.Generator(), first_row=0, global_rows=rows)
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
    "no crops": (
        lambda: pretrained(PretrainConfig(head=HEAD, dino_weight=0.0)),
        replace(WORK, num_local=0),
    ),
    "recomputed": (lambda: pretrained(PretrainConfig(head=HEAD)), replace(WORK, checkpoint=True)),
    "distill": (lambda: distilled(DistillConfig(head=HEAD)), DISTILLED),
    "features": (
        lambda: distilled(DistillConfig(head=HEAD, patch_loss="features", dino_weight=0.0)),
        replace(DISTILLED, patch_target="features", num_local=0),
    ),
}


def split(two: int, four: int, six: int) -> tuple[int, int]:
    """Take the measures of three batches apart: so much an image, so much a pair of images.

    What is left is a constant, such as stretching the position grid.
    """
    a_pair, rest = divmod(six - 2 * four + two, 8)
    assert rest == 0
    return (four - two) // 2 - 6 * a_pair, a_pair


@pytest.mark.parametrize("case", CASES)
def test_the_passes_add_up_to_what_a_method_executes(case: str) -> None:
    build, work = CASES[case]
    method = build().train()
    method.model.set_attn_implementation("sdpa")
    if isinstance(method, Distill):
        method._teacher.model.set_attn_implementation("sdpa")
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


def test_crops_of_no_whole_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 14"):
        replace(WORK, global_size=100)


def test_the_towers_are_those_of_a_variant() -> None:
    config: Tipsv2Config = VARIANTS["s14"].build()
    assert vision_pass(config, 224).flops < vision_pass(VARIANTS["b14"].build(), 224).flops
