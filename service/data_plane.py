"""The one request core behind every transport: admit, decode, prepare, batch, run, post.

Knows messages and arrays, and neither HTTP nor protobuf. Its coroutines may run on any event loop;
heavy work runs in the pool and in the lanes.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial, wraps
from typing import Any, Final, TypeVar

import numpy as np

from model.dense_maps import make_map
from service.call import Call
from service.door import Door
from service.errors import Overloaded
from service.images.image_codec import ImageLimits
from service.images.preparation import ImagePreparer, JpegDecode, SizeRule
from service.lanes.work import Completed, Kind
from service.masks.postprocess import (
    Geometry,
    class_embeddings,
    image_outputs,
    segment_image,
    shorten,
    text_embedding,
)
from service.messages import (
    EmbedImagesRequest,
    EmbedImagesResponse,
    EmbedTextsRequest,
    EmbedTextsResponse,
    EmbedTogetherRequest,
    EmbedTogetherResponse,
    EstimateMapsRequest,
    EstimateMapsResponse,
    RequestLimits,
    SegmentImagesRequest,
    SegmentImagesResponse,
)
from service.models.admitted import Admitted
from service.models.image_pass import ImagePass
from service.models.registry import ModelRegistry
from service.models.served_model import ServedModel
from service.models.text_encoder import Embeddings
from service.readiness import Readiness
from service.validation import (
    PromptGroup,
    check_dimensions,
    check_features,
    check_images,
    check_map_pixels,
    check_outputs,
    check_pixels,
    check_resolution,
    check_task,
    check_threshold,
    class_groups,
    text_groups,
)
from service.waiting import wait_all, wait_both

# What a prompt costs at the door, in patches: about the tokens of a class name in a template.
PROMPT_COST: Final = 8

T = TypeVar("T")
ImagesRequest = EmbedImagesRequest | SegmentImagesRequest | EstimateMapsRequest
AnyRequest = ImagesRequest | EmbedTextsRequest | EmbedTogetherRequest
RequestT = TypeVar("RequestT", bound=AnyRequest)
Answer = Coroutine[Any, Any, T]


def _with_model(
    method: Callable[["DataPlane", RequestT, Call, ServedModel], Answer[T]],
) -> Callable[["DataPlane", RequestT, Call], Answer[T]]:
    """Run a method on the model that its request names, which stays whole until it has ended."""

    @wraps(method)
    async def run(plane: "DataPlane", request: RequestT, call: Call) -> T:
        plane.door.check()
        with (
            plane.models.lease(request.model) as model,
            model.requests.watching(call, _num_items(request)),
        ):
            while True:
                known_cost = call.known_cost
                try:
                    return await method(plane, request, call, model)
                except Overloaded:
                    # A patient call whose pictures are larger than was thought waits again.
                    if not call.is_patient or call.known_cost <= known_cost:
                        raise

    return run


class DataPlane(Readiness):
    """One method for each capability. Thread-safe."""

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

    @_with_model
    async def embed_images(
        self, request: EmbedImagesRequest, call: Call, model: ServedModel
    ) -> EmbedImagesResponse:
        """Embeddings of every picture.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        check_images(request.images, self.limits)
        check_pixels(request.images, model.manifest)
        names = check_outputs(request.outputs, model.manifest)
        rule = _size_rule(request, model)
        cost = len(request.images) * rule.nominal_patches
        async with self._inside(model, cost, call) as ticket:
            images = ImagePass(request.images, rule, model=model, call=call)
            encoded = await images.run(self._preparer, ticket, self._pool)
            with call.stage("post"):
                embeddings = tuple(
                    image_outputs(
                        image.completed.outputs,
                        names,
                        grid_hw=image.grid_hw,
                        normalize=request.normalize,
                    )
                    for image in encoded
                )
        return EmbedImagesResponse(model=model.manifest.name, embeddings=embeddings)

    @_with_model
    async def embed_texts(
        self, request: EmbedTextsRequest, call: Call, model: ServedModel
    ) -> EmbedTextsResponse:
        """One embedding for each text, averaged over its templates.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        groups = text_groups(request.texts, request.templates, self.limits)
        cached = model.find_cached(groups)
        missing = _missing(groups, cached)
        async with self._inside(model, PROMPT_COST * len(missing), call):
            encoded, done = await model.encode_prompts(missing, call, self._pool)
            _count_waits(done, call)
            with call.stage("post"):
                known = {**cached, **encoded}
                rows = [
                    text_embedding(group.prompts, known, normalize=request.normalize)
                    for group in groups
                ]
        return EmbedTextsResponse(model=model.manifest.name, embeddings_TD=np.stack(rows))

    @_with_model
    async def embed_together(
        self, request: EmbedTogetherRequest, call: Call, model: ServedModel
    ) -> EmbedTogetherResponse:
        """One unit vector for each picture and each text, all of them let in at once.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        if request.images or not request.texts:
            check_images(request.images, self.limits)
        dimensions = check_dimensions(request.dimensions, model.manifest)
        rule = _size_rule(request, model)
        groups = text_groups(request.texts, "none", self.limits) if request.texts else []
        cached = model.find_cached(groups)
        missing = _missing(groups, cached)
        cost = len(request.images) * rule.nominal_patches + PROMPT_COST * len(missing)
        async with self._inside(model, cost, call) as ticket:
            images = ImagePass(request.images, rule, model=model, call=call)
            encoded, (prompts, text_done) = await wait_both(
                images.run(self._preparer, ticket, self._pool),
                model.encode_prompts(missing, call, self._pool),
            )
            _count_waits(text_done, call)
            count = partial(model.count_tokens, request.texts)
            num_tokens = await self.offload(count) if request.texts else 0
            with call.stage("post"):
                known = {**cached, **prompts}
                rows = [image.completed.outputs["cls1"] for image in encoded]
                rows += [known[prompt] for group in groups for prompt in group.prompts]
                unit_ID = shorten(np.stack(rows), dimensions)
        return EmbedTogetherResponse(
            model=model.manifest.name,
            images_BD=unit_ID[: len(encoded)],
            texts_TD=unit_ID[len(encoded) :],
            num_patches=sum(image.grid_hw[0] * image.grid_hw[1] for image in encoded),
            num_tokens=num_tokens,
        )

    @_with_model
    async def segment_images(
        self, request: SegmentImagesRequest, call: Call, model: ServedModel
    ) -> SegmentImagesResponse:
        """A mask of each picture's own size, by the classes' names.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        check_images(request.images, self.limits)
        check_threshold(request.background_threshold)
        rule = _size_rule(request, model)
        features = check_features(request.features, model.manifest)
        templates = request.templates
        if templates is None:
            templates = model.manifest.zero_shot.templates
        groups = class_groups(request.classes, request.background_classes, templates, self.limits)
        cached = model.find_cached(groups)
        missing = _missing(groups, cached)
        cost = len(request.images) * rule.nominal_patches + PROMPT_COST * len(missing)
        async with self._inside(model, cost, call) as ticket:
            images = ImagePass(request.images, rule, model=model, call=call)
            encoded, (prompts, text_done) = await wait_both(
                images.run(self._preparer, ticket, self._pool),
                model.encode_prompts(missing, call, self._pool),
            )
            _count_waits(text_done, call)
            with call.stage("post"):
                known = {**cached, **prompts}
                classes_KD = class_embeddings([group.prompts for group in groups], known)
                masks = await wait_all(
                    self.offload(partial(segment_image, features_ND, classes_KD, geometry, request))
                    for features_ND, geometry in (
                        (image.completed.outputs[features], Geometry(image.grid_hw, image.size_hw))
                        for image in encoded
                    )
                )
        return SegmentImagesResponse(
            model=model.manifest.name,
            classes=tuple(c.name for c in request.classes),
            segmentations=tuple(masks),
        )

    @_with_model
    async def estimate_maps(
        self, request: EstimateMapsRequest, call: Call, model: ServedModel
    ) -> EstimateMapsResponse:
        """What a dense head says of every pixel: depth in metres, or the surface's direction.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        task = request.task
        check_images(request.images, self.limits)
        check_task(task, model.info)
        rule = _size_rule(request, model)
        cost = len(request.images) * rule.nominal_patches
        async with self._inside(model, cost, call, task) as ticket:
            is_scaled = request.size == "picture"
            check = partial(check_map_pixels, limits=self.limits) if is_scaled else None
            images = ImagePass(
                request.images, rule, model=model, call=call, kind=task, check_sizes=check
            )
            estimated = await images.run(self._preparer, ticket, self._pool)
            with call.stage("post"):
                maps = await wait_all(
                    self.offload(partial(make_map, task, raw, image.size_hw if is_scaled else None))
                    for raw, image in ((e.completed.outputs[task], e) for e in estimated)
                )
        return EstimateMapsResponse(model=model.manifest.name, maps=tuple(maps))

    async def offload(self, work: Callable[[], T]) -> T:
        """Do CPU work in the pool instead of on the caller's event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _inside(
        self, model: ServedModel, cost: int, call: Call, kind: Kind | None = None
    ) -> Admitted:
        """Admit the whole request and hold its room until the block ends or the deadline passes."""
        return Admitted(self.door, model.admission, cost=cost, call=call, kind=kind)


def _num_items(request: AnyRequest) -> int:
    return len(getattr(request, "images", ())) + len(getattr(request, "texts", ()))


def _size_rule(request: ImagesRequest | EmbedTogetherRequest, model: ServedModel) -> SizeRule:
    return SizeRule(
        resolution=check_resolution(request.resolution, model.manifest),
        fit=request.fit,
        patch_size=model.manifest.patch_size,
        multiple=model.manifest.size_multiple,
    )


def _missing(groups: Sequence[PromptGroup], cached: Embeddings) -> Mapping[str, str]:
    """Each prompt that must be computed, once, with the field that it comes from."""
    missing: dict[str, str] = {}
    for group in groups:
        for prompt in group.prompts:
            if prompt not in cached:
                missing.setdefault(prompt, group.param)
    return missing


def _count_waits(done: Sequence[Completed], call: Call) -> None:
    """Items run side by side: the slowest is what the caller waited for."""
    call.wait("queue", max((d.queue_s for d in done), default=0.0))
    call.wait("run", max((d.run_s for d in done), default=0.0))
    for batch in {d.batch for d in done}:
        call.trace.ran_in(batch)
