"""gRPC on a thread and an event loop of its own, so that busy REST cannot starve it."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.api_keys import ApiKeys
from service.data_plane import DataPlane
from service.grpc.generated import encoder_service_pb2
from service.grpc.generated.encoder_service_pb2_grpc import add_EncoderServiceServicer_to_server
from service.grpc.guard import GuardInterceptor
from service.grpc.interceptors import CallInterceptor
from service.grpc.servicer import EncoderServicer
from service.grpc.tls import server_credentials
from service.loop_lag import watching_lag
from service.telemetry import Telemetry
from service.tls import Tls

SERVICE_NAME = encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name
START_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcOptions:
    """Where to listen, and what one RPC may take.

    Attributes:
        host: Address to listen on.
        port: 0 takes a free one.
        timeout_s: Deadline of an RPC that brings none, and the longest that one may bring.
        tls: None serves in the clear.
    """

    host: str
    port: int
    timeout_s: float
    tls: Tls | None = None


class GrpcServer:
    """Starts, reports health and stops; every method may be called from any other thread."""

    def __init__(
        self, plane: DataPlane, telemetry: Telemetry, keys: ApiKeys, options: GrpcOptions
    ) -> None:
        self._plane = plane
        self._tls = options.tls
        self._observe_lag = telemetry.metrics.loop_lag.labels("grpc").observe
        # The first is the outermost.
        self._interceptors = [
            GuardInterceptor(keys, telemetry),
            CallInterceptor(telemetry, timeout_s=options.timeout_s),
        ]
        host = f"[{options.host}]" if ":" in options.host else options.host
        self._address = f"{host}:{options.port}"
        self._listening: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, name="grpc", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._grace_s: asyncio.Future[float]
        self._server: Any
        self._health: Any

    def start(self) -> int:
        """Listen.

        Returns:
            The port, chosen freely where 0 was asked for.

        Raises:
            RuntimeError: The address cannot be taken.
        """
        self._thread.start()
        return self._listening.result(START_LIMIT_S)

    def set_serving(self, models: Sequence[str]) -> None:
        """Tell health checks that requests are taken, as a whole and for each model."""
        self._call(self._set_health(health_pb2.HealthCheckResponse.SERVING, *models))

    def begin_drain(self) -> None:
        """Tell health checks that requests are no longer taken, once and for all."""
        self._call(self._health.enter_graceful_shutdown())

    def stop(self, grace_s: float) -> None:
        """Let running RPCs finish for so long, then end."""
        self._loop.call_soon_threadsafe(self._grace_s.set_result, grace_s)
        self._thread.join()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._listening.done():
                raise
            self._listening.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._grace_s = self._loop.create_future()
        self._server = grpc.aio.server(
            interceptors=self._interceptors,
            options=[
                # A port that another process has is an error, not a port to share.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._plane.limits.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                # Long-lived connections come back through the balancer, to new replicas too.
                ("grpc.max_connection_age_ms", 300_000),
                ("grpc.max_connection_age_grace_ms", 60_000),
            ],
        )
        add_EncoderServiceServicer_to_server(EncoderServicer(self._plane), self._server)
        self._health = health.aio.HealthServicer()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        if self._tls is None:
            port = self._server.add_insecure_port(self._address)
        else:
            port = self._server.add_secure_port(self._address, server_credentials(self._tls))
        await self._server.start()
        self._listening.set_result(port)
        async with watching_lag(self._observe_lag):
            await self._server.stop(await self._grace_s)

    async def _set_health(self, status: Any, *models: str) -> None:
        for name in ("", SERVICE_NAME, *models):
            await self._health.set(name, status)
