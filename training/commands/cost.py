"""`python -m training cost`: operations, hours and memory of the large recipes, before they run.

torch's FlopCounterMode counts one forward pass of every module on tensors without memory: matrix
products, convolutions and attention, a multiply-add as two operations. A backward pass is two
forward passes, and recomputed blocks are one more. Hours are operations over an assumed share of
the data sheet's speed; waiting for data, other devices and files is in that share.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Gt, Le
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Tipsv2Model

from model.features import vision_tokens
from training.config import TrainingConfig, vision_of
from training.data.batch import MAX_TOKENS
from training.data.shards.batches import ShardsConfig
from training.methods.distill import DistillConfig
from training.methods.space import SpaceConfig
from training.options import option
from training.recipes.scale import NUM_RANKS, SCALE_RECIPES

PEAK_FLOPS = {"a100": 312e12, "h100": 989e12, "h200": 989e12}
"""Dense bfloat16 operations per second by NVIDIA's data sheets (A100; H100 and H200 SXM)."""
_CAPTIONS = 2
_STATE_BYTES = 16
"""Of a trained parameter: weight, gradient and AdamW's two moments, in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """What a run costs.

    Attributes:
        vision, text, head: Trained parameters.
        flops_per_image: Operations of a training step for one image.
        state_bytes: Of weights, gradients, moments, averages and a frozen teacher on one of the
            devices; activations and gathered weights come on top.
        images_per_step: On all devices.
    """

    vision: int
    text: int
    head: int
    flops_per_image: float
    state_bytes: float
    images_per_step: int
    num_steps: int

    @property
    def total_flops(self) -> float:
        """Operations of the whole run."""
        return self.flops_per_image * self.images_per_step * self.num_steps


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job."""

    recipe: tuple[str, ...] = option("default all", (), choices=list(SCALE_RECIPES))
    device: str = option("whose data sheet counts", "h100", choices=list(PEAK_FLOPS))
    gpus: PositiveInt = option("number of devices", NUM_RANKS)
    mfu: Annotated[float, Gt(0), Le(1)] = option("assumed share of the device's peak speed", 0.4)


def run(options: Options) -> None:
    """Print the table."""
    speed = PEAK_FLOPS[options.device] * options.mfu
    print(f"Estimated for {options.gpus} x {options.device} at {speed / 1e12:.0f} TFLOP/s each.\n")
    print("| recipe | vision + text + head, M | TFLOP an image | GPU hours | hours | state, GB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in options.recipe or SCALE_RECIPES:
        cost = estimate(SCALE_RECIPES[name](), num_devices=options.gpus)
        hours = cost.total_flops / speed / 3600
        sizes = " + ".join(f"{size / 1e6:.1f}" for size in (cost.vision, cost.text, cost.head))
        numbers = f"{cost.flops_per_image / 1e12:.2f} | {hours:,.0f} | {hours / options.gpus:.2f}"
        print(f"| {name} | {sizes} | {numbers} | {cost.state_bytes / 1e9:.2f} |")


def estimate(config: TrainingConfig, *, num_devices: int = NUM_RANKS) -> RunCost:
    """Count a large recipe, without memory for its weights."""
    method, data = config.method, config.data
    assert not isinstance(method, SpaceConfig)
    assert isinstance(data, ShardsConfig)
    size, crops = data.crops.global_size, data.crops
    with torch.device("meta"):
        model = _model(config)
        teacher = None if config.teacher is None else _model(SCALE_RECIPES[config.teacher.name]())
        head = method.head.build(vision_of(model.config).hidden_size)
    # A backward pass costs two forward passes.
    trained = 4 if config.checkpoint_activations else 3
    views = 1 if isinstance(method, DistillConfig) else 2  # the whole image, and a masked one
    vision = views * _vision(model, size) + crops.num_local * _vision(model, crops.local_size)
    ids_BL = torch.zeros((1, MAX_TOKENS), dtype=torch.int64, device="meta")
    # Without a mask, whose values are unknown.
    text = _CAPTIONS * _count(lambda: model.get_text_features(input_ids=ids_BL))
    tokens = (size // 14) ** 2 + crops.num_local
    width = vision_of(model.config).hidden_size
    heads = _count(lambda: head.mlp(torch.empty(tokens, width, device="meta")) @ head.prototypes.T)
    images = config.batch_size * config.accumulate * NUM_RANKS
    contrast = 2 * _CAPTIONS * 2 * width * images
    flops = trained * (vision + text) + 4 * heads + 2 * heads + 3 * contrast
    sizes = [_size(model.vision_model), _size(model.text_model), _size(head)]
    state = _STATE_BYTES * sum(sizes) / (1 if config.parallel == "ddp" else num_devices)
    if teacher is not None:
        flops += _vision(teacher, size)
        state += 2 * _size(teacher.vision_model)  # in bfloat16, on every device
    return RunCost(
        vision=sizes[0],
        text=sizes[1],
        head=sizes[2],
        flops_per_image=flops,
        state_bytes=state,
        images_per_step=images,
        num_steps=config.num_steps,
    )


def _model(config: TrainingConfig) -> Tipsv2Model:
    model = Tipsv2Model(config.model.build(config.model.vocab_size))
    model.set_attn_implementation("eager")  # plain products, which are counted on any device
    return model


def _vision(model: Tipsv2Model, size: int) -> int:
    return _count(lambda: vision_tokens(model, torch.empty(1, 3, size, size, device="meta")))


def _count(forward: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return int(counter.get_total_flops())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
