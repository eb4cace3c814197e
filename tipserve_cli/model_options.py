"""Options of the commands: a server, a model in this process, or a cluster."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Final, TypeVar

from cyclopts import Parameter, validators

from model.graphs import DenseTask
from tipserve_cli.engine import Engine, UsageError, UserError, connect
from tipserve_cli.program import reject_options
from tipserve_client import Unavailable

URL_VARIABLE: Final = "TIPSERVE_URL"
KEY_VARIABLE: Final = "TIPSERVE_API_KEY"
T = TypeVar("T")
Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
# The settings of the service that have flags here; variables set all others.
LOADING: Final = ("runtime", "precision", "device", "cache")


def between(least: float, most: float) -> Parameter:
    """An option whose value has these bounds."""
    return Parameter(validator=validators.Number(gte=least, lte=most))


def as_help(documented: T) -> T:
    """Join the lines of each entry of a docstring, because the lines of a help are others.

    The docstring of a command and those of its options are its help.
    """
    documented.__doc__ = re.sub(r"\n {8}(?=\S)", " ", cleandoc(documented.__doc__ or ""))
    return documented


@as_help
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """A server and its key.

    Attributes:
        url: Use a server: http://, https://, grpc:// or grpcs://.
        api_key_file: File with the server's API key. Default: the variable TIPSERVE_API_KEY.
    """

    url: Annotated[str | None, Parameter(env_var=URL_VARIABLE)] = None
    api_key_file: Path | None = None

    def read_key(self) -> str | None:
        """The key of the server: the first line of the file, else the variable."""
        if self.api_key_file is None:
            return os.environ.get(KEY_VARIABLE) or None
        words = self.api_key_file.read_text(encoding="utf-8").split()
        if not words:
            raise UserError(f"The key file {self.api_key_file} is empty.")
        return words[0]


@as_help
@dataclass(frozen=True, kw_only=True)
class ModelOptions(ServerOptions):
    """A model in this process, or on a server.

    Attributes:
        url: Use a server: http://, https://, grpc:// or grpcs://.
        api_key_file: File with the server's API key. Default: the variable TIPSERVE_API_KEY.
        model: bundled (default), a package folder, a checkpoint or a Hugging Face id, as for
            `serve`; with --url the name of a served model.
        runtime: As for `serve`; not with --url. Default: the variable TIPSERVE_RUNTIME.
        precision: As for `serve`; not with --url. Default: the variable TIPSERVE_PRECISION.
        device: As for `serve`; not with --url. Default: the variable TIPSERVE_DEVICE.
        cache: As for `serve`; not with --url. Default: the variable TIPSERVE_CACHE.
    """

    model: str | None = None
    runtime: str | None = None
    precision: str | None = None
    device: str | None = None
    cache: Path | None = None

    @property
    def served_name(self) -> str | None:
        """The option `model` of requests: None for the only model of this process."""
        return self.model if self.url else None

    @property
    def loading_flags(self) -> tuple[str, ...]:
        """The service's flags for a model in this process."""
        given = {name: getattr(self, name) for name in ("model", *LOADING)}
        return tuple(f"--{name}={value}" for name, value in given.items() if value is not None)


@as_help
@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """A cluster, and the resources of each worker.

    Attributes:
        ray: Run on the cluster with this address. Without one: the variable RAY_ADDRESS, else a
            new local cluster.
        workers: Processes that each load the model.
        cpus_per_worker: CPU cores of a worker.
        gpus_per_worker: GPUs of a worker.
    """

    ray: Annotated[str | bool | None, Parameter(metavar="[ADDRESS]")] = None
    workers: Positive = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0


# Options that several commands have.
OUTPUT: Final = Parameter(name=("--output", "-o"))
# A file, or - for standard output.
OUTPUT_OR_PIPE: Final = Parameter(name=("--output", "-o"), allow_leading_hyphen=True)
Flag = Annotated[bool, Parameter(show_default=False)]
AsJson = Annotated[bool, Parameter(name="--json", show_default=False)]
# An argument that may be `-`, for standard input.
Input = Annotated[str, Parameter(allow_leading_hyphen=True, validator=reject_options)]
# Annotations of a command's parameter, which make options of its fields.
Server = Annotated[ServerOptions, Parameter(name="*", group="Server")]
Ray = Annotated[RayOptions, Parameter(name="*", group="Many machines, by Ray")]
Model = Annotated[ModelOptions, Parameter(name="*", group="Model: here, or on a server")]


@contextmanager
def opened_engine(
    options: ModelOptions, heads: Collection[DenseTask] | None = None
) -> Iterator[Engine]:
    """Open the engine that the options choose, and close it at the end.

    Args:
        options: Of the command line.
        heads: The dense heads that a single request needs of a model in this process, which then
            loads nothing else; None is for many requests.
    """
    if options.url:
        unused = [name for name in LOADING if getattr(options, name) is not None]
        if unused:
            raise UsageError(f"--{unused[0]} has no effect with --url; remove one of them.")
        engine = connect(options.url, options.read_key())
    else:
        # Imported here, because it is slow to import, and help and servers do not need it.
        from tipserve_cli import local  # noqa: PLC0415

        engine = local.load(options.loading_flags, heads=heads)
    try:
        yield engine
    except Unavailable as error:
        raise UserError(f"{options.url} is unavailable: {error.message}") from error
    finally:
        engine.close()
