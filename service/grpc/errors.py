"""The table from error kinds to gRPC status codes, and the details of a status."""

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no py.typed
from grpc import StatusCode

from service import errors
from service.errors import ServiceError

CODE: dict[type[ServiceError], StatusCode] = {
    errors.Unauthenticated: StatusCode.UNAUTHENTICATED,
    errors.Forbidden: StatusCode.PERMISSION_DENIED,
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedMedia: StatusCode.INVALID_ARGUMENT,
    errors.NotAcceptable: StatusCode.INVALID_ARGUMENT,
    errors.RequestTooLarge: StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: StatusCode.NOT_FOUND,
    errors.NotSupported: StatusCode.UNIMPLEMENTED,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.InternalError: StatusCode.INTERNAL,
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
    status = status_pb2.Status(code=CODE[type(error)].value[0], message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return (*metadata, ("grpc-status-details-bin", status.SerializeToString()))
