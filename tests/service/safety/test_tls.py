"""TLS material is checked, and changed files are used without a restart."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from service.safety.tls import Tls
from service.server import Server
from service.settings import Settings
from tests.service.conftest import Clock, Serving

LIMIT_S = 20.0


@dataclass(frozen=True)
class Client:
    """The authority that a client trusts (None: no TLS) and its certificate."""

    trusts: trustme.CA | None
    shows: trustme.LeafCert | None = None


def write_certificate(folder: Path, ca: trustme.CA, **issue: Any) -> dict[str, Path]:
    """Put a certificate for 127.0.0.1 in place, as settings name it."""
    leaf = ca.issue_cert("127.0.0.1", **issue)
    paths = {"tls_cert": folder / "tls.crt", "tls_key": folder / "tls.key"}
    paths["tls_key"].write_bytes(leaf.private_key_pem.bytes())
    paths["tls_cert"].write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
    return paths


async def over_rest(server: Server, client: Client) -> bool:
    """Whether a REST request is answered."""
    context = ssl.create_default_context()
    if client.trusts is not None:
        client.trusts.configure_trust(context)
    if client.shows is not None:
        client.shows.configure_cert(context)
    scheme = "http" if client.trusts is None else "https"
    url = f"{scheme}://127.0.0.1:{server.ports['http']}/v1/models"
    async with httpx.AsyncClient(verify=context, timeout=LIMIT_S) as asking:
        try:
            return (await asking.get(url)).status_code == 200
        except httpx.TransportError:
            return False


async def over_grpc(server: Server, client: Client) -> bool:
    """Whether an RPC is answered."""
    return await asyncio.to_thread(_over_grpc, server, client)


def _over_grpc(server: Server, client: Client) -> bool:
    address = f"127.0.0.1:{server.ports['grpc']}"
    options = [("grpc.use_local_subchannel_pool", 1)]
    if client.trusts is None:
        channel = grpc.insecure_channel(address, options)
    else:
        chain = b"".join(c.bytes() for c in client.shows.cert_chain_pems) if client.shows else None
        key = client.shows.private_key_pem.bytes() if client.shows else None
        roots = client.trusts.cert_pem.bytes()
        channel = grpc.secure_channel(
            address, grpc.ssl_channel_credentials(roots, key, chain), options
        )
    with channel:
        try:
            ask: Any = channel.unary_unary("/tipserve.v1.EncoderService/ListModels")
            ask(b"", timeout=LIMIT_S)
        except grpc.RpcError as error:
            return bool(error.code().name != "UNAVAILABLE")
    return True


Ask = Callable[[Server, Client], Awaitable[bool]]


async def answered(ask: Ask, server: Server, client: Client) -> None:
    """Wait until this client is answered."""
    async with asyncio.timeout(LIMIT_S):
        while not await ask(server, client):
            await asyncio.sleep(0.1)


BOTH = pytest.mark.parametrize("ask", [over_rest, over_grpc], ids=["rest", "grpc"])


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """The authority of the servers."""
    return trustme.CA()


@pytest.fixture(scope="module")
def client_ca() -> trustme.CA:
    """The authority of the clients."""
    return trustme.CA()


@BOTH
async def test_mtls_serves_only_clients_of_its_authority(
    serving: Serving, tmp_path: Path, ca: trustme.CA, client_ca: trustme.CA, ask: Ask
) -> None:
    client_ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    paths = write_certificate(tmp_path, ca) | {"tls_client_ca": tmp_path / "ca.crt"}
    async with serving(**paths) as server:
        assert await ask(server, Client(ca, client_ca.issue_cert("caller@example.test")))
        assert not await ask(server, Client(ca)), "no certificate at all"
        assert not await ask(server, Client(ca, ca.issue_cert("caller@example.test")))
        past = datetime.now(UTC) - timedelta(days=2)
        expired = client_ca.issue_cert(
            "caller@example.test", not_before=past, not_after=past + timedelta(days=1)
        )
        assert not await ask(server, Client(ca, expired))
        assert not await ask(server, Client(None))


@BOTH
async def test_renewed_files_count_for_new_connections(
    serving: Serving, tmp_path: Path, ca: trustme.CA, client_ca: trustme.CA, ask: Ask
) -> None:
    old = Client(ca, client_ca.issue_cert("caller@example.test"))
    new_ca = trustme.CA()
    new = Client(ca, new_ca.issue_cert("caller@example.test"))
    client_ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    paths = write_certificate(tmp_path, ca) | {"tls_client_ca": tmp_path / "ca.crt"}
    async with serving(**paths) as server:
        assert [await ask(server, old), await ask(server, new)] == [True, False]
        new_ca.cert_pem.write_to_path(tmp_path / "ca.crt")
        await answered(ask, server, new)
        assert not await ask(server, old)


async def test_an_open_connection_outlives_the_renewal(
    serving: Serving, tmp_path: Path, ca: trustme.CA
) -> None:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    async with serving(**write_certificate(tmp_path, ca)) as server:
        url = f"https://127.0.0.1:{server.ports['http']}/v1/models"
        async with httpx.AsyncClient(verify=context, timeout=LIMIT_S) as client:
            first = await client.get(url)
            new_ca = trustme.CA()
            write_certificate(tmp_path, new_ca)
            await answered(over_rest, server, Client(new_ca))
            second = await client.get(url)
    assert (first.status_code, second.status_code) == (200, 200)


def test_a_certificate_without_its_key_keeps_the_last_good_pair(
    tmp_path: Path, ca: trustme.CA, clock: Clock
) -> None:
    paths = write_certificate(tmp_path, ca)
    certificate, key = paths["tls_cert"], paths["tls_key"]
    tls = Tls(certificate, key, clock=clock)
    before = tls.current()
    other = ca.issue_cert("127.0.0.1")
    certificate.write_bytes(other.cert_chain_pems[0].bytes())
    clock.now += 1
    assert tls.current() is before
    key.write_bytes(other.private_key_pem.bytes())
    clock.now += 1
    assert tls.current().key == other.private_key_pem.bytes()


@pytest.mark.parametrize(
    ("broken", "words"),
    [("tls_cert", "not a PEM"), ("tls_key", "not a PEM"), ("tls_client_ca", "tls_client_ca")],
)
def test_a_broken_file_stops_the_start_and_is_named(
    tmp_path: Path, ca: trustme.CA, make_settings: Any, broken: str, words: str
) -> None:
    paths = write_certificate(tmp_path, ca) | {"tls_client_ca": tmp_path / "ca.crt"}
    ca.cert_pem.write_to_path(paths["tls_client_ca"])
    paths[broken].write_text("nothing\n")
    with pytest.raises(ValueError, match=words) as caught:
        Server(make_settings(**paths))
    assert str(paths[broken]) in str(caught.value)


def test_incomplete_settings_are_errors() -> None:
    for given, words in (
        ({"tls_cert": "a"}, "tls_cert is set without tls_key"),
        ({"tls_key": "a"}, "tls_key is set without tls_cert"),
        ({"tls_client_ca": "a"}, "tls_client_ca is set without"),
    ):
        with pytest.raises(ValidationError, match=words):
            Settings.model_validate(given)


def test_an_encrypted_key_is_refused_without_a_prompt(
    tmp_path: Path, ca: trustme.CA, make_settings: Any
) -> None:
    paths = write_certificate(tmp_path, ca)
    key = load_pem_private_key(paths["tls_key"].read_bytes(), None)
    encrypted = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")
    )
    paths["tls_key"].write_bytes(encrypted)
    with pytest.raises(ValueError, match="encrypted"):
        Server(make_settings(**paths))
