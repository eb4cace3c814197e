"""Details of a status: the reason, the field, and the delay before a retry."""

from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from service.errors import InvalidRequest, Overloaded
from service.grpc.errors import error_metadata


def test_the_details_name_the_reason_and_the_field() -> None:
    error = InvalidRequest("texts[1] is blank.", code="blank_text", param="texts[1]")
    ((key, raw),) = error_metadata(error)
    assert key == "grpc-status-details-bin"
    status = status_pb2.Status.FromString(raw)
    assert (status.code, status.message) == (3, "texts[1] is blank.")
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.reason, info.domain) == ("blank_text", "tipserve")
    assert bad.field_violations[0].field == "texts[1]"


def test_overload_has_the_delay_before_a_retry() -> None:
    metadata = dict(error_metadata(Overloaded("full", retry_after_s=1.5)))
    assert metadata["grpc-retry-pushback-ms"] == "1500"
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
