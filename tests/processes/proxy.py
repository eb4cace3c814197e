"""HAProxy in front of several replicas, which are put in and taken out over its admin socket."""

import csv
import io
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.processes.front import Front
from tests.processes.server import Server

BACKENDS: Final = ("tipserve_http", "tipserve_grpc")
LIMIT_S: Final = 30.0
POLL_S: Final = 0.02


class Proxy(Front):
    """A proxy on free ports, as a context. It never retries a request.

    Args:
        folder: Folder for socket and log; a short path, as socket paths are limited.
    """

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "admin.sock"
        variables = {"RETRIES": "0", "REPLICAS": "yes", "ADMIN_SOCKET": str(self._socket)}
        super().__init__(folder, 0, 0, **{f"PROXY_{n}": value for n, value in variables.items()})

    def put_in(self, slot: int, replica: Server) -> None:
        """Route requests of both protocols to a replica."""
        self._wait_until(self._socket.exists)
        for backend, name in zip(BACKENDS, ("http", "grpc"), strict=True):
            self._set(f"{backend}/replica{slot} addr 127.0.0.1 port {replica.ports[name]}")
        self._set(f"{BACKENDS[0]}/replica{slot} state ready")
        self._wait_until(lambda: self._is_up(slot))

    def take_out(self, slot: int) -> None:
        """Route no new requests to this slot; requests in flight continue."""
        self._set(f"{BACKENDS[0]}/replica{slot} state maint")

    def total(self, column: str) -> int:
        """Sum a counter over all replicas, such as `wretr` (retried requests)."""
        return sum(int(row[column] or 0) for row in self._replicas())

    def _replicas(self) -> list[dict[str, str]]:
        """HAProxy's statistics, a row per replica and protocol."""
        rows = csv.DictReader(io.StringIO(self._ask("show stat")))
        return [row for row in rows if row["svname"].startswith("replica")]

    def _is_up(self, slot: int) -> bool:
        own = [row for row in self._replicas() if row["svname"] == f"replica{slot}"]
        return all(row["status"].startswith("UP") for row in own)

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
            return connection.makefile("rb").read().decode()

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + LIMIT_S
        while not is_so():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("haproxy did not do so in time: " + self.log.read_text())
            time.sleep(POLL_S)
