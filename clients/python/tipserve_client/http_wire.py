"""Requests and answers as the REST interface has them: JSON, with arrays as base64."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tipserve_client.answers import (
    EMBEDDINGS,
    ClassArea,
    ClassScore,
    Int8Vectors,
    ModelInfo,
    Segmentation,
    in_places,
)
from tipserve_client.asks import MAPS, Ask, Method
from tipserve_client.errors import BY_REASON, BY_STATUS, InternalError, TipserveError, item_error

PATHS: Final[Mapping[Method, str]] = {
    "embed_images": "/v1/images:embed",
    "embed_texts": "/v1/texts:embed",
    "segment_images": "/v1/images:segment",
    "classify_images": "/v1/images:classify",
    "visualize_features": "/v1/images:features",
    "estimate_depth": "/v1/images:depth",
    "estimate_normals": "/v1/images:normals",
}
MODELS: Final = "/v1/models"
OUTPUTS: Final = ("cls1", "cls2", "patches", "values")
SCORES: Final = ("label", "name", "probability", "cosine")


def write_ask(ask: Ask) -> bytes:
    """The body of a request."""
    body: dict[str, Any] = {"encoding": "base64", **ask.fields}
    if ask.method == "embed_texts":
        body["texts"] = ask.texts
    else:
        body["images"] = [base64.b64encode(image).decode() for image in ask.images]
    return json.dumps(body).encode()


def read_answer(ask: Ask, raw: bytes, request_id: str | None = None) -> Any:
    """What a successful answer holds; of a partial one, its items."""
    body = json.loads(raw)
    values = [_value(ask, item) for item in body["data"]]
    if ask.is_partial:
        places = [item["index"] for item in body["data"]]
        errors = {told["index"]: _item_error(told["error"], request_id) for told in body["errors"]}
        return in_places(dict(zip(places, values, strict=True)), {**errors, **ask.errors})
    if ask.method == "embed_texts":
        return stack_vectors(values)
    return values


def stack_vectors(rows: Sequence[Any]) -> Any:
    """Vectors [D] as one array [texts, D], or as one `Int8Vectors` of them."""
    if isinstance(rows[0], Int8Vectors):
        values = np.stack([row.values for row in rows])
        return Int8Vectors(values=values, scales=np.stack([row.scales for row in rows]))
    return np.stack(rows)


def read_models(raw: bytes) -> list[ModelInfo]:
    """What is served."""
    return [
        ModelInfo(
            name=card["id"],
            outputs=tuple(card["outputs"]),
            limits=card["limits"],
            **{
                name: card[name]
                for name in (
                    *("embed_dim", "patch_size", "native_size"),
                    *("min_size", "max_size", "size_multiple"),
                )
            },
        )
        for card in json.loads(raw)["data"]
    ]


def read_error(status: int, headers: Mapping[str, str], raw: bytes) -> TipserveError:
    """What an answer that is no success says; a proxy's own too."""
    told: dict[str, Any] = {}
    try:
        content = json.loads(raw)
        told = content["error"] if isinstance(content["error"], dict) else {}
    except (ValueError, KeyError, TypeError):
        pass
    code = told.get("code") or f"http_{status}"
    kind = BY_REASON.get(code) or BY_STATUS.get(status, InternalError)
    return kind(
        told.get("message") or f"The server answered with HTTP status {status}.",
        code=code,
        param=told.get("param"),
        request_id=headers.get("x-request-id"),
        retry_after_s=_seconds(headers.get("retry-after")),
    )


def _value(ask: Ask, item: Mapping[str, Any]) -> Any:
    """What is told of one image or text."""
    if ask.method == "embed_images":
        kind = EMBEDDINGS[ask.fields.get("dtype", "float32")]
        return kind(**{name: _vectors(item, name) for name in OUTPUTS if name in item})
    if ask.method == "embed_texts":
        return _vectors(item, "embedding")
    if ask.method == "segment_images":
        return _segmentation(item)
    if ask.method == "classify_images":
        return [ClassScore(**{n: c[n] for n in SCORES}) for c in item["classes"]]
    return _array(item[MAPS[ask.method]])


def _item_error(told: Mapping[str, Any], request_id: str | None) -> TipserveError:
    return item_error(told["message"], told["code"], param=told.get("param"), request_id=request_id)


def _seconds(text: str | None) -> float | None:
    """A `Retry-After` in seconds; a date is for browsers, and is not read."""
    return float(text) if text is not None and text.strip().isdecimal() else None


def _array(value: Mapping[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(value["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(value["data"]), dtype).reshape(value["shape"])


def _vectors(item: Mapping[str, Any], name: str) -> Any:
    """An array, or with int8 its whole numbers and their scales: a number for one vector."""
    array = _array(item[name])
    if array.dtype != np.int8:
        return array
    told = item["scales"][name]
    scales = _array(told) if isinstance(told, Mapping) else np.array(told, np.float32)
    return Int8Vectors(values=array, scales=scales)


def _segmentation(item: Mapping[str, Any]) -> Segmentation:
    names = ("label", "name", "color", "area_share")
    return Segmentation(
        labels=_array(item["labels"]),
        scores=_array(item["scores"]) if "scores" in item else None,
        classes=tuple(ClassArea(**{n: area[n] for n in names}) for area in item["classes"]),
        background_share=item["background_share"],
    )
