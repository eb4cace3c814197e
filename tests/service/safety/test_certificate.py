"""The end of a certificate, against the library that reads all of X.509."""

from datetime import UTC, datetime

import pytest
import trustme
from cryptography import x509

from service.safety.tls import expiry_of


def pem(expires: datetime, name: str = "server.test") -> bytes:
    chain = trustme.CA().issue_cert(name, not_after=expires).cert_chain_pems
    return b"".join(part.bytes() for part in chain)


@pytest.mark.parametrize("year", [2038, 2049, 2050, 2999])
@pytest.mark.parametrize("name", ["a.test", "b" * 60 + ".test"])
def test_the_end_is_read_from_either_form_of_time(year: int, name: str) -> None:
    expires = datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC)
    encoded = b"a remark\n" + pem(expires, name)
    assert expiry_of(encoded) == expires.timestamp()
    read = x509.load_pem_x509_certificates(encoded)[0]
    assert expiry_of(encoded) == read.not_valid_after_utc.timestamp()


def test_the_first_of_a_chain_counts() -> None:
    first, second = (pem(datetime(year, 1, 1, tzinfo=UTC)) for year in (2031, 2032))
    assert expiry_of(first + second) == datetime(2031, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("encoded", [b"", b"\xff", b"-----BEGIN PRIVATE KEY-----"])
def test_what_is_no_certificate_is_said(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="no PEM certificate"):
        expiry_of(encoded)


@pytest.mark.parametrize("text", ["AAAA", "MA==", "MAMwAQA=", "MIIBIjANBgkqhkiG9w0=", "####"])
def test_a_malformed_one_is_said(text: str) -> None:
    encoded = f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
    with pytest.raises(ValueError, match="malformed"):
        expiry_of(encoded.encode())
