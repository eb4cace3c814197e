"""The passes of one training step through towers and heads, each counted for one image.

Which passes there are follows from the method, as training/methods/ makes them; a test holds their
sum against what the methods execute.

Shapes: B batch, N patches, L tokens, D width, K prototypes, H W pixels.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Tipsv2Config, Tipsv2Model, Tipsv2TextConfig, Tipsv2VisionConfig

from model.features import text_features, vision_tokens
from model.variants import PATCH_SIZE
from training.cost.counting import Count, count_per_image, extend_in_depth
from training.data.batch import MAX_TOKENS
from training.heads import HeadConfig
from training.losses.distillation import distillation_loss

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
