"""The parameters of the model repository's calls, for transports that have no schema of them."""

from collections.abc import Mapping
from typing import Any

from service.errors import InvalidRequest


def check_load(parameters: Mapping[str, Any]) -> str | None:
    """The package to load, where one is named.

    Raises:
        InvalidRequest: A parameter is not known, or no text.
    """
    _check(parameters, "package", str, "the name of a folder below the model repository")
    return parameters.get("package")


def check_unload(parameters: Mapping[str, Any]) -> None:
    """`unload_dependents` changes nothing, for no model here has dependents.

    Raises:
        InvalidRequest: A parameter is not known, or neither true nor false.
    """
    _check(parameters, "unload_dependents", bool, "true or false")


def _check(parameters: Mapping[str, Any], known: str, kind: type, meaning: str) -> None:
    for name, value in parameters.items():
        param = f"parameters.{name[:100]}"
        if name != known:
            raise InvalidRequest(
                f"{param}: This field is not known; {known} is.", code="unknown_field", param=param
            )
        if not isinstance(value, kind):
            raise InvalidRequest(f"{param} is {meaning}.", param=param)
