"""What the routes of the Open Inference Protocol tell about themselves in the OpenAPI document."""

from typing import Any, Final

from service.rest.negotiation import JSON
from service.rest.open_inference.schemas import InferAnswerBody, InferBody
from service.rest.openapi import BINARY, CALL_HEADERS, REF, V2_ERRORS

OCTETS: Final = "application/octet-stream"
INFER: Final[dict[str, Any]] = {
    "responses": {
        200: {
            "description": "JSON, or with binary outputs JSON and their bytes behind it.",
            "content": {
                JSON: {"schema": {"$ref": REF.format(model=InferAnswerBody.__name__)}},
                OCTETS: {"schema": BINARY},
            },
            "headers": {
                "Inference-Header-Content-Length": {
                    "schema": {"type": "integer"},
                    "description": "Bytes of the JSON, where others follow it.",
                }
            },
        }
    }
    | V2_ERRORS,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "JSON; or JSON and behind it the bytes of each input that has a "
            "`binary_data_size`, in order, with the header Inference-Header-Content-Length.",
            "content": {
                JSON: {"schema": {"$ref": REF.format(model=InferBody.__name__)}},
                OCTETS: {"schema": BINARY},
            },
        },
        "parameters": CALL_HEADERS,
    },
}
