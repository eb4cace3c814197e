"""What the routes for clouds tell about themselves in the OpenAPI document."""

from typing import Any, Final

from service.rest.cloud.dispatch import ATTRIBUTES, BY_FIELD, DEFAULT_ROUTE
from service.rest.cloud.predict import PredictBody
from service.rest.examples import ONE_PIXEL
from service.rest.negotiation import JSON
from service.rest.openapi import BINARY, CALL_HEADERS, ERRORS, NO_HEAD, REF

RULE: Final = (
    "The body of any route that takes texts or images. Which one: the path in the header "
    f"{ATTRIBUTES}, with its query where options stand there (`/v1/images:segment?classes=dog`). "
    "Without the header, a JSON body is looked at: `instances` is Vertex AI's form; "
    + "; ".join(f"`{field}` means {path}" for field, path in BY_FIELD.items())
    + f". Everything else, images as they are too, goes to {DEFAULT_ROUTE}."
)
INVOKE: Final[dict[str, Any]] = {
    "responses": {
        200: {
            "description": "As the route that was meant answers; for `instances`, an object with "
            "`predictions`: the entries of that route's `data`.",
            "content": {JSON: {"schema": {"type": "object"}}},
        }
    }
    | ERRORS
    | NO_HEAD,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": RULE,
            "content": {
                JSON: {
                    "schema": {
                        "anyOf": [
                            {"$ref": REF.format(model=PredictBody.__name__)},
                            {"type": "object"},
                        ]
                    },
                    "example": {
                        "instances": ["a dog", {"b64": ONE_PIXEL.partition(",")[2]}],
                        "parameters": {"dimensions": 2},
                    },
                },
                "image/*": {"schema": BINARY},
            },
        },
        "parameters": [
            {
                "name": ATTRIBUTES,
                "in": "header",
                "required": False,
                "description": "Path of the route that is meant.",
                "schema": {"type": "string"},
            },
            *CALL_HEADERS,
        ],
    },
}
