"""File names, inputs and outputs of a package's graphs.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels, K classes.
"""

from typing import Final, Literal

# `int8` quantises weights and activations, `int8_weights` the weights only.
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8_weights"]
DenseTask = Literal["depth", "normals", "segmentation"]
# Activation after the last 3 x 3 convolution of the depth head; "linear" is none.
DepthActivation = Literal["linear", "relu"]
Part = Literal["vision", "text", "depth", "normals", "segmentation"]

# `pixel_values` [B, 3, H, W] to [B, D], [B, D], [B, N, D] and [B, N, D].
VISION_OUTPUTS: Final = ("cls1", "cls2", "patch_embeddings", "value_embeddings")
# `input_ids` and `attention_mask` [B, L] to [B, D].
TEXT_OUTPUTS: Final = ("text_embeddings",)
# `pixel_values` to metres [B, H', W'], vectors [B, 3, H', W'] or logits [B, K, H', W'].
DENSE_TASKS: Final[tuple[DenseTask, ...]] = ("depth", "normals", "segmentation")


def graph_file(part: Part, precision: Precision = "fp32") -> str:
    """Path of a graph inside a package, such as `onnx/vision_model_fp16.onnx`."""
    suffix = "" if precision == "fp32" else f"_{precision}"
    return f"onnx/{part}_model{suffix}.onnx"


VISION_FILE: Final = graph_file("vision")
TEXT_FILE: Final = graph_file("text")
