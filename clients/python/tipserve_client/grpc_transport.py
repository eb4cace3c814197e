"""Sends requests over gRPC, on one connection that is kept."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from tipserve_client.answers import ModelInfo
from tipserve_client.asks import Ask
from tipserve_client.errors import TipserveError, Unavailable
from tipserve_client.generated import encoder_service_pb2
from tipserve_client.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tipserve_client.grpc_wire import RPCS, read_answer, read_error, read_model, write_ask
from tipserve_client.target import Target

Metadata = Sequence[tuple[str, str]]
# A connection that is gone without a word, as where a machine fails, is noticed after twice this
# time at the latest, within the default deadline; the service allows pings twice as often.
PING_MS: Final = 20_000
OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A client's connection is its own, and it tries again itself.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    # Where a name has several addresses, each is a replica, and requests go to them in turn. One
    # that goes away has the name asked for again, at once: another may stand in for it already.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", PING_MS),
    # Without it the core waits for a minute for the answer to a ping, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", PING_MS),
    ("grpc.http2.max_pings_without_data", 0),
)
# grpc.aio says so, with the code INTERNAL, where it could not send because the server had ended the
# RPC: the server's own status is lost, and is had by asking again.
LOST_STATUS = "Internal error from Core"
# In gRPC's own words where a stream was reset instead of ended: a proxy does so when the server
# behind it has died.
RESET = "RST_STREAM"


class GrpcTransport:
    """Thread-safe; of a synchronous client."""

    def __init__(self, target: Target) -> None:
        if target.is_secure:
            self._channel = grpc.secure_channel(target.address, _credentials(target), OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target.address, OPTIONS)
        self._stub: Any = EncoderServiceStub(self._channel)
        self._metadata = _metadata(target)

    def send(self, ask: Ask, timeout_s: float) -> Any:
        """The answer to a request.

        Raises:
            TipserveError: There is none.
        """
        rpc = getattr(self._stub, RPCS[ask.method][0])
        try:
            answer, call = rpc.with_call(write_ask(ask), timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise rpc_error(error) from None
        return read_answer(ask, answer, _request_id(call.trailing_metadata()))

    def models(self, timeout_s: float) -> list[ModelInfo]:
        """What is served.

        Raises:
            TipserveError: There is no answer.
        """
        asked = encoder_service_pb2.ListModelsRequest()
        try:
            answer = self._stub.ListModels(asked, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise rpc_error(error) from None
        return [read_model(model) for model in answer.models]

    def stream(self, requests: Iterator[Any], timeout_s: float | None) -> Any:
        """The RPC of a stream: an iterator of answers that can be cancelled."""
        return self._stub.Stream(requests, timeout=timeout_s, metadata=self._metadata)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class AsyncGrpcTransport:
    """Of an asynchronous client; belongs to one event loop."""

    def __init__(self, target: Target) -> None:
        if target.is_secure:
            self._channel = grpc.aio.secure_channel(target.address, _credentials(target), OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target.address, OPTIONS)
        self._stub: Any = EncoderServiceStub(self._channel)
        self._metadata = _metadata(target)

    async def send(self, ask: Ask, timeout_s: float) -> Any:
        """The answer to a request.

        Raises:
            TipserveError: There is none.
        """
        rpc = getattr(self._stub, RPCS[ask.method][0])
        try:
            call = rpc(write_ask(ask), timeout=timeout_s, metadata=self._metadata)
            answer = await call
            metadata = await call.trailing_metadata()
        except grpc.RpcError as error:
            raise rpc_error(error) from None
        return read_answer(ask, answer, _request_id(metadata))

    async def models(self, timeout_s: float) -> list[ModelInfo]:
        """What is served.

        Raises:
            TipserveError: There is no answer.
        """
        asked = encoder_service_pb2.ListModelsRequest()
        try:
            answer = await self._stub.ListModels(asked, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise rpc_error(error) from None
        return [read_model(model) for model in answer.models]

    def stream(self, requests: AsyncIterator[Any], timeout_s: float | None) -> Any:
        """The RPC of a stream: an iterator of answers that can be cancelled."""
        return self._stub.Stream(requests, timeout=timeout_s, metadata=self._metadata)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


def rpc_error(error: Any) -> TipserveError:
    """What the end of an RPC says, of either kind of client."""
    details = error.details() or ""
    if details == LOST_STATUS:
        return Unavailable("The stream broke while it was written.", code="stream_broken")
    if RESET in details:
        return Unavailable("The stream broke before it was answered.", code="stream_broken")
    metadata = {**dict(error.initial_metadata() or ()), **dict(error.trailing_metadata() or ())}
    return read_error(error.code().value[0], details, metadata)


def _request_id(metadata: Any) -> str | None:
    """Under which the server's log has an RPC, from what came at its end."""
    found: str | None = dict(metadata or ()).get("x-request-id")
    return found


def _metadata(target: Target) -> Metadata:
    return tuple(target.headers.items())


def _credentials(target: Target) -> grpc.ChannelCredentials:
    ca, cert, key = (
        None if path is None else Path(path).read_bytes()
        for path in (target.tls.ca, target.tls.cert, target.tls.key)
    )
    return grpc.ssl_channel_credentials(ca, key, cert)
