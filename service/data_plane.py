"""The transport-independent core: check a request, admit it, encode it, make the answer.

Knows messages and arrays, but neither HTTP nor protobuf. The coroutines may run on any event loop;
CPU work runs in the pool, and the model runs in the lanes.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import make_map
from model.foreground import RUN_BYTES as FOREGROUND_BYTES
from model.graphs import DENSE_TASKS, PATCH_OUTPUTS
from model.head import Head
from model.image_codec import ImageLimits
from model.preprocess import Scaling
from model.segmentation import Background, Classes, PooledClasses
from service.admission import UNAVAILABLE_RETRY_S, Admission, unavailable
from service.answer_size import SizedRequest, answer_size, check_answer_size
from service.call import AnswerEncoding, Call
from service.errors import Unavailable, device_unhealthy
from service.images import ImagePreparer, JpegDecode, SizeRule, Windows
from service.lanes.work import image_kind, image_work
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
    FloatArray,
    ImageOutput,
    ImagesRequest,
    MapsResponse,
    MaskSize,
    ModelInfo,
    RequestLimits,
    Segmentation,
    SegmentImagesRequest,
    SegmentImagesResponse,
    VisualizeFeaturesRequest,
)
from service.models.heads import HeadRequest, names_head, names_own_labels, with_own_labels
from service.models.image_cache import EncodedImage
from service.models.image_pipeline import ImageJob, ImagePipeline
from service.models.registry import ModelRegistry
from service.models.served_model import ModelStatistics, ServedModel
from service.models.texts import PromptSet, TextEmbeddings
from service.outputs.examples import PatchMap, example_embeddings
from service.outputs.features import View, fit_view
from service.outputs.masks import (
    MaskRules,
    SeenImage,
    class_embeddings,
    image_outputs,
    segment_by_head,
    segment_image,
    shorten,
    text_embedding,
)
from service.outputs.regions import Calibration
from service.outputs.slide import Geometry
from service.outputs.vectors import classify, pack, pack_all
from service.validation import (
    check_bounds,
    check_dimensions,
    check_examples,
    check_features,
    check_images,
    check_outputs,
    check_pixels,
    check_resolution,
    check_slide,
    check_task,
    check_texts,
    check_view,
    class_groups,
    find_people,
    split_blank,
    text_groups,
    with_mask_defaults,
)
from service.waiting import Pool, Steps, run_slice, wait_all, wait_both

T = TypeVar("T")
ClassesRequest = SegmentImagesRequest | ClassifyImagesRequest
# Smaller answers are not counted: a request in progress takes more than they do.
SMALL_ANSWER_BYTES: Final = 64 * 1024
NO_PROMPTS = PromptSet(groups=(), cached={}, missing={})


class DataPlane:
    """One coroutine for each capability, and the readiness of what is served. Thread-safe.

    Each coroutine may raise any `ServiceError`; see `service.errors`.
    """

    def __init__(
        self,
        admission: Admission,
        models: ModelRegistry,
        *,
        limits: RequestLimits,
        max_image_patches: int,
        pool: Pool,
        jpeg_decode: JpegDecode = "fast",
    ) -> None:
        self.admission = admission
        self.models = models
        self.limits = limits
        self.image_limits = ImageLimits(
            max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels
        )
        self._pool = pool
        self._preparer = ImagePreparer(
            self.image_limits, max_patches=max_image_patches, jpeg_decode=jpeg_decode
        )
        self._images = ImagePipeline(self._preparer, pool, admission, models.images)

    @property
    def health(self) -> dict[str, bool]:
        """Whether each served model can answer, by name."""
        return {served.manifest.name: served.batcher.is_ready for served in self.models.models()}

    @property
    def is_ready(self) -> bool:
        """Whether the server is open, a model is served, and every served model can answer."""
        health = self.health
        return self.admission.is_ready and bool(health) and all(health.values())

    def check_ready(self) -> None:
        """Readiness of the server, for probes.

        Raises:
            Unavailable: The server starts or drains, a model cannot answer, or none is served.
        """
        if not self.admission.is_ready:
            raise unavailable(self.admission.state)
        if self.models.is_empty:
            raise Unavailable("No model is served.", retry_after_s=UNAVAILABLE_RETRY_S)
        if not all(self.health.values()):
            raise device_unhealthy()

    def check_model_ready(self, name: str | None) -> None:
        """Readiness of one model, for probes; None is the default model.

        Raises:
            Unavailable: The server starts or drains, or the model cannot answer.
            ModelNotFound: No model of that name is served.
        """
        if not self.admission.is_ready:
            raise unavailable(self.admission.state)
        if not self.models.find(name).batcher.is_ready:
            raise device_unhealthy()

    def check_live(self) -> None:
        """Liveness, for probes.

        Raises:
            Unavailable: All lanes of a model are dead or hang: the process should be restarted.
        """
        if not all(served.batcher.is_live for served in self.models.models()):
            raise device_unhealthy()

    def list_models(self) -> list[ModelInfo]:
        """All served models, the default one first.

        Raises:
            Unavailable: The server is starting.
        """
        if self.models.is_empty:
            self.admission.check_open()
        return [served.info for served in self.models.models()]

    def get_model(self, name: str | None) -> ModelInfo:
        """One served model; None is the default.

        Raises:
            Unavailable: The server is starting.
            ModelNotFound: No model of that name is served.
        """
        if self.models.is_empty:
            self.admission.check_open()
        return self.models.find(name).info

    def statistics(self, name: str | None = None) -> list[ModelStatistics]:
        """Request counts of one model or of all, since they were loaded.

        Raises:
            ModelNotFound: No model of that name is served.
        """
        models = [self.models.find(name)] if name else self.models.models()
        return [served.statistics() for served in models]

    def check_open(self, caller: str) -> None:
        """Reject a request of a caller that cannot be admitted, before its body is read.

        Raises:
            Unavailable: The server starts or drains.
            Overloaded: Every model is full.
        """
        self.admission.check_open()
        models = self.models.models()
        if models and all(model.budget.is_full(caller) for model in models):
            raise models[0].budget.full()

    async def offload(self, work: Callable[[], T]) -> T:
        """Run CPU work in the pool instead of on the caller's event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def offload_steps(self, steps: Steps[T], call: Call) -> T:
        """Run long CPU work in the pool, one slice after the other.

        Between slices the pool runs other work, and the work ends when its caller has left. As one
        job, a mask of 40 megapixels and 512 classes held a thread for 350 s.

        Raises:
            DeadlineExceeded: The deadline passed before the end.
        """
        while (done := await self.offload(partial(run_slice, steps))) is None:
            call.remaining_s()
        return done[0]

    async def embed_images(self, request: EmbedImagesRequest, call: Call) -> EmbedImagesResponse:
        """Embeddings of every image."""
        with self._serving(request, call) as model:
            check_images(request.images, self.limits)
            check_pixels(request.images, model.manifest)
            names = check_outputs(request.outputs, model.info)
            job, _ = await self._encode(request, model, call, outputs=names)
            with call.stage("post"):
                embeddings = [
                    image_outputs(
                        image.outputs, names, grid_hw=image.grid_hw, normalize=request.normalize
                    )
                    for image in job.encoded()
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
            errors=job.errors,
        )

    async def embed_texts(self, request: EmbedTextsRequest, call: Call) -> EmbedTextsResponse:
        """One embedding for each text, averaged over its templates."""
        with self._serving(request, call) as model:
            groups, errors = text_groups(request, self.limits)
            prompts = model.texts.look_up(list(groups.values()))
            call.unloaded_s = model.unloaded_s(prompts.cost, len(prompts.missing))
            await self.admission.take(call, model.budget, num_patches=prompts.cost)
            if request.partial:
                # Only the tokenizer knows which texts are blank; it is too slow to run before
                # admission.
                blank = await self.offload(partial(model.texts.blank, list(prompts.missing)))
                groups, errors = split_blank(groups, errors, blank)
                prompts = model.texts.look_up(list(groups.values()))
            known = await model.texts.encode(prompts, call, self._pool)
            with call.stage("post"):
                rows = [
                    text_embedding(group.prompts, known, normalize=request.normalize)
                    for group in prompts.groups
                ]
                stacked_TD = (
                    np.stack(rows) if rows else np.zeros((0, model.manifest.embed_dim), "f4")
                )
                packed_TD, scales_T = pack(stacked_TD, request.vector_type)
        return EmbedTextsResponse(
            model=model.manifest.name, embeddings_TD=packed_TD, scales_T=scales_T, errors=errors
        )

    async def embed_mixed(self, request: EmbedMixedRequest, call: Call) -> EmbedMixedResponse:
        """One vector for each image and each text, admitted as one request."""
        with self._serving(request, call) as model:
            if request.images or not request.texts:
                check_images(request.images, self.limits)
            dimensions = check_dimensions(request.dimensions, model.manifest)
            prompts, texts, num_tokens = NO_PROMPTS, request.texts, 0
            if texts:
                check_texts(texts, self.limits)
                if request.truncate is not None:
                    cut = partial(model.texts.truncate, texts, request.truncate)
                    texts = await self.offload(cut)
                groups, _ = text_groups(EmbedTextsRequest(texts=texts), self.limits)
                prompts = model.texts.look_up(list(groups.values()))
            job, known = await self._encode(
                request, model, call, outputs=("cls1",), prompts=prompts
            )
            images = job.encoded()
            with call.stage("post"):
                if texts:
                    num_tokens = await self.offload(partial(model.texts.count_tokens, texts))
                rows = [image.outputs["cls1"] for image in images]
                rows += [known[p] for group in prompts.groups for p in group.prompts]
                rows_ID = shorten(np.stack(rows), dimensions, normalize=request.normalize)
        return EmbedMixedResponse(
            model=model.manifest.name,
            images_BD=rows_ID[: len(images)],
            texts_TD=rows_ID[len(images) :],
            num_patches=sum(math.prod(image.grid_hw) for image in images),
            num_tokens=num_tokens,
        )

    async def segment_images(
        self, request: SegmentImagesRequest, call: Call
    ) -> SegmentImagesResponse:
        """A mask in the size of each image, by the names of the classes."""
        with self._serving(request, call) as model:
            check_images(request.images, self.limits)
            if names_own_labels(request):
                return await self._segment_by_head(request, model, call)
            request, head = await self._with_head(request, model)
            request = with_mask_defaults(
                request, model.manifest.zero_shot, has_head=head is not None
            )
            features = check_features(request.features, model.manifest)
            prompts = self._class_prompts(request, model, head)
            rules = _mask_rules(request, model, features=features, head=head, prompts=prompts)
            job, known = await self._encode(
                request,
                model,
                call,
                outputs=(features,),
                prompts=prompts,
                uses_foreground=rules.uses_foreground,
            )
            with call.stage("post"):
                if rules.uses_foreground:
                    await self._find_foreground(job.encoded(), features, model)
                if head is not None:
                    classes: Classes = head.classes_KD
                elif prompts is NO_PROMPTS:
                    classes = await self.offload(partial(_example_classes, request, job, features))
                else:
                    classes = class_embeddings(prompts.groups, known, model.info.words)
                masks = await wait_all(
                    self.offload_steps(
                        segment_image(
                            [_seen(one, job.rule, request, rules) for one in images],
                            classes,
                            request,
                            rules,
                        ),
                        call,
                    )
                    for images in zip(*map(job.encoded, range(len(job.rules))), strict=True)
                )
        return _segmented(request, model, masks, job)

    async def _segment_by_head(
        self, request: SegmentImagesRequest, model: ServedModel, call: Call
    ) -> SegmentImagesResponse:
        """Masks of the package's own classes."""
        request = with_own_labels(request, model.info)
        job, _ = await self._encode(request, model, call, outputs=("segmentation",))
        with call.stage("post"):
            masks = await wait_all(
                self.offload_steps(
                    segment_by_head(
                        image.outputs["segmentation"],
                        mask_size(job.rule, request.size, image.size_hw, image.scaled_hw),
                        request,
                    ),
                    call,
                )
                for image in job.encoded()
            )
        return _segmented(request, model, masks, job)

    async def classify_images(
        self, request: ClassifyImagesRequest, call: Call
    ) -> ClassifyImagesResponse:
        """The classes of each image with their probabilities, the best first."""
        with self._serving(request, call) as model:
            check_images(request.images, self.limits)
            request, head = await self._with_head(request, model)
            features = check_features(request.features, model.manifest)
            prompts = self._class_prompts(request, model, head)
            temperature = request.temperature or _temperature(model, head)
            job, known = await self._encode(
                request, model, call, outputs=(features,), prompts=prompts
            )
            with call.stage("post"):
                classes = (
                    class_embeddings(prompts.groups, known, model.info.words)
                    if head is None
                    else PooledClasses(head.classes_KD, [1] * len(head.classes_KD))
                )
                found = [
                    classify(
                        image.outputs[features],
                        classes,
                        temperature=temperature,
                        top_k=request.top_k,
                    )
                    for image in job.encoded()
                ]
        return ClassifyImagesResponse(
            model=model.manifest.name,
            classes=tuple(c.name for c in request.classes),
            classifications=tuple(found),
            errors=job.errors,
        )

    async def visualize_features(
        self, request: VisualizeFeaturesRequest, call: Call
    ) -> MapsResponse:
        """Patch embeddings of every image as colors, as one component, or as groups."""
        with self._serving(request, call) as model:
            check_images(request.images, self.limits)
            check_view(request)
            features = check_features(request.features, model.manifest)
            job, _ = await self._encode(request, model, call, outputs=(features,))
            with call.stage("post"):
                maps = await self._draw_features(request, model, job.encoded(), features)
        return MapsResponse(model=model.manifest.name, maps=tuple(maps), errors=job.errors)

    async def estimate_maps(self, request: EstimateMapsRequest, call: Call) -> MapsResponse:
        """A dense head's value for every pixel: depth in metres, or the surface normal."""
        task, is_scaled = request.task, request.size == "image"
        with self._serving(request, call) as model:
            check_images(request.images, self.limits)
            check_task(task, model.info)
            job, _ = await self._encode(request, model, call, outputs=(task,))
            with call.stage("post"):
                maps = await wait_all(
                    self.offload(partial(make_map, task, raw, image.size_hw if is_scaled else None))
                    for raw, image in ((e.outputs[task], e) for e in job.encoded())
                )
        return MapsResponse(model=model.manifest.name, maps=tuple(maps), errors=job.errors)

    @contextmanager
    def _serving(
        self, request: ImagesRequest | EmbedTextsRequest, call: Call
    ) -> Iterator[ServedModel]:
        """The model that the request names, kept loaded and its statistics counted for a block.

        A call in process has no ticket; it gets one for the block.
        """
        self.admission.check_open()
        num_items = len(getattr(request, "images", ())) + len(getattr(request, "texts", ()))
        with self.models.lease(request.model) as model:
            own_ticket = self.admission.enter(call) if call.ticket is None else None
            call.model, call.num_items = model.manifest.name, num_items
            try:
                with model.requests.count(call, num_items):
                    check_bounds(request)
                    yield model
            finally:
                if own_ticket is not None:
                    own_ticket.release()

    async def _encode(
        self,
        request: ImagesRequest,
        model: ServedModel,
        call: Call,
        *,
        outputs: Collection[str] = (),
        prompts: PromptSet = NO_PROMPTS,
        uses_foreground: bool = False,
    ) -> tuple[ImageJob, TextEmbeddings]:
        """Read headers, take what the request needs, then decode and encode images and prompts.

        The request reads these outputs of its images.
        """
        job = self._image_job(request, model, outputs)
        await self._images.measure(job, model, call)
        answer_bytes = self._answer_bytes(job, request, model, call.answer_encoding)
        if uses_foreground:
            answer_bytes += FOREGROUND_BYTES * min(len(job.given), self._pool.num_threads)
        call.unloaded_s = max(
            model.unloaded_s(job.num_queued_patches * image_work(job.kind), job.num_parts),
            model.unloaded_s(prompts.cost, len(prompts.missing)),
        )
        await self.admission.take(
            call,
            model.budget,
            num_patches=job.num_queued_patches + prompts.cost,
            # The images are decoded before the answer is made.
            num_bytes=max(job.num_bytes, answer_bytes),
        )
        images, texts = self._images.run(job, model, call), prompts.cached
        if prompts.missing:
            _, texts = await wait_both(images, model.texts.encode(prompts, call, self._pool))
        else:
            await images
        await self._images.make_room(answer_bytes, model)
        return job, texts

    def _image_job(
        self, request: ImagesRequest, model: ServedModel, outputs: Collection[str]
    ) -> ImageJob:
        tasks = [task for task in DENSE_TASKS if task in outputs]
        rule = size_rule(request, model, is_map=bool(tasks))
        # Only embeddings share a pass with dense heads.
        kind = image_kind(tasks)
        if tasks and not isinstance(request, EmbedImagesRequest):
            (kind,) = tasks
        rules = [rule]
        # A model whose masks follow colours by default keeps them for further requests too.
        qualities = {model.manifest.zero_shot.quality}
        if isinstance(request, SegmentImagesRequest):
            qualities.add(request.quality or "published")
            if request.quality == "fine":
                rules.append(self._preparer.finer(rule, model.manifest.max_size))
        return ImageJob(
            given=request.images,
            rules=rules,
            kind=kind,
            patch_outputs=[name for name in PATCH_OUTPUTS if name in outputs],
            is_partial=request.partial,
            has_guide=rule.windows is None and qualities != {"published"},
        )

    def _answer_bytes(
        self, job: ImageJob, request: ImagesRequest, model: ServedModel, encoding: AnswerEncoding
    ) -> int:
        """Bytes that the answer holds until it is sent; 0 if they are few.

        Raises:
            RequestTooLarge: The answer is larger than one may be.
            InvalidRequest: Masks in slide mode are too large.
        """
        if not isinstance(request, SizedRequest):
            return 0
        sizes_hw, num_labels = job.sizes_hw, 0
        if isinstance(request, SegmentImagesRequest):
            num_labels = len(request.classes) if job.kind == "segmentation" else 0
            sizes_hw = [
                mask_size(job.rule, request.size, size_hw, job.rule.target_hw(size_hw))
                for size_hw in sizes_hw
            ]
            if job.rule.windows is not None:
                check_slide(sizes_hw, request)
        size = answer_size(
            request,
            encoding,
            sizes_hw,
            [image.num_patches[0] for image in job.images],
            embed_dim=model.manifest.embed_dim,
            num_labels=num_labels,
        )
        check_answer_size(size, self.limits.max_answer_bytes, self.admission.max_work_bytes)
        return size.num_held if size.num_held > SMALL_ANSWER_BYTES else 0

    async def _with_head(
        self, request: HeadRequest, model: ServedModel
    ) -> tuple[HeadRequest, Head | None]:
        if not names_head(request):
            return request, None
        return await self.offload(partial(self.models.heads.apply, request, model.manifest))

    async def _find_foreground(
        self, images: Sequence[EncodedImage], features: str, model: ServedModel
    ) -> None:
        """Find the foreground once an image: a cached one keeps the result."""
        finder = model.info.foreground
        assert finder is not None

        def find(image: EncodedImage, guide_3YX: NDArray[np.uint8]) -> None:
            image.foregrounds[features] = finder.find(guide_3YX, image.outputs[features])

        await wait_all(
            self.offload(partial(find, image, image.guide_3YX))
            for image in images
            if image.guide_3YX is not None and features not in image.foregrounds
        )

    def _class_prompts(
        self, request: ClassesRequest, model: ServedModel, head: Head | None
    ) -> PromptSet:
        templates = request.templates
        if templates is None:
            templates = model.manifest.zero_shot.templates
        background = getattr(request, "background_classes", ())
        groups = class_groups(request.classes, background, templates, self.limits)
        if head is not None or check_examples(request):
            return NO_PROMPTS
        return model.texts.look_up(groups)

    async def _draw_features(
        self,
        request: VisualizeFeaturesRequest,
        model: ServedModel,
        images: Sequence[EncodedImage],
        features: str,
    ) -> list[NDArray[Any]]:
        rows = [image.outputs[features] for image in images]
        shared: View | None = None
        if request.scope == "request" and rows:
            shared = await self.offload(partial(fit_view, request, rows))

        def draw(rows_ND: FloatArray, image: EncodedImage) -> NDArray[Any]:
            view = shared or fit_view(request, [rows_ND])
            if request.size != "image":
                return view(rows_ND, image.grid_hw, image.grid_hw, None)
            is_outlined = model.manifest.zero_shot.quality != "published"
            guide_3YX = image.guide_3YX if is_outlined else None
            return view(rows_ND, image.grid_hw, image.size_hw, guide_3YX)

        return await wait_all(
            self.offload(partial(draw, rows_ND, image))
            for rows_ND, image in zip(rows, images, strict=True)
        )


def _temperature(model: ServedModel, head: Head | None) -> float:
    return model.manifest.temperature if head is None else head.info.temperature


def _mask_rules(
    request: SegmentImagesRequest,
    model: ServedModel,
    *,
    features: ImageOutput,
    head: Head | None,
    prompts: PromptSet,
) -> MaskRules:
    """Of a request with its defaults, see `with_mask_defaults`."""
    background = Background(
        threshold=request.background_threshold,
        num_classes=len(request.background_classes),
        level=request.background_level if request.background == "auto" else None,
        least_cosine=model.manifest.zero_shot.least_cosine,
    )
    defaults = model.manifest.zero_shot
    # Cosines with examples and with vectors of a head are much larger than with texts.
    is_calibrated = defaults.confidence_slope > 0 and prompts is not NO_PROMPTS
    rules = MaskRules(
        features=features,
        temperature=_temperature(model, head),
        background=background,
        calibration=(
            Calibration(defaults.confidence_offset, defaults.confidence_slope)
            if is_calibrated
            else None
        ),
    )
    finder = model.info.foreground
    if finder is None or request.quality == "published":
        return rules
    names = [group.name or "" for group in prompts.groups]
    has_level = background.level is not None
    animals = [k for k, name in enumerate(names) if has_level and finder.is_animal(name)]
    return replace(rules, people=find_people(prompts.groups), animals=animals)


def _segmented(
    request: SegmentImagesRequest, model: ServedModel, masks: Sequence[Segmentation], job: ImageJob
) -> SegmentImagesResponse:
    return SegmentImagesResponse(
        model=model.manifest.name,
        classes=tuple(c.name for c in request.classes),
        segmentations=tuple(masks),
        errors=job.errors,
    )


def size_rule(request: ImagesRequest, model: ServedModel, *, is_map: bool) -> SizeRule:
    """The size at which the model, or a dense head if `is_map`, sees the images of a request.

    Raises:
        InvalidRequest: The model does not support the resolution.
    """
    manifest = model.manifest
    resolution = check_resolution(request.resolution, manifest, is_map=is_map)
    windows = None
    scaling: Scaling = "bilinear"
    if isinstance(request, SegmentImagesRequest) and not is_map:
        defaults = manifest.zero_shot
        scaling = defaults.scaling
        if (request.mode or defaults.mode) == "slide":
            windows = Windows.of(min(resolution, manifest.native_size))
    return SizeRule(
        resolution=resolution,
        fit=request.fit or ("squash" if is_map else "aspect"),
        patch_size=manifest.patch_size,
        multiple=manifest.map_multiple if is_map else manifest.size_multiple,
        windows=windows,
        scaling=scaling,
    )


def _seen(
    image: EncodedImage, rule: SizeRule, request: SegmentImagesRequest, rules: MaskRules
) -> SeenImage:
    return SeenImage(
        image.parts,
        _geometry(image, rule, request.size),
        None if request.quality == "published" else image.guide_3YX,
        image.foregrounds.get(rules.features) if rules.uses_foreground else None,
    )


def _geometry(image: EncodedImage, rule: SizeRule, size: MaskSize) -> Geometry:
    size_hw = mask_size(rule, size, image.size_hw, image.scaled_hw)
    return Geometry(image.grid_hw, size_hw, scaled_hw=image.scaled_hw, windows=rule.windows)


def _example_classes(request: SegmentImagesRequest, job: ImageJob, features: str) -> FloatArray:
    """Class embeddings [K, D] from the examples of a request.

    Raises:
        ServiceError: The image of an example could not be read, or an example is wrong.
    """
    classes = [(f"classes[{i}]", one) for i, one in enumerate(request.classes)]
    classes += [
        (f"background_classes[{i}]", one) for i, one in enumerate(request.background_classes)
    ]
    needed = {example.image for _, one in classes for example in one.examples}
    for index in sorted(needed & job.errors.keys()):
        raise job.errors[index]
    maps = {
        asked.index: PatchMap(
            [outputs[features] for outputs in image.parts], _geometry(image, job.rule, "image")
        )
        for asked, image in zip(job.images, job.encoded(), strict=True)
        if asked.index in needed
    }
    return example_embeddings(classes, maps)


def mask_size(
    rule: SizeRule, size: MaskSize, size_hw: tuple[int, int], scaled_hw: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of a mask, from those of its image and of the model's input."""
    if size == "image":
        return size_hw
    if size == "model":
        return scaled_hw
    return -(-scaled_hw[0] // rule.patch_size), -(-scaled_hw[1] // rule.patch_size)
