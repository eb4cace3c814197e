"""What a request to `/v1/embeddings` may say, and what its answer holds, as pydantic models."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from service.rest.schemas import Schema

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
