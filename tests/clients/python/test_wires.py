"""Wire formats: errors and tensors, compared with the packages that define them."""

import pickle
from typing import Any

import pytest

from service.errors import InvalidRequest, Overloaded, RequestTooLarge, Unavailable
from service.grpc.errors import CODE, error_metadata
from service.rest.errors import STATUS
from tipserve_client import errors
from tipserve_client.grpc_wire import read_error


def test_each_kind_of_error_is_the_same_over_both_protocols() -> None:
    # gRPC has no status for a request that is too large; its error code tells.
    for kind in set(CODE) - {RequestTooLarge}:
        over_http = errors.BY_STATUS.get(STATUS[kind], errors.InternalError)
        assert over_http is errors.BY_CODE.get(CODE[kind].value[0], errors.InternalError), kind


@pytest.mark.parametrize(
    ("error", "kind", "index", "is_retryable"),
    [
        (Overloaded("full", code="a", retry_after_s=1.5), errors.Overloaded, None, True),
        (Unavailable("draining", code="a", retry_after_s=2), errors.Unavailable, None, True),
        (InvalidRequest("no", code="too_many_items"), errors.RequestTooLarge, None, False),
        (InvalidRequest("no", code="a", param="images[2]"), errors.InvalidRequest, 2, False),
    ],
)
def test_the_details_of_an_error_arrive(
    error: Any, kind: type, index: int | None, is_retryable: bool
) -> None:
    metadata = dict(error_metadata(error))
    metadata.pop("grpc-retry-pushback-ms", None)  # the details say it as well
    read = read_error(CODE[type(error)].value[0], error.message, metadata)
    assert type(read) is kind
    assert (read.index, read.is_retryable) == (index, is_retryable)
    assert (read.code, read.param, read.message) == (error.code, error.param, error.message)
    assert read.retry_after_s == error.retry_after_s


def test_errors_of_grpc_itself_have_the_codes_of_http() -> None:
    metadata = {"grpc-status-details-bin": b"of another server"}
    codes = {code: read_error(code, "", metadata).code for code in (1, 4, 8, 14)}
    assert codes == {1: "grpc_1", 4: "deadline_exceeded", 8: "request_too_large", 14: "unreachable"}
    assert isinstance(read_error(8, "message larger than max", {}), errors.RequestTooLarge)


def test_errors_survive_a_pickle() -> None:
    error = errors.Overloaded(
        "full", code="queue_full", param="images[3]", request_id="id-1", retry_after_s=2.0
    )
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again), again.index) == ("full", vars(error), 3)
