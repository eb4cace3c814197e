"""OpenAI's `/v1/embeddings`, with images, and with the byte formats of vLLM.

A request mixes texts and images in one list. The data plane takes them separately, so the place of
each item is kept for the order of the answer and for the names of fields in errors.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, cast

import numpy as np
import pybase64
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import ErrorKind, InvalidRequest, ServiceError
from service.messages import EmbedMixedRequest, EmbedMixedResponse, Truncation
from service.rest.errors import BAD_REQUEST, OPENAI_PATH, STATUS
from service.rest.inputs import load_images, read_json
from service.rest.openapi import BINARY, CALL_HEADERS, ERRORS, ONE_PIXEL, REF
from service.rest.requests import MODEL_TEXT, DialectSchema
from service.rest.responses import JSON, choose_media, dump, write_content
from service.rest.token_ids import TokenVocabulary
from service.safety.url_fetch import url_of

OCTETS: Final = "application/octet-stream"
# Response header of the format `bytes`; its name and fields are vLLM's.
METADATA: Final = "metadata"
# An item takes up to 110 bytes of that header, and HTTP clients refuse more than 16 KiB.
MAX_ITEMS_IN_HEADER: Final = 128
NUMPY_TYPES: Final = {"float32": "f4", "float16": "f2"}
# `data:` alone may begin a sentence, so a data URI is recognized by its head.
DATA_HEAD_CHARS: Final = 128

EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
EmbedDtype = Literal["float32", "float16"]
Endianness = Literal["native", "little", "big"]
Modality = Literal["text", "image"]
TEXT_TAG, ITEM_TAG, LIST_TAG = "<text>", "<item>", "<list>"
IDS_TAG, ID_LISTS_TAG = "<token ids>", "<lists of token ids>"
IMAGE_TEXT = "base64, a `data:` URI with base64, or a URL of a host that the server allows"


IGNORED_TEXT = "Accepted and ignored."


class ImageUrl(DialectSchema):
    """An image in the form of a chat message."""

    url: Annotated[str, Field(description=f"An image: {IMAGE_TEXT}.")]
    detail: Annotated[str | None, Field(description=IGNORED_TEXT)] = None


class InputItem(DialectSchema):
    """One text, or one image."""

    type: Annotated[
        Literal["text", "image_url"] | None,
        Field(description="Optional; the name of the field given: `text` or `image_url`."),
    ] = None
    text: Annotated[str | None, Field(description="A text.")] = None
    image: Annotated[str | None, Field(description=f"An image: {IMAGE_TEXT}.")] = None
    image_url: Annotated[
        ImageUrl | str | None, Field(description=f"An image: {IMAGE_TEXT}; plain or in an object.")
    ] = None


def _tag_of_input(value: object) -> str:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int):
        return IDS_TAG
    if isinstance(first, list):
        return ID_LISTS_TAG
    return TEXT_TAG if isinstance(value, str) else LIST_TAG


def _name_truncation(value: object) -> object:
    """The name of a truncation that is given as a boolean."""
    return {True: "END", False: "NONE"}[value] if isinstance(value, bool) else value


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


class Message(DialectSchema):
    """A message of a chat."""

    role: Annotated[str, Field(description=IGNORED_TEXT)]
    content: Annotated[
        Annotated[str, Tag(TEXT_TAG)]
        | Annotated[list[InputItem], Field(fail_fast=True), Tag(LIST_TAG)],
        Discriminator(lambda value: TEXT_TAG if isinstance(value, str) else LIST_TAG),
        Field(description="A text, or a list of one text or image."),
    ]


class EmbeddingsBody(DialectSchema):
    """Texts and images; each gets one vector, and all vectors are comparable.

    Has the fields of OpenAI's API, and those that NIM, Jina, vLLM and others add to it.
    """

    input: Annotated[
        Input | None,
        Field(
            description="A text, or a list of texts, images as `data:` URIs, and objects: "
            '`{"text": ...}`, `{"image": ...}`, `{"type": "image_url", "image_url": '
            '{"url": ...}}`. Token ids if the server has their vocabulary.'
        ),
    ] = None
    messages: Annotated[
        Annotated[list[Message], Field(fail_fast=True)] | None,
        Field(description="Instead of `input`, a chat with one text or one image, as vLLM has it."),
    ] = None
    model: Annotated[str | None, Field(description=MODEL_TEXT)] = None
    encoding_format: Annotated[
        EncodingFormat | None,
        Field(
            description="`float`: lists of numbers. `base64`: base64 of the elements' bytes. "
            "`bytes`: the body is the bytes of all vectors, in order, and the header `metadata` "
            "holds the rest of the answer as JSON. `bytes_only`: as `bytes`, without that header. "
            "Default: `float`."
        ),
    ] = None
    embedding_type: Annotated[
        Literal["float", "base64"] | None,
        Field(description="Jina's name of `encoding_format`; used where that is not given."),
    ] = None
    dimensions: Annotated[
        int | None,
        Field(description="Send only the first so many elements, normalized to unit length."),
    ] = None
    embed_dtype: Annotated[EmbedDtype, Field(description="Type of the elements.")] = "float32"
    endianness: Annotated[
        Endianness | None,
        Field(description="Byte order, for formats of bytes. `native` is little-endian."),
    ] = None
    modality: Annotated[
        Modality | None,
        Field(
            description="Treat every string as this. With `image`, strings are base64, `data:` "
            "URIs or URLs. Default: strings are texts, except `data:` URIs."
        ),
    ] = None
    normalized: Annotated[bool, Field(description="Scale every vector to unit length.")] = True
    truncate: Annotated[
        Truncation | None,
        BeforeValidator(_name_truncation),
        Field(
            description="Texts longer than the model reads: `END` (or true) drops their end, "
            "`START` their beginning, `NONE` (or false) refuses them. Default: the model reads "
            "their beginning, and refuses texts of more than 2,000 characters.",
            json_schema_extra={
                "anyOf": [
                    {"type": "string", "enum": ["NONE", "START", "END"]},
                    {"type": "boolean"},
                ]
            },
        ),
    ] = None
    input_type: Annotated[str | None, Field(description=IGNORED_TEXT)] = None
    task: Annotated[str | None, Field(description=IGNORED_TEXT)] = None
    user: Annotated[str | None, Field(description=IGNORED_TEXT)] = None

    @property
    def format(self) -> EncodingFormat:
        """How vectors are sent."""
        return self.encoding_format or self.embedding_type or "float"


class Embedding(BaseModel):
    """The vector of one item."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="Index of the item in `input`.")
    embedding: list[float] | str = Field(description="Numbers, or base64 of their bytes.")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedInput:
    """The items of a request, sorted into images and texts.

    Attributes:
        images: As base64, `data:` URIs or URLs.
        texts: The texts.
        is_image: Whether each item, in the order of the request, is an image.
        params: The request's name for each field of the data plane: `input[3]` for `images[1]`.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    is_image: tuple[bool, ...]
    params: Mapping[str, str]


def sort_input(body: EmbeddingsBody, vocabulary: TokenVocabulary | None = None) -> SortedInput:
    """Sort the items of a request into images and texts.

    Args:
        body: The request.
        vocabulary: Decodes token ids; None refuses them.

    Raises:
        InvalidRequest: There is no item, or one is neither, or one contradicts `modality`.
    """
    items = _named_items(body, vocabulary)
    images: list[str] = []
    texts: list[str] = []
    is_image: list[bool] = []
    params = dict.fromkeys(("images", "texts"), "input" if body.messages is None else "messages")
    for param, item in items.items():
        image, text = _image_or_text(item, body.modality, param)
        is_image.append(text is None)
        if text is None:
            params[f"images[{len(images)}]"] = param
            images.append(image or "")
        else:
            params[f"texts[{len(texts)}]"] = param
            texts.append(text)
    return SortedInput(
        images=tuple(images), texts=tuple(texts), is_image=tuple(is_image), params=params
    )


def _named_items(
    body: EmbeddingsBody, vocabulary: TokenVocabulary | None
) -> Mapping[str, str | InputItem]:
    """The items of a request by the names of their fields.

    Raises:
        InvalidRequest: There is no item, or `messages` has several, or there are token ids without
            a vocabulary.
    """
    given, field = (body.input, "input") if body.messages is None else (body.messages, "messages")
    if given is None:
        raise InvalidRequest("input: Field required.", param="input")
    if body.input is not None and body.messages is not None:
        raise InvalidRequest("Give either input or messages, not both.", param="input")
    if not given and not isinstance(given, str):
        raise InvalidRequest(
            f"{field} is empty; send at least one text or image.", code="empty_list", param=field
        )
    if body.messages is not None:
        return _message_item(body.messages)
    if isinstance(given, str):
        return {field: given}
    tag = _tag_of_input(given)
    if tag == LIST_TAG:
        items = cast("list[str | InputItem]", given)
        return {f"{field}[{index}]": item for index, item in enumerate(items)}
    if vocabulary is None:
        raise InvalidRequest(
            "input: Token ids are not supported; send strings (LangChain's OpenAIEmbeddings does "
            "with check_embedding_ctx_length=False), or give the server its setting "
            "token_vocabulary.",
            param=field,
        )
    if tag == IDS_TAG:
        return {field: InputItem(text=vocabulary.decode(cast("list[int]", given), field))}
    named = {f"{field}[{i}]": ids for i, ids in enumerate(cast("list[list[int]]", given))}
    return {name: InputItem(text=vocabulary.decode(ids, name)) for name, ids in named.items()}


def _message_item(messages: list[Message]) -> Mapping[str, InputItem]:
    """The only item of a chat.

    Raises:
        InvalidRequest: It has none or several.
    """
    named = dict(_message_items(messages))
    if len(named) != 1:
        raise InvalidRequest(
            f"messages has {len(named)} texts and images, and a vector is of one: send them as "
            "input, where each gets its own vector.",
            param="messages",
        )
    return named


def _message_items(messages: list[Message]) -> Iterator[tuple[str, InputItem]]:
    for index, message in enumerate(messages):
        param = f"messages[{index}].content"
        if isinstance(message.content, str):
            yield param, InputItem(text=message.content)
        else:
            for place, item in enumerate(message.content):
                yield f"{param}[{place}]", item


@contextmanager
def renaming_params(params: Mapping[str, str]) -> Iterator[None]:
    """Make errors of the block name fields as the client does.

    Raises:
        ServiceError: As raised in the block, with `param` and message renamed.
    """
    try:
        yield
    except ServiceError as error:
        inner = error.param or ""
        item, dot, field = inner.partition(".")
        if item not in params:
            raise
        outer = params[item] + dot + field
        raise type(error)(
            error.message.replace(inner, outer),
            code=error.code,
            param=outer,
            retry_after_s=error.retry_after_s,
        ) from None


def _image_or_text(
    item: str | InputItem, modality: Modality | None, param: str
) -> tuple[str | None, str | None]:
    """The image or the text of an item; the other one is None."""
    if isinstance(item, InputItem):
        image, text = _from_object(item, param)
        kind = "image" if text is None else "text"
        if modality not in {None, kind}:
            raise InvalidRequest(
                f"{param} is {kind}, but modality is {modality}: omit modality in a request that "
                "mixes both.",
                param=param,
            )
        return image, text
    if modality == "text":
        return None, item
    if modality == "image" or _is_data_uri(item):
        return item, None
    if url_of(item) is not None:
        raise InvalidRequest(
            f'{param} is a URL: send {{"image": ...}} for the image at this URL, or '
            '{"text": ...} for the text of the URL itself.',
            code="ambiguous_input",
            param=param,
        )
    return None, item


def _from_object(item: InputItem, param: str) -> tuple[str | None, str | None]:
    given = [name for name in ("text", "image", "image_url") if getattr(item, name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"{param} has {' and '.join(given) or 'no content'}; give exactly one of text, image "
            "and image_url.",
            param=param,
        )
    if item.type not in {None, given[0]}:
        raise InvalidRequest(
            f"{param} has type {item.type} but {given[0]} is given; give {item.type}.",
            param=f"{param}.{item.type}",
        )
    url = item.image_url.url if isinstance(item.image_url, ImageUrl) else item.image_url
    return (item.image if url is None else url), item.text


def _is_data_uri(text: str) -> bool:
    return text.startswith("data:image/") or (
        text.startswith("data:") and ";base64," in text[:DATA_HEAD_CHARS]
    )


def check_format(body: EmbeddingsBody, num_items: int) -> None:
    """Check, before any work, that the format can hold the answer.

    Raises:
        InvalidRequest: There are too many items for a header, or a byte order without bytes.
    """
    if body.format == "bytes" and num_items > MAX_ITEMS_IN_HEADER:
        raise InvalidRequest(
            f"input: {num_items} items given, at most {MAX_ITEMS_IN_HEADER} allowed with "
            "encoding_format bytes; use bytes_only or base64.",
            param="encoding_format",
        )
    if body.format == "float" and body.endianness is not None:
        raise InvalidRequest(
            "endianness needs an encoding_format of bytes; omit it with encoding_format float.",
            param="endianness",
        )


def write_embeddings(
    answer: EmbedMixedResponse, given: SortedInput, body: EmbeddingsBody, request_id: str
) -> Response:
    """The vectors in the order of the request. Shape legend: I items, D dimensions."""
    is_image_I = np.array(given.is_image)
    vectors_ID = np.empty(
        (len(is_image_I), (answer.images_BD if given.images else answer.texts_TD).shape[1]),
        dtype=("<" if body.endianness != "big" else ">") + NUMPY_TYPES[body.embed_dtype],
    )
    vectors_ID[is_image_I] = answer.images_BD
    vectors_ID[~is_image_I] = answer.texts_TD
    num_seen = answer.num_patches + answer.num_tokens
    usage = {"prompt_tokens": num_seen, "total_tokens": num_seen}
    head = {"model": answer.model, "usage": usage}
    if body.format in {"float", "base64"}:
        rows: list[Any] = list(vectors_ID)
        if body.format == "base64":
            rows = [pybase64.b64encode_as_string(row_D.tobytes()) for row_D in rows]
        data = [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(rows)
        ]
        return Response(dump({"object": "list", "data": data, **head}), media_type=JSON)
    headers = {}
    if body.format == "bytes":
        items = _describe_bytes(vectors_ID, body)
        metadata = {"id": request_id, "created": int(time.time()), **head, "data": items}
        headers[METADATA] = json.dumps(metadata, separators=(",", ":"))
    return Response(vectors_ID.tobytes(), media_type=OCTETS, headers=headers)


def _describe_bytes(vectors_ID: NDArray[Any], body: EmbeddingsBody) -> list[dict[str, Any]]:
    num_bytes = vectors_ID.shape[1] * vectors_ID.itemsize
    return [
        {
            "index": index,
            "embed_dtype": body.embed_dtype,
            "endianness": body.endianness or "native",
            "start": index * num_bytes,
            "end": (index + 1) * num_bytes,
            "shape": [vectors_ID.shape[1]],
        }
        for index in range(len(vectors_ID))
    ]


EXAMPLE: Final = {
    "input": ["a dog in the grass", ONE_PIXEL, {"text": "data: URIs are images"}],
    "encoding_format": "float",
}
EMBEDDINGS: Final[dict[str, Any]] = {
    "responses": {
        200: {
            "description": "JSON; with `encoding_format` `bytes` or `bytes_only`, the vectors.",
            "content": {
                JSON: {"schema": {"$ref": REF.format(model=EmbeddingsAnswer.__name__)}},
                OCTETS: {"schema": BINARY},
            },
            "headers": {
                METADATA: {
                    "schema": {"type": "string"},
                    "description": "With `bytes`, JSON: `id`, `created`, `model`, `usage`, and "
                    "`data` with `index`, `embed_dtype`, `endianness`, `start`, `end` and `shape` "
                    "of each item.",
                }
            },
        }
    }
    | {
        BAD_REQUEST if status == STATUS[ErrorKind.INVALID] else status: e
        for status, e in ERRORS.items()
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {"$ref": REF.format(model=EmbeddingsBody.__name__)},
                    "example": EXAMPLE,
                }
            },
        },
        "parameters": CALL_HEADERS,
    },
}


def build_openai_router(plane: DataPlane, vocabulary: TokenVocabulary | None) -> APIRouter:
    """The routes of OpenAI's API that the native routes do not include."""
    router = APIRouter(tags=["openai"])

    @router.post(OPENAI_PATH, **EMBEDDINGS)
    async def create_embeddings(request: Request) -> Response:
        """One vector of unit length for each text and image; images have their CLS1 embedding."""
        plane.check_open(current_call.get().flow)
        body = await read_json(request, plane, EmbeddingsBody)
        given = sort_input(body, vocabulary)
        check_format(body, len(given.is_image))
        if body.format in {"float", "base64"}:
            choose_media(request.headers.get("accept"), (JSON,))
        call = current_call.get()
        with renaming_params(given.params):
            message = EmbedMixedRequest(
                images=await load_images(request, plane, given.images) if given.images else (),
                texts=given.texts,
                model=body.model,
                dimensions=body.dimensions,
                normalize=body.normalized,
                truncate=body.truncate,
            )
            answer = await plane.embed_mixed(message, call)
        return await write_content(
            plane,
            lambda: write_embeddings(answer, given, body, call.request_id),
            answer.images_BD.size + answer.texts_TD.size,
        )

    return router
