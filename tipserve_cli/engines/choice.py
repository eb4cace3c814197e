"""Chooses the engine of a command line: a server if one is named, else a model in this process."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from service.settings import Settings, load_settings
from tipserve_cli.engines.engine import Engine, EngineError

URL_VARIABLE: Final = "TIPSERVE_URL"
KEY_VARIABLE: Final = "TIPSERVE_API_KEY"
SCHEMES: Final = "http://, https://, grpc:// or grpcs://"


def connect(url: str, api_key: str | None) -> Engine:
    """Connect to a server.

    Raises:
        EngineError: The URL is invalid.
    """
    # Imported here, because the client needs httpx, which is no dependency of a local model.
    from tipserve_cli.engines.remote import RemoteEngine  # noqa: PLC0415

    return RemoteEngine(url, api_key)


def read_key(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """Read the API key: the first line of the file, else the variable.

    Raises:
        EngineError: The file is unreadable or empty.
    """
    if file is None:
        return environment.get(KEY_VARIABLE) or None
    try:
        lines = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"The key file {file} cannot be read.") from error
    if not lines:
        raise EngineError(f"The key file {file} is empty.")
    return lines[0]


def settings_for(flags: Sequence[str]) -> Settings:
    """Read the settings of a model in this process, from the service's flags and variables.

    Raises:
        EngineError: A flag or variable is unknown or invalid.
    """
    try:
        return load_settings(flags, os.environ)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"])) or "settings"
        raise EngineError(f"{name}: {problem['msg']}.") from error
    except ValueError as error:
        raise EngineError(str(error)) from error


def load(flags: Sequence[str]) -> Engine:
    """Load a model in this process.

    Raises:
        EngineError: The model cannot be loaded.
    """
    # Imported here, because it is slow to import, and help and servers do not need it.
    from tipserve_cli.engines.in_process import InProcessEngine  # noqa: PLC0415

    return InProcessEngine(settings_for(flags))
