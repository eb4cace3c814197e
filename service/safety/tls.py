"""TLS for both protocols from PEM files that may be renewed while the server runs.

New connections use the newest certificate and client authorities; open connections keep theirs. If
new files do not fit together, the last good ones stay in use.
"""

import logging
import os
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Final

from service.call import Clock
from service.monitoring.metrics import Metrics

FIRST_PEM: Final = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# DER tags.
VERSION, UTC_TIME, GENERALIZED_TIME = 0xA0, 0x17, 0x18

INTERVAL_S: Final = 1.0
# Identity and times of a file; None if it cannot be reached.
Signature = tuple[int, int, int, int, int] | None
logger = logging.getLogger(__name__)


class FileWatch:
    """Reports whether files have changed, at most once per interval. Thread-safe.

    Kubernetes renews a mounted Secret by replacing a symbolic link; links are followed.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        interval_s: float = INTERVAL_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self._paths = tuple(paths)
        self._interval_s = interval_s
        self._clock = clock
        self._lock = Lock()
        self._seen = self._signatures()
        self._next = clock() + interval_s

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
            self._next = now + self._interval_s
            signatures = self._signatures()
            changed = signatures != self._seen
            self._seen = signatures
            return changed

    def _signatures(self) -> tuple[Signature, ...]:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> Signature:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


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
    """Contents of the files at one moment, which fit together.

    Attributes:
        certificate: PEM.
        key: PEM.
        client_ca: PEM, or None.
        expires_at: Expiry of the server's certificate, in seconds since the epoch.
        context: The same for Python's TLS.
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
            ValueError: They do not fit together, or one of them is invalid.
            OSError: One of them cannot be read.
        """
        self._files = files
        self._watch = FileWatch(files.paths(), clock=clock)
        self._material = read_material(files)
        metrics.watch_certificate(lambda: self.current().expires_at)

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


def expiry_of(pem: bytes) -> float:
    """Read the expiry of the first certificate of a PEM file, in seconds since the epoch.

    Raises:
        ValueError: There is no certificate, or it is malformed.

    Source: RFC 5280, section 4.1: validity follows version, serial number, signature algorithm and
    issuer. Years of two digits below 50 belong to this century.
    """
    # Read here because `ssl` decodes a certificate only after a handshake that trusted it, and
    # `cryptography` would add 16 MB to the container image, which is held below 450 MB.
    try:
        (text,) = FIRST_PEM.findall(pem.decode("ascii", "replace"))[:1]
        _, certificate, _ = _der_value(ssl.PEM_cert_to_DER_cert(text))
        _, fields, _ = _der_value(certificate)
        tag, _, rest = _der_value(fields)
        if tag != VERSION:
            rest = fields
        for _ in ("serial number", "signature algorithm", "issuer"):
            _, _, rest = _der_value(rest)
        _, validity, _ = _der_value(rest)
        _, _, not_after = _der_value(validity)
        tag, moment, _ = _der_value(not_after)
        return _timestamp(tag, moment.decode("ascii"))
    except (ValueError, IndexError) as error:
        raise ValueError("its first certificate is missing or malformed") from error


def _der_value(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first DER value, and what follows it."""
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise ValueError("the value is cut off")
    return data[0], data[start : start + length], data[start + length :]


def _timestamp(tag: int, text: str) -> float:
    if tag == UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    elif tag != GENERALIZED_TIME:
        raise ValueError("not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
