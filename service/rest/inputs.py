"""Images and options out of a request: JSON, form, raw body or URL."""

import binascii
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar, cast

import pybase64
from fastapi import Request
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from service.data_plane import DataPlane
from service.errors import InvalidRequest, RequestTooLarge, UnsupportedMedia
from service.messages import MaybeEncoded
from service.rest.connection import SCOPE_KEY, Body, in_time, until_left
from service.rest.errors import invalid_fields
from service.rest.requests import ImageBody, ImageInputs, ImageOptions, Options, Schema
from service.safety.url_fetch import url_of
from service.validation import check_images
from service.waiting import wait_all

# Images that a JSON body names by URL instead of holding them.


async def fetch_urls(
    request: Request, texts: Sequence[str], *, is_partial: bool = False
) -> dict[int, MaybeEncoded]:
    """Fetch those of the texts that are URLs, side by side, unless the caller leaves.

    Returns:
        The images by their index; all other texts hold theirs. Where it is partial, what is wrong
        with a URL is in the place of its image.

    Raises:
        InvalidRequest: A URL is not allowed, or no image came of it.
        Overloaded: There is no memory for them.
        ClientLeft: The caller closed the connection.
    """
    urls = {index: url for index, text in enumerate(texts) if (url := url_of(text)) is not None}
    if not urls:
        return {}
    body: Body = request.scope[SCOPE_KEY]

    async def fetch(index: int, url: str) -> MaybeEncoded:
        try:
            return await body.fetch(url, param=f"images[{index}]")
        except InvalidRequest as error:
            if not is_partial:
                raise
            return error

    work = wait_all(fetch(index, url) for index, url in urls.items())
    images = await until_left(request, work)
    return dict(zip(urls, images, strict=True))


# Reads the images and options of a request: raw body, multipart, or JSON.

OptionsT = TypeVar("OptionsT", bound=ImageOptions)
OptionT = TypeVar("OptionT", bound=Options)
SchemaT = TypeVar("SchemaT", bound=Schema)
IMAGE_FIELDS: Final = ("image", "images")
MAX_FORM_FIELDS: Final = 1000
# Commas part the values of JSON, and base64 has none: far more than any good request has, and few
# enough that parsing takes tens of megabytes.
MAX_JSON_COMMAS: Final = 1_000_000
READ_HERE: Final = "image/*, multipart/form-data and application/json"
Pairs = list[tuple[str, str]]


async def read_images(
    request: Request, plane: DataPlane, options_type: type[OptionsT], body_type: type[ImageBody]
) -> tuple[OptionsT, ImageInputs]:
    """Options and encoded images, however they are sent; where partial, also what is wrong.

    Args:
        request: Its body is read here.
        plane: In whose pool bodies are parsed.
        options_type: What query and form fields may say.
        body_type: The same with images, for JSON; a subclass of `options_type` too.

    Raises:
        InvalidRequest: A field is wrong or unknown, or there is no image.
        UnsupportedMedia: The body is none of the three.
    """
    content_type = request.headers.get("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    query = request.query_params.multi_items()
    if media.startswith("image/"):
        data = await request.body()
        return parse_pairs(options_type, query), (data,)
    if media == "multipart/form-data":
        raw = await request.body()
        parse = partial(parse_form, raw, content_type, plane.limits.max_images)
        pairs, images = await in_time(request, plane.offload(parse))
        return parse_pairs(options_type, [*query, *pairs]), images
    if media == "application/json":
        body = await read_json(request, plane, body_type)
        texts = image_texts(body)
        check_images(texts, plane.limits)
        options = cast("OptionsT", body)
        fetched = await fetch_urls(request, texts, is_partial=options.partial)
        decode = partial(decode_images, texts, fetched, is_partial=options.partial)
        return options, await in_time(request, plane.offload(decode))
    raise UnsupportedMedia(
        f"Content-Type {media or '(none)'} is not read here; {READ_HERE} are. "
        "With curl: -H 'Content-Type: image/jpeg'.",
        param="Content-Type",
    )


async def read_json(request: Request, plane: DataPlane, schema: type[SchemaT]) -> SchemaT:
    """The JSON body; a query beside it is refused, for nobody would read it.

    Raises:
        InvalidRequest: A field is wrong or unknown, or the body is no JSON.
        UnsupportedMedia: The body is of another type.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise UnsupportedMedia(
            f"Content-Type {media or '(none)'} is not read here; application/json is.",
            param="Content-Type",
        )
    for name in request.query_params:
        raise InvalidRequest(
            f"{name}: with a JSON body, write it there and not in the query.",
            code="unknown_field",
            param=name,
        )
    raw = await request.body()
    try:
        return await in_time(request, plane.offload(partial(parse_json, raw, schema)))
    except ValidationError as error:
        raise invalid_fields(error) from None


def parse_json(raw: bytes, schema: type[SchemaT]) -> SchemaT:
    """A JSON body; what would become millions of values is refused before it does.

    Raises:
        RequestTooLarge: There are too many values.
        ValidationError: A field is wrong or unknown, or the body is no JSON.
    """
    check_json_size(raw)
    return schema.model_validate_json(raw, strict=True)


def check_json_size(raw: bytes) -> None:
    """Refuse a JSON body that would become millions of values.

    Raises:
        RequestTooLarge: It would.
    """
    if raw.count(b",") > MAX_JSON_COMMAS:
        raise RequestTooLarge("The body has too many values; split the request.")


def parse_pairs(options_type: type[OptionT], pairs: Iterable[tuple[str, str]]) -> OptionT:
    """Query or form fields as options; lists of names may be written with commas.

    Raises:
        InvalidRequest: A field is wrong, unknown, or given twice.
    """
    values: dict[str, str | list[str]] = {}
    for name, text in pairs:
        known = values.get(name)
        if name in options_type.comma_lists or name in options_type.plain_lists:
            items = text.split(",") if name in options_type.comma_lists else [text]
            values[name] = [*(known or []), *(item.strip() for item in items)]
        elif known is not None:
            raise InvalidRequest(f"{name} is given twice.", param=name)
        else:
            values[name] = text
    try:
        return options_type.model_validate(values)
    except ValidationError as error:
        raise invalid_fields(error) from None


def parse_form(raw: bytes, content_type: str, max_images: int) -> tuple[Pairs, tuple[bytes, ...]]:
    """Fields and images of a multipart body, in memory: its size is bounded already.

    Raises:
        InvalidRequest: The body is not what its header says.
        RequestTooLarge: There are more images than the limit.
    """
    pairs: Pairs = []
    images: list[bytes] = []

    def on_field(field: Field) -> None:
        pairs.append(((field.field_name or b"").decode(), (field.value or b"").decode()))

    def on_file(file: File) -> None:
        name = (file.field_name or b"").decode()
        if name not in IMAGE_FIELDS:
            raise InvalidRequest(
                f"{name}: images come in the fields image or images.",
                code="unknown_field",
                param=name,
            )
        if len(images) == max_images:
            raise RequestTooLarge(
                f"images: at most {max_images} are taken at once.",
                code="too_many_items",
                param="images",
            )
        file.file_object.seek(0)
        images.append(file.file_object.read())
        file.close()

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest(
            "The Content-Type multipart/form-data names no boundary.",
            code="invalid_body",
            param="Content-Type",
        )
    try:
        parser = FormParser(
            "multipart/form-data",
            on_field,
            on_file,
            boundary=boundary,
            config={"MAX_MEMORY_FILE_SIZE": len(raw) + 1, "MAX_FIELDS": MAX_FORM_FIELDS},
        )
        parser.write(raw)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError) as error:
        raise InvalidRequest("The multipart body is malformed.", code="invalid_body") from error
    return pairs, tuple(images)


def image_texts(body: ImageBody) -> list[str]:
    """What a JSON body has for its images.

    Raises:
        InvalidRequest: Both or neither of `image` and `images`.
    """
    if (body.image is None) == (body.images is None):
        raise InvalidRequest("Give either image or images.", code="invalid_field", param="images")
    return body.images if body.images is not None else [body.image or ""]


def decode_images(
    texts: Sequence[str], fetched: Mapping[int, MaybeEncoded], *, is_partial: bool = False
) -> ImageInputs:
    """The images of a JSON body; those that were fetched by URL are there by their index.

    Raises:
        InvalidRequest: Something is no base64, and it is not partial.
    """
    images: list[MaybeEncoded] = []
    for index, text in enumerate(texts):
        try:
            known = fetched.get(index)
            images.append(_decode_base64(text, f"images[{index}]") if known is None else known)
        except InvalidRequest as error:
            if not is_partial:
                raise
            images.append(error)
    return tuple(images)


def _decode_base64(text: str, param: str) -> bytes:
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise InvalidRequest(
                f"{param}: a data URI needs ;base64.", code="invalid_base64", param=param
            )
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            f"{param} is neither base64 nor a data URI.", code="invalid_base64", param=param
        ) from error
