"""The routes: read, ask the data plane, write. Nothing is decided here."""

from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Request, Response

from service.call import current_call
from service.data_plane import DataPlane
from service.rest.connection import until_left
from service.rest.inputs import read_images, read_json
from service.rest.openapi import (
    CLASSIFY_IMAGES,
    EMBED_IMAGES,
    EMBED_TEXTS,
    ERRORS,
    ESTIMATE_DEPTH,
    ESTIMATE_NORMALS,
    SEGMENT_IMAGES,
    V2_ERRORS,
    VISUALIZE_FEATURES,
)
from service.rest.requests import (
    ClassifyImagesBody,
    ClassifyImagesOptions,
    DepthBody,
    DepthOptions,
    EmbedImagesBody,
    EmbedImagesOptions,
    EmbedTextsBody,
    ImageBody,
    MapOptions,
    NormalsBody,
    NormalsOptions,
    SegmentImagesBody,
    SegmentImagesOptions,
    VisualizeFeaturesBody,
    VisualizeFeaturesOptions,
)
from service.rest.response_schemas import Live, ModelCard, ModelList, Ready, model_card
from service.rest.responses import (
    JSON,
    NPY,
    PNG,
    SAFETENSORS,
    check_classify_media,
    check_embed_media,
    check_map_media,
    check_partial_media,
    check_segment_media,
    check_view_media,
    choose_media,
    write_classifications,
    write_image_embeddings,
    write_maps,
    write_overlay,
    write_segmentations,
    write_text_embeddings,
    write_views,
)

ARRAYS = (JSON, NPY, SAFETENSORS)
WRITTEN_AT_ONCE = 2048


def build_router(plane: DataPlane) -> APIRouter:
    """All routes over one data plane."""
    router = APIRouter()
    _add_images(router, plane)
    _add_views(router, plane)
    _add_maps(router, plane)
    _add_texts(router, plane)
    _add_models(router, plane)
    _add_health(router, plane)
    return router


def _add_images(router: APIRouter, plane: DataPlane) -> None:
    @router.post("/v1/images:embed", tags=["images"], **EMBED_IMAGES)
    async def embed_images(request: Request) -> Response:
        """Global embeddings of images, and one embedding for each patch."""
        plane.check_open()
        media = choose_media(request.headers.get("accept"), ARRAYS)
        options, images = await read_images(request, plane, EmbedImagesOptions, EmbedImagesBody)
        check_embed_media(media, options)
        check_partial_media(media, options)
        message = options.to_message(images)
        answer = await until_left(request, plane.embed_images(message, current_call.get()))
        write = partial(write_image_embeddings, answer, media, options)
        num_values = sum(a.size for outputs in answer.embeddings for a in outputs.values())
        return await _respond(plane, media, write, num_values)

    @router.post("/v1/images:segment", tags=["images"], **SEGMENT_IMAGES)
    async def segment_images(request: Request) -> Response:
        """Masks of named things: k where the k-th class is, 0 for background."""
        plane.check_open()
        media = choose_media(request.headers.get("accept"), (*ARRAYS, PNG))
        options, images = await read_images(request, plane, SegmentImagesOptions, SegmentImagesBody)
        check_segment_media(media, options, len(images))
        check_partial_media(media, options)
        message = options.to_message(images)
        answer = await until_left(request, plane.segment_images(message, current_call.get()))
        if options.format == "overlay":
            write = partial(write_overlay, answer, images[0], plane.image_limits)
        else:
            write = partial(write_segmentations, answer, media, options)
        num_pixels = sum(s.labels_HW.size for s in answer.segmentations)
        return await _respond(plane, media, write, num_pixels)


def _add_views(router: APIRouter, plane: DataPlane) -> None:
    @router.post("/v1/images:classify", tags=["images"], **CLASSIFY_IMAGES)
    async def classify_images(request: Request) -> Response:
        """Which of some named things images show, the best first."""
        plane.check_open()
        media = choose_media(request.headers.get("accept"), ARRAYS)
        options, images = await read_images(
            request, plane, ClassifyImagesOptions, ClassifyImagesBody
        )
        check_classify_media(media, options)
        check_partial_media(media, options)
        message = options.to_message(images)
        answer = await until_left(request, plane.classify_images(message, current_call.get()))
        write = partial(write_classifications, answer, media, options)
        num_values = sum(3 * one.labels_K.size for one in answer.classifications)
        return await _respond(plane, media, write, num_values)

    @router.post("/v1/images:features", tags=["images"], **VISUALIZE_FEATURES)
    async def visualize_features(request: Request) -> Response:
        """Patch embeddings made visible: colours, one component, or groups."""
        plane.check_open()
        media = choose_media(request.headers.get("accept"), (*ARRAYS, PNG))
        options, images = await read_images(
            request, plane, VisualizeFeaturesOptions, VisualizeFeaturesBody
        )
        check_view_media(media, len(images))
        check_partial_media(media, options)
        message = options.to_message(images)
        answer = await until_left(request, plane.visualize_features(message, current_call.get()))
        write = partial(write_views, answer, media, options)
        return await _respond(plane, media, write, sum(a.size for a in answer.maps))


def _add_maps(router: APIRouter, plane: DataPlane) -> None:
    @router.post("/v1/images:depth", tags=["images"], **ESTIMATE_DEPTH)
    async def estimate_depth(request: Request) -> Response:
        """How far away every pixel is, in metres."""
        return await _estimate(request, plane, DepthOptions, DepthBody)

    @router.post("/v1/images:normals", tags=["images"], **ESTIMATE_NORMALS)
    async def estimate_normals(request: Request) -> Response:
        """Where the surface at every pixel faces: a vector of unit length."""
        return await _estimate(request, plane, NormalsOptions, NormalsBody)


async def _estimate(
    request: Request, plane: DataPlane, options_type: type[MapOptions], body_type: type[ImageBody]
) -> Response:
    plane.check_open()
    media = choose_media(request.headers.get("accept"), (*ARRAYS, PNG))
    options, images = await read_images(request, plane, options_type, body_type)
    check_map_media(media, options, len(images))
    check_partial_media(media, options)
    message = options.to_message(images)
    answer = await until_left(request, plane.estimate_maps(message, current_call.get()))
    write = partial(write_maps, answer, media, options)
    return await _respond(plane, media, write, sum(a.size for a in answer.maps))


def _add_texts(router: APIRouter, plane: DataPlane) -> None:
    @router.post("/v1/texts:embed", tags=["texts"], **EMBED_TEXTS)
    async def embed_texts(request: Request) -> Response:
        """Embeddings of texts, averaged over prompt templates where asked for."""
        plane.check_open()
        media = choose_media(request.headers.get("accept"), ARRAYS)
        body = await read_json(request, plane, EmbedTextsBody)
        check_partial_media(media, body)
        message = body.to_message()
        answer = await until_left(request, plane.embed_texts(message, current_call.get()))
        write = partial(write_text_embeddings, answer, media, body)
        return await _respond(plane, media, write, answer.embeddings_TD.size)


def _add_models(router: APIRouter, plane: DataPlane) -> None:
    @router.get("/v1/models", tags=["models"], responses=ERRORS)
    async def list_models(request: Request) -> ModelList:
        """What is served, the default model first."""
        choose_media(request.headers.get("accept"), (JSON,))
        return ModelList(data=[model_card(info) for info in plane.list_models()])

    @router.get("/v1/models/{model_id}", tags=["models"], responses=ERRORS)
    async def get_model(model_id: str, request: Request) -> ModelCard:
        """One served model: sizes, outputs, runtime, limits and scores."""
        choose_media(request.headers.get("accept"), (JSON,))
        return model_card(plane.get_model(model_id))


def _add_health(router: APIRouter, plane: DataPlane) -> None:
    @router.get("/v2/health/live", tags=["health"], responses=V2_ERRORS)
    async def live() -> Live:
        """Whether the process answers, and its device has answered not too long ago."""
        plane.check_live()
        return Live()

    @router.get("/v2/health/ready", tags=["health"], responses=V2_ERRORS)
    async def ready() -> Ready:
        """Whether requests are taken: after the warm-up, before the drain, by a sound device."""
        plane.check_ready()
        return Ready()


async def _respond(
    plane: DataPlane, media: str, write: Callable[[], bytes], num_values: int
) -> Response:
    with current_call.get().stage("post"):
        # A thread's wake-up and its way back cost more than writing a few vectors.
        content = write() if num_values <= WRITTEN_AT_ONCE else await plane.offload(write)
    return Response(content, media_type=media)
