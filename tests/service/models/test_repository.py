"""Load, swap and unload beside requests: nothing is lost, and every runtime is closed once."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model.package import PackageError
from service.call import Call
from service.data_plane import DataPlane
from service.errors import InternalError, InvalidRequest, ModelNotFound, Unavailable
from service.messages import EmbedTextsRequest
from service.models.conversion import ModelSource
from service.models.loading import request_limits
from service.models.registry import ModelRegistry, ModelRepository, ModelState
from service.models.served_model import ServedModel
from service.monitoring.metrics import Metrics
from service.request_gate import RequestGate

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

LIMIT_S = 20.0


class Shelf:
    """A loader over fake runtimes, one for each load; it can be held, and it can fail."""

    def __init__(self, serve: Callable[["FakeRuntime", str], ServedModel], kind: Any) -> None:
        self.runtimes: list[FakeRuntime] = []
        self.sources: list[ModelSource] = []
        self.fault: Exception | None = None
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self._serve = serve
        self._kind = kind

    def load(self, source: ModelSource) -> ServedModel:
        self.sources.append(source)
        self.entered.release()
        assert self.gate.wait(LIMIT_S)
        if self.fault is not None:
            raise self.fault
        self.runtimes.append(self._kind())
        return self._serve(self.runtimes[-1], source.name or Path(source.folder).name)

    @property
    def closed(self) -> list[bool]:
        return [runtime.is_closed for runtime in self.runtimes]


@pytest.fixture
def registry(metrics: Metrics) -> ModelRegistry:
    return ModelRegistry(metrics)


@pytest.fixture
def shelf(serve_fake: Any, make_settings: Any, metrics: Metrics, runtime: "FakeRuntime") -> Shelf:
    settings = make_settings()
    return Shelf(lambda made, name: serve_fake(settings, metrics, made, name), type(runtime))


@pytest.fixture
async def repository(
    registry: ModelRegistry, shelf: Shelf, tmp_path: Path
) -> AsyncIterator[ModelRepository]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tipserve.json").touch()
    made = ModelRepository(registry, shelf.load, folder=tmp_path, max_use_s=LIMIT_S)
    await made.start(ModelSource("/started/with/first"))
    yield made
    shelf.gate.set()
    for runtime in shelf.runtimes:
        runtime.gate.set()
    await asyncio.to_thread(made.close)
    assert all(shelf.closed), "every runtime is closed in the end"


@pytest.fixture
def ask(registry: ModelRegistry, make_settings: Any, metrics: Metrics) -> Any:
    """Embed one text by a model, through the whole data plane."""
    gate = RequestGate(metrics)
    gate.open()
    limits, pool = request_limits(make_settings()), ThreadPoolExecutor(2)
    plane = DataPlane(gate, registry, limits=limits, max_image_patches=64, pool=pool)

    async def embed(model: str | None = None, text: str = "dog") -> str:
        call = Call(request_id="test", deadline=time.monotonic() + LIMIT_S)
        request = EmbedTextsRequest(texts=(text,), model=model)
        return (await plane.embed_texts(request, call)).model

    return embed


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def states(repository: ModelRepository) -> dict[str, str]:
    return {state.name: state.state for state in repository.index()}


async def test_a_swap_finishes_the_old_ones_requests_and_sends_the_others_to_the_new(
    repository: ModelRepository, shelf: Shelf, ask: Callable[..., Awaitable[str]]
) -> None:
    await repository.load("a")
    first, old = shelf.runtimes
    old.gate.clear()
    inside = asyncio.ensure_future(ask("a"))
    await asyncio.to_thread(old.entered.acquire, timeout=LIMIT_S)
    await repository.load("a", "b")
    new = shelf.runtimes[2]
    assert shelf.sources[2] == ModelSource(shelf.sources[2].folder, "a", is_background=True)
    assert Path(shelf.sources[2].folder).name == "b"
    assert await ask("a") == "a"
    assert (new.num_texts, old.is_closed) == (1, False)
    old.gate.set()
    assert await inside == "a"
    await until(lambda: old.is_closed)
    assert shelf.closed == [False, True, False]
    assert first.num_texts == 0


async def test_an_unloaded_model_finishes_its_requests_and_is_known_no_more(
    repository: ModelRepository, shelf: Shelf, ask: Callable[..., Awaitable[str]]
) -> None:
    changes: list[tuple[str, bool]] = []
    repository.on_change = lambda name, is_served: changes.append((name, is_served))
    await repository.load("a")
    runtime = shelf.runtimes[1]
    runtime.gate.clear()
    inside = asyncio.ensure_future(ask("a"))
    await asyncio.to_thread(runtime.entered.acquire, timeout=LIMIT_S)
    await repository.unload("a")
    with pytest.raises(ModelNotFound):
        await ask("a")
    assert states(repository) == {"first": "READY", "a": "UNLOADING", "b": "UNAVAILABLE"}
    runtime.gate.set()
    assert await inside == "a"
    await until(lambda: runtime.is_closed)
    await until(lambda: states(repository)["a"] == "UNAVAILABLE")
    assert changes == [("a", True), ("a", False)]


async def test_the_default_and_the_last_can_go_and_come_back_from_where_they_were(
    repository: ModelRepository, shelf: Shelf, ask: Callable[..., Awaitable[str]]
) -> None:
    await repository.unload("first")
    with pytest.raises(ModelNotFound, match="default model is not served"):
        await ask()
    with pytest.raises(ModelNotFound):
        await repository.unload("first")
    await repository.load("first")
    assert shelf.sources[-1].folder == "/started/with/first"
    assert await ask() == "first"


async def test_a_failed_load_leaves_the_old_one_and_says_why_without_its_path(
    repository: ModelRepository, shelf: Shelf, ask: Callable[..., Awaitable[str]], tmp_path: Path
) -> None:
    await repository.load("a")
    shelf.fault = PackageError(f"{tmp_path / 'b' / 'x.onnx'} is not the file")
    with pytest.raises(InvalidRequest) as caught:
        await repository.load("a", "b")
    assert caught.value.code == "load_failed"
    assert caught.value.message == "'a' was not loaded: b/x.onnx is not the file"
    assert await ask("a") == "a"
    reason = "b/x.onnx is not the file"
    assert ModelState("a", "READY", reason) in repository.index()
    shelf.fault = RuntimeError("secret of the runtime")
    with pytest.raises(InternalError) as internal:
        await repository.load("b")
    assert "secret" not in internal.value.message
    assert "secret" not in str(repository.index())
    shelf.fault = None
    await repository.load("a")
    assert ModelState("a", "READY") in repository.index()


async def test_a_cold_load_stalls_no_warm_model(
    repository: ModelRepository, shelf: Shelf, ask: Callable[..., Awaitable[str]]
) -> None:
    shelf.gate.clear()
    loading = asyncio.ensure_future(repository.load("a"))
    for _ in range(2):
        await asyncio.to_thread(shelf.entered.acquire, timeout=LIMIT_S)
    assert await ask() == "first"
    assert states(repository)["a"] == "LOADING"
    with pytest.raises(ModelNotFound):
        await ask("a")
    shelf.gate.set()
    await loading
    assert await ask("a") == "a"


async def test_two_models_of_one_name_are_refused_at_the_start(
    repository: ModelRepository, shelf: Shelf
) -> None:
    with pytest.raises(ValueError, match=r"both be served as 'first'.*other="):
        await repository.start(ModelSource("elsewhere/first"))
    assert shelf.closed == [False, True]


async def test_what_is_being_loaded_when_the_server_stops_is_left(
    repository: ModelRepository, shelf: Shelf, registry: ModelRegistry
) -> None:
    shelf.gate.clear()
    loading = asyncio.ensure_future(repository.load("a"))
    queued = asyncio.ensure_future(repository.load("b"))
    for _ in range(2):
        await asyncio.to_thread(shelf.entered.acquire, timeout=LIMIT_S)
    repository.cancel()
    shelf.gate.set()
    for left in (loading, queued):
        with pytest.raises(Unavailable):
            await left
    assert [served.manifest.name for served in registry.models()] == ["first"]
    assert shelf.closed == [False, True]
    await asyncio.to_thread(repository.close)
    with pytest.raises(Unavailable):
        await repository.load("a")


@pytest.mark.slow
async def test_many_swaps_under_requests_lose_none_and_close_every_runtime_but_the_last(
    repository: ModelRepository, shelf: Shelf, ask: Callable[..., Awaitable[str]]
) -> None:
    await repository.load("a")
    is_over = asyncio.Event()
    num_answers = 0

    async def keep_asking() -> None:
        nonlocal num_answers
        while not is_over.is_set():
            assert await ask("a", f"text {num_answers}") == "a"
            num_answers += 1

    askers = [asyncio.ensure_future(keep_asking()) for _ in range(4)]
    for package in ["b", "a"] * 5:
        before = num_answers
        await repository.load("a", package)
        await until(lambda before=before: num_answers > before + 8)  # type: ignore[misc]
    is_over.set()
    await asyncio.gather(*askers)
    await until(lambda: sum(shelf.closed) == 10)
    assert shelf.closed == [False, *[True] * 10, False]


async def test_a_load_that_ends_during_index_and_cancel_breaks_neither(
    repository: ModelRepository,
) -> None:
    class EndsAfterOneRead(ModelRepository):
        """The loader's thread clears the source right after the first read."""

        @property
        def _loading(self) -> Any:
            return self.__dict__.pop("_current", None)

        @_loading.setter
        def _loading(self, source: ModelSource | None) -> None:
            self.__dict__["_current"] = source

    repository.__class__ = EndsAfterOneRead
    source = ModelSource("a", "loading")
    repository._loading = source
    assert "loading" in states(repository)
    repository._loading = source
    repository.cancel()
    assert source.cancelled.is_set()
