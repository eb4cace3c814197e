"""When a server is asked again, and when not."""

from collections.abc import Callable

import pytest

from model.winner_map import Labels
from service.engines.engine import (
    Embedding,
    EngineError,
    ImageRefused,
    ModelSummary,
    refusal,
)
from service.engines.remote import MAX_TRIES, RemoteEngine, TryAgain
from service.messages import EmbedImagesRequest, SegmentImagesRequest

REQUEST = EmbedImagesRequest(images=(b"x",))


class Scripted(RemoteEngine):
    """Raises what it is given, one after the other; then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.pauses: list[float] = []
        super().__init__(self.pauses.append)
        self.errors = list(errors)

    def embed_once(self, request: EmbedImagesRequest) -> Embedding:
        if self.errors:
            raise self.errors.pop(0)
        return {}

    def segment_once(self, request: SegmentImagesRequest) -> Labels:
        raise NotImplementedError

    def models_once(self) -> list[ModelSummary]:
        raise NotImplementedError


def test_it_comes_back_when_the_server_said_so() -> None:
    engine = Scripted(TryAgain("full", 3.0), TryAgain("full"), TryAgain("full", 999.0))
    assert engine.embed(REQUEST).result(10) == {}
    assert engine.pauses == [3.0, 0.4, 30.0]
    engine.close()


def test_it_gives_up_in_the_end() -> None:
    engine = Scripted(*[TryAgain("It is full.")] * MAX_TRIES)
    with pytest.raises(EngineError, match=f"It is full. It was asked {MAX_TRIES} times."):
        engine.embed(REQUEST).result(10)
    assert len(engine.pauses) == MAX_TRIES - 1
    engine.close()


def test_it_says_once_why_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    engine = Scripted(*[TryAgain("It is full.")] * 3)
    engine.embed(REQUEST).result(10)
    engine.errors = [TryAgain("It is full.")] * 3
    engine.embed(REQUEST).result(10)
    engine.errors = [TryAgain("It is full.")]
    engine.embed(REQUEST).result(10)
    assert caplog.messages == [f"It is full. It is asked again, {MAX_TRIES} times in all."]
    engine.close()


@pytest.mark.parametrize("error", [ImageRefused("bad", "code"), EngineError("bad")])
def test_a_refusal_is_final(error: Exception) -> None:
    engine = Scripted(error)
    with pytest.raises(type(error)):
        engine.embed(REQUEST).result(10)
    assert engine.pauses == []
    engine.close()


@pytest.mark.parametrize(
    ("param", "code", "kind"),
    [
        ("images[0]", "invalid_image", ImageRefused),
        ("image", "invalid_image", ImageRefused),
        ("images", "empty_list", EngineError),
        ("resolution", "invalid_field", EngineError),
        (None, "internal", EngineError),
    ],
)
def test_only_a_images_own_fault_is_its_own(
    param: str | None, code: str, kind: Callable[..., Exception]
) -> None:
    assert type(refusal(f"{param}: broken", code, param)) is kind
