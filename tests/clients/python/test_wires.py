"""What the client reads of errors and addresses, against the packages that define them."""

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ErrorKind, InvalidRequest, Overloaded, Unavailable
from service.grpc.errors import CODE, error_metadata
from service.grpc.server import MIN_PING_INTERVAL_MS
from service.rest.errors import STATUS
from tipserve_client import errors
from tipserve_client.connection import DEFAULT_TIMEOUT_S, Tls, read_target
from tipserve_client.grpc_wire import CHANNEL_OPTIONS, StatusDetails, read_error


@given(
    code=st.text(min_size=1), param=st.none() | st.text(min_size=1), retry_ms=st.integers(0, 10**7)
)
def test_details_of_a_status_are_read_as_they_were_written(
    code: str, param: str | None, retry_ms: int
) -> None:
    error = Overloaded("full", code=code, param=param, retry_after_s=retry_ms / 1000)
    metadata = dict(error_metadata(error))
    details = StatusDetails.read(bytes(metadata["grpc-status-details-bin"]))  # type: ignore[arg-type]
    assert (details.reason, details.field) == (code, param or "")
    assert details.retry_after_s == pytest.approx(retry_ms / 1000, abs=1e-3)


@given(st.binary(max_size=60))
def test_details_that_are_none_cost_nothing(raw: bytes) -> None:
    StatusDetails.read(raw)


def test_each_kind_of_error_is_the_same_over_both_protocols() -> None:
    same = {ErrorKind.TOO_LARGE}  # over gRPC it is told by its code
    for kind in ErrorKind:
        over_http = errors.BY_STATUS.get(STATUS[kind], errors.InternalError)
        over_grpc = errors.BY_CODE.get(CODE[kind].value[0], errors.InternalError)
        assert kind in same or over_http is over_grpc, kind


def test_only_what_may_fare_better_is_tried_again() -> None:
    found = {}
    for error in (
        Overloaded("full", retry_after_s=1),
        Unavailable("draining", retry_after_s=2),
        InvalidRequest("no", code="too_many_items"),
        InvalidRequest("no", param="images[2]"),
    ):
        read = read_error(CODE[error.kind].value[0], error.message, dict(error_metadata(error)))
        found[type(read).__name__, read.index] = read.is_retryable
    assert found == {
        ("Overloaded", None): True,
        ("Unavailable", None): True,
        ("RequestTooLarge", None): False,
        ("InvalidRequest", 2): False,
    }
    too_long = read_error(8, "Received message larger than max", {})
    assert isinstance(too_long, errors.RequestTooLarge)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:8000", ("http", "host:8000", False)),
        ("https://host/tips/", ("http", "host:443", True)),
        ("grpc://host", ("grpc", "host:8001", False)),
        ("grpcs://[::1]:9", ("grpc", "[::1]:9", True)),
    ],
)
def test_a_url_says_where_and_how(url: str, expected: tuple[str, str, bool]) -> None:
    target = read_target(url)
    assert (target.protocol, target.address, target.is_secure) == expected


@pytest.mark.parametrize(
    "url", ["host:8000", "ftp://host", "grpc://host/path", "http://key@host", "http://"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"://|give host"):
        read_target(url)


def test_files_for_tls_need_tls() -> None:
    with pytest.raises(ValueError, match="is not encrypted"):
        read_target("http://host", tls=Tls())
    with pytest.raises(ValueError, match="both cert and key"):
        read_target("https://host", tls=Tls(cert="a.pem"))


@pytest.mark.parametrize("key", ["a-key-of-a-file\n", "schlüssel", "two\tparts"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        read_target("http://host", api_key=key)
    assert key.strip() not in str(caught.value)
    assert "a-good-key" not in repr(read_target("http://host", api_key="a-good-key"))


def test_what_grpc_itself_says_has_the_codes_that_http_has() -> None:
    codes = {code: read_error(code, "", {}).code for code in (1, 4, 8, 14)}
    assert codes == {
        1: "grpc_1",
        4: "deadline_exceeded",
        8: "request_too_large",
        14: "unreachable",
    }


def test_pings_come_no_more_often_than_the_server_allows() -> None:
    options: dict[str, Any] = dict(CHANNEL_OPTIONS)
    assert options["grpc.keepalive_time_ms"] >= 2 * MIN_PING_INTERVAL_MS
    longest_ms = options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"]
    assert longest_ms < 1000 * DEFAULT_TIMEOUT_S


def test_errors_survive_a_pickle() -> None:
    error = errors.Overloaded(
        "full", code="queue_full", param="images[3]", request_id="id-1", retry_after_s=2.0
    )
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again), again.index) == ("full", vars(error), 3)
