"""How large the answer to a request is, known from image headers; and the memory for it.

Shape legend: D width of embeddings, K classes.
"""

import asyncio
import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from service.call import AnswerForm, Call
from service.errors import Overloaded, RequestTooLarge
from service.messages import (
    EmbedImagesRequest,
    EstimateMapsRequest,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)
from service.models.admission import CapacityWaiter
from service.turns import FlowTurns

SizedRequest = (
    EmbedImagesRequest | EstimateMapsRequest | SegmentImagesRequest | VisualizeFeaturesRequest
)

RETRY_S: Final = 1.0
# The longest usual number of orjson for a float32, its comma, and its share of brackets.
FLOAT_CHARS: Final = 14
# Bytes held next to the arrays, for each byte sent: texts as they grow; fields of a message and the
# message, which for several items is copied once more in part; a file.
COPIES: Final = {"list": 1.1, "base64": 1.1, "protobuf": 2.4, "png": 1.0, "overlay": 1.0}
# Bytes for each pixel, next to the mask: the decoded image, and it turned or as RGB; and runs.
FORM_BYTES: Final = {"overlay": 8, "outlines": 3}
# An instance without its run lengths: as it is sent, and in memory.
INSTANCE_CHARS: Final = 160
INSTANCE_BYTES: Final = 1024
VECTOR_BYTES: Final = {"float32": 4, "float16": 2, "int8": 1}
MB: Final = 1_000_000
# While requests wait for the memory that answers hold, a client must read at least this fast, and
# may be behind by no more than this. Else a few answers read byte by byte would stop all others.
CONTENDED_BYTES_PER_S: Final = 1024 * 1024
CONTENDED_LIMIT_S: Final = 2.0


# Values of a dense head for each patch.
MAP_PIXELS: Final = 8 * 8


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

    def sent(self, form: AnswerForm) -> float:
        """Bytes as they are sent."""
        if form == "list":
            return self.num_values * self.chars
        if form == "base64":
            return self.num_values * self.sent_bytes * 4 / 3
        # Files of images and outlines are compressed, so a byte a value bounds them.
        is_file = form in {"png", "overlay", "outlines"}
        return self.num_values * (1 if is_file else self.sent_bytes)

    def held(self, form: AnswerForm) -> float:
        """Bytes in memory: the values, and what is written of them."""
        return self.num_values * self.held_bytes + COPIES.get(form, 0.0) * self.sent(form)


def answer_size(
    request: SizedRequest,
    form: AnswerForm,
    sizes_hw: Sequence[tuple[int, int]],
    num_patches: Sequence[int],
    *,
    embed_dim: int,
    num_labels: int = 0,
) -> AnswerSize:
    """The size of the answer to a request.

    Args:
        request: What is computed.
        form: How it is sent.
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
        kinds = list(_maps(request, len(sizes_hw), num_pixels, form))
    held = sum(kind.held(form) for kind in kinds) + FORM_BYTES.get(form, 0) * num_pixels
    held += 4 * num_labels * MAP_PIXELS * sum(num_patches)
    return AnswerSize(math.ceil(sum(kind.sent(form) for kind in kinds)), math.ceil(held))


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
    form: AnswerForm,
) -> Iterable[_Arrays]:
    if isinstance(request, SegmentImagesRequest):
        num_classes = len(request.classes)
        label_bytes = 1 if num_classes < 256 else 2
        if label_bytes == 1 and form in {"bytes", "base64", "protobuf"}:
            label_bytes += 2  # these forms send uint16
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


class AnswerMemory:
    """Bounds the bytes of all answers until they are sent, and of all images while decoded.

    A request waits for its share before its images are decoded, at most until its deadline; flows
    take turns. While shares were taken after the work, the requests of 1,000 clients that read
    slowly kept both lanes busy for 5 s, although few of their answers could be sent. The images are
    decoded before the answer is made, so a share is the larger of the two. It is taken at once, so
    no request waits for memory while it holds some.

    The requests of a stream take two shares: one to decode, which they free when they have decoded,
    and then one for the answer, in the order of the requests. So they hold nothing while they wait.
    If the answer's share came first, each would wait for all small answers of earlier requests.

    The memory for bodies is another one: requests that wait here hold their bodies, so with a
    common one they could wait for each other. Thread-safe; the event loops of both transports and
    the threads that read headers and decode use it.
    """

    def __init__(self, max_bytes: int, max_answer_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_answer_bytes = max_answer_bytes
        self._num_bytes = self._num_for_answers = 0
        self._waiting: FlowTurns[_Waiter] = FlowTurns()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of all shares."""
        return self._num_bytes

    @property
    def is_contended(self) -> bool:
        """Whether a request waits until an answer is sent, and not only for images of others."""
        with self._lock:
            if not self._waiting:
                return False
            num_needed = self._waiting.next().share.num_bytes
            return self._num_for_answers + num_needed > self._max_bytes

    def check(self, size: AnswerSize) -> None:
        """Check an answer before the work on it begins.

        Raises:
            RequestTooLarge: It is larger than an answer may be, or than the memory for all of them.
        """
        if size.num_sent > self._max_answer_bytes or size.num_held > self._max_bytes:
            raise RequestTooLarge(
                f"The answer would have {_mb(size.num_sent)} and need {_mb(size.num_held)} of "
                f"memory; at most {_mb(self._max_answer_bytes)} and {_mb(self._max_bytes)} are "
                "allowed. Send fewer or smaller images, omit scores, request maps of size model, "
                "or request arrays as safetensors, npy or base64 instead of JSON lists.",
                code="answer_too_large",
                param="images",
            )

    def hold_now(self, call: Call, answer_bytes: int, decoding_bytes: int) -> "Share | None":
        """Take a share if there is room and no request waits; from any thread.

        The call frees its answer's part at its end. If it has ended meanwhile, the caller does.
        """
        share = self._share(answer_bytes, decoding_bytes)
        with self._lock:
            if self._waiting or not self._fits(share):
                return None
            self._count(share, 1)
        if answer_bytes:
            call.answer_memory = share
        return share

    async def hold(self, call: Call, answer_bytes: int, decoding_bytes: int = 0) -> "Share":
        """Wait for a share; the call frees its answer's part at its end.

        Raises:
            Overloaded: There was no room before the deadline.
        """
        share = self._share(answer_bytes, decoding_bytes)
        order, item = call.answer_order if answer_bytes else None, call.item or 0
        try:
            if order is not None:
                async with asyncio.timeout(call.remaining_s()):
                    await order.wait(item)
            await self._take(share, call)
        except TimeoutError:
            raise Overloaded(
                "The memory for images and answers is full; try again.",
                code="answer_memory_full",
                retry_after_s=RETRY_S,
            ) from None
        if answer_bytes:
            call.answer_memory = share
        if order is not None:
            order.passes(item)
        return share

    async def _take(self, share: "Share", call: Call) -> None:
        with self._lock:
            if not self._waiting and self._fits(share):
                self._count(share, 1)
                return
            waiter = _Waiter(share)
            self._waiting.add(call.flow, waiter)
        try:
            await waiter.wait(call.remaining_s())
        except BaseException:
            with self._lock:
                if waiter.is_admitted:
                    self._count(share, -1)
                else:
                    self._waiting.remove(call.flow, waiter)
                self._admit()
            raise

    def lower(self, share: "Share", *, answer_bytes: int, decoding_bytes: int) -> None:
        """Free a part of a share, and admit requests that wait."""
        with self._lock:
            self._count(share, -1)
            share.answer_bytes = min(answer_bytes, share.answer_bytes)
            share.decoding_bytes = min(decoding_bytes, share.decoding_bytes)
            self._count(share, 1)
            self._admit()

    def _share(self, answer_bytes: int, decoding_bytes: int) -> "Share":
        # Of little memory an image may take more than all: then it is decoded alone.
        return Share(self, answer_bytes, min(decoding_bytes, self._max_bytes))

    def _fits(self, share: "Share") -> bool:
        return self._num_bytes + share.num_bytes <= self._max_bytes

    def _count(self, share: "Share", sign: int) -> None:
        self._num_bytes += sign * share.num_bytes
        self._num_for_answers += sign * share.answer_bytes

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting.next().share):
            _, waiter = self._waiting.pop()
            self._count(waiter.share, 1)
            waiter.admit()


class Share:
    """What a request holds of the memory: for its answer, and for its images while decoded."""

    __slots__ = ("_memory", "answer_bytes", "decoding_bytes")

    def __init__(self, memory: AnswerMemory, answer_bytes: int, decoding_bytes: int) -> None:
        self._memory = memory
        self.answer_bytes = answer_bytes
        self.decoding_bytes = decoding_bytes

    @property
    def num_bytes(self) -> int:
        """The larger of the two: the images are decoded before the answer is made."""
        return max(self.answer_bytes, self.decoding_bytes)

    @property
    def is_contended(self) -> bool:
        """See `AnswerMemory.is_contended`."""
        return self._memory.is_contended

    def free(self) -> None:
        """The answer is sent, or there is none; images may still be decoded."""
        if self.answer_bytes:
            self._memory.lower(self, answer_bytes=0, decoding_bytes=self.decoding_bytes)

    def decoded(self) -> None:
        """No image is being decoded any more; later calls have no effect."""
        if self.decoding_bytes:
            self._memory.lower(self, answer_bytes=self.answer_bytes, decoding_bytes=0)


class _Waiter(CapacityWaiter):
    """A request that waits for its share."""

    __slots__ = ("share",)

    def __init__(self, share: Share) -> None:
        super().__init__(share.num_bytes)
        self.share = share


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / MB:.0f} MB"
