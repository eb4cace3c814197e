"""OpenAI's `/v1/embeddings`, with images.

A request mixes texts and images in one list. The data plane takes them separately, so the place of
each item is kept for the order of the answer and for the names of fields in errors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, cast

import pybase64
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Discriminator, Field, Tag

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.messages import EmbedMixedRequest, EmbedMixedResponse
from service.rest.errors import BAD_REQUEST, OPENAI_PATH, STATUS, renaming_params
from service.rest.inputs import Pairs, load_images, query_of, read_json
from service.rest.openapi import ERRORS, ONE_PIXEL, Responses, json_content, json_route
from service.rest.requests import MODEL_TEXT
from service.rest.responses import JSON, choose_media, dump, write_content
from service.rest.token_ids import TokenVocabulary
from service.safety.url_fetch import url_of
from service.schema import DialectSchema

# `data:` alone may begin a sentence, so a data URI is recognized by its head.
DATA_HEAD_CHARS: Final = 128
TEXT_TAG, ITEM_TAG, LIST_TAG = "<text>", "<item>", "<list>"
IDS_TAG, ID_LISTS_TAG = "<token ids>", "<lists of token ids>"
IMAGE_TEXT: Final = "base64, a `data:` URI with base64, or a URL of a host that the server allows"
IGNORED_TEXT: Final = "Accepted and ignored."


class ImageUrl(DialectSchema):
    """An image in the form of a chat message."""

    url: str = Field(description=f"An image: {IMAGE_TEXT}.")
    detail: str | None = Field(default=None, description=IGNORED_TEXT)


class InputItem(DialectSchema):
    """One text, or one image."""

    type: Literal["text", "image_url"] | None = None
    """Optional; the name of the field given: `text` or `image_url`."""
    text: str | None = None
    """A text."""
    image: str | None = Field(default=None, description=f"An image: {IMAGE_TEXT}.")
    image_url: ImageUrl | None = None


def _tag_of_input(value: object) -> str:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int):
        return IDS_TAG
    if isinstance(first, list):
        return ID_LISTS_TAG
    return TEXT_TAG if isinstance(value, str) else LIST_TAG


Item = Annotated[
    Annotated[str, Tag(TEXT_TAG)] | Annotated[InputItem, Tag(ITEM_TAG)],
    Discriminator(lambda value: TEXT_TAG if isinstance(value, str) else ITEM_TAG),
]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Input = Annotated[
    Annotated[str, Tag(TEXT_TAG)]
    | Annotated[list[Item], Field(fail_fast=True), Tag(LIST_TAG)]
    | Annotated[TokenIds, Tag(IDS_TAG)]
    | Annotated[list[TokenIds], Field(fail_fast=True), Tag(ID_LISTS_TAG)],
    Discriminator(_tag_of_input),
]


class EmbeddingsBody(DialectSchema):
    """Texts and images; each gets one vector, and all vectors are comparable."""

    input: Input
    """A text, or a list of texts, images as `data:` URIs, and objects: `{"text": ...}`, `{"image":
    ...}`, `{"type": "image_url", "image_url": {"url": ...}}`. Token ids if the server has their
    vocabulary."""
    model: str | None = Field(default=None, description=MODEL_TEXT)
    encoding_format: Literal["float", "base64"] = "float"
    """`float`: lists of numbers. `base64`: base64 of their float32 bytes."""
    dimensions: int | None = None
    """Send only the first so many elements, normalized to unit length."""
    user: str | None = Field(default=None, description=IGNORED_TEXT)
    modality: Literal["text", "image"] | None = None
    """infinity's field: what every string is. With `image`, strings are base64, `data:` URIs or
    URLs. Default: strings are texts, except `data:` URIs."""


class Embedding(BaseModel, use_attribute_docstrings=True):
    """The vector of one item."""

    object: Literal["embedding"] = "embedding"
    index: int
    """Index of the item in `input`."""
    embedding: list[float] | str
    """Numbers, or base64 of their bytes."""


class Usage(BaseModel):
    """The tokens of texts plus the patches of images."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """One vector of unit length for each item, in the order of the request."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


def _named_items(given: Input, vocabulary: TokenVocabulary | None) -> Mapping[str, str | InputItem]:
    """The items of a request by the names of their fields."""
    if not given and isinstance(given, list):
        raise InvalidRequest(
            "input is empty; send at least one text or image.", code="empty_list", param="input"
        )
    tag = _tag_of_input(given)
    single = tag in {TEXT_TAG, IDS_TAG}
    items = cast("list[Any]", [given] if single else given)
    named = {"input" if single else f"input[{index}]": item for index, item in enumerate(items)}
    if tag in {TEXT_TAG, LIST_TAG}:
        return named
    if vocabulary is None:
        raise InvalidRequest(
            "input: Token ids are not supported; send strings (LangChain's OpenAIEmbeddings does "
            "with check_embedding_ctx_length=False), or give the server its setting "
            "token_vocabulary.",
            param="input",
        )
    return {name: InputItem(text=vocabulary.decode(ids, name)) for name, ids in named.items()}


def _image_or_text(
    item: str | InputItem, modality: str | None, param: str
) -> tuple[str | None, str | None]:
    """The image or the text of an item; the other one is None."""
    if isinstance(item, InputItem):
        given = [name for name in ("text", "image", "image_url") if getattr(item, name) is not None]
        if len(given) != 1 or item.type not in {None, given[0]}:
            raise InvalidRequest(
                f"{param}: give exactly one of text, image and image_url, the one that type names.",
                param=param,
            )
        return (item.image if item.image_url is None else item.image_url.url), item.text
    is_data = item.startswith("data:image/") or (
        item.startswith("data:") and ";base64," in item[:DATA_HEAD_CHARS]
    )
    if modality == "image" or (modality is None and is_data):
        return item, None
    if modality is None and url_of(item) is not None:
        raise InvalidRequest(
            f'{param} is a URL: send {{"image": ...}} for the image at this URL, or '
            '{"text": ...} for the text of the URL itself.',
            code="ambiguous_input",
            param=param,
        )
    return None, item


async def embed(
    request: Request,
    plane: DataPlane,
    body: EmbeddingsBody,
    document: Callable[[EmbedMixedResponse, list[Any]], object],
    *,
    vocabulary: TokenVocabulary | None,
) -> Response:
    """Embed the items of a request.

    Args:
        request: Of the body.
        plane: Embeds them.
        body: The request's fields.
        document: Makes the response of the answer and of an entry for each item.
        vocabulary: Decodes token ids; None refuses them.

    Raises:
        ServiceError: A field is wrong, or as the data plane raises it.
    """
    choose_media(request.headers.get("accept"), (JSON,))
    images: list[str] = []
    texts: list[str] = []
    is_image: list[bool] = []
    # The request's name for each field of the data plane.
    params = {"images": "input", "texts": "input"}
    for param, item in _named_items(body.input, vocabulary).items():
        image, text = _image_or_text(item, body.modality, param)
        name, items, content = (
            ("texts", texts, text) if image is None else ("images", images, image)
        )
        is_image.append(image is not None)
        params[f"{name}[{len(items)}]"] = param
        items.append(content or "")
    with renaming_params(params):
        message = EmbedMixedRequest(
            images=await load_images(request, plane, images) if images else (),
            texts=tuple(texts),
            model=body.model,
            dimensions=body.dimensions,
        )
        answer = await plane.embed_mixed(message, current_call.get())

    def write() -> bytes:
        return dump(document(answer, _entries(answer, is_image, body.encoding_format)))

    num_values = answer.images_BD.size + answer.texts_TD.size
    return Response(await write_content(plane, write, num_values), media_type=JSON)


def _entries(
    answer: EmbedMixedResponse, is_image: Sequence[bool], encoding: str
) -> list[dict[str, Any]]:
    """The vectors in the order of the request."""
    rows = {True: iter(answer.images_BD), False: iter(answer.texts_TD)}
    vectors: list[Any] = [next(rows[is_one]) for is_one in is_image]
    if encoding == "base64":
        vectors = [pybase64.b64encode_as_string(row_D.tobytes()) for row_D in vectors]
    return [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]


def _document(answer: EmbedMixedResponse, data: list[Any]) -> dict[str, Any]:
    num_seen = answer.num_patches + answer.num_tokens
    usage = {"prompt_tokens": num_seen, "total_tokens": num_seen}
    return {"object": "list", "data": data, "model": answer.model, "usage": usage}


EXAMPLE: Final = {
    "input": ["a dog in the grass", ONE_PIXEL, {"text": "data: URIs are images"}],
    "encoding_format": "float",
}
# OpenAI answers every wrong request with 400.
EMBEDDINGS_ERRORS: Final[Responses] = {
    BAD_REQUEST if status == STATUS[InvalidRequest] else status: error
    for status, error in ERRORS.items()
}
EMBEDDINGS: Final = json_route(
    json_content(EmbeddingsBody, example=EXAMPLE),
    {"description": "A vector for each item.", "model": EmbeddingsAnswer},
    errors=EMBEDDINGS_ERRORS,
)


def build_openai_router(plane: DataPlane, vocabulary: TokenVocabulary | None) -> APIRouter:
    """The routes of OpenAI's API that the native routes do not include."""
    router = APIRouter(tags=["openai"])

    @router.post(OPENAI_PATH, **EMBEDDINGS)
    async def create_embeddings(request: Request) -> Response:
        """One vector of unit length for each text and image; images have their CLS1 embedding."""
        return await answer_embeddings(request, plane, vocabulary, query_of(request))

    return router


async def answer_embeddings(
    request: Request, plane: DataPlane, vocabulary: TokenVocabulary | None, query: Pairs
) -> Response:
    """Answer a request for embeddings; `query` may stand for its own query.

    Raises:
        ServiceError: A field is wrong, or as the data plane raises it.
    """
    plane.check_open(current_call.get().caller)
    body = await read_json(request, plane, EmbeddingsBody, query)
    return await embed(request, plane, body, _document, vocabulary=vocabulary)
