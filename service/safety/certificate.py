"""Reads from an X.509 certificate when it ends: the one fact that the standard library hides.

`ssl` decodes a certificate only after a handshake that trusted it, and the library that reads all
of X.509 is 16 MB in the image. What is read here is our own, configured certificate.
"""

import re
import ssl
from datetime import UTC, datetime
from typing import Final

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
