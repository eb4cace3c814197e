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
def test_whatever_it_depends_on_tells_it_apart(other: EngineKey, told: str) -> None:
    assert told in differences(other.facts(), KEY.facts())


def test_a_key_that_went_through_json_is_the_same() -> None:
    assert not differences(json.loads(json.dumps(KEY.facts())), KEY.facts())


@pytest.mark.parametrize("found", [None, [], "key", {}])
def test_what_is_no_key_differs(found: object) -> None:
    assert differences(found, KEY.facts())


def test_a_later_programs_key_differs() -> None:
    assert "extra" in differences({**KEY.facts(), "extra": 1}, KEY.facts())


def test_a_device_has_a_folder_of_its_own() -> None:
    assert DEVICE.folder == "nvidia-h100-80gb-hbm3-cc-9.0-trt-11.4.0.106-cuda-13"
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

KEYEngineCache = EngineKey(
    device=DeviceFacts(gpu="gpu", compute_capability="9.0", tensorrt="11.4", cuda_major=13),
    part="vision",
    precision="fp32",
    graph_sha256="a" * 64,
    profiles=[],
    options=EngineOptions(),
)


class Builds:
    """Counts the builds; an engine is the number of its build."""

    def __init__(self, cache: EngineCache) -> None:
        self.cache = cache
        self.timings: list[bytes] = []
        self.refused: set[bytes] = set()

    def get(self, key: EngineKey = KEYEngineCache) -> bytes:
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


def test_the_second_asks_no_builder(builds: Builds) -> None:
    assert [builds.get(), builds.get()] == [b"plan 1", b"plan 1"]


def test_timings_are_kept_for_the_next_build_on_the_device(builds: Builds) -> None:
    builds.get()
    builds.get(replace(KEYEngineCache, part="text"))
    builds.get(replace(KEYEngineCache, device=replace(KEYEngineCache.device, gpu="other")))
    assert builds.timings == [b"", b"timings 1", b""]


def spoil_plan(plan: Path) -> None:
    plan.write_bytes(b"plan 0")


def spoil_note(plan: Path) -> None:
    plan.with_suffix(".json").write_text("{", encoding="utf-8")


def empty_note(plan: Path) -> None:
    plan.with_suffix(".json").write_text("[]", encoding="utf-8")


def lose_note(plan: Path) -> None:
    plan.with_suffix(".json").unlink()


def lose_plan(plan: Path) -> None:
    plan.unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_plan, "SHA-256"),
        (spoil_note, "cannot be read"),
        (empty_note, "nothing says what the kept one is"),
        (lose_note, "there is none yet"),
        (lose_plan, "there is none yet"),
    ],
)
def test_what_is_not_whole_is_built_again(
    builds: Builds,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    builds.get()
    spoil(builds.cache.plan_file(KEYEngineCache))
    with caplog.at_level(logging.INFO):
        assert builds.get() == b"plan 2"
    assert reason in caplog.text
    assert builds.get() == b"plan 2"


def test_what_was_made_from_something_else_is_built_again(
    builds: Builds, caplog: pytest.LogCaptureFixture
) -> None:
    builds.get()
    with caplog.at_level(logging.INFO):
        builds.get(replace(KEYEngineCache, options=EngineOptions(max_batch=32)))
    assert "made from something else: options changed" in caplog.text


def test_an_engine_copied_from_another_device_is_built_again(
    builds: Builds, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(KEYEngineCache, device=replace(KEYEngineCache.device, tensorrt="10.9"))
    builds.get(other)
    builds.cache.plan_file(other).parent.rename(builds.cache.plan_file(KEYEngineCache).parent)
    with caplog.at_level(logging.INFO):
        assert builds.get() == b"plan 2"
    assert "tensorrt is '11.4' and was '10.9'" in caplog.text


def test_what_the_library_refuses_is_built_again(
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
    assert not builds.cache.plan_file(KEYEngineCache).exists()


def test_a_build_that_fails_leaves_nothing(builds: Builds) -> None:
    def fail(_timings: bytes) -> BuiltEngine:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        builds.cache.load_or_build(KEYEngineCache, load=builds.load, build=fail)
    left = [path.name for path in builds.cache.plan_file(KEYEngineCache).parent.iterdir()]
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
    left = [path.name for path in builds.cache.plan_file(KEYEngineCache).parent.iterdir()]
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
        found.append(builds.cache.load_or_build(KEYEngineCache, load=builds.load, build=build))

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
