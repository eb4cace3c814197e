"""File names, inputs and outputs of a package's graphs.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels, h w patch rows and columns,
S tapped blocks, K classes.
"""

from typing import Final, Literal

# Precisions that graphs are exported in; `int8` quantises weights and activations of images.
ExportPrecision = Literal["fp32", "fp16", "bf16", "int8"]
# Packages of earlier versions may also have graphs with weights in 8 bits.
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8_weights"]
HalfPrecision = Literal["fp16", "bf16"]
# What follows the last layer of the depth head: transformers has relu, the released notebook none.
DepthActivation = Literal["relu", "linear"]
DenseTask = Literal["depth", "normals", "segmentation"]
Part = Literal["vision", "text", "depth", "normals", "segmentation"]

# Graphs that a package gets beside fp32 unless others are named: GPUs compute in fp16 from graphs
# in fp16. Measured on the bundled student: 7 of 45 MB, and no more CPU time.
USUAL_PRECISIONS: Final[tuple[ExportPrecision, ...]] = ("fp16",)

# `pixel_values` [B, 3, H, W] to [B, D], [B, D], [B, N, D] and [B, N, D].
VISION_OUTPUTS: Final = ("cls1", "cls2", "patch_embeddings", "value_embeddings")
# The outputs with a row for each patch, which are nearly all of the bytes: `patch_embeddings` and
# `value_embeddings`.
PatchOutput = Literal["patches", "values"]
PATCH_OUTPUTS: Final[tuple[PatchOutput, ...]] = ("patches", "values")
# What dense heads read, also outputs of the vision graph of a package with heads: the first CLS
# token [B, S, D] and the patches [B, S, h, w, D] after S of its blocks.
TAPS: Final = ("tap_cls", "tap_patches")
# What heads of a package read as their only tap if its manifest says so: any vision graph has them.
EMBEDDING_TAPS: Final = ("cls1", "patch_embeddings")
# `input_ids` and `attention_mask` [B, L] to [B, D].
TEXT_OUTPUTS: Final = ("text_embeddings",)
# `TAPS` to metres [B, H', W'], vectors [B, 3, H', W'] or logits [B, K, H', W']. In a package whose
# manifest has no `num_taps`, the graph of a head includes the tower and reads `pixel_values`.
DENSE_TASKS: Final[tuple[DenseTask, ...]] = ("depth", "normals", "segmentation")


def graph_file(part: Part, precision: Precision = "fp32") -> str:
    """Path of a graph inside a package, such as `onnx/vision_model_fp16.onnx`."""
    suffix = "" if precision == "fp32" else f"_{precision}"
    return f"onnx/{part}_model{suffix}.onnx"


VISION_FILE: Final = graph_file("vision")
TEXT_FILE: Final = graph_file("text")
# The network that finds the foreground; see `model.foreground`. It is no graph of the encoder.
FOREGROUND_FILE: Final = "onnx/people_model.onnx"
