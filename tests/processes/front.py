"""nginx as the sidecar `front` of the chart, in front of one server here or of several."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import httpx

from tests.processes.server import LIMIT_S, Place, end, peak_mib
from tests.tools import TOOLS, find_tool

PROXY: Final = Path(__file__).resolve().parents[2] / "deploy" / "proxy"
CONFIGURATION: Final = PROXY / "nginx.conf"
START: Final = PROXY / "start.sh"
# Flag of a server behind it.
BEHIND: Final = ("--trusted-proxies=127.0.0.1",)
NUM_WORKERS: Final = 1
# Root's processes would become those of `nobody`, who may not read a test's files.
AS_ROOT: Final = ("-g", "user root;") if os.geteuid() == 0 else ()


class Front:
    """The sidecar on free ports of 127.0.0.1, as a context; the script that starts it is its own.

    Args:
        folder: Folder for its log and its filled configuration.
        servers: Ports of REST and gRPC of each server behind it.
        variables: Those of `start.sh`.
    """

    def __init__(self, folder: Path, *servers: tuple[int, int], **variables: str) -> None:
        # Bound beside nginx's own and never listening: no other program takes the ports.
        self._reserved = [_reserve() for _ in range(3)]
        names = ("http", "grpc", "metrics")
        ports = {n: one.getsockname()[1] for n, one in zip(names, self._reserved, strict=True)}
        self.place = Place(ports)
        self.log = folder / "front.log"
        self._environment = {
            **os.environ,
            "PATH": f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}",
            "PROXY_FOLDER": str(folder / "front"),
            "PROXY_REST": f"127.0.0.1:{ports['http']}",
            "PROXY_GRPC": f"127.0.0.1:{ports['grpc']}",
            "PROXY_METRICS": f"127.0.0.1:{ports['metrics']}",
            **_addresses(servers),
            **variables,
        }

    @property
    def http_port(self) -> int:
        """Port of REST."""
        return self.place.ports["http"]

    @property
    def grpc_port(self) -> int:
        """Port of gRPC."""
        return self.place.ports["grpc"]

    @property
    def pids(self) -> Sequence[int]:
        """Processes of nginx: the first starts the others."""
        first = self.process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text(encoding="ascii")
        return [first, *map(int, children.split())]

    def peak_mib(self, *, reset: bool = False) -> float:
        """Peak resident memory of its processes together; pages that they share count for each."""
        return sum(peak_mib(pid, reset=reset) for pid in self.pids)

    def reload(self, *servers: tuple[int, int]) -> set[int]:
        """Put it in front of other servers; returns the processes that only finish their work."""
        self._environment |= _addresses(servers)
        old = set(self.pids[1:])
        assert self._run("reload").wait(LIMIT_S) == 0
        until = time.monotonic() + LIMIT_S
        while len(set(self.pids) - old) < 1 + NUM_WORKERS:
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)
        return old

    def _run(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        command = ["sh", str(START), *arguments, *AS_ROOT]
        return subprocess.Popen(command, env=self._environment, **options)

    def __enter__(self) -> Self:
        find_tool("nginx")
        with self.log.open("ab") as log:  # nginx opens it again
            self.process = self._run(stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + LIMIT_S
        while not self._answers():
            is_over = self.process.poll() is not None or time.monotonic() > until
            if is_over:
                end(self.process)
                raise RuntimeError("nginx did not start: " + self.log.read_text())
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        try:
            return httpx.get(self.place.metrics, timeout=LIMIT_S).is_success
        except httpx.TransportError:
            return False

    def leave(self) -> None:
        """Begin a graceful stop, as the hook of the pod does."""
        self.process.send_signal(signal.SIGQUIT)

    def __exit__(self, *raised: object) -> None:
        end(self.process)
        for one in self._reserved:
            one.close()


def _addresses(servers: Sequence[tuple[int, int]]) -> dict[str, str]:
    rest, rpc = (" ".join(f"127.0.0.1:{one[kind]}" for one in servers) for kind in (0, 1))
    return {"PROXY_REST_SERVER": rest, "PROXY_GRPC_SERVER": rpc}


def _reserve() -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(("127.0.0.1", 0))
    return found
