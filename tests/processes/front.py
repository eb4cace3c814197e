"""HAProxy as the sidecar of `deploy/kubernetes/components/front/`, in front of a server here."""

import os
import socket
import subprocess
from pathlib import Path
from typing import Any, Final, Self

import yaml

from tests.processes.server import end
from tests.tools import find_tool

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
CONFIGURATION: Final = DEPLOY / "proxy" / "haproxy.cfg"
COMPONENT: Final = DEPLOY / "kubernetes" / "components" / "front"
# Of a server behind it.
BEHIND: Final = ("--trusted-proxies=127.0.0.1",)


def sidecar() -> dict[str, Any]:
    """The container in its manifest."""
    manifest = yaml.safe_load((COMPONENT / "sidecar.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]["initContainers"][0]
    return found


class Front:
    """The sidecar on free ports of all addresses, as a context; the command is its own.

    Args:
        folder: Folder for its log.
        http_port: The server's port of REST.
        grpc_port: The server's port of gRPC.
        variables: Of the configuration.
    """

    def __init__(self, folder: Path, http_port: int, grpc_port: int, **variables: str) -> None:
        # Handed over: a port that is only chosen here may be another program's a moment later.
        self._listening = [socket.create_server(("0.0.0.0", 0)) for _ in range(2)]
        self.http_port, self.grpc_port = (one.getsockname()[1] for one in self._listening)
        rest, grpc = (f"fd@{one.fileno()}" for one in self._listening)
        self.log = folder / "front.log"
        self._environment = {
            **os.environ,
            "PROXY_REST": rest,
            "PROXY_GRPC": grpc,
            "PROXY_REST_SERVER": f"127.0.0.1:{http_port}",
            "PROXY_GRPC_SERVER": f"127.0.0.1:{grpc_port}",
            **variables,
        }

    def __enter__(self) -> Self:
        program, *options = sidecar()["command"][:-1]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [find_tool(program), *options, str(CONFIGURATION)],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[one.fileno() for one in self._listening],
            )
        # Connections wait until it accepts them.
        for one in self._listening:
            one.close()
        return self

    def __exit__(self, *raised: object) -> None:
        end(self.process)
