"""Reads options and images from a request: an encoded image, a form, or JSON."""

import binascii
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import pybase64
from fastapi import Request
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest, RequestTooLarge, UnsupportedMedia
from service.messages import MaybeEncoded, RequestLimits
from service.rest.requests import IMAGE_FIELDS, ImageBody, ImageInputs
from service.rest.responses import JSON, OptionsT
from service.safety.url_fetch import UrlFetcher, url_of
from service.schema import Schema, invalid_fields
from service.validation import check_images
from service.waiting import wait_all

ImageBodyT = TypeVar("ImageBodyT", bound=ImageBody)
SchemaT = TypeVar("SchemaT", bound=Schema)

FORM: Final = "multipart/form-data"
MAX_FORM_FIELDS: Final = 1000
# Values of JSON are separated by commas. Images have none; a text may have some, but the model
# reads 64 tokens of a text, and a comma is one.
COMMAS_PER_ITEM: Final = 64
# The elements of a tensor; parsing so many takes tens of megabytes.
MAX_TENSOR_COMMAS: Final = 1_000_000
# Names and strings: an item is at most five, and a request has some options. pydantic makes an
# error for every unknown name: for a million they take 5 s with the GIL held, and 870 MiB.
STRINGS_PER_ITEM: Final = 10
OTHER_STRINGS: Final = 1000
Pairs = list[tuple[str, str]]


async def read_options(
    request: Request, plane: DataPlane, body_type: type[OptionsT], query: Pairs
) -> tuple[OptionsT, ImageInputs]:
    """Read the options and the images of a request to a native route.

    Args:
        request: Its body is read here.
        plane: Its pool parses bodies, and its limits bound them.
        body_type: The fields of a JSON body; a query or form has them without the images.
        query: Its query.

    Raises:
        InvalidRequest: A field is wrong or unknown, or there is no image.
        UnsupportedMedia: The body is of another media type.
    """
    options: Any
    if not issubclass(body_type, ImageBody):
        return await read_json(request, plane, body_type, query), ()
    content_type = media_type(request)
    if content_type.startswith("image/"):
        options = parse_pairs(body_type, query)
        return options, (await read_body(request),)
    if content_type == FORM:
        raw, given = await read_body(request), request.headers["content-type"]

        def read() -> tuple[Any, ImageInputs]:
            pairs, images = parse_form(raw, given, plane.limits)
            return parse_pairs(body_type, [*query, *pairs]), images

        return await plane.offload(read)
    if content_type == JSON:
        options = await read_json(request, plane, body_type, query)
        texts = _image_texts(options)
        return options, await load_images(request, plane, texts, is_partial=options.partial)
    text = f"image/*, {FORM} or {JSON}. With curl: -H 'Content-Type: image/jpeg'"
    raise unsupported(request, text)


def unsupported(request: Request, text: str) -> UnsupportedMedia:
    """The error of a body's media type; `text` says what to send."""
    given = media_type(request) or "(none)"
    return UnsupportedMedia(
        f"Content-Type {given} is not supported; send {text}.", param="Content-Type"
    )


async def read_json(
    request: Request, plane: DataPlane, schema: type[SchemaT], query: Pairs
) -> SchemaT:
    """Read a JSON body; query parameters are refused, since they would be ignored.

    Raises:
        InvalidRequest: A field is wrong or unknown, or the body is not JSON.
        UnsupportedMedia: The body is of another media type.
    """
    if media_type(request) != JSON:
        raise unsupported(request, JSON)
    refuse_query(query, "the JSON body")
    return await plane.offload(partial(parse_json, await read_body(request), schema, plane.limits))


def query_of(request: Request) -> Pairs:
    """The query of a request."""
    return request.query_params.multi_items() if request.scope["query_string"] else []


def refuse_query(query: Pairs, right_place: str) -> None:
    """Refuse query parameters, which would be ignored.

    Raises:
        InvalidRequest: There is one; the message says where it belongs.
    """
    for name, _ in query:
        raise InvalidRequest(
            f"{name}: give it in {right_place}, not in the query.",
            code="unknown_field",
            param=name,
        )


async def load_images(
    request: Request, plane: DataPlane, texts: Sequence[str], *, is_partial: bool = False
) -> ImageInputs:
    """The images of a JSON body: URLs are fetched, all else is base64, all at once.

    Args:
        request: Of the images; its ticket holds the bytes that are fetched.
        plane: Its pool decodes base64.
        texts: The images as the body has them.
        is_partial: An image's error takes its place instead of failing the request.

    Raises:
        InvalidRequest: An image is wrong, or its URL is not allowed or has no image.
        Overloaded: There is no memory for the images.
    """
    check_images(texts, plane.limits)
    fetcher: UrlFetcher | None = request.app.state.url_fetcher

    async def load(text: str, param: str) -> MaybeEncoded:
        try:
            if (url := url_of(text)) is not None:
                return await _fetch_image(fetcher, url, param)
            return await plane.offload(partial(decode_base64, text, param))
        except InvalidRequest as error:
            if not is_partial:
                raise
            return error

    loading = (load(text, f"images[{index}]") for index, text in enumerate(texts))
    return tuple(await wait_all(loading))


async def _fetch_image(fetcher: UrlFetcher | None, url: str, param: str) -> bytes:
    """Fetch an image; its bytes count as bytes of the body."""
    if fetcher is None:
        raise InvalidRequest(
            f"{param} is a URL, but this server does not fetch URLs: send the image as "
            "base64, or list the allowed hosts in the server's setting url_hosts.",
            code="urls_not_enabled",
            param=param,
        )
    ticket = current_call.get().ticket
    assert ticket is not None

    def hold(num_bytes: int) -> None:
        ticket.hold_body(ticket.num_body_bytes + num_bytes)

    return await fetcher.fetch(url, hold, param=param)


async def read_body(request: Request) -> bytes:
    """The whole body. `Request.body` copies it once more, also one that came as a single message.

    Raises:
        ServiceError: As `service.rest.middleware.Exchange` raises it.
    """
    return b"".join([piece async for piece in request.stream() if piece])


def media_type(request: Request) -> str:
    """The media type of the body, in lower case and without parameters; empty if not given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_json(
    raw: bytes, schema: type[SchemaT], limits: RequestLimits, *, max_commas: int | None = None
) -> SchemaT:
    """Parse a JSON body. CPU work, also if the body is invalid.

    Args:
        raw: The body.
        schema: Its fields.
        limits: Limits of one request.
        max_commas: As for `check_json_size`.

    Raises:
        RequestTooLarge: There are too many values.
        InvalidRequest: A field is wrong or unknown, or the body is not JSON.
    """
    check_json_size(raw, limits, max_commas=max_commas)
    try:
        return schema.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise invalid_fields(error) from None


def check_json_size(raw: bytes, limits: RequestLimits, *, max_commas: int | None = None) -> None:
    """Check, before parsing, that a JSON body has about as many values as a request may have.

    `max_commas` stands for those of the items that a request may have.

    Raises:
        RequestTooLarge: It has more.
    """
    max_strings = STRINGS_PER_ITEM * limits.max_items + OTHER_STRINGS
    # A quote after one backslash is part of a string; after two it ends the string.
    num_quotes = raw.count(b'"') - raw.count(rb"\"") + raw.count(rb'\\"')
    too_many = COMMAS_PER_ITEM * limits.max_items if max_commas is None else max_commas
    if raw.count(b",") > too_many or num_quotes > 2 * max_strings:
        raise RequestTooLarge("The body has too many values; split the request.")


def parse_pairs(body_type: type[ImageBodyT], pairs: Iterable[tuple[str, str]]) -> ImageBodyT:
    """Options from query or form fields; lists of names may be separated by commas.

    Raises:
        InvalidRequest: A field is wrong, unknown, or given twice.
    """
    values: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for name, text in pairs:
        if name in IMAGE_FIELDS:
            raise InvalidRequest(f"{name}: Unknown field.", code="unknown_field", param=name)
        if name in body_type.comma_lists or name in body_type.plain_lists:
            items = text.split(",") if name in body_type.comma_lists else [text]
            lists.setdefault(name, []).extend(item.strip() for item in items)
        elif name in values:
            raise InvalidRequest(f"{name} is given more than once.", param=name)
        else:
            values[name] = text
    try:
        return body_type.model_validate({**values, **lists})
    except ValidationError as error:
        raise invalid_fields(error) from None


def parse_form(raw: bytes, content_type: str, limits: RequestLimits) -> tuple[Pairs, ImageInputs]:
    """Fields and images of a multipart body, in memory. CPU work.

    Raises:
        InvalidRequest: The body does not match its header.
        RequestTooLarge: There are more images, other fields or values than the limits.
    """
    pairs: Pairs = []
    images: list[bytes] = []

    def on_field(field: Field) -> None:
        # The parser's own `MAX_FIELDS` is for urlencoded bodies.
        if len(pairs) == MAX_FORM_FIELDS:
            raise RequestTooLarge(f"A form has at most {MAX_FORM_FIELDS} fields besides images.")
        pairs.append(((field.field_name or b"").decode(), (field.value or b"").decode()))

    def on_file(file: File) -> None:
        name = (file.field_name or b"").decode()
        if name not in IMAGE_FIELDS:
            text = f"{name}: send images in the fields image or images."
            raise InvalidRequest(text, code="unknown_field", param=name)
        if len(images) == limits.max_images:
            text = f"images: at most {limits.max_images} allowed."
            raise RequestTooLarge(text, code="too_many_items", param="images")
        file.file_object.seek(0)
        images.append(file.file_object.read())
        file.close()

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    in_memory = {"MAX_MEMORY_FILE_SIZE": len(raw) + 1}
    try:
        # Without a boundary, the parser raises its error.
        parser = FormParser(FORM, on_field, on_file, boundary=boundary or None, config=in_memory)
        parser.write(raw)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError) as error:
        raise InvalidRequest("The multipart body is malformed.", code="invalid_body") from error
    if sum(text.count(",") for _, text in pairs) > COMMAS_PER_ITEM * limits.max_items:
        raise RequestTooLarge("The form has too many values; split the request.")
    return pairs, tuple(images)


def _image_texts(body: ImageBody) -> list[str]:
    """The images of a JSON body, as it has them."""
    if (body.image is None) == (body.images is None):
        raise InvalidRequest("Give either image or images.", code="invalid_field", param="images")
    return body.images if body.images is not None else [body.image or ""]


def decode_base64(text: str, param: str) -> bytes:
    """The bytes of base64, alone or in a `data:` URI.

    Raises:
        InvalidRequest: It is neither.
    """
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
