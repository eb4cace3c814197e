"""Export attention of the vision graphs as one operator, defined by a function of plain operators.

With plain operators, attention keeps a matrix of tokens by tokens for every head: 4.4 GB per block
of B/14 at 1372 pixels. ONNX Runtime keeps it for opset 23's `Attention` too, but its own operator
`com.microsoft.MultiHeadAttention` computes the matrix in tiles. OpenVINO (since 2026.3) and
TensorRT's parser know this operator as well. Other runtimes expand the function in the graph.

Shapes: B batch, A heads, N tokens, E width of one head.
"""

from typing import Any, Final

import onnx_ir
import torch
from onnx import parser
from torch import Tensor, nn
from transformers import AttentionInterface

# Name among transformers' attention implementations.
FUSED: Final = "tipserve_fused"
DOMAIN: Final = "com.microsoft"
OPERATOR: Final = "MultiHeadAttention"

MEANING: Final = """
<domain: "com.microsoft", opset_import: ["": 18]>
MultiHeadAttention <num_heads, scale> (query, key, value) => (output) {
  heads = Constant <value_int: int = @num_heads> ()
  factor = Constant <value_float: float = @scale> ()
  one = Constant <value_ints = [1]> ()
  batch_and_tokens = Constant <value_ints = [0, 0]> ()
  rest = Constant <value_ints = [-1]> ()
  heads_1 = Reshape (heads, one)
  split = Concat <axis = 0> (batch_and_tokens, heads_1, rest)
  joined = Concat <axis = 0> (batch_and_tokens, rest)
  query_split = Reshape (query, split)
  key_split = Reshape (key, split)
  value_split = Reshape (value, split)
  query_heads = Transpose <perm = [0, 2, 1, 3]> (query_split)
  key_heads = Transpose <perm = [0, 2, 3, 1]> (key_split)
  value_heads = Transpose <perm = [0, 2, 1, 3]> (value_split)
  factor_cast = CastLike (factor, query)
  query_scaled = Mul (query_heads, factor_cast)
  scores = MatMul (query_scaled, key_heads)
  shares = Softmax <axis = -1> (scores)
  mixed = MatMul (shares, value_heads)
  mixed_split = Transpose <perm = [0, 2, 1, 3]> (mixed)
  output = Reshape (mixed_split, joined)
}
"""


def _fused_attention(  # noqa: PLR0913, PLR0917 - the signature is transformers'
    module: nn.Module,
    query_BANE: Tensor,
    key_BANE: Tensor,
    value_BANE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers; returns zeros outside an export."""
    if attention_mask is not None or dropout:
        raise ValueError("the fused attention of vision graphs takes no mask and no dropout")
    batch, heads, tokens, width = query_BANE.shape
    joined = [
        heads_BANE.transpose(1, 2).reshape(batch, tokens, heads * width)
        for heads_BANE in (query_BANE, key_BANE, value_BANE)
    ]
    mixed = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OPERATOR}",
        joined,
        {"num_heads": heads, "scale": width**-0.5 if scaling is None else float(scaling)},
        dtype=query_BANE.dtype,
        shape=joined[0].shape,
        version=1,
    )
    return mixed.reshape(batch, tokens, heads, width), None


AttentionInterface.register(FUSED, _fused_attention)


def define_attention(model: onnx_ir.Model) -> None:
    """Add the function of the fused operator to a graph that uses it."""
    if any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        function = onnx_ir.serde.deserialize_function(parser.parse_function(MEANING))
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = 1
