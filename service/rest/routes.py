"""The native routes: read the request, call the data plane, write the response.

No route handles errors or lost clients: `service.rest.app.Dispatcher` turns errors into responses,
and cancels a route when its client leaves.
"""

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from service.call import current_call
from service.data_plane import DataPlane
from service.monitoring.metrics import release
from service.rest.inputs import read_images, read_texts
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


def build_router(plane: DataPlane) -> APIRouter:
    """The native routes over a data plane."""
    router = APIRouter()
    _add_images(router, plane)
    _add_maps(router, plane)
    _add_texts(router, plane)
    _add_models(router, plane)
    _add_health(router, plane)
    return router


def _add_images(router: APIRouter, plane: DataPlane) -> None:
    @router.post("/v1/images:embed", tags=["images"], **EMBED_IMAGES)
    async def embed_images(request: Request) -> Response:
        """Global embeddings of images, and one embedding for each patch."""
        asked = await read_images(request, plane, EmbedImagesBody, IMAGE_EMBEDDINGS)
        message = asked.options.to_message(asked.images)
        answer = await plane.embed_images(message, current_call.get())
        return await respond(plane, asked, answer)

    @router.post("/v1/images:segment", tags=["images"], **SEGMENT_IMAGES)
    async def segment_images(request: Request) -> Response:
        """Masks of the named classes: k for the k-th class, 0 for background."""
        asked = await read_images(request, plane, SegmentImagesBody, MASKS)
        message = asked.options.to_message(asked.images)
        message = replace(message, include_class_scores=asked.media == JSON)
        answer = await plane.segment_images(message, current_call.get())
        return await respond(plane, asked, answer)

    @router.post("/v1/images:classify", tags=["images"], **CLASSIFY_IMAGES)
    async def classify_images(request: Request) -> Response:
        """The named classes of images with their probabilities, the best first."""
        asked = await read_images(request, plane, ClassifyImagesBody, CLASSES)
        message = asked.options.to_message(asked.images)
        answer = await plane.classify_images(message, current_call.get())
        return await respond(plane, asked, answer)

    @router.post("/v1/images:features", tags=["images"], **VISUALIZE_FEATURES)
    async def visualize_features(request: Request) -> Response:
        """Patch embeddings as colours, as one component, or as groups."""
        asked = await read_images(request, plane, VisualizeFeaturesBody, FEATURES)
        message = asked.options.to_message(asked.images)
        answer = await plane.visualize_features(message, current_call.get())
        return await respond(plane, asked, answer)


def _add_maps(router: APIRouter, plane: DataPlane) -> None:
    @router.post("/v1/images:depth", tags=["images"], **ESTIMATE_DEPTH)
    async def estimate_depth(request: Request) -> Response:
        """The distance of every pixel, in metres."""
        asked = await read_images(request, plane, DepthBody, MAPS)
        message = asked.options.to_message(asked.images)
        answer = await plane.estimate_maps(message, current_call.get())
        return await respond(plane, asked, answer)

    @router.post("/v1/images:normals", tags=["images"], **ESTIMATE_NORMALS)
    async def estimate_normals(request: Request) -> Response:
        """The direction of the surface at every pixel: a unit vector."""
        asked = await read_images(request, plane, NormalsBody, MAPS)
        message = asked.options.to_message(asked.images)
        answer = await plane.estimate_maps(message, current_call.get())
        return await respond(plane, asked, answer)


def _add_texts(router: APIRouter, plane: DataPlane) -> None:
    @router.post("/v1/texts:embed", tags=["texts"], **EMBED_TEXTS)
    async def embed_texts(request: Request) -> Response:
        """Embeddings of texts, averaged over prompt templates if there are any."""
        asked = await read_texts(request, plane, TEXT_EMBEDDINGS)
        answer = await plane.embed_texts(asked.options.to_message(), current_call.get())
        return await respond(plane, asked, answer)


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
