"""What statuses of a server mean, over gRPC."""

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from service.engines.engine import EngineError, ImageRefused
from service.engines.over_grpc import failure
from service.engines.remote import TryAgain


class Refusal(grpc.RpcError):
    """A status with details, as the server sends them."""

    def __init__(self, code: grpc.StatusCode, *, reason: str = "", field: str = "", ms: str = ""):
        super().__init__()
        self._code = code
        details = status_pb2.Status(details=list(_packed(reason, field)))
        self._metadata = [("grpc-status-details-bin", details.SerializeToString())]
        if ms:
            self._metadata.append(("grpc-retry-pushback-ms", ms.encode()))

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "What the server says."

    def trailing_metadata(self) -> tuple[Any, ...]:
        return tuple((n, v.decode() if n.endswith("-ms") else v) for n, v in self._metadata)


def _packed(reason: str, field: str) -> list[any_pb2.Any]:
    messages = []
    if reason:
        messages.append(error_details_pb2.ErrorInfo(reason=reason))
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field)
        messages.append(error_details_pb2.BadRequest(field_violations=[violation]))
    packed = [any_pb2.Any() for _ in messages]
    for one, message in zip(packed, messages, strict=True):
        one.Pack(message)
    return packed


def test_a_full_queue_says_when_to_come_back() -> None:
    full = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="queue_full", ms="1500")
    error = failure("x:1", full)
    assert isinstance(error, TryAgain)
    assert (str(error), error.after_s) == ("What the server says.", 1.5)


def test_a_server_that_is_not_there_is_said_in_our_words() -> None:
    error = failure("x:1", Refusal(grpc.StatusCode.UNAVAILABLE))
    assert isinstance(error, TryAgain)
    assert str(error) == "x:1 cannot be reached; see that it is up."


def test_a_message_too_large_for_grpc_is_the_images_fault() -> None:
    error = failure("x:1", Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED))
    assert isinstance(error, ImageRefused)


@pytest.mark.parametrize(
    ("code", "field", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "images[0]", ImageRefused),
        (grpc.StatusCode.INVALID_ARGUMENT, "resolution", EngineError),
        (grpc.StatusCode.UNAUTHENTICATED, "", EngineError),
        (grpc.StatusCode.INTERNAL, "", EngineError),
    ],
)
def test_a_refusal_is_the_images_or_everybodys(
    code: grpc.StatusCode, field: str, kind: type[Exception]
) -> None:
    assert type(failure("x:1", Refusal(code, reason="r", field=field))) is kind
