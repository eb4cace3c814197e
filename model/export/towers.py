"""Writes a Tipsv2Model's two towers as ONNX graphs with free batch, sizes and text length.

Opset 18 with eager attention: the smallest graphs, and the ones that every parser tried accepts.
What tracing would break is written differently: position embeddings (see `model.position`) and the
masked mean over tokens, whose tiny epsilon the exporter drops.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.onnx import ONNXProgram
from transformers import Tipsv2Model

from model.features import vision_features
from model.graphs import VISION_OUTPUTS

OPSET = 18
# A protobuf message ends at 2 GiB; beyond this, weights go to a file beside the graph.
MAX_INLINE_BYTES = 1_500_000_000


class VisionGraph(nn.Module):
    """The vision tower with the four outputs that serving reads, as a plain tuple."""

    def __init__(self, model: Tipsv2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return cls1 [B, D], cls2 [B, D], patches [B, N, D] and value-path patches [B, N, D]."""
        features = vision_features(self.model, pixel_values)
        return features.cls1_BD, features.cls2_BD, features.patches_BND, features.values_BND


class TextGraph(nn.Module):
    """The text tower with a mean over tokens that stays finite for a row of padding."""

    def __init__(self, model: Tipsv2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return text embeddings [B, D]; zeros for a row without tokens."""
        output = self.model.text_model(input_ids=input_ids, attention_mask=attention_mask)
        hidden_BLD: Tensor = output.last_hidden_state
        weight_BL = attention_mask.to(hidden_BLD.dtype)
        total_BD = (hidden_BLD * weight_BL[..., None]).sum(dim=1)
        # Equal to transformers' `+ 1e-8` for every row that has a token.
        mean_BD: Tensor = total_BD / weight_BL.sum(dim=1, keepdim=True).clamp(min=1)
        return mean_BD


def export_vision(model: Tipsv2Model, path: Path) -> None:
    """Write the vision graph: `pixel_values` to cls1, cls2, patch and value embeddings.

    Args:
        model: In float32. Its mode and attention are as before afterwards.
        path: The `.onnx` file; its folder is made. Large models get a `.data` file beside it.
    """
    patch_size = model.vision_model.embeddings.patch_embeddings.projection.stride[0]
    # Batch, rows and columns differ, so that no two of them are taken for the same size.
    pixels_B3HW = torch.rand(2, 3, 3 * patch_size, 5 * patch_size)
    axes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
    inputs = {"pixel_values": pixels_B3HW}
    with _exportable(model):
        program = _trace(VisionGraph(model), inputs, outputs=VISION_OUTPUTS, axes=axes)
    _save(program, path)


def export_text(model: Tipsv2Model, path: Path) -> None:
    """Write the text graph: `input_ids` and `attention_mask` to `text_embeddings`.

    Args:
        model: In float32. Its mode and attention are as before afterwards.
        path: The `.onnx` file; its folder is made. Large models get a `.data` file beside it.
    """
    token_ids_BL = torch.ones(3, 5, dtype=torch.int64)
    inputs = {"input_ids": token_ids_BL, "attention_mask": torch.ones_like(token_ids_BL)}
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    with _exportable(model):
        program = _trace(TextGraph(model), inputs, outputs=("text_embeddings",), axes=axes)
    _save(program, path)


def _trace(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    *,
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
) -> ONNXProgram:
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter copies trees with a class that torch itself deprecates.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        # Ids and mask share their axes, as they should.
        warnings.filterwarnings("ignore", message=".*axis name.*shares", category=UserWarning)
        program = torch.onnx.export(
            graph.eval(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=axes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program


def _save(program: ONNXProgram, path: Path) -> None:
    # Stack traces of this machine: its paths are nobody's business, and they are most of the bytes.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    weights = program.model.graph.initializers.values()
    num_bytes = sum(w.const_value.nbytes for w in weights if w.const_value is not None)
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path, external_data=num_bytes > MAX_INLINE_BYTES)


@contextmanager
def _exportable(model: Tipsv2Model) -> Iterator[None]:
    """Eager attention and evaluation mode, for a while."""
    attention, was_training = model.config._attn_implementation, model.training
    model.eval().set_attn_implementation("eager")
    try:
        yield
    finally:
        model.train(was_training).set_attn_implementation(attention)
