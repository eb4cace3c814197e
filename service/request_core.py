"""What the capabilities of the data plane share: the model's lease, admission, and the passes."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial, wraps
from typing import Any, TypeVar

from service.call import Call
from service.door import Door
from service.errors import Overloaded
from service.images.image_codec import ImageLimits
from service.images.preparation import ImagePreparer, JpegDecode, SizeRule
from service.images.windows import Windows
from service.lanes.work import Kind
from service.messages import (
    EmbedImagesRequest,
    EmbedMixedRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    RequestLimits,
    SegmentImagesRequest,
)
from service.models.admission import Ticket
from service.models.admitted import Admitted
from service.models.image_pass import EncodedImage, ImagePass, PassOptions
from service.models.prompts import Prompts, count_waits
from service.models.registry import ModelRegistry
from service.models.served_model import ServedModel
from service.models.text_encoder import Embeddings
from service.readiness import Readiness
from service.validation import (
    check_map_pixels,
    check_mask_pixels,
    check_resolution,
    class_groups,
)
from service.view_messages import ClassifyImagesRequest, VisualizeFeaturesRequest
from service.waiting import wait_both

T = TypeVar("T")
ClassesRequest = SegmentImagesRequest | ClassifyImagesRequest
ImagesRequest = EmbedImagesRequest | ClassesRequest | EstimateMapsRequest | VisualizeFeaturesRequest
AnyRequest = ImagesRequest | EmbedTextsRequest | EmbedMixedRequest
RequestT = TypeVar("RequestT", bound=AnyRequest)
CoreT = TypeVar("CoreT", bound="RequestCore")
Answer = Coroutine[Any, Any, T]


def with_model(
    method: Callable[[CoreT, RequestT, Call, ServedModel], Answer[T]],
) -> Callable[[CoreT, RequestT, Call], Answer[T]]:
    """Run a method on the model that its request names, which stays whole until it has ended."""

    @wraps(method)
    async def run(plane: CoreT, request: RequestT, call: Call) -> T:
        plane.door.check()
        with (
            plane.models.lease(request.model) as model,
            model.requests.watching(call, _num_items(request)),
        ):
            call.model = model.manifest.name
            while True:
                known_cost = call.known_cost
                try:
                    return await method(plane, request, call, model)
                except Overloaded:
                    # A patient call whose images are larger than was thought waits again.
                    if not call.is_patient or call.known_cost <= known_cost:
                        raise

    return run


class RequestCore(Readiness):
    """Pool, limits and door, and the parts that several capabilities are made of."""

    def __init__(
        self,
        door: Door,
        models: ModelRegistry,
        *,
        limits: RequestLimits,
        max_image_patches: int,
        pool: Executor,
        jpeg_decode: JpegDecode = "fast",
    ) -> None:
        super().__init__(door, models)
        self.limits = limits
        self._pool = pool
        self.image_limits = ImageLimits(
            max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels
        )
        self._preparer = ImagePreparer(
            self.image_limits, max_patches=max_image_patches, jpeg_decode=jpeg_decode
        )

    async def offload(self, work: Callable[[], T]) -> T:
        """Do CPU work in the pool instead of on the caller's event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _class_prompts(self, request: ClassesRequest, model: ServedModel) -> Prompts:
        templates = request.templates
        if templates is None:
            templates = model.manifest.zero_shot.templates
        background = getattr(request, "background_classes", ())
        groups = class_groups(request.classes, background, templates, self.limits)
        return Prompts.of(groups, model)

    def _pass(
        self, request: ImagesRequest, rule: SizeRule, model: ServedModel, call: Call
    ) -> ImagePass:
        options = _options(request, self.limits)
        return ImagePass(request.images, rule, model=model, call=call, options=options)

    async def _run_both(
        self, images: ImagePass, texts: Prompts, ticket: Ticket, call: Call
    ) -> tuple[list[EncodedImage], Embeddings]:
        """What the model says of images and, at the same time, of prompts."""
        encoded, (prompts, text_done) = await wait_both(
            images.run(self._preparer, ticket, self._pool), texts.encode(call, self._pool)
        )
        count_waits(text_done, call)
        return encoded, {**texts.cached, **prompts}

    def _inside(
        self, model: ServedModel, cost: int, call: Call, kind: Kind | None = None
    ) -> Admitted:
        """Admit the whole request and hold its room until the block ends or the deadline passes."""
        return Admitted(self.door, model.admission, cost=cost, call=call, kind=kind)


def _num_items(request: AnyRequest) -> int:
    return len(getattr(request, "images", ())) + len(getattr(request, "texts", ()))


def size_rule(request: ImagesRequest | EmbedMixedRequest, model: ServedModel) -> SizeRule:
    """How images' sizes become the model's.

    Raises:
        InvalidRequest: The resolution is not one of the model's.
    """
    resolution = check_resolution(request.resolution, model.manifest)
    windows = None
    if isinstance(request, SegmentImagesRequest) and request.mode == "slide":
        windows = Windows.of(min(resolution, model.manifest.native_size))
    return SizeRule(
        resolution=resolution,
        fit=request.fit,
        patch_size=model.manifest.patch_size,
        multiple=model.manifest.size_multiple,
        windows=windows,
    )


def _options(request: ImagesRequest, limits: RequestLimits) -> PassOptions:
    check = None
    if (
        isinstance(request, EstimateMapsRequest | VisualizeFeaturesRequest)
        and request.size == "image"
    ):
        check = partial(check_map_pixels, limits=limits)
    elif isinstance(request, SegmentImagesRequest):
        check = partial(check_mask_pixels, limits=limits, with_scores=request.include_scores)
    kind: Kind = request.task if isinstance(request, EstimateMapsRequest) else "image"
    return PassOptions(kind=kind, check_sizes=check, is_partial=request.partial)
