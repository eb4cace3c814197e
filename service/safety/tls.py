"""TLS for both protocols from PEM files, which may be renewed while the server runs.

New connections get the newest certificate, and are checked against the newest client authorities;
those that are open stay. Files that do not fit together leave the last good ones in force.
"""

import logging
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.call import Clock
from service.monitoring.observability import Metrics
from service.safety.certificate import expiry_of
from service.safety.file_watch import FileWatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where the PEM files are.

    Attributes:
        certificate: The server's, with the intermediate ones behind it.
        key: Its private key, not encrypted.
        client_ca: Authorities of which a client must show a certificate; None asks for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def paths(self) -> list[Path]:
        """All of them."""
        return [path for path in (self.certificate, self.key, self.client_ca) if path is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """What was in the files at one moment, and fits together.

    Attributes:
        certificate: PEM.
        key: PEM.
        client_ca: PEM, or None.
        expires_at: End of the server's certificate, seconds since the epoch.
        context: The same, for connections of this process's own TLS.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires_at: float
    context: ssl.SSLContext


class Tls:
    """The newest good material. Thread-safe."""

    def __init__(self, files: TlsFiles, metrics: Metrics, *, clock: Clock = time.monotonic) -> None:
        """Read the files.

        Raises:
            ValueError: They do not fit together, or one of them is not what it should be.
            OSError: One of them cannot be read.
        """
        self._files = files
        self._watch = FileWatch(files.paths(), clock=clock)
        self._material = read_material(files)
        metrics.watch_certificate(lambda: self.current().expires_at)

    def current(self) -> TlsMaterial:
        """What a new connection is to use."""
        if self._watch.has_changed():
            try:
                self._material = read_material(self._files)
                logger.info("read the TLS certificate again")
            except (OSError, ValueError) as error:
                logger.error("the TLS certificate was not renewed: %s", error)
        return self._material

    def http_context(self) -> ssl.SSLContext:
        """A context that hands every new connection over to the newest one."""
        context = _context(self._files)

        def renew(connection: Any, name: str | None, asked: ssl.SSLContext) -> None:
            connection.context = self.current().context

        context.sni_callback = renew
        return context


def read_material(files: TlsFiles) -> TlsMaterial:
    """Read all files, and see that certificate and key belong together.

    Raises:
        ValueError: They do not, or one of them is not what it should be.
        OSError: One of them cannot be read.
    """
    before = [path.read_bytes() for path in files.paths()]
    context = _context(files)
    if before != [path.read_bytes() for path in files.paths()]:
        raise ValueError("the files changed while they were read")
    certificate, key, *others = before
    try:
        expires_at = expiry_of(certificate)
    except ValueError as error:
        raise ValueError(f"tls_cert {files.certificate}: {error}") from error
    return TlsMaterial(
        certificate=certificate,
        key=key,
        client_ca=others[0] if others else None,
        expires_at=expires_at,
        context=context,
    )


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A resumed session would not be checked against authorities that were renewed since.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_encrypted)
    except ssl.SSLError as error:
        raise ValueError(
            f"tls_cert {files.certificate} and tls_key {files.key} are not a PEM certificate and "
            "its PEM private key"
        ) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"tls_client_ca {files.client_ca} holds no PEM certificate") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _refuse_encrypted() -> str:
    raise ValueError("tls_key is encrypted; give the key without a passphrase")
