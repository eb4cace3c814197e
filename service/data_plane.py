"""The one request core behind every transport: admit, decode, prepare, batch, run, post.

Knows messages and arrays, and neither HTTP nor protobuf. Its coroutines may run on any event loop;
heavy work runs in the pool and in the lanes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import make_map
from service.call import Call
from service.features.views import View, fit_view
from service.images.preparation import SizeRule
from service.masks.postprocess import (
    class_embeddings,
    image_outputs,
    segment_image,
    shorten,
    text_embedding,
)
from service.masks.slide import Geometry
from service.messages import (
    EmbedImagesRequest,
    EmbedImagesResponse,
    EmbedMixedRequest,
    EmbedMixedResponse,
    EmbedTextsRequest,
    EmbedTextsResponse,
    EstimateMapsRequest,
    EstimateMapsResponse,
    FloatArray,
    SegmentImagesRequest,
    SegmentImagesResponse,
)
from service.models.image_pass import EncodedImage, ImagePass
from service.models.prompts import Prompts, count_waits
from service.models.served_model import ServedModel
from service.request_core import RequestCore, size_rule, with_model
from service.validation import (
    check_choices,
    check_dimensions,
    check_features,
    check_images,
    check_outputs,
    check_pixels,
    check_task,
    check_threshold,
    check_view,
    split_blank,
    text_groups,
)
from service.vectors.classification import classify
from service.vectors.packing import pack, pack_all
from service.view_messages import (
    ClassifyImagesRequest,
    ClassifyImagesResponse,
    VisualizeFeaturesRequest,
    VisualizeFeaturesResponse,
)
from service.waiting import wait_all


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
