"""The gRPC server on a thread and an event loop of its own, so that busy REST cannot starve it."""

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import grpc
import uvloop
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.data_plane import DataPlane
from service.grpc.generated import encoder_service_pb2, open_inference_pb2
from service.grpc.generated.encoder_service_pb2_grpc import add_EncoderServiceServicer_to_server
from service.grpc.generated.open_inference_pb2_grpc import (
    add_GRPCInferenceServiceServicer_to_server,
)
from service.grpc.interceptor import CallInterceptor
from service.grpc.open_inference import InferenceServicer, stream_error
from service.grpc.servicer import EncoderServicer
from service.grpc.stream import stream_error as encoder_stream_error
from service.models.registry import ModelRepository
from service.monitoring.metrics import watching_loop_lag
from service.monitoring.telemetry import Telemetry
from service.safety.protection import Protection
from service.safety.tls import Tls, TlsMaterial

SERVICE_NAME = encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name
INFERENCE_SERVICE = "inference.GRPCInferenceService"
# Files that reflection describes; each dialect's own descriptor pool has only its own. The last one
# describes the details of errors, which grpcurl looks up.
FILES = (encoder_service_pb2, open_inference_pb2, health_pb2, reflection_pb2, error_details_pb2)
# Health checks by these names report the whole server.
WHOLE = ("", SERVICE_NAME, INFERENCE_SERVICE)
START_LIMIT_S = 10.0
# Time to write the last answers.
ANSWERS_S = 0.5
POLL_S = 0.01


class GrpcServer:
    """Starts, reports health and stops. All methods may be called from any other thread."""

    def __init__(
        self,
        plane: DataPlane,
        telemetry: Telemetry,
        protection: Protection,
        *,
        address: tuple[str, int],
        repository: ModelRepository | None = None,
        is_shared: bool = False,
    ) -> None:
        """Make a server that does not listen yet.

        Args:
            plane: Answers.
            telemetry: Counts, times and logs.
            protection: Limits, keys and TLS.
            address: Host and port.
            repository: Loads models; None if callers may not.
            is_shared: Whether other processes of this server listen on the port too.
        """
        self._is_shared = is_shared
        self._plane = plane
        self._repository = repository
        self._protection = protection
        telemetry.metrics.calls.declare(
            f"{service.full_name}/{rpc.name}"
            for file in (encoder_service_pb2, open_inference_pb2)
            for service in file.DESCRIPTOR.services_by_name.values()
            for rpc in service.methods
        )
        self._metrics = telemetry.metrics
        self._calls = CallInterceptor(
            telemetry,
            protection,
            plane.admission,
            {
                f"{SERVICE_NAME}/Stream": encoder_stream_error,
                f"{INFERENCE_SERVICE}/ModelStreamInfer": stream_error,
            },
        )
        host, port = address
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._listening: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, name="grpc", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event
        self._server: Any
        self._health: Any

    def start(self) -> int:
        """Listen.

        Returns:
            The port; a free one if the address has port 0.

        Raises:
            OSError: The address cannot be used.
        """
        self._thread.start()
        return self._listening.result(START_LIMIT_S)

    def set_health(self, models: Mapping[str, bool], is_ready: bool) -> None:
        """Set the health of these models and of the whole server."""
        self._call(self._set_health({**models, **dict.fromkeys(WHOLE, is_ready)}))

    def announce_drain(self) -> None:
        """Set the health of everything to NOT_SERVING, for good."""
        self._call(self._health.enter_graceful_shutdown())

    def stop(self, limit_s: float) -> None:
        """Accept no new RPC, wait until every RPC of ours is answered, and end all others."""
        self._call(self._stop(limit_s))
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _stop(self, limit_s: float) -> None:
        until = self._loop.time() + limit_s
        self._calls.closing.set()
        closing = asyncio.ensure_future(self._server.stop(limit_s))
        while not self._calls.is_idle and self._loop.time() < until:
            await asyncio.sleep(POLL_S)
        # The last answer may still be on its way. A watch of health lasts until it is ended.
        await asyncio.wait({closing}, timeout=ANSWERS_S)
        await self._server.stop(None)
        await closing

    def _run(self) -> None:
        try:
            uvloop.run(self._serve())
        except Exception as error:
            if self._listening.done():
                raise
            self._listening.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._server = grpc.aio.server(
            interceptors=[self._calls],
            # Unless it is shared, fail if another process has the port.
            options=[
                ("grpc.so_reuseport", int(self._is_shared)),
                *channel_options(self._protection),
            ],
        )
        add_EncoderServiceServicer_to_server(EncoderServicer(self._plane), self._server)
        self._health = health.aio.HealthServicer()
        await self._set_health(dict.fromkeys(WHOLE, False))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        inference = InferenceServicer(self._plane, self._repository)
        add_GRPCInferenceServiceServicer_to_server(inference, self._server)
        add_reflection(self._server)
        port = self._add_port()
        await self._server.start()
        self._listening.set_result(port)
        async with watching_loop_lag(self._metrics, "grpc"):
            await self._stopped.wait()

    def _add_port(self) -> int:
        tls = self._protection.tls
        try:
            if tls is None:
                return int(self._server.add_insecure_port(self._address))
            return int(self._server.add_secure_port(self._address, server_credentials(tls)))
        except RuntimeError as error:
            raise OSError(
                f"gRPC cannot listen on {self._address}: the port is in use or the host is not of "
                "this machine; change --grpc-port or --host"
            ) from error

    async def _set_health(self, names: Mapping[str, bool]) -> None:
        status = health_pb2.HealthCheckResponse
        for name, is_serving in names.items():
            await self._health.set(name, status.SERVING if is_serving else status.NOT_SERVING)


def channel_options(protection: Protection) -> list[tuple[str, int]]:
    """Limits that gRPC's core enforces, in milliseconds and bytes."""
    return [
        ("grpc.max_receive_message_length", protection.settings.max_request_bytes),
        ("grpc.max_send_message_length", -1),
        # gRPC accepts RPCs one by one, at 0.4 to 0.7 ms of CPU time, so those of one connection
        # delay the others.
        ("grpc.max_concurrent_streams", 64),
        # A set of bits whose only one is "identity". A compressed message of 32 kB has 33 MB: 400
        # of them took 5 GB, since the core decompresses before any check of ours.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # By default the core widens the windows of all streams of a connection as fast as its
        # client sends, also of streams that wait: measured, to 64 MiB each.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 64 * 1024),
        # Clients reconnect through the balancer and so reach new replicas.
        ("grpc.max_connection_age_ms", 300_000),
        ("grpc.max_connection_age_grace_ms", int(1000 * protection.settings.request_timeout_s)),
        # Detects a vanished peer, and disconnects one that pings too often.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Credentials that follow the files; a client CA makes client certificates required."""
    given: TlsMaterial | None = None

    def newer() -> Any:
        # gRPC calls this on its own threads before each connection; None means no change.
        nonlocal given
        material = tls.current()
        if material is given:
            return None
        given = material
        return grpc.ssl_server_certificate_configuration(
            [(material.key, material.certificate)], root_certificates=material.client_ca
        )

    needs_client = tls.current().client_ca is not None
    return grpc.dynamic_ssl_server_credentials(
        newer(), newer, require_client_authentication=needs_client
    )


def add_reflection(server: Any) -> None:
    """Add reflection, which clients ask for the contract: every service and type of a message."""
    files: dict[str, bytes] = {}

    def add(file: Any) -> None:
        for imported in file.dependencies:  # before the file itself, each once
            add(imported)
        files.setdefault(file.name, file.serialized_pb)

    for module in FILES:
        add(module.DESCRIPTOR)
    pool = DescriptorPool()
    for content in files.values():
        pool.AddSerializedFile(content)
    names = (SERVICE_NAME, INFERENCE_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=pool)
