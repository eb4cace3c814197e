"""How large the answer to a request is, known from image headers."""

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from model.outlines import MAX_PLACES, MAX_VALUES
from service.call import AnswerEncoding
from service.errors import RequestTooLarge
from service.messages import (
    EmbedImagesRequest,
    EstimateMapsRequest,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)

SizedRequest = (
    EmbedImagesRequest | EstimateMapsRequest | SegmentImagesRequest | VisualizeFeaturesRequest
)

# Bytes held next to the arrays, for each byte sent: texts as they grow; fields of a message and the
# message, which for several items is copied once more in part; a file.
COPIES: Final = {"list": 1.1, "base64": 1.1, "protobuf": 2.4, "png": 1.0, "overlay": 1.0}
# Bytes for each pixel, next to the mask: the decoded image, and it turned or as RGB; and runs.
ENCODING_BYTES: Final = {"overlay": 8, "outlines": 3}
# Values of a dense head for each patch.
MAP_PIXELS: Final = 8 * 8


class AnswerSize(NamedTuple):
    """Bytes of one answer: as it is sent, and what is held in memory until it is sent."""

    num_sent: int
    num_held: int


class Value(NamedTuple):
    """One value of an answer: bytes as it is sent, in memory, and as text in a JSON list."""

    sent: int
    held: int
    # The longest usual number of orjson for a float32, its comma, and its share of brackets.
    chars: int = 14


FLOAT: Final = Value(4, 4)
VECTORS: Final = {"float32": Value(4, 8), "float16": Value(2, 6), "int8": Value(1, 5)}
GROUP: Final = Value(2, 3, 3)
# An instance without its run lengths; of these, a byte a pixel bounds those of smooth masks.
INSTANCE: Final = Value(160, 1024, 160)
RUNS: Final = Value(1, 1, 1)


def answer_size(
    request: SizedRequest,
    encoding: AnswerEncoding,
    sizes_hw: Sequence[tuple[int, int]],
    num_patches: Sequence[int],
    *,
    embed_dim: int,
    num_labels: int = 0,
) -> AnswerSize:
    """The size of the answer to a request.

    Args:
        request: What is computed.
        encoding: How it is sent.
        sizes_hw: Height and width of each image.
        num_patches: Patches of each image.
        embed_dim: Width of the model's embeddings.
        num_labels: Classes of a segmentation head, whose logits make the masks.
    """
    num_pixels, patches = sum(map(math.prod, sizes_hw)), sum(num_patches)
    # Of masks: runs, the decoded image, and the logits of a head.
    sent, held = 0.0, float(ENCODING_BYTES.get(encoding, 0) * num_pixels)
    held += 4 * num_labels * MAP_PIXELS * patches
    if isinstance(request, EmbedImagesRequest):
        arrays = _embeddings(request, embed_dim * patches, MAP_PIXELS * patches)
    elif isinstance(request, SegmentImagesRequest):
        arrays = _masks(request, encoding, len(sizes_hw), num_pixels)
        if request.quality != "published":
            num_classes = len(request.classes) + len(request.background_classes)
            num_sizes = 2 if request.quality == "fine" else 1
            counts = [min(num_classes * MAX_PLACES**2 * n, MAX_VALUES) for n in num_patches]
            held += 8 * num_sizes**2 * sum(counts)
    else:
        arrays = _maps(request, num_pixels)
    for count, value in arrays:
        # Images and outlines are compressed, so a byte a value bounds them.
        text_bytes = {"list": value.chars, "base64": value.sent * 4 / 3}
        image_bytes = dict.fromkeys(("png", "overlay", "outlines"), 1)
        num_bytes = count * (text_bytes | image_bytes).get(encoding, value.sent)
        sent += num_bytes
        held += count * value.held + COPIES.get(encoding, 0.0) * num_bytes
    return AnswerSize(math.ceil(sent), math.ceil(held))


def _embeddings(
    request: EmbedImagesRequest, num_values: int, num_pixels: int
) -> Iterator[tuple[int, Value]]:
    outputs = set(request.outputs)
    yield num_values * len({"patches", "values"} & outputs), VECTORS[request.vector_type]
    yield num_pixels * (("depth" in outputs) + 3 * ("normals" in outputs)), FLOAT
    yield num_pixels * ("segmentation" in outputs), Value(2, 2)


def _masks(
    request: SegmentImagesRequest, encoding: AnswerEncoding, num_images: int, num_pixels: int
) -> Iterator[tuple[int, Value]]:
    num_classes = len(request.classes)
    label_bytes = 1 if num_classes < 256 else 2
    if label_bytes == 1 and encoding in {"bytes", "base64", "protobuf"}:
        label_bytes += 2  # these encodings send uint16
    yield num_pixels, Value(2, label_bytes, len(str(num_classes)) + 1)
    num_scores = request.include_scores + request.include_all_scores * num_classes
    yield num_scores * num_pixels, FLOAT
    if request.include_instances:
        yield num_pixels, RUNS
        yield math.ceil(num_images / request.min_area_share), INSTANCE


def _maps(
    request: VisualizeFeaturesRequest | EstimateMapsRequest, num_pixels: int
) -> Iterator[tuple[int, Value]]:
    shown = request.task if isinstance(request, EstimateMapsRequest) else request.kind
    if request.size == "image":
        num_values = 3 if shown in {"normals", "colors"} else 1
        yield num_pixels * num_values, GROUP if shown == "groups" else FLOAT


def check_answer_size(size: AnswerSize, max_sent: int, max_held: int) -> None:
    """Check an answer before the work on it begins.

    Raises:
        RequestTooLarge: It is larger than an answer may be, or than the memory for all of them.
    """
    if size.num_sent > max_sent or size.num_held > max_held:
        raise RequestTooLarge(
            f"The answer would have {size.num_sent / 1e6:.0f} MB and need {size.num_held / 1e6:.0f}"
            f" MB of memory; at most {max_sent / 1e6:.0f} MB and {max_held / 1e6:.0f} MB are "
            "allowed. Send fewer or smaller images, omit scores, request maps of size model, or "
            "request arrays as safetensors, npy or base64 instead of JSON lists.",
            code="answer_too_large",
            param="images",
        )
