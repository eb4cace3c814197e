"""`tipserve connect`: run a connector, or list them."""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import uvicorn
from cyclopts import Parameter

from connectors import CONNECTORS
from connectors.app import Backend, ImageFetcher, new_app
from tipserve_cli.engine import UsageError, UserError
from tipserve_cli.files import split_names
from tipserve_cli.model_options import Model, ModelOptions, as_help, opened_engine
from tipserve_cli.program import DONE, Interrupted

# As in Label Studio's own client.
TOKEN_VARIABLE: Final = "LABEL_STUDIO_API_KEY"
GRACE_S: Final = 5


@as_help
@dataclass(frozen=True, kw_only=True)
class ConnectOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        host: Address to listen on; 0.0.0.0 for a tool on another machine.
        port: Default: the connector's own; 0 chooses a free one.
        allow_hosts: Hosts whose images may be fetched, separated by commas, each as in the URLs,
            with its port.
        connector_key_file: File with a key that the tool must send.
        label_studio_url: Label Studio's own URL, for the images that are stored in it.
        label_studio_token_file: File with a token of Label Studio. Default: the variable
            LABEL_STUDIO_API_KEY.
        immich_upstream: URL of Immich's own machine learning, for faces and text in images.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    allow_hosts: Annotated[str, Parameter(show_default=False)] = ""
    connector_key_file: Path | None = None
    label_studio_url: Annotated[str, Parameter(show_default=False)] = ""
    label_studio_token_file: Path | None = None
    immich_upstream: Annotated[str, Parameter(show_default=False)] = ""

    def images(self) -> ImageFetcher:
        """What reads the tool's images."""
        from connectors.label_studio import token_headers  # noqa: PLC0415 - the list is fast

        file, home = self.label_studio_token_file, self.label_studio_url
        token = _first_word(file) if file else os.environ.get(TOKEN_VARIABLE)
        authorize = token_headers(token, home) if token and home else None
        return ImageFetcher(split_names(self.allow_hosts), home=home, authorize=authorize)


@as_help
def run(
    name: str = "",
    *,
    options: Annotated[ConnectOptions, Parameter(name="*")] = ConnectOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        name: Of the connector; without one they are listed.
        options: Of the command.
        model: Here, or on a server.
    """
    if not name:
        width = max(map(len, CONNECTORS)) + 2
        for known, one in CONNECTORS.items():
            print(f"{known:<{width}}{one.summary}")
        return DONE
    connector = CONNECTORS.get(name)
    if connector is None:
        raise UsageError(f"There is no connector {name!r}; there are {', '.join(CONNECTORS)}.")
    if not connector.module:
        found = find_spec(f"connectors.{name}")
        print(connector.enter.format(file=found.origin if found else ""))
        return DONE
    key_file = options.connector_key_file
    key = _first_word(key_file) if key_file else None
    port = connector.port if options.port is None else options.port
    with opened_engine(model, heads=()) as engine:
        backend = Backend(
            client=engine.client,
            model=model.served_name,
            images=options.images(),
            upstream=options.immich_upstream,
        )
        app = new_app(import_module(connector.module).routes(backend), key=key)
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=GRACE_S,
        )
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        with socket.create_server((options.host, port), family=family) as listening:
            address = listening.getsockname()
            shown = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
            print(connector.enter.format(url=f"http://{shown}:{address[1]}"), flush=True)
            with suppress(Interrupted):
                uvicorn.Server(config).run(sockets=[listening])
    return DONE


def _first_word(file: Path) -> str:
    words = file.read_text(encoding="utf-8").split()
    if not words:
        raise UserError(f"The file {file} is empty.")
    return words[0]
