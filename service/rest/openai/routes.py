"""The route of `/v1/embeddings`: read, ask the core, write."""

from functools import partial

from fastapi import APIRouter, Request, Response

from service.call import current_call
from service.data_plane import DataPlane
from service.messages import EmbedMixedRequest
from service.rest.connection import in_time, until_left
from service.rest.image_input import decode_images, read_json
from service.rest.image_url import fetch_urls
from service.rest.negotiation import JSON, choose_media
from service.rest.openai.answers import check_format, write_embeddings
from service.rest.openai.inputs import naming, sort_input
from service.rest.openai.openapi import EMBEDDINGS
from service.rest.openai.schemas import EmbeddingsBody
from service.rest.schemas import ImageInputs
from service.validation import check_images

WRITTEN_AT_ONCE = 2048


def build_openai_router(plane: DataPlane) -> APIRouter:
    """The routes that OpenAI's clients ask and that are not among the native ones."""
    router = APIRouter(tags=["openai"])

    @router.post("/v1/embeddings", **EMBEDDINGS)
    async def create_embeddings(request: Request) -> Response:
        """Vectors of texts and images, in one list: CLS1 of images, all at unit length."""
        plane.check_open()
        body = await read_json(request, plane, EmbeddingsBody)
        given = sort_input(body)
        check_format(body, len(given.is_image))
        if body.encoding_format in {"float", "base64"}:
            choose_media(request.headers.get("accept"), (JSON,))
        with naming(given.places):
            message = EmbedMixedRequest(
                images=await _read_images(request, plane, given.images),
                texts=given.texts,
                model=body.model,
                dimensions=body.dimensions,
            )
            call = current_call.get()
            answer = await until_left(request, plane.embed_mixed(message, call))
        write = partial(write_embeddings, answer, given, body, call.request_id)
        num_values = answer.images_BD.size + answer.texts_TD.size
        with call.stage("post"):
            # A thread's wake-up and its way back cost more than writing a few vectors.
            written = write() if num_values <= WRITTEN_AT_ONCE else await plane.offload(write)
        return Response(written.content, media_type=written.media, headers=written.headers)

    return router


async def _read_images(request: Request, plane: DataPlane, images: tuple[str, ...]) -> ImageInputs:
    """The encoded images, from URLs too where the server allows it."""
    if not images:
        return ()
    check_images(images, plane.limits)
    fetched = await fetch_urls(request, images)
    return await in_time(request, plane.offload(partial(decode_images, images, fetched)))
