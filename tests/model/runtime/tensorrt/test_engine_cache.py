"""A built engine is reused only for what it was built from."""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.files import locked
from model.graphs import TEXT_FILE, VISION_FILE
from model.manifest import FileEntry
from model.runtime.loaded_graphs import graph_digest
from model.runtime.tensorrt.cuda import DeviceFacts, GpuError
from model.runtime.tensorrt.engine_cache import (
    LOCK,
    BuiltEngine,
    EngineCache,
    EngineKey,
    differences,
)
from model.runtime.tensorrt.profiles import EngineOptions, ShapeRange
from tests.model.runtime.conftest import make_manifest

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
    ("other", "difference"),
    [
        (replace(KEY, device=replace(DEVICE, gpu="NVIDIA L4")), "NVIDIA L4"),
        (replace(KEY, device=replace(DEVICE, compute_capability="8.9")), "8.9"),
        (replace(KEY, device=replace(DEVICE, tensorrt="10.9.0")), "10.9.0"),
        (replace(KEY, device=replace(DEVICE, cuda_major=12)), "cuda_major is 13 and was 12"),
        (replace(KEY, part="text"), "part is 'vision' and was 'text'"),
        (replace(KEY, precision="fp16"), "precision is 'bf16' and was 'fp16'"),
        (replace(KEY, graph_sha256="b" * 64), "graph_sha256"),
        (replace(KEY, profiles=[{"pixel_values": OTHER_RANGE}]), "profiles changed"),
        (replace(KEY, options=EngineOptions(max_texts=100)), "options changed"),
    ],
)
def test_a_key_differs_in_everything_that_the_engine_depends_on(
    other: EngineKey, difference: str
) -> None:
    assert difference in differences(other.facts(), KEY.facts())


def test_a_key_survives_json_and_equals_nothing_else() -> None:
    assert not differences(json.loads(json.dumps(KEY.facts())), KEY.facts())
    assert "extra" in differences({**KEY.facts(), "extra": 1}, KEY.facts())
    others: tuple[object, ...] = (None, [], "key", {})
    assert all(differences(other, KEY.facts()) for other in others)
    assert "/" not in replace(DEVICE, gpu="../a/b").folder


def test_weights_next_to_a_graph_count_and_those_of_the_same_part_in_float32() -> None:
    def digest(file: str, changed: str = "") -> str:
        manifest = make_manifest(files=dict.fromkeys(names, 1))
        if changed:
            manifest.files[changed] = FileEntry(sha256="1" * 64, size_bytes=1)
        return graph_digest(manifest, file)

    half = "onnx/vision_model_fp16.onnx"
    names = (VISION_FILE, half, f"{VISION_FILE}.data", TEXT_FILE, "model.safetensors")
    for file, counts in ((VISION_FILE, {0, 2}), (half, {0, 1, 2})):
        changed = {i for i, name in enumerate(names) if digest(file, name) != digest(file)}
        assert changed == counts


class Builds:
    """A cache whose engines are numbered by their build."""

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


def test_timings_are_kept_for_the_next_build_on_the_device(builds: Builds) -> None:
    builds.get()
    builds.get(replace(KEY, part="text"))
    builds.get(replace(KEY, device=replace(KEY.device, gpu="other")))
    assert builds.timings == [b"", b"timings 1", b""]


def note_of(plan: Path) -> Path:
    return plan.with_suffix(".json")


def copy_from_another_device(plan: Path) -> None:
    text = note_of(plan).read_text()
    note_of(plan).write_text(text.replace('"tensorrt": "11.4.0.106"', '"tensorrt": "10.9"'))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda plan: plan.write_bytes(b"plan 0"), "SHA-256", id="plan"),
        pytest.param(lambda plan: note_of(plan).write_text("{"), "cannot be read", id="note"),
        pytest.param(lambda plan: note_of(plan).write_text("[]"), "nothing says", id="empty note"),
        pytest.param(lambda plan: note_of(plan).unlink(), "there is none yet", id="no note"),
        pytest.param(lambda plan: plan.unlink(), "there is none yet", id="no plan"),
        pytest.param(copy_from_another_device, "'11.4.0.106' and was '10.9'", id="other device"),
        pytest.param(lambda _: None, "TensorRT refuses it", id="refused"),
    ],
)
def test_an_unusable_engine_is_built_again(
    builds: Builds,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], object],
    reason: str,
) -> None:
    builds.get()
    spoil(builds.cache.plan_file(KEY))
    if reason == "TensorRT refuses it":
        builds.refused.add(b"plan 1")
    with caplog.at_level(logging.INFO):
        assert builds.get() == b"plan 2"
    assert reason in caplog.text
    assert builds.get() == b"plan 2"


@pytest.mark.parametrize("failure", ["refused", "builder", "disk"])
def test_a_failed_build_leaves_nothing(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def fail(_: object) -> BuiltEngine:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        if failure == "refused":
            builds.refused.add(b"plan 1")
        elif failure == "builder":
            patched.setattr(builds, "build", fail)
        else:
            patched.setattr("os.fsync", fail)
        with pytest.raises((GpuError, OSError), match=r"cannot load the engine|no space"):
            builds.get()
    left = [path.name for path in builds.cache.plan_file(KEY).parent.iterdir()]
    assert left == ["build.lock"]
    assert builds.get() == (b"plan 1" if failure == "builder" else b"plan 2")


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


def test_built_engines_load_while_another_is_being_built(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred servers that start at once must not load their engines one by one."""
    builds.get()
    folder = builds.cache.plan_file(KEY).parent

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("waits for the lock")

    with locked(folder / LOCK):
        monkeypatch.setattr("model.runtime.tensorrt.engine_cache.locked", refuse)
        assert builds.get() == b"plan 1"
        folder.chmod(0o500)  # a cache that is mounted for reading
        try:
            assert builds.get() == b"plan 1"
        finally:
            folder.chmod(0o700)
        with pytest.raises(AssertionError, match="waits for the lock"):
            builds.get(replace(KEY, part="text"))
