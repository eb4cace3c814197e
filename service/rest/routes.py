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
from service.rest import requests, responses
from service.rest import response_schemas as schemas
from service.rest.inputs import Pairs, query_of, read_options
from service.rest.middleware import READY_PATH, READY_PATHS
from service.rest.openapi import ERRORS, ONE_PIXEL, V2_ERRORS, native_route


@dataclass(frozen=True, slots=True)
class NativeRoute:
    """A capability over REST: what the document says of it, and how it is answered."""

    name: str
    text: str
    ask: Callable[..., Awaitable[Any]]
    body: type[requests.Options]
    entry: type[BaseModel]
    writer: responses.ResponseWriter[Any, Any]
    example: Mapping[str, Any]


CLASS_NAMES: Final = ["dog", {"name": "grass", "prompts": ["grass", "a lawn"]}, "sky"]
NATIVE: Final[Mapping[str, NativeRoute]] = {
    "/v1/images:embed": NativeRoute(
        "embed_images",
        "Global embeddings of images, and one embedding for each patch.",
        DataPlane.embed_images,
        requests.EmbedImagesBody,
        schemas.ImageEmbedding,
        responses.IMAGE_EMBEDDINGS,
        {"images": [ONE_PIXEL, "bm8gcGljdHVyZQ=="], "outputs": ["cls1", "cls2"], "partial": True},
    ),
    "/v1/images:segment": NativeRoute(
        "segment_images",
        "Masks of the named classes: k for the k-th class, 0 for background.",
        DataPlane.segment_images,
        requests.SegmentImagesBody,
        schemas.SegmentationBody,
        responses.MASKS,
        {"image": ONE_PIXEL, "classes": CLASS_NAMES, "mode": "slide", "format": "rle"},
    ),
    "/v1/images:classify": NativeRoute(
        "classify_images",
        "The named classes of images with their probabilities, the best first.",
        DataPlane.classify_images,
        requests.ClassifyImagesBody,
        schemas.ClassificationBody,
        responses.CLASSES,
        {"image": ONE_PIXEL, "classes": CLASS_NAMES, "top_k": 2},
    ),
    "/v1/images:features": NativeRoute(
        "visualize_features",
        "Patch embeddings as colours, as one component, or as groups.",
        DataPlane.visualize_features,
        requests.VisualizeFeaturesBody,
        schemas.FeatureMap,
        responses.FEATURES,
        {"images": [ONE_PIXEL, ONE_PIXEL], "kind": "groups", "group_count": 3, "scope": "request"},
    ),
    "/v1/images:depth": NativeRoute(
        "estimate_depth",
        "The distance of every pixel, in metres.",
        DataPlane.estimate_maps,
        requests.DepthBody,
        schemas.DepthMap,
        responses.MAPS,
        {"image": ONE_PIXEL, "size": "image"},
    ),
    "/v1/images:normals": NativeRoute(
        "estimate_normals",
        "The direction of the surface at every pixel: a unit vector.",
        DataPlane.estimate_maps,
        requests.NormalsBody,
        schemas.NormalMap,
        responses.MAPS,
        {"image": ONE_PIXEL, "size": "image"},
    ),
    "/v1/texts:embed": NativeRoute(
        "embed_texts",
        "Embeddings of texts, averaged over prompt templates if there are any.",
        DataPlane.embed_texts,
        requests.EmbedTextsBody,
        schemas.TextEmbedding,
        responses.TEXT_EMBEDDINGS,
        {"texts": ["dog", "the sea at night"], "templates": "tcl"},
    ),
}


async def answer_native(
    native: NativeRoute, request: Request, plane: DataPlane, query: Pairs
) -> Response:
    """Answer a request to a native route; `query` may stand for its own query.

    Raises:
        Unavailable: The server is starting or draining.
        NotAcceptable: The response cannot have an accepted media type.
        ServiceError: As `read_options` or the data plane raises it.
    """
    call = current_call.get()
    # Before the body is received: a request that is refused anyway need not send it.
    plane.check_open(call.caller)
    media = responses.choose_media(request.headers.get("accept"), native.writer.media_types)
    options, images = await read_options(request, plane, native.body, query)
    native.writer.check(options, media, len(images))
    call.answer_encoding = native.writer.answer_encoding(options, media)
    message = options.to_message(images, is_json=media == responses.JSON)
    answer = await native.ask(plane, message, call)
    asked = responses.RestRequest(options, images, media)
    return await responses.respond(plane, native.writer, answer, asked)


def build_native_router(plane: DataPlane) -> APIRouter:
    """The native routes over a data plane."""
    router = APIRouter()

    def handler(native: NativeRoute) -> Callable[[Request], Awaitable[Response]]:
        async def route(request: Request) -> Response:
            return await answer_native(native, request, plane, query_of(request))

        return route

    for path, native in NATIVE.items():
        media_types = native.writer.media_types
        answer = schemas.ListAnswer[native.entry]  # type: ignore[name-defined]  # at run time
        described = native_route(native.body, answer, media_types, native.example)
        tag = path.split("/")[2].partition(":")[0]
        add = router.post(path, name=native.name, description=native.text, tags=[tag], **described)
        add(handler(native))
    return router


def build_state_router(plane: DataPlane) -> APIRouter:
    """The routes that describe the models and the server."""
    router = APIRouter()

    @router.get("/v1/models", tags=["models"], responses=ERRORS)
    async def list_models(request: Request) -> schemas.ModelList:
        """The served models, the default model first."""
        responses.choose_media(request.headers.get("accept"), (responses.JSON,))
        return schemas.ModelList(data=[schemas.model_card(info) for info in plane.list_models()])

    @router.get("/v1/models/{model_id}", tags=["models"], responses=ERRORS)
    async def get_model(model_id: str, request: Request) -> schemas.ModelCard:
        """One served model: sizes, outputs, runtime, limits and scores."""
        responses.choose_media(request.headers.get("accept"), (responses.JSON,))
        return schemas.model_card(plane.get_model(model_id))

    @router.get("/version", tags=["models"], responses=ERRORS)
    async def version() -> dict[str, str]:
        """The version of this server."""
        return {"version": release()}

    @router.get("/v2/health/live", tags=["health"], responses=V2_ERRORS)
    async def check_live() -> dict[str, bool]:
        """Liveness: the process responds, and its device has computed a batch recently."""
        plane.check_live()
        return {"live": True}

    async def check_ready() -> dict[str, bool]:
        """Readiness: the warm-up is done, the drain has not begun, and the device is healthy."""
        plane.check_ready()
        return {"ready": True}

    for path in (READY_PATH, *READY_PATHS):  # the name is that of the method in generated clients
        name, errors = ("check_ready", V2_ERRORS) if path == READY_PATH else (path[1:], ERRORS)
        router.get(path, name=name, tags=["health"], responses=errors)(check_ready)
    return router
