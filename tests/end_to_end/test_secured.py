"""The real program with keys, TLS and client certificates, on its own event loop."""

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

RunService = Callable[..., Any]
LIMIT_S = 60.0
OLD_KEY, NEW_KEY = "old-key-of-a-caller", "new-key-of-a-caller"


class Site:
    """Files of a secured service, and a trusted client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.client_ca = trustme.CA(), trustme.CA()
        self.caller = self.client_ca.issue_cert("caller@example.test")
        self.client_ca.cert_pem.write_to_path(folder / "ca.crt")
        (folder / "keys").write_text(f"{OLD_KEY}\n")
        self.renew(self.ca)

    def renew(self, ca: trustme.CA) -> None:
        leaf = ca.issue_cert("127.0.0.1")
        leaf.private_key_pem.write_to_path(self.folder / "tls.key")
        leaf.cert_chain_pems[0].write_to_path(self.folder / "tls.crt")
        self.ca = ca

    def arguments(self) -> list[str]:
        files = {"tls-cert": "tls.crt", "tls-key": "tls.key", "tls-client-ca": "ca.crt"}
        files["api-keys-file"] = "keys"
        return [f"--{name}={self.folder / file}" for name, file in files.items()]

    def context(self, *, shows: bool = True) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if shows:
            self.caller.configure_cert(context)
        return context

    def over_rest(self, port: int, key: str) -> int:
        url, headers = f"https://127.0.0.1:{port}/v1/models", {"X-Api-Key": key}
        return httpx.get(url, headers=headers, verify=self.context(), timeout=LIMIT_S).status_code

    def over_grpc(self, port: int, key: str) -> str:
        credentials = grpc.ssl_channel_credentials(
            self.ca.cert_pem.bytes(),
            self.caller.private_key_pem.bytes(),
            self.caller.cert_chain_pems[0].bytes(),
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            ask: Any = channel.unary_unary("/tipserve.v1.EncoderService/ListModels")
            try:
                ask(b"", timeout=LIMIT_S, metadata=(("x-api-key", key),))
            except grpc.RpcError as error:
                status: Any = error
                return str(status.code().name)
        return "OK"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_both_protocols_require_keys_and_certificates_and_follow_renewals(
    run_service: RunService, site: Site
) -> None:
    with run_service(*site.arguments()) as service:
        http, rpc = service.ports["http"], service.ports["grpc"]
        assert (site.over_rest(http, OLD_KEY), site.over_rest(http, NEW_KEY)) == (200, 401)
        assert site.over_grpc(rpc, OLD_KEY) == "OK"
        assert site.over_grpc(rpc, NEW_KEY) == "UNAUTHENTICATED"
        with pytest.raises(httpx.TransportError):
            httpx.get(
                f"https://127.0.0.1:{http}/docs",
                verify=site.context(shows=False),
                timeout=LIMIT_S,
            )
        (site.folder / "keys").write_text(f"{NEW_KEY}\n")
        site.renew(trustme.CA())
        until = time.monotonic() + LIMIT_S
        while site.over_grpc(rpc, NEW_KEY) != "OK":
            assert time.monotonic() < until
        assert (site.over_rest(http, OLD_KEY), site.over_rest(http, NEW_KEY)) == (401, 200)
    assert not [line for line in service.program.log if OLD_KEY in line or NEW_KEY in line]


def test_silent_clients_and_clients_that_do_not_read_are_dropped_under_tls_too(
    run_service: RunService, site: Site
) -> None:
    context = site.context()
    with run_service(*site.arguments(), "--client-timeout-s=2") as service:
        address = ("127.0.0.1", service.ports["http"])
        for sent in (b"", b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500):
            plain = socket.create_connection(address, LIMIT_S)
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                connection.sendall(sent)
                wait_until_closed(service.program.process.pid, connection.getsockname()[1])


def wait_until_closed(pid: int, port: int) -> None:
    """Wait, without reading, until the process has no connection to our ports."""
    until = time.monotonic() + LIMIT_S
    peer = f"0100007F:{port:04X}"
    while any(
        # A connection that the process has closed has no inode.
        line.split()[2] == peer and line.split()[9] != "0"
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    ):
        assert time.monotonic() < until, "the connection stays"
        time.sleep(0.05)
