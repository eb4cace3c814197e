"""TLS in both directions, by files, over both protocols."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from service.server import Server
from tipserve_client import Retry, Tls, Unavailable

if TYPE_CHECKING:
    from tests.clients.python.conftest import Asking

Serving = Callable[..., AbstractAsyncContextManager[Server]]


async def test_both_sides_show_certificates(
    serving: Serving, encode_image: Callable[..., bytes], asking: "Asking", tmp_path: Path
) -> None:
    authority = trustme.CA()
    for name, certificate in {
        "server": authority.issue_cert("127.0.0.1"),
        "client": authority.issue_cert("client.example"),
    }.items():
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    files = {"tls_cert": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}
    tls = Tls(ca=ca, cert=tmp_path / "client.pem", key=tmp_path / "client.key")
    once = Retry(max_attempts=1)
    async with serving(**files, tls_client_ca=ca) as server:
        async with asking.client(server, is_secure=True, tls=tls) as client:
            assert len(await client.embed_images(encode_image())) == 1
        async with asking.client(server, is_secure=True, tls=Tls(ca=ca), retry=once) as client:
            with pytest.raises(Unavailable):
                await client.embed_images(encode_image(), timeout_s=10)
