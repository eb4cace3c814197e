"""Ranges of settings, which pydantic checks wherever a configuration is made."""

from typing import Annotated, Final

from pydantic import ConfigDict, Field

STRICT: Final = ConfigDict(extra="forbid")
Share = Annotated[float, Field(ge=0, le=1)]
