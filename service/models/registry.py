"""Served models by name, and loading, swapping and unloading them at run time."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Final, Literal, ParamSpec, TypeVar

from service.errors import InternalError, InvalidRequest, ModelNotFound, NotSupported, ServiceError
from service.lanes.batch_queue import stopping_error
from service.machine import collect_and_trim
from service.models.conversion import ModelSource, check_model_name, find_package, list_packages
from service.models.heads import HeadFolder
from service.models.image_cache import ImageCache
from service.models.loading import CANNOT_LOAD
from service.models.served_model import ServedModel
from service.monitoring.metrics import Metrics

T = TypeVar("T")
P = ParamSpec("P")
State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
# Time for running batches to end after the last request.
CLOSE_GRACE_S: Final = 5.0
NO_HEADS: Final = HeadFolder()
logger = logging.getLogger(__name__)


class ModelRegistry:
    """The served models by name, and what they share: heads and encoded images. Thread-safe.

    A request holds a lease on its model, so that a replaced or removed model is closed only after
    its last request. The first name ever served stays the default name: another model as a silent
    default would answer with embeddings that do not compare with those that callers keep.
    """

    def __init__(
        self, metrics: Metrics, heads: HeadFolder = NO_HEADS, images: ImageCache | None = None
    ) -> None:
        self.heads = heads
        self.images = images or ImageCache(metrics)
        # In the order of `models`; replaced as a whole, so that it is read without the lock.
        self._models: dict[str, ServedModel] = {}
        self._default: str | None = None
        self._users: Counter[ServedModel] = Counter()
        self._changed = threading.Condition()
        metrics.queue_oldest.set_function(self._oldest_s)
        metrics.queue_depths = self._queue_depths
        metrics.models = lambda: [served.info for served in self.models()]
        metrics.measures = lambda: {m.manifest.name: m.measures() for m in self.models()}

    @property
    def is_empty(self) -> bool:
        """Whether no model is served."""
        return not self._models

    def models(self) -> list[ServedModel]:
        """All served models, the default one first, then sorted by name."""
        return list(self._models.values())

    def find(self, name: str | None) -> ServedModel:
        """A served model, for its description; run requests only under a lease.

        Args:
            name: None or an empty name is the default model.

        Raises:
            ModelNotFound: No model of that name is served.
        """
        served = self._models.get(name or self._default or "")
        if served is not None:
            return served
        names = ", ".join(m.manifest.name for m in self.models()) or "none now"
        if name:
            text = f"No model {name!r} is served; there is: {names}."
        else:
            text = f"The default model is not served; name another: {names}."
        raise ModelNotFound(text, param="model")

    @contextmanager
    def lease(self, name: str | None) -> Iterator[ServedModel]:
        """Keep a model loaded for a block, even if it is replaced meanwhile.

        Raises:
            ModelNotFound: As `find` raises it.
        """
        with self._changed:
            served = self.find(name)
            self._users[served] += 1
        try:
            yield served
        finally:
            with self._changed:
                self._users[served] -= 1
                if not self._users[served]:
                    del self._users[served]
                    self._changed.notify_all()

    def put(self, served: ServedModel) -> ServedModel | None:
        """Serve a model under its name; returns the model that it replaces."""
        with self._changed:
            name = served.manifest.name
            self._default, replaced = self._default or name, self._models.get(name)
            names = sorted({*self._models, name}, key=lambda n: (n != self._default, n))
            self._models = {n: served if n == name else self._models[n] for n in names}
        return replaced

    def remove(self, name: str) -> ServedModel:
        """Stop serving a model and return it; requests in progress keep using it.

        Raises:
            ModelNotFound: No model of that name is served.
        """
        with self._changed:
            served = self.find(name)
            self._models = {n: other for n, other in self._models.items() if other is not served}
        return served

    def wait_unused(self, served: ServedModel) -> None:
        """Block until no request uses a removed model."""
        with self._changed:
            self._changed.wait_for(lambda: served not in self._users)

    def _queue_depths(self) -> Mapping[str, int]:
        """Waiting items of all models by bucket, removed models in use included."""
        depths: Counter[str] = Counter()
        for served in self._at_work():
            depths.update(served.queue_depths())
        return depths

    def _oldest_s(self) -> float:
        return max((served.queue.oldest_s() for served in self._at_work()), default=0.0)

    def _at_work(self) -> set[ServedModel]:
        with self._changed:
            return {*self._models.values(), *self._users}


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model in the index; `reason` is that of its last failed load."""

    name: str
    state: State
    reason: str = ""


class ModelRepository:
    """Loads, swaps and unloads models while others answer.

    One thread loads one model after another, apart from the pool and the lanes. A model is served
    only after its digests are verified and it is warmed up; a failed load changes nothing.

    Args:
        registry: The served models; only this class changes them.
        load: Loads a model from its source; called in the loader's thread.
        folder: The packages that callers may load, if any.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        load: Callable[[ModelSource], ServedModel],
        *,
        folder: Path | None,
    ) -> None:
        self.on_change: Callable[[str, bool], None] = lambda name, is_served: None
        self._registry = registry
        self._load_source = load
        self._folder = folder
        self._loader = ThreadPoolExecutor(1, "loader")
        # The loader's thread clears it when a load ends, so that readers must copy it first.
        self._loading: ModelSource | None = None
        self._is_cancelled = False
        self._sources: dict[str, ModelSource] = {}
        self._reasons: dict[str, str] = {}
        self._leaving: dict[threading.Thread, str] = {}

    async def start(self, source: ModelSource) -> ServedModel:
        """Serve a model that the settings name.

        Raises:
            Exception: As the loader raised it.
        """
        return await self._in_loader(self._serve, source)

    async def load(self, name: str, package: str | None = None) -> None:
        """Serve a package under a name; it replaces the model of that name.

        Args:
            name: Of the model.
            package: Its folder below the repository. None is the last source of the model, or else
                the folder of its name.

        Raises:
            InvalidRequest: The name or the package is unusable; the message gives the reason.
            ModelNotFound: There is no such package.
            InternalError: Any other failure, which is logged.
        """
        check_model_name(name)
        await self._in_loader(self._swap, name, package)

    async def unload(self, name: str) -> None:
        """Stop serving a model. Its requests in progress are answered, then its memory is freed.

        Raises:
            ModelNotFound: It is not served.
        """
        await self._in_loader(self._remove, name)

    def index(self) -> list[ModelState]:
        """Every model that is served, was served, or is in the repository. Reads the folder."""
        loading, leaving = self._loading, set(self._leaving.values())
        states: dict[str, State] = {m.manifest.name: "READY" for m in self._registry.models()}
        unserved: dict[str, State] = dict.fromkeys(
            [*self._sources, *self._reasons, *list_packages(self._folder)], "UNAVAILABLE"
        )
        unserved |= dict.fromkeys(leaving, "UNLOADING")
        if loading is not None and loading.name:
            unserved[loading.name] = "LOADING"
        states |= {name: unserved[name] for name in sorted(unserved.keys() - states.keys())}
        return [ModelState(name, s, self._reasons.get(name, "")) for name, s in states.items()]

    def cancel(self) -> None:
        """Cancel the current load and all later ones; served models stay."""
        self._is_cancelled = True
        loading = self._loading
        if loading is not None:
            loading.cancelled.set()

    def close(self) -> None:
        """Stop the loader and close every model; no request may be in progress."""
        self.cancel()
        self._loader.shutdown(cancel_futures=True)
        for served in self._registry.models():
            self._registry.remove(served.manifest.name)
            served.close(CLOSE_GRACE_S)
        until = time.monotonic() + CLOSE_GRACE_S
        for thread in tuple(self._leaving):
            thread.join(max(0.0, until - time.monotonic()))

    async def _in_loader(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work in the loader's thread, after the work before it."""
        try:
            return await asyncio.wrap_future(self._loader.submit(work, *args, **kwargs))
        except RuntimeError:
            raise stopping_error() from None

    def _swap(self, name: str, package: str | None) -> None:
        known = self._sources.get(name)
        if known and not package:
            source = replace(known, name=name, is_background=True, cancelled=Event())
        else:
            folder = find_package(self._folder, package or name)
            source = ModelSource(folder, name, is_background=True)
        try:
            self._serve(source)
        except ServiceError:
            raise
        except CANNOT_LOAD as error:
            reason = self._reasons[name] = source.without_paths(str(error))
            logger.warning("not loaded", extra={"fields": {"model": name, "reason": str(error)}})
            raise InvalidRequest(
                f"{name!r} was not loaded: {reason}", code="load_failed", param="parameters.package"
            ) from error
        except Exception as error:
            self._reasons[name] = "internal error; the server's log has it"
            raise InternalError(f"{name!r} was not loaded.") from error

    def _serve(self, source: ModelSource) -> ServedModel:
        served = self._make(source)
        name = served.manifest.name
        self._sources[name] = source
        self._reasons.pop(name, None)
        replaced = self._registry.put(served)
        self.on_change(name, True)
        logger.info("loaded", extra={"fields": {"model": name, "is_swap": replaced is not None}})
        if replaced is not None:
            self._retire(replaced)
        return served

    def _make(self, source: ModelSource) -> ServedModel:
        self._loading = source
        try:
            if self._is_cancelled:
                source.cancelled.set()
            source.check()
            began = time.monotonic()
            served = self._load_source(source)
            served.load_s = time.monotonic() - began
            if source.cancelled.is_set():
                served.close(CLOSE_GRACE_S)
            source.check()
            return served
        finally:
            self._loading = None

    def _remove(self, name: str) -> None:
        served = self._registry.remove(name)
        self.on_change(name, False)
        self._retire(served)

    def _retire(self, served: ServedModel) -> None:
        """Close a model after its last request, in a thread."""

        def end() -> None:
            self._registry.wait_unused(served)
            self._registry.images.drop(served)
            served.close(CLOSE_GRACE_S)
            collect_and_trim()
            logger.info("unloaded", extra={"fields": {"model": served.manifest.name}})
            self._leaving.pop(thread, None)

        thread = threading.Thread(target=end, name="unload", daemon=True)
        self._leaving[thread] = served.manifest.name
        thread.start()


def managed_repository(repository: ModelRepository | None) -> ModelRepository:
    """The repository, for a request that manages models.

    Raises:
        NotSupported: There is none, since the settings do not enable management.
    """
    if repository is None:
        raise NotSupported(
            "Models cannot be managed here: the server's setting enable_management is off.",
            code="management_not_enabled",
        )
    return repository
