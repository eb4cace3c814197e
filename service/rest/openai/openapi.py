"""What `/v1/embeddings` tells about itself in the OpenAPI document."""

from typing import Any, Final

from service.rest.examples import ONE_PIXEL
from service.rest.negotiation import JSON
from service.rest.openai.answers import METADATA, OCTETS
from service.rest.openai.schemas import EmbeddingsAnswer, EmbeddingsBody
from service.rest.openapi import BINARY, CALL_HEADERS, ERRORS, REF

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
