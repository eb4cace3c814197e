"""The native routes: read the request, call the data plane, write the response.

No route handles errors or lost clients: `service.rest.app.Dispatcher` turns errors into responses,
and cancels a route when its client leaves.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from service.call import current_call
from service.data_plane import DataPlane
from service.monitoring.metrics import release
from service.rest.inputs import Sent, read_images, read_texts
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
    RouteText,
)
from service.rest.requests import (
    ClassifyImagesBody,
    DepthBody,
    EmbedImagesBody,
    NormalsBody,
    SegmentImagesBody,
    VisualizeFeaturesBody,
)
from service.rest.response_schemas import (
    Live,
    ModelCard,
    ModelList,
    Ready,
    Version,
    model_card,
)
from service.rest.responses import (
    CLASSES,
    FEATURES,
    IMAGE_EMBEDDINGS,
    JSON,
    MAPS,
    MASKS,
    TEXT_EMBEDDINGS,
    choose_media,
    respond,
)


async def embed_images(sent: Sent, plane: DataPlane) -> Response:
    """Global embeddings of images, and one embedding for each patch."""
    asked = await read_images(sent, plane, EmbedImagesBody, IMAGE_EMBEDDINGS)
    message = asked.options.to_message(asked.images)
    return await respond(plane, asked, await plane.embed_images(message, current_call.get()))


async def segment_images(sent: Sent, plane: DataPlane) -> Response:
    """Masks of the named classes: k for the k-th class, 0 for background."""
    asked = await read_images(sent, plane, SegmentImagesBody, MASKS)
    message = asked.options.to_message(asked.images)
    message = replace(message, include_class_scores=asked.media == JSON)
    return await respond(plane, asked, await plane.segment_images(message, current_call.get()))


async def classify_images(sent: Sent, plane: DataPlane) -> Response:
    """The named classes of images with their probabilities, the best first."""
    asked = await read_images(sent, plane, ClassifyImagesBody, CLASSES)
    message = asked.options.to_message(asked.images)
    return await respond(plane, asked, await plane.classify_images(message, current_call.get()))


async def visualize_features(sent: Sent, plane: DataPlane) -> Response:
    """Patch embeddings as colours, as one component, or as groups."""
    asked = await read_images(sent, plane, VisualizeFeaturesBody, FEATURES)
    message = asked.options.to_message(asked.images)
    return await respond(plane, asked, await plane.visualize_features(message, current_call.get()))


async def estimate_depth(sent: Sent, plane: DataPlane) -> Response:
    """The distance of every pixel, in metres."""
    asked = await read_images(sent, plane, DepthBody, MAPS)
    message = asked.options.to_message(asked.images)
    return await respond(plane, asked, await plane.estimate_maps(message, current_call.get()))


async def estimate_normals(sent: Sent, plane: DataPlane) -> Response:
    """The direction of the surface at every pixel: a unit vector."""
    asked = await read_images(sent, plane, NormalsBody, MAPS)
    message = asked.options.to_message(asked.images)
    return await respond(plane, asked, await plane.estimate_maps(message, current_call.get()))


async def embed_texts(sent: Sent, plane: DataPlane) -> Response:
    """Embeddings of texts, averaged over prompt templates if there are any."""
    asked = await read_texts(sent, plane, TEXT_EMBEDDINGS)
    message = asked.options.to_message()
    return await respond(plane, asked, await plane.embed_texts(message, current_call.get()))


Answer = Callable[[Sent, DataPlane], Awaitable[Response]]
# The routes of the capabilities, with their tag and what the OpenAPI document says of them.
NATIVE: Final[Mapping[str, tuple[Answer, str, RouteText]]] = {
    "/v1/images:embed": (embed_images, "images", EMBED_IMAGES),
    "/v1/images:segment": (segment_images, "images", SEGMENT_IMAGES),
    "/v1/images:classify": (classify_images, "images", CLASSIFY_IMAGES),
    "/v1/images:features": (visualize_features, "images", VISUALIZE_FEATURES),
    "/v1/images:depth": (estimate_depth, "images", ESTIMATE_DEPTH),
    "/v1/images:normals": (estimate_normals, "images", ESTIMATE_NORMALS),
    "/v1/texts:embed": (embed_texts, "texts", EMBED_TEXTS),
}


def build_router(plane: DataPlane) -> APIRouter:
    """The native routes over a data plane."""
    router = APIRouter()
    for path in NATIVE:
        _add_native(router, plane, path)
    _add_models(router, plane)
    _add_health(router, plane)
    return router


def _add_native(router: APIRouter, plane: DataPlane, path: str) -> None:
    answer, tag, text = NATIVE[path]

    async def route(request: Request) -> Response:
        return await answer(Sent.of(request), plane)

    described: dict[str, Any] = {"name": answer.__name__, "description": answer.__doc__, **text}
    router.post(path, tags=[tag], **described)(route)


def _add_models(router: APIRouter, plane: DataPlane) -> None:
    @router.get("/v1/models", tags=["models"], responses=ERRORS)
    async def list_models(request: Request) -> ModelList:
        """The served models, the default model first."""
        choose_media(request.headers.get("accept"), (JSON,))
        return ModelList(data=[model_card(info) for info in plane.list_models()])

    @router.get("/v1/models/{model_id}", tags=["models"], responses=ERRORS)
    async def get_model(model_id: str, request: Request) -> ModelCard:
        """One served model: sizes, outputs, runtime, limits and scores."""
        choose_media(request.headers.get("accept"), (JSON,))
        return model_card(plane.get_model(model_id))


def _add_health(router: APIRouter, plane: DataPlane) -> None:
    @router.get("/v2/health/live", tags=["health"], responses=V2_ERRORS)
    async def check_live() -> Live:
        """Liveness: the process responds, and its device has computed a batch recently."""
        plane.check_live()
        return Live()

    @router.get("/v2/health/ready", tags=["health"], responses=V2_ERRORS)
    async def check_ready() -> Ready:
        """Readiness: the warm-up is done, the drain has not begun, and the device is healthy."""
        plane.check_ready()
        return Ready()

    async def health() -> Ready:
        """Readiness, as `/v2/health/ready`."""
        return await check_ready()

    for path in ("/health", "/healthz"):
        router.get(path, name=path[1:], tags=["health"], responses=ERRORS)(health)

    @router.get("/version", tags=["models"], responses=ERRORS)
    async def version() -> Version:
        """The version of this server."""
        return Version(version=release())
