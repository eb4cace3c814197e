"""HAProxy as the sidecar of `deploy/kubernetes/components/front/`, before a local server."""

import os
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from tests.processes.proxy import CONFIGURATION, PROJECT_ROOT
from tests.processes.service_process import end

COMPONENT: Final = PROJECT_ROOT / "deploy" / "kubernetes" / "components" / "front"
# Of the server behind it.
SETTINGS: Final = ("--grpc-host=127.0.0.1", "--trusted-proxies=127.0.0.1")
MOUNTED: Final = "/etc/haproxy/haproxy.cfg"


def container() -> dict[str, Any]:
    """The sidecar in its manifest."""
    manifest = yaml.safe_load((COMPONENT / "sidecar.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]["initContainers"][0]
    return found


class Front:
    """The sidecar on a free port of all addresses, as a context; command and variables are its own.

    Args:
        program: Path of `haproxy`.
        folder: Folder for its log.
        server_port: The server's gRPC port.
        variables: Override those of the manifest.
    """

    def __init__(self, program: str, folder: Path, server_port: int, **variables: str) -> None:
        sidecar = container()
        # Handed over: a port that is only chosen here may be another program's a moment later.
        self._listening = socket.create_server(("0.0.0.0", 0))
        self.port = self._listening.getsockname()[1]
        descriptor = self._listening.fileno()
        self.log = folder / "front.log"
        self._command = [program, *sidecar["command"][1:-1], str(CONFIGURATION)]
        assert sidecar["command"][-1] == MOUNTED
        own = {one["name"]: one["value"] for one in sidecar["env"] if "value" in one}
        places = {"PROXY_GRPC": f"fd@{descriptor}", "PROXY_SERVER": f"127.0.0.1:{server_port}"}
        self._environment = {**os.environ, **own, **places, **variables}

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self._listening.fileno()],
            )
        # Connections wait until it accepts them.
        self._listening.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        end(self.process)
