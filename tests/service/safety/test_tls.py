"""TLS files are checked at the start, and changed ones are used without a restart."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from service.server import Server
from tests.service.conftest import Serving

LIMIT_S = 20.0


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """The authority of the servers."""
    return trustme.CA()


@pytest.fixture
def paths(tmp_path: Path, ca: trustme.CA) -> dict[str, Path]:
    """The files of a certificate for 127.0.0.1 and of an authority of clients, by setting."""
    made = {name: tmp_path / name for name in ("tls_cert", "tls_key", "tls_client_ca")}
    write(made, ca)
    ca.cert_pem.write_to_path(made["tls_client_ca"])
    return made


def write(paths: dict[str, Path], ca: trustme.CA) -> None:
    leaf = ca.issue_cert("127.0.0.1")
    paths["tls_key"].write_bytes(leaf.private_key_pem.bytes())
    paths["tls_cert"].write_bytes(leaf.cert_chain_pems[0].bytes())


async def test_an_open_connection_outlives_the_renewal(
    serving: Serving, paths: dict[str, Path], ca: trustme.CA
) -> None:
    def trusting(authority: trustme.CA) -> httpx.AsyncClient:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return httpx.AsyncClient(verify=context, timeout=LIMIT_S)

    del paths["tls_client_ca"]
    new_ca = trustme.CA()
    async with serving(**paths) as server, trusting(ca) as client:
        url = f"https://127.0.0.1:{server.ports['http']}/v1/models"
        assert (await client.get(url)).status_code == 200
        write(paths, new_ca)
        async with asyncio.timeout(LIMIT_S):
            is_renewed = False
            while not is_renewed:
                async with trusting(new_ca) as other:
                    try:
                        is_renewed = (await other.get(url)).status_code == 200
                    except httpx.TransportError:
                        await asyncio.sleep(0.1)
        assert (await client.get(url)).status_code == 200


def test_broken_files_stop_the_start_and_are_named(
    paths: dict[str, Path], make_settings: Any
) -> None:
    for name, path in paths.items():
        good = path.read_bytes()
        path.write_text("nothing\n")
        with pytest.raises(ValueError, match="PEM") as caught:
            Server(make_settings(**paths))
        assert name in str(caught.value)
        assert str(path) in str(caught.value)
        path.write_bytes(good)
    key = load_pem_private_key(paths["tls_key"].read_bytes(), None)
    encryption = BestAvailableEncryption(b"passphrase")
    paths["tls_key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    with pytest.raises(ValueError, match="encrypted"):
        Server(make_settings(**paths))
