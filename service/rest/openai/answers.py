"""Writes the vectors of a request: as JSON, or as bytes with the JSON in a header.

The names in that header are vLLM's. Shape legend: I items, D dimensions.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pybase64
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.messages import EmbedMixedResponse
from service.rest.json_body import dump
from service.rest.negotiation import JSON, SAFETENSORS
from service.rest.openai.inputs import SortedInput
from service.rest.openai.schemas import EmbeddingsBody

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
