"""Options of the commands: a server, or a model in this process."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from tipserve_cli.engines import choice
from tipserve_cli.engines.choice import KEY_VARIABLE, SCHEMES, URL_VARIABLE
from tipserve_cli.engines.engine import Engine, EngineError, ImageRefused

# The settings of the service that have flags here; variables set all others.
LOADING: Final = ("runtime", "precision", "device", "cache")


def _loading(name: str) -> Parameter:
    return Parameter(
        help=f"As for `serve`; not with --url. Default: the variable TIPSERVE_{name.upper()}."
    )


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """A server and its key."""

    url: Annotated[
        str | None, Parameter(help=f"Use a server: {SCHEMES}.", env_var=URL_VARIABLE)
    ] = None
    api_key_file: Annotated[
        Path | None,
        Parameter(help=f"File with the server's API key. Default: the variable {KEY_VARIABLE}."),
    ] = None

    def read_key(self) -> str | None:
        """The key of the server, from the file or the variable.

        Raises:
            EngineError: The file cannot be read.
        """
        return choice.read_key(self.api_key_file, os.environ)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ServerOptions):
    """A model in this process, or on a server."""

    model: Annotated[
        str | None,
        Parameter(
            help="bundled (default), a package folder, a checkpoint or a Hugging Face id, as for "
            "`serve`; with --url the name of a served model."
        ),
    ] = None
    runtime: Annotated[str | None, _loading("runtime")] = None
    precision: Annotated[str | None, _loading("precision")] = None
    device: Annotated[str | None, _loading("device")] = None
    cache: Annotated[Path | None, _loading("cache")] = None

    @property
    def served_name(self) -> str | None:
        """The field `model` of requests: None for the only model of this process."""
        return self.model if self.url else None

    @property
    def loading_flags(self) -> tuple[str, ...]:
        """The service's flags for a model in this process."""
        given = {name: getattr(self, name) for name in ("model", *LOADING)}
        return tuple(f"--{name}={value}" for name, value in given.items() if value is not None)


# Annotations of a command's parameter, which make options of its fields.
Server = Annotated[ServerOptions, Parameter(name="*", group="Server")]
Model = Annotated[ModelOptions, Parameter(name="*", group="Model: here, or on a server")]


@contextmanager
def opened_engine(
    options: ModelOptions, load: Callable[[Sequence[str]], Engine] = choice.load
) -> Iterator[Engine]:
    """Open the engine that the options choose, and close it at the end.

    Raises:
        EngineError: The options conflict, or the model cannot be loaded.
    """
    if not options.url:
        engine = load(options.loading_flags)
    else:
        unused = [name for name in LOADING if getattr(options, name) is not None]
        if unused:
            raise EngineError(f"--{unused[0]} has no effect with --url; remove one of them.")
        engine = choice.connect(options.url, options.read_key())
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def refusals_of(image: object) -> Iterator[None]:
    """Turn the refusal of a command's only image into an error that names it.

    Raises:
        EngineError: The engine refuses the image.
    """
    try:
        yield
    except ImageRefused as error:
        raise EngineError(f"{image}: {error}") from error
