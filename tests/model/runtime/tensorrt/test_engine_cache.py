"""A built engine is reused only for what it was built from."""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.manifest import FileEntry, Manifest
from model.package import ModelPackage
from model.runtime.tensorrt.cuda import DeviceFacts
from model.runtime.tensorrt.engine_cache import (
    BuiltEngine,
    EngineCache,
    EngineKey,
    differences,
    graph_digest,
)
from model.runtime.tensorrt.profiles import EngineOptions, ShapeRange

# A key tells engines apart by everything that they depend on.

DEVICE = DeviceFacts(
    gpu="NVIDIA H100 80GB HBM3", compute_capability="9.0", tensorrt="11.4.0.106", cuda_major=13
)
KEY = EngineKey(
    device=DEVICE,
    part="vision",
    precision="bf16",
    graph_sha256="a" * 64,
    profiles=[{"pixel_values": ShapeRange((1, 3, 14, 14), (4, 3, 14, 14), (8, 3, 14, 14))}],
    options=EngineOptions(),
)
OTHER_RANGE = ShapeRange((1, 3, 14, 14), (4, 3, 14, 14), (9, 3, 14, 14))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(KEY, device=replace(DEVICE, gpu="NVIDIA L4")), "NVIDIA L4"),
        (replace(KEY, device=replace(DEVICE, compute_capability="8.9")), "8.9"),
        (replace(KEY, device=replace(DEVICE, tensorrt="10.9.0")), "10.9.0"),
        (replace(KEY, device=replace(DEVICE, cuda_major=12)), "cuda_major is 13 and was 12"),
        (replace(KEY, part="text"), "part is 'vision' and was 'text'"),
        (replace(KEY, precision="fp16"), "precision is 'bf16' and was 'fp16'"),
        (replace(KEY, graph_sha256="b" * 64), "graph_sha256"),
        (replace(KEY, profiles=[{"pixel_values": OTHER_RANGE}]), "profiles changed"),
        (replace(KEY, options=EngineOptions(allow_tf32=True)), "options changed"),
    ],
)
def test_a_key_differs_in_everything_that_the_engine_depends_on(
    other: EngineKey, told: str
) -> None:
    assert told in differences(other.facts(), KEY.facts())


def test_a_key_survives_json_and_equals_nothing_else() -> None:
    assert not differences(json.loads(json.dumps(KEY.facts())), KEY.facts())
    assert "extra" in differences({**KEY.facts(), "extra": 1}, KEY.facts())
    others: tuple[object, ...] = (None, [], "key", {})
    assert all(differences(other, KEY.facts()) for other in others)


def test_the_folder_of_a_device_is_one_safe_name() -> None:
    assert "/" not in replace(DEVICE, gpu="../a/b").folder


def package_of(tiny: Manifest, *names: str) -> ModelPackage:
    files = {name: FileEntry(sha256="0" * 64, size_bytes=1) for name in names}
    return ModelPackage(path=Path(), manifest=tiny.model_copy(update={"files": files}))


def test_weights_beside_a_graph_count_and_other_graphs_do_not(tiny_package: ModelPackage) -> None:
    names = ("onnx/vision_model.onnx", "onnx/vision_model.onnx.data", "onnx/text_model.onnx")
    package = package_of(tiny_package.manifest, *names, "model.safetensors")
    before = graph_digest(package.manifest, names[0])

    def digest_with_changed(name: str) -> str:
        files = {**package.manifest.files, name: FileEntry(sha256="1" * 64, size_bytes=1)}
        return graph_digest(package.manifest.model_copy(update={"files": files}), names[0])

    assert digest_with_changed(names[0]) != before
    assert digest_with_changed(names[1]) != before
    assert digest_with_changed(names[2]) == before
    assert digest_with_changed("model.safetensors") == before


# An engine is built once, by one process, and never read when it is not what it should be.


class Builds:
    """Counts the builds; an engine is the number of its build."""

    def __init__(self, cache: EngineCache) -> None:
        self.cache = cache
        self.timings: list[bytes] = []
        self.refused: set[bytes] = set()

    def get(self, key: EngineKey = KEY) -> bytes:
        return self.cache.load_or_build(key, load=self.load, build=self.build)

    def load(self, plan: bytes) -> bytes | None:
        return None if plan in self.refused else plan

    def build(self, timings: bytes) -> BuiltEngine:
        self.timings.append(timings)
        number = b"%d" % len(self.timings)
        return BuiltEngine(plan=b"plan " + number, timings=b"timings " + number)


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return Builds(EngineCache(tmp_path / "cache"))


def test_an_engine_is_built_once(builds: Builds) -> None:
    assert [builds.get(), builds.get()] == [b"plan 1", b"plan 1"]


def test_timings_are_kept_for_the_next_build_on_the_device(builds: Builds) -> None:
    builds.get()
    builds.get(replace(KEY, part="text"))
    builds.get(replace(KEY, device=replace(KEY.device, gpu="other")))
    assert builds.timings == [b"", b"timings 1", b""]


def note_of(plan: Path) -> Path:
    return plan.with_suffix(".json")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda plan: plan.write_bytes(b"plan 0"), "SHA-256", id="plan"),
        pytest.param(lambda plan: note_of(plan).write_text("{"), "cannot be read", id="note"),
        pytest.param(lambda plan: note_of(plan).write_text("[]"), "nothing says", id="empty note"),
        pytest.param(lambda plan: note_of(plan).unlink(), "there is none yet", id="no note"),
        pytest.param(lambda plan: plan.unlink(), "there is none yet", id="no plan"),
    ],
)
def test_a_damaged_engine_is_built_again(
    builds: Builds,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], object],
    reason: str,
) -> None:
    builds.get()
    spoil(builds.cache.plan_file(KEY))
    with caplog.at_level(logging.INFO):
        assert builds.get() == b"plan 2"
    assert reason in caplog.text
    assert builds.get() == b"plan 2"


def test_an_engine_copied_from_another_device_is_built_again(
    builds: Builds, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(KEY, device=replace(KEY.device, tensorrt="10.9"))
    builds.get(other)
    builds.cache.plan_file(other).parent.rename(builds.cache.plan_file(KEY).parent)
    with caplog.at_level(logging.INFO):
        assert builds.get() == b"plan 2"
    assert "tensorrt is '11.4.0.106' and was '10.9'" in caplog.text


def test_an_engine_that_tensorrt_refuses_is_built_again(
    builds: Builds, caplog: pytest.LogCaptureFixture
) -> None:
    builds.refused.add(builds.get())
    with caplog.at_level(logging.INFO):
        assert builds.get() == b"plan 2"
    assert "TensorRT refuses it" in caplog.text


def test_a_new_engine_that_is_refused_is_an_error_and_not_kept(builds: Builds) -> None:
    builds.refused.add(b"plan 1")
    with pytest.raises(RuntimeError, match="cannot load the engine that it built for the vision"):
        builds.get()
    assert not builds.cache.plan_file(KEY).exists()


def test_a_build_that_fails_leaves_nothing(builds: Builds) -> None:
    def fail(_timings: bytes) -> BuiltEngine:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        builds.cache.load_or_build(KEY, load=builds.load, build=fail)
    left = [path.name for path in builds.cache.plan_file(KEY).parent.iterdir()]
    assert left == ["build.lock"]


def test_a_write_that_fails_leaves_nothing_half_written(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            builds.get()
    left = [path.name for path in builds.cache.plan_file(KEY).parent.iterdir()]
    assert left == ["build.lock"]
    assert builds.get() == b"plan 2"


def test_only_one_builds_and_the_others_wait_for_it(builds: Builds) -> None:
    is_building, may_end = threading.Event(), threading.Event()
    found: list[bytes] = []

    def build(timings: bytes) -> BuiltEngine:
        is_building.set()
        assert may_end.wait(10)
        return builds.build(timings)

    def get() -> None:
        found.append(builds.cache.load_or_build(KEY, load=builds.load, build=build))

    threads = [threading.Thread(target=get) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert is_building.wait(10)
    assert not found
    may_end.set()
    for thread in threads:
        thread.join(10)
    assert found == [b"plan 1"] * 3
    assert len(builds.timings) == 1
