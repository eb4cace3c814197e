"""The proxy's example fits the service's settings."""

import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count, repeat
from pathlib import Path

import pytest

from service.monitoring.metrics_server import READY
from service.settings import Settings
from tests.hostile.wire import CONTINUATION, PREFACE, SETTINGS, frame, http2_head, literal, opened
from tests.processes.proxy import Proxy
from tests.tools import find_tool, run

LIMIT_S = 20.0


@pytest.fixture
def configuration(project_root: Path) -> Path:
    return project_root / "deploy" / "proxy" / "haproxy.cfg"


def test_timeouts_sizes_and_ports_fit_the_service(configuration: Path) -> None:
    text, settings = configuration.read_text(encoding="utf-8"), Settings()
    timeouts = re.findall(r"^  timeout ([\w-]+) +(\d+)(s|ms)$", text, re.MULTILINE)
    timeouts_s = {name: int(value) / {"s": 1, "ms": 1000}[unit] for name, value, unit in timeouts}
    assert timeouts_s["client"] > settings.request_timeout_s
    assert timeouts_s["server"] > settings.request_timeout_s
    assert timeouts_s["http-request"] > settings.client_timeout_s
    assert timeouts_s["http-keep-alive"] < settings.keep_alive_s
    assert max(map(int, re.findall(r"maxconn (\d+)", text))) <= settings.max_connections
    assert f"option httpchk GET {READY}\n" in text
    # The service may already have computed a request that failed later.
    assert re.findall(r"^ *retry-on (.*)$", text, re.MULTILINE) == ["conn-failure"]
    ports = {int(port) for port in re.findall(r"server \w+ 127.0.0.1:(\d+)", text)}
    assert ports == {settings.http_port, settings.grpc_port}


def test_haproxy_accepts_it(configuration: Path, tmp_path: Path) -> None:
    # The check opens no socket, but resolves its path.
    environment = {**os.environ, "PROXY_ADMIN_SOCKET": str(tmp_path / "admin.sock")}
    checked = run("haproxy", "-c", "-q", "-f", configuration, env=environment)
    assert (checked.returncode, "WARNING" in checked.stderr) == (0, False), checked.stderr


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_one_address_does_not_take_all_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("PROXY_CONNECTIONS_PER_ADDRESS", "5")
    with Proxy(find_tool("haproxy"), tmp_path) as proxy, ExitStack() as stack:
        port = proxy.ports[protocol]

        connections = set()
        for _ in range(12):
            with suppress(ConnectionResetError):
                peer = socket.create_connection(("127.0.0.1", port), LIMIT_S)
                connections.add(stack.enter_context(peer))
        other = socket.create_connection(("127.0.0.1", port), LIMIT_S, ("127.0.0.2", 0))
        stack.enter_context(other)
        # One that is being refused still counts, so more than seven may be.
        until = time.monotonic() + LIMIT_S
        while len(connections) > 5 and time.monotonic() < until:
            connections -= set(select.select(connections, [], [], 0.1)[0])
        assert 0 < len(connections) <= 5
        assert select.select([other], [], [], 0.2)[0] == []


def continuations() -> Iterator[bytes]:
    """Headers without an end."""
    yield opened(1, flags=0)
    yield from repeat(frame(CONTINUATION, literal(b"x", b"v") * 50, stream=1) * 100)


def malformed() -> Iterator[bytes]:
    """Streams whose headers break a rule, which ends the stream alone."""
    for number in count(1, 2):
        yield opened(number, block=http2_head() + literal(b"Upper", b"v"))


@pytest.mark.parametrize("flood", [continuations, malformed])
def test_a_flood_of_frames_ends_its_connection(
    tmp_path: Path, flood: Callable[[], Iterator[bytes]]
) -> None:
    # gRPC's core receives all of it, and HAProxy without its threshold all malformed headers.
    num_left = 64 * 1024 * 1024
    with (
        Proxy(find_tool("haproxy"), tmp_path) as proxy,
        socket.create_connection(("127.0.0.1", proxy.ports["grpc"]), LIMIT_S) as peer,
    ):
        peer.sendall(PREFACE + frame(SETTINGS))
        with suppress(ConnectionError):
            for piece in flood():
                if num_left <= 0:
                    break
                peer.sendall(piece)
                num_left -= len(piece)
    assert num_left > 0
