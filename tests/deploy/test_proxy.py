"""The proxy's configuration, in front of servers that answer with what they were sent."""

import re
import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import httpx
import pytest
import trustme

from service.monitoring.metrics_server import READY
from service.rest.server import KEEP_ALIVE_S
from service.settings import Settings
from tests.hostile.wire import PREFACE, SETTINGS, frame, http2_head, literal, opened
from tests.processes.front import CONFIGURATION, Front
from tests.tools import run

LIMIT_S = 20.0
METHOD = "/echo/Echo"
OTHER = "127.0.0.2"
Start = Callable[..., Front]


class Echo(BaseHTTPRequestHandler):
    """Answers with the caller's addresses, as the proxy tells them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(float(self.headers.get("x-sleep-s", 0)))
        body = ", ".join(self.headers.get_all("x-forwarded-for", [])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class EchoService(grpc.GenericRpcHandler):
    """The same over gRPC, on a stream that does not end before the caller's does."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._answer)

    def _answer(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        sent = context.invocation_metadata()
        yield ", ".join(str(value) for key, value in sent if key == "x-forwarded-for").encode()
        for _ in requests:
            pass


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[int, int]]:
    """Ports of both."""
    rest = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    rpc = grpc.server(futures.ThreadPoolExecutor(16), [EchoService()])
    grpc_port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    with rest:
        Thread(target=rest.serve_forever, daemon=True).start()
        yield rest.server_port, grpc_port
        rest.shutdown()
    rpc.stop(None)


@pytest.fixture
def start(servers: tuple[int, int], tmp_path: Path) -> Iterator[Start]:
    """Starts the proxy with variables."""
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(Front(tmp_path, *servers, **given))


@contextmanager
def asking(port: int, credentials: Any = None, name: str = "127.0.0.1") -> Iterator[Any]:
    """A function that begins an RPC, and returns the answer and the end of it."""
    target, options = f"{name}:{port}", [("grpc.use_local_subchannel_pool", 1)]
    made: Any = (
        grpc.secure_channel(target, credentials, options)
        if credentials
        else grpc.insecure_channel(target, options)
    )
    with made as channel:
        is_over = futures.Future[None]()
        begun: list[Any] = []  # one that is collected ends

        def requests() -> Iterator[bytes]:
            yield b""
            is_over.result(LIMIT_S)

        def ask(*forwarded: str) -> str:
            metadata = [("x-forwarded-for", text) for text in forwarded]
            rpc = channel.stream_stream(METHOD)(requests(), timeout=LIMIT_S, metadata=metadata)
            begun.append(rpc)
            try:
                return str(next(rpc).decode())
            except grpc.RpcError as error:
                return f"{error.code().name}: {error.details()}"

        yield ask
        is_over.set_result(None)


def over_rest(port: int, *forwarded: str) -> str:
    headers = [("x-forwarded-for", text) for text in forwarded]
    return httpx.get(f"http://127.0.0.1:{port}/", headers=headers, timeout=LIMIT_S).text


def test_timeouts_sizes_and_ports_fit_the_service() -> None:
    text, settings = CONFIGURATION.read_text(encoding="utf-8"), Settings()
    timeouts_s = dict(re.findall(r"^  timeout ([\w-]+) +(\d+)s$", text, re.MULTILINE))
    assert int(timeouts_s["client"]) > settings.request_timeout_s
    assert int(timeouts_s["server"]) > settings.request_timeout_s
    assert int(timeouts_s["http-keep-alive"]) < KEEP_ALIVE_S
    assert f"option httpchk GET {READY}\n" in text
    # The service may already have computed a request that failed later.
    assert re.findall(r"^ *retry-on (.*)$", text, re.MULTILINE) == ["conn-failure"]
    assert text.count(f"127.0.0.1:{settings.http_port}") == 1
    assert text.count(f"127.0.0.1:{settings.grpc_port} track") == 4


def test_haproxy_accepts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("REPLICAS", "yes"), ("TRUSTED", "10.0.0.0/8 fd00::/8")):
        monkeypatch.setenv(f"PROXY_{name}", value)
        checked = run("haproxy", "-c", "-q", "-f", CONFIGURATION)
        assert (checked.returncode, "WARNING" in checked.stderr) == (0, False), checked.stderr


@pytest.mark.parametrize(
    ("trusted", "forwarded", "told"),
    [
        ("", (), "127.0.0.1"),
        ("", ("203.0.113.7",), "127.0.0.1"),
        ("10.0.0.0/8 127.0.0.0/8", ("203.0.113.7",), "203.0.113.7"),
        ("127.0.0.1", ("192.0.2.1, 203.0.113.7",), "203.0.113.7"),
        ("127.0.0.1", ("192.0.2.1", "203.0.113.7"), "203.0.113.7"),
        ("127.0.0.1", ("no address",), "127.0.0.1"),
        ("127.0.0.1", (), "127.0.0.1"),
    ],
)
def test_only_trusted_balancers_name_the_caller(
    start: Start, trusted: str, forwarded: tuple[str, ...], told: str
) -> None:
    front = start(**{"PROXY_TRUSTED": trusted} if trusted else {})
    assert over_rest(front.http_port, *forwarded) == told
    with asking(front.grpc_port) as ask:
        assert ask(*forwarded) == told


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_one_address_does_not_take_all_connections(start: Start, protocol: str) -> None:
    port = getattr(start(PROXY_CONNECTIONS_PER_ADDRESS="5"), f"{protocol}_port")
    with ExitStack() as stack:
        connections = set()
        for _ in range(12):
            with suppress(ConnectionResetError):
                peer = socket.create_connection(("127.0.0.1", port), LIMIT_S)
                connections.add(stack.enter_context(peer))
        other = socket.create_connection(("127.0.0.1", port), LIMIT_S, (OTHER, 0))
        stack.enter_context(other)
        # One that is being refused still counts, so more than seven may be.
        until = time.monotonic() + LIMIT_S
        while len(connections) > 5 and time.monotonic() < until:
            connections -= set(select.select(connections, [], [], 0.1)[0])
        assert 0 < len(connections) <= 5
        assert select.select([other], [], [], 0.2)[0] == []


def test_one_caller_does_not_take_all_requests_and_is_logged(start: Start) -> None:
    front = start(PROXY_REQUESTS_PER_ADDRESS="3", PROXY_TRUSTED="127.0.0.1")
    with asking(front.grpc_port) as ask:
        answers = Counter(ask("203.0.113.7").partition(":")[0] for _ in range(5))
        assert answers == {"203.0.113.7": 3, "RESOURCE_EXHAUSTED": 2}
        refused = httpx.get(
            f"http://127.0.0.1:{front.http_port}/?classes=secret",
            headers={"x-forwarded-for": "203.0.113.7"},
        )
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "too_many_requests"
        # Others on the same connection are served.
        assert ask("203.0.113.8") == "203.0.113.8"
    text = front.log.read_text()
    refusals = re.findall(r"^203\.0\.113\.7:.* (\w+) .* (\d+) \d+ .*=1$", text, re.MULTILINE)
    assert sorted(refusals) == [("grpc", "200"), ("grpc", "200"), ("rest", "429")]
    assert "secret" not in text


def test_it_ends_tls_of_both_protocols(start: Start, tmp_path: Path) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("localhost")
    (tmp_path / "tls.key").write_bytes(leaf.private_key_pem.bytes())
    (tmp_path / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    front = start(PROXY_TLS_CERT=str(tmp_path / "tls.crt"))
    context = ssl.create_default_context()
    ca.configure_trust(context)
    url = f"https://localhost:{front.http_port}/"
    assert httpx.get(url, verify=context, timeout=LIMIT_S).text == "127.0.0.1"
    credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    with asking(front.grpc_port, credentials, "localhost") as ask:
        assert ask() == "127.0.0.1"


def test_a_flood_of_malformed_headers_ends_its_connection(start: Start) -> None:
    """Each breaks a rule, which ends its stream alone; HAProxy without its threshold takes all."""
    num_left = 64 * 1024 * 1024
    with (
        suppress(ConnectionError),
        socket.create_connection(("127.0.0.1", start().grpc_port), LIMIT_S) as peer,
    ):
        peer.sendall(PREFACE + frame(SETTINGS))
        for number in count(1, 2):
            peer.sendall(piece := opened(number, block=http2_head() + literal(b"Upper", b"v")))
            num_left -= len(piece)
            assert num_left > 0
