"""The table from error kinds to gRPC status codes, and the details of a status."""

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no py.typed
from grpc import StatusCode

from service.errors import ErrorKind, ServiceError

CODE: dict[ErrorKind, StatusCode] = {
    ErrorKind.UNAUTHENTICATED: StatusCode.UNAUTHENTICATED,
    ErrorKind.FORBIDDEN: StatusCode.PERMISSION_DENIED,
    ErrorKind.INVALID: StatusCode.INVALID_ARGUMENT,
    ErrorKind.UNSUPPORTED_MEDIA: StatusCode.INVALID_ARGUMENT,
    ErrorKind.NOT_ACCEPTABLE: StatusCode.INVALID_ARGUMENT,
    ErrorKind.TOO_LARGE: StatusCode.INVALID_ARGUMENT,
    ErrorKind.NOT_FOUND: StatusCode.NOT_FOUND,
    ErrorKind.NOT_SUPPORTED: StatusCode.UNIMPLEMENTED,
    ErrorKind.OVERLOADED: StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNAVAILABLE: StatusCode.UNAVAILABLE,
    ErrorKind.DEADLINE: StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.INTERNAL: StatusCode.INTERNAL,
}
DOMAIN = "tipserve"

Metadata = tuple[tuple[str, str | bytes], ...]


def error_metadata(error: ServiceError) -> Metadata:
    """Trailing metadata of an error: `google.rpc` details, and the delay before a retry."""
    message = error.message
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN)]
    if error.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.param, description=message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    metadata: Metadata = ()
    if error.retry_after_s is not None:
        retry_ms = int(error.retry_after_s * 1000)
        delay = Duration()
        delay.FromMilliseconds(retry_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        metadata = (("grpc-retry-pushback-ms", str(retry_ms)),)
    status = status_pb2.Status(code=CODE[error.kind].value[0], message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return (*metadata, ("grpc-status-details-bin", status.SerializeToString()))
