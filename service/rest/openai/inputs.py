"""Tells texts from images in a list, and back: whose place is whose, in answers and errors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from service.errors import InvalidRequest, ServiceError
from service.rest.openai.schemas import EmbeddingsBody, ImageUrl, InputItem, Modality
from service.safety.url_fetch.policy import url_of

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
