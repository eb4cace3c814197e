"""A model in this process, without a server; and the service's drawings.

This is the only file of the command line that imports `service`. A request takes the same way as
over gRPC, apart from the connection: the service's own conversions, and the client's.
"""

import asyncio
import os
import threading
import time
from collections.abc import Collection, Coroutine, Sequence
from typing import Any, Final

from pydantic import ValidationError

from model.graphs import DenseTask
from model.manifest import Manifest
from service.admission import Admission
from service.call import Call, current_call
from service.data_plane import DataPlane
from service.errors import ServiceError
from service.grpc.errors import CODE
from service.grpc.servicer import EncoderServicer
from service.models.conversion import ModelSource, open_source
from service.models.heads import HeadFolder
from service.models.loading import load_model, num_pool_threads, request_limits
from service.models.registry import ModelRegistry
from service.monitoring.metrics import Metrics
from service.outputs import colours, features, maps, masks, polygons
from service.settings import Settings, load_settings
from service.waiting import Pool
from tipserve_cli.engine import Engine, UsageError, UserError
from tipserve_client import Client, Retry
from tipserve_client.errors import BY_CODE
from tipserve_client.grpc_wire import RPCS, read_response, write_request
from tipserve_client.requests import Request

# The service's drawings, for the commands.
__all__ = [
    "LocalTransport",
    "colours",
    "features",
    "load",
    "maps",
    "masks",
    "open_manifest",
    "polygons",
]

# Long, because a job has no caller who waits, but finite, so that a request cannot hang for ever.
TIMEOUT_S: Final = 3600.0
CLOSE_LIMIT_S: Final = 10.0
BATCHES_WAITING: Final = 2
# For a program that asks once: one lane, and no measurements.
ONCE: Final = ("--lanes=1", "--max-batch-images=1")


def load(flags: Sequence[str], *, heads: Collection[DenseTask] | None = None) -> Engine:
    """Load a model in this process.

    Args:
        flags: Settings of the service.
        heads: Load the native size and these dense heads only, and measure nothing; None is for
            many requests.
    """
    settings = settings_for((*(() if heads is None else ONCE), *flags))
    transport = LocalTransport(settings, heads)
    retry = Retry(max_attempts=1000, first_pause_s=1.0, max_pause_s=1.0)
    client = Client(transport, timeout_s=TIMEOUT_S, retry=retry)
    return Engine(client, 1 if heads is not None else transport.busy_window())


def settings_for(flags: Sequence[str]) -> Settings:
    """Read the settings of a model in this process, from the service's flags and variables."""
    try:
        return load_settings(flags, os.environ)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"])) or "settings"
        raise UsageError(f"{name}: {problem['msg']}.") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def open_manifest(flags: Sequence[str]) -> Manifest:
    """Verify the package of the first model and read its manifest, without loading the model."""
    (source, *_) = _sources(settings_for(flags))
    try:
        manifest = open_source(source).manifest
    except (ServiceError, ValueError, OSError, ImportError) as error:
        raise UserError(str(error)) from error
    return manifest if source.name is None else manifest.model_copy(update={"name": source.name})


def _sources(settings: Settings) -> list[ModelSource]:
    return [
        ModelSource.from_setting(text, settings.cache, settings.convert_precisions)
        for text in settings.model
    ]


class LocalTransport:
    """Loads the models of the settings, and answers the requests of a client; thread-safe."""

    def __init__(self, settings: Settings, heads: Collection[DenseTask] | None = None) -> None:
        metrics = Metrics()
        self._models = ModelRegistry(metrics, HeadFolder(settings.heads))
        admission = Admission(
            metrics,
            max_body_bytes=settings.max_body_memory_bytes,
            max_work_bytes=settings.max_work_memory_bytes,
        )
        self._num_pool_threads = num_pool_threads(settings)
        self._pool = Pool(self._num_pool_threads)
        plane = DataPlane(
            admission,
            self._models,
            limits=request_limits(settings),
            max_image_patches=settings.max_batch_patches,
            pool=self._pool,
            jpeg_decode=settings.jpeg_decode,
        )
        self._servicer = EncoderServicer(plane)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()
        try:
            for source in _sources(settings):
                self._models.put(load_model(settings, metrics, source, heads=heads))
        except (ServiceError, ValueError, OSError, ImportError) as error:
            self.close()
            raise UserError(str(error)) from error
        except BaseException:
            self.close()
            raise
        admission.open()

    def send(self, request: Request, timeout_s: float) -> Any:
        """Answer a request."""
        compute = getattr(self._servicer, RPCS[request.method])
        asked = _answered(compute(write_request(request), None), timeout_s)
        answer = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        return read_response(request, answer)

    def busy_window(self) -> int:
        """Images that fill a batch and the next one in every lane, and all decoding threads."""
        served = self._models.find(None)
        batch = max((bucket.max_batch_images for bucket in served.info.buckets), default=1)
        num_lanes = len(served.lanes)
        return BATCHES_WAITING * num_lanes * batch + self._num_pool_threads

    def close(self) -> None:
        """Free the models and end the threads."""
        for served in self._models.models():
            served.close(CLOSE_LIMIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown()


async def _answered(computing: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
    """The answer of an RPC, within a call of its own."""
    call = Call(request_id="command", deadline=time.monotonic() + timeout_s)
    current_call.set(call)
    try:
        return await computing
    except ServiceError as error:
        kind = BY_CODE[CODE[type(error)].value[0]]
        raise kind(
            error.message, code=error.code, param=error.param, retry_after_s=error.retry_after_s
        ) from error
