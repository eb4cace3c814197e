"""Requests and responses of the REST interface.

Images are sent as they are encoded: one as the raw body, several as multipart, with the options in
the query or in form fields. Options that do not fit there, such as prompts of classes, need JSON
with base64. Arrays are answered as safetensors. Masks and class scores are answered as JSON, which
alone has the names and colours of classes.
"""

import base64
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import httpx2
import numpy as np
from numpy.typing import NDArray

from tipserve_client.connection import MAX_HTTP_CONNECTIONS, Target
from tipserve_client.errors import (
    BY_REASON,
    BY_STATUS,
    DeadlineExceeded,
    InternalError,
    TipserveError,
    Unavailable,
    item_error,
)
from tipserve_client.requests import MAPS, Method, Request
from tipserve_client.results import (
    EMBEDDINGS,
    LIMITS,
    ClassArea,
    ClassScore,
    Instance,
    Int8Vectors,
    ModelInfo,
    Segmentation,
    partial_items,
    read_fields,
)

PATHS: Final[Mapping[Method, str]] = {
    "embed_images": "/v1/images:embed",
    "embed_texts": "/v1/texts:embed",
    "segment_images": "/v1/images:segment",
    "classify_images": "/v1/images:classify",
    "visualize_features": "/v1/images:features",
    "estimate_depth": "/v1/images:depth",
    "estimate_normals": "/v1/images:normals",
    "list_models": "/v1/models",
}
JSON: Final = "application/json"
SAFETENSORS: Final = "application/octet-stream"
JSON_METHODS: Final = frozenset[Method]({"segment_images", "classify_images"})
OUTPUTS: Final = ("cls1", "cls2", "patches", "values", "depth", "normals", "segmentation")
# Proxies limit the length of URLs, nginx to 8 kB by default; a character may need three bytes, or
# nine if it is not ASCII. Longer options go into form fields.
MAX_QUERY_CHARS: Final = 800
# The server answers at the deadline at the latest, and the answer needs some time to arrive.
GRACE_S: Final = 1.0
NOT_TIPSERVE: Final = "The response is not from a tipserve server; check the URL."


class Response(NamedTuple):
    """A whole HTTP response."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def client_options(target: Target) -> dict[str, Any]:
    """Arguments of an httpx2 client."""
    options: dict[str, Any] = {
        "base_url": target.base_url,
        "headers": target.headers,
        "limits": httpx2.Limits(
            max_connections=MAX_HTTP_CONNECTIONS, max_keepalive_connections=MAX_HTTP_CONNECTIONS
        ),
    }
    if target.is_secure:
        tls = target.tls
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
        if tls.cert is not None and tls.key is not None:
            context.load_cert_chain(tls.cert, tls.key)
        options["verify"] = context
    return options


def write_request(request: Request) -> dict[str, Any]:
    """Arguments of `httpx2.Client.build_request`."""
    path = PATHS[request.method]
    if request.method == "list_models":
        return {"method": "GET", "url": path}
    return {"method": "POST", "url": path, **_body(request)}


def _body(request: Request) -> dict[str, Any]:
    """The smallest body that fits the request."""
    is_json, fields = request.method in JSON_METHODS, dict(request.fields)
    headers = {"Accept": JSON if is_json else SAFETENSORS}
    if is_json:
        fields["encoding"] = "base64"
    if request.method == "embed_texts":
        return _json_body({**fields, "texts": request.texts}, headers)
    pairs = _text_fields(fields)
    if pairs is None or not request.images:
        images = [base64.b64encode(image).decode() for image in request.images]
        return _json_body({**fields, "images": images}, headers)
    if len(request.images) == 1 and sum(map(len, pairs.values())) <= MAX_QUERY_CHARS:
        # The server detects the format itself; the type only has to be one of images.
        headers["Content-Type"] = "image/jpeg"
        return {"content": request.images[0], "params": pairs, "headers": headers}
    files = [("images", (f"{i}", image, "image/jpeg")) for i, image in enumerate(request.images)]
    return {"files": files, "data": pairs, "headers": headers}


def _json_body(body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """A body that also holds what only the server refuses, which httpx2's `json` does not: NaN."""
    return {"content": json.dumps(body).encode(), "headers": {"Content-Type": JSON, **headers}}


def _text_fields(fields: Mapping[str, Any]) -> dict[str, str] | None:
    """Fields as the text of a query or form; None if one of them needs JSON."""
    texts = {}
    for name, given in fields.items():
        value = given
        if name in {"classes", "background_classes"}:
            is_named = not any(one["prompts"] or "examples" in one for one in given)
            value = [one["name"] for one in given] if is_named else None
        if isinstance(value, list | tuple) and name != "templates":
            # Commas separate the names, and the server strips the spaces around them.
            is_plain = value and all(
                isinstance(one, str) and "," not in one and one == one.strip() for one in value
            )
            value = ",".join(value) if is_plain else None
        if not isinstance(value, str | int | float):
            return None
        texts[name] = json.dumps(value) if isinstance(value, bool) else str(value)
    return texts


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn httpx2's errors into the client's own."""
    try:
        yield
    except (httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout) as error:
        raise deadline_exceeded() from error
    except httpx2.TransportError as error:
        raise Unavailable(f"The server cannot be reached: {error}", code="unreachable") from error
    except httpx2.DecodingError as error:
        raise InternalError(NOT_TIPSERVE, code="invalid_answer") from error


def deadline_exceeded() -> DeadlineExceeded:
    """The server did not answer before the deadline."""
    return DeadlineExceeded("The server did not answer in time.", code="deadline_exceeded")


@contextmanager
def _checked(response: Response) -> Iterator[None]:
    """Raise the error of a response, also of one that another kind of server sent."""
    if response.status != 200:
        raise read_error(response)
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InternalError(NOT_TIPSERVE, code="invalid_answer") from error


def read_response(request: Request, response: Response) -> Any:
    """The answer to a request: models, its values, or the items of a partial one.

    Raises:
        TipserveError: The request failed.
    """
    with _checked(response):
        if request.method == "list_models":
            return [_model(card) for card in json.loads(response.content)["data"]]
        if request.method in JSON_METHODS:
            body = json.loads(response.content)
            values = {item["index"]: _json_value(request.method, item) for item in body["data"]}
            errors = body.get("errors", ())
        else:
            tensors, metadata = read_safetensors(response.content)
            errors = json.loads(metadata.get("errors", "[]"))
            if request.method == "embed_texts" and not request.is_partial:
                rows, scales = tensors["embeddings"], tensors.get("embeddings_scale")
                return rows if scales is None else Int8Vectors(values=rows, scales=scales)
            values = _tensor_values(request, tensors)
        if not request.is_partial:
            if len(values) != len(request.images):
                raise ValueError("some images have no answer")
            return list(values.values())
        request_id = response.headers.get("x-request-id")
        found = {
            entry["index"]: item_error(
                **{name: entry["error"].get(name) for name in ("message", "code", "param")},
                request_id=request_id,
            )
            for entry in errors
        }
        return partial_items(values, {**found, **request.errors})


def _model(card: Mapping[str, Any]) -> ModelInfo:
    outputs = tuple(name for name in card["outputs"] if name != "text")
    limits = {name: card["limits"][name] for name in LIMITS}
    return read_fields(ModelInfo, card, name=card["id"], outputs=outputs, limits=limits)


def read_error(response: Response) -> TipserveError:
    """The error of an unsuccessful response, also of one that a proxy sent."""
    error: dict[str, Any] = {}
    try:
        found = json.loads(response.content)["error"]
        error = found if isinstance(found, dict) else {}
    except (ValueError, KeyError, TypeError):
        pass
    code = error.get("code") or f"http_{response.status}"
    kind = BY_REASON.get(code) or BY_STATUS.get(response.status, InternalError)
    return kind(
        error.get("message") or f"The server answered with HTTP status {response.status}.",
        code=code,
        param=error.get("param"),
        request_id=response.headers.get("x-request-id"),
        retry_after_s=_seconds(response.headers.get("retry-after")),
    )


def _seconds(text: str | None) -> float | None:
    """A `Retry-After` header in seconds; the form with a date is ignored."""
    return float(text) if text is not None and text.strip().isdecimal() else None


def read_safetensors(content: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Arrays are views of its bytes.

    The package `safetensors` loads tensors from bytes too, but not the metadata, which holds the
    errors of a partial answer.
    """
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        kind, num_bytes = entry["dtype"][0].lower(), int(entry["dtype"][1:]) // 8
        start, stop = entry["data_offsets"]
        count = (stop - start) // num_bytes
        flat = np.frombuffer(content, f"<{kind}{num_bytes}", count, 8 + header_size + start)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors, metadata


def _rows(tensors: Mapping[str, NDArray[Any]], name: str) -> dict[int, Any]:
    """Values of a column by index: stacked under `name`, or one each under `name.0`, `name.2`."""
    if name in tensors:
        return dict(enumerate(tensors[name]))
    keys = [key for key in tensors if key.rpartition(".")[0] == name]
    return {int(key.rpartition(".")[2]): tensors[key] for key in keys}


def _vectors(tensors: Mapping[str, NDArray[Any]], name: str) -> dict[int, Any]:
    """Arrays of a column by index, or with int8 their values and scales."""
    rows, scales = _rows(tensors, name), _rows(tensors, f"{name}_scale")
    # The scale of a single vector arrives as [] in a stacked column and as [1] in one by index.
    return {
        index: Int8Vectors(values=row, scales=np.reshape(scales[index], row.shape[:-1]))
        if scales
        else row
        for index, row in rows.items()
    }


def _tensor_values(request: Request, tensors: Mapping[str, NDArray[Any]]) -> dict[int, Any]:
    """Values by index; texts with an error have a row of zeros."""
    if request.method == "embed_texts":
        return _vectors(tensors, "embeddings")
    if request.method != "embed_images":
        return _rows(tensors, MAPS[request.method])
    found = {name: _vectors(tensors, name) for name in OUTPUTS}
    kind = EMBEDDINGS[request.fields.get("dtype", "float32")]
    return {
        index: kind(**{name: rows[index] for name, rows in found.items() if rows})
        for index in sorted({index for rows in found.values() for index in rows})
    }


def _json_value(method: Method, item: Mapping[str, Any]) -> Any:
    if method == "classify_images":
        return [read_fields(ClassScore, one) for one in item["classes"]]
    names = ("labels", "scores", "cosines")
    arrays = {name: _json_array(item[name]) if name in item else None for name in names}
    classes = tuple(
        read_fields(ClassArea, one, confidence=one.get("confidence")) for one in item["classes"]
    )
    instances = tuple(
        read_fields(
            Instance,
            one,
            name=classes[one["label"] - 1].name,
            box=tuple(one["bbox"]),
            size=tuple(one["segmentation"]["size"]),
            counts=one["segmentation"]["counts"],
        )
        for one in item.get("instances", ())
    )
    return read_fields(Segmentation, item, classes=classes, instances=instances, **arrays)


def _json_array(value: Mapping[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(value["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(value["data"]), dtype).reshape(value["shape"])
