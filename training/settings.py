"""Ranges of settings, which pydantic checks wherever a configuration is made."""

from typing import Annotated, Final

from pydantic import ConfigDict, Field, ValidationError

STRICT: Final = ConfigDict(extra="forbid")
Share = Annotated[float, Field(ge=0, le=1)]


def problems(error: ValidationError) -> list[tuple[str, str]]:
    """The setting, empty where several are at odds, and what is wrong with it."""
    return [
        (".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, "))
        for one in error.errors()
    ]
