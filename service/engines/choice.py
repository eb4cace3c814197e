"""Which engine a command line asks for: a server where one is named, else a model in here."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from service.engines.engine import Engine, EngineError
from service.engines.in_process import InProcessEngine
from service.engines.over_grpc import GrpcEngine
from service.engines.over_rest import RestEngine
from service.settings import Settings, load_settings

URL_VARIABLE: Final = "TIPSERVE_URL"
KEY_VARIABLE: Final = "TIPSERVE_API_KEY"
SCHEMES: Final = "http://, https://, grpc:// or grpcs://"


def connect(url: str, api_key: str | None) -> Engine:
    """An engine that asks a server.

    Raises:
        EngineError: The address is none.
    """
    scheme, _, rest = url.partition("://")
    if scheme in {"http", "https"}:
        return RestEngine(url, api_key)
    if scheme in {"grpc", "grpcs"}:
        return GrpcEngine(rest.rstrip("/"), api_key, is_secure=scheme == "grpcs")
    raise EngineError(f"--url begins with {SCHEMES}, not {url}.")


def read_key(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The first line of the file, else the variable.

    Raises:
        EngineError: The file cannot be read, or is empty.
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
    """The service's settings from its own flags and variables, for a model in this process.

    Raises:
        EngineError: One of them is unknown or does not fit.
    """
    ours = {URL_VARIABLE, KEY_VARIABLE}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    try:
        return load_settings(list(flags), environment)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"])) or "settings"
        raise EngineError(f"{name}: {problem['msg']}.") from error
    except ValueError as error:
        raise EngineError(str(error)) from error


def load(flags: Sequence[str]) -> Engine:
    """A model in this process.

    Raises:
        EngineError: It cannot be loaded.
    """
    return InProcessEngine(settings_for(flags))
