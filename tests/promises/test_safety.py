"""Keys, their limits, addresses behind URLs, certificates, and what metrics tell; all bare.

Trusted proxies are in `test_time.py`: they decide who shares the lanes with whom.
"""

import base64
import os
import secrets
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
import trustme
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.processes.callers import (
    CHANNEL,
    PROTOCOLS,
    SMALL,
    Protocol,
    Question,
    ask,
    begin_rpc,
    grpc_outcome,
    until,
)
from tests.processes.server import LIMIT_S, ROOT, Server, photo, start_server
from tests.promises.conftest import KEY, LIMITED_KEY, ONE_AT_ONCE_KEY, STUDENT
from tipserve_client.generated.encoder_service_pb2_grpc import EncoderServiceStub

IMAGE = base64.b64encode(SMALL).decode()
OPEN_PATHS = {"/", "/health", "/healthz", "/ping", "/v2/health/live", "/v2/health/ready"}
OPEN_PATHS |= {"/docs", "/openapi.json", "/favicon.ico", "/web/app.js"}
# The document of the API leaves these out.
OTHER_PATHS = {"/v1/nowhere", "/v2/repository/index", "/invocations", "/web/../v1/models"}
OPEN_SERVICES = {"grpc.health.v1.Health"}
OPEN_SERVICES |= {"grpc.reflection.v1alpha.ServerReflection"}
KEYS_NOT_KNOWN: list[dict[str, str]] = [{}, {"x-api-key": KEY + "x"}]


def test_every_path_needs_a_key_but_the_open_ones(secured: Server) -> None:
    # Side by side, since a wrong key is refused after a pause.
    with (
        httpx.Client(base_url=secured.rest, timeout=LIMIT_S) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        documented = client.get("/openapi.json").json()["paths"]
        routes = {(m.upper(), path) for path, methods in documented.items() for m in methods}
        assert len(routes) > 10
        routes |= {(m, path) for m in ("GET", "POST") for path in OPEN_PATHS | OTHER_PATHS}
        asked = [(*route, headers) for route in routes for headers in KEYS_NOT_KNOWN]

        def status_of(question: tuple[str, str, dict[str, str]]) -> int:
            method, path, headers = question
            path = path.replace("{name}", "tipserve-student")
            return client.request(method, path, headers=headers).status_code

        for (method, path, _), status in zip(asked, pool.map(status_of, asked), strict=True):
            is_open = method == "GET" and path in OPEN_PATHS
            assert (status == 401) != is_open, (method, path, status)
        for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
            assert client.get("/v1/models", headers=headers).status_code == 200


def test_every_rpc_needs_a_key_but_the_open_ones(secured: Server) -> None:
    with grpc.insecure_channel(secured.grpc, CHANNEL) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert services > OPEN_SERVICES
        pool = DescriptorPool(database)
        rpcs = {
            (service, method.name)
            for service in services
            for method in pool.FindServiceByName(service).methods
        }
        for service, name in sorted({*rpcs, ("made.up.Service", "Method")}):
            for headers in KEYS_NOT_KNOWN:
                code = code_of(channel.unary_stream(f"/{service}/{name}"), headers)
                assert (code == "UNAUTHENTICATED") != (service in OPEN_SERVICES), (service, name)
    for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
        assert ask(secured, "grpc", Question(headers=headers)).outcome().kind == "served"


def code_of(rpc: Any, headers: Mapping[str, str], message: bytes = b"") -> str:
    """The code of an RPC, or OK after its first message."""
    call = rpc(message, timeout=LIMIT_S, metadata=tuple(headers.items()))
    try:
        next(call, None)
    except grpc.RpcError as error:
        status: Any = error
        return str(status.code().name)
    finally:
        call.cancel()
    return "OK"


def test_a_keys_rate_is_of_both_protocols(secured: Server) -> None:
    """The key may send one request a second; others are not concerned."""
    asked = [
        ask(secured, protocol, Question(headers={"x-api-key": key}))
        for protocol in PROTOCOLS * 4
        for key in (LIMITED_KEY, KEY)
    ]
    outcomes = [one.outcome() for one in asked]
    assert {outcome.kind for outcome in outcomes[1::2]} == {"served"}
    limited = Counter(outcome.kind for outcome in outcomes[::2])
    assert limited["refused"] >= 4, limited
    assert all(outcome.has_retry for outcome in outcomes if outcome.kind == "refused")


@pytest.mark.parametrize(("first", "second"), [PROTOCOLS, PROTOCOLS[::-1]])
def test_a_keys_requests_at_once_are_of_both_protocols(
    secured: Server, first: Protocol, second: Protocol
) -> None:
    mine = {"x-api-key": ONE_AT_ONCE_KEY}
    # Images that the server has seen are answered from its cache at once.
    unseen = [photo(10 * PROTOCOLS.index(first) + n) for n in range(8)]
    busy = ask(secured, first, Question(images=unseen, resolution=448, headers=mine))
    until(lambda: secured.metric("tipserve_inflight") == 1, "the first has come in")
    refused = ask(secured, second, Question(headers=mine)).outcome()
    assert (refused.kind, refused.has_retry) == ("refused", True)
    assert busy.outcome().kind == "served"
    # It is given back once the first is over, which the server may see after its caller.
    until(lambda: ask(secured, second, Question(headers=mine)).outcome().kind == "served", "again")


# Python's own event loop resolves and connects by these functions, uvloop by C.
NAMES = """
import asyncio
import os
import socket
import sys
import types

sys.modules["uvloop"] = types.SimpleNamespace(run=asyncio.run)
resolve, connect = socket.getaddrinfo, socket.socket.connect


def note(*words):
    with open(os.environ["NOTES"], "a") as notes:
        print(*words, file=notes)


def getaddrinfo(host, port, *given, **named):
    if not str(host).endswith(".example.test"):
        return resolve(host, port, *given, **named)
    note("resolve", host)
    # Names such as 127.0.0.1-fd00xx1.example.test: addresses, with x for a colon.
    addresses = host.removesuffix(".example.test").replace("x", ":").split("-")
    return [
        (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
        for one in addresses
    ]


def noted_connect(self, address):
    if isinstance(address, tuple):
        note("connect", address[1])
    return connect(self, address)


socket.getaddrinfo, socket.socket.connect = getaddrinfo, noted_connect
"""


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the fetching server has resolved, and where it has connected to."""
    file = tmp_path_factory.mktemp("notes") / "notes"
    file.touch()
    return file


@pytest.fixture(scope="module")
def fetching(notes: Path) -> Iterator[Server]:
    """A server that may fetch from names below example.test, which have the addresses we like."""
    (notes.parent / "sitecustomize.py").write_text(NAMES)
    paths = os.pathsep.join(map(str, (notes.parent, ROOT, ROOT / "clients" / "python")))
    env = {"PYTHONPATH": paths, "NOTES": str(notes)}
    with start_server(*STUDENT, "--url-hosts=*.example.test", env=env) as server:
        yield server


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "169.254.169.254",
        "192.168.0.1",
        "xx1",
        "xxffffx127.0.0.1",
        "fd00xx1",
        "93.184.215.14-127.0.0.1",
    ],
)
def test_names_with_private_addresses_are_not_fetched(
    fetching: Server, notes: Path, host: str
) -> None:
    name = f"{host}.example.test"
    body = {"image": f"https://{name}/image.png"}
    answer = httpx.post(f"{fetching.rest}/v1/images:embed", json=body, timeout=LIMIT_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "url_fetch_failed")
    assert "address" not in answer.text
    lines = notes.read_text().splitlines()
    assert f"resolve {name}" in lines
    assert "connect 443" not in lines


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/a.png", "https://2130706433/a.png", "https://other.test/a.png"]
)
def test_addresses_and_other_hosts_are_not_fetched(fetching: Server, url: str) -> None:
    answer = httpx.post(f"{fetching.rest}/v1/images:embed", json={"image": url}, timeout=LIMIT_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "url_not_allowed")


class Secrets:
    """The files of a server with TLS and keys, and callers who know the last ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client_ca = trustme.CA()
        self.caller = self.client_ca.issue_cert("caller@example.test")
        self.client_ca.cert_pem.write_to_path(folder / "ca.crt")
        self.renew()

    def renew(self) -> None:
        """Another authority issues the certificate, and there is another key."""
        self.ca = trustme.CA()
        self.headers = {"x-api-key": secrets.token_hex(16)}
        (self.folder / "keys").write_text(self.headers["x-api-key"])
        leaf = self.ca.issue_cert("127.0.0.1")
        leaf.private_key_pem.write_to_path(self.folder / "tls.key")
        leaf.cert_chain_pems[0].write_to_path(self.folder / "tls.crt")

    def flags(self) -> list[str]:
        files = {"tls-cert": "tls.crt", "tls-key": "tls.key", "tls-client-ca": "ca.crt"}
        files["api-keys-file"] = "keys"
        return [f"--{name}={self.folder / file}" for name, file in files.items()]

    def is_served(self, server: Server, protocol: Protocol, *, shows: bool = True) -> bool:
        """Whether a caller is served on a new connection."""
        if protocol == "rest":
            context = ssl.create_default_context()
            self.ca.configure_trust(context)
            if shows:
                self.caller.configure_cert(context)
            url = f"https://{urlsplit(server.rest).netloc}/v1/models"
            try:
                answer = httpx.get(url, headers=self.headers, verify=context, timeout=LIMIT_S)
            except httpx.TransportError:
                return False
            return answer.status_code == 200
        own = self.caller.private_key_pem.bytes(), self.caller.cert_chain_pems[0].bytes()
        credentials = grpc.ssl_channel_credentials(
            self.ca.cert_pem.bytes(), *(own if shows else (None, None))
        )
        with grpc.secure_channel(server.grpc, credentials, CHANNEL) as channel:
            ask_models: Any = channel.unary_stream("/tipserve.v1.EncoderService/ListModels")
            return code_of(ask_models, self.headers) == "OK"


def test_a_renewed_certificate_and_key_are_served_without_a_restart(tmp_path: Path) -> None:
    """Nobody is served without a certificate of the clients' authority, or with the old key."""
    site = Secrets(tmp_path)
    with start_server(*STUDENT, *site.flags()) as server:
        for protocol in PROTOCOLS:
            assert site.is_served(server, protocol)
            assert not site.is_served(server, protocol, shows=False)
        old = site.headers
        site.renew()
        for protocol in PROTOCOLS:
            until(lambda: site.is_served(server, protocol), "renewed")  # noqa: B023
        site.headers = old
        assert not any(site.is_served(server, protocol) for protocol in PROTOCOLS)


def test_metrics_never_carry_a_callers_text(secured: Server) -> None:
    mark = "textofacaller"
    headers = {"x-api-key": KEY, "x-request-id": mark, "user-agent": mark, mark: mark}
    question = Question(texts=[mark], headers=headers)
    with httpx.Client(base_url=secured.rest, headers=headers, timeout=LIMIT_S) as client:
        for method, path, body in (
            ("POST", "/v1/texts:embed", {"texts": [mark]}),
            ("POST", "/v1/images:segment", {"image": IMAGE, "classes": [mark]}),
            ("POST", "/v1/images:embed", {"image": IMAGE, "model": mark}),
            ("POST", "/v1/images:embed", {"image": IMAGE, mark: mark}),
            ("POST", f"/v2/models/{mark}/infer", {"inputs": []}),
            ("GET", f"/v1/{mark}", None),
            ("GET", f"/v1/models?{mark}={mark}", None),
            (mark.upper(), "/v1/models", None),
        ):
            client.request(method, path, json=body)
        client.get("/v1/models", headers={"x-api-key": mark * 2})
    with grpc.insecure_channel(secured.grpc, CHANNEL) as channel:
        assert grpc_outcome(begin_rpc(EncoderServiceStub(channel), question)).kind == "served"
        image = Question(model=mark, headers=headers)
        assert grpc_outcome(begin_rpc(EncoderServiceStub(channel), image)).kind != "served"
        for path in (f"/{mark}/{mark}", f"/tipserve.v1.EncoderService/{mark}"):
            code_of(channel.unary_stream(path), headers)
    text = httpx.get(secured.metrics, timeout=LIMIT_S).text
    assert "tipserve_requests_total" in text
    assert mark not in text.lower()
