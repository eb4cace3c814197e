"""The proxy's configuration, in front of servers that answer with what they were sent."""

import re
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
from tests.processes.callers import until
from tests.processes.front import CONFIGURATION, START, Front

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


class EchoServer(ThreadingHTTPServer):
    """Many connections wait to be accepted."""

    request_queue_size = 1024


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
    rest = EchoServer(("127.0.0.1", 0), Echo)
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
        yield lambda **given: stack.enter_context(Front(tmp_path, servers, **given))


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


# Of a request in progress: as long as the service may work on it.
REQUEST_TIMES = (
    *("client_body_timeout", "worker_shutdown_timeout"),
    *("proxy_read_timeout", "proxy_send_timeout", "grpc_read_timeout", "grpc_send_timeout"),
)


def faults(conf: str, start: str = START.read_text(encoding="utf-8")) -> list[str]:
    """What in the configuration loses requests, or disagrees with the service."""
    given: dict[str, set[str]] = {}
    for name, value in re.findall(r"^\s*(\w+) ([^;\n]+);$", conf, re.MULTILINE):
        given.setdefault(name, set()).add(value)
    probe = re.search(rf"location = {READY} {{([^}}]*)}}", conf)
    (timeout_s,) = map(int, re.findall(r"PROXY_TIMEOUT_S:-(\d+)", start))
    given["proxy_read_timeout"].discard("3s")  # of the probe
    is_good = {
        "the proxy gives up before the service": timeout_s > Settings().request_timeout_s
        and all(given[name] == {"${PROXY_TIMEOUT_S}s"} for name in REQUEST_TIMES),
        "a head takes too long": seconds(given["client_header_timeout"]) <= 30,
        "an answer that is not read is kept": seconds(given["send_timeout"]) <= 30,
        "the service closes an idle connection first": seconds(given["keepalive_timeout"])
        < KEEP_ALIVE_S,
        "sent requests are repeated": {"error timeout"}
        == given["proxy_next_upstream"]
        == given["grpc_next_upstream"],
        "work goes on without its caller": not re.search("ignore_client_abort", conf),
        "the rate is not that of its name": given["limit_req_zone"]
        == {"$caller zone=rate:10m rate=${PROXY_RATE}r/s"}
        and "PROXY_RATE=$((${PROXY_REQUESTS_PER_10S:-10000} / 10))" in start,
        "a refusal is not told": given["limit_conn_status"] == given["limit_req_status"] == {"429"},
        "bodies or answers are written to disk": given["proxy_request_buffering"] == {"off"}
        and given["proxy_max_temp_file_size"] == {"0"},
        "the probe does not pass the proxy": probe is not None
        and "proxy_pass http://rest;" in probe[1],
    }
    return [fault for fault, is_so in is_good.items() if not is_so]


def seconds(values: set[str]) -> int:
    """The number of the only value, such as `20s`."""
    (text,) = values
    assert text.endswith("s")
    return int(text.removesuffix("s"))


def test_the_configuration_fits_the_service() -> None:
    assert faults(CONFIGURATION.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("there", "planted"),
    [
        ("client_header_timeout 20s", "client_header_timeout 200s"),
        ("worker_shutdown_timeout ${PROXY_TIMEOUT_S}s", "worker_shutdown_timeout 9s"),
        ("proxy_buffers", "proxy_ignore_client_abort on;\n    proxy_buffers"),
        ("rate=${PROXY_RATE}r/s", "rate=${PROXY_RATE}r/m"),
        ("proxy_next_upstream error", "proxy_next_upstream non_idempotent error"),
        ("grpc_next_upstream error timeout", "grpc_next_upstream error timeout http_503"),
        ("keepalive_timeout 60s", "keepalive_timeout 80s"),
        ("grpc_read_timeout ${PROXY_TIMEOUT_S}s", "grpc_read_timeout 30s"),
        ("send_timeout 20s", "send_timeout 600s"),
        ("limit_req_status 429", "limit_req_status 503"),
        ("proxy_request_buffering off", "proxy_request_buffering on"),
        ("ready {\n      proxy_pass http://rest", "ready {\n      return 200"),
    ],
)
def test_a_planted_fault_of_the_configuration_is_found(there: str, planted: str) -> None:
    conf = CONFIGURATION.read_text(encoding="utf-8")
    assert there in conf
    assert faults(conf.replace(there, planted))


def test_time_outs_of_the_script_fit_the_service() -> None:
    conf, start = (one.read_text(encoding="utf-8") for one in (CONFIGURATION, START))
    assert faults(conf, start.replace("PROXY_TIMEOUT_S:-90", "PROXY_TIMEOUT_S:-25"))
    assert faults(conf, start.replace("/ 10))", "/ 1))"))


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
def test_idle_connections_are_the_first_to_go(start: Start, protocol: str) -> None:
    front = start(PROXY_CONNECTIONS="200")
    port = getattr(front, f"{protocol}_port")
    greeting = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" if protocol == "http" else PREFACE
    with ExitStack() as stack, asking(front.grpc_port) as ask:
        assert ask() == "127.0.0.1", "an RPC that is open stays"
        idle = []
        for number in range(600):
            peer = socket.create_connection(
                ("127.0.0.1", port), LIMIT_S, (f"127.0.1.{number % 40}", 0)
            )
            idle.append(stack.enter_context(peer))
            with suppress(ConnectionError):
                peer.sendall(greeting)
                assert peer.recv(65_536)
        # A connection is idle once its request is answered.
        until(
            lambda: front.place.metric("tipserve_proxy_connections", state="writing") <= 3, "idle"
        )
        assert over_rest(front.http_port) == "127.0.0.1"
        assert ask() == "127.0.0.1"
        for peer in idle:
            peer.setblocking(False)
        gone = [is_closed(peer) for peer in idle]
        assert 400 <= sum(gone) < 600
        assert sum(gone[:300]) > sum(gone[300:]), "the oldest first"


def is_closed(peer: socket.socket) -> bool:
    """Whether the other side has closed a connection, after what it has sent."""
    try:
        while peer.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def test_one_host_of_ipv6_is_one_caller(start: Start) -> None:
    front = start(PROXY_REQUESTS_PER_10S="20", PROXY_TRUSTED="127.0.0.1")

    def statuses(*addresses: str) -> Counter[int]:
        with httpx.Client(base_url=f"http://127.0.0.1:{front.http_port}") as client:
            return Counter(
                client.get("/", headers={"x-forwarded-for": one}).status_code for one in addresses
            )

    of_one = [f"2001:db8:0:7:{number:x}::1" for number in range(1, 100)]
    assert statuses(*of_one)[429] > 50
    of_others = [f"2001:db8:{number:x}:7::1" for number in range(1, 100)]
    assert statuses(*of_others) == {200: 99}
    # IPv4 in IPv6's form is by the address.
    assert statuses(*(f"203.0.113.{number}" for number in range(100))) == {200: 100}


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
    refusals = re.findall(r"^203\.0\.113\.7 .* (\w+) status=(\d+) .*$", text, re.MULTILINE)
    assert sorted(refusals) == [("grpc", "200"), ("grpc", "200"), ("rest", "429")]
    assert "secret" not in text
    for protocol, number in (("grpc", 2), ("rest", 1)):
        labels = {"protocol": protocol, "code": "429", "by": "proxy"}
        assert front.place.metric("tipserve_proxy_responses_total", **labels) == number


class Certificates:
    """A certificate authority, and the files of a Secret."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        (folder / "ca.crt").write_bytes(self.ca.cert_pem.bytes())
        self.renew()

    def renew(self) -> None:
        """Write another certificate and its key, as the kubelet does: whole or not at all."""
        leaf = self.ca.issue_cert("localhost")
        self.serial = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
        for name, content in (
            ("tls.key", leaf.private_key_pem.bytes()),
            ("tls.crt", b"".join(pem.bytes() for pem in leaf.cert_chain_pems)),
        ):
            (self.folder / f"{name}.new").write_bytes(content)
            (self.folder / f"{name}.new").replace(self.folder / name)

    def context(self, *, is_known: bool = False) -> ssl.SSLContext:
        """That of a caller; one who is known presents a certificate."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if is_known:
            self.ca.issue_cert("caller").configure_cert(context)
        return context

    def shown(self, port: int) -> bytes | None:
        """The certificate that a new connection gets."""
        with (
            socket.create_connection(("127.0.0.1", port), LIMIT_S) as plain,
            self.context().wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True)


def test_it_ends_tls_of_both_protocols_and_a_renewed_certificate_loses_no_connection(
    start: Start, tmp_path: Path
) -> None:
    secret = Certificates(tmp_path)
    front = start(PROXY_TLS_CERT=str(tmp_path / "tls.crt"))
    url = f"https://localhost:{front.http_port}/"
    credentials = grpc.ssl_channel_credentials(secret.ca.cert_pem.bytes())
    with (
        httpx.Client(verify=secret.context(), timeout=LIMIT_S) as client,
        asking(front.grpc_port, credentials, "localhost") as ask,
    ):
        assert (client.get(url).text, ask()) == ("127.0.0.1", "127.0.0.1")
        for _ in range(2):
            for port in (front.http_port, front.grpc_port):
                assert secret.shown(port) == secret.serial
            secret.renew()
        connections = front.place.metric("tipserve_proxy_connections", state="active")
        assert (client.get(url).text, ask()) == ("127.0.0.1", "127.0.0.1")
        after = front.place.metric("tipserve_proxy_connections", state="active")
        assert after <= connections, "both go on over the connections that they had"


def test_callers_present_a_certificate_where_an_authority_is_named(
    start: Start, tmp_path: Path
) -> None:
    secret = Certificates(tmp_path)
    names = {"TLS_CERT": "tls.crt", "TLS_CLIENT_CA": "ca.crt"}
    front = start(**{f"PROXY_{name}": str(tmp_path / file) for name, file in names.items()})
    url = f"https://localhost:{front.http_port}/"
    known = httpx.get(url, verify=secret.context(is_known=True), timeout=LIMIT_S)
    assert known.text == "127.0.0.1"
    assert httpx.get(url, verify=secret.context(), timeout=LIMIT_S).status_code == 401
    ca, caller = secret.ca.cert_pem.bytes(), secret.ca.issue_cert("caller")
    chain = b"".join(pem.bytes() for pem in caller.cert_chain_pems)
    keys = {(caller.private_key_pem.bytes(), chain): "127.0.0.1", (None, None): "UNAUTHENTICATED"}
    for (key, certificate), answer in keys.items():
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        with asking(front.grpc_port, credentials, "localhost") as ask:
            assert ask().partition(":")[0] == answer
    # Probes and Prometheus need none.
    assert front.place.metric("tipserve_proxy_max_connections") > 0


def test_a_server_that_is_away_is_told_in_each_protocol_and_counted(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with Front(tmp_path, (port, port)) as front, asking(front.grpc_port) as ask:
            away = httpx.get(f"http://127.0.0.1:{front.http_port}/", timeout=LIMIT_S)
            assert (away.status_code, away.json()["error"]["code"]) == (503, "unavailable")
            assert ask().startswith("UNAVAILABLE")
            for protocol in ("rest", "grpc"):
                labels = {"protocol": protocol, "code": "5xx", "by": "proxy"}
                assert front.place.metric("tipserve_proxy_responses_total", **labels) == 1
            assert httpx.get(front.place.ready, timeout=LIMIT_S).status_code >= 500
        assert "status=503" in front.log.read_text()


def test_a_flood_of_malformed_headers_takes_no_memory_and_delays_nobody(start: Start) -> None:
    front = start()
    front.peak_mib(reset=True)
    before = front.peak_mib()
    num_left = 16 * 1024 * 1024
    with (
        asking(front.grpc_port) as ask,
        socket.create_connection(("127.0.0.1", front.grpc_port), LIMIT_S, (OTHER, 0)) as peer,
    ):
        with suppress(ConnectionError):
            peer.sendall(PREFACE + frame(SETTINGS))
            for number in count(1, 2):
                peer.sendall(piece := opened(number, block=http2_head() + literal(b"Upper", b"v")))
                num_left -= len(piece)
                if num_left < 0:
                    break
        assert ask() == "127.0.0.1"
        assert over_rest(front.http_port) == "127.0.0.1"
    assert front.peak_mib() < before + 32
