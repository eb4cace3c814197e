"""Served models by name, and loading, swapping and unloading them while requests run."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.package import PackageError
from service.admission import Admission
from service.data_plane import DataPlane
from service.errors import InternalError, InvalidRequest, ModelNotFound, Unavailable
from service.messages import EmbedTextsRequest
from service.models.conversion import ModelSource
from service.models.loading import request_limits
from service.models.registry import ModelRegistry, ModelRepository, ModelState
from service.models.served_model import ServedModel
from service.monitoring.metrics import Metrics
from service.waiting import Pool
from tests.service.conftest import WAIT_S, FakeRuntime, call, sample, until

Ask = Callable[..., Awaitable[str]]


class Loader:
    """Loads fake models, each over its own runtime; `gate` holds a load, `fault` fails it."""

    def __init__(self, serve: Callable[[FakeRuntime, str], ServedModel]) -> None:
        self.runtimes: list[FakeRuntime] = []
        self.served: list[ServedModel] = []
        self.sources: list[ModelSource] = []
        self.fault: Exception | None = None
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self._serve = serve

    def load(self, source: ModelSource) -> ServedModel:
        self.sources.append(source)
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        if self.fault is not None:
            raise self.fault
        return self.make(source.name or Path(source.folder).name)

    def make(self, name: str) -> ServedModel:
        self.runtimes.append(FakeRuntime())
        self.served.append(self._serve(self.runtimes[-1], name))
        return self.served[-1]

    @property
    def closed(self) -> list[bool]:
        return [runtime.is_closed for runtime in self.runtimes]


@pytest.fixture
def registry(metrics: Metrics) -> ModelRegistry:
    return ModelRegistry(metrics)


@pytest.fixture
def loader(serve_fake: Any, make_settings: Any, metrics: Metrics) -> Iterator[Loader]:
    settings = make_settings()
    made = Loader(lambda runtime, name: serve_fake(settings, metrics, runtime, name))
    yield made
    for served in made.served:
        served.close(WAIT_S)


@pytest.fixture
async def repository(
    registry: ModelRegistry, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ModelRepository]:
    """Serves `first`; its folder has the packages `a` and `b`."""
    # A collection of garbage per unload takes over a second in a process full of libraries.
    monkeypatch.setattr("service.models.registry.collect_and_trim", lambda: None)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tipserve.json").touch()
    made = ModelRepository(registry, loader.load, folder=tmp_path)
    await made.start(ModelSource("/started/with/first"))
    yield made
    loader.gate.set()
    for runtime in loader.runtimes:
        runtime.gate.set()
    await asyncio.to_thread(made.close)
    assert all(loader.closed)


@pytest.fixture
def ask(registry: ModelRegistry, make_settings: Any, metrics: Metrics) -> Ask:
    """Embed a text by a model, through the whole data plane; returns the model's name."""
    admission = Admission(metrics, max_body_bytes=1, max_work_bytes=1)
    admission.open()
    limits, pool = request_limits(make_settings()), Pool(2)
    plane = DataPlane(admission, registry, limits=limits, max_image_patches=64, pool=pool)

    async def embed(model: str | None = None) -> str:
        request = EmbedTextsRequest(texts=("dog",), model=model)
        return (await plane.embed_texts(request, call())).model

    return embed


async def held(ask: Ask, runtime: FakeRuntime) -> "asyncio.Future[str]":
    """A request for `a` that its runtime holds."""
    runtime.gate.clear()
    running = asyncio.ensure_future(ask("a"))
    await asyncio.to_thread(runtime.entered.acquire, timeout=WAIT_S)
    return running


def names(registry: ModelRegistry) -> list[str]:
    return [served.manifest.name for served in registry.models()]


def states(repository: ModelRepository) -> dict[str, str]:
    return {state.name: state.state for state in repository.index()}


def test_the_first_name_stays_the_default(registry: ModelRegistry, loader: Loader) -> None:
    with pytest.raises(ModelNotFound, match="none now"):
        registry.find(None)
    first = loader.make("z")
    for served in (first, loader.make("b"), loader.make("a")):
        registry.put(served)
    assert names(registry) == ["z", "a", "b"]
    assert registry.find(None) is registry.find("") is registry.find("z") is first
    registry.remove("z")
    assert names(registry) == ["a", "b"]
    with pytest.raises(ModelNotFound, match="default model is not served; name another: a, b"):
        registry.find(None)
    with pytest.raises(ModelNotFound, match="'z' is served; there is: a, b"):
        registry.find("z")


async def test_metrics_show_served_models_only(
    registry: ModelRegistry, loader: Loader, metrics: Metrics
) -> None:
    def described() -> list[str]:
        families = {family.name: family for family in metrics.registry.collect()}
        found = families.get("tipserve_model_info")
        return [s.labels["name"] for s in found.samples] if found else []

    assert described() == []
    for name in ("a", "a", "b"):
        registry.put(loader.make(name))
    assert described() == ["a", "b"]
    assert sample(metrics, "lanes", model="a", state="ready") == 1
    registry.remove("a")
    assert described() == ["b"]
    assert sample(metrics, "lanes", model="a", state="ready") == 0


async def test_a_swap_finishes_requests_on_the_old_model(
    repository: ModelRepository, loader: Loader, ask: Ask
) -> None:
    await repository.load("a")
    first, old = loader.runtimes
    running = await held(ask, old)
    await repository.load("a", "b")
    assert Path(loader.sources[2].folder).name == "b"
    assert await ask("a") == "a"
    assert (loader.runtimes[2].num_texts, old.is_closed) == (1, False)
    old.gate.set()
    assert await running == "a"
    await until(lambda: old.is_closed)
    assert loader.closed == [False, True, False]
    assert first.num_texts == 0


async def test_an_unloaded_model_finishes_its_requests_and_can_be_loaded_again(
    repository: ModelRepository, loader: Loader, ask: Ask
) -> None:
    changes: list[tuple[str, bool]] = []
    repository.on_change = lambda name, is_served: changes.append((name, is_served))
    await repository.load("a")
    runtime = loader.runtimes[1]
    running = await held(ask, runtime)
    await repository.unload("a")
    for request in (ask("a"), repository.unload("a")):
        with pytest.raises(ModelNotFound):
            await request
    assert states(repository) == {"first": "READY", "a": "UNLOADING", "b": "UNAVAILABLE"}
    runtime.gate.set()
    assert await running == "a"
    await until(lambda: runtime.is_closed)
    await until(lambda: states(repository)["a"] == "UNAVAILABLE")
    assert changes == [("a", True), ("a", False)]
    await repository.unload("first")
    await repository.load("first")
    assert loader.sources[-1].folder == "/started/with/first"
    assert await ask() == "first"


async def test_a_failed_load_keeps_the_old_model_and_gives_a_reason_without_paths(
    repository: ModelRepository, loader: Loader, ask: Ask, tmp_path: Path
) -> None:
    await repository.load("a")
    loader.fault = PackageError(f"{tmp_path / 'b' / 'x.onnx'} is not the file")
    with pytest.raises(InvalidRequest) as caught:
        await repository.load("a", "b")
    reason = "b/x.onnx is not the file"
    assert caught.value.code == "load_failed"
    assert caught.value.message == f"'a' was not loaded: {reason}"
    assert await ask("a") == "a"
    assert ModelState("a", "READY", reason) in repository.index()
    loader.fault = RuntimeError("secret of the runtime")
    with pytest.raises(InternalError) as internal:
        await repository.load("b")
    assert "secret" not in f"{internal.value.message} {repository.index()}"
    loader.fault = None
    await repository.load("a")
    assert ModelState("a", "READY") in repository.index()


async def test_a_cold_load_stalls_no_warm_model(
    repository: ModelRepository, loader: Loader, ask: Ask
) -> None:
    loader.gate.clear()
    loading = asyncio.ensure_future(repository.load("a"))
    for _ in range(2):
        await asyncio.to_thread(loader.entered.acquire, timeout=WAIT_S)
    assert await ask() == "first"
    assert states(repository)["a"] == "LOADING"
    with pytest.raises(ModelNotFound):
        await ask("a")
    loader.gate.set()
    await loading
    assert await ask("a") == "a"


async def test_loads_are_cancelled_when_the_server_stops(
    repository: ModelRepository, loader: Loader, registry: ModelRegistry
) -> None:
    loader.gate.clear()
    loads = [asyncio.ensure_future(repository.load(name)) for name in "ab"]
    for _ in range(2):
        await asyncio.to_thread(loader.entered.acquire, timeout=WAIT_S)
    repository.cancel()
    loader.gate.set()
    for load in loads:
        with pytest.raises(Unavailable):
            await load
    assert names(registry) == ["first"]
    assert loader.closed == [False, True]
    await asyncio.to_thread(repository.close)
    with pytest.raises(Unavailable):
        await repository.load("a")
