"""OpenAI's `/v1/embeddings`, in three dialects."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final, Literal

import numpy as np
import pybase64
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest, ServiceError
from service.messages import EmbedMixedRequest, EmbedMixedResponse
from service.rest.connection import in_time, until_left
from service.rest.inputs import decode_images, fetch_urls, read_json
from service.rest.openapi import BINARY, CALL_HEADERS, ERRORS, ONE_PIXEL, REF
from service.rest.requests import ImageInputs, Schema
from service.rest.responses import JSON, SAFETENSORS, choose_media, dump
from service.safety.url_fetch import url_of
from service.validation import check_images

# What a request to `/v1/embeddings` may say, and what its answer holds, as pydantic models.

EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
EmbedDtype = Literal["float32", "float16"]
Endianness = Literal["native", "little", "big"]
Modality = Literal["text", "image"]
TEXT_TAG, ITEM_TAG, LIST_TAG = "<text>", "<item>", "<list>"
IMAGE_TEXT = "base64, a `data:` URI with base64, or, from hosts that the server allows, a URL"


class ImageUrl(Schema):
    """An image as a part of a chat message has it."""

    url: Annotated[str, Field(description=f"An image: {IMAGE_TEXT}.")]


class InputItem(Schema):
    """One text, or one image."""

    type: Annotated[
        Literal["text", "image_url"] | None,
        Field(description="May name the field that is given: `text` or `image_url`."),
    ] = None
    text: Annotated[str | None, Field(description="A text.")] = None
    image: Annotated[str | None, Field(description=f"An image: {IMAGE_TEXT}.")] = None
    image_url: Annotated[
        ImageUrl | str | None, Field(description="An image, in an object or as it is.")
    ] = None


def _refuse_token_ids(value: object) -> object:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(value, int) or isinstance(first, (int, list)):
        raise ValueError(
            "Token ids are not read here, for another tokenizer made them; send the texts"
        )
    return value


Item = Annotated[
    Annotated[str, Tag(TEXT_TAG)] | Annotated[InputItem, Tag(ITEM_TAG)],
    Discriminator(lambda value: TEXT_TAG if isinstance(value, str) else ITEM_TAG),
]
Input = Annotated[
    Annotated[
        Annotated[str, Tag(TEXT_TAG)] | Annotated[list[Item], Tag(LIST_TAG)],
        Discriminator(lambda value: TEXT_TAG if isinstance(value, str) else LIST_TAG),
    ],
    BeforeValidator(_refuse_token_ids),
]


class EmbeddingsBody(Schema):
    """Texts and images, each to get one vector; all vectors can be compared."""

    input: Annotated[
        Input,
        Field(
            description="A text; or a list that may mix texts, images as `data:` URIs, and "
            'objects: `{"text": ...}`, `{"image": ...}`, `{"type": "image_url", "image_url": '
            '{"url": ...}}`.'
        ),
    ]
    model: Annotated[str | None, Field(description="A served model. Default: the first.")] = None
    encoding_format: Annotated[
        EncodingFormat,
        Field(
            description="`float`: lists of numbers. `base64`: the elements' bytes. `bytes`: all "
            "vectors as the body, one behind the other, and the rest of the answer as JSON in the "
            "header `metadata`. `bytes_only`: without that header."
        ),
    ] = "float"
    dimensions: Annotated[
        int | None,
        Field(description="How many of the first elements are sent, at unit length again."),
    ] = None
    embed_dtype: Annotated[EmbedDtype, Field(description="As what numbers.")] = "float32"
    endianness: Annotated[
        Endianness | None,
        Field(description="Order of an element's bytes, where bytes are sent. `native` is little."),
    ] = None
    modality: Annotated[
        Modality | None,
        Field(
            description="What every item is, whatever it looks like; with `image`, strings are "
            "base64, `data:` URIs or URLs."
        ),
    ] = None
    user: Annotated[str | None, Field(description="Not used.")] = None


class Embedding(BaseModel):
    """The vector of one item."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="Place of the item in `input`.")
    embedding: list[float] | str = Field(description="Numbers, or base64 of their bytes.")


class Usage(BaseModel):
    """What the model saw: tokens of texts and patches of images together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """One vector of unit length for each item, in the order of the request."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


# Tells texts from images in a list, and back: whose place is whose, in answers and errors.

# `data:` alone may begin a sentence.
DATA_HEAD_CHARS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedInput:
    """The items of a request by what they are.

    Attributes:
        images: Base64, `data:` URIs or URLs.
        texts: As they are.
        is_image: Of each item, in the order of the request.
        places: The caller's name for each of our names of fields, such as `input[3]` for
            `images[1]`.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    is_image: tuple[bool, ...]
    places: Mapping[str, str]


def sort_input(body: EmbeddingsBody) -> SortedInput:
    """Each item of the request as a text or an image.

    Raises:
        InvalidRequest: There is none, or one is neither, or one is not what `modality` says.
    """
    items = [body.input] if isinstance(body.input, str) else body.input
    if not items:
        raise InvalidRequest(
            "input is empty; give at least one text or image.", code="empty_list", param="input"
        )
    images: list[str] = []
    texts: list[str] = []
    is_image: list[bool] = []
    places = {"images": "input", "texts": "input"}
    for index, item in enumerate(items):
        param = "input" if isinstance(body.input, str) else f"input[{index}]"
        image, text = _read(item, body.modality, param)
        is_image.append(text is None)
        if text is None:
            places[f"images[{len(images)}]"] = param
            images.append(image or "")
        else:
            places[f"texts[{len(texts)}]"] = param
            texts.append(text)
    return SortedInput(
        images=tuple(images), texts=tuple(texts), is_image=tuple(is_image), places=places
    )


@contextmanager
def naming(places: Mapping[str, str]) -> Iterator[None]:
    """Let errors of the block name fields as the caller does.

    Raises:
        ServiceError: As it came, with the caller's name for the field in `param` and message.
    """
    try:
        yield
    except ServiceError as error:
        ours = error.param or ""
        item, dot, field = ours.partition(".")
        if item not in places:
            raise
        theirs = places[item] + dot + field
        raise type(error)(
            error.message.replace(ours, theirs),
            code=error.code,
            param=theirs,
            retry_after_s=error.retry_after_s,
        ) from None


def _read(
    item: str | InputItem, modality: Modality | None, param: str
) -> tuple[str | None, str | None]:
    """Image and text, of which one is None."""
    if isinstance(item, InputItem):
        image, text = _read_object(item, param)
        kind = "image" if text is None else "text"
        if modality not in {None, kind}:
            raise InvalidRequest(
                f"{param} holds {kind}, and modality says {modality}: leave modality out of a "
                "request that mixes both.",
                param=param,
            )
        return image, text
    if modality == "text":
        return None, item
    if modality == "image" or _is_data_uri(item):
        return item, None
    if url_of(item) is not None:
        raise InvalidRequest(
            f'{param} is a URL: write {{"image": ...}} around it for the image that it names, '
            'or {"text": ...} for its letters.',
            code="ambiguous_input",
            param=param,
        )
    return None, item


def _read_object(item: InputItem, param: str) -> tuple[str | None, str | None]:
    given = [name for name in ("text", "image", "image_url") if getattr(item, name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"{param} has {' and '.join(given) or 'nothing in it'}; give one of text, image and "
            "image_url.",
            param=param,
        )
    if item.type not in {None, given[0]}:
        raise InvalidRequest(
            f"{param} is of type {item.type} and has {given[0]}; give {item.type}.",
            param=f"{param}.{item.type}",
        )
    url = item.image_url.url if isinstance(item.image_url, ImageUrl) else item.image_url
    return (item.image if url is None else url), item.text


def _is_data_uri(text: str) -> bool:
    return text.startswith("data:image/") or (
        text.startswith("data:") and ";base64," in text[:DATA_HEAD_CHARS]
    )


# Writes the vectors of a request: as JSON, or as bytes with the JSON in a header.
#
# The names in that header are vLLM's. Shape legend: I items, D dimensions.

OCTETS: Final = SAFETENSORS
METADATA: Final = "metadata"
# An item takes up to 110 bytes of the header, and parsers of clients refuse more than 16 KiB.
MAX_ITEMS_IN_HEADER: Final = 128
TYPES: Final = {"float32": "f4", "float16": "f2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenEmbeddings:
    """An answer on its way out."""

    content: bytes
    media: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def check_format(body: EmbeddingsBody, num_items: int) -> None:
    """Refuse, before any work, what the chosen format cannot hold.

    Raises:
        InvalidRequest: More items than a header describes, or an order of bytes where none are.
    """
    if body.encoding_format == "bytes" and num_items > MAX_ITEMS_IN_HEADER:
        raise InvalidRequest(
            f"encoding_format bytes describes at most {MAX_ITEMS_IN_HEADER} items in its header, "
            f"not {num_items}: use bytes_only, whose vectors are all of one length, or base64.",
            param="encoding_format",
        )
    if body.encoding_format == "float" and body.endianness is not None:
        raise InvalidRequest(
            "endianness is of bytes, and encoding_format float sends none; leave it out.",
            param="endianness",
        )


def write_embeddings(
    answer: EmbedMixedResponse, given: SortedInput, body: EmbeddingsBody, request_id: str
) -> WrittenEmbeddings:
    """The vectors in the order of the request."""
    is_image_I = np.array(given.is_image)
    vectors_ID = np.empty(
        (len(is_image_I), (answer.images_BD if given.images else answer.texts_TD).shape[1]),
        dtype=("<" if body.endianness != "big" else ">") + TYPES[body.embed_dtype],
    )
    vectors_ID[is_image_I] = answer.images_BD
    vectors_ID[~is_image_I] = answer.texts_TD
    num_seen = answer.num_patches + answer.num_tokens
    usage = {"prompt_tokens": num_seen, "total_tokens": num_seen}
    head = {"model": answer.model, "usage": usage}
    if body.encoding_format in {"float", "base64"}:
        is_text = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(row_D) if is_text else row_D,
            }
            for index, row_D in enumerate(vectors_ID)
        ]
        return WrittenEmbeddings(content=dump({"object": "list", "data": data, **head}))
    content = vectors_ID.tobytes()
    if body.encoding_format == "bytes_only":
        return WrittenEmbeddings(content=content, media=OCTETS)
    rows = _describe(vectors_ID, body)
    told = {"id": request_id, "created": int(time.time()), **head, "data": rows}
    text = json.dumps(told, separators=(",", ":"))
    return WrittenEmbeddings(content=content, media=OCTETS, headers={METADATA: text})


def _base64(row_D: NDArray[Any]) -> str:
    return pybase64.b64encode_as_string(row_D.tobytes())


def _describe(vectors_ID: NDArray[Any], body: EmbeddingsBody) -> list[dict[str, Any]]:
    size = vectors_ID.shape[1] * vectors_ID.itemsize
    return [
        {
            "index": index,
            "embed_dtype": body.embed_dtype,
            "endianness": body.endianness or "native",
            "start": index * size,
            "end": (index + 1) * size,
            "shape": [vectors_ID.shape[1]],
        }
        for index in range(len(vectors_ID))
    ]


# What `/v1/embeddings` tells about itself in the OpenAPI document.

EXAMPLE: Final = {
    "input": ["a dog in the grass", ONE_PIXEL, {"text": "data: URIs are images"}],
    "encoding_format": "float",
}
EMBEDDINGS: Final[dict[str, Any]] = {
    "responses": {
        200: {
            "description": "JSON, or with `encoding_format` `bytes` and `bytes_only` the vectors.",
            "content": {
                JSON: {"schema": {"$ref": REF.format(model=EmbeddingsAnswer.__name__)}},
                OCTETS: {"schema": BINARY},
            },
            "headers": {
                METADATA: {
                    "schema": {"type": "string"},
                    "description": "With `bytes`, as JSON: `id`, `created`, `model`, `usage`, and "
                    "in `data` of each item `index`, `embed_dtype`, `endianness`, `start`, `end` "
                    "and `shape`.",
                }
            },
        }
    }
    | ERRORS,
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


# The route of `/v1/embeddings`: read, ask the core, write.

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
