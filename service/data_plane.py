"""The request core behind every transport: admit, decode, prepare, batch, run, post-process."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from functools import partial, wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import make_map
from model.image_codec import ImageLimits
from service.call import Call
from service.errors import Overloaded, Unavailable
from service.images import ImagePreparer, JpegDecode, SizeRule, Windows
from service.lanes.work import Kind
from service.lanes.worker import device_unhealthy
from service.messages import (
    ClassifyImagesRequest,
    ClassifyImagesResponse,
    EmbedImagesRequest,
    EmbedImagesResponse,
    EmbedMixedRequest,
    EmbedMixedResponse,
    EmbedTextsRequest,
    EmbedTextsResponse,
    EstimateMapsRequest,
    EstimateMapsResponse,
    FloatArray,
    ModelInfo,
    RequestLimits,
    SegmentImagesRequest,
    SegmentImagesResponse,
    VisualizeFeaturesRequest,
    VisualizeFeaturesResponse,
)
from service.models.admission import Admitted, Ticket
from service.models.image_pipeline import EncodedImage, ImagePass, PassOptions
from service.models.prompts import Prompts, count_waits
from service.models.registry import ModelRegistry
from service.models.served_model import ModelStatistics, ServedModel
from service.models.texts import Embeddings
from service.outputs.features import View, fit_view
from service.outputs.masks import (
    class_embeddings,
    image_outputs,
    segment_image,
    shorten,
    text_embedding,
)
from service.outputs.slide import Geometry
from service.outputs.vectors import classify, pack, pack_all
from service.request_gate import UNAVAILABLE_RETRY_S, RequestGate, unavailable
from service.validation import (
    check_choices,
    check_dimensions,
    check_features,
    check_images,
    check_map_pixels,
    check_mask_pixels,
    check_outputs,
    check_pixels,
    check_resolution,
    check_task,
    check_threshold,
    check_view,
    class_groups,
    split_blank,
    text_groups,
)
from service.waiting import wait_all, wait_both

# What is served and whether it can answer: for probes, and for who lists models.


class Readiness:
    """The gate and the models behind it. Thread-safe."""

    def __init__(self, gate: RequestGate, models: ModelRegistry) -> None:
        self.gate = gate
        self.models = models

    @property
    def health(self) -> dict[str, bool]:
        """Whether each served model can answer, by name."""
        return {served.manifest.name: served.is_ready for served in self.models.models()}

    @property
    def is_ready(self) -> bool:
        """Whether requests are let in, and every model that is served can answer, one at least."""
        health = self.health
        return self.gate.is_ready and bool(health) and all(health.values())

    def check_ready(self) -> None:
        """For readiness probes: refuse where `is_ready` is not so.

        Raises:
            Unavailable: Starting or draining, or a model cannot answer, or none is served.
        """
        if not self.gate.is_ready:
            raise unavailable(self.gate.state)
        if self.models.is_empty:
            raise Unavailable("No model is served.", retry_after_s=UNAVAILABLE_RETRY_S)
        if not all(self.health.values()):
            raise device_unhealthy()

    def check_model_ready(self, name: str | None) -> None:
        """For readiness probes of one model; None is the default.

        Raises:
            Unavailable: Starting or draining, or the model cannot answer.
            ModelNotFound: No model of that name is served.
        """
        if not self.gate.is_ready:
            raise unavailable(self.gate.state)
        if not self.models.find(name).is_ready:
            raise device_unhealthy()

    def check_live(self) -> None:
        """For liveness probes.

        Raises:
            Unavailable: A model has not been able to answer for long; the process is best ended.
        """
        if not all(served.is_live for served in self.models.models()):
            raise device_unhealthy()

    def list_models(self) -> list[ModelInfo]:
        """All served models, the default one first.

        Raises:
            Unavailable: The server is starting.
        """
        if self.models.is_empty:
            self.gate.check()
        return [served.info for served in self.models.models()]

    def get_model(self, name: str | None) -> ModelInfo:
        """One served model; None is the default.

        Raises:
            Unavailable: The server is starting.
            ModelNotFound: No model of that name is served.
        """
        if self.models.is_empty:
            self.gate.check()
        return self.models.find(name).info

    def statistics(self, name: str | None = None) -> list[ModelStatistics]:
        """What models have done since they were loaded: one, or all.

        Raises:
            ModelNotFound: No model of that name is served.
        """
        models = [self.models.find(name)] if name else self.models.models()
        return [served.statistics() for served in models]

    def check_open(self) -> None:
        """Refuse what cannot be let in whatever it asks for, so that its body need not be read.

        Raises:
            Unavailable: Starting or draining.
            Overloaded: Every model is full.
        """
        self.gate.check()
        models = self.models.models()
        if models and all(model.admission.is_full for model in models):
            models[0].admission.check()


# What the capabilities of the data plane share: the model's lease, admission, and the passes.

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
        plane.gate.check()
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
                    if not call.waits_for_capacity or call.known_cost <= known_cost:
                        raise

    return run


class RequestCore(Readiness):
    """Pool, limits and gate, and the parts that several capabilities are made of."""

    def __init__(
        self,
        gate: RequestGate,
        models: ModelRegistry,
        *,
        limits: RequestLimits,
        max_image_patches: int,
        pool: Executor,
        jpeg_decode: JpegDecode = "fast",
    ) -> None:
        super().__init__(gate, models)
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
        return Admitted(self.gate, model.admission, cost=cost, call=call, kind=kind)


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


# The one request core behind every transport: admit, decode, prepare, batch, run, post.
#
# Knows messages and arrays, and neither HTTP nor protobuf. Its coroutines may run on any event
# loop; heavy work runs in the pool and in the lanes.


class DataPlane(RequestCore):
    """One method for each capability. Thread-safe."""

    @with_model
    async def embed_images(
        self, request: EmbedImagesRequest, call: Call, model: ServedModel
    ) -> EmbedImagesResponse:
        """Embeddings of every image.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        check_images(request.images, self.limits)
        check_pixels(request.images, model.manifest)
        names = check_outputs(request.outputs, model.manifest)
        rule = size_rule(request, model)
        cost = len(request.images) * rule.nominal_patches
        async with self._inside(model, cost, call) as ticket:
            images = self._pass(request, rule, model, call)
            encoded = await images.run(self._preparer, ticket, self._pool)
            with call.stage("post"):
                embeddings = [
                    image_outputs(
                        image.outputs, names, grid_hw=image.grid_hw, normalize=request.normalize
                    )
                    for image in encoded
                ]
                if request.vector_type == "float32":
                    packed, scales = embeddings, []
                else:
                    work = partial(pack_all, vector_type=request.vector_type)
                    both = await wait_all(self.offload(partial(work, e)) for e in embeddings)
                    packed, scales = [rows for rows, _ in both], [scale for _, scale in both]
        return EmbedImagesResponse(
            model=model.manifest.name,
            embeddings=tuple(packed),
            scales=tuple(scales),
            errors=images.errors,
        )

    @with_model
    async def embed_texts(
        self, request: EmbedTextsRequest, call: Call, model: ServedModel
    ) -> EmbedTextsResponse:
        """One embedding for each text, averaged over its templates.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        groups, errors = text_groups(request, self.limits)
        texts = Prompts.of(list(groups.values()), model)
        async with self._inside(model, texts.cost, call):
            if request.partial:
                blank = await self.offload(partial(model.blank_prompts, list(texts.missing)))
                groups, errors = split_blank(groups, errors, blank)
                texts = Prompts.of(list(groups.values()), model)
            encoded, done = await texts.encode(call, self._pool)
            count_waits(done, call)
            with call.stage("post"):
                known = {**texts.cached, **encoded}
                rows = [
                    text_embedding(group.prompts, known, normalize=request.normalize)
                    for group in texts.groups
                ]
                stacked_TD = (
                    np.stack(rows) if rows else np.zeros((0, model.manifest.embed_dim), "f4")
                )
                packed_TD, scales_T = pack(stacked_TD, request.vector_type)
        return EmbedTextsResponse(
            model=model.manifest.name, embeddings_TD=packed_TD, scales_T=scales_T, errors=errors
        )

    @with_model
    async def embed_mixed(
        self, request: EmbedMixedRequest, call: Call, model: ServedModel
    ) -> EmbedMixedResponse:
        """One unit vector for each image and each text, all of them let in at once.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        if request.images or not request.texts:
            check_images(request.images, self.limits)
        dimensions = check_dimensions(request.dimensions, model.manifest)
        rule = size_rule(request, model)
        described = EmbedTextsRequest(texts=request.texts)
        groups = text_groups(described, self.limits)[0] if request.texts else {}
        texts = Prompts.of(list(groups.values()), model)
        cost = len(request.images) * rule.nominal_patches + texts.cost
        async with self._inside(model, cost, call) as ticket:
            images = ImagePass(request.images, rule, model=model, call=call)
            encoded, known = await self._run_both(images, texts, ticket, call)
            count = partial(model.count_tokens, request.texts)
            num_tokens = await self.offload(count) if request.texts else 0
            with call.stage("post"):
                rows = [image.outputs["cls1"] for image in encoded]
                rows += [known[prompt] for group in texts.groups for prompt in group.prompts]
                unit_ID = shorten(np.stack(rows), dimensions)
        return EmbedMixedResponse(
            model=model.manifest.name,
            images_BD=unit_ID[: len(encoded)],
            texts_TD=unit_ID[len(encoded) :],
            num_patches=sum(image.grid_hw[0] * image.grid_hw[1] for image in encoded),
            num_tokens=num_tokens,
        )

    @with_model
    async def segment_images(
        self, request: SegmentImagesRequest, call: Call, model: ServedModel
    ) -> SegmentImagesResponse:
        """A mask of each image's own size, by the classes' names.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        check_images(request.images, self.limits)
        check_threshold(request.background_threshold)
        rule = size_rule(request, model)
        features = check_features(request.features, model.manifest)
        texts = self._class_prompts(request, model)
        cost = len(request.images) * rule.nominal_patches + texts.cost
        async with self._inside(model, cost, call) as ticket:
            images = self._pass(request, rule, model, call)
            encoded, known = await self._run_both(images, texts, ticket, call)
            with call.stage("post"):
                classes_KD = class_embeddings([g.prompts for g in texts.groups], known)
                masks = await wait_all(
                    self.offload(partial(segment_image, parts, classes_KD, geometry, request))
                    for parts, geometry in (
                        ([part.outputs[features] for part in image.parts], _geometry(image, rule))
                        for image in encoded
                    )
                )
        return SegmentImagesResponse(
            model=model.manifest.name,
            classes=tuple(c.name for c in request.classes),
            segmentations=tuple(masks),
            errors=images.errors,
        )

    @with_model
    async def classify_images(
        self, request: ClassifyImagesRequest, call: Call, model: ServedModel
    ) -> ClassifyImagesResponse:
        """Which of the classes each image shows, the best first.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        check_images(request.images, self.limits)
        check_choices(request)
        features = check_features(request.features, model.manifest)
        rule = size_rule(request, model)
        texts = self._class_prompts(request, model)
        cost = len(request.images) * rule.nominal_patches + texts.cost
        temperature = request.temperature or model.manifest.temperature
        async with self._inside(model, cost, call) as ticket:
            images = self._pass(request, rule, model, call)
            encoded, known = await self._run_both(images, texts, ticket, call)
            with call.stage("post"):
                classes_KD = class_embeddings([g.prompts for g in texts.groups], known)
                found = [
                    classify(
                        image.outputs[features],
                        classes_KD,
                        temperature=temperature,
                        top_k=request.top_k,
                    )
                    for image in encoded
                ]
        return ClassifyImagesResponse(
            model=model.manifest.name,
            classes=tuple(c.name for c in request.classes),
            classifications=tuple(found),
            errors=images.errors,
        )

    @with_model
    async def visualize_features(
        self, request: VisualizeFeaturesRequest, call: Call, model: ServedModel
    ) -> VisualizeFeaturesResponse:
        """Patch embeddings of every image as colours, as one component, or as groups.

        Raises:
            ServiceError: As `service.errors` draws it.
        """
        check_images(request.images, self.limits)
        check_view(request)
        features = check_features(request.features, model.manifest)
        rule = size_rule(request, model)
        cost = len(request.images) * rule.nominal_patches
        async with self._inside(model, cost, call) as ticket:
            images = self._pass(request, rule, model, call)
            encoded = await images.run(self._preparer, ticket, self._pool)
            with call.stage("post"):
                maps = await self._view(request, encoded, features)
        return VisualizeFeaturesResponse(
            model=model.manifest.name, maps=tuple(maps), errors=images.errors
        )

    @with_model
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
        rule = size_rule(request, model)
        cost = len(request.images) * rule.nominal_patches
        async with self._inside(model, cost, call, task) as ticket:
            is_scaled = request.size == "image"
            images = self._pass(request, rule, model, call)
            estimated = await images.run(self._preparer, ticket, self._pool)
            with call.stage("post"):
                maps = await wait_all(
                    self.offload(partial(make_map, task, raw, image.size_hw if is_scaled else None))
                    for raw, image in ((e.outputs[task], e) for e in estimated)
                )
        return EstimateMapsResponse(
            model=model.manifest.name, maps=tuple(maps), errors=images.errors
        )

    async def _view(
        self, request: VisualizeFeaturesRequest, encoded: Sequence[EncodedImage], features: str
    ) -> list[NDArray[Any]]:
        rows = [image.outputs[features] for image in encoded]
        together: View | None = None
        if request.scope == "request" and rows:
            together = await self.offload(partial(fit_view, request, rows))

        def draw(rows_ND: FloatArray, image: EncodedImage) -> NDArray[Any]:
            view = together or fit_view(request, [rows_ND])
            size_hw = image.size_hw if request.size == "image" else image.grid_hw
            return view(rows_ND, image.grid_hw, size_hw)

        return await wait_all(
            self.offload(partial(draw, rows_ND, image))
            for rows_ND, image in zip(rows, encoded, strict=True)
        )


def _geometry(image: EncodedImage, rule: SizeRule) -> Geometry:
    scaled_hw = image.scaled_hw
    return Geometry(image.grid_hw, image.size_hw, scaled_hw=scaled_hw, windows=rule.windows)
