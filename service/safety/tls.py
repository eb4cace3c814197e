"""TLS for both protocols from PEM files that may be renewed while the server runs.

New connections use the newest certificate and client authorities; open connections keep theirs. If
new files do not fit together, the last good ones stay in use.
"""

import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

from service.call import Clock

INTERVAL_S: Final = 1.0
logger = logging.getLogger(__name__)


class FileWatch:
    """Reports whether small files have changed, at most once a second. Thread-safe.

    Kubernetes renews a mounted Secret by replacing a symbolic link, so contents are compared.
    """

    def __init__(self, paths: Sequence[Path], *, clock: Clock = time.monotonic) -> None:
        self._paths = tuple(paths)
        self._clock = clock
        self._lock = Lock()
        self._seen = self._contents()
        self._next = clock() + INTERVAL_S

    def has_changed(self) -> bool:
        """Whether any file has changed; true once per change.

        Create the watch before the files are first read, so that no change is missed.
        """
        now = self._clock()
        if now < self._next:
            return False
        with self._lock:
            if now < self._next:
                return False
            self._next = now + INTERVAL_S
            before, self._seen = self._seen, self._contents()
            return before != self._seen

    def _contents(self) -> list[bytes | None]:
        return [_read(path) for path in self._paths]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Paths of the PEM files.

    Attributes:
        certificate: The server's certificate, followed by the intermediate ones.
        key: Its private key, not encrypted.
        client_ca: Authorities that must have issued a client's certificate; None requires none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def paths(self) -> list[Path]:
        """All of them."""
        return [path for path in (self.certificate, self.key, self.client_ca) if path is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """Contents of the files at one moment, which fit together: PEM, and a context of `ssl`."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class Tls:
    """The newest good material. Thread-safe."""

    def __init__(self, files: TlsFiles, *, clock: Clock = time.monotonic) -> None:
        """Read the files.

        Raises:
            ValueError: They do not fit together, or one of them is invalid.
            OSError: One of them cannot be read.
        """
        self._files = files
        self._watch = FileWatch(files.paths(), clock=clock)
        self._material = read_material(files)

    def current(self) -> TlsMaterial:
        """The material for a new connection."""
        if self._watch.has_changed():
            try:
                self._material = read_material(self._files)
                logger.info("read the TLS certificate again")
            except (OSError, ValueError) as error:
                logger.error("the TLS certificate was not renewed: %s", error)
        return self._material

    def http_context(self) -> ssl.SSLContext:
        """A context that gives every new connection the newest material."""
        context = _context(self._files)

        def renew(connection: Any, name: str | None, asked: ssl.SSLContext) -> None:
            connection.context = self.current().context

        context.sni_callback = renew
        return context


def read_material(files: TlsFiles) -> TlsMaterial:
    """Read all files and check that certificate and key belong together.

    Raises:
        ValueError: They do not, or one of them is invalid.
        OSError: One of them cannot be read.
    """
    before = [path.read_bytes() for path in files.paths()]
    context = _context(files)
    if before != [path.read_bytes() for path in files.paths()]:
        raise ValueError("the files changed while they were read")
    certificate, key, *others = before
    client_ca = others[0] if others else None
    return TlsMaterial(certificate=certificate, key=key, client_ca=client_ca, context=context)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A resumed session would not be checked against renewed client authorities.
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
