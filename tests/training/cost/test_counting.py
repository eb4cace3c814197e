"""Counts without memory agree with hand-worked products and with a real run on tiny sizes."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Tipsv2Config, Tipsv2Model

from model.features import vision_tokens
from training.cost import Count, count_per_image, extend_in_depth

TOKENS, WIDTH, HIDDEN = 5, 8, 12


def test_a_linear_layer_costs_two_operations_per_weight_and_token() -> None:
    def compute(layer: nn.Linear, batch: int) -> Tensor:
        output: Tensor = layer(torch.empty(batch, TOKENS, WIDTH, requires_grad=True))
        return output

    count = count_per_image(lambda: nn.Linear(WIDTH, HIDDEN), compute)
    product = 2 * TOKENS * WIDTH * HIDDEN
    assert count.forward_flops == product
    # One product for the gradient of the input and one for that of the weights.
    assert count.backward_flops == 2 * product
    # The input, in bfloat16, for the gradient of the weights; the weights are no activation.
    assert count.saved_bytes == 2 * TOKENS * WIDTH


def test_without_a_backward_pass_nothing_is_kept() -> None:
    def compute(layer: nn.Linear, batch: int) -> Tensor:
        output: Tensor = layer(torch.empty(batch, TOKENS, WIDTH))
        return output

    count = count_per_image(lambda: nn.Linear(WIDTH, HIDDEN), compute, trains=False)
    assert count == Count(forward_flops=2 * TOKENS * WIDTH * HIDDEN)


def test_what_is_kept_twice_is_counted_once() -> None:
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


def test_a_tower_without_memory_counts_as_a_real_one() -> None:
    counted = count_per_image(lambda: tower(3), encode)
    # Attention as plain products, which is what the counter knows of the processor's.
    model = tower(3)
    model.set_attn_implementation("eager")
    totals = []
    for batch in (1, 2):
        with FlopCounterMode(display=False) as counter:
            output = encode(model, batch)
            forward = counter.get_total_flops()
            output.sum().backward()
        totals.append((forward, counter.get_total_flops() - forward))
    assert counted.forward_flops == totals[1][0] - totals[0][0]
    # Fused attention makes its scores a second time in the backward pass: one more product.
    tokens, layers, width = 6, 3, 16
    scores = layers * 2 * tokens * tokens * width
    assert counted.backward_flops == totals[1][1] - totals[0][1] + scores


def test_depth_is_linear() -> None:
    def at(depth: int) -> Count:
        return count_per_image(lambda: tower(depth), encode)

    assert extend_in_depth(at, 5) == at(5)


def test_recomputing_costs_a_forward_pass_and_saves_memory() -> None:
    def recomputing() -> Tipsv2Model:
        model = tower(4)
        model.train()
        model.activation_checkpointing_enable()
        return model

    plain, saving = (count_per_image(build, encode) for build in (lambda: tower(4), recomputing))
    assert saving.forward_flops == plain.forward_flops
    extra = saving.backward_flops - plain.backward_flops
    patch_embedding = 2 * 4 * (3 * 14 * 14) * 16
    assert extra == plain.forward_flops - patch_embedding  # all blocks are done again
    assert saving.saved_bytes < plain.saved_bytes / 2


def test_counts_add_up() -> None:
    one = Count(forward_flops=1, backward_flops=2, saved_bytes=3)
    assert one + one.times(2) == one.times(3)
    assert one.times(3).flops == 9
