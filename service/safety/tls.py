"""TLS for both protocols from PEM files that may be renewed while the server runs.

New connections use the newest certificate and client authorities; open connections keep theirs. If
new files do not fit together, the last good ones stay in use.
"""

import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.call import Clock
from service.safety.reloading import Reloaded


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """Contents of the files at one moment, which fit together: PEM, and a context of `ssl`."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class Tls:
    """The newest good material, by `current`. Thread-safe.

    Args:
        certificate: File of the server's certificate, followed by the intermediate ones.
        key: File of its private key, not encrypted.
        client_ca: File of authorities that must have issued a client's certificate.
        clock: Decides when to look at the files again.

    Raises:
        ValueError: They do not fit together, or one of them is invalid.
        OSError: One of them cannot be read.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._paths = [path for path in (certificate, key, client_ca) if path is not None]
        material = Reloaded("the TLS certificate", self._paths, self._parse, clock=clock)
        self.current = material.current

    def http_context(self) -> ssl.SSLContext:
        """A context that gives every new connection the newest material."""
        context = self._context()

        def renew(connection: Any, name: str | None, asked: ssl.SSLContext) -> None:
            connection.context = self.current().context

        context.sni_callback = renew
        return context

    def _parse(self, contents: Sequence[bytes]) -> TlsMaterial:
        context = self._context()
        if list(contents) != [path.read_bytes() for path in self._paths]:
            raise ValueError("the files changed while they were read")
        certificate, key, client_ca = (*contents, None)[:3]
        assert certificate is not None
        assert key is not None
        return TlsMaterial(certificate=certificate, key=key, client_ca=client_ca, context=context)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A resumed session would not be checked against renewed client authorities.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        context.set_alpn_protocols(["http/1.1"])
        loaded = f"tls_cert {self._certificate}, tls_key {self._key}"
        try:
            context.load_cert_chain(self._certificate, self._key, password=_refuse_encrypted)
            if self._client_ca is not None:
                loaded = f"tls_client_ca {self._client_ca}"
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as error:
            raise ValueError(f"no PEM certificate, or not with its PEM key: {loaded}") from error
        return context


def _refuse_encrypted() -> str:
    raise ValueError("tls_key is encrypted; give the key without a passphrase")
