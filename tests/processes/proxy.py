"""HAProxy with the configuration of `deploy/proxy/`, controlled over its admin socket."""

import csv
import io
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.processes.front import CONFIGURATION
from tests.processes.service_process import RunningService, end

PROJECT_ROOT: Final = Path(__file__).resolve().parents[2]
BACKENDS: Final = ("tipserve_http", "tipserve_grpc")
LIMIT_S: Final = 30.0
POLL_S: Final = 0.02


class Proxy:
    """A proxy on free ports of loopback, as a context. It never retries a request.

    Args:
        program: Path of `haproxy`.
        folder: Folder for socket and log; a short path, as socket paths are limited.
        check_interval: Interval of readiness checks, in the configuration's notation.
    """

    def __init__(self, program: str, folder: Path, *, check_interval: str = "2s") -> None:
        self._socket = folder / "admin.sock"
        self.log = folder / "haproxy.log"
        self.ports = dict(zip(("http", "grpc"), free_ports(2), strict=True))
        self._command = [program, "-f", str(CONFIGURATION)]
        self._environment = {
            **os.environ,
            "PROXY_ADMIN_SOCKET": str(self._socket),
            "PROXY_REST": f"127.0.0.1:{self.ports['http']}",
            "PROXY_GRPC": f"127.0.0.1:{self.ports['grpc']}",
            "PROXY_RETRIES": "0",
            "PROXY_REPLICAS": "yes",
            "PROXY_CHECK_INTERVAL": check_interval,
        }

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until(self._socket.exists)
        except BaseException:
            end(self._process)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        end(self._process)

    def put_in(self, slot: int, replica: RunningService) -> None:
        """Route requests of both protocols to a replica."""
        for backend, port in zip(BACKENDS, (replica.http_port, replica.grpc_port), strict=True):
            self._set(f"{backend}/replica{slot} addr 127.0.0.1 port {port}")
        self._set(f"{BACKENDS[0]}/replica{slot} state ready")
        self._wait_until(lambda: all(state.startswith("UP") for state in self.states(slot)))

    def take_out(self, slot: int) -> None:
        """Route no new requests to this slot; requests in flight continue."""
        self._set(f"{BACKENDS[0]}/replica{slot} state maint")

    def states(self, slot: int) -> list[str]:
        """Return a slot's state for both protocols."""
        return [
            row["status"]
            for backend in BACKENDS
            for row in self.statistics()
            if (row["# pxname"], row["svname"]) == (backend, f"replica{slot}")
        ]

    def total(self, column: str) -> int:
        """Sum a counter over all replicas, such as `wretr` (retried requests)."""
        rows = [row for row in self.statistics() if row["svname"].startswith("replica")]
        return sum(int(row[column] or 0) for row in rows)

    def num_logged(self, path: str) -> int:
        """Count finished requests to this path in the log."""
        return self.log.read_text(encoding="utf-8").count(f"{path} HTTP/")

    def statistics(self) -> list[dict[str, str]]:
        """Return HAProxy's statistics, a row per replica, frontend and backend."""
        return list(csv.DictReader(io.StringIO(self._ask("show stat"))))

    def _set(self, what: str) -> None:
        said = self._ask(f"set server {what}").strip()
        # Some settings answer with the change, which is not an error.
        if said and "changed from" not in said and "nothing changed" not in said:
            raise RuntimeError(f"haproxy, asked to set {what}: {said}")

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LIMIT_S)
            connection.connect(str(self._socket))
            connection.sendall(f"{command}\n".encode())
            said = b""
            while part := connection.recv(65536):
                said += part
        return said.decode()

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + LIMIT_S
        while not is_so():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("haproxy did not do so in time: " + self.log.read_text())
            time.sleep(POLL_S)


def free_ports(count: int) -> list[int]:
    """Return currently free ports of loopback; HAProxy cannot report a port it chose itself."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in listening]
    for each in listening:
        each.close()
    return ports
