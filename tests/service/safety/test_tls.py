"""TLS files are checked at the start."""

from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from service.server import Server


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    """The files of a certificate for 127.0.0.1 and of an authority of clients, by setting."""
    ca, made = (
        trustme.CA(),
        {f"tls_{name}": tmp_path / name for name in ("cert", "key", "client_ca")},
    )
    leaf = ca.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(made["tls_key"])
    leaf.cert_chain_pems[0].write_to_path(made["tls_cert"])
    ca.cert_pem.write_to_path(made["tls_client_ca"])
    return made


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
