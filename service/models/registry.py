"""Which models are served, by name, and who is using each.

A request holds a lease on its model, so that a model which was replaced or removed ends only after
the last request has left it. Thread-safe: both transports' loops and the loader come here.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from service.errors import ModelNotFound
from service.models.served_model import ServedModel
from service.monitoring.observability import Metrics


class ModelRegistry:
    """Names and the models behind them. The first name ever served is the default for good.

    Another model is never put in the default's place by itself: its embeddings would not compare
    with those that callers keep.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._models: dict[str, ServedModel] = {}
        self._default: str | None = None
        self._users: Counter[ServedModel] = Counter()
        self._changed = threading.Condition()
        metrics.watch_queue(self._queue_depths, self._oldest_s)
        metrics.watch_models(lambda: [served.info for served in self.models()])
        metrics.lanes.reports = lambda: [served.lane_report() for served in self.models()]

    @property
    def is_empty(self) -> bool:
        """Whether no model is served."""
        return not self._models

    def models(self) -> list[ServedModel]:
        """All that are served, the default one first, then in the order of their names."""
        with self._changed:
            names = sorted(self._models, key=lambda name: (name != self._default, name))
            return [self._models[name] for name in names]

    def find(self, name: str | None) -> ServedModel:
        """A served model, to be looked at; use it under a lease only.

        Args:
            name: None or nothing is the default.

        Raises:
            ModelNotFound: No model of that name is served.
        """
        wanted = name or self._default
        served = self._models.get(wanted) if wanted else None
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
        """Use a model while the block runs, even if it is replaced meanwhile.

        Raises:
            ModelNotFound: As `find`.
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
        """Serve a model under its name from now on; returns the one that it replaces."""
        with self._changed:
            replaced = self._models.get(served.manifest.name)
            self._models[served.manifest.name] = served
            self._default = self._default or served.manifest.name
        return replaced

    def remove(self, name: str) -> ServedModel:
        """Serve a model no longer; it is returned, and whoever uses it goes on.

        Raises:
            ModelNotFound: No model of that name is served.
        """
        with self._changed:
            served = self.find(name)
            del self._models[name]
        return served

    def wait_unused(self, served: ServedModel, timeout_s: float) -> bool:
        """Block until nobody uses a model that is served no longer; False after the time-out."""
        with self._changed:
            return self._changed.wait_for(lambda: served not in self._users, timeout_s)

    def _queue_depths(self) -> Mapping[str, int]:
        """What waits in all models, by shape; also in those that are on their way out."""
        depths: Counter[str] = Counter()
        for served in self._at_work():
            depths.update(served.queue_depths())
        return depths

    def _oldest_s(self) -> float:
        return max((served.oldest_s() for served in self._at_work()), default=0.0)

    def _at_work(self) -> set[ServedModel]:
        with self._changed:
            return {*self._models.values(), *self._users}
