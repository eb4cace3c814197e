"""An engine is built once, by one process, and never read when it is not what it should be."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.runtime.tensorrt.engine_cache import BuiltEngine, EngineCache
from model.runtime.tensorrt.engine_key import EngineKey
from model.runtime.tensorrt.libraries import DeviceFacts
from model.runtime.tensorrt.options import EngineOptions

KEY = EngineKey(
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


def test_the_second_asks_no_builder(builds: Builds) -> None:
    assert [builds.get(), builds.get()] == [b"plan 1", b"plan 1"]


def test_timings_are_kept_for_the_next_build_on_the_device(builds: Builds) -> None:
    builds.get()
    builds.get(replace(KEY, part="text"))
    builds.get(replace(KEY, device=replace(KEY.device, gpu="other")))
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
    spoil(builds.cache.plan_file(KEY))
    with caplog.at_level(logging.INFO):
        assert builds.get() == b"plan 2"
    assert reason in caplog.text
    assert builds.get() == b"plan 2"


def test_what_was_made_from_something_else_is_built_again(
    builds: Builds, caplog: pytest.LogCaptureFixture
) -> None:
    builds.get()
    with caplog.at_level(logging.INFO):
        builds.get(replace(KEY, options=EngineOptions(max_batch=32)))
    assert "made from something else: options changed" in caplog.text


def test_an_engine_copied_from_another_device_is_built_again(
    builds: Builds, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(KEY, device=replace(KEY.device, tensorrt="10.9"))
    builds.get(other)
    builds.cache.plan_file(other).parent.rename(builds.cache.plan_file(KEY).parent)
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
