"""Traces a module to ONNX with free axes; neither the model nor the graph keeps a trace of it."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import onnx_ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.export.attention import FUSED, define_attention

# The newest that ONNX Runtime 1.22, OpenVINO and TensorRT's parsers all take whole.
OPSET: Final = 18
EAGER: Final = "eager"


def trace(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    *,
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
) -> onnx_ir.Model:
    """Write a module as a graph.

    Args:
        graph: Its forward takes `inputs` and returns one tensor, or a tuple of them.
        inputs: Examples; an axis named in `axes` is free in the graph.
        outputs: Names of what it returns.
        axes: For each input, which axes are free, and what they are called.
    """
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
    model: onnx_ir.Model = program.model
    strip_traces(model)
    define_attention(model)
    return model


def strip_traces(model: onnx_ir.Model) -> None:
    """Forget where on this machine a graph came from; it is nobody's business, and most bytes."""
    _forget(model)
    _forget(model.graph)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _forget(value)
    for node in model.graph.all_nodes():
        _forget(node)
        for value in node.outputs:
            _forget(value)


def _forget(part: onnx_ir.Model | onnx_ir.Graph | onnx_ir.Node | onnx_ir.Value) -> None:
    part.metadata_props.clear()
    part.doc_string = None


@contextmanager
def exportable(model: PreTrainedModel, attention: str = FUSED) -> Iterator[None]:
    """Evaluation mode and the graphs' form of attention, for a while."""
    before, was_training = model.config._attn_implementation, model.training
    model.eval().set_attn_implementation(attention)
    try:
        yield
    finally:
        model.train(was_training).set_attn_implementation(before)
