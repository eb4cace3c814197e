"""Builds the whole server (models, data plane, REST, gRPC, metrics), starts and drains it.

Start: listen (not ready), load, warm up, ready. Stop: fail readiness but keep serving, reject new
requests, finish requests in flight, close both transports, stop the lanes.
"""

import asyncio
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import uvloop

from model.files import atomic_write
from model.image_codec import SMALL_DECODING_BYTES, most_decoding_bytes
from service.admission import Admission, ServerState, unavailable
from service.data_plane import DataPlane
from service.errors import Unavailable
from service.grpc.interceptor import MAX_STREAMS, NUM_MESSAGES
from service.grpc.server import GrpcServer
from service.images import QUEUED_PATCH_BYTES
from service.machine import memory_limit, on_stop_signals, resident_bytes, trimming_memory
from service.models.conversion import ModelSource, check_names
from service.models.heads import HeadFolder
from service.models.image_cache import ImageCache
from service.models.image_pipeline import RELEASED_BYTES
from service.models.loading import load_model, num_pool_threads, request_limits
from service.models.registry import ModelRegistry, ModelRepository
from service.models.served_model import ServedModel
from service.monitoring.log import LogQueue, configure_logging
from service.monitoring.metrics import Metrics, watching_loop_lag
from service.monitoring.metrics_server import LIVE, READY, MetricsServer
from service.monitoring.telemetry import build_telemetry
from service.rest.app import build_app
from service.rest.pages import page_url
from service.rest.server import BACKLOG, build_http_server, listen
from service.rest.token_ids import TokenVocabulary
from service.safety.protection import Protection
from service.settings import Settings, is_loopback
from service.waiting import Pool, cancel_all
from service.workers.place import WorkerPlace

# As long as the timeout of a liveness probe.
LOOP_LIMIT_S = 5.0
# Between two looks at the health of the lanes: one that hangs reports nothing.
HEALTH_INTERVAL_S = 1.0
# Time to write finished answers to slow clients.
WRITE_GRACE_S = 5
# Time for the log writer to write the last lines.
LOG_GRACE_S = 2.0
# Time for the trace collector to accept the last spans.
TRACE_GRACE_S = 3.0

ModelLoader = Callable[[Settings, Metrics, ModelSource], ServedModel]

logger = logging.getLogger(__name__)


class Server:
    """All parts of one server process; of a worker, if it has a place among several."""

    def __init__(
        self,
        settings: Settings,
        load: ModelLoader = load_model,
        *,
        log: LogQueue | None = None,
        place: WorkerPlace | None = None,
    ) -> None:
        if place is not None:
            settings = place.settings(settings)
        self.settings = settings
        self.place = place
        self.metrics = Metrics()
        if settings.cpus is not None:
            self.metrics.cpus.set_function(partial(float, settings.cpus))
        self._telemetry = build_telemetry(settings, self.metrics, log)
        self.admission = Admission(
            self.metrics,
            max_body_bytes=settings.max_body_memory_bytes,
            max_work_bytes=settings.max_work_memory_bytes,
        )
        self.pool = Pool(num_pool_threads(settings))
        images = ImageCache(
            self.metrics,
            max_bytes=settings.image_cache_bytes,
            is_shared=settings.image_cache_shared,
        )
        self.models = ModelRegistry(self.metrics, HeadFolder(settings.heads), images)
        self.repository = ModelRepository(
            self.models,
            partial(load, settings, self.metrics),
            folder=settings.model_repository,
        )
        self.repository.on_change = self._publish_model_health
        self.plane = DataPlane(
            self.admission,
            self.models,
            limits=request_limits(settings),
            max_image_patches=settings.max_batch_patches,
            pool=self.pool,
            jpeg_decode=settings.jpeg_decode,
        )
        self.ports: dict[str, int] = {}
        self._stop = asyncio.Event()
        self.ready = asyncio.Event()
        self.pause: Callable[[float], Awaitable[None]] = asyncio.sleep
        self.protection = Protection(settings, self.metrics)
        self._listen(settings)
        self.metrics.ready.set_function(lambda: self.plane.is_ready)

    def _listen(self, settings: Settings) -> None:
        """Open the three ports; gRPC's when it starts, and those of a worker when it is ready."""
        managed = self.repository if settings.enable_management else None
        file = settings.token_vocabulary
        app = build_app(
            self.plane,
            self._telemetry,
            self.protection,
            managed,
            vocabulary=None if file is None else TokenVocabulary.read(file),
        )
        host, self._host_reason = settings.address
        self._host = host
        is_worker = self.place is not None
        self._http_socket = listen(host, settings.http_port, is_shared=is_worker)
        grace_s = math.ceil(settings.drain_timeout_s) + WRITE_GRACE_S
        self._http = build_http_server(app, self.protection, grace_s=grace_s)
        self._grpc = GrpcServer(
            self.plane,
            self._telemetry,
            self.protection,
            address=(host, settings.grpc_port),
            repository=managed,
            is_shared=is_worker,
        )
        metrics_host, metrics_port = settings.metrics_address
        self._metrics_server = MetricsServer(
            self.metrics.registry,
            {
                LIVE: partial(self._check, self.plane.check_live),
                READY: partial(self._check, self._check_ready),
            },
            host=metrics_host if self.place is None else self.place.report_socket,
            port=metrics_port,
        )

    def _check(self, check: Callable[[], None]) -> None:
        """Check health for the metrics port, whose threads answer when an event loop does not.

        Raises:
            ServiceError: The check fails, or an event loop stalls.
        """
        check()
        stalled = self.metrics.stalled_loops(LOOP_LIMIT_S)
        if stalled:
            raise Unavailable(f"The event loop of {' and '.join(stalled)} stalls.")

    def _check_ready(self) -> None:
        self.plane.check_ready()
        if not self.ready.is_set():  # a worker whose gate is open, and whose ports are not yet
            raise unavailable(ServerState.STARTING)

    @property
    def is_stopping(self) -> bool:
        """Whether the drain has begun."""
        return self._stop.is_set()

    def request_stop(self) -> None:
        """Start the drain; call it on the event loop of the server."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until `request_stop`, then drain.

        Raises:
            Exception: A model could not be loaded, or the server failed later.
        """
        async with watching_loop_lag(self.metrics, "http"), trimming_memory():
            await self._run()

    async def _run(self) -> None:
        # The kernel would send a worker connections that the others can serve already.
        http = self._open_ports() if self.place is None else None
        stop = asyncio.ensure_future(self._stop.wait())
        tasks: list[asyncio.Task[Any]] = [stop]
        try:
            if await self._load_models(stop):
                self.admission.open()
                http = http or self._open_ports()
                await self._publish_health(self.plane.health)
                tasks.append(asyncio.ensure_future(self._watch_health()))
                self.ready.set()
                self.metrics.record_first_ready()
                if self.settings.enable_management and not self.settings.has_keys:
                    logger.warning("every caller may load and unload models: no API keys are set")
                self._check_memory()
                names = [served.manifest.name for served in self.models.models()]
                logger.info("ready", extra={"fields": {"models": names, **self.ports}})
                if sys.stderr.isatty() and self.place is None:
                    logger.info("open %s (Ctrl+C stops)", self._page)
                await stop
        finally:
            cancel_all(tasks)
            if http is not None:
                await self._drain(http)
            await asyncio.to_thread(self.repository.close)
            self._telemetry.close(TRACE_GRACE_S)
            self._metrics_server.close()
            self.pool.shutdown()
            logger.info("stopped")

    def _open_ports(self) -> "asyncio.Future[None]":
        """Accept requests; returns the end of REST."""
        self._http_socket.listen(BACKLOG)
        http = asyncio.ensure_future(self._http.serve([self._http_socket]))
        self._announce(self._grpc.start())
        return http

    def _check_memory(self) -> None:
        """Warn if callers can take more memory than the models leave."""
        limit, num_workers = memory_limit(), self.settings.workers
        num_bytes = num_workers * max_caller_bytes(self.settings)
        if limit is not None and num_workers * resident_bytes() + num_bytes > limit:
            logger.warning(
                "callers can make the server exceed its memory limit: lower max_body_memory_bytes, "
                "max_work_memory_bytes, max_queue_patches or image_cache_bytes",
                extra={"fields": {"max_caller_bytes": num_bytes, "memory_limit_bytes": limit}},
            )

    async def _publish_health(self, models: Mapping[str, bool]) -> None:
        await asyncio.to_thread(self._grpc.set_health, models, self.plane.is_ready)

    async def _watch_health(self) -> None:
        """Log and publish the health of the models whenever it changes."""
        known = self.plane.health
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            health = self.plane.health
            changed = {name: ok for name, ok in health.items() if known.get(name, True) != ok}
            known = health
            for name, is_healthy in changed.items():
                level = logging.WARNING if is_healthy else logging.ERROR
                text = "a model answers again" if is_healthy else "a model no longer answers"
                logger.log(level, text, extra={"fields": {"model": name}})
            if changed:
                await self._publish_health(health)

    async def _load_models(self, stop: "asyncio.Task[Literal[True]]") -> bool:
        """Load all models of the settings; False if the server was stopped first."""
        cache, precisions = self.settings.cache, self.settings.convert_precisions
        named = [ModelSource.from_setting(t, cache, precisions) for t in self.settings.model]
        if self.place is not None:
            named = [replace(source, num_loading=self.place.num_starting) for source in named]
        if len(named) > 1:
            await asyncio.to_thread(check_names, named)
        for source in named:
            loading = asyncio.ensure_future(self.repository.start(source))
            either: set[asyncio.Future[Any]] = {loading, stop}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                self.repository.cancel()
                with suppress(Unavailable):
                    await loading
                return False
            loading.result()
        return True

    def _publish_model_health(self, name: str, is_served: bool) -> None:
        """Publish the health of one model and of the server; called in the loader's thread."""
        if self.admission.is_open:
            self._grpc.set_health({name: is_served}, self.plane.is_ready)

    def _announce(self, grpc_port: int) -> None:
        place = self.place
        self.ports = {
            "http": self._http_socket.getsockname()[1],
            "grpc": grpc_port,
            "metrics": self._metrics_server.port if place is None else place.ports["metrics"],
        }
        address: dict[str, object] = {"host": self._host, "host_reason": self._host_reason}
        if place is not None:
            address["worker"] = place.number
        logger.info("listening", extra={"fields": {"page": self._page, **self.ports, **address}})
        if not is_loopback(self._host):
            logger.warning("for trusted networks only: strangers come through deploy/proxy")
        if self.settings.ports_file is not None:
            atomic_write(self.settings.ports_file, json.dumps(self.ports) + "\n")

    @property
    def _page(self) -> str:
        is_tls = self.settings.tls_cert is not None
        return page_url(self._host, self.ports["http"], is_tls=is_tls)

    async def _drain(self, http: "asyncio.Future[None]") -> None:
        """Fail readiness, then accept no connection, finish what is in progress, and close."""
        self.repository.cancel()
        was_open = self.admission.is_open
        self.admission.announce_drain()
        await asyncio.to_thread(self._grpc.announce_drain)
        if was_open:
            # Requests are still accepted until load balancers have noticed.
            logger.info("draining", extra={"fields": {"delay_s": self.settings.drain_delay_s}})
            await self.pause(self.settings.drain_delay_s)
        limit_s = self.settings.drain_timeout_s
        self._http.should_exit = True
        closing = asyncio.gather(http, asyncio.to_thread(self._grpc.stop, limit_s + WRITE_GRACE_S))
        if not await asyncio.to_thread(self.admission.wait_idle, limit_s):
            logger.warning("requests were still in flight when the drain timed out")
            # Work that waits for a lane is answered by 503 while its connection is still open.
            await asyncio.to_thread(self.repository.close)
        self.admission.drain()
        await closing


def max_caller_bytes(settings: Settings) -> int:
    """Most bytes that callers can make the server hold.

    The sum of the messages that gRPC is receiving, received bodies and messages, small images that
    threads decode, the memory for larger ones and for answers or, while these take little, for
    encoded images that are kept, and decoded images that wait for a lane: full queues of all
    models, and pixels that came as float32, which are copied and may be as large as the bodies.
    """
    return (
        (NUM_MESSAGES + MAX_STREAMS) * settings.max_request_bytes
        + 2 * settings.max_body_memory_bytes
        + num_pool_threads(settings) * SMALL_DECODING_BYTES
        + max(
            most_decoding_bytes(settings.max_image_pixels),
            settings.max_work_memory_bytes,
            RELEASED_BYTES + settings.image_cache_bytes,
        )
        + len(settings.model) * settings.max_queue_patches * QUEUED_PATCH_BYTES
    )


def main(settings: Settings, place: WorkerPlace | None = None) -> int:
    """Run the server until SIGTERM, SIGINT or SIGHUP.

    Args:
        settings: Of the whole server.
        place: Of this process, if it is one of several.

    Returns:
        The exit status: 0 after a drain, 1 after a failure.
    """
    log = configure_logging(settings.log_level)
    server: Server | None = None

    async def run() -> None:
        nonlocal server
        server = Server(settings, log=log, place=place)
        on_stop_signals(server.request_stop, is_worker=place is not None)
        if place is not None:
            _stop_with_supervisor(server)
        await server.run()

    try:
        uvloop.run(run())
    except Exception as error:
        # After the start such an error is a bug or an incident, which needs its traceback. Before,
        # the user can correct it: the message says how, and a traceback would hide that.
        has_started = server is not None and server.ready.is_set()
        if isinstance(error, (ValueError, OSError, ImportError)) and not has_started:
            logger.error("the server could not start: %s", error)
        else:
            logger.exception("the server failed")
        return 1
    finally:
        log.close(LOG_GRACE_S)
    return 0


def _stop_with_supervisor(server: Server) -> None:
    """Drain when the supervisor is gone, which closes standard input; in a drain, end at once."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(0)
        if server.is_stopping:
            os.kill(os.getpid(), signal.SIGKILL)
        server.request_stop()

    loop.add_reader(0, end)
