"""How large the answer to a request is, known from image headers.

Shape legend: D width of embeddings, K classes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

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

# The longest usual number of orjson for a float32, its comma, and its share of brackets.
FLOAT_CHARS: Final = 14
# Bytes held next to the arrays, for each byte sent: texts as they grow; fields of a message and the
# message, which for several items is copied once more in part; a file.
COPIES: Final = {"list": 1.1, "base64": 1.1, "protobuf": 2.4, "png": 1.0, "overlay": 1.0}
# Bytes for each pixel, next to the mask: the decoded image, and it turned or as RGB; and runs.
ENCODING_BYTES: Final = {"overlay": 8, "outlines": 3}
# An instance without its run lengths: as it is sent, and in memory.
INSTANCE_CHARS: Final = 160
INSTANCE_BYTES: Final = 1024
VECTOR_BYTES: Final = {"float32": 4, "float16": 2, "int8": 1}
# Values of a dense head for each patch.
MAP_PIXELS: Final = 8 * 8
MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class AnswerSize:
    """Bytes of one answer: as it is sent, and what is held in memory until it is sent."""

    num_sent: int
    num_held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrays:
    """Values of one kind in an answer.

    Attributes:
        num_values: How many.
        sent_bytes: Bytes of a value as it is sent.
        held_bytes: Bytes of a value in memory.
        chars: Characters of a value in a JSON list.
    """

    num_values: int
    sent_bytes: int
    held_bytes: int
    chars: int = FLOAT_CHARS

    def sent(self, encoding: AnswerEncoding) -> float:
        """Bytes as they are sent."""
        if encoding == "list":
            return self.num_values * self.chars
        if encoding == "base64":
            return self.num_values * self.sent_bytes * 4 / 3
        # Files of images and outlines are compressed, so a byte a value bounds them.
        is_file = encoding in {"png", "overlay", "outlines"}
        return self.num_values * (1 if is_file else self.sent_bytes)

    def held(self, encoding: AnswerEncoding) -> float:
        """Bytes in memory: the values, and what is written of them."""
        return self.num_values * self.held_bytes + COPIES.get(encoding, 0.0) * self.sent(encoding)


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
    num_pixels = sum(height * width for height, width in sizes_hw)
    if isinstance(request, EmbedImagesRequest):
        num_values = embed_dim * sum(num_patches)
        num_pixels = MAP_PIXELS * sum(num_patches)
        kinds = [_embeddings(request, num_values), *_head_maps(request, num_pixels)]
    else:
        kinds = list(_maps(request, len(sizes_hw), num_pixels, encoding))
    held = sum(kind.held(encoding) for kind in kinds) + ENCODING_BYTES.get(encoding, 0) * num_pixels
    held += 4 * num_labels * MAP_PIXELS * sum(num_patches)
    return AnswerSize(math.ceil(sum(kind.sent(encoding) for kind in kinds)), math.ceil(held))


def _embeddings(request: EmbedImagesRequest, num_values: int) -> _Arrays:
    num_bytes = VECTOR_BYTES[request.vector_type]
    return _Arrays(
        num_values=num_values * len({"patches", "values"} & set(request.outputs)),
        sent_bytes=num_bytes,
        held_bytes=4 + num_bytes,
    )


def _head_maps(request: EmbedImagesRequest, num_pixels: int) -> Iterable[_Arrays]:
    for name, num_axes, num_bytes in (("depth", 1, 4), ("normals", 3, 4), ("segmentation", 1, 2)):
        if name in request.outputs:
            yield _Arrays(
                num_values=num_axes * num_pixels,
                sent_bytes=num_bytes,
                held_bytes=num_bytes,
            )


def _maps(
    request: SegmentImagesRequest | VisualizeFeaturesRequest | EstimateMapsRequest,
    num_images: int,
    num_pixels: int,
    encoding: AnswerEncoding,
) -> Iterable[_Arrays]:
    if isinstance(request, SegmentImagesRequest):
        num_classes = len(request.classes)
        label_bytes = 1 if num_classes < 256 else 2
        if label_bytes == 1 and encoding in {"bytes", "base64", "protobuf"}:
            label_bytes += 2  # these encodings send uint16
        chars = len(str(num_classes)) + 1
        yield _Arrays(num_values=num_pixels, sent_bytes=2, held_bytes=label_bytes, chars=chars)
        if request.include_scores:
            yield _Arrays(num_values=num_pixels, sent_bytes=4, held_bytes=4)
        if request.include_instances:
            # Run lengths, of which a byte a pixel bounds those of smooth masks.
            yield _Arrays(num_values=num_pixels, sent_bytes=1, held_bytes=1, chars=1)
            num_instances = math.ceil(num_images / request.min_area_share)
            yield _Arrays(
                num_values=num_instances,
                sent_bytes=INSTANCE_CHARS,
                held_bytes=INSTANCE_BYTES,
                chars=INSTANCE_CHARS,
            )
    elif request.size == "image":
        if isinstance(request, VisualizeFeaturesRequest) and request.kind == "groups":
            yield _Arrays(num_values=num_pixels, sent_bytes=2, held_bytes=3, chars=3)
            return
        has_axes = (
            request.task == "normals"
            if isinstance(request, EstimateMapsRequest)
            else request.kind == "colors"
        )
        num_values = (3 if has_axes else 1) * num_pixels
        yield _Arrays(num_values=num_values, sent_bytes=4, held_bytes=4)


def check_answer_size(size: AnswerSize, max_sent: int, max_held: int) -> None:
    """Check an answer before the work on it begins.

    Raises:
        RequestTooLarge: It is larger than an answer may be, or than the memory for all of them.
    """
    if size.num_sent > max_sent or size.num_held > max_held:
        raise RequestTooLarge(
            f"The answer would have {_mb(size.num_sent)} and need {_mb(size.num_held)} of "
            f"memory; at most {_mb(max_sent)} and {_mb(max_held)} are allowed. Send fewer or "
            "smaller images, omit scores, request maps of size model, or request arrays as "
            "safetensors, npy or base64 instead of JSON lists.",
            code="answer_too_large",
            param="images",
        )


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / MB:.0f} MB"
