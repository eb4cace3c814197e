"""What is served and whether it can answer: for probes, and for who lists models."""

from service.door import UNAVAILABLE_RETRY_S, Door, unavailable
from service.errors import Unavailable
from service.lanes.pulse import unwell
from service.messages import ModelInfo
from service.models.registry import ModelRegistry
from service.models.statistics import ModelStatistics


class Readiness:
    """The door and the models behind it. Thread-safe."""

    def __init__(self, door: Door, models: ModelRegistry) -> None:
        self.door = door
        self.models = models

    @property
    def health(self) -> dict[str, bool]:
        """Whether each served model can answer, by name."""
        return {served.manifest.name: served.is_ready for served in self.models.models()}

    @property
    def is_ready(self) -> bool:
        """Whether requests are let in, and every model that is served can answer, one at least."""
        health = self.health
        return self.door.is_inviting and bool(health) and all(health.values())

    def check_ready(self) -> None:
        """For readiness probes: refuse where `is_ready` is not so.

        Raises:
            Unavailable: Starting or draining, or a model cannot answer, or none is served.
        """
        if not self.door.is_inviting:
            raise unavailable(self.door.state)
        if self.models.is_empty:
            raise Unavailable("No model is served.", retry_after_s=UNAVAILABLE_RETRY_S)
        if not all(self.health.values()):
            raise unwell()

    def check_model_ready(self, name: str | None) -> None:
        """For readiness probes of one model; None is the default.

        Raises:
            Unavailable: Starting or draining, or the model cannot answer.
            ModelNotFound: No model of that name is served.
        """
        if not self.door.is_inviting:
            raise unavailable(self.door.state)
        if not self.models.find(name).is_ready:
            raise unwell()

    def check_live(self) -> None:
        """For liveness probes.

        Raises:
            Unavailable: A model has not been able to answer for long; the process is best ended.
        """
        if not all(served.is_live for served in self.models.models()):
            raise unwell()

    def list_models(self) -> list[ModelInfo]:
        """All served models, the default one first.

        Raises:
            Unavailable: The server is starting.
        """
        if self.models.is_empty:
            self.door.check()
        return [served.info for served in self.models.models()]

    def get_model(self, name: str | None) -> ModelInfo:
        """One served model; None is the default.

        Raises:
            Unavailable: The server is starting.
            ModelNotFound: No model of that name is served.
        """
        if self.models.is_empty:
            self.door.check()
        return self.models.find(name).info

    def statistics(self, name: str | None = None) -> list[ModelStatistics]:
        """What models have done since they were loaded: one, or all.

        Raises:
            ModelNotFound: No model of that name is served.
        """
        models = [self.models.find(name)] if name else self.models.models()
        return [served.statistics() for served in models]

    def check_open(self) -> None:
        """Refuse what cannot be let in whatever it asks for, so that its body need not be read.

        Raises:
            Unavailable: Starting or draining.
            Overloaded: Every model is full.
        """
        self.door.check()
        models = self.models.models()
        if models and all(model.admission.is_full for model in models):
            models[0].admission.check()
