"""Health and reflection are not our code, but a malformed message is the caller's error there too.

The framework would send the text of what the deserializer raises, and log a traceback for it.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from service.errors import InvalidRequest
from service.grpc.errors import CODE, error_metadata
from service.grpc.message import malformed_message

MALFORMED: Final = object()


def with_checked_messages(handler: Any) -> Any:
    """A handler of one of the open services that refuses what is no message of its RPC."""

    def deserialize(raw: bytes) -> Any:
        try:
            return handler.request_deserializer(raw)
        except DecodeError:
            return MALFORMED

    serializers = {
        "request_deserializer": deserialize,
        "response_serializer": handler.response_serializer,
    }

    async def answer_one(message: Any, context: Any) -> Any:
        await _check(message, context)
        # The method itself writes where it answers with a stream.
        return await (handler.unary_unary or handler.unary_stream)(message, context)

    async def answer_all(messages: Any, context: Any) -> AsyncIterator[Any]:
        async for answer in handler.stream_stream(_checked(messages, context), context):
            yield answer

    if handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler(answer_all, **serializers)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(answer_one, **serializers)
    return grpc.unary_unary_rpc_method_handler(answer_one, **serializers)


async def _checked(messages: Any, context: Any) -> AsyncIterator[Any]:
    async for message in messages:
        await _check(message, context)
        yield message


async def _check(message: Any, context: Any) -> None:
    if message is MALFORMED:
        error: InvalidRequest = malformed_message()
        metadata = error_metadata(error)
        await context.abort(CODE[error.kind], error.message, trailing_metadata=metadata)
