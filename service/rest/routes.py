"""The native routes: read the request, call the data plane, write the response.

No route handles errors or lost clients: `service.rest.middleware` and `service.rest.errors` do.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.call import current_call
from service.data_plane import DataPlane
from service.monitoring.metrics import release
from service.rest.inputs import Pairs, query_of, read_options
from service.rest.middleware import READY_PATHS
from service.rest.openapi import ERRORS, ONE_PIXEL, V2_ERRORS, DirectRoute, native_route
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
    RestRequest,
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
        example: A request.
    """

    name: str
    text: str
    ask: Callable[..., Awaitable[Any]]
    body: type[Options]
    answer: type[BaseModel]
    writer: ResponseWriter[Any, Any]
    example: Mapping[str, Any]


CLASS_NAMES: Final = ["dog", {"name": "grass", "prompts": ["grass", "a lawn"]}, "sky"]
NATIVE: Final[Mapping[str, NativeRoute]] = {
    "/v1/images:embed": NativeRoute(
        "embed_images",
        "Global embeddings of images, and one embedding for each patch.",
        DataPlane.embed_images,
        EmbedImagesBody,
        EmbedImagesAnswer,
        IMAGE_EMBEDDINGS,
        {"images": [ONE_PIXEL, "bm8gcGljdHVyZQ=="], "outputs": ["cls1", "cls2"], "partial": True},
    ),
    "/v1/images:segment": NativeRoute(
        "segment_images",
        "Masks of the named classes: k for the k-th class, 0 for background.",
        DataPlane.segment_images,
        SegmentImagesBody,
        SegmentImagesAnswer,
        MASKS,
        {"image": ONE_PIXEL, "classes": CLASS_NAMES, "mode": "slide", "format": "rle"},
    ),
    "/v1/images:classify": NativeRoute(
        "classify_images",
        "The named classes of images with their probabilities, the best first.",
        DataPlane.classify_images,
        ClassifyImagesBody,
        ClassifyImagesAnswer,
        CLASSES,
        {"image": ONE_PIXEL, "classes": CLASS_NAMES, "top_k": 2},
    ),
    "/v1/images:features": NativeRoute(
        "visualize_features",
        "Patch embeddings as colours, as one component, or as groups.",
        DataPlane.visualize_features,
        VisualizeFeaturesBody,
        VisualizeFeaturesAnswer,
        FEATURES,
        {"images": [ONE_PIXEL, ONE_PIXEL], "kind": "groups", "group_count": 3, "scope": "request"},
    ),
    "/v1/images:depth": NativeRoute(
        "estimate_depth",
        "The distance of every pixel, in metres.",
        DataPlane.estimate_maps,
        DepthBody,
        DepthAnswer,
        MAPS,
        {"image": ONE_PIXEL, "size": "image"},
    ),
    "/v1/images:normals": NativeRoute(
        "estimate_normals",
        "The direction of the surface at every pixel: a unit vector.",
        DataPlane.estimate_maps,
        NormalsBody,
        NormalsAnswer,
        MAPS,
        {"image": ONE_PIXEL, "size": "image"},
    ),
    "/v1/texts:embed": NativeRoute(
        "embed_texts",
        "Embeddings of texts, averaged over prompt templates if there are any.",
        DataPlane.embed_texts,
        EmbedTextsBody,
        EmbedTextsAnswer,
        TEXT_EMBEDDINGS,
        {"texts": ["dog", "the sea at night"], "templates": "tcl"},
    ),
}


async def answer_native(
    native: NativeRoute, request: Request, plane: DataPlane, query: Pairs
) -> Response:
    """Answer a request to a native route; `query` may stand for its own query.

    Raises:
        Unavailable: The server is starting or draining.
        Overloaded: Every model's queue is full.
        NotAcceptable: The response cannot have an accepted media type.
        ServiceError: As `read_options` or the data plane raises it.
    """
    call = current_call.get()
    # Before the body is received: a request that is refused anyway need not send it.
    plane.check_open(call.caller)
    media = choose_media(request.headers.get("accept"), native.writer.media_types)
    options, images = await read_options(request, plane, native.body, query)
    native.writer.check(options, media, len(images))
    call.answer_encoding = native.writer.answer_encoding(options, media)
    message = options.to_message(images, is_json=media == JSON)
    answer = await native.ask(plane, message, call)
    asked = RestRequest(options, images, media)
    return await respond(plane, native.writer, answer, asked)


def build_native_router(plane: DataPlane) -> APIRouter:
    """The native routes over a data plane."""
    router = APIRouter(route_class=DirectRoute)
    for path, native in NATIVE.items():
        _add_native(router, plane, path, native)
    return router


def _add_native(router: APIRouter, plane: DataPlane, path: str, native: NativeRoute) -> None:
    async def route(request: Request) -> Response:
        return await answer_native(native, request, plane, query_of(request))

    media_types, example = native.writer.media_types, native.example
    described = native_route(native.body, native.answer, media_types, example)
    tag = path.split("/")[2].partition(":")[0]
    router.post(path, name=native.name, description=native.text, tags=[tag], **described)(route)


def build_state_router(plane: DataPlane) -> APIRouter:
    """The routes that describe the models and the server."""
    router = APIRouter()
    _add_models(router, plane)
    _add_health(router, plane)
    return router


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

    @router.get("/version", tags=["models"], responses=ERRORS)
    async def version() -> Version:
        """The version of this server."""
        return Version(version=release())


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

    for path in READY_PATHS:  # the name is that of the method in generated clients
        router.get(path, name=path[1:], tags=["health"], responses=ERRORS)(health)
