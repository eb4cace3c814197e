"""The native routes: read the request, call the data plane, write the response.

No route handles errors or lost clients: `service.rest.middleware` and `service.rest.errors` do.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.call import Call, current_call
from service.data_plane import DataPlane
from service.monitoring.metrics import release
from service.rest.inputs import Sent, read_request
from service.rest.openapi import ERRORS, V2_ERRORS, DirectRoute, native_route
from service.rest.requests import (
    ClassifyImagesBody,
    DepthBody,
    EmbedImagesBody,
    EmbedTextsBody,
    NormalsBody,
    Options,
    SegmentImagesBody,
    VisualizeFeaturesBody,
)
from service.rest.response_schemas import (
    ClassifyImagesAnswer,
    DepthAnswer,
    EmbedImagesAnswer,
    EmbedTextsAnswer,
    Live,
    ModelCard,
    ModelList,
    NormalsAnswer,
    Ready,
    SegmentImagesAnswer,
    Version,
    VisualizeFeaturesAnswer,
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
    ResponseWriter,
    choose_media,
    respond,
)


@dataclass(frozen=True, slots=True)
class NativeRoute:
    """A capability over REST.

    Attributes:
        name: Of its method in generated clients.
        text: What the OpenAPI document says of it.
        ask: Asks the data plane.
        body: Fields of its requests.
        answer: Fields of its answers as JSON.
        writer: Writes its answers.
    """

    name: str
    text: str
    ask: Callable[[DataPlane, Any, Call], Awaitable[Any]]
    body: type[Options]
    answer: type[BaseModel]
    writer: ResponseWriter[Any, Any]


NATIVE: Final[Mapping[str, NativeRoute]] = {
    "/v1/images:embed": NativeRoute(
        "embed_images",
        "Global embeddings of images, and one embedding for each patch.",
        lambda plane, *asked: plane.embed_images(*asked),
        EmbedImagesBody,
        EmbedImagesAnswer,
        IMAGE_EMBEDDINGS,
    ),
    "/v1/images:segment": NativeRoute(
        "segment_images",
        "Masks of the named classes: k for the k-th class, 0 for background.",
        lambda plane, *asked: plane.segment_images(*asked),
        SegmentImagesBody,
        SegmentImagesAnswer,
        MASKS,
    ),
    "/v1/images:classify": NativeRoute(
        "classify_images",
        "The named classes of images with their probabilities, the best first.",
        lambda plane, *asked: plane.classify_images(*asked),
        ClassifyImagesBody,
        ClassifyImagesAnswer,
        CLASSES,
    ),
    "/v1/images:features": NativeRoute(
        "visualize_features",
        "Patch embeddings as colours, as one component, or as groups.",
        lambda plane, *asked: plane.visualize_features(*asked),
        VisualizeFeaturesBody,
        VisualizeFeaturesAnswer,
        FEATURES,
    ),
    "/v1/images:depth": NativeRoute(
        "estimate_depth",
        "The distance of every pixel, in metres.",
        lambda plane, *asked: plane.estimate_maps(*asked),
        DepthBody,
        DepthAnswer,
        MAPS,
    ),
    "/v1/images:normals": NativeRoute(
        "estimate_normals",
        "The direction of the surface at every pixel: a unit vector.",
        lambda plane, *asked: plane.estimate_maps(*asked),
        NormalsBody,
        NormalsAnswer,
        MAPS,
    ),
    "/v1/texts:embed": NativeRoute(
        "embed_texts",
        "Embeddings of texts, averaged over prompt templates if there are any.",
        lambda plane, *asked: plane.embed_texts(*asked),
        EmbedTextsBody,
        EmbedTextsAnswer,
        TEXT_EMBEDDINGS,
    ),
}


async def answer_native(native: NativeRoute, sent: Sent, plane: DataPlane) -> Response:
    """Answer a request to a native route."""
    asked = await read_request(sent, plane, native.body, native.writer)
    answer = await native.ask(plane, asked.message(), current_call.get())
    return await respond(plane, asked, answer)


def build_native_router(plane: DataPlane) -> APIRouter:
    """The native routes over a data plane."""
    router = APIRouter(route_class=DirectRoute)
    for path, native in NATIVE.items():
        _add_native(router, plane, path, native)
    return router


def build_state_router(plane: DataPlane) -> APIRouter:
    """The routes that describe the models and the server."""
    router = APIRouter()
    _add_models(router, plane)
    _add_health(router, plane)
    return router


def _add_native(router: APIRouter, plane: DataPlane, path: str, native: NativeRoute) -> None:
    async def route(request: Request) -> Response:
        return await answer_native(native, Sent.of(request), plane)

    described = native_route(path, native.body, native.answer, native.writer.media_types)
    tag = path.split("/")[2].partition(":")[0]
    router.post(path, name=native.name, description=native.text, tags=[tag], **described)(route)


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
