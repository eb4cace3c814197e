"""TLS from files that may change: certificates, keys and client authorities."""

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

# Tells when files have changed, cheaply enough to be asked for every request.
#
# Kubernetes renews a mounted Secret by turning a symbolic link; links are followed, so that counts.

INTERVAL_S: Final = 1.0
# What a file is known by; None where it cannot be reached.
Signature = tuple[int, int, int, int, int] | None


class FileWatch:
    """Looks at most once in an interval. Thread-safe."""

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
        """Whether any file is another than before; true once for each change.

        Make the watch before the files are first read: a change in between is then seen later.
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


# Reads from an X.509 certificate when it ends: the one fact that the standard library hides.
#
# `ssl` decodes a certificate only after a handshake that trusted it, and the library that reads all
# of X.509 is 16 MB in the image. What is read here is our own, configured certificate.

FIRST_PEM: Final = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
SEQUENCE, VERSION, UTC_TIME, GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def expiry_of(pem: bytes) -> float:
    """When the first certificate of a PEM file ends.

    Returns:
        Seconds since the epoch.

    Raises:
        ValueError: There is no certificate, or it is malformed.

    Source: RFC 5280, section 4.1: validity is the field after version, serial number, signature
    algorithm and issuer; times end in Z, and years of two digits below 50 belong to this century.
    """
    found = FIRST_PEM.search(pem.decode("ascii", "replace"))
    if found is None:
        raise ValueError("there is no PEM certificate in it")
    try:
        certificate = _Reader(ssl.PEM_cert_to_DER_cert(found.group()))
        fields = _Reader(_Reader(certificate.value(SEQUENCE)).value(SEQUENCE))
        if fields.next_tag() == VERSION:
            fields.value(VERSION)
        for _ in ("serial number", "signature algorithm", "issuer"):
            fields.value()
        validity = _Reader(fields.value(SEQUENCE))
        validity.value()
        return _timestamp(validity.next_tag(), validity.value().decode("ascii"))
    except (ValueError, IndexError) as error:
        raise ValueError("its first certificate is malformed") from error


class _Reader:
    """Takes one DER value after another from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def next_tag(self) -> int:
        return self._data[0]

    def value(self, tag: int | None = None) -> bytes:
        """The next value's bytes; of this tag, where one is given."""
        if tag is not None and self._data[0] != tag:
            raise ValueError("another type was expected")
        length, start = self._data[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(self._data[2:start], "big")
        if start + length > len(self._data):
            raise ValueError("the value is cut off")
        value, self._data = self._data[start : start + length], self._data[start + length :]
        return value


def _timestamp(tag: int, text: str) -> float:
    if tag == UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    elif tag != GENERALIZED_TIME:
        raise ValueError("this is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


# TLS for both protocols from PEM files, which may be renewed while the server runs.
#
# New connections get the newest certificate, and are checked against the newest client authorities;
# those that are open stay. Files that do not fit together leave the last good ones in force.

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
