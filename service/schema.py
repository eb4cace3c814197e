"""Bases of request bodies as pydantic models, and their errors as those of the service."""

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from service.errors import InvalidRequest

CODES = {"extra_forbidden": "unknown_field", "json_invalid": "invalid_json"}


class Schema(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DialectSchema(Schema):
    """Base of requests in another project's API, where null means absent.

    LiteLLM, for example, sends null for every field without a value.
    """

    @model_validator(mode="before")
    @classmethod
    def _leave_out_null(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: field for name, field in value.items() if field is not None}


def invalid_fields(error: ValidationError, path: str = "") -> InvalidRequest:
    """The first problem that pydantic found, named by its path, such as `classes[1].prompts`.

    Args:
        error: All problems.
        path: The place of the validated value in the request.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):  # the tag of a union
            path += f".{part[:100]}" if path else part
    code = CODES.get(first["type"], "invalid_field")
    reason = first["msg"].removeprefix("Value error, ")
    text = "Unknown field." if code == "unknown_field" else f"{reason}."
    return InvalidRequest(f"{path or 'body'}: {text}", code=code, param=path or None)
